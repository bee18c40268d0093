"""When scheduled snapshots are due: decided from what is handed in alone, so that years of it can be tested in a moment.
`docs/snapshots.md` is what this carries out.

Each schedule has a course: its anchor, when the clock alone makes it due, and what it last ran with. However many runs
were missed (sleep, SIGSTOP, the machine was off), one makes up for them. A clock that was set back moves the anchor
back with it, so that the next run is never further away than from now on.
"""

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from zoneinfo import ZoneInfo

from backupfs.rules import cron
from backupfs.rules.policy import Schedule
from backupfs.rules.quantities import show_duration, show_size

SCHEDULED: Final = "schedule"
"""Who asked for a snapshot that a schedule took."""


class Action(enum.Enum):
    """What to do now."""

    RUN = "run"
    SKIP = "skip"
    """A run is due and nothing has changed."""
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Activity:
    """What has changed since the last snapshot of any kind.

    `epoch` is another one after each snapshot. `changed_at_ns` is when the last change came; None: before the mount.
    `changes` counts them since the mount: a clock that was set back may show the same time twice.
    """

    records: int
    size_bytes: int
    changed_at_ns: int | None
    epoch: int
    changes: int = 0

    @property
    def has_changed(self) -> bool:
        """A snapshot would not be the same as the last one."""
        return self.records > 0 or self.size_bytes > 0

    @property
    def last_change(self) -> tuple[int | None, int]:
        """What tells the last change from all others."""
        return self.changed_at_ns, self.changes


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that is kept. `why` is who asked for it."""

    time_ns: int
    serial: int
    why: str
    tags: Collection[str]


@dataclass(frozen=True, slots=True)
class Course:
    """How far one schedule has come.

    `due_ns` is when the clock alone makes it due, computed when the anchor is set; None: it never does. `tried` is what
    had changed when it last ran: as long as no snapshot has been taken since, that run has failed.
    """

    anchor_ns: int
    due_ns: int | None
    tried: Activity | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered from one look to the next. `courses` are in the order of the schedules.

    Nothing has changed since `still_since_ns`; `last_change` is the change that this comes from, as it was told.
    """

    courses: tuple[Course, ...]
    still_since_ns: int
    last_change: tuple[int | None, int] = (None, 0)


@dataclass(frozen=True, slots=True)
class Decision:
    """`tags` are those of the snapshot to take. `state` replaces the one that was asked with.

    It must be asked again `wait_ns` from now at the latest, if nothing happens until then; None: not at all. Positive.
    """

    action: Action
    tags: tuple[str, ...]
    state: State
    wait_ns: int | None


def initial(now_ns: int, schedules: Sequence[Schedule], snapshots: Iterable[Taken]) -> State:
    """The state at a mount, with the snapshots that are kept in any order."""
    scheduled = sorted((s for s in snapshots if s.why == SCHEDULED), key=lambda s: s.serial, reverse=True)
    courses = []
    for schedule in schedules:
        last = next((s for s in scheduled if set(schedule.tags) <= set(s.tags)), None)
        courses.append(_course(schedule, now_ns if last is None else min(last.time_ns, now_ns)))
    return State(tuple(courses), now_ns)


def rescheduled(now_ns: int, state: State, before: Sequence[Schedule], schedules: Sequence[Schedule], snapshots: Iterable[Taken]) -> State:
    """The state when other schedules come into force. One that stays goes on, another begins as at a mount."""
    courses = dict(zip(before, state.courses, strict=True))
    begun = initial(now_ns, schedules, snapshots).courses
    return replace(state, courses=tuple(courses.get(schedule, course) for schedule, course in zip(schedules, begun, strict=True)))


def decide(now_ns: int, state: State, schedules: Sequence[Schedule], activity: Activity) -> Decision:
    """What to do now. `schedules` are those that the state was made with."""
    state = _looked_at(now_ns, state, schedules, activity)
    dues = _dues(now_ns, state, schedules, activity)
    is_due = [at_ns is not None and at_ns <= now_ns for at_ns in dues]
    due = [schedule for schedule, is_one in zip(schedules, is_due, strict=True) if is_one]
    if not due:
        return Decision(Action.WAIT, (), state, _wait_ns(now_ns, dues))
    courses = tuple(
        _course(schedule, now_ns, activity) if is_one else course for schedule, course, is_one in zip(schedules, state.courses, is_due, strict=True)
    )
    state = replace(state, courses=courses)
    wait_ns = _wait_ns(now_ns, _dues(now_ns, state, schedules, activity))
    if not activity.has_changed and not any(schedule.always for schedule in due):
        return Decision(Action.SKIP, (), state, wait_ns)
    tags = dict.fromkeys(tag for schedule in due for tag in schedule.tags)
    return Decision(Action.RUN, tuple(tags), state, wait_ns)


def due_ns(now_ns: int, state: State, schedule: Schedule, course: Course, activity: Activity) -> int | None:
    """When this schedule is due if nothing happens until then; None: only something that happens makes it due.

    One that enough changes have made due is due now.
    """
    tried = course.tried if course.tried is not None and course.tried.epoch == activity.epoch else None
    if schedule.on_idle_ns is not None:
        is_new = activity.has_changed and (tried is None or tried.last_change != activity.last_change)
        return state.still_since_ns + schedule.on_idle_ns if is_new else None
    if schedule.on_change_records is not None:
        return now_ns if activity.records - (tried.records if tried else 0) >= schedule.on_change_records else None
    if schedule.on_change_bytes is not None:
        return now_ns if activity.size_bytes - (tried.size_bytes if tried else 0) >= schedule.on_change_bytes else None
    return course.due_ns


def trigger(schedule: Schedule) -> str:
    """The trigger in words: `every 1h`, `cron 30 3 * * * (Europe/Berlin)`, `on change of 5GiB`."""
    if schedule.every_ns is not None:
        return f"every {show_duration(schedule.every_ns)}"
    if schedule.cron is not None:
        zone = schedule.zone.key if isinstance(schedule.zone, ZoneInfo) else str(schedule.zone)
        return f"cron {schedule.cron} ({zone})"
    if schedule.on_change_records is not None:
        return f"on change of {schedule.on_change_records} records"
    if schedule.on_change_bytes is not None:
        return f"on change of {show_size(schedule.on_change_bytes)}"
    return f"on idle for {show_duration(schedule.on_idle_ns or 0)}"


def _course(schedule: Schedule, anchor_ns: int, tried: Activity | None = None) -> Course:
    at_ns = None
    if schedule.every_ns is not None:
        at_ns = anchor_ns + schedule.every_ns
    elif schedule.cron is not None:
        at_ns = cron.next_ns(schedule.cron, schedule.zone, anchor_ns)
    return Course(anchor_ns, at_ns, tried)


def _looked_at(now_ns: int, state: State, schedules: Sequence[Schedule], activity: Activity) -> State:
    """The state with nothing of it in the future, and the last change noted."""
    courses = state.courses
    if any(course.anchor_ns > now_ns for course in courses):
        courses = tuple(
            _course(schedule, now_ns, course.tried) if course.anchor_ns > now_ns else course
            for schedule, course in zip(schedules, courses, strict=True)
        )
    is_news = activity.changed_at_ns is not None and activity.last_change != state.last_change
    still_since_ns = activity.changed_at_ns if is_news and activity.changed_at_ns is not None else state.still_since_ns
    return State(courses, min(still_since_ns, now_ns), activity.last_change)


def _dues(now_ns: int, state: State, schedules: Sequence[Schedule], activity: Activity) -> list[int | None]:
    return [due_ns(now_ns, state, schedule, course, activity) for schedule, course in zip(schedules, state.courses, strict=True)]


def _wait_ns(now_ns: int, dues: Sequence[int | None]) -> int | None:
    return min((at_ns - now_ns for at_ns in dues if at_ns is not None), default=None)
