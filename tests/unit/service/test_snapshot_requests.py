"""Snapshots as commands ask for them: how they are named, what is told of them, and that all or none are changed."""

import errno
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from backupfs.errors import FileSystemError, UsageError
from backupfs.rules.policy import Retention
from backupfs.service import snapshot_requests
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.messages import (
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotHoldRequest,
    SnapshotListRequest,
    SnapshotPinRequest,
    SnapshotsChanged,
    SnapshotShowRequest,
    SnapshotUndeleteRequest,
    Stage,
)
from backupfs.service.retaining import Retainer
from backupfs.service.settings import HookCommands
from backupfs.service.snapshot_requests import SnapshotRequests
from backupfs.service.snapshots import SnapshotTaker
from tests.unit.service.shelf import DAY_NS, HOUR_NS, FakeShelf, Wall
from tests.unit.service.test_snapshots import FakeEngine


class FakeReplies:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.told: list[tuple[int, int]] = []
        self.stages: list[Stage] = []

    async def item(self, value: object) -> None:
        self.items.append(value)

    async def progress(self, done: int, total: int, stage: Stage = "") -> None:
        self.told.append((done, total))
        self.stages.append(stage)

    async def gone(self) -> None:
        await trio.sleep_forever()


@pytest.fixture
def shelf(autojump_clock: MockClock) -> FakeShelf:
    """s1 holds a, s2 and s3 share b; a fourth has a name that is the number of another."""
    made = FakeShelf(Wall(autojump_clock.current_time))
    for days, holds in ((3, "ab"), (2, "bc"), (1, "c")):
        made.add(days * DAY_NS, holds=holds)
    made.add(HOUR_NS, "2", "d")
    return made


@pytest.fixture
def answers(shelf: FakeShelf) -> SnapshotRequests:
    hooks = Hooks(HookCommands(), Mounted("/mount", "/repository", "id"), {})
    taker = SnapshotTaker(FakeEngine(), lambda _path, _ino: None, hooks)
    retainer = Retainer(shelf, shelf.upkeep, shelf.clock, Retention(keep_last=2))
    return SnapshotRequests(shelf, shelf.upkeep, taker, retainer, shelf.clock)


async def listed(answers: SnapshotRequests, **options: bool) -> list[Any]:
    replies = FakeReplies()
    assert await answers.tell_all(SnapshotListRequest(**options), replies) == {"count": len(replies.items)}
    return replies.items


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["s3"], ["s3"]),
        (["3", "1"], ["s3", "s1"]),
        (["2"], ["2"]),
        (["latest", "latest~0", "2", "4"], ["2"]),
        (["latest~2"], ["s2"]),
    ],
)
async def test_a_name_a_number_or_counted_back(autojump_clock: MockClock, answers: SnapshotRequests, words: list[str], meant: list[str]) -> None:
    assert await answers.change(SnapshotPinRequest(words, pinned=True)) == SnapshotsChanged(meant)


@pytest.mark.parametrize("word", ["nosuch", "9", "latest~4", "-1h", "yesterday", "", "2026-10-04"])
async def test_one_wrong_name_and_nothing_is_done(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf, word: str) -> None:
    before = list(shelf.kept)
    with pytest.raises(UsageError, match=f"there is no snapshot {word}; nothing was deleted"):
        await answers.delete(SnapshotDeleteRequest(names=["s1", word]), FakeReplies())
    for request in (
        SnapshotPinRequest(["s1", word], pinned=True),
        SnapshotHoldRequest(["s1", word], shelf.clock.now_ns() + DAY_NS),
    ):
        with pytest.raises(UsageError, match=f"there is no snapshot {word}; nothing was changed"):
            await answers.change(request)
    with pytest.raises(UsageError, match=f"there is no deleted snapshot {word}; nothing was brought back.*list --deleted"):
        await answers.change(SnapshotUndeleteRequest([word]))
    with pytest.raises(UsageError, match="nothing was shown"):
        await answers.show(SnapshotShowRequest(word))
    assert (shelf.kept, shelf.deleted) == (before, [])


# --- what is told -----------------------------------------------------------------------------------------------------


async def test_each_with_what_deleting_it_alone_frees(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    assert [(told.name, told.frees_bytes, told.undelete_until_ns) for told in await listed(answers, sizes=True)] == [
        ("s1", 1, None),
        ("s2", 0, None),
        ("s3", 0, None),
        ("2", 8, None),
    ]
    shelf.asked.clear()
    assert [told.frees_bytes for told in await listed(answers)] == [None] * 4
    assert shelf.asked == []
    plain = msgspec.to_builtins((await listed(answers))[0])
    assert msgspec.to_builtins(shelf.kept[0]).items() <= plain.items()


async def test_deleted_ones_and_until_when_they_can_be_brought_back(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    await answers.delete(SnapshotDeleteRequest(names=["s1", "s2"]), FakeReplies())
    until_ns = shelf.clock.now_ns() + HOUR_NS
    assert [(told.name, told.frees_bytes, told.undelete_until_ns) for told in await listed(answers, deleted=True, sizes=True)] == [
        ("s1", 3, until_ns),  # what would stay if this one were brought back
        ("s2", 2, until_ns),
    ]
    assert [info.name for info in await listed(answers)] == ["s3", "2"]
    shelf.deleted[0] = msgspec.structs.replace(shelf.deleted[0], state="purging")
    assert [(told.name, told.is_purging, told.until_ns) for told in answers.deleted()] == [("s1", True, None), ("s2", False, until_ns)]


async def test_reckoning_tells_how_far_it_is(autojump_clock: MockClock, answers: SnapshotRequests, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_requests, "PROGRESS_S", 0)
    replies = FakeReplies()
    await answers.tell_all(SnapshotListRequest(sizes=True), replies)
    assert replies.told == [(1, 4), (2, 4), (3, 4), (4, 4)]


async def test_one_with_its_fate(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    told = await answers.show(SnapshotShowRequest("1"))
    assert (told.snapshot.name, told.snapshot.frees_bytes) == ("s1", 1)
    assert told.fate is not None
    assert (told.fate.keep, told.fate.reasons) == (False, ["no rule keeps it"])
    latest = (await answers.show(SnapshotShowRequest("latest"))).fate
    assert latest is not None
    assert (latest.name, latest.keep, latest.reasons) == ("2", True, ["newest", "last 1 of 2"])
    await answers.delete(SnapshotDeleteRequest("2"), FakeReplies())
    gone = await answers.show(SnapshotShowRequest("2"))
    assert (gone.snapshot.state, gone.fate) == ("deleted", None)
    assert (await answers.show(SnapshotShowRequest("latest"))).snapshot.name == "s3"


# --- changes ----------------------------------------------------------------------------------------------------------


async def test_deleting_tells_what_that_frees_together_and_a_dry_run_deletes_nothing(
    autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf
) -> None:
    wanted = SnapshotsChanged(["s1", "s2"], 1 + 2, shelf.clock.now_ns() + HOUR_NS)
    assert await answers.delete(SnapshotDeleteRequest(names=["s1", "s2"], dry_run=True), FakeReplies()) == wanted
    assert len(shelf.kept) == 4
    assert await answers.delete(SnapshotDeleteRequest(names=["s1", "s2", "1"]), FakeReplies()) == wanted
    assert shelf.names() == ["s3", "2"]


@pytest.mark.parametrize("dry_run", [True, False])
async def test_a_pinned_one_keeps_all_from_being_deleted(
    autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf, dry_run: bool
) -> None:
    await answers.change(SnapshotPinRequest(["s2"], pinned=True))
    with pytest.raises(UsageError, match="s2 is pinned"):
        await answers.delete(SnapshotDeleteRequest(names=["s1", "s2"], dry_run=dry_run), FakeReplies())
    assert len(shelf.kept) == 4
    await answers.change(SnapshotPinRequest(["s2"], pinned=False))
    await answers.delete(SnapshotDeleteRequest(names=["s1", "s2"], dry_run=dry_run), FakeReplies())


async def test_what_comes_back_comes_with_the_fate_that_awaits_it(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    await answers.delete(SnapshotDeleteRequest(names=["s1", "2"]), FakeReplies())
    told = await answers.change(SnapshotUndeleteRequest(["1", "2"]))
    assert isinstance(told, SnapshotsChanged)
    assert told.names == ["s1", "2"]
    assert {fate.name: fate.keep for fate in told.fates} == {"s1": False, "2": True}
    assert shelf.names() == ["s1", "s2", "s3", "2"]


async def test_holds(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    until_ns = shelf.clock.now_ns() + DAY_NS
    assert await answers.change(SnapshotHoldRequest(["s1"], until_ns)) == SnapshotsChanged(["s1"])
    assert shelf.kept[0].hold_until_ns == until_ns
    for past_ns in (shelf.clock.now_ns(), -1):
        with pytest.raises(UsageError, match=r"has passed; nothing was changed.*--release"):
            await answers.change(SnapshotHoldRequest(["s1"], past_ns))
    assert shelf.kept[0].hold_until_ns == until_ns
    await answers.change(SnapshotHoldRequest(["s1"], 0))
    assert shelf.kept[0].hold_until_ns is None


async def test_a_name_is_never_used_again(autojump_clock: MockClock, answers: SnapshotRequests, shelf: FakeShelf) -> None:
    made = await answers.change(SnapshotCreateRequest("m", ["t"], "new"))
    assert (getattr(made, "name", ""), getattr(made, "why", "")) == ("new", "manual")
    with pytest.raises(UsageError, match=r"has been, a snapshot 'new'.*choose another"):
        await answers.change(SnapshotCreateRequest(name="new"))
    with pytest.raises(UsageError, match="mean something else"):
        await answers.change(SnapshotCreateRequest(name="latest"))


async def test_another_answer_of_the_file_system_stays_what_it_is(
    autojump_clock: MockClock, answers: SnapshotRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise FileSystemError(errno.ENOSPC)

    monkeypatch.setattr(FakeEngine, "create_snapshot", full)
    with pytest.raises(FileSystemError):
        await answers.change(SnapshotCreateRequest())
