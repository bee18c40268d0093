"""The loop that waits for the schedules. What is due, `rules.schedule` decides."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from backupfs import limits
from backupfs.clock import Clock, until_next
from backupfs.errors import BackupfsError
from backupfs.rules import schedule as rule
from backupfs.rules.policy import SECOND_NS, Schedule
from backupfs.rules.schedule import Action, Activity, State, Taken
from backupfs.service.messages import ScheduleStatus, ScheduleView

_log = logging.getLogger(__name__)


class Scheduler:
    """Takes a snapshot, with the tags that it is to have, when one is due. One task runs it; what is due next may be read
    at any time.
    """

    def __init__(
        self,
        schedules: Sequence[Schedule],
        state: State,
        clock: Clock,
        activity: Callable[[], Activity],
        take: Callable[[tuple[str, ...]], Awaitable[object]],
    ) -> None:
        self._schedules = tuple(schedules)
        self._state = state
        self._clock = clock
        self._activity = activity
        self._take = take
        self._rescheduled = trio.Event()

    def reschedule(self, schedules: Sequence[Schedule], snapshots: Iterable[Taken]) -> None:
        """Go by other schedules from now on. Those that stay go on as they were, the others begin as at a mount."""
        self._state = rule.rescheduled(self._clock.now_ns(), self._state, self._schedules, schedules, snapshots)
        self._schedules = tuple(schedules)
        self._rescheduled.set()

    @property
    def next_ns(self) -> int | None:
        """When the next snapshot is due, if something changes until then; None when only changes make one due."""
        return min((view.next_ns for view in self.views() if view.next_ns is not None), default=None)

    def views(self) -> list[ScheduleView]:
        """Each schedule, and when it is due if nothing but the time goes on."""
        now_ns, activity, state = self._clock.now_ns(), self._activity(), self._state
        return [
            ScheduleView(rule.trigger(schedule), list(schedule.tags), schedule.always, rule.due_ns(now_ns, state, schedule, course, activity))
            for schedule, course in zip(self._schedules, state.courses, strict=True)
        ]

    def status(self) -> ScheduleStatus | None:
        """All of them in short; None when there are none."""
        if not self._schedules:
            return None
        shortest_ns = min((schedule.every_ns for schedule in self._schedules if schedule.every_ns is not None), default=None)
        return ScheduleStatus(None if shortest_ns is None else shortest_ns // SECOND_NS, self.next_ns)

    async def run(self) -> None:
        """Until cancelled. A snapshot that fails is logged, and tried again when the next one is due."""
        while True:
            decision = rule.decide(self._clock.now_ns(), self._state, self._schedules, self._activity())
            self._state = decision.state
            if decision.action is Action.RUN:
                await self._run_once(decision.tags)
            else:
                self._rescheduled = trio.Event()
                # Also what has changed is looked at then.
                look_s = until_next(trio.current_time(), limits.LOOK_S)
                with trio.move_on_after(look_s if decision.wait_ns is None else min(decision.wait_ns / SECOND_NS, look_s)):
                    await self._rescheduled.wait()

    async def _run_once(self, tags: tuple[str, ...]) -> None:
        try:
            await self._take(tags)
        except BackupfsError as error:
            _log.error("the scheduled snapshot was not taken: %s", error)
        except Exception:  # noqa: BLE001 a snapshot that fails must not end the mount
            _log.exception("the scheduled snapshot was not taken")
