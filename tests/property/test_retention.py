"""Retention against the same rules done slowly: each rule by itself, the densest by looking at everybody each time."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backupfs.rules.policy import DEFAULT_RETENTION, SECOND_NS, Duration, Keep, Retention
from backupfs.rules.retention import Candidate, Fate, decide, excess

MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
BERLIN = ZoneInfo("Europe/Berlin")
NOW_NS = round(datetime(2026, 10, 25, 6, tzinfo=BERLIN).timestamp()) * SECOND_NS
"""A few hours after the hour that comes twice."""

# --- the same rules, slowly -------------------------------------------------------------------------------------------

PERIODS = ("minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly")


def period(name: str, time_ns: int, zone: tzinfo) -> str:
    """Its name on the calendar."""
    moment = datetime.fromtimestamp(time_ns // SECOND_NS, zone)
    return {
        "minutely": f"{moment:%Y-%m-%d %H:%M %z}",
        "hourly": f"{moment:%Y-%m-%d %H %z}",
        "daily": f"{moment:%Y-%m-%d}",
        "weekly": f"{moment:%G-%V}",
        "monthly": f"{moment:%Y-%m}",
        "quarterly": f"{moment:%Y}-{(moment.month + 2) // 3}",
        "yearly": f"{moment:%Y}",
    }[name]


def first_of(past: Sequence[Candidate], in_which: Callable[[Candidate], str], keep: Keep) -> set[int]:
    firsts = [s for place, s in enumerate(past) if all(in_which(s) != in_which(newer) for newer in past[:place])]
    if isinstance(keep, Duration):
        return {s.serial for s in firsts if s.time_ns > past[0].time_ns - keep.ns}
    return {s.serial for s in firsts[:keep]}


def kept_by_rules(ordered: Sequence[Candidate], policy: Retention, now_ns: int) -> set[int]:
    past = [s for s in ordered if s.time_ns <= now_ns][::-1]
    given = [(name, getattr(policy, f"keep_{name}")) for name in ("last", *PERIODS)]
    if not any(keep for _, keep in given) and not policy.keep_within_ns and not policy.keep_tags:
        return {s.serial for s in ordered}
    kept = {s.serial for s in past if set(s.tags) & set(policy.keep_tags)}
    kept |= {s.serial for s in past if s.time_ns > past[0].time_ns - policy.keep_within_ns}
    for name, keep in given:
        if keep:
            kept |= first_of(past, lambda s, name=name: str(s.serial) if name == "last" else period(name, s.time_ns, policy.zone), keep)  # type: ignore[misc]
    return kept


def guarded(s: Candidate, everybody: Sequence[Candidate], policy: Retention, now_ns: int) -> bool:
    never = s.pinned or now_ns < s.hold_until_ns or s.serial == max(other.serial for other in everybody) or s.time_ns > now_ns
    return never or s.time_ns > now_ns - policy.min_age_ns


def span_ns(s: Candidate, standing: Sequence[Candidate]) -> int:
    place = standing.index(s)
    neighbours = standing[max(place - 1, 0) : place + 2]
    return neighbours[-1].time_ns - neighbours[0].time_ns


def deleted_slowly(
    candidates: Sequence[Candidate], policy: Retention, now_ns: int, excess_bytes: int, frees: Callable[[frozenset[int]], int]
) -> tuple[set[int], set[int], set[int]]:
    """(deleted by the rules, waiting, deleted for space)."""
    ordered = sorted(candidates, key=lambda s: (s.time_ns, s.serial))
    allowed = max(1, int(Fraction(str(policy.max_delete_fraction)) * len(ordered)))
    kept = kept_by_rules(ordered, policy, now_ns)
    free_to_go = [s for s in ordered if not guarded(s, ordered, policy, now_ns)]
    unkept = [s.serial for s in free_to_go if s.serial not in kept]
    by_rules, waiting = set(unkept[:allowed]), set(unkept[allowed:])
    for_space: set[int] = set()
    while excess_bytes > 0 and len(by_rules | for_space) < allowed and frees(frozenset(by_rules | for_space)) < excess_bytes:
        gone = by_rules | for_space
        standing = [s for s in ordered if s.serial not in gone]
        left = [s for s in free_to_go if s.serial not in gone]
        if not left:
            break
        for_space.add(min(left, key=lambda s: span_ns(s, standing)).serial)
    return by_rules, waiting, for_space


# --- anything that can stand ------------------------------------------------------------------------------------------

times = st.one_of(
    st.integers(0, 40).map(lambda n: NOW_NS - n * 15 * MINUTE_NS),
    st.integers(0, 800).map(lambda n: NOW_NS - n * DAY_NS),
    st.integers(-3, 90).map(lambda n: NOW_NS - n * 20 * SECOND_NS),
    st.integers(0, 40).map(lambda n: NOW_NS - 3 * HOUR_NS - n * 4 * MINUTE_NS),
    st.integers(-DAY_NS, 3000 * DAY_NS).map(lambda ago_ns: NOW_NS - ago_ns),
)
rarely = st.integers(0, 9).map(lambda n: n == 9)
holds = st.one_of(st.just(0), st.just(0), st.integers(NOW_NS - HOUR_NS, NOW_NS + HOUR_NS), st.just(NOW_NS))
candidate = st.builds(
    Candidate,
    serial=st.integers(1, 10_000),
    time_ns=times,
    tags=st.lists(st.sampled_from("abc"), max_size=2).map(tuple),
    pinned=rarely,
    hold_until_ns=holds,
)
candidates = st.integers(0, 30).flatmap(lambda n: st.lists(candidate, unique_by=lambda s: s.serial, min_size=n, max_size=n))
durations = st.one_of(st.integers(1, 40).map(lambda n: n * 15 * MINUTE_NS), st.integers(1, 800).map(lambda n: n * DAY_NS))
keeps: st.SearchStrategy[Keep] = st.one_of(st.just(0), st.just(0), st.integers(1, 6), durations.map(Duration))
policies = st.builds(
    Retention,
    keep_last=keeps,
    keep_minutely=keeps,
    keep_hourly=keeps,
    keep_daily=keeps,
    keep_weekly=keeps,
    keep_monthly=keeps,
    keep_quarterly=keeps,
    keep_yearly=keeps,
    keep_within_ns=st.one_of(st.just(0), durations),
    keep_tags=st.sampled_from([(), (), (), ("a",), ("b", "c")]),
    min_age_ns=st.one_of(st.just(0), durations),
    max_delete_fraction=st.one_of(st.just(1.0), st.integers(1, 100).map(lambda n: n / 100)),
    zone=st.sampled_from([ZoneInfo("UTC"), BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/St_Johns")]),
)
given_keeps = st.one_of(st.integers(1, 6), durations.map(Duration))
alone = st.builds(lambda name, keep: Retention(**{f"keep_{name}": keep}, zone=BERLIN), st.sampled_from(["last", *PERIODS]), given_keeps)
"""Where many rules are given at once, each hides what the others do."""
sizes = st.lists(st.integers(0, 9), min_size=1, max_size=7)


def verdicts(fates: Sequence[Fate]) -> tuple[set[int], set[int], set[int]]:
    with_reason = {
        reason: {fate.serial for fate in fates if fate.reasons == (reason,)}
        for reason in ("no rule keeps it", "max-delete-fraction: next run", "space limit: densest")
    }
    by_rules, waiting, for_space = with_reason.values()
    assert {fate.serial for fate in fates if not fate.keep} == by_rules | for_space
    return by_rules, waiting, for_space


@given(candidates=candidates, policy=st.one_of(alone, policies))
@example(candidates=[], policy=DEFAULT_RETENTION)
def test_the_keep_rules_as_each_is_written(candidates: list[Candidate], policy: Retention) -> None:
    fates = decide(candidates, policy, NOW_NS)
    assert [fate.serial for fate in fates] == [s.serial for s in sorted(candidates, key=lambda s: (s.time_ns, s.serial))]
    assert all(fate.reasons for fate in fates)
    assert verdicts(fates) == deleted_slowly(candidates, policy, NOW_NS, 0, lambda _: 0)


@given(
    candidates=candidates,
    policy=st.one_of(st.builds(Retention, max_delete_fraction=st.sampled_from([1.0, 0.5])), policies),
    sizes=sizes,
    excess_bytes=st.integers(0, 200),
)
def test_the_densest_go_until_there_is_room(candidates: list[Candidate], policy: Retention, sizes: list[int], excess_bytes: int) -> None:
    asked: list[frozenset[int]] = []

    def freed(serials: frozenset[int]) -> int:
        return sum(sizes[serial % len(sizes)] for serial in serials)

    def frees(serials: frozenset[int]) -> int:
        asked.append(serials)
        return freed(serials)

    fates = decide(candidates, policy, NOW_NS, excess_bytes, frees)
    assert verdicts(fates) == deleted_slowly(candidates, policy, NOW_NS, excess_bytes, freed)
    assert len(asked) == len(set(asked)) <= 2 * len(candidates).bit_length() + 1


@settings(max_examples=30)
@given(candidates=candidates, policy=policies, excess_bytes=st.integers(0, 1))
def test_who_is_never_removed_is_never_removed(candidates: list[Candidate], policy: Retention, excess_bytes: int) -> None:
    """However little is kept, and though nothing frees enough."""
    fates = {fate.serial: fate for fate in decide(candidates, policy, NOW_NS, excess_bytes, lambda _: 0)}
    for s in candidates:
        reasons = fates[s.serial].reasons
        assert (s.pinned, s.time_ns > NOW_NS) == ("pinned" in reasons, "in the future" in reasons)
        assert (s.hold_until_ns > NOW_NS) == any(reason.startswith("held until") for reason in reasons)
        assert (s.serial == max(fates)) == ("newest" in reasons)
        assert fates[s.serial].keep or not guarded(s, candidates, policy, NOW_NS)


@settings(max_examples=50)
@given(candidates=candidates, policy=policies, later_ns=st.lists(st.integers(0, 3 * DAY_NS), max_size=5))
def test_deleting_often_leaves_what_deleting_once_leaves(candidates: list[Candidate], policy: Retention, later_ns: list[int]) -> None:
    """On this the forecast rests: without a limit on how many go at once it does not matter how often retention runs."""
    policy = Retention(**{name: getattr(policy, name) for name in Retention.__slots__ if name != "max_delete_fraction"})
    now_ns, serial = NOW_NS, 20_000
    often, once = list(candidates), list(candidates)
    for step_ns in later_ns:
        now_ns += step_ns
        serial += 1
        for standing in (often, once):
            standing.append(Candidate(serial, now_ns, ("a",) if serial % 5 == 0 else ()))
        often = left(often, policy, now_ns)
    assert left(often, policy, now_ns) == left(once, policy, now_ns)


def left(standing: list[Candidate], policy: Retention, now_ns: int) -> list[Candidate]:
    kept = {fate.serial for fate in decide(standing, policy, now_ns) if fate.keep}
    return [s for s in standing if s.serial in kept]


# --- reasons and examples ---------------------------------------------------------------------------------------------


def reasons(candidates: Sequence[Candidate], policy: Retention, **more: object) -> list[tuple[str, ...]]:
    return [fate.reasons for fate in decide(candidates, policy, NOW_NS)]


def ago(*hours: float, serials: Sequence[int] = ()) -> list[Candidate]:
    """Snapshots of so many hours ago, taken in this order."""
    return [Candidate((serials or range(1, 99))[n], NOW_NS - round(h * HOUR_NS)) for n, h in enumerate(hours)]


def test_reasons_name_the_rule_and_the_place_in_it() -> None:
    policy = Retention(keep_last=2, keep_hourly=3, keep_daily=Duration(2 * DAY_NS), keep_within_ns=3 * HOUR_NS, keep_tags=("b", "a"))
    snapshots = [
        Candidate(1, NOW_NS - 40 * HOUR_NS, ("a", "x", "b", "a")),
        Candidate(2, NOW_NS - 10 * HOUR_NS),
        Candidate(3, NOW_NS - 2 * HOUR_NS),
        Candidate(4, NOW_NS - 2 * HOUR_NS + 1),
        Candidate(5, NOW_NS - HOUR_NS),
        Candidate(6, NOW_NS - 90 * HOUR_NS),
    ]
    assert reasons(snapshots, policy) == [
        ("newest",),
        ("daily within 2d", "tag a", "tag b"),
        ("hourly 3 of 3", "daily within 2d"),
        ("within 3h",),
        ("last 2 of 2", "hourly 2 of 3", "within 3h"),
        ("last 1 of 2", "hourly 1 of 3", "daily within 2d", "within 3h"),
    ]
    assert reasons(snapshots[2:3], Retention(keep_last=Duration(DAY_NS))) == [("newest", "last within 1d")]


def test_reasons_of_the_stronger_levels() -> None:
    snapshots = [
        Candidate(1, NOW_NS - 3 * HOUR_NS, hold_until_ns=NOW_NS + MINUTE_NS, pinned=True),
        Candidate(2, NOW_NS - 2 * HOUR_NS, hold_until_ns=NOW_NS + MINUTE_NS + 1),
        Candidate(3, NOW_NS - HOUR_NS, hold_until_ns=NOW_NS),
        Candidate(4, NOW_NS - HOUR_NS + 1),
        Candidate(5, NOW_NS + 1),
    ]
    assert reasons(snapshots, Retention(keep_yearly=1, min_age_ns=HOUR_NS)) == [
        ("pinned", "held until 2026-10-25 05:01 UTC"),
        ("held until 2026-10-25 05:02 UTC",),
        ("no rule keeps it",),
        ("younger than min-age", "yearly 1 of 1"),
        ("newest", "in the future"),
    ]
    assert reasons(snapshots[2:4], Retention()) == [("no keep rule is given",), ("newest", "no keep rule is given")]


def test_the_newest_is_the_one_taken_last() -> None:
    fates = decide(ago(1, 2, 3), Retention(keep_last=1), NOW_NS)
    assert [(fate.serial, fate.keep) for fate in fates] == [(3, True), (2, False), (1, True)]


def test_a_hold_that_has_no_end_is_told_too() -> None:
    (why,) = reasons([Candidate(1, NOW_NS, hold_until_ns=2**70)], Retention(keep_last=1))
    assert why[1].startswith("held until 9900-01-01")


def test_a_month_off_loses_nothing() -> None:
    """Counts are of periods that have any, and durations go back from the newest."""
    snapshots = ago(*(30 * 24 + h for h in range(48, 0, -1)))
    for policy in (Retention(keep_hourly=48), Retention(keep_hourly=Duration(48 * HOUR_NS))):
        assert all(fate.keep for fate in decide(snapshots, policy, NOW_NS))


@pytest.mark.parametrize("rule", ["keep_last", "keep_minutely", "keep_within_ns"])
def test_a_duration_goes_back_from_the_newest_and_its_end_is_out(rule: str) -> None:
    day: Keep = DAY_NS if rule == "keep_within_ns" else Duration(DAY_NS)
    snapshots = [Candidate(n, NOW_NS - HOUR_NS - ago_ns) for n, ago_ns in enumerate((DAY_NS + 1, DAY_NS, DAY_NS - MINUTE_NS, 0))]
    fates = decide(snapshots, Retention(**{rule: day}), NOW_NS)  # type: ignore[arg-type]
    assert [fate.keep for fate in fates] == [False, False, True, True]


def test_those_chosen_for_space_come_after_the_others_in_the_budget() -> None:
    policy = Retention(keep_within_ns=8 * HOUR_NS, max_delete_fraction=0.5)
    fates = decide(ago(20, 19, 8, 7, 6.5, 6, 5, 1), policy, NOW_NS, 1, lambda _: 0)
    assert [fate.serial for fate in fates if fate.reasons == ("no rule keeps it",)] == [1, 2]
    assert [fate.serial for fate in fates if fate.reasons == ("space limit: densest",)] == [3, 4]


@pytest.mark.parametrize("count", [1, 2])
def test_an_hour_that_comes_twice_is_two_and_its_day_is_one(count: int) -> None:
    first = Candidate(1, round(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN).timestamp()) * SECOND_NS)
    second = Candidate(2, first.time_ns + HOUR_NS)
    for policy, kept in (
        (Retention(keep_minutely=count, zone=BERLIN), count),
        (Retention(keep_hourly=count, zone=BERLIN), count),
        (Retention(keep_daily=count, zone=BERLIN), 1),
    ):
        assert sum(fate.keep for fate in decide([first, second], policy, NOW_NS)) == kept


def test_a_day_that_begins_twice_is_one() -> None:
    """In Newfoundland the clock was set back at a minute past midnight."""
    zone = ZoneInfo("America/St_Johns")
    start = datetime(2006, 10, 28, 23, 30, tzinfo=zone)
    begun = [Candidate(n, round(start.timestamp() + minutes * 60) * SECOND_NS) for n, minutes in enumerate((0, 30, 60, 100))]
    assert [datetime.fromtimestamp(s.time_ns / SECOND_NS, zone).day for s in begun] == [28, 29, 28, 29]
    assert [fate.keep for fate in decide(begun, Retention(keep_daily=9, zone=zone), NOW_NS)] == [False, False, True, True]


def test_a_fraction_is_taken_as_it_is_written() -> None:
    snapshots = ago(*range(100, 0, -1), serials=range(1, 101))
    fates = decide(snapshots, Retention(keep_last=1, max_delete_fraction=0.29), NOW_NS)
    assert [fate.serial for fate in fates if not fate.keep] == list(range(1, 30))


def test_while_some_wait_space_limits_choose_none() -> None:
    fates = decide(ago(9, 8, 7, 6, 5), Retention(keep_last=1, max_delete_fraction=0.4), NOW_NS, 1)
    assert [fate.reasons[0] for fate in fates] == ["no rule keeps it"] * 2 + ["max-delete-fraction: next run"] * 2 + ["newest"]


def test_who_says_that_there_is_too_much_must_say_what_deleting_frees() -> None:
    with pytest.raises(ValueError, match="must say"):
        decide(ago(2, 1), Retention(), NOW_NS, 1)


def test_many_snapshots_are_thinned_with_few_questions() -> None:
    asked = 0

    def frees(serials: frozenset[int]) -> int:
        nonlocal asked
        asked += 1
        return len(serials)

    snapshots = [Candidate(n, NOW_NS - n * n * SECOND_NS) for n in range(10_000)]
    fates = decide(snapshots, Retention(), NOW_NS, 7_000, frees)
    assert sum(not fate.keep for fate in fates) == 7_000
    assert asked <= 2 * 14


# --- how much is too much ---------------------------------------------------------------------------------------------


@given(
    limits=st.tuples(*[st.one_of(st.none(), st.integers(0, 1000))] * 2),
    percent=st.one_of(st.none(), st.integers(1, 99)),
    used=st.integers(0, 1000),
    free=st.integers(0, 1000),
    total=st.integers(1000, 2000),
)
def test_excess_is_the_least_that_satisfies_all_limits(
    limits: tuple[int | None, int | None], percent: int | None, used: int, free: int, total: int
) -> None:
    policy = Retention(
        space_limit_bytes=limits[0],
        free_limit_bytes=limits[1],
        free_limit_share=None if percent is None else percent / 100,
    )

    def satisfied(freed: int) -> bool:
        fits = limits[0] is None or used - freed <= limits[0]
        leaves = limits[1] is None or free + freed >= limits[1]
        return fits and leaves and (percent is None or (free + freed) * 100 >= percent * total)

    assert excess(policy, used, free, total) == next(freed for freed in range(4000) if satisfied(freed))


def test_offsets_of_half_hours_are_calendars_too() -> None:
    zone = timezone(timedelta(hours=5, minutes=45))
    at_the_turn = round(datetime(2026, 3, 1, tzinfo=zone).timestamp()) * SECOND_NS
    snapshots = [Candidate(1, at_the_turn - 1), Candidate(2, at_the_turn)]
    assert [fate.keep for fate in decide(snapshots, Retention(keep_monthly=2, zone=zone), NOW_NS)] == [True, True]
    assert [fate.keep for fate in decide(snapshots, Retention(keep_monthly=2), NOW_NS)] == [False, True]
