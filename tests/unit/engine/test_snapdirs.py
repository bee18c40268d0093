"""`.snapshots` in every directory, `@GMT-…`, and taking and deleting snapshots with mkdir and rmdir."""

import errno
import posixpath
import stat
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.snapdirs import SNAPSHOTS_INO
from backupfs.errors import BackupfsError, FileSystemError, UsageError
from tests.conftest import LogRule
from tests.unit.engine.world import ROOT, WHO, Mounted, World, simulated

NAME = b".snapshots"


async def names_in(m: Mounted, ino: int) -> list[bytes]:
    fh = await m.fs.opendir(ino)
    found, cookie = [], 0
    while entries := await m.fs.readdir(fh, cookie):
        found += [entry.name for entry in entries]
        cookie = entries[-1].next_cookie
    await m.fs.releasedir(fh)
    return found


async def follow(m: Mounted, directory: bytes, *names: bytes) -> int:
    """The inode that a path below a directory leads to, its links followed as the kernel does it."""
    here = directory
    ino = await m.ino(directory)
    for name in names:
        found = await m.fs.lookup(ino, name)
        if stat.S_ISLNK(found.mode):
            target = await m.fs.readlink(found.ino)
            assert found.size == len(target)
            here = posixpath.normpath(posixpath.join(b"/", here, target)).lstrip(b"/")
            ino = await m.ino(here)
        else:
            ino, here = found.ino, posixpath.join(here, name)
    return ino


@simulated
async def test_every_directory_leads_to_its_own_past(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"a")
        await m.mkdir(b"a/b")
        await m.put(b"a/b/file", b"one")
        first = (await m.fs.create_snapshot("manual")).name.encode()
        await m.mkdir(b"late")
        await m.rename(b"a", b"renamed")
        await m.put(b"renamed/b/file", b"two")
        second = (await m.fs.create_snapshot("manual")).name.encode()
        await m.put(b"renamed/b/file", b"now")
        for name, content in ((first, b"one"), (second, b"two"), (b"latest", b"two")):
            ino = await follow(m, b"renamed/b", NAME, name)
            opened = await m.fs.open((await m.fs.lookup(ino, b"file")).ino, 0, WHO)
            assert bytes(await m.fs.read(opened.fh, 0, 10)) == content
            await m.fs.release(opened.fh)
            assert await follow(m, b"", NAME, name, *([b"a"] if name == first else [b"renamed"])) >> 40
        inside = (await m.fs.lookup(await m.ino(b"renamed"), NAME)).ino
        assert await names_in(m, inside) == [b".", b"..", b"latest", first, second]
        late = (await m.fs.lookup(await m.ino(b"late"), NAME)).ino
        assert await names_in(m, late) == [b".", b"..", b"latest", second]
        assert (await m.fs.lookup(late, b"..")).ino == await m.ino(b"late")
        with pytest.raises(FileSystemError) as missing:
            await m.fs.lookup(late, first)
        assert missing.value.errno == errno.ENOENT
        assert NAME not in await names_in(m, await m.ino(b"renamed")), "it resolves and does not show"
        past = await follow(m, b"renamed", NAME, first)
        with pytest.raises(FileSystemError):
            await m.fs.lookup(past, NAME)
        for virtual in (inside, (await m.fs.lookup(inside, first)).ino):
            with pytest.raises(FileSystemError) as refused:
                await m.fs.mkdir(virtual, b"x", 0o755, WHO)
            assert refused.value.errno == errno.EROFS
            assert await m.fs.listxattr(virtual, WHO) == []
            assert (await m.fs.getattr(virtual)).cacheable is False
        with pytest.raises(FileSystemError) as no_link:
            await m.fs.readlink(inside)
        assert no_link.value.errno == errno.EINVAL
        with pytest.raises(FileSystemError) as no_directory:
            await m.fs.lookup((await m.fs.lookup(inside, first)).ino, b"x")
        assert no_directory.value.errno == errno.ENOTDIR


@simulated
async def test_the_names_that_samba_asks_for(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/file", b"then")
        name = (await m.fs.create_snapshot("manual")).name
        gmt = f"@GMT-{name[0:4]}.{name[5:7]}.{name[8:10]}-{name[11:13]}.{name[13:15]}.{name[15:17]}".encode()
        past = await follow(m, b"d", NAME, name.encode())
        assert await follow(m, b"d", gmt) == past
        assert await follow(m, b"d", NAME, gmt) == past
        root = await follow(m, b"", NAME, name.encode())
        assert await follow(m, b"", gmt) == root
        assert await follow(m, b"", NAME, gmt) == root
        for other in (b"@GMT-1999.01.01-00.00.00", b"@GMT-2023.13.01-00.00.00", b"@GMT-", b"@GMT-x"):
            with pytest.raises(FileSystemError) as missing:
                await m.fs.lookup(await m.ino(b"d"), other)
            assert missing.value.errno == errno.ENOENT
            assert not m.fs.negative_cacheable(ROOT, other)


@simulated
async def test_mkdir_takes_a_snapshot_and_rmdir_marks_it_deleted(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("mkdir .snapshots/NAME")
    log_rule.expect("rmdir .snapshots/NAME")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = 10**12
        await m.put(b"file", b"then")
        made = await m.fs.mkdir(SNAPSHOTS_INO, b"before the upgrade", 0o755, WHO)
        assert stat.S_ISDIR(made.mode)
        [info] = m.fs.snapshots()
        assert (info.name, info.why) == ("before the upgrade", "mkdir")
        await m.put(b"file", b"now!")
        assert await m.get(b".snapshots/before the upgrade/file") == b"then"
        with pytest.raises(FileSystemError) as taken:
            await m.fs.mkdir(SNAPSHOTS_INO, b"before the upgrade", 0o755, WHO)
        assert taken.value.errno == errno.EEXIST
        for bad in (b"latest", b"@GMT-2023.01.01-00.00.00", b"2023-11-14T221320Z", b".hidden", b"a\nb", b"x" * 201, b"\xff"):
            with pytest.raises(FileSystemError) as refused:
                await m.fs.mkdir(SNAPSHOTS_INO, bad, 0o755, WHO)
            assert refused.value.errno == errno.EINVAL
        await m.fs.pin_snapshots([info.name], pinned=True)
        with pytest.raises(FileSystemError) as busy:
            await m.fs.rmdir(SNAPSHOTS_INO, b"before the upgrade", WHO)
        assert busy.value.errno == errno.EBUSY
        await m.fs.pin_snapshots([info.name], pinned=False)
        await m.fs.rmdir(SNAPSHOTS_INO, b"before the upgrade", WHO)
        assert m.fs.snapshots() == []
        with pytest.raises(FileSystemError) as gone:
            await m.fs.rmdir(SNAPSHOTS_INO, b"before the upgrade", WHO)
        assert gone.value.errno == errno.ENOENT
        await m.fs.undelete_snapshots(["before the upgrade"])
        assert await m.get(b".snapshots/before the upgrade/file") == b"then"
        await m.fs.delete_snapshot("before the upgrade")
        await m.fs.upkeep.collect_now(purge_deleted=True, thorough=False)
    async with world.mounted() as m:
        with pytest.raises(FileSystemError) as never_again:
            await m.fs.mkdir(SNAPSHOTS_INO, b"before the upgrade", 0o755, WHO)
        assert never_again.value.errno == errno.EEXIST
        with pytest.raises(UsageError):
            await m.fs.create_snapshot("manual", name="a/b")


@simulated
async def test_when_no_number_is_left_no_snapshot_is_taken(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs._volume.counters.serial = limits.SNAPSHOTS_EVER_MAX - 1
        await m.mkdir(b"d")
        name = (await m.fs.create_snapshot("manual")).name.encode()
        inside = (await m.fs.lookup(await m.ino(b"d"), NAME)).ino
        assert await names_in(m, inside) == [b".", b"..", b"latest", name]
        assert (await m.fs.lookup(inside, name)).ino != (await m.fs.lookup(inside, b"latest")).ino
        with pytest.raises(BackupfsError, match="no more can be numbered"):
            await m.fs.create_snapshot("manual")
