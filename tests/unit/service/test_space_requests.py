"""Space as commands ask for it: what is told of it, what retention does when asked, and collection with its progress."""

import pytest
import trio
from msgspec.structs import asdict, replace
from trio.testing import MockClock

from backupfs.engine.attributes import Stats, Usage
from backupfs.errors import BackupfsError, StoreError
from backupfs.rules.policy import Retention
from backupfs.service.messages import CollectRequest, PruneRequest
from backupfs.service.retaining import Retainer
from backupfs.service.space_requests import SpaceRequests
from tests.unit.service.shelf import DAY_NS, FakeShelf, Wall
from tests.unit.service.test_snapshot_requests import FakeReplies


@pytest.fixture
def shelf(autojump_clock: MockClock) -> FakeShelf:
    made = FakeShelf(Wall(autojump_clock.current_time), used=Usage(1000, 200, 30, 4, 50_000, 600_000))
    for days, holds in ((3, "ab"), (2, "bc"), (1, "d")):
        made.add(days * DAY_NS, holds=holds)
    return made


@pytest.fixture
def answers(shelf: FakeShelf) -> SpaceRequests:
    return SpaceRequests(shelf, shelf.upkeep, Retainer(shelf, shelf.upkeep, shelf.clock, Retention(keep_last=1)))


async def test_where_the_space_goes(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    await shelf.delete_snapshots(["s1", "s2"])
    shelf.upkeep.dead_bytes = 7
    told = await answers.stats(FakeReplies())
    assert asdict(shelf.used).items() <= asdict(told.space).items()
    assert told.space.used_bytes == 1234, "without the reserve and what was set aside"
    assert (told.space.held_bytes, told.space.dead_bytes, told.space.collectable_bytes) == (70, 7, 7)
    assert (told.space.deleted, told.space.deleted_bytes) == (2, 1 + 2 + 4)
    assert asdict(shelf.stats()).items() <= asdict(told).items()
    assert set(Stats.__struct_fields__) < set(type(told).__struct_fields__)


async def test_what_a_forecast_begins_with(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    await shelf.delete_snapshots(["s1"])  # a alone is its own
    shelf.upkeep.dead_bytes = 7
    shelf.live |= {"c"}
    shelf.free_bytes = 500
    told = await answers.outlook(FakeReplies())
    assert (told.held_bytes, told.live_bytes) == (2 + 8, 1234 - 1 - 7 - 2 - 8), "b was held by both, and is held by one that is kept"
    assert (told.free_bytes, told.total_bytes) == (500 + 1 + 7, 1000)
    shelf.used = Usage(3, 0, 0, 0, 0, 0)
    assert (await answers.outlook(FakeReplies())).live_bytes == 0, "what is measured may lag behind"
    shelf.kept.clear()
    assert (await answers.outlook(FakeReplies())).held_bytes == 0


async def test_retention_when_asked_and_only_shown(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    shown, done = FakeReplies(), FakeReplies()
    would = await answers.prune(PruneRequest(dry_run=True), shown)
    assert (would.kept, would.deleted, would.frees_bytes, would.dry_run) == (1, 2, 7, True)
    assert shelf.names() == ["s1", "s2", "s3"]
    did = await answers.prune(PruneRequest(), done)
    assert did == replace(would, dry_run=False)
    assert shelf.names() == ["s3"]
    assert shown.items == done.items
    assert [(fate.name, fate.keep) for fate in done.items] == [("s1", False), ("s2", False), ("s3", True)]


@pytest.mark.parametrize("now", [False, True])
async def test_a_dry_collection_says_what_a_real_one_does(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf, now: bool) -> None:
    await shelf.delete_snapshots(["s1", "s2"])
    shelf.upkeep.dead_bytes = 100
    would = await answers.collect(CollectRequest(now=now, dry_run=True), FakeReplies())
    assert (would.dead_bytes, would.packs, would.copied_bytes, would.frees_bytes) == (100, 1, 200, 100)
    assert (would.purged, would.waiting, would.purge_frees_bytes) == ((2, 0, 7) if now else (0, 2, 0))
    assert (would.used_before_bytes, would.used_after_bytes, shelf.upkeep.collected) == (1234, 1234, [])
    did = await answers.collect(CollectRequest(now=now), FakeReplies())
    assert did == replace(would, dry_run=False, used_after_bytes=1134)
    assert shelf.upkeep.collected == [(now, True)]


async def test_a_collection_tells_how_far_it_is(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    async def rewrite() -> None:
        for left in (0, 300, 300, 100, 0):
            shelf.upkeep.waiting_bytes = left
            await trio.sleep(1)

    shelf.upkeep.work = rewrite
    replies = FakeReplies()
    await answers.collect(CollectRequest(), replies)
    assert of(replies) == {"copying": [(0, 300), (200, 300), (300, 300)]}


async def test_purging_tells_how_far_it_is_and_then_copying_does(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    await shelf.delete_snapshots(["s1", "s2"])
    shelf.upkeep.purged_records = 1000  # of before

    async def work() -> None:
        for purged, left in ((1000, 0), (1005, 0), (1020, 0), (1020, 70), (1020, 30), (1020, 0)):
            shelf.upkeep.purged_records, shelf.upkeep.waiting_bytes = purged, left
            await trio.sleep(1)

    shelf.upkeep.work = work
    replies = FakeReplies()
    await answers.collect(CollectRequest(now=True), replies)
    assert of(replies) == {"purging": [(0, 20), (5, 20), (20, 20)], "copying": [(0, 70), (40, 70), (70, 70)]}


async def test_long_looks_tell_how_far_they_are(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    await shelf.delete_snapshots(["s1"])
    shelf.pause_s = 1
    counted, pruned = FakeReplies(), FakeReplies()
    await answers.stats(counted)
    assert of(counted) == {"reckoning": [(10, 10)], "surveying": [(1, 1)]}
    await answers.prune(PruneRequest(), pruned)
    assert of(pruned) == {"reckoning": [(10, 10)]}, "what goes beyond what is deleted already"


def of(replies: FakeReplies) -> dict[str, list[tuple[int, int]]]:
    """What was told of each stage."""
    return {stage: [at for at, its in zip(replies.told, replies.stages, strict=True) if its == stage] for stage in dict.fromkeys(replies.stages)}


async def test_a_collection_that_fails_says_why(autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf) -> None:
    async def fail() -> None:
        raise StoreError("no disk")

    shelf.upkeep.work = fail
    with pytest.raises(StoreError, match="no disk"):
        await answers.collect(CollectRequest(), FakeReplies())
    shelf.upkeep.stopped = True
    with pytest.raises(BackupfsError, match="background work stopped"):
        await answers.collect(CollectRequest(), FakeReplies())
    assert len(shelf.upkeep.collected) == 1
    await answers.collect(CollectRequest(dry_run=True), FakeReplies())


async def test_whoever_asked_may_go_away_meanwhile(
    autojump_clock: MockClock, answers: SpaceRequests, shelf: FakeShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(_self: object, _done: int, _total: int, _stage: str) -> None:
        raise trio.BrokenResourceError

    monkeypatch.setattr(FakeReplies, "progress", gone)
    shelf.upkeep.work = trio.sleep_forever
    shelf.upkeep.waiting_bytes = 5
    with pytest.raises(trio.BrokenResourceError):
        await answers.collect(CollectRequest(), FakeReplies())
