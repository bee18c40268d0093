"""Retention at work on an engine of snapshots and blobs: what it deletes, when, and what it does when something gets in between."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from backupfs.errors import BackupfsError, StoreError
from backupfs.limits import LOOK_S
from backupfs.rules.policy import Retention
from backupfs.rules.retention import decide
from backupfs.service.freeing import frees
from backupfs.service.retaining import ATTEMPTS, RETRY_NS, Retainer, candidate
from tests.conftest import LogRule
from tests.unit.service.shelf import DAY_NS, HOUR_NS, FakeShelf, Wall

LAST_TWO = Retention(keep_last=2)


def retainer(shelf: FakeShelf, retention: Retention = LAST_TWO) -> Retainer:
    return Retainer(shelf, shelf.upkeep, shelf.clock, retention)


@pytest.fixture
def shelf(autojump_clock: MockClock) -> FakeShelf:
    made = FakeShelf(Wall(autojump_clock.current_time))
    for days in (4, 3, 2, 1):
        made.add(days * DAY_NS)
    return made


# --- what deleting frees ----------------------------------------------------------------------------------------------


async def test_what_deleting_frees_is_told_beyond_what_is_deleted_already(autojump_clock: MockClock) -> None:
    shelf = FakeShelf()
    for held in ("ab", "bc", "cd"):
        shelf.add(0, holds=held)
    assert [await frees(shelf, [serial]) for serial in (1, 2, 3)] == [1, 0, 8]
    assert await frees(shelf, [1, 2]) == 1 + 2
    await shelf.delete_snapshots(["s1"])
    assert await frees(shelf, [2]) == 2, "nobody else will hold b"
    assert await frees(shelf, [1]) == 1, "of deleted ones themselves too"
    assert await frees(shelf, [2, 3]) == 2 + 4 + 8
    assert await frees(shelf, []) == 0
    shelf.live |= {"b"}
    assert await frees(shelf, [2]) == 0


# --- plans ------------------------------------------------------------------------------------------------------------


async def test_a_plan_deletes_nothing_and_is_carried_out_whole(autojump_clock: MockClock, shelf: FakeShelf) -> None:
    works = retainer(shelf)
    plan = await works.plan()
    assert [(fate.name, fate.keep) for fate in plan.fates] == [("s1", False), ("s2", False), ("s3", True), ("s4", True)]
    assert shelf.names() == ["s1", "s2", "s3", "s4"]
    assert await works.apply() == plan
    assert shelf.names() == ["s3", "s4"]
    assert [info.name for info in shelf.deleted] == ["s1", "s2"]
    assert (await works.apply()).deleted == []
    assert shelf.asked == [], "without a limit nobody counts"


async def test_pinned_held_and_tagged_ones_are_seen(autojump_clock: MockClock, shelf: FakeShelf) -> None:
    shelf.change("s1", pinned=True)
    shelf.change("s2", hold_until_ns=shelf.clock.now_ns() + DAY_NS)
    shelf.add(9 * DAY_NS, "tagged", tags=["t"], serial=0)
    assert {fate.name: fate.keep for fate in (await retainer(shelf, Retention(keep_tags=("t",))).plan()).fates} == {
        "s1": True,
        "s2": True,
        "s3": False,
        "s4": False,
        "tagged": True,
    }


def limited(shelf: FakeShelf, excess_bytes: int) -> Retention:
    shelf.used = replace(shelf.used, packs_bytes=10_000 + excess_bytes, reserve_bytes=10**9, set_aside_bytes=10**9)
    return Retention(space_limit_bytes=10_000)


async def test_a_space_limit_thins_and_counts_what_is_deleted_already(autojump_clock: MockClock) -> None:
    shelf = FakeShelf()
    for number, held in enumerate("abcdef"):
        shelf.add((9 - number) * DAY_NS, holds=held)
    await shelf.delete_snapshots(["s3"])  # frees 4
    works = retainer(shelf, limited(shelf, 4))
    plan = await works.plan()
    assert (plan.deleted, plan.excess_bytes) == ([], 4)
    works.retention = limited(shelf, 7)
    assert [fate.reasons for fate in (await works.apply()).deleted] == [["space limit: densest"]] * 2
    freed = sum(shelf.sizes[blob] for info in shelf.deleted for blob in shelf.holds[info.serial])
    assert freed >= 7


async def test_space_that_is_dead_already_costs_no_snapshot_and_is_collected(autojump_clock: MockClock, shelf: FakeShelf) -> None:
    works = retainer(shelf, limited(shelf, 50))
    shelf.upkeep.dead_bytes = 50
    assert (await works.plan()).deleted == []
    assert shelf.upkeep.asked_soon == 0
    assert (await works.apply()).deleted == []
    assert shelf.upkeep.asked_soon == 1
    shelf.upkeep.dead_bytes = 49
    assert len((await works.apply()).deleted) == 3, "all but the newest, since none of them frees anything"


async def test_without_too_much_nothing_is_thinned(autojump_clock: MockClock, shelf: FakeShelf) -> None:
    shelf.upkeep.dead_bytes = 5
    works = retainer(shelf, limited(shelf, 0))
    assert (await works.apply()).deleted == []
    assert (shelf.asked, shelf.upkeep.asked_soon) == ([], 0)
    shelf.free_bytes = 100
    works.retention = Retention(free_limit_bytes=100)
    assert (await works.plan()).excess_bytes == 0
    works.retention = Retention(free_limit_share=0.2)
    assert (await works.plan()).excess_bytes == 100, "of the thousand bytes that the disk has"


@given(
    held=st.lists(st.sets(st.sampled_from("abcdef")).map(lambda blobs: "".join(sorted(blobs))), min_size=1, max_size=7),
    gone=st.sets(st.integers(1, 7), max_size=3),
    excess_bytes=st.integers(-5, 70),
    dead_bytes=st.integers(0, 20),
)
def test_the_plan_is_what_the_rule_decides_with_the_same_answers(held: list[str], gone: set[int], excess_bytes: int, dead_bytes: int) -> None:
    async def check() -> None:
        shelf = FakeShelf()
        for number, blobs in enumerate(held):
            shelf.add((20 - number * number) * DAY_NS, holds=blobs)
        await shelf.delete_snapshots([info.name for info in shelf.kept if info.serial in gone])
        shelf.upkeep.dead_bytes = dead_bytes
        already = {info.serial for info in shelf.deleted}
        everything = {info.serial: shelf.holds[info.serial] for info in (*shelf.kept, *shelf.deleted)}

        def answer(serials: frozenset[int]) -> int:
            purged = serials | already
            left: set[str] = set().union(*(blobs for serial, blobs in everything.items() if serial not in purged))
            return dead_bytes + sum(shelf.sizes[blob] for blob in set().union(*(everything[serial] for serial in purged)) - left)

        policy = limited(shelf, excess_bytes)
        plan = await retainer(shelf, policy).plan()
        decided = decide([candidate(info) for info in shelf.kept], policy, shelf.clock.now_ns(), max(excess_bytes, 0), answer)
        assert [(fate.serial, fate.keep, tuple(fate.reasons)) for fate in plan.fates] == [(f.serial, f.keep, f.reasons) for f in decided]

    trio.run(check)


# --- what happens meanwhile -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "stay"),
    [
        (lambda shelf, works: shelf.change("s1", pinned=True), ["s1", "s4"]),
        (lambda shelf, works: shelf.add(0, "new"), ["new"]),
        (lambda shelf, works: setattr(works, "retention", LAST_TWO), ["s3", "s4"]),
    ],
)
async def test_what_changes_while_it_is_decided_counts(
    autojump_clock: MockClock, shelf: FakeShelf, change: Callable[[FakeShelf, Retainer], object], stay: list[str]
) -> None:
    works = retainer(shelf, limited(shelf, 1))
    shelf.meanwhile.append(partial(change, shelf, works))
    await works.apply()
    assert shelf.names() == stay


async def test_with_changes_without_end_nothing_is_deleted(autojump_clock: MockClock, shelf: FakeShelf) -> None:
    works = retainer(shelf, limited(shelf, 1))
    begun = len(shelf.kept)

    async def frees_and_changes(*_: object, **__: object) -> int:
        shelf.add(0)
        return 0

    shelf.frees = frees_and_changes  # type: ignore[method-assign]
    with pytest.raises(BackupfsError, match="nothing was deleted"):
        await works.apply()
    assert shelf.deleted == []
    assert len(shelf.kept) > begun + ATTEMPTS


# --- when it runs -----------------------------------------------------------------------------------------------------


async def at(hours: float) -> None:
    """Just after this time of trio."""
    await trio.sleep_until(hours * 3600 + 1)


async def test_it_runs_each_hour_and_when_woken(autojump_clock: MockClock, shelf: FakeShelf, nursery: trio.Nursery) -> None:
    begun_ns = shelf.clock.now_ns()
    works = retainer(shelf)
    assert (works.status().last_ns, works.status().next_ns) == (None, begun_ns + HOUR_NS)
    nursery.start_soon(works.run)
    await at(0.9)
    assert len(shelf.kept) == 4
    await at(1)
    status = works.status()
    assert (status.last_ns, status.next_ns) == (begun_ns + HOUR_NS, begun_ns + 2 * HOUR_NS)
    assert (status.kept, status.deleted, status.failure) == (2, 2, "")
    await at(1.5)
    shelf.add(0)
    works.wake()
    await wait_all_tasks_blocked()
    assert shelf.names() == ["s4", "s5"]
    assert works.status().deleted == 1
    shelf.add(0)
    await at(2.2)
    assert len(shelf.kept) == 3, "an hour after the last time"
    await at(2.6)
    assert len(shelf.kept) == 2


async def test_a_policy_that_is_replaced_counts_from_the_next_time_on(autojump_clock: MockClock, shelf: FakeShelf, nursery: trio.Nursery) -> None:
    works = retainer(shelf, Retention())
    nursery.start_soon(works.run)
    await at(1)
    assert len(shelf.kept) == 4
    works.retention = Retention(keep_last=3)
    assert [fate.keep for fate in works.fates_by_rules()] == [False, True, True, True]
    await at(2)
    assert shelf.names() == ["s2", "s3", "s4"]


async def test_a_machine_that_slept_and_a_clock_that_was_set_back(autojump_clock: MockClock, shelf: FakeShelf, nursery: trio.Nursery) -> None:
    works = retainer(shelf)
    nursery.start_soon(works.run)
    await at(0.1)
    shelf.clock.offset_ns += 5 * HOUR_NS
    await trio.sleep(LOOK_S + 1)
    assert len(shelf.kept) == 2, "looked at at the next look"
    shelf.add(0)
    shelf.clock.offset_ns -= 9 * DAY_NS
    await trio.sleep(3600 + LOOK_S + 1)
    assert works.status().last_ns == pytest.approx(shelf.clock.now_ns(), abs=HOUR_NS), "an hour after it was set back"


@pytest.mark.parametrize(("failure", "said"), [(StoreError("no disk"), "tried again: no disk"), (RuntimeError("a fault"), "tried again$")])
async def test_a_failure_is_logged_told_and_made_good(
    autojump_clock: MockClock, shelf: FakeShelf, nursery: trio.Nursery, log_rule: LogRule, failure: Exception, said: str
) -> None:
    log_rule.expect(f"retention has failed and is {said}")
    works = retainer(shelf)
    shelf.failures.append(failure)
    nursery.start_soon(works.run)
    await at(1)
    assert (works.status().failure, works.status().last_ns, len(shelf.kept)) == (str(failure), None, 4)
    assert works.status().next_ns == shelf.clock.now_ns() - 10**9 + RETRY_NS
    await at(1 + RETRY_NS / HOUR_NS)
    assert (works.status().failure, len(shelf.kept)) == ("", 2)


async def test_a_line_of_the_log_has_counts_and_no_names(autojump_clock: MockClock, shelf: FakeShelf, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    await retainer(shelf).apply()
    assert caplog.messages == ["retention: 2 snapshots stay, 2 are deleted"]
