"""What a policy leads to: a year of scheduled snapshots and of retention, gone through on paper.

It is assumed that something changes all the time, that nobody takes or deletes a snapshot by hand, and that the disk is
never full. Schedules that wait for changes or for rest cannot be foreseen and are left out. How much space is taken says
`rules.ledger`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from backupfs.errors import UsageError
from backupfs.rules import retention as rule
from backupfs.rules import schedule as timing
from backupfs.rules.ledger import Ledger, Opening
from backupfs.rules.policy import DAY_NS, HOUR_NS, Retention, Schedule
from backupfs.rules.retention import Candidate
from backupfs.rules.schedule import Action, Activity, State

AGES_NS: Final = (DAY_NS, 31 * DAY_NS, 366 * DAY_NS)
"""A snapshot is up to so old, or older than all of these."""
RUNS_MAX: Final = 600_000
"""One a minute for a year, and some: more takes minutes to go through."""
NOTHING: Final = Opening()
_ALWAYS_BUSY: Final = Activity(records=1, size_bytes=1, changed_at_ns=None, epoch=0)


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of time, and what stands at its end: `ages` counts by age, one more than there are `AGES_NS`. `used_bytes` is what the repository
    takes then. `taken` and `deleted` are of this stretch alone, and so is `excess_bytes`: the most that was still too much by the space limits
    after retention had run.
    """

    start_ns: int
    end_ns: int
    taken: int
    deleted: int
    count: int
    oldest_ns: int | None
    ages: tuple[int, ...] = (0,) * (len(AGES_NS) + 1)
    used_bytes: int = 0
    excess_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """A snapshot that stands at the end, for these reasons. `age_ns` is below zero for one in the future."""

    time_ns: int
    age_ns: int
    tags: tuple[str, ...]
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Overrun:
    """At most so many bytes are more than the space limits allow, whatever retention does, since a period that begins at `from_ns`; up to the end
    of one at `until_ns`, None: that is the last.
    """

    size_bytes: int
    from_ns: int
    until_ns: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """`standing` is sorted, oldest first. `left_out` cannot be foreseen."""

    periods: tuple[Period, ...]
    standing: tuple[Standing, ...]
    left_out: tuple[Schedule, ...]

    @property
    def overrun(self) -> Overrun | None:
        """None: the space limits can be kept to."""
        over = [period for period in self.periods if period.excess_bytes]
        if not over:
            return None
        most_bytes = max(period.excess_bytes for period in over)
        return Overrun(most_bytes, over[0].start_ns, None if over[-1] is self.periods[-1] else over[-1].end_ns)


def _nobody_waits(_: int) -> None:
    """For whoever does not want to know how far it is."""


def simulate(
    schedules: Sequence[Schedule],
    state: State,
    retention: Retention,
    present: Sequence[Candidate],
    now_ns: int,
    span_ns: int,
    period_ns: int = DAY_NS,
    on_period: Callable[[int], None] = _nobody_waits,
    opening: Opening = NOTHING,
) -> Forecast:
    """What stands at the end of each period from now on. `state` is that of the schedules now; `present` is kept now, and
    `opening` is the space now. `on_period` is told how many periods have been gone through.

    Raises UsageError when that means more than `RUNS_MAX` runs.

    Without a limit on how many go at once, and as long as there is not too much by a limit of space, retention comes to
    the same whether it runs once or often: a snapshot that no rule keeps is neither the newest of a period that counts
    nor will it ever be. Then it is run at the ends of the periods only; otherwise now, after each run, and an hour after
    the last time.
    """
    foreseen = [(schedule, course) for schedule, course in zip(schedules, state.courses, strict=True) if _is_timed(schedule)]
    paper = _Paper(
        [schedule for schedule, _ in foreseen],
        State(tuple(course for _, course in foreseen), now_ns),
        retention,
        list(present),
        Ledger(opening, retention, present, now_ns),
        now_ns,
    )
    periods = []
    while paper.now_ns < now_ns + span_ns:
        periods.append(paper.live_through(min(paper.now_ns + period_ns, now_ns + span_ns)))
        on_period(len(periods))
    return Forecast(tuple(periods), paper.standing(), tuple(schedule for schedule in schedules if not _is_timed(schedule)))


def _is_timed(schedule: Schedule) -> bool:
    return schedule.every_ns is not None or schedule.cron is not None


class _Paper:
    """The life of a repository on paper, up to `now_ns`."""

    def __init__(
        self, schedules: Sequence[Schedule], state: State, retention: Retention, snapshots: list[Candidate], ledger: Ledger, now_ns: int
    ) -> None:
        self.now_ns = now_ns
        self._schedules = schedules
        self._state = state
        self._retention = retention
        self._snapshots = snapshots
        self._ledger = ledger
        self._serial = max((snapshot.serial for snapshot in snapshots), default=0)
        self._deletes_few = retention.max_delete_fraction < 1
        self._runs = 0
        self._excess_bytes = 0
        self._next_look_ns: int | None = now_ns
        self._next_prune_ns: int | None = None

    def live_through(self, end_ns: int) -> Period:
        """Go on to `end_ns`, which is after now."""
        start_ns, runs, count = self.now_ns, self._runs, len(self._snapshots)
        self._excess_bytes = 0
        while (at_ns := self._next_event_ns()) is not None and at_ns <= end_ns:
            self.now_ns = at_ns
            if at_ns == self._next_look_ns:
                self._look()
            if self._deletes_few or self._ledger.is_limited:
                self._retain()
                self._next_prune_ns = at_ns + HOUR_NS
        self.now_ns = end_ns
        if not self._deletes_few:
            self._prune()
        taken = self._runs - runs
        oldest_ns = min((snapshot.time_ns for snapshot in self._snapshots), default=None)
        ages = Counter(bisect_left(AGES_NS, end_ns - snapshot.time_ns) for snapshot in self._snapshots)
        return Period(
            start_ns,
            end_ns,
            taken,
            count + taken - len(self._snapshots),
            len(self._snapshots),
            oldest_ns,
            tuple(ages[place] for place in range(len(AGES_NS) + 1)),
            self._ledger.used_bytes(end_ns),
            self._excess_bytes,
        )

    def _retain(self) -> None:
        """Run retention now, if it must be now."""
        # What no rule keeps and still stands only adds to what is too much. If nothing is, then nothing would be without it.
        excess_bytes = self._ledger.excess_bytes(self.now_ns)
        if excess_bytes or self._deletes_few:
            self._prune(excess_bytes)
            self._excess_bytes = max(self._excess_bytes, self._ledger.excess_bytes(self.now_ns))

    def _prune(self, excess_bytes: int = 0) -> None:
        """Delete what retention deletes now."""
        fates = rule.decide(self._snapshots, self._retention, self.now_ns, excess_bytes, partial(self._ledger.frees_bytes, now_ns=self.now_ns))
        gone = {fate.serial for fate in fates if not fate.keep}
        if gone:
            self._snapshots = [snapshot for snapshot in self._snapshots if snapshot.serial not in gone]
            self._ledger.remove(gone)

    def standing(self) -> tuple[Standing, ...]:
        """What stands now, and why."""
        by_serial = {snapshot.serial: snapshot for snapshot in self._snapshots}
        fates = rule.decide(self._snapshots, self._retention, self.now_ns)
        return tuple(
            Standing(snapshot.time_ns, self.now_ns - snapshot.time_ns, snapshot.tags, fate.reasons)
            for fate, snapshot in ((fate, by_serial[fate.serial]) for fate in fates)
        )

    def _next_event_ns(self) -> int | None:
        return min((at_ns for at_ns in (self._next_look_ns, self._next_prune_ns) if at_ns is not None), default=None)

    def _look(self) -> None:
        decision = timing.decide(self.now_ns, self._state, self._schedules, _ALWAYS_BUSY)
        self._state = decision.state
        self._next_look_ns = None if decision.wait_ns is None else self.now_ns + decision.wait_ns
        if decision.action is Action.RUN:
            self._runs += 1
            if self._runs > RUNS_MAX:
                raise UsageError(f"the schedules take more than {RUNS_MAX} snapshots in this time; look at a shorter one")
            self._serial += 1
            self._snapshots.append(Candidate(self._serial, self.now_ns, decision.tags))
            self._ledger.add(self._serial, self.now_ns)
