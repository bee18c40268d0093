"""Years of schedules, clocks that are set, sleeps and pruning: the rules take and keep exactly what the model says.

`--scale 10` makes each life ten years long, `--seed` gives other lives. The events and the model are in `tests/models`.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from math import floor
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from backupfs.rules import cron, policy, retention, schedule
from backupfs.rules.schedule import Action, Activity, Course, Decision, State
from tests.models.snapshot_rules import DAY_NS, SECOND_NS, Duration, Schedule, Settings, next_run_ns
from tests.models.world import Disagreement, ModelRules, live
from tests.models.years import ZONES, Event, Looked, Mounted, PolicyChanged, years
from tests.simulation.real_rules import RealRules

LIVES = 6


def life(seed: int, number: int, n: int = 1) -> Iterator[Event]:
    return years(seed + number, n, out_of_the_box=number == 0)


@pytest.mark.parametrize("number", range(LIVES))
def test_exactly_what_the_model_says_is_taken_and_kept(seed: int, scale: float, number: int) -> None:
    n = max(1, round(scale))
    model, real = ModelRules(), RealRules()
    happened: Counter[str] = Counter()
    taken = 0
    for event, world in live(life(seed, number, n), [model, real]):
        happened["events"] += 1
        happened["deleted by retention"] += len(world.pruned)
        taken = world.last_serial
        if isinstance(event, Looked) and real.wait_ns != 0:
            next_look_is_asked_for_when_it_is_due(event.now_ns, real.wait_ns, model)
    print(f"life {number}: {n} years, {happened['events']} events, {taken} snapshots, {happened['deleted by retention']} deleted by retention")
    assert happened["events"] > 4000 * n
    assert taken > 300 * n
    assert happened["deleted by retention"] > 200 * n


def next_look_is_asked_for_when_it_is_due(now_ns: int, wait_ns: int | None, model: ModelRules) -> None:
    """Not before and not after: between two looks nobody would see what the clock alone makes due."""
    if wait_ns is None:
        assert not model.is_any_due(now_ns + 400 * DAY_NS)
    else:
        assert wait_ns > 0
        assert not model.is_any_due(now_ns + wait_ns - 1)
        assert model.is_any_due(now_ns + wait_ns)


def test_all_kinds_of_schedules_and_rules_are_lived_with(seed: int) -> None:
    schedules: set[Schedule] = set()
    policies: list[Settings] = []
    for number in range(LIVES):
        for event in life(seed, number):
            match event:
                case Mounted(_, its_schedules):
                    schedules.update(its_schedules)
                case PolicyChanged(_, settings):
                    policies.append(settings)
                case _:
                    pass
    for trigger in ("every", "cron", "on_change_records", "on_change_bytes", "on_idle"):
        those = [each for each in schedules if getattr(each, trigger) is not None]
        assert {bool(each.tags) for each in those} == {True, False}, trigger
    assert {each.always for each in schedules} == {True, False}
    assert len({each.zone for each in schedules if each.cron} - {"UTC"}) > 3
    for rule in ("last", "minutely", "hourly", "daily", "weekly", "monthly", "quarterly", "yearly"):
        assert {type(getattr(each, f"keep_{rule}")) for each in policies} >= {int, Duration}, rule
    mixed = [each for each in policies if isinstance(each.keep_hourly, int) and isinstance(each.keep_daily, Duration)]
    for kind in ("keep_within", "keep_tag", "min_age", "max_delete_fraction", "space_limit_bytes", "free_limit", "zone"):
        assert len({getattr(each, kind) for each in policies}) > 1, kind
    assert mixed


def cron_field(rng: random.Random, low: int, high: int) -> str:
    named = ",".join(map(str, sorted(rng.sample(range(low, high + 1), rng.randint(1, 3)))))
    return rng.choice(("*", f"*/{rng.choice((2, 3, 15))}", f"{rng.randint(low, high)}/{rng.randint(1, 9)}", named, named))


def test_cron_names_the_times_that_the_model_says_around_changes_of_the_clock(seed: int, scale: float) -> None:
    rng = random.Random(f"cron/{seed}")
    begin, days = datetime(2009, 1, 1, tzinfo=UTC), range(18 * 365)
    changes: dict[str, list[datetime]] = {}
    for zone in (*ZONES[1:], "America/St_Johns", "America/Havana", "Africa/Cairo", "Antarctica/Casey", "Pacific/Apia"):
        midnights = [begin + timedelta(days=day) for day in days]
        offsets = [midnight.astimezone(ZoneInfo(zone)).utcoffset() for midnight in midnights]
        changes[zone] = [midnights[day] for day in days[:-1] if offsets[day] != offsets[day + 1]] or [begin]
    for _ in range(round(400 * scale)):
        zone = rng.choice(list(changes))
        fields = [cron_field(rng, 0, 59), cron_field(rng, 0, rng.choice((4, 23))), cron_field(rng, 1, 28), "*", cron_field(rng, 0, 6)]
        line = " ".join("*" if place > 1 and rng.random() < 0.6 else field for place, field in enumerate(fields))
        after = rng.choice(changes[zone]) + timedelta(seconds=rng.randint(-6 * 3600, 30 * 3600))
        after_ns = int(after.timestamp()) * SECOND_NS
        assert cron.next_ns(cron.check_cron(line), ZoneInfo(zone), after_ns) == next_run_ns(line, zone, after_ns), f"{line} in {zone} after {after}"


# --- an error in the rules shows --------------------------------------------------------------------------------------

real_decide = schedule.decide
real_initial = schedule.initial
real_course = schedule._course
real_due = schedule.due_ns
real_next = cron.next_ns
real_guards = retention._guards
real_keeps = retention._keeps
real_densest = retention._densest
real_thin = retention._thin


def clock_is_not_followed(now_ns: int, state: State, schedules: Sequence[policy.Schedule], activity: Activity) -> State:
    changed_at_ns = activity.changed_at_ns
    return state if changed_at_ns is None else State(state.courses, changed_at_ns)


def skipping_is_no_run(now_ns: int, state: State, schedules: Sequence[policy.Schedule], activity: Activity) -> Decision:
    decision = real_decide(now_ns, state, schedules, activity)
    return replace(decision, state=state) if decision.action is Action.SKIP else decision


def only_the_first_runs(now_ns: int, state: State, schedules: Sequence[policy.Schedule], activity: Activity) -> Decision:
    decision = real_decide(now_ns, state, schedules, activity)
    moved = [place for place, (old, new) in enumerate(zip(state.courses, decision.state.courses, strict=True)) if old != new]
    if decision.action is not Action.RUN or len(moved) < 2:
        return decision
    courses = [new if place <= moved[0] else old for place, (old, new) in enumerate(zip(state.courses, decision.state.courses, strict=True))]
    return replace(decision, state=replace(decision.state, courses=tuple(courses)))


def latest_counts_at_a_mount(now_ns: int, schedules: Sequence[policy.Schedule], snapshots: Sequence[schedule.Taken]) -> State:
    return real_initial(now_ns, schedules, [replace(s, serial=s.time_ns) for s in snapshots])


def by_hand_counts_at_a_mount(now_ns: int, schedules: Sequence[policy.Schedule], snapshots: Sequence[schedule.Taken]) -> State:
    return real_initial(now_ns, schedules, [replace(s, why=schedule.SCHEDULED) for s in snapshots])


def due_after_its_time(given: policy.Schedule, anchor_ns: int, tried: Activity | None = None) -> Course:
    course = real_course(given, anchor_ns, tried)
    return replace(course, due_ns=None if course.due_ns is None else course.due_ns + 1)


def failures_are_forgotten(now_ns: int, state: State, given: policy.Schedule, course: Course, activity: Activity) -> int | None:
    return real_due(now_ns, state, given, replace(course, tried=None), activity)


def zone_is_forgotten(line: str, zone: tzinfo, after_ns: int) -> int | None:
    return real_next(line, UTC, after_ns)


def cron_at_its_anchor(line: str, zone: tzinfo, after_ns: int) -> int | None:
    return real_next(line, zone, after_ns - 1)


def without(reason: str) -> Callable[..., dict[int, list[str]]]:
    def guards(*args: Any) -> dict[int, list[str]]:
        reasons_of = real_guards(*args).items()
        return {serial: reasons for serial, reasons in reasons_of if any(not each.startswith(reason) for each in reasons)}

    return guards


def held_at_the_end_of_the_hold(ordered: Sequence[retention.Candidate], given: policy.Retention, now_ns: int) -> dict[int, list[str]]:
    return real_guards([replace(s, hold_until_ns=s.hold_until_ns + 1) for s in ordered], given, now_ns)


def rules_look_at_the_future(ordered: Sequence[retention.Candidate], given: policy.Retention, now_ns: int) -> dict[int, list[str]]:
    return real_keeps(ordered, given, now_ns + 200 * DAY_NS)


def fraction_as_a_float(count: int, fraction: float) -> int:
    return max(1, floor(fraction * count - 1e-9))


def close_to_the_older_one(standing: Sequence[retention.Candidate], guarded: dict[int, object]) -> Iterator[int]:
    spans = sorted((newer.time_ns - older.time_ns, newer.serial) for older, newer in pairwise(standing))
    return (serial for _, serial in spans if serial not in guarded)


def one_too_many(*args: Any) -> Generator[frozenset[int], int, list[int]]:
    ordered, guarded, deleted, budget, _ = args
    found = yield from real_thin(*args)
    return [*found, *list(real_densest([s for s in ordered if s.serial not in deleted], guarded))[len(found) : min(len(found) + 1, budget)]]


ERRORS: dict[str, tuple[object, str, object]] = {
    "a clock set back is not followed": (schedule, "_looked_at", clock_is_not_followed),
    "a skipped run is none": (schedule, "decide", skipping_is_no_run),
    "of several due ones the first runs": (schedule, "decide", only_the_first_runs),
    "the latest counts at a mount": (schedule, "initial", latest_counts_at_a_mount),
    "one by hand counts at a mount": (schedule, "initial", by_hand_counts_at_a_mount),
    "due after its time": (schedule, "_course", due_after_its_time),
    "a failure is forgotten": (schedule, "due_ns", failures_are_forgotten),
    "cron in UTC": (cron, "next_ns", zone_is_forgotten),
    "cron at its anchor": (cron, "next_ns", cron_at_its_anchor),
    "cron by what the clock shows": (cron, "_is_at_fixed_times", lambda line: False),
    "the newest goes": (retention, "_guards", without("newest")),
    "one of the future goes": (retention, "_guards", without("in the future")),
    "a young one goes": (retention, "_guards", without("younger")),
    "held at the end of the hold": (retention, "_guards", held_at_the_end_of_the_hold),
    "rules look at the future": (retention, "_keeps", rules_look_at_the_future),
    "the fraction is a float": (retention, "_budget", fraction_as_a_float),
    "densest towards the older one": (retention, "_densest", close_to_the_older_one),
    "one too many for space": (retention, "_thin", one_too_many),
    "weeks begin on Sunday": (retention, "_week_number", lambda moment: moment.toordinal() // 7),
    "quarters begin in December": (retention, "_quarter_number", lambda moment: (moment.year * 12 + moment.month) // 3),
    "an hour shown twice is one": (retention, "_hour_number", lambda moment: moment.toordinal() * 24 + moment.hour),
}


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_in_the_rules_shows(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    module, name, erring = ERRORS[error]
    monkeypatch.setattr(module, name, erring)
    with pytest.raises(Disagreement, match=r"first: .*\nother: "):
        for number in (2, 22, *range(3, 22)):  # the first two show most
            deque(live(years(number, 1), [ModelRules(), RealRules()]), maxlen=0)
