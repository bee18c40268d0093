"""Before the cut every file open for writing is brought in, whatever happens to it meanwhile."""

import errno
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import FileSystemError, StoreError, UsageError
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.settings import HookCommands
from backupfs.service.snapshots import PATIENCE_S, ROUNDS, WRITE_BACK_THREADS, SnapshotTaker
from tests.conftest import LogRule

NO_HOOKS = HookCommands()


class FakeEngine:
    """Notes what had been written back when it was asked to cut or commit."""

    def __init__(self) -> None:
        self.paths: dict[int, bytes | None] = {}
        self.written: list[bytes] = []
        self.events: list[tuple[str, list[bytes]]] = []
        self.cutting = 0
        self.flowing: set[int] = set()
        self.had_names: set[str] = set()
        self.failure: Exception | None = None

    def written_at(self, ino: int) -> float:
        return trio.current_time() if ino in self.flowing else 0.0

    def writable_paths(self) -> Sequence[tuple[int, bytes | None]]:
        return list(self.paths.items())

    def check_name(self, name: str) -> None:
        if name == "latest":
            raise UsageError("'latest': other things mean something else")
        if name in self.had_names:
            raise FileSystemError(errno.EEXIST)

    async def create_snapshot(
        self, why: str, message: str = "", tags: Sequence[str] = (), name: str = "", before_restore: bytes = b""
    ) -> SnapshotInfo:
        self.cutting += 1
        assert self.cutting == 1, "two at a time"
        await trio.lowlevel.checkpoint()
        self.cutting -= 1
        if self.failure is not None:
            raise self.failure
        self.events.append((why, sorted(self.written)))
        self.had_names.add(name)
        return SnapshotInfo(len(self.events), name or f"s{len(self.events)}", 0, why, message, list(tags), 0, "kept")

    async def commit(self) -> None:
        self.events.append(("commit", sorted(self.written)))


def taker(engine: FakeEngine, write_back: Callable[[bytes | None, int], None] | None = None, commands: HookCommands = NO_HOOKS) -> SnapshotTaker:
    hooks = Hooks(commands, Mounted("/mount", "/repository", "id"), {})
    return SnapshotTaker(engine, write_back or (lambda path, _: engine.written.append(path or b"(no name)")), hooks)


async def test_all_files_are_brought_in_first() -> None:
    engine = FakeEngine()
    engine.paths = {1: b"a", 2: None, 3: b"d/\xff\n"}
    made = await taker(engine).take("manual", "why", ["t"])
    assert (made.why, made.message, made.tags) == ("manual", "why", ["t"])
    assert engine.events == [("manual", [b"(no name)", b"a", b"d/\xff\n"])]


async def test_a_name_that_will_not_do_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    engine = FakeEngine()
    engine.paths = {1: b"a"}
    diary = tmp_path / "diary"
    works = taker(engine, commands=HookCommands(before_snapshot=("touch", str(diary))))
    with pytest.raises(UsageError, match=r"'latest': .* mean something else"):
        await works.take("manual", name="latest")
    assert (engine.events, engine.written, diary.exists()) == ([], [], False)
    assert (await works.take("manual", name="before the flood")).name == "before the flood"
    assert diary.exists()


async def test_a_snapshot_is_told_of_when_it_stands_and_before_the_hook_after_it(tmp_path: Path) -> None:
    engine = FakeEngine()
    diary = tmp_path / "diary"
    works = taker(engine, commands=HookCommands(after_snapshot=("touch", str(diary))))
    told: list[tuple[object, bool]] = []
    made = await works.take("mkdir", on_cut=lambda cut: told.append((cut, diary.exists())))
    assert told == [(made, False)]
    assert diary.exists()
    diary.unlink()
    engine.failure = StoreError("no disk")
    with pytest.raises(StoreError):
        await works.take("mkdir", on_cut=lambda cut: told.append((cut, diary.exists())))
    assert told[1:] == [(engine.failure, False)]
    assert diary.exists()


async def test_settling_brings_in_and_commits() -> None:
    engine = FakeEngine()
    engine.paths = {1: b"a"}
    await taker(engine).settle()
    assert engine.events == [("commit", [b"a"])]


async def test_a_file_renamed_meanwhile_is_found_under_its_new_name_and_a_removed_one_is_let_go() -> None:
    engine = FakeEngine()
    engine.paths = {1: b"old", 2: b"removed", 3: b"unlinked"}

    def write_back(path: bytes | None, ino: int) -> None:
        if path == b"old":
            engine.paths[1] = b"new"
        if path == b"removed":
            del engine.paths[2]
        if path == b"unlinked":
            engine.paths[3] = None
        if path not in (b"new", None):
            raise FileNotFoundError(path)
        engine.written.append(path or b"(no name)")

    await taker(engine, write_back).take("manual")
    assert engine.events == [("manual", [b"(no name)", b"new"])]


async def test_a_file_that_is_never_found_under_its_path_is_brought_in_by_its_number() -> None:
    engine = FakeEngine()
    engine.paths = {1: b"a"}
    tries: list[bytes | None] = []

    def write_back(path: bytes | None, ino: int) -> None:
        tries.append(path)
        if path is not None:
            raise NotADirectoryError(path)

    await taker(engine, write_back).take("manual")
    assert tries == [b"a"] * ROUNDS + [None]
    assert len(engine.events) == 1


async def test_a_file_that_is_held_in_the_kernel_holds_a_snapshot_up_for_a_while_only(log_rule: LogRule, mock_clock: MockClock) -> None:
    """As when somebody writes from a page of a file system that does not answer. It is not begun once more while it is held."""
    log_rule.expect("not brought in within")
    log_rule.expect("still held")
    engine = FakeEngine()
    engine.paths = {1: b"held", 2: b"b"}
    engine.flowing = {2}
    release = threading.Event()
    tries: list[int] = []

    def write_back(path: bytes | None, ino: int) -> None:
        tries.append(ino)
        if ino == 1:
            release.wait()
        engine.written.append(path or b"(no name)")

    snapshots = taker(engine, write_back)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshots.take, "manual")
            while 1 not in tries or engine.written != [b"b"]:  # by threads, which the clock does not wait for
                await wait_all_tasks_blocked(0.001)
            mock_clock.jump(PATIENCE_S + 1)
        assert engine.events == [("manual", [b"b"])]
        await snapshots.settle()
        assert sorted(tries) == [1, 2, 2]
    finally:
        release.set()


async def test_a_file_that_cannot_be_written_back_is_logged_without_its_name(log_rule: LogRule) -> None:
    log_rule.expect("could not be written back before the cut: Permission denied$")
    engine = FakeEngine()
    engine.paths = {1: b"secret-name", 2: b"b"}

    def write_back(path: bytes | None, ino: int) -> None:
        if path != b"b":
            raise PermissionError(13, "Permission denied", path)
        engine.written.append(path or b"(no name)")

    await taker(engine, write_back).take("manual")
    assert engine.events == [("manual", [b"b"])]


async def test_files_are_brought_in_side_by_side_and_not_all_at_once() -> None:
    engine = FakeEngine()
    engine.paths = {ino: b"%d" % ino for ino in range(5 * WRITE_BACK_THREADS)}
    together = threading.Barrier(WRITE_BACK_THREADS)
    inside = threading.Semaphore(WRITE_BACK_THREADS)

    def write_back(path: bytes | None, ino: int) -> None:
        assert inside.acquire(blocking=False)
        together.wait()
        inside.release()
        together.wait()
        engine.written.append(path or b"(no name)")

    await taker(engine, write_back).take("manual")
    assert len(engine.written) == 5 * WRITE_BACK_THREADS


async def test_one_at_a_time() -> None:
    engine = FakeEngine()
    snapshots = taker(engine)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(snapshots.take, "manual")
            nursery.start_soon(snapshots.settle)
    assert len(engine.events) == 20


async def test_a_cancelled_pass_does_not_wait_for_a_file_that_nobody_serves_any_more() -> None:
    engine = FakeEngine()
    engine.paths = {1: b"a"}
    started, release = threading.Event(), threading.Event()

    def write_back(path: bytes | None, ino: int) -> None:
        started.set()
        release.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker(engine, write_back).take, "manual")
        await trio.to_thread.run_sync(started.wait)
        nursery.cancel_scope.cancel()
    release.set()
    assert engine.events == []
