"""Restores as they are asked for: the order of things, what is told, and that the kernel hears of everything that was done."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.restoring import Touched
from backupfs.errors import BackupfsError, StoreError, UsageError
from backupfs.service import restoring
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.messages import RestoreRequest, UndoRequest
from backupfs.service.restoring import Forgetter, Restores
from backupfs.service.settings import HookCommands
from backupfs.service.snapshots import SnapshotTaker
from tests.conftest import LogRule
from tests.unit.service.fake_past import FakeRestorer, step


@dataclass
class Heard:
    """The other end of a connection: `hangs_up` ends it, `failure` is what sending then gives."""

    items: list[Any] = field(default_factory=list)
    told: list[tuple[int, int]] = field(default_factory=list)
    hung_up: trio.Event = field(default_factory=trio.Event)
    failure: Exception | None = None

    async def item(self, value: object) -> None:
        if self.failure is not None:
            raise self.failure
        self.items.append(msgspec.json.decode(msgspec.json.encode(value)))

    async def progress(self, done: int, total: int, stage: str = "") -> None:
        self.told.append((done, total))

    async def gone(self) -> None:
        await self.hung_up.wait()

    def lines(self) -> list[tuple[str, str, str, str | None]]:
        return [(item["stage"], item["action"], item["path"], item["option"] or item["trouble"]) for item in self.items]


class FakeEngine:
    """Cuts and commits."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.messages: list[str] = []

    def writable_paths(self) -> Sequence[tuple[int, bytes | None]]:
        return []

    def written_at(self, ino: int) -> float:
        return 0.0

    def check_name(self, name: str) -> None:
        raise AssertionError("restores give no names")

    async def create_snapshot(
        self, why: str, message: str = "", tags: Sequence[str] = (), name: str = "", before_restore: bytes = b""
    ) -> SnapshotInfo:
        self.events.append(f"snapshot {why} {before_restore.decode()}")
        self.messages.append(message)
        return SnapshotInfo(9, "safety", 0, why, message, list(tags), 0, "kept")

    async def commit(self) -> None:
        self.events.append("settle")


class House:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.forgotten: list[bytes] = []
        self.inodes: list[int] = []
        self.engine = FakeEngine(self.events)
        self.restorer = FakeRestorer(self.events)
        taker = SnapshotTaker(self.engine, lambda path, ino: None, Hooks(HookCommands(), Mounted("", "", ""), {}))
        self.restores = Restores(self.restorer, taker, Forgetter(self.forget))

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.events.append("forget")
        self.forgotten += [name for _, name in names]
        self.inodes += inodes


@pytest.fixture
def house() -> House:
    return House()


async def test_a_plan_is_told_and_nothing_done_when_it_is_only_to_be_shown(house: House) -> None:
    house.restorer.steps = [step("remove", b"new\xff"), step("add", b"gone")]
    house.restorer.skipped = [step("replace", b"changed"), step("attributes", b"d"), step("remove", b"other")]
    heard = Heard()
    told = await house.restores.restore(RestoreRequest(b"p", 3, None, overwrite=True, delete=False, dry_run=True), heard)
    assert msgspec.to_builtins(told) == {"target": "p", "steps": 2, "done": 0, "skipped": 3, "failed": 0, "before": None, "held": 0}
    assert house.restorer.asked == [(3, b"p", None, True, False)]
    assert heard.lines() == [
        ("planned", "remove", "new\\udcff", None),
        ("planned", "add", "gone", None),
        ("skipped", "replace", "changed", "--overwrite"),
        ("skipped", "attributes", "d", "--overwrite"),
        ("skipped", "remove", "other", "--delete"),
    ]
    assert house.events == ["settle", "plan"]


async def test_where_nothing_is_to_be_done_no_snapshot_is_taken(house: House) -> None:
    told = await house.restores.restore(RestoreRequest(b"p", 3), Heard())
    assert (told.steps, told.before) == (0, None)
    assert house.events == ["settle", "plan"]


async def test_a_snapshot_comes_first_and_the_kernel_hears_of_everything(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring, "FORGET_NAMES", 2)
    monkeypatch.setattr(restoring, "PROGRESS_S", 0)
    house.restorer.steps = [step("add", b"%d" % number) for number in range(5)]
    house.restorer.troubles = {b"3": "No space left on device"}
    heard = Heard()
    told = await house.restores.restore(RestoreRequest(b"p", 3, b"q"), heard)
    assert (told.target, told.steps, told.done, told.failed, told.before, told.held) == ("q", 5, 4, 1, "safety", 0)
    done = [event for event in house.events if event != "forget"]
    assert done == ["settle", "plan", "snapshot restore q", "add 0", "add 1", "add 2", "add 3", "add 4", "settle"]
    assert house.events.index("forget") < house.events.index("add 2"), "while it goes on"
    assert (sorted(house.forgotten), sorted(house.inodes)) == ([b"0", b"1", b"2", b"3", b"4"], [0, 1, 2, 3, 4])
    assert heard.lines()[5:] == [("failed", "add", "3", "No space left on device")]
    assert heard.told == [(number, 5) for number in range(1, 6)]
    assert house.engine.messages == ["before a restore of q"]


async def test_the_whole_tree_and_its_undo(house: House) -> None:
    house.restorer.steps = [step("replace", b"f")]
    await house.restores.restore(RestoreRequest(b"", 3), Heard())
    await house.restores.restore(UndoRequest(), Heard())
    assert [event for event in house.events if event.startswith(("plan", "snapshot"))] == [
        "plan",
        "snapshot restore /",
        "plan undo",
        "snapshot restore /",
    ]
    assert house.engine.messages == ["before a restore of everything", "before the undo of a restore of everything"]
    house.restorer.nothing_to_undo = True
    with pytest.raises(UsageError, match="nothing has been restored"):
        await house.restores.restore(UndoRequest(dry_run=True), Heard())


async def test_what_the_snapshot_does_not_have(house: House) -> None:
    with pytest.raises(UsageError, match="'never' is not in that snapshot; `backupfs versions`"):
        await house.restores.restore(RestoreRequest(b"never", 3), Heard())
    with pytest.raises(UsageError, match="'never' is not in that snapshot, or there is no directory for 'x/y'"):
        await house.restores.restore(RestoreRequest(b"never", 3, b"x/y"), Heard())


@pytest.mark.parametrize("how", ["hangs up", "does not listen", "is slow"])
async def test_whoever_goes_away_ends_it_and_the_kernel_hears_of_what_was_done(house: House, nursery: trio.Nursery, how: str) -> None:
    house.restorer.steps = [step("add", b"0"), step("add", b"1"), step("add", b"2")]
    heard = Heard()
    if how == "hangs up":
        house.restorer.wait_at = b"2"

        async def hang_up() -> None:
            await house.restorer.waiting.wait()
            heard.hung_up.set()

        nursery.start_soon(hang_up)
    else:
        house.restorer.troubles = {b"1": "trouble"}

        async def stop_listening() -> None:
            while "snapshot restore p" not in house.events:
                await trio.lowlevel.checkpoint()
            heard.failure = trio.BrokenResourceError() if how == "does not listen" else trio.TooSlowError()

        nursery.start_soon(stop_listening)
    with pytest.raises(BackupfsError, match="given up"):
        await house.restores.restore(RestoreRequest(b"p", 3), heard)
    assert house.restorer.under_way == 0
    assert sorted(house.forgotten) == [b"0", b"1"]


async def test_what_stops_the_engine_goes_to_whoever_asked_and_the_kernel_hears_of_what_was_done(house: House) -> None:
    house.restorer.steps = [step("add", b"0"), step("add", b"1")]
    house.restorer.fail_at = {b"1": StoreError("the store is gone")}
    with pytest.RaisesGroup(StoreError):
        await house.restores.restore(RestoreRequest(b"p", 3), Heard())
    assert house.forgotten == [b"0"]


async def test_one_at_a_time(house: House) -> None:
    house.restorer.steps = [step("add", b"0"), step("add", b"1")]
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(house.restores.restore, RestoreRequest(b"p", 3), Heard())
    whole = [event for event in house.events if event != "forget"]
    assert whole == ["settle", "plan", "snapshot restore p", "add 0", "add 1", "settle"] * 3


# --- what somebody holds in the kernel ---------------------------------------------------------------------------------


class Kernel:
    """Directory 1 is held until it is let go of."""

    def __init__(self) -> None:
        self.free = threading.Event()
        self.told: list[tuple[int, bytes]] = []
        self.all_told = threading.Event()
        self.expected = 0
        self._lock = threading.Lock()

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        for parent, name in names:
            if parent == 1:
                self.free.wait()
            with self._lock:
                self.told.append((parent, name))
                if len(self.told) == self.expected:
                    self.all_told.set()

    async def tells(self, expected: int) -> None:
        self.expected = expected
        if len(self.told) < expected:
            await trio.to_thread.run_sync(self.all_told.wait)


async def test_a_held_directory_holds_nobody_up_for_long_and_is_told_in_the_end(log_rule: LogRule, autojump_clock: object) -> None:
    log_rule.expect("directory 1 is held in the kernel by another process")
    log_rule.allow("directory [23] is held")  # the clock jumps while their threads work
    kernel = Kernel()
    kernel.expected = 4
    forgetter = Forgetter(kernel.forget)
    try:
        await forgetter.forget(Touched([(1, b"a"), (1, b"b"), (2, b"c")], {5}))
        await forgetter.forget(Touched([(1, b"d")], set()))
        assert forgetter.held() >= 3
    finally:
        kernel.free.set()
    await kernel.tells(4)
    assert sorted(kernel.told) == [(1, b"a"), (1, b"b"), (1, b"d"), (2, b"c")]
    while forgetter.held():
        await trio.lowlevel.checkpoint()
    kernel.all_told.clear()
    await forgetter.forget(Touched([(1, b"e")], set()))
    await kernel.tells(5)


async def test_what_was_not_begun_in_time_is_told_with_the_next(
    log_rule: LogRule, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_rule.allow("is held")
    monkeypatch.setattr(restoring, "FORGET_THREADS", 1)
    kernel = Kernel()
    forgetter = Forgetter(kernel.forget)
    try:
        with trio.move_on_after(1):
            await forgetter.forget(Touched([(1, b"a"), (2, b"b")], set()))
        assert kernel.told == []
        kernel.expected = 1
        await forgetter.forget(Touched())
        await kernel.tells(1)
        assert kernel.told == [(2, b"b")]
    finally:
        kernel.free.set()
    await kernel.tells(2)


async def test_what_was_cancelled_before_it_was_begun_is_told_with_the_next() -> None:
    kernel = Kernel()
    forgetter = Forgetter(kernel.forget)
    with trio.CancelScope() as scope:
        scope.cancel()
        await forgetter.forget(Touched([(2, b"a"), (3, b"b")], set()))
    assert scope.cancelled_caught
    await forgetter.forget(Touched())
    assert sorted(kernel.told) == [(2, b"a"), (3, b"b")]
    assert forgetter.held() == 0


async def test_a_refusal_is_logged(log_rule: LogRule) -> None:
    log_rule.expect("the kernel refuses to forget what was restored: Operation not permitted")

    def refuse(names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        raise PermissionError(1, "Operation not permitted")

    forgetter = Forgetter(refuse)
    await forgetter.forget(Touched([(1, b"a")], {1}))
    assert forgetter.held() == 0
