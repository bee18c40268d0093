"""The forecast against a life that is lived through run by run, retention after each."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules import forecast, retention, schedule
from backupfs.rules.forecast import Forecast, Overrun, Period, Standing, simulate
from backupfs.rules.ledger import Disk, Opening
from backupfs.rules.policy import DAY_NS, DEFAULT_RETENTION, DEFAULT_SCHEDULES, HOUR_NS, SECOND_NS, Duration, Retention, Schedule
from backupfs.rules.retention import Candidate
from tests.property.slots import SLOT_NS, SLOTS_A_DAY, held_bytes

MINUTE_NS = 60 * SECOND_NS
NOW_NS = 1_790_000_000 * SECOND_NS


def foretold(
    schedules: tuple[Schedule, ...],
    policy: Retention,
    present: list[Candidate],
    span_ns: int,
    period_ns: int = DAY_NS,
    opening: Opening | None = None,
) -> Forecast:
    state = schedule.initial(NOW_NS, schedules, [])
    return simulate(schedules, state, policy, present, NOW_NS, span_ns, period_ns, opening=opening or Opening())


def lived(every_ns: int, policy: Retention, present: list[Candidate], span_ns: int, period_ns: int) -> tuple[list[tuple[int, int | None]], list[int]]:
    """(count, oldest) at the end of each period, and the times of those left: a run each `every_ns`, retention now and after
    each. Where it does not matter how often, it is run at the ends of the periods too.
    """
    standing = {s.serial: s for s in present}
    ends = [*range(NOW_NS + period_ns, NOW_NS + span_ns, period_ns), NOW_NS + span_ns]
    runs = range(NOW_NS + every_ns, NOW_NS + span_ns + 1, every_ns)
    counts = []
    for at_ns in sorted({NOW_NS, *runs, *ends}):
        if at_ns in runs:
            serial = max([0, *standing, *(s.serial for s in present)]) + 1
            standing[serial] = Candidate(serial, at_ns)
        is_pruned = at_ns == NOW_NS or at_ns in runs or policy.max_delete_fraction == 1
        for fate in retention.decide(list(standing.values()), policy, at_ns):
            if is_pruned and not fate.keep:
                del standing[fate.serial]
        if at_ns in ends:
            counts.append((len(standing), min((s.time_ns for s in standing.values()), default=None)))
    return counts, sorted(s.time_ns for s in standing.values())


def test_the_default_policy_as_if_retention_ran_after_each_run_of_a_hundred_days() -> None:
    present = [Candidate(n, NOW_NS - n * n * HOUR_NS, pinned=n % 9 == 0) for n in range(1, 60)]
    told = foretold(DEFAULT_SCHEDULES, DEFAULT_RETENTION, present, 100 * DAY_NS)
    counts, times = lived(HOUR_NS, DEFAULT_RETENTION, present, 100 * DAY_NS, DAY_NS)
    assert [(period.count, period.oldest_ns) for period in told.periods] == counts
    assert [standing.time_ns for standing in told.standing] == times
    ages = [(standing.age_ns <= DAY_NS, standing.age_ns <= 31 * DAY_NS, standing.age_ns <= 366 * DAY_NS, True) for standing in told.standing]
    assert told.periods[-1].ages == tuple([age.index(True) for age in ages].count(place) for place in range(4))
    assert all(sum(period.ages) == period.count for period in told.periods)
    assert all(period.taken == 24 for period in told.periods)


keeps = st.one_of(st.just(0), st.integers(1, 5), st.integers(1, 50).map(lambda n: Duration(n * HOUR_NS)))
policies = st.builds(
    Retention,
    keep_last=keeps,
    keep_hourly=keeps,
    keep_daily=keeps,
    keep_weekly=keeps,
    min_age_ns=st.sampled_from([0, 0, 5 * HOUR_NS]),
    max_delete_fraction=st.sampled_from([1.0, 1.0, 0.1, 0.3]),
)
candidates = st.lists(
    st.builds(
        Candidate,
        serial=st.integers(1, 99),
        time_ns=st.integers(-30, 300).map(lambda n: NOW_NS - n * HOUR_NS),
        pinned=st.sampled_from([False, False, True]),
        hold_until_ns=st.sampled_from([0, 0, NOW_NS + DAY_NS]),
    ),
    unique_by=lambda s: s.serial,
    max_size=20,
)


@settings(max_examples=40)
@given(policy=policies, present=candidates, every=st.sampled_from([20, 50, 60]), days=st.integers(1, 4), period_hours=st.sampled_from([7, 24]))
def test_any_policy_as_if_it_were_lived_through(policy: Retention, present: list[Candidate], every: int, days: int, period_hours: int) -> None:
    schedules = (Schedule(every_ns=every * MINUTE_NS),)
    told = foretold(schedules, policy, present, days * DAY_NS, period_hours * HOUR_NS)
    counts, times = lived(every * MINUTE_NS, policy, present, days * DAY_NS, period_hours * HOUR_NS)
    assert [(period.count, period.oldest_ns) for period in told.periods] == counts
    assert [standing.time_ns for standing in told.standing] == times
    for before, period in zip((None, *told.periods), told.periods, strict=False):
        assert (before.count if before else len(present)) + period.taken - period.deleted == period.count
        assert period.start_ns == (before.end_ns if before else NOW_NS)


# --- space ------------------------------------------------------------------------------------------------------------


LIVE_BYTES = 10**9


class Lived:
    """A life in half hours, retention now, after each run and an hour after the last time; each byte is followed."""

    def __init__(self, every_ns: int, policy: Retention, present: list[Candidate], before: int, since: int) -> None:
        self.policy = policy
        self.standing = {s.serial: s for s in present}
        self.serial = max(self.standing, default=0)
        self.every_ns = every_ns
        self.before, self.since = before, since
        self.retained_ns = 0
        self.over = 0
        self.held_at_first = self.held(frozenset(), NOW_NS)

    def held(self, gone: frozenset[int], at_ns: int) -> int:
        return held_bytes([s.time_ns for s in self.standing.values() if s.serial not in gone], NOW_NS, at_ns, self.before, self.since)

    def excess(self, at_ns: int) -> int:
        held = self.held(frozenset(), at_ns)
        return retention.excess(self.policy, LIVE_BYTES + held, 10**6 - held + self.held_at_first, 10**7)

    def delete(self, at_ns: int, excess_bytes: int) -> None:
        held = self.held(frozenset(), at_ns)
        for fate in retention.decide(list(self.standing.values()), self.policy, at_ns, excess_bytes, lambda gone: held - self.held(gone, at_ns)):
            if not fate.keep:
                del self.standing[fate.serial]

    def period(self, start_ns: int, end_ns: int) -> tuple[int, int, int, list[int]]:
        """(used, too much, taken, times) at its end."""
        taken = self.over = 0
        first_ns = start_ns if start_ns == NOW_NS else start_ns + SLOT_NS
        for at_ns in range(first_ns, end_ns + 1, SLOT_NS):
            is_run = at_ns > NOW_NS and (at_ns - NOW_NS) % self.every_ns == 0
            if is_run:
                self.serial += 1
                taken += 1
                self.standing[self.serial] = Candidate(self.serial, at_ns)
            if is_run or at_ns == NOW_NS or at_ns >= self.retained_ns + HOUR_NS:
                self.retained_ns = at_ns
                self.delete(at_ns, self.excess(at_ns))
                self.over = max(self.over, self.excess(at_ns))
        if self.policy.max_delete_fraction == 1:
            self.delete(end_ns, 0)  # an hour early, perhaps
        return LIVE_BYTES + self.held(frozenset(), end_ns), self.over, taken, sorted(s.time_ns for s in self.standing.values())


limits = st.one_of(
    st.integers(-20, 250).map(lambda n: Retention(space_limit_bytes=LIVE_BYTES + n)),
    st.integers(-250, 20).map(lambda n: Retention(free_limit_bytes=10**6 + n)),
    st.just(Retention(space_limit_bytes=LIVE_BYTES + 100, free_limit_share=0.09999)),
)


@settings(max_examples=60)
@given(
    policy=policies,
    limit=limits,
    present=st.lists(
        st.builds(
            Candidate,
            serial=st.integers(1, 99),
            time_ns=st.integers(1, 100).map(lambda n: NOW_NS - n * HOUR_NS),
            pinned=st.sampled_from([False, False, True]),
        ),
        unique_by=lambda s: s.serial,
        max_size=12,
    ),
    every=st.sampled_from([1, 2, 3, 5]),
    rates=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    days=st.integers(1, 2),
    period_slots=st.sampled_from([15, 48]),
)
def test_any_limit_of_space_as_if_it_were_lived_through(
    policy: Retention, limit: Retention, present: list[Candidate], every: int, rates: tuple[int, int], days: int, period_slots: int
) -> None:
    fields = ("space_limit_bytes", "free_limit_bytes", "free_limit_share")
    policy = replace(policy, **{name: getattr(limit, name) for name in fields})
    life = Lived(every * SLOT_NS, policy, present, *rates)
    opening = Opening(LIVE_BYTES, life.held_at_first, SLOTS_A_DAY * rates[1], Disk(10**6, 10**7))
    told = foretold((Schedule(every_ns=every * SLOT_NS),), policy, present, days * DAY_NS, period_slots * SLOT_NS, opening)
    times: list[int] = []
    for period in told.periods:
        used_bytes, over_bytes, taken, times = life.period(period.start_ns, period.end_ns)
        assert (period.used_bytes, period.excess_bytes, period.taken, period.count) == (used_bytes, over_bytes, taken, len(times))
        if policy.space_limit_bytes is not None:
            assert period.used_bytes <= policy.space_limit_bytes + period.excess_bytes + 2 * rates[1], "it grows for less than an hour"
    assert [standing.time_ns for standing in told.standing] == times


@given(policy=policies, present=candidates, held=st.integers(0, 10**6), rate=st.integers(0, 10**6))
def test_a_limit_that_is_far_away_changes_nothing(policy: Retention, present: list[Candidate], held: int, rate: int) -> None:
    opening = Opening(LIVE_BYTES, held, rate, Disk(10**12, 10**13))
    span_ns = 3 * DAY_NS // 2
    free = foretold(DEFAULT_SCHEDULES, policy, present, span_ns, opening=opening)
    assert foretold(DEFAULT_SCHEDULES, replace(policy, space_limit_bytes=10**12, free_limit_share=0.01), present, span_ns, opening=opening) == free
    bare = foretold(DEFAULT_SCHEDULES, policy, present, span_ns)
    assert bare.standing == free.standing
    assert [replace(period, used_bytes=0) for period in free.periods] == list(bare.periods)


def test_the_densest_go_and_the_limit_is_kept_to() -> None:
    """Snapshots as far apart as the others make the oldest the densest: nobody is on its other side. Closer ones go before it."""
    often, policy = (Schedule(every_ns=DAY_NS // 2),), Retention(space_limit_bytes=LIVE_BYTES + 480)
    told = foretold(often, policy, [], 8 * DAY_NS, opening=Opening(LIVE_BYTES, 0, 100))
    assert [period.used_bytes - LIVE_BYTES for period in told.periods] == [50, 150, 250, 350, 450, 450, 450, 450]
    assert [standing.time_ns for standing in told.standing] == [NOW_NS + n * DAY_NS // 2 for n in range(7, 17)]
    assert told.overrun is None
    seldom = (Schedule(every_ns=5 * DAY_NS),)
    close = [Candidate(9 - n, NOW_NS - n * DAY_NS) for n in (8, 3, 2, 1)]
    told = foretold(seldom, policy, close, 5 * DAY_NS, opening=Opening(LIVE_BYTES, 400, 100))
    ages = [(NOW_NS - standing.time_ns) // DAY_NS for standing in told.standing]
    assert ages == [8, 3, 1, -5], "what has changed since is a fifth day's, for which 2 makes room"


def test_what_the_limits_cannot_hold_back_is_told() -> None:
    policy = Retention(space_limit_bytes=LIVE_BYTES + 30)
    held = [Candidate(1, NOW_NS - DAY_NS, hold_until_ns=NOW_NS + 2 * DAY_NS + 1)]
    told = foretold((), policy, held, 4 * DAY_NS, opening=Opening(LIVE_BYTES, 25, 24))
    assert [period.excess_bytes for period in told.periods] == [19, 19, 19, 19], "the newest stays"
    assert told.overrun == Overrun(19, NOW_NS, None)
    newer = Candidate(2, NOW_NS)
    told = foretold((), policy, [*held, newer], 4 * DAY_NS, opening=Opening(LIVE_BYTES, 25, 24))
    assert [period.excess_bytes for period in told.periods] == [19, 19, 0, 0], "it is no longer held"
    assert told.overrun == Overrun(19, NOW_NS, NOW_NS + 2 * DAY_NS)
    assert [period.used_bytes - LIVE_BYTES for period in told.periods] == [49, 49, 24, 24]
    told = foretold((), policy, [newer], 2 * DAY_NS, opening=Opening(LIVE_BYTES + 10, 0, 24))
    assert [period.excess_bytes for period in told.periods] == [4, 4]
    assert foretold((), policy, [newer], 2 * DAY_NS, opening=Opening(LIVE_BYTES, 0, 24)).overrun is None


def test_tags_and_reasons_are_those_of_the_rules() -> None:
    schedules = (Schedule(cron="0 6 * * *", tags=("morning",)), Schedule(on_idle_ns=1), Schedule(cron="0 */6 * * *", tags=("often",)))
    told = foretold(schedules, Retention(keep_last=1, keep_tags=("morning",)), [], 2 * DAY_NS)
    midnight_ns = NOW_NS // DAY_NS * DAY_NS + DAY_NS
    end_ns = NOW_NS + 2 * DAY_NS
    assert told.left_out == schedules[1:2]
    assert told.standing == (
        Standing(midnight_ns + 6 * HOUR_NS, end_ns - midnight_ns - 6 * HOUR_NS, ("morning", "often"), ("tag morning",)),
        Standing(midnight_ns + 30 * HOUR_NS, end_ns - midnight_ns - 30 * HOUR_NS, ("morning", "often"), ("tag morning",)),
        Standing(midnight_ns + 36 * HOUR_NS, end_ns - midnight_ns - 36 * HOUR_NS, ("often",), ("newest", "last 1 of 1")),
    )


def test_without_a_schedule_that_can_be_foreseen_only_what_is_there_ages() -> None:
    present = [Candidate(1, NOW_NS - DAY_NS), Candidate(2, NOW_NS, hold_until_ns=NOW_NS + DAY_NS), Candidate(3, NOW_NS)]
    for fraction in (1.0, 0.9):
        policy = Retention(keep_tags=("x",), max_delete_fraction=fraction)
        told = foretold((Schedule(on_change_records=5),), policy, present, 3 * DAY_NS // 2)
        assert told.periods == (
            Period(NOW_NS, NOW_NS + DAY_NS, 0, 2, 1, NOW_NS, (1, 0, 0, 0)),
            Period(NOW_NS + DAY_NS, NOW_NS + 3 * DAY_NS // 2, 0, 0, 1, NOW_NS, (0, 1, 0, 0)),
        )
    assert foretold((), DEFAULT_RETENTION, [], DAY_NS).periods == (Period(NOW_NS, NOW_NS + DAY_NS, 0, 0, 0, None),)


def test_what_was_due_before_is_run_at_once() -> None:
    schedules = (Schedule(every_ns=DAY_NS),)
    state = schedule.initial(NOW_NS - 9 * DAY_NS, schedules, [])
    told = simulate(schedules, state, Retention(), [], NOW_NS, DAY_NS)
    assert [standing.time_ns for standing in told.standing] == [NOW_NS, NOW_NS + DAY_NS]


def test_it_is_told_how_far_it_is() -> None:
    done: list[int] = []
    simulate((), schedule.initial(NOW_NS, (), []), Retention(), [], NOW_NS, 5 * DAY_NS // 2, on_period=done.append)
    assert done == [1, 2, 3]


def test_more_runs_than_anybody_waits_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "RUNS_MAX", 24)
    assert len(foretold(DEFAULT_SCHEDULES, Retention(), [], DAY_NS).standing) == 24
    with pytest.raises(UsageError, match="more than 24 snapshots in this time; look at a shorter one"):
        foretold(DEFAULT_SCHEDULES, Retention(), [], DAY_NS + HOUR_NS)
