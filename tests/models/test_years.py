"""The years themselves: they replay, all happens in them that the rules speak of, and living through them side by side shows a small error."""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest

from tests.models.snapshot_rules import Duration, Schedule, ScheduleModel, Settings, Snapshot, excess_bytes, fates
from tests.models.world import Disagreement, ModelRules, live
from tests.models.years import ClockSet, Event, Looked, Slept, years

Frees = Callable[[set[int]], int]


def test_the_same_seed_is_the_same_life() -> None:
    assert list(years(3, 1)) == list(years(3, 1))
    assert list(years(3, 1)) != list(years(4, 1))
    assert len(list(years(3, 2))) > len(list(years(3, 1))) + 4000


def test_everything_happens_in_a_year() -> None:
    events = list(years(0, 1))
    assert 5_000 < len(events) < 20_000
    kinds = Counter(type(event) for event in events)
    assert set(kinds) == set(Event.__args__)
    assert min(kinds.values()) >= 10
    assert {event.by_ns > 0 for event in events if isinstance(event, ClockSet)} == {True, False}
    assert {event.fails for event in events if isinstance(event, Looked)} == {True, False}
    assert all(event.for_ns > 0 for event in events if isinstance(event, Slept))


def test_a_year_with_the_model_takes_and_deletes_and_never_loses_what_must_stay() -> None:
    happened: Counter[str] = Counter()
    before: dict[int, Snapshot] = {}
    for event, world in live(years(2, 1), [ModelRules()]):
        now_ns = event.now_ns
        gone = [before[serial] for serial in world.pruned if serial in before]
        for snapshot in gone:
            assert not snapshot.pinned
            assert snapshot.hold_end_ns is None or snapshot.hold_end_ns <= now_ns
            assert snapshot.time_ns <= now_ns - world.settings.min_age.ns
            assert snapshot.serial < max(world.kept), "the newest stays"
        happened["deleted by retention"] += len(gone)
        happened["limited by space"] += excess_bytes(world.settings, *world.space()) > 0
        happened["pinned"] += any(snapshot.pinned for snapshot in world.kept.values())
        happened["held"] += any(snapshot.hold_end_ns is not None for snapshot in world.kept.values())
        happened["of the future"] += any(snapshot.time_ns > now_ns for snapshot in world.kept.values())
        happened["purged"] += world.last_serial > len(world.kept) + len(world.deleted)
        before = dict(world.kept)
    assert world.last_serial > 500
    assert len(world.kept) < 200
    assert happened["deleted by retention"] > 500
    assert min(happened.values()) > 10, happened


# --- small errors ---------------------------------------------------------------------------------------------------


class WithOtherSettings(ModelRules):
    """Errs about settings, as a wrong comparison does."""

    def __init__(self, change: Callable[[Settings], Settings]) -> None:
        super().__init__()
        self._change = change

    def fates(self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Frees) -> dict[int, bool]:
        return fates(snapshots, self._change(settings), now_ns, too_many, frees)


class WithOtherSnapshots(ModelRules):
    """Errs about snapshots."""

    def __init__(self, change: Callable[[Snapshot], Snapshot]) -> None:
        super().__init__()
        self._change = change

    def fates(self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Frees) -> dict[int, bool]:
        return fates([self._change(snapshot) for snapshot in snapshots], settings, now_ns, too_many, frees)


class WithOtherSpace(ModelRules):
    """Errs about space by a million bytes for each snapshot."""

    def fates(self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Frees) -> dict[int, bool]:
        return fates(snapshots, settings, now_ns, too_many, lambda serials: frees(serials) + len(serials) * 10**6)


class WithOtherSchedules(ModelRules):
    """Errs about schedules."""

    def __init__(self, change: Callable[[Schedule], Schedule]) -> None:
        super().__init__()
        self._change = change

    def mount(self, now_ns: int, snapshots: Sequence[Snapshot], schedules: tuple[Schedule, ...]) -> None:
        super().mount(now_ns, snapshots, tuple(self._change(schedule) for schedule in schedules))


class HandMovesAnchors(ModelRules):
    def taken_by_hand(self, now_ns: int) -> None:
        super().taken_by_hand(now_ns)
        self._schedules.anchors_ns = [now_ns] * len(self._schedules.anchors_ns)


class ForgetsAtMount(ModelRules):
    def mount(self, now_ns: int, snapshots: Sequence[Snapshot], schedules: tuple[Schedule, ...]) -> None:
        super().mount(now_ns, [], schedules)


class ForgetsTheFailure(ModelRules):
    def look(self, now_ns: int, *, fails: bool) -> list[str] | None:
        return super().look(now_ns, fails=False)


class _Unmoved(ScheduleModel):
    def _note_clock(self, now_ns: int) -> None:
        pass


class IgnoresTheClock(ModelRules):
    """Leaves anchors in the future where they are."""

    def __init__(self) -> None:
        super().__init__()
        self._schedules = _Unmoved(())


def longer(duration: Duration | None) -> Duration | None:
    return duration and Duration(duration.ns + 1)


def within_or_at(settings: Settings) -> Settings:
    last = longer(settings.keep_last) if isinstance(settings.keep_last, Duration) else settings.keep_last
    return replace(settings, keep_within=longer(settings.keep_within), keep_last=last)


def period_within_or_at(settings: Settings) -> Settings:
    hourly = longer(settings.keep_hourly) if isinstance(settings.keep_hourly, Duration) else settings.keep_hourly
    return replace(settings, keep_hourly=hourly)


def young_or_at(settings: Settings) -> Settings:
    return replace(settings, min_age=Duration(settings.min_age.ns + 1))


def floor_of_a_float(settings: Settings) -> Settings:
    return replace(settings, max_delete_fraction=settings.max_delete_fraction - Fraction(1, 10**12))


def held_at_its_end(snapshot: Snapshot) -> Snapshot:
    return snapshot if snapshot.hold_end_ns is None else replace(snapshot, hold_end_ns=snapshot.hold_end_ns + 1)


def after_its_duration(schedule: Schedule) -> Schedule:
    return replace(schedule, every=longer(schedule.every), on_idle=longer(schedule.on_idle))


@pytest.mark.parametrize(
    "erring",
    [
        lambda: WithOtherSettings(within_or_at),
        lambda: WithOtherSettings(period_within_or_at),
        lambda: WithOtherSettings(young_or_at),
        lambda: WithOtherSettings(floor_of_a_float),
        lambda: WithOtherSettings(lambda settings: replace(settings, zone="UTC")),
        lambda: WithOtherSnapshots(held_at_its_end),
        lambda: WithOtherSnapshots(lambda snapshot: replace(snapshot, tags=snapshot.tags[:1])),
        WithOtherSpace,
        lambda: WithOtherSchedules(after_its_duration),
        lambda: WithOtherSchedules(lambda schedule: replace(schedule, zone="UTC")),
        lambda: WithOtherSchedules(lambda schedule: replace(schedule, always=False)),
        lambda: WithOtherSchedules(lambda schedule: replace(schedule, tags=schedule.tags[::-1])),
        HandMovesAnchors,
        ForgetsAtMount,
        ForgetsTheFailure,
        IgnoresTheClock,
    ],
    ids=[
        "within",
        "period",
        "young",
        "fraction",
        "zone",
        "held",
        "tags",
        "space",
        "every",
        "cron-zone",
        "always",
        "order",
        "hand",
        "mount",
        "failure",
        "clock",
    ],
)
def test_a_small_error_shows(erring: Callable[[], ModelRules]) -> None:
    with pytest.raises(Disagreement, match=r"first: .*\nother: "):
        for seed in range(1, 20):
            deque(live(years(seed, 1), [ModelRules(), erring()]), maxlen=0)
