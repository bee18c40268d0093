"""The schedules' loop on trio's mock clock, with a clock of its own that can stop, jump and be set back."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backupfs.errors import StoreError
from backupfs.limits import LOOK_S
from backupfs.rules.policy import SECOND_NS, Schedule
from backupfs.rules.schedule import SCHEDULED, Activity, Course, State, Taken, initial
from backupfs.service.scheduler import Scheduler
from tests.conftest import LogRule

HOUR_S = 3600


@dataclass
class Wall:
    """The time of day: trio's time plus what it was set to differ by."""

    offset_s: float = 1_000_000.0

    def now_ns(self) -> int:
        return int((trio.current_time() + self.offset_s) * SECOND_NS)


@dataclass
class House:
    """What the schedules watch over: `changes` count up to the next snapshot."""

    wall: Wall
    changes: int = 0
    cuts: int = 0
    changed_at_ns: int | None = None
    taken: list[float] = field(default_factory=list)
    tags: list[tuple[str, ...]] = field(default_factory=list)
    failure: Exception | None = None

    async def take(self, tags: tuple[str, ...]) -> None:
        self.taken.append(trio.current_time())
        self.tags.append(tags)
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        self.changes = 0
        self.cuts += 1

    def change(self) -> None:
        self.changes += 1
        self.changed_at_ns = self.wall.now_ns()

    def activity(self) -> Activity:
        return Activity(self.changes, 100 * self.changes, self.changed_at_ns, self.cuts)


HOURLY = Schedule(every_ns=HOUR_S * SECOND_NS)


def scheduled(house: House, *schedules: Schedule) -> Scheduler:
    schedules = schedules or (HOURLY,)
    return Scheduler(schedules, initial(house.wall.now_ns(), schedules, []), house.wall, house.activity, house.take)


def every_s(scheduler: Scheduler) -> int | None:
    status = scheduler.status()
    assert status is not None
    return status.every_s


@pytest.fixture
def house() -> House:
    return House(Wall())


async def test_it_runs_each_interval_in_which_something_changed(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    start = trio.current_time()
    nursery.start_soon(scheduled(house).run)
    for hour in range(6):
        await trio.sleep(HOUR_S / 2)
        house.changes += hour % 2
        await trio.sleep(HOUR_S / 2)
    await trio.sleep(1)
    assert [round(taken - start) for taken in house.taken] == [2 * HOUR_S, 4 * HOUR_S, 6 * HOUR_S]


async def test_an_idle_hour_makes_none_and_the_first_change_afterwards_waits_for_its_hour(
    autojump_clock: MockClock, house: House, nursery: trio.Nursery
) -> None:
    start = trio.current_time()
    nursery.start_soon(scheduled(house).run)
    await trio.sleep(2.5 * HOUR_S)
    house.changes = 1
    await trio.sleep(HOUR_S)
    assert [round(taken - start) for taken in house.taken] == [3 * HOUR_S]


async def test_after_sleeping_one_run_makes_up_for_all(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    nursery.start_soon(scheduled(house).run)
    house.changes = 1
    await trio.sleep(10)
    house.wall.offset_s += 9 * HOUR_S  # trio's time stood still meanwhile
    await trio.sleep(LOOK_S + 1)
    assert len(house.taken) == 1
    house.changes = 1
    await trio.sleep(HOUR_S - 2 * LOOK_S)
    assert len(house.taken) == 1
    await trio.sleep(2 * LOOK_S)
    assert len(house.taken) == 2


async def test_a_clock_set_back_by_years_does_not_stop_the_schedule(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    nursery.start_soon(scheduled(house).run)
    house.changes = 1
    await trio.sleep(10)
    house.wall.offset_s -= 900_000
    await trio.sleep(HOUR_S + LOOK_S + 1)
    assert len(house.taken) == 1


async def test_what_was_missed_before_the_start_runs_at_once(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    house.changes = 1
    anchor = house.wall.now_ns() - 5 * HOUR_S * SECOND_NS
    state = State((Course(anchor, anchor + HOUR_S * SECOND_NS),), anchor)
    nursery.start_soon(Scheduler([HOURLY], state, house.wall, house.activity, house.take).run)
    await trio.sleep(0.001)
    assert len(house.taken) == 1


@pytest.mark.parametrize("failure", [StoreError("no space"), RuntimeError("a fault")])
async def test_a_failure_is_logged_and_tried_again_an_interval_later(
    autojump_clock: MockClock, house: House, nursery: trio.Nursery, log_rule: LogRule, failure: Exception
) -> None:
    log_rule.expect("scheduled snapshot was not taken")
    house.changes = 1
    house.failure = failure
    nursery.start_soon(scheduled(house).run)
    await trio.sleep(HOUR_S + 1)
    house.failure = None
    await trio.sleep(HOUR_S)
    assert len(house.taken) == 2
    assert not house.changes


async def test_next_is_an_interval_after_the_last(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    scheduler = scheduled(house)
    before = house.wall.now_ns()
    assert scheduler.next_ns == before + HOUR_S * SECOND_NS
    assert every_s(scheduler) == HOUR_S
    nursery.start_soon(scheduler.run)
    await trio.sleep(HOUR_S + 1)
    assert scheduler.next_ns is not None
    assert scheduler.next_ns >= before + 2 * HOUR_S * SECOND_NS


async def test_each_schedule_has_its_tags_and_those_due_together_share_a_snapshot(
    autojump_clock: MockClock, house: House, nursery: trio.Nursery
) -> None:
    start = trio.current_time()
    daily = Schedule(every_ns=3 * HOUR_S * SECOND_NS, tags=("third",), always=True)
    nursery.start_soon(scheduled(house, Schedule(every_ns=HOUR_S * SECOND_NS, tags=("each",)), daily).run)
    house.change()
    await trio.sleep(2.5 * HOUR_S)
    assert house.tags == [("each",)], "in the second hour nothing has changed"
    await trio.sleep(HOUR_S)
    assert house.tags == [("each",), ("each", "third")]
    assert [round(taken - start) for taken in house.taken] == [HOUR_S, 3 * HOUR_S]


async def test_much_change_is_seen_at_the_next_look_and_rest_at_its_end(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    scheduler = scheduled(house, Schedule(on_change_bytes=300, tags=("much",)), Schedule(on_idle_ns=600 * SECOND_NS, tags=("rest",)))
    assert (scheduler.next_ns, every_s(scheduler)) == (None, None)
    nursery.start_soon(scheduler.run)
    await trio.sleep(100)
    house.change()
    await trio.sleep(LOOK_S)
    changed_at = trio.current_time() - LOOK_S
    assert scheduler.next_ns == house.wall.now_ns() + round((600 - LOOK_S) * SECOND_NS)
    assert [(view.trigger, view.tags, view.next_ns) for view in scheduler.views()] == [
        ("on change of 300B", ["much"], None),
        ("on idle for 10m", ["rest"], scheduler.next_ns),
    ]
    await trio.sleep(610)
    assert [taken - changed_at for taken in house.taken] == [600]
    for _ in range(3):
        house.change()
    await trio.sleep(LOOK_S + 1)
    assert house.tags == [("rest",), ("much",)]


async def test_a_failure_of_one_that_waits_for_changes_is_not_repeated_at_once(
    autojump_clock: MockClock, house: House, nursery: trio.Nursery, log_rule: LogRule
) -> None:
    log_rule.expect("scheduled snapshot was not taken")
    house.failure = StoreError("no space")
    nursery.start_soon(scheduled(house, Schedule(on_change_records=2)).run)
    house.changes = 3
    await trio.sleep(HOUR_S)
    assert len(house.taken) == 1
    house.changes += 2
    await trio.sleep(LOOK_S + 1)
    assert len(house.taken) == 2
    house.failure = None
    house.changes += 2
    await trio.sleep(LOOK_S + 1)
    assert len(house.taken) == 3
    assert not house.changes


async def test_other_schedules_count_at_once_and_one_that_stays_goes_on(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    daily = Schedule(every_ns=24 * HOUR_S * SECOND_NS, tags=("daily",))
    begin = house.wall.now_ns()
    scheduler = scheduled(house, HOURLY)
    nursery.start_soon(scheduler.run)
    await trio.sleep(1.5 * HOUR_S)  # the first hour was skipped: nothing had changed
    house.change()
    scheduler.reschedule((daily, HOURLY), [Taken(begin - 10 * HOUR_S * SECOND_NS, 1, SCHEDULED, ["daily"])])
    assert [view.next_ns for view in scheduler.views()] == [begin + 14 * HOUR_S * SECOND_NS, begin + 2 * HOUR_S * SECOND_NS]
    await trio.sleep(HOUR_S)
    assert house.tags == [()]
    house.change()
    scheduler.reschedule((Schedule(on_change_records=1, tags=("soon",)),), [])
    await wait_all_tasks_blocked()
    assert house.tags == [(), ("soon",)], "it does not wait until it looks again"
    scheduler.reschedule((), [])
    assert (scheduler.status(), scheduler.views()) == (None, [])
    house.change()
    await trio.sleep(2 * HOUR_S)
    assert len(house.tags) == 2


async def test_other_schedules_while_one_runs(autojump_clock: MockClock, house: House, nursery: trio.Nursery) -> None:
    scheduler = scheduled(house, HOURLY)
    take = house.take

    async def slowly(tags: tuple[str, ...]) -> None:
        await trio.sleep(60)
        await take(tags)

    scheduler._take = slowly
    nursery.start_soon(scheduler.run)
    house.change()
    await trio.sleep(HOUR_S + 1)
    scheduler.reschedule((Schedule(every_ns=60 * SECOND_NS, tags=("new",)),), [])
    await trio.sleep(59.5)
    assert house.tags == [()], "the run that was under way is over"
    house.change()
    await trio.sleep(120)
    assert house.tags == [(), ("new",)]
