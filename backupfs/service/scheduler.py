"""The loop that waits for the schedule. What is due, `rules.schedule` decides."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from backupfs.clock import Clock
from backupfs.errors import BackupfsError
from backupfs.rules import schedule
from backupfs.rules.schedule import SECOND_NS, Action

LOOK_S: Final = 30.0
"""The clock is read at least this often: trio's time stands still while the machine sleeps, and the clock may be set."""
_log = logging.getLogger(__name__)


class Scheduler:
    """Takes a snapshot when one is due and something has changed. One task runs it; `next_ns` may be read at any time."""

    def __init__(
        self,
        every_ns: int,
        anchor_ns: int,
        clock: Clock,
        changed: Callable[[], bool],
        take: Callable[[], Awaitable[object]],
    ) -> None:
        self.every_ns = every_ns
        self._anchor_ns = anchor_ns
        self._clock = clock
        self._changed = changed
        self._take = take

    @property
    def next_ns(self) -> int:
        """When the next snapshot is due."""
        return self._anchor_ns + self.every_ns

    async def run(self) -> None:
        """Until cancelled. A snapshot that fails is logged, and tried again one interval later."""
        while True:
            decision = schedule.decide(self._clock.now_ns(), self._anchor_ns, self.every_ns, self._changed())
            self._anchor_ns = decision.anchor_ns
            if decision.action is Action.RUN:
                await self._run_once()
            else:
                await trio.sleep(min(decision.wait_ns / SECOND_NS, LOOK_S))

    async def _run_once(self) -> None:
        try:
            await self._take()
        except BackupfsError as error:
            _log.error("the scheduled snapshot was not taken: %s", error)
        except Exception:  # noqa: BLE001 a snapshot that fails must not end the mount
            _log.exception("the scheduled snapshot was not taken")
