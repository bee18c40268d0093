"""Dirty pages of open and mapped files come in when they are asked for, while the loop serves."""

import os
from pathlib import Path

import pytest
import trio

from backupfs.fuse import write_back
from tests.fuse_floor.floor import Floor
from tests.fuse_floor.processes import FOR_EVERYBODY, NOBODY, Process, mapper, server, started

PAGE = 4096
FIRST = b"\0" * PAGE + b"dirty" + b"\0" * (2 * PAGE - 5)
SECOND = b"again" + FIRST[5:]


async def dirty(floor: Floor, process: Process, ino: int, path: bytes | None) -> None:
    """Both writes of a mapper are in the kernel only, until they are asked for."""
    node = floor.fs.nodes[ino]
    assert bytes(node.data) != FIRST
    await floor.do(floor.mount.write_back, path, ino)
    assert bytes(node.data) == FIRST
    assert await floor.do(process.ask, "again") == "again"
    assert bytes(node.data) == FIRST
    await floor.do(floor.mount.write_back, path, ino)
    assert bytes(node.data) == SECOND


async def test_mapped_pages_come_in_by_path(floor: Floor) -> None:
    deep = b"/".join(b"d%d" % number for number in range(200))
    await floor.do(os.makedirs, os.fsencode(floor.directory) + b"/" + deep)
    path = floor.directory / os.fsdecode(deep) / "mapped"
    with started(*mapper(path)) as process:
        assert await floor.do(process.told) == "dirty"
        await dirty(floor, process, floor.fs.node(deep + b"/mapped").attributes.ino, deep + b"/mapped")
        assert await floor.do(process.end) == 0


async def test_mapped_pages_come_in_without_a_path(floor: Floor) -> None:
    path = floor.directory / "mapped"
    with started(*mapper(path)) as process:
        assert await floor.do(process.told) == "dirty"
        ino = floor.fs.node(b"mapped").attributes.ino
        await floor.do(os.unlink, path)
        await dirty(floor, process, ino, None)
        assert await floor.do(process.end) == 0


async def test_mapped_pages_come_in_where_opening_is_refused(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(mountpoint: Path, path: bytes, ino: int) -> None:
        raise PermissionError

    monkeypatch.setattr(write_back, "_sync", refused)
    with started(*mapper(floor.directory / "mapped")) as process:
        assert await floor.do(process.told) == "dirty"
        await dirty(floor, process, floor.fs.node(b"mapped").attributes.ino, b"mapped")
        assert await floor.do(process.end) == 0


@pytest.mark.root
@pytest.mark.skipif(not FOR_EVERYBODY, reason="ordinary users may not open /dev/fuse here")
@pytest.mark.parametrize("mode", [0o644, 0o000])
def test_an_ordinary_users_files_come_in(base: Path, mode: int) -> None:
    directory = base / "mnt"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    with (
        server(directory, "--user", str(NOBODY)) as fake,
        started(*mapper(directory / "mapped", mode, NOBODY)) as user,
    ):
        assert user.told() == "dirty"
        ino = 2
        assert fake.ask("data mapped") != FIRST.hex()
        assert fake.ask(f"write-back {ino} mapped") == "done"
        assert fake.ask("data mapped") == FIRST.hex()
        assert user.ask("again") == "again"
        assert fake.ask(f"write-back {ino} mapped") == "done"
        assert fake.ask("data mapped") == SECOND.hex()
        assert user.end() == 0


async def test_much_that_is_dirty_comes_in_while_others_are_served(floor: Floor) -> None:
    """The engine may take its time with each write; other requests go on."""
    opened = await floor.do(os.open, floor.directory / "f", os.O_RDWR | os.O_CREAT)
    data = os.urandom(8 << 20)
    await floor.do(os.pwrite, opened, data, 0)
    served: list[int] = []

    async with trio.open_nursery() as nursery:

        async def others() -> None:
            while True:
                served.append((await floor.do(os.statvfs, floor.directory)).f_bsize)

        nursery.start_soon(others)
        await floor.do(floor.mount.write_back, b"f", 2)
        assert bytes(floor.fs.node(b"f").data) == data
        nursery.cancel_scope.cancel()
    assert served
    await floor.do(os.close, opened)


async def test_a_name_that_leads_elsewhere_by_now(floor: Floor) -> None:
    at = floor.directory
    await floor.do(os.mkdir, at / "d")
    await floor.do((at / "d" / "other").write_bytes, b"")
    await floor.do(os.symlink, "d", at / "link")
    await floor.do(os.symlink, "d/other", at / "filelink")
    ino = floor.fs.node(b"d/other").attributes.ino
    await floor.do(floor.mount.write_back, b"d/other", ino)
    before = len(os.listdir("/proc/self/fd"))
    for path, wrong in ((b"d/other", ino + 100), (b"d/missing", ino), (b"filelink", ino)):
        with pytest.raises(FileNotFoundError):
            await floor.do(floor.mount.write_back, path, wrong)
    for path in (b"link/other", b"d/other/below"):
        with pytest.raises(NotADirectoryError):
            await floor.do(floor.mount.write_back, path, ino)
    assert len(os.listdir("/proc/self/fd")) == before, "nothing stays open"


async def test_an_inode_that_the_kernel_does_not_know(floor: Floor) -> None:
    await floor.do(floor.mount.write_back, None, 1 << 39)
