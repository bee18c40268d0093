"""Requests about names and attributes, one rule at a time; how they work together is in tests/property/test_namespace.py."""

import errno
import os
import stat
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.attributes import AttributeChanges
from backupfs.engine.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from backupfs.engine.snapdirs import LATEST_INO, SNAPSHOTS_INO
from backupfs.errors import FileSystemError
from backupfs.ids import INO_BITS
from tests.conftest import LogRule
from tests.crash.simulation import Who
from tests.unit.engine.world import ROOT, WHO, Mounted, World, simulated

USER = Who(uid=1000, gid=1000, umask=0o027)
ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
NOBODY = 0xFFFF_FFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


FULL = acl((1, 7, NOBODY), (2, 6, 1234), (4, 5, NOBODY), (16, 7, NOBODY), (32, 1, NOBODY))


async def refused(request: Awaitable[object]) -> int:
    """The errno."""
    with pytest.raises(FileSystemError) as raised:
        await request
    return raised.value.errno


@asynccontextmanager
async def mounted(tmp_path: Path) -> AsyncIterator[Mounted]:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        yield m
        await m.fs.idle()
    assert world.audit(tmp_path / "copy") == []


# --- what is reserved ---------------------------------------------------------------------------------------------------


@simulated
async def test_the_reserved_name(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("reserved in every directory")
    async with mounted(tmp_path) as m:
        fs, name = m.fs, b".snapshots"
        directory = await m.mkdir(b"d")
        await m.put(b"f", b"")
        ino = await m.ino(b"f")
        for parent in (ROOT, directory):
            assert await refused(fs.mkdir(parent, name, 0o755, WHO)) == errno.EPERM
            assert await refused(fs.create(parent, name, 0o644, os.O_RDWR, WHO)) == errno.EPERM
            assert await refused(fs.symlink(parent, name, b"t", WHO)) == errno.EPERM
            assert await refused(fs.mknod(parent, name, stat.S_IFIFO, 0, WHO)) == errno.EPERM
            assert await refused(fs.link(ino, parent, name, WHO)) == errno.EPERM
            assert await refused(fs.rename(ROOT, b"f", parent, name, 0, WHO)) == errno.EPERM
            assert await refused(fs.rename(parent, name, ROOT, b"g", RENAME_EXCHANGE, WHO)) == errno.EPERM
        assert await refused(fs.rmdir(ROOT, name, WHO)) == errno.EPERM
        assert await refused(fs.unlink(ROOT, name, WHO)) in (errno.EPERM, errno.EISDIR, errno.ENOENT)
        for parent in (ROOT, directory):
            assert stat.S_ISDIR((await fs.lookup(parent, name)).mode), "it is there all the same"


@simulated
async def test_what_stands_in_the_past_is_read_only(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"then")
        await m.fs.create_snapshot("test")
        past = (await fs.lookup(SNAPSHOTS_INO, m.fs.snapshots()[0].name.encode())).ino
        old = (await fs.lookup(past, b"f")).ino
        assert old == 1 << INO_BITS | await m.ino(b"f")
        live = await m.ino(b"f")
        for parent in (past, SNAPSHOTS_INO, LATEST_INO):
            if parent != SNAPSHOTS_INO:  # there they take and delete snapshots
                assert await refused(fs.mkdir(parent, b"x", 0o755, WHO)) == errno.EROFS
                assert await refused(fs.rmdir(parent, b"f", WHO)) == errno.EROFS
            assert await refused(fs.create(parent, b"x", 0o644, os.O_RDWR, WHO)) == errno.EROFS
            assert await refused(fs.unlink(parent, b"f", WHO)) == errno.EROFS
            assert await refused(fs.rename(parent, b"f", ROOT, b"x", 0, WHO)) == errno.EXDEV
            assert await refused(fs.rename(ROOT, b"f", parent, b"x", 0, WHO)) == errno.EXDEV
            assert await refused(fs.rename(parent, b"f", parent, b"x", 0, WHO)) == errno.EROFS
            assert await refused(fs.link(live, parent, b"x", WHO)) == errno.EXDEV
            assert await refused(fs.setattr(parent, AttributeChanges(mode=0), None, WHO)) == errno.EROFS
            assert await refused(fs.setxattr(parent, b"user.a", b"", WHO)) == errno.EROFS
            assert await refused(fs.removexattr(parent, b"user.a", WHO)) == errno.EROFS
        assert await refused(fs.link(old, ROOT, b"x", WHO)) == errno.EXDEV
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_TRUNC):
            assert await refused(fs.open(old, flags, WHO)) == errno.EROFS
        opened = await fs.open(old, os.O_RDONLY, WHO)
        assert await refused(fs.write(opened.fh, 0, b"x")) == errno.EROFS
        await fs.flush(opened.fh)
        await fs.fsync(opened.fh, datasync=False)
        assert bytes(await fs.read(opened.fh, 0, 10)) == b"then"
        assert bytes(await fs.read(opened.fh, 4, 10)) == b""
        await fs.release(opened.fh)
        assert await refused(fs.lookup(past, b".snapshots")) == errno.ENOENT
        assert await refused(fs.lookup(past, b"missing")) == errno.ENOENT
        assert await refused(fs.getattr(1 << INO_BITS | 9999)) == errno.ENOENT


@simulated
async def test_the_directory_of_snapshots(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        assert (await fs.lookup(ROOT, b".snapshots")).ino == SNAPSHOTS_INO
        assert await refused(fs.lookup(SNAPSHOTS_INO, b"latest")) == errno.ENOENT
        assert await refused(fs.readlink(LATEST_INO)) == errno.ENOENT
        assert await refused(fs.getattr(LATEST_INO)) == errno.ENOENT
        fh = await fs.opendir(SNAPSHOTS_INO)
        assert [entry.name for entry in await fs.readdir(fh, 0)] == [b".", b".."]
        infos = [await fs.create_snapshot("test", f"message {i}", ["a", "b"]) for i in range(3)]
        assert len({info.name for info in infos}) == 3
        entries = await fs.readdir(fh, 0)
        assert [entry.name for entry in entries] == [b".", b"..", b"latest", *(info.name.encode() for info in infos)]
        assert [e.name for e in await fs.readdir(fh, entries[3].next_cookie)] == [info.name.encode() for info in infos[1:]]
        assert await fs.readdir(fh, entries[-1].next_cookie) == []
        await fs.fsyncdir(fh, datasync=False)
        await fs.releasedir(fh)
        shown = await fs.getattr(SNAPSHOTS_INO)
        assert (stat.S_IMODE(shown.mode), shown.nlink, shown.cacheable) == (0o755, 5, False)
        latest = await fs.lookup(SNAPSHOTS_INO, b"latest")
        assert latest == await fs.getattr(LATEST_INO)
        assert not latest.cacheable
        assert await fs.readlink(LATEST_INO) == infos[-1].name.encode()
        assert await fs.listxattr(SNAPSHOTS_INO, WHO) == await fs.listxattr(LATEST_INO, WHO) == []
        assert await refused(fs.getxattr(SNAPSHOTS_INO, b"user.a")) == errno.ENODATA
        top = await fs.lookup(SNAPSHOTS_INO, infos[0].name.encode())
        assert not top.cacheable
        fh = await fs.opendir(top.ino)
        await fs.fsyncdir(fh, datasync=False)
        fs.remember((top.ino,))
        fs.forget([(top.ino, 1)])
        fs.forget([(SNAPSHOTS_INO, 1)])
        assert await refused(fs.lookup(SNAPSHOTS_INO, b"2000-01-01T000000Z")) == errno.ENOENT
        assert await refused(fs.lookup(SNAPSHOTS_INO, b"\xff")) == errno.ENOENT
        for parent, name, kept in (
            (ROOT, b"x", True),
            (ROOT, b"@GMT-2020.01.01-00.00.00", False),
            (ROOT, b".snapshots", False),
            (SNAPSHOTS_INO, b"x", False),
        ):
            assert fs.negative_cacheable(parent, name) == kept


# --- making -------------------------------------------------------------------------------------------------------------


@simulated
async def test_types_and_errors(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"x")
        ino = await m.ino(b"f")
        for mode, rdev in ((stat.S_IFIFO | 0o600, 0), (stat.S_IFSOCK | 0o600, 0), (stat.S_IFCHR | 0o600, 0x105), (stat.S_IFBLK | 0o600, 7)):
            made = await fs.mknod(ROOT, b"n%o" % mode, mode, rdev, WHO)
            assert (made.mode, made.rdev, made.nlink, made.size) == (mode, rdev, 1, 0)
        link = await fs.symlink(ROOT, b"l", b"x" * 4000, WHO)
        assert (link.mode, link.size) == (stat.S_IFLNK | 0o777, 4000)
        assert await fs.readlink(link.ino) == b"x" * 4000
        assert await refused(fs.readlink(ino)) == errno.EINVAL
        assert await refused(fs.opendir(ino)) == errno.ENOTDIR
        assert await refused(fs.mkdir(ino, b"x", 0o755, WHO)) == errno.ENOTDIR
        assert await refused(fs.mkdir(999, b"x", 0o755, WHO)) == errno.ENOENT
        assert await refused(fs.getattr(999)) == errno.ENOENT
        assert await refused(fs.lookup(ROOT, b"missing")) == errno.ENOENT
        for request in (fs.lookup(ROOT, b"n" * 256), fs.mkdir(ROOT, b"n" * 256, 0o755, WHO), fs.rename(ROOT, b"f", ROOT, b"n" * 256, 0, WHO)):
            assert await refused(request) == errno.ENAMETOOLONG
        await fs.mkdir(ROOT, b"n" * 255, 0o755, WHO)
        assert await refused(fs.create(ROOT, b"f", 0o644, os.O_RDWR | os.O_EXCL, WHO)) == errno.EEXIST
        opened, shown = await fs.create(ROOT, b"f", 0o600, os.O_RDWR, WHO)
        assert (shown.ino, shown.mode) == (ino, stat.S_IFREG | 0o644), "it was there and is only opened"
        await fs.release(opened.fh)


@simulated
async def test_umask_and_owner(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        assert fs.umask_applied
        _, shown = await fs.create(ROOT, b"applied", 0o666, os.O_RDWR, USER)
        assert (shown.mode & 0o7777, shown.uid, shown.gid) == (0o666, 1000, 1000)
        fs.umask_applied = False
        _, shown = await fs.create(ROOT, b"not applied", 0o666, os.O_RDWR, USER)
        assert shown.mode & 0o7777 == 0o640
        assert (await fs.symlink(ROOT, b"l", b"t", USER)).mode == stat.S_IFLNK | 0o777
        assert (await fs.mkdir(ROOT, b"d", 0o777, USER)).mode == stat.S_IFDIR | 0o750


@simulated
async def test_chown_of_nothing_ends_set_id_bits_for_those_who_may(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        file = (await fs.mknod(ROOT, b"f", stat.S_IFREG | 0o4755, 0, USER)).ino
        fifo = (await fs.mknod(ROOT, b"p", stat.S_IFIFO | 0o4755, 0, USER)).ino
        directory = (await fs.mkdir(ROOT, b"d", 0o755, USER)).ino
        await fs.setattr(directory, AttributeChanges(mode=0o6755), None, WHO)
        for ino, nothing in ((file, AttributeChanges(ctime_ns=5)), (fifo, AttributeChanges())):
            stranger = fs.setattr(ino, nothing, None, Who(uid=7, gid=7))
            assert await refused(stranger) == errno.EPERM
            assert (await fs.getattr(ino)).mode & 0o7777 == 0o4755
            for who in (USER, WHO):
                await fs.setattr(ino, AttributeChanges(mode=0o4755), None, WHO)
                assert (await fs.setattr(ino, nothing, None, who)).mode & 0o7777 == 0o755
            await fs.setattr(ino, nothing, None, Who(uid=7, gid=7))
        assert (await fs.setattr(directory, AttributeChanges(), None, USER)).mode & 0o7777 == 0o6755


@simulated
async def test_a_whiteout_stands_where_something_was(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"content")
        await m.put(b"g", b"other")
        assert await refused(fs.rename(ROOT, b"f", ROOT, b"g", RENAME_WHITEOUT | RENAME_NOREPLACE, USER)) == errno.EEXIST
        assert await refused(fs.rename(ROOT, b"f", ROOT, b"h", RENAME_WHITEOUT | RENAME_EXCHANGE, USER)) == errno.EINVAL
        ino = await m.ino(b"f")
        await fs.rename(ROOT, b"f", ROOT, b"g", RENAME_WHITEOUT, USER)
        shown = await fs.lookup(ROOT, b"f")
        assert (shown.mode, shown.rdev, shown.uid, shown.nlink) == (stat.S_IFCHR, 0, USER.uid, 1)
        assert await m.ino(b"g") == ino


@simulated
async def test_a_group_mark_stays_for_members_that_were_asked_about(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        asked: list[int] = []

        def groups_of(pid: int) -> set[int]:
            asked.append(pid)
            return {50} if pid == 7 else set()

        fs.groups_of = groups_of
        member, stranger = Who(uid=1000, gid=1000, pid=7), Who(uid=1000, gid=1000, pid=8)
        await m.put(b"f", b"content")
        ino = await m.ino(b"f")
        early = await fs.open(ino, os.O_WRONLY, member)
        assert not asked, "in vain"

        async def mode_after(change: Callable[[], Awaitable[object]]) -> int:
            await fs.setattr(ino, AttributeChanges(gid=50, mode=0o2664), None, WHO)
            await change()
            return (await fs.getattr(ino)).mode & 0o7777

        for who, expected in ((member, 0o2664), (stranger, 0o664), (Who(uid=1000, gid=50, pid=8), 0o2664)):
            await fs.setattr(ino, AttributeChanges(gid=50, mode=0o2664), None, WHO)
            assert await mode_after(partial(fs.setattr, ino, AttributeChanges(), None, who)) == expected
            assert await mode_after(partial(fs.setattr, ino, AttributeChanges(size=3), None, who)) == expected
            assert await mode_after(partial(fs.setattr, ino, AttributeChanges(gid=60), None, who)) == expected
        await fs.release(early.fh)


@simulated
async def test_with_direct_io_it_counts_who_has_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        fs.groups_of = lambda pid: {50} if pid == 7 else set()
        await m.put(b"f", b"content")
        ino = await m.ino(b"f")
        member, stranger = Who(uid=1000, gid=1000, pid=7), Who(uid=1000, gid=1000, pid=8)
        for who, mode, expected in ((WHO, 0o6664, 0o6664), (member, 0o6664, 0o2664), (stranger, 0o6664, 0o664), (member, 0o6775, 0o775)):
            await fs.setattr(ino, AttributeChanges(gid=50, mode=mode), None, WHO)
            with monkeypatch.context() as short:
                short.setattr(fs, "_is_short", lambda: True)
                opened = await fs.open(ino, os.O_WRONLY, who)
            assert opened.direct_io
            await fs.write(opened.fh, 0, b"x")
            assert (await fs.getattr(ino)).mode & 0o7777 == expected
            await fs.release(opened.fh)


@simulated
async def test_set_gid_directories_and_default_lists_are_inherited(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        fs.umask_applied = False
        top = await m.mkdir(b"d")
        await fs.setattr(top, AttributeChanges(mode=0o2775, gid=50), None, WHO)
        assert (await fs.mkdir(top, b"sub", 0o755, USER)).gid == 50
        assert (await fs.lookup(top, b"sub")).mode & stat.S_ISGID
        await fs.setxattr(top, DEFAULT, FULL, WHO)
        _, shown = await fs.create(top, b"f", 0o666, os.O_RDWR, USER)
        assert shown.mode & 0o777 == 0o660, "the default list decides, not the umask"
        assert await fs.getxattr(shown.ino, ACCESS) == acl((1, 6, NOBODY), (2, 6, 1234), (4, 5, NOBODY), (16, 6, NOBODY), (32, 0, NOBODY))
        assert await fs.listxattr(shown.ino, WHO) == [ACCESS]
        below = await fs.mkdir(top, b"below", 0o755, USER)
        assert await fs.getxattr(below.ino, DEFAULT) == FULL
        assert await fs.listxattr((await fs.symlink(top, b"l", b"t", USER)).ino, WHO) == []
        await fs.setxattr(top, DEFAULT, acl((1, 7, NOBODY), (4, 5, NOBODY), (32, 0, NOBODY)), WHO)
        _, shown = await fs.create(top, b"minimal", 0o666, os.O_RDWR, USER)
        assert (shown.mode & 0o777, await fs.listxattr(shown.ino, WHO)) == (0o640, [])


@simulated
async def test_access_lists_and_mode_are_one(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"")
        ino = await m.ino(b"f")
        await fs.setxattr(ino, ACCESS, FULL, WHO)
        assert (await fs.getattr(ino)).mode & 0o777 == 0o771
        await fs.setattr(ino, AttributeChanges(mode=0o640), None, WHO)
        assert await fs.getxattr(ino, ACCESS) == acl((1, 6, NOBODY), (2, 6, 1234), (4, 5, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))
        await fs.setxattr(ino, ACCESS, acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 4, NOBODY)), WHO)
        assert (await fs.getattr(ino)).mode & 0o777 == 0o644
        assert await fs.listxattr(ino, WHO) == [], "what the mode says needs no list"
        assert await refused(fs.setxattr(ino, ACCESS, b"nonsense", WHO)) == errno.EINVAL
        assert await refused(fs.setxattr(ino, DEFAULT, FULL, WHO)) == errno.EACCES


# --- attributes ---------------------------------------------------------------------------------------------------------


@simulated
async def test_each_attribute_by_itself(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"1234")
        ino = await m.ino(b"f")
        changes = {"mode": 0o600, "uid": 5, "gid": 6, "size": 2, "atime_ns": 10**18 + 1, "mtime_ns": -5, "ctime_ns": 3}
        for field, value in changes.items():
            before = await fs.getattr(ino)
            after = await fs.setattr(ino, AttributeChanges(**{field: value}), None, WHO)
            assert getattr(after, field) & 0o777777777777777777777777 == value & 0o777777777777777777777777 or field == "mode"
            assert after == await fs.getattr(ino)
            if field != "ctime_ns":
                assert after.ctime_ns > before.ctime_ns
        assert (await fs.getattr(ino)).mode == stat.S_IFREG | 0o600


@simulated
async def test_set_id_bits_go_where_they_must(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        capability = b"security.capability"

        async def program(name: bytes) -> int:
            await m.put(name, b"program")
            ino = await m.ino(name)
            await fs.setattr(ino, AttributeChanges(mode=0o6755), None, WHO)
            await fs.setxattr(ino, capability, b"cap", WHO)
            return ino

        async def state(ino: int) -> tuple[int, list[bytes]]:
            return (await fs.getattr(ino)).mode & 0o7777, await fs.listxattr(ino, WHO)

        ino = await program(b"written")
        opened = await fs.open(ino, os.O_WRONLY, USER)
        await fs.setattr(ino, AttributeChanges(), None, USER)  # as the kernel sends it first
        await fs.write(opened.fh, 0, b"x")
        assert await state(ino) == (0o755, [])
        ino = await program(b"written in a mapping, or by root")
        opened = await fs.open(ino, os.O_WRONLY, USER)
        before = await fs.getattr(ino)
        await fs.write(opened.fh, 0, b"x")
        assert await state(ino) == (0o6755, [])
        assert await fs.getattr(ino) == before
        ino = await program(b"cut")
        await fs.setattr(ino, AttributeChanges(size=1), None, USER)
        assert await state(ino) == (0o755, [])
        ino = await program(b"given away")
        await fs.setattr(ino, AttributeChanges(uid=7), None, WHO)
        assert await state(ino) == (0o755, [])
        ino = await program(b"given away with bits")
        await fs.setattr(ino, AttributeChanges(gid=7, mode=0o4755), None, WHO)
        assert await state(ino) == (0o4755, [])


@simulated
async def test_set_gid_without_execution_goes_when_somebody_outside_of_the_group_does_it(tmp_path: Path) -> None:
    member, stranger = replace(USER, pid=1), replace(USER, pid=2)
    async with mounted(tmp_path) as m:
        fs = m.fs
        fs.groups_of = lambda pid: {6, 50} if pid == member.pid else {6}
        await m.put(b"f", b"1234567890")
        ino = await m.ino(b"f")
        await fs.setattr(ino, AttributeChanges(gid=50), None, WHO)

        async def written(who: Who) -> None:
            opened = await fs.open(ino, os.O_WRONLY, who)
            await fs.setattr(ino, AttributeChanges(), None, who)
            await fs.write(opened.fh, 0, b"x")
            await fs.release(opened.fh)

        async def cut(who: Who) -> None:
            await fs.setattr(ino, AttributeChanges(size=(await fs.getattr(ino)).size - 1), None, who)

        async def given(who: Who) -> None:
            await fs.setattr(ino, AttributeChanges(gid=50), None, who)

        async def listed(who: Who) -> None:
            await fs.setxattr(ino, ACCESS, acl((1, 6, NOBODY), (4, 6, NOBODY), (32, 6, NOBODY)), who)

        for change in (written, cut, given, listed):
            for who, mode in ((WHO, 0o2666), (member, 0o2666), (stranger, 0o666)):
                await fs.setattr(ino, AttributeChanges(mode=0o2666), None, WHO)
                await change(who)
                assert ((await fs.getattr(ino)).mode & 0o7777, who) == (mode, who)


@simulated
async def test_a_time_that_no_record_can_say_is_the_nearest_that_one_can(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    given = {b"a": -(2**63), b"b": -(2**63) - 1, b"c": 2**64 - 1, b"d": 2**64, b"e": (2**63 - 1) * 10**9, b"f": -(2**63) * 10**9}
    async with world.mounted() as m:
        for name, time_ns in given.items():
            await m.put(name, b"content")
            shown = await m.fs.setattr(await m.ino(name), AttributeChanges(atime_ns=time_ns, mtime_ns=time_ns), None, WHO)
            assert shown.atime_ns == shown.mtime_ns == min(max(time_ns, -(2**63)), 2**64 - 1)
        await m.fs.commit()
        assert m.fs.status().failure == ""
    async with world.mounted() as m:
        for name, time_ns in given.items():
            assert (await m.fs.getattr(await m.ino(name))).mtime_ns == min(max(time_ns, -(2**63)), 2**64 - 1)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_times_follow_what_is_done(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        directory = await m.mkdir(b"d")

        before = {ino: (await fs.getattr(ino)).mtime_ns for ino in (ROOT, directory)}

        async def moved(*inos: int) -> None:
            """Exactly these directories have new times."""
            after = {ino: (await fs.getattr(ino)).mtime_ns for ino in (ROOT, directory)}
            assert {ino for ino in after if after[ino] != before[ino]} == set(inos)
            before.update(after)

        await m.put(b"d/f", b"")
        await moved(directory)
        await m.rename(b"d/f", b"f")
        await moved(ROOT, directory)
        await m.link(b"f", b"d/g")
        await moved(directory)
        ctime = (await fs.getattr(await m.ino(b"f"))).ctime_ns
        await m.unlink(b"d/g")
        await moved(directory)
        assert (await fs.getattr(await m.ino(b"f"))).ctime_ns > ctime
        await fs.setxattr(await m.ino(b"f"), b"user.a", b"", WHO)
        await moved()


@simulated
async def test_limits_of_extended_attributes(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"")
        ino = await m.ino(b"f")
        assert await refused(fs.getxattr(ino, b"user.a")) == errno.ENODATA
        assert await refused(fs.removexattr(ino, b"user.a", WHO)) == errno.ENODATA
        assert await refused(fs.setxattr(ino, b"user." + b"n" * 251, b"", WHO)) == errno.ERANGE
        assert await refused(fs.setxattr(ino, b"user.a", bytes(limits.XATTR_VALUE_MAX_BYTES + 1), WHO)) == errno.E2BIG
        await fs.setxattr(ino, b"user." + b"n" * 250, b"", WHO)
        for i in range(3):
            await fs.setxattr(ino, b"user.%d" % i, bytes([i]) * limits.XATTR_VALUE_MAX_BYTES, WHO)
        assert await refused(fs.setxattr(ino, b"user.3", bytes(limits.XATTR_VALUE_MAX_BYTES), WHO)) == errno.ENOSPC
        assert len(await fs.listxattr(ino, WHO)) == 4
        await fs.setxattr(ino, b"user.0", b"", WHO)
        assert await fs.getxattr(ino, b"user.0") == b""
        await fs.setxattr(ino, b"user.3", bytes(limits.XATTR_VALUE_MAX_BYTES), WHO)
        for name in await fs.listxattr(ino, WHO):
            await fs.removexattr(ino, name, WHO)
        assert await fs.listxattr(ino, WHO) == []


# --- links and directories ----------------------------------------------------------------------------------------------


@simulated
async def test_link_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINKS_MAX", 20)
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.put(b"f", b"x")
        for i in range(19):
            await m.link(b"f", b"l%d" % i)
        ino = await m.ino(b"f")
        assert (await fs.getattr(ino)).nlink == 20
        assert await refused(fs.link(ino, ROOT, b"one more", WHO)) == errno.EMLINK
        fh = await m.open(b"l18", os.O_RDWR)
        for name in [b"f", *(b"l%d" % i for i in range(18))]:
            await m.unlink(name)
        assert fs.writable_paths() == [(ino, b"l18")]
        await m.rename(b"l18", b"renamed")
        assert fs.writable_paths() == [(ino, b"renamed")]
        await m.unlink(b"renamed")
        assert fs.writable_paths() == [(ino, None)]
        assert await refused(fs.link(ino, ROOT, b"again", WHO)) == errno.ENOENT
        assert bytes(await fs.read(fh, 0, 5)) == b"x"
        await m.close(b"l18")
        top = await m.mkdir(b"d")
        await m.mkdir(b"elsewhere")
        for i in range(18):
            await m.mkdir(b"d/s%d" % i)
        assert (await fs.getattr(top)).nlink == 20
        assert await refused(fs.mkdir(top, b"one more", 0o755, WHO)) == errno.EMLINK
        assert await refused(fs.rename(ROOT, b"elsewhere", top, b"x", 0, WHO)) == errno.EMLINK
        await m.rename(b"d/s0", b"d/t0")
        await m.put(b"d/file", b"")


@simulated
async def test_a_directory_that_is_gone_but_open(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        gone = await m.mkdir(b"d")
        fs.remember((gone,))
        await m.put(b"f", b"")
        await fs.rmdir(ROOT, b"d", WHO)
        assert (await fs.getattr(gone)).nlink == 0
        assert await refused(fs.mkdir(gone, b"x", 0o755, WHO)) == errno.ENOENT
        assert await refused(fs.link(await m.ino(b"f"), gone, b"x", WHO)) == errno.ENOENT
        assert await refused(fs.rename(ROOT, b"f", gone, b"x", 0, WHO)) == errno.ENOENT
        assert await refused(fs.rmdir(ROOT, b"d", WHO)) == errno.ENOENT
        fs.forget([(gone, 1)])
        assert await refused(fs.getattr(gone)) == errno.ENOENT


@simulated
async def test_only_attributes_whose_kind_the_kernel_checks(tmp_path: Path) -> None:
    """Of `system.` it checks nothing: anybody could set them on anybody's file."""
    async with mounted(tmp_path) as m:
        fs = m.fs
        ino = (await fs.mknod(ROOT, b"f", stat.S_IFREG | 0o600, 0, WHO)).ino
        unknown = dict.fromkeys((b"system.evil", b"system.posix_acl", b"foo", b"os2.x", b""), errno.EOPNOTSUPP)
        for name, error in (unknown | dict.fromkeys((b"user.", b"trusted.", b"security."), errno.EINVAL)).items():
            assert await refused(fs.setxattr(ino, name, b"", USER)) == error
            assert await refused(fs.removexattr(ino, name, USER)) == error
            assert await refused(fs.getxattr(ino, name)) == error
        for name in (b"user.a", b"trusted.b", b"security.c"):
            await fs.setxattr(ino, name, b"x", WHO)
        assert set(await fs.listxattr(ino, WHO)) == {b"user.a", b"trusted.b", b"security.c"}
        assert set(await fs.listxattr(ino, USER)) == {b"user.a", b"security.c"}


@simulated
async def test_each_directory_lists_itself_and_what_is_above_it(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        await m.mkdir(b"a")
        await m.mkdir(b"a/b")
        info = await fs.create_snapshot("test")
        top = (await fs.lookup(SNAPSHOTS_INO, info.name.encode())).ino
        live_a = (await fs.lookup(ROOT, b"a")).ino
        live_b = (await fs.lookup(live_a, b"b")).ino
        past_a = (await fs.lookup(top, b"a")).ino
        past_b = (await fs.lookup(past_a, b"b")).ino
        above = {ROOT: ROOT, live_a: ROOT, live_b: live_a, SNAPSHOTS_INO: ROOT, top: SNAPSHOTS_INO, past_a: top, past_b: past_a}
        for ino, parent in above.items():
            assert (await fs.lookup(ino, b".")).ino == ino
            assert (await fs.lookup(ino, b"..")).ino == parent
            fh = await fs.opendir(ino)
            first, second, *_ = await fs.readdir(fh, 0)
            assert [(e.name, e.attributes.ino) for e in (first, second)] == [(b".", ino), (b"..", parent)]
            assert second.attributes == await fs.getattr(parent)
            assert [e.name for e in (await fs.readdir(fh, first.next_cookie))[:1]] == [b".."]
            assert b".." not in [e.name for e in await fs.readdir(fh, second.next_cookie)]
            await fs.releasedir(fh)


@simulated
async def test_a_long_listing_while_it_changes(tmp_path: Path) -> None:
    """Every name that is there all the time is listed once, whatever comes and goes."""
    async with mounted(tmp_path) as m:
        fs = m.fs
        names = [b"stays %d" % i for i in range(1500)]
        for name in names:
            await fs.mknod(ROOT, name, stat.S_IFREG | 0o644, 0, WHO)
        fh = await fs.opendir(ROOT)
        listed: list[bytes] = []
        cookie = number = 0
        while entries := await fs.readdir(fh, cookie):
            taken = entries[: len(entries) // 2 + 1]
            listed += [entry.name for entry in taken]
            cookie = taken[-1].next_cookie
            fs.forget([((await fs.mknod(ROOT, b"comes %d" % number, stat.S_IFREG, 0, WHO)).ino, 1)])
            if number:
                await fs.unlink(ROOT, b"comes %d" % (number - 1), WHO)
            if number % 3 == 0:
                await fs.commit()
            number += 1
        assert sorted(name for name in listed if name.startswith(b"stays")) == sorted(names)
        assert listed.count(b".snapshots") == 1
        await fs.releasedir(fh)


# --- what lives on without a name ---------------------------------------------------------------------------------------


@simulated
async def test_what_has_no_name_left_is_found_by_no_handle(tmp_path: Path) -> None:
    # The kernel asks for "." of what it has forgotten, and may say so only afterwards.
    async with mounted(tmp_path) as m:
        fs = m.fs
        file = (await fs.mknod(ROOT, b"file", stat.S_IFREG | 0o644, 0, WHO)).ino
        directory = (await fs.mkdir(ROOT, b"directory", 0o755, WHO)).ino
        assert (await fs.lookup(file, b".")).ino == file
        fs.forget([(file, 1)])
        await m.unlink(b"file")
        await fs.rmdir(ROOT, b"directory", WHO)
        for ino, name in ((file, b"."), (directory, b"."), (directory, b"..")):
            assert await refused(fs.lookup(ino, name)) == errno.ESTALE
        assert fs.status().orphans == 2
        for ino in (file, directory):
            fs.forget([(ino, 1)])
            assert await refused(fs.lookup(ino, b".")) == errno.ENOENT
        await fs.idle()
        assert fs.status().orphans == 0


@simulated
async def test_orphans_are_reaped_when_nobody_knows_them(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        for name, ways in ((b"a", ("close", "forget")), (b"b", ("forget", "close"))):
            opened, shown = await fs.create(ROOT, name, 0o644, os.O_RDWR, WHO)
            await fs.write(opened.fh, 0, b"x" * 100_000)
            await fs.setxattr(shown.ino, b"user.a", b"1", WHO)
            await fs.commit()
            await m.unlink(name)
            for way in ways:
                assert fs.status().orphans == 1
                assert (await fs.getattr(shown.ino)).nlink == 0
                if way == "close":
                    await fs.release(opened.fh)
                else:
                    fs.forget([(shown.ino, 1)])
            await fs.idle()
            assert fs.status().orphans == 0
            assert await refused(fs.getattr(shown.ino)) == errno.ENOENT
        assert fs.stats().stored_bytes == 0


@simulated
async def test_orphans_of_a_killed_process_are_reaped_at_the_mount(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for i in range(5):
            fh = await m.open(b"f%d" % i)
            await m.fs.write(fh, 0, bytes(range(256)) * 2000)
            await m.unlink(b"f%d" % i)
        await m.mkdir(b"d")
        m.fs.remember((await m.ino(b"d"),))
        await m.fs.rmdir(ROOT, b"d", WHO)
        await m.fs.create_snapshot("test")
        assert m.fs.status().orphans == 6
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        await m.fs.idle()
        assert (m.fs.status().orphans, m.fs.stats().stored_bytes) == (0, 0)
        assert await m.names(b".snapshots/" + m.fs.snapshots()[0].name.encode()) == []
    assert killed.audit(tmp_path / "copy") == []
    assert await killed.check() == []


@simulated
async def test_own_requests_commit_nothing(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        fs = m.fs
        fs.own_threads.add(77)
        await m.open(b"f")
        opened = await fs.open(await m.ino(b"f"), os.O_WRONLY, Who(pid=77))
        await fs.write(opened.fh, 0, b"x")
        batches = fs.stats().batches
        await fs.fsync(opened.fh, datasync=False)
        assert fs.stats().batches == batches
        assert fs.writable_paths() == [(await m.ino(b"f"), b"f")]
        await fs.fsync(m.handles[b"f"], datasync=True)
        assert fs.stats().batches > batches
        fh = await fs.opendir(ROOT)
        await m.mkdir(b"d")
        batches = fs.stats().batches
        await fs.fsyncdir(fh, datasync=False)
        assert fs.stats().batches == batches + 1
        await fs.release(opened.fh)
        await m.close(b"f")
        assert fs.writable_paths() == []


@simulated
async def test_statfs(tmp_path: Path) -> None:
    async with mounted(tmp_path) as m:
        before = await m.fs.statfs()
        assert (before.block_bytes, before.name_max) == (4096, 255)
        assert before.blocks == (1 << 40) // 4096
        assert 0 < before.blocks_free == before.blocks_available < before.blocks
        await m.mkdir(b"d")
        assert (await m.fs.statfs()).files_free == before.files_free - 1
