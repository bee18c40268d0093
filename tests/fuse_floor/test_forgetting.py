"""What has changed without a request of its own: until it is told, the kernel goes on showing what it knows; then it asks again."""

import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyfuse3
import pytest
import trio

from backupfs.fuse.forgetting import Forgetting
from tests.conftest import LogRule
from tests.fuse_floor.fake import FakeFileSystem
from tests.fuse_floor.floor import Floor, serving


async def forget(floor: Floor, *names: bytes, inodes: Sequence[int] = ()) -> None:
    await floor.do(floor.mount.forget, [(1, name) for name in names], inodes)


async def test_a_name_that_was_missing_is_there(floor: Floor) -> None:
    path = floor.directory / "f"
    assert not await floor.do(os.path.lexists, path)
    root = floor.fs.nodes[1]
    root.children[b"f"] = floor.fs._add(0o100644, os.getuid(), os.getgid())
    assert not await floor.do(os.path.lexists, path), "the kernel remembers"
    await forget(floor, b"f")
    assert await floor.do(os.path.lexists, path)


async def test_a_name_leads_elsewhere_and_who_has_the_old_one_open_keeps_it(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(path.write_bytes, b"old")
    opened = await floor.do(os.open, path, os.O_RDWR)
    new = floor.fs._add(0o100644, os.getuid(), os.getgid())
    floor.fs.nodes[new].data.extend(b"restored")
    floor.fs.nodes[new].attributes.size = 8
    root = floor.fs.nodes[1]
    old = root.children[b"f"]
    root.children[b"f"] = new
    floor.fs.nodes[old].attributes.nlink = 0
    assert (await floor.do(os.stat, path)).st_ino == old, "the kernel remembers"
    await forget(floor, b"f", inodes=[old])
    assert (await floor.do(os.stat, path)).st_ino == new
    assert await floor.do(path.read_bytes) == b"restored"
    assert await floor.do(os.pread, opened, 10, 0) == b"old"
    assert await floor.do(os.pwrite, opened, b"OLD", 0) == 3
    assert (await floor.do(os.fstat, opened)).st_nlink == 0
    await floor.do(os.close, opened)
    assert await floor.do(path.read_bytes) == b"restored"
    await floor.until(lambda: old not in floor.fs.nodes)


async def test_a_directory_that_went_with_all_in_it(floor: Floor) -> None:
    await floor.do(os.makedirs, floor.directory / "d" / "e")
    await floor.do((floor.directory / "d" / "e" / "f").write_bytes, b"x")
    root = floor.fs.nodes[1]
    ino = root.children.pop(b"d")
    floor.fs.nodes[ino].attributes.nlink = 0
    assert await floor.do(os.path.lexists, floor.directory / "d" / "e" / "f"), "the kernel remembers"
    await forget(floor, b"d", inodes=[ino])
    assert not await floor.do(os.path.lexists, floor.directory / "d")
    await floor.until(lambda: ino not in floor.fs.nodes)


async def test_attributes_of_a_directory(floor: Floor) -> None:
    path = floor.directory / "d"
    await floor.do(os.mkdir, path)
    ino = floor.fs.nodes[1].children[b"d"]
    attributes = floor.fs.nodes[ino].attributes
    attributes.mode = 0o40711
    attributes.mtime_ns = 5
    assert (await floor.do(os.stat, path)).st_mtime_ns != 5, "the kernel remembers"
    await forget(floor, inodes=[ino])
    facts = await floor.do(os.stat, path)
    assert (facts.st_mode, facts.st_mtime_ns) == (0o40711, 5)


async def test_what_the_kernel_does_not_know_is_passed_over(floor: Floor) -> None:
    await floor.do(floor.mount.forget, [(1, b"never asked for"), (1 << 39, b"x")], [1 << 39])


async def test_a_directory_that_is_in_use_holds_up_only_the_thread_that_asks(base: Path) -> None:
    """Whoever makes something in it holds its lock until that is answered; the loop serves others, and that answer, meanwhile."""

    class Slow(FakeFileSystem):
        async def mkdir(self, *args: object) -> object:  # type: ignore[override]
            begun.set()
            await may_end.wait()
            return await super().mkdir(*args)  # type: ignore[arg-type]

    begun, may_end = trio.Event(), trio.Event()
    async with serving(base / "mnt", fs=Slow(os.geteuid(), os.getegid())) as floor:
        await floor.do((floor.directory / "f").write_bytes, b"x")
        done: list[str] = []

        async def make() -> None:
            await floor.do(os.mkdir, floor.directory / "d")
            done.append("made")

        async def tell() -> None:
            await forget(floor, b"f")
            done.append("told")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await begun.wait()
            nursery.start_soon(tell)
            for _ in range(20):
                assert (await floor.do(os.statvfs, floor.directory)).f_bsize
            assert done == []
            may_end.set()
        assert sorted(done) == ["made", "told"]


async def test_before_and_after_the_session_nothing_is_asked(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(base / "mnt") as floor:
        pass

    def refused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(pyfuse3, "invalidate_entry", refused)
    floor.mount.forget([(1, b"f")], [])


def test_the_end_knows_of_threads_that_are_still_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_end = threading.Event(), threading.Event()

    def ask(parent: int, name: bytes) -> None:
        asked.set()
        may_end.wait()

    monkeypatch.setattr(pyfuse3, "invalidate_entry", ask)
    forgetting = Forgetting()
    thread = threading.Thread(target=forgetting.forget, args=([(1, b"a"), (1, b"b")], []))
    thread.start()
    asked.wait()
    assert not forgetting.end()
    asked.clear()
    may_end.set()
    thread.join()
    assert not asked.is_set(), "nothing is asked after the end"
    assert forgetting.end()


async def test_a_session_is_left_to_the_process_when_a_thread_is_held(base: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    log_rule.expect("the session ends with this process only")
    closed: list[bool] = []
    close = pyfuse3.close
    monkeypatch.setattr(pyfuse3, "close", partial(_note, closed))
    monkeypatch.setattr(Forgetting, "end", lambda _: False)
    async with serving(base / "mnt") as floor:
        assert await floor.do(os.listdir, floor.directory) == []
    assert closed == []
    close(unmount=False)


def _note(closed: list[bool], unmount: bool) -> None:
    closed.append(unmount)
