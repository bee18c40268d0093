"""Schedules: any course of the clock and of changes against a slow account of the same rules, and what is easily got wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.rules.policy import SECOND_NS, Schedule
from backupfs.rules.schedule import Action, Activity, State, Taken, decide, due_ns, initial, trigger

MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
NOON_NS = round(datetime(2026, 10, 4, 12, tzinfo=UTC).timestamp()) * SECOND_NS
NOTHING = Activity(0, 0, None, 1)


# --- any course of things -------------------------------------------------------------------------------------------


@dataclass
class Account:
    """Who keeps the whole history and looks through it each time."""

    schedules: Sequence[Schedule]
    mounted_ns: int
    anchors: list[int]
    failed_at: list[int | None] = field(default_factory=list)
    """For each schedule the number of changes there had been when it last ran in vain."""
    changes: list[tuple[int, int]] = field(default_factory=list)
    """(time, bytes) of changes since the mount."""
    cut_at: int = 0
    cuts: int = 1
    seen: int = 0
    rests_since_ns: int = 0

    def __post_init__(self) -> None:
        self.failed_at = [None] * len(self.schedules)
        self.rests_since_ns = self.mounted_ns

    def activity(self) -> Activity:
        since = self.changes[self.cut_at :]
        return Activity(len(since), sum(size for _, size in since), self.changes[-1][0] if self.changes else None, self.cuts)

    def due(self, now_ns: int) -> list[bool]:
        if len(self.changes) > self.seen:
            self.rests_since_ns = self.changes[-1][0]
            self.seen = len(self.changes)
        self.rests_since_ns = min(self.rests_since_ns, now_ns)
        self.anchors = [min(anchor, now_ns) for anchor in self.anchors]
        return [self._is_due(schedule, number, now_ns) for number, schedule in enumerate(self.schedules)]

    def _is_due(self, schedule: Schedule, number: int, now_ns: int) -> bool:
        since = self.changes[max(self.cut_at, self.failed_at[number] or 0) :]
        anchor_ns = self.anchors[number]
        if schedule.every_ns:
            return now_ns - anchor_ns >= schedule.every_ns
        if schedule.cron:
            step_ns = int(schedule.cron.split()[0].removeprefix("*/")) * MINUTE_NS
            return now_ns // step_ns > anchor_ns // step_ns
        if schedule.on_change_records:
            return len(since) >= schedule.on_change_records
        if schedule.on_change_bytes:
            return sum(size for _, size in since) >= schedule.on_change_bytes
        return bool(since) and now_ns - self.rests_since_ns >= (schedule.on_idle_ns or 0)

    def run(self, due: Sequence[bool], now_ns: int, fails: bool) -> tuple[Action, tuple[str, ...]]:
        if not any(due):
            return Action.WAIT, ()
        ran = [schedule for schedule, is_due in zip(self.schedules, due, strict=True) if is_due]
        self.anchors = [now_ns if is_due else anchor for anchor, is_due in zip(self.anchors, due, strict=True)]
        if len(self.changes) == self.cut_at and not any(schedule.always for schedule in ran):
            return Action.SKIP, ()
        if fails:
            self.failed_at = [len(self.changes) if is_due else before for before, is_due in zip(self.failed_at, due, strict=True)]
        else:
            self.cut()
        tags: list[str] = []
        for schedule in ran:
            tags += [tag for tag in schedule.tags if tag not in tags]
        return Action.RUN, tuple(tags)

    def cut(self) -> None:
        self.cut_at = len(self.changes)
        self.cuts += 1


tags = st.lists(st.sampled_from("abc"), unique=True, max_size=2).map(tuple)
triggers: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.builds(dict, every_ns=st.integers(1, 3 * HOUR_NS)),
    st.builds(dict, cron=st.sampled_from(["*/5 * * * *", "*/20 * * * *", "*/30 * * * *"])),
    st.builds(dict, on_change_records=st.integers(1, 4)),
    st.builds(dict, on_change_bytes=st.integers(1, 40)),
    st.builds(dict, on_idle_ns=st.integers(1, HOUR_NS)),
)
schedules = st.lists(st.builds(lambda when, tags, always: Schedule(**when, tags=tags, always=always), triggers, tags, st.booleans()), max_size=4)
spans = st.one_of(st.integers(0, 2 * HOUR_NS), st.integers(0, 12).map(lambda n: n * 5 * MINUTE_NS))
steps = st.one_of(
    st.tuples(st.just("later"), spans),
    st.tuples(st.just("set"), st.integers(-5 * HOUR_NS, 5 * HOUR_NS)),
    st.tuples(st.just("change"), st.integers(0, 20)),
    st.tuples(st.just("cut"), st.just(0)),
    st.tuples(st.just("look"), st.just(0)),
    st.tuples(st.just("look in vain"), st.just(0)),
)


@given(schedules=schedules, steps=st.lists(steps, max_size=25))
def test_as_who_looks_through_the_whole_history(schedules: list[Schedule], steps: list[tuple[str, int]]) -> None:
    now_ns = NOON_NS
    state = initial(now_ns, schedules, [])
    account = Account(schedules, now_ns, [now_ns] * len(schedules))
    for number, (kind, size) in enumerate(steps):
        if kind in ("later", "set"):
            now_ns += size
        elif kind == "change":
            account.changes.append((now_ns + number, size))  # no two at the same time
        elif kind == "cut":
            account.cut()
        else:
            activity = account.activity()
            decision = decide(now_ns, state, schedules, activity)
            assert (decision.action, decision.tags) == account.run(account.due(now_ns), now_ns, "vain" in kind)
            state = decision.state
            check_wait(now_ns, state, schedules, account.activity() if decision.action is Action.WAIT else activity, decision.wait_ns)


def check_wait(now_ns: int, state: State, schedules: Sequence[Schedule], activity: Activity, wait_ns: int | None) -> None:
    """Nothing is due before, something is due then."""
    if wait_ns is None:
        assert decide(now_ns + 10**6 * HOUR_NS, state, schedules, activity).action is Action.WAIT
        return
    assert wait_ns > 0
    for before_ns in (0, wait_ns // 2, wait_ns - 1):
        assert decide(now_ns + before_ns, state, schedules, activity).action is Action.WAIT
    assert decide(now_ns + wait_ns, state, schedules, activity).action is not Action.WAIT


# --- one by one -----------------------------------------------------------------------------------------------------


def changed(records: int, at_ns: int | None = NOON_NS, epoch: int = 1) -> Activity:
    return Activity(records, 0, at_ns, epoch)


def test_without_schedules_nothing_is_ever_due() -> None:
    decision = decide(NOON_NS, initial(NOON_NS, [], []), [], changed(1))
    assert (decision.action, decision.wait_ns) == (Action.WAIT, None)


def test_one_run_makes_up_for_all_that_were_missed() -> None:
    hourly = [Schedule(every_ns=HOUR_NS), Schedule(cron="0 * * * *")]
    late_ns = NOON_NS + 9 * HOUR_NS + MINUTE_NS
    first = decide(late_ns, initial(NOON_NS, hourly, []), hourly, changed(1))
    assert first.action is Action.RUN
    second = decide(late_ns, first.state, hourly, changed(1, epoch=2))
    assert (second.action, second.wait_ns) == (Action.WAIT, 59 * MINUTE_NS)


def test_with_always_what_has_not_changed_is_taken_with_the_tags_of_all_that_are_due() -> None:
    both = [
        Schedule(every_ns=HOUR_NS, tags=("a", "b")),
        Schedule(every_ns=HOUR_NS, tags=("b", "c"), always=True),
        Schedule(every_ns=2 * HOUR_NS, tags=("d",)),
    ]
    decision = decide(NOON_NS + HOUR_NS, initial(NOON_NS, both, []), both, NOTHING)
    assert (decision.action, decision.tags) == (Action.RUN, ("a", "b", "c"))
    alone = decide(NOON_NS + HOUR_NS, initial(NOON_NS, both[:1], []), both[:1], NOTHING)
    assert (alone.action, alone.tags) == (Action.SKIP, ())
    assert alone.wait_ns == HOUR_NS, "a run that was skipped moves the anchor"


def test_after_a_run_in_vain_as_much_has_to_change_again() -> None:
    schedules = [Schedule(on_change_records=10), Schedule(on_change_bytes=1000), Schedule(on_idle_ns=MINUTE_NS)]
    state = initial(NOON_NS, schedules, [])
    first = decide(NOON_NS + MINUTE_NS, state, schedules, Activity(10, 1000, NOON_NS, 1))
    assert first.action is Action.RUN
    again = decide(NOON_NS + HOUR_NS, first.state, schedules, Activity(10, 1000, NOON_NS, 1))
    assert again.wait_ns is None
    assert decide(NOON_NS + HOUR_NS, again.state, schedules, Activity(20, 1000, NOON_NS, 1)).action is Action.RUN
    assert decide(NOON_NS + HOUR_NS, again.state, schedules, Activity(19, 2000, NOON_NS, 1)).action is Action.RUN
    for set_back_ns in (NOON_NS - HOUR_NS, NOON_NS - 2 * HOUR_NS):
        again = decide(set_back_ns, again.state, schedules, Activity(10, 1000, NOON_NS, 1))
        assert again.action is Action.WAIT, "that the clock is set back makes the run in vain no less of one"
    resting = decide(NOON_NS + HOUR_NS, again.state, schedules, Activity(11, 1999, NOON_NS + HOUR_NS, 1))
    assert (resting.action, resting.wait_ns) == (Action.WAIT, MINUTE_NS)
    after_one_by_hand = decide(NOON_NS + HOUR_NS, again.state, schedules, Activity(10, 0, NOON_NS + HOUR_NS, 2))
    assert after_one_by_hand.action is Action.RUN


def test_changes_from_before_the_mount_rest_since_the_mount() -> None:
    schedules = [Schedule(on_idle_ns=MINUTE_NS)]
    decision = decide(NOON_NS + SECOND_NS, initial(NOON_NS, schedules, []), schedules, changed(3, None))
    assert (decision.action, decision.wait_ns) == (Action.WAIT, MINUTE_NS - SECOND_NS)
    assert decide(NOON_NS + MINUTE_NS, decision.state, schedules, changed(3, None)).action is Action.RUN


def test_a_clock_set_back_by_years_moves_anchors_and_rest_to_now() -> None:
    schedules = [Schedule(every_ns=HOUR_NS), Schedule(cron="30 * * * *"), Schedule(on_idle_ns=2 * HOUR_NS)]
    state = decide(NOON_NS, initial(NOON_NS, schedules, []), schedules, changed(1)).state
    past_ns = NOON_NS - 10_000 * HOUR_NS
    decision = decide(past_ns, state, schedules, changed(1))
    assert decision.action is Action.WAIT
    dues = [due_ns(past_ns, decision.state, schedule, course, changed(1)) for schedule, course in zip(schedules, decision.state.courses, strict=True)]
    assert dues == [past_ns + HOUR_NS, past_ns + HOUR_NS // 2, past_ns + 2 * HOUR_NS]


def test_a_look_costs_no_search_for_the_next_cron_time() -> None:
    schedules = [Schedule(cron="0 3 * * *", zone=ZoneInfo("Europe/Berlin"))]
    state = initial(NOON_NS, schedules, [])
    assert decide(NOON_NS + 1, state, schedules, changed(1)).state.courses is state.courses


# --- at a mount -------------------------------------------------------------------------------------------------------

takens = st.lists(
    st.builds(Taken, st.integers(NOON_NS - 99, NOON_NS + 9), st.integers(1, 1000), st.sampled_from(["schedule", "manual"]), tags),
    unique_by=lambda taken: taken.serial,
)


@given(snapshots=takens, wanted=tags)
def test_the_anchor_is_the_last_that_a_schedule_took_with_these_tags(snapshots: list[Taken], wanted: tuple[str, ...]) -> None:
    anchor_ns, serial = NOON_NS, 0
    for taken in snapshots:
        if taken.why == "schedule" and all(tag in taken.tags for tag in wanted) and taken.serial > serial:
            anchor_ns, serial = min(taken.time_ns, NOON_NS), taken.serial
    (course,) = initial(NOON_NS, [Schedule(every_ns=HOUR_NS, tags=wanted)], snapshots).courses
    assert (course.anchor_ns, course.due_ns) == (anchor_ns, anchor_ns + HOUR_NS)


# --- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (Schedule(every_ns=90 * MINUTE_NS), "every 1h30m"),
        (Schedule(cron="0 3 * * *"), "cron 0 3 * * * (UTC)"),
        (Schedule(cron="0 3 * * *", zone=ZoneInfo("Europe/Berlin")), "cron 0 3 * * * (Europe/Berlin)"),
        (Schedule(cron="0 3 * * *", zone=timezone(timedelta(hours=2))), "cron 0 3 * * * (UTC+02:00)"),
        (Schedule(on_change_records=1000), "on change of 1000 records"),
        (Schedule(on_change_bytes=5 * 2**30), "on change of 5GiB"),
        (Schedule(on_idle_ns=15 * MINUTE_NS), "on idle for 15m"),
    ],
)
def test_triggers_are_told_in_words(schedule: Schedule, words: str) -> None:
    assert trigger(schedule) == words
    assert trigger(replace(schedule, tags=("t",))) == words


def test_a_change_at_the_very_time_of_another_before_the_clock_was_set_back_is_one() -> None:
    schedules = [Schedule(on_idle_ns=HOUR_NS)]
    state = initial(NOON_NS, schedules, [])
    state = decide(NOON_NS + MINUTE_NS, state, schedules, Activity(1, 1, NOON_NS + MINUTE_NS, 1, 1)).state
    state = decide(NOON_NS, state, schedules, Activity(1, 1, NOON_NS + MINUTE_NS, 1, 1)).state
    again = Activity(2, 2, NOON_NS + MINUTE_NS, 1, 2)
    assert decide(NOON_NS + MINUTE_NS, state, schedules, again).wait_ns == HOUR_NS
