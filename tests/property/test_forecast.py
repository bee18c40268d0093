"""The forecast against a life that is lived through run by run, retention after each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules import forecast, retention, schedule
from backupfs.rules.forecast import Forecast, Period, Standing, simulate
from backupfs.rules.policy import DAY_NS, DEFAULT_RETENTION, DEFAULT_SCHEDULES, HOUR_NS, SECOND_NS, Duration, Retention, Schedule
from backupfs.rules.retention import Candidate

MINUTE_NS = 60 * SECOND_NS
NOW_NS = 1_790_000_000 * SECOND_NS


def foretold(schedules: tuple[Schedule, ...], policy: Retention, present: list[Candidate], span_ns: int, period_ns: int = DAY_NS) -> Forecast:
    return simulate(schedules, schedule.initial(NOW_NS, schedules, []), policy, present, NOW_NS, span_ns, period_ns)


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
