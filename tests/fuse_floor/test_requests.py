"""Every request that pyfuse3 delivers reaches the engine with what the caller asked, and its answer reaches the caller."""

import errno
import os
import socket
import stat
import struct
import subprocess
from pathlib import Path

import pytest

from backupfs.errors import FileSystemError, StoreError, StoreFullError
from backupfs.fuse.mount import MountOptions
from tests.conftest import LogRule
from tests.fuse_floor.fake import FACTS
from tests.fuse_floor.floor import Floor, file_handle, read_by_handle, renameat2, serving

SHOWN = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_rdev")
ACL_ACCESS = b"system.posix_acl_access"


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_a_file_is_written_and_read(floor: Floor) -> None:
    path = floor.directory / "file"
    data = os.urandom(3 << 20)
    await floor.do(write, path, data)
    assert bytes(floor.fs.node(b"file").data) == data
    assert await floor.do(path.read_bytes) == data


async def test_attributes_arrive_as_they_are(floor: Floor) -> None:
    ino = floor.fs._add(stat.S_IFREG | 0o4751, 4_000_000_000, 77)
    shown = floor.fs.nodes[ino].attributes
    shown.nlink, shown.size, shown.blocks = 1234, 1 << 45, 99
    shown.atime_ns, shown.mtime_ns, shown.ctime_ns = -1, (1 << 33) * 10**9 + 999_999_999, 123_456_789_012_345_678
    floor.fs.nodes[1].children[b"f"] = ino
    found = await floor.do(os.stat, floor.directory / "f")
    expected = [ino, shown.mode, 1234, 4_000_000_000, 77, 1 << 45, 99, shown.atime_ns, shown.mtime_ns, shown.ctime_ns, 0]
    assert [getattr(found, name) for name in SHOWN] == expected


async def test_kinds_of_inodes(floor: Floor) -> None:
    at = floor.directory
    await floor.do(os.mkdir, at / "directory", 0o750)
    await floor.do(os.mkfifo, at / "fifo", 0o640)
    await floor.do(os.symlink, "to/nowhere \xff", at / "symlink")
    with socket.socket(socket.AF_UNIX) as listener:
        await floor.do(listener.bind, os.fspath(at / "socket"))
    assert stat.S_ISDIR((await floor.do(os.lstat, at / "directory")).st_mode)
    assert stat.S_ISFIFO((await floor.do(os.lstat, at / "fifo")).st_mode)
    assert stat.S_ISSOCK((await floor.do(os.lstat, at / "socket")).st_mode)
    assert await floor.do(os.readlink, at / "symlink") == "to/nowhere \xff"
    assert floor.fs.modes[b"directory"][0] == 0o750
    assert floor.fs.modes[b"fifo"][0] == 0o640


@pytest.mark.root
async def test_devices(floor: Floor) -> None:
    path = floor.directory / "device"
    device = os.makedev(259, 70_000)
    await floor.do(os.mknod, path, stat.S_IFBLK | 0o600, device)
    found = await floor.do(os.lstat, path)
    assert stat.S_ISBLK(found.st_mode)
    assert found.st_rdev == device
    assert floor.fs.node(b"device").attributes.rdev == device
    with pytest.raises(PermissionError):  # nodev
        await floor.do(os.open, path, os.O_RDONLY)


async def test_names_come_go_and_move(floor: Floor) -> None:
    at = floor.directory
    top, odd = os.fsencode(floor.directory), b"new\nline \xff\xfe"
    await floor.do(write, at / "a", b"a")
    await floor.do(write, at / "b", b"b")
    await floor.do(os.link, at / "a", at / "a2")
    assert (await floor.do(os.stat, at / "a2")).st_nlink == 2
    await floor.do(os.rename, at / "a", at / "b")
    assert await floor.do((at / "b").read_bytes) == b"a"
    await floor.do(os.rename, at / "b", top + b"/" + odd)
    assert {os.fsencode(name) for name in await floor.do(os.listdir, floor.directory)} == {b"a2", odd}
    await floor.do(os.unlink, at / "a2")
    await floor.do(os.mkdir, at / "d")
    await floor.do(os.rmdir, at / "d")
    assert set(floor.fs.nodes[1].children) == {odd}


async def test_rename_with_flags(floor: Floor) -> None:
    a, b = floor.directory / "a", floor.directory / "b"
    await floor.do(write, a, b"a")
    await floor.do(write, b, b"b")
    with pytest.raises(FileExistsError):
        await floor.do(renameat2, a, b, 1)
    await floor.do(renameat2, a, b, 2)
    assert (await floor.do(a.read_bytes), await floor.do(b.read_bytes)) == (b"b", b"a")
    await floor.do(renameat2, a, floor.directory / "c", 1)
    assert floor.fs.requests["rename 1"] == 1  # the kernel answers EEXIST for a name that it knows
    assert floor.fs.requests["rename 2"] == 1


async def test_setattr_sets_what_was_asked_and_nothing_else(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"0123456789")
    before = await floor.do(os.stat, path)
    await floor.do(os.chmod, path, 0o2604)
    await floor.do(os.utime, path, ns=(1_000_000_001, 2_000_000_002))
    shown = floor.fs.node(b"f").attributes
    assert shown.mode == stat.S_IFREG | 0o2604
    assert (shown.atime_ns, shown.mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert (shown.uid, shown.gid) == (before.st_uid, before.st_gid)
    await floor.do(os.truncate, path, 4)
    assert bytes(floor.fs.node(b"f").data) == b"0123"
    opened = await floor.do(os.open, path, os.O_RDWR)
    await floor.do(os.ftruncate, opened, 6)
    await floor.do(os.close, opened)
    assert bytes(floor.fs.node(b"f").data) == b"0123\0\0"


@pytest.mark.root
async def test_owner_and_group_are_set_apart(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"")
    await floor.do(os.chown, path, 1001, -1)
    assert (floor.fs.node(b"f").attributes.uid, floor.fs.node(b"f").attributes.gid) == (1001, 0)
    await floor.do(os.chown, path, -1, 1002)
    found = await floor.do(os.stat, path)
    assert (found.st_uid, found.st_gid) == (1001, 1002)


async def test_the_kernels_times_are_written_back(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"x")
    found = await floor.do(os.stat, path)
    await floor.until(lambda: floor.fs.node(b"f").attributes.mtime_ns == found.st_mtime_ns)


async def test_sync_requests(floor: Floor) -> None:
    opened = await floor.do(os.open, floor.directory / "f", os.O_RDWR | os.O_CREAT)
    await floor.do(os.write, opened, b"abc")
    assert await floor.requests("fsync", os.fsync, opened) == 1
    assert bytes(floor.fs.node(b"f").data) == b"abc"
    assert await floor.requests("fdatasync", os.fdatasync, opened) == 1
    assert await floor.requests("flush", os.close, opened) == 1
    await floor.until(lambda: floor.fs.requests["release"] == 1)
    top = await floor.do(os.open, floor.directory, os.O_RDONLY | os.O_DIRECTORY)
    assert await floor.requests("fsyncdir", os.fsync, top) == 1
    await floor.do(os.close, top)
    await floor.until(lambda: not floor.fs.handles)


async def test_open_truncates(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"long")
    await floor.do(write, path, b"x")
    assert bytes(floor.fs.node(b"f").data) == b"x"


@pytest.mark.parametrize("count", [0, 1, 6, 7, 8, 700])
async def test_a_listing_is_whole_at_any_length(floor: Floor, count: int) -> None:
    names = {f"name {number} {'x' * (number % 200)}" for number in range(count)}
    for name in names:
        await floor.do(os.mkdir, floor.directory / name)
    listed = await floor.do(os.listdir, floor.directory)
    assert len(listed) == count
    assert set(listed) == names


async def test_a_listing_gives_attributes_along(floor: Floor) -> None:
    for number in range(100):
        who = floor.fs._add(stat.S_IFREG | 0o600, number, number)
        floor.fs.nodes[1].children[b"%d" % number] = who

    def owners() -> set[int]:
        with os.scandir(floor.directory) as entries:
            return {entry.stat().st_uid for entry in entries}

    assert await floor.requests("getattr", owners) <= 1  # the directory's own
    assert floor.fs.requests["lookup"] == 0
    assert floor.fs.requests["remember"] == 100


async def test_every_lookup_is_given_back(floor: Floor) -> None:
    names = [floor.directory / f"{number}" for number in range(50)]
    for name in names:
        await floor.do(write, name, b"x")
    await floor.do(os.listdir, floor.directory)
    for name in names:
        await floor.do(os.stat, name)
        await floor.do(os.unlink, name)
    await floor.until(lambda: set(floor.fs.nodes) == {1})  # nodes go with their last lookup


async def test_names_that_are_missing_are_asked_for_once(floor: Floor) -> None:
    missing, uncached = floor.directory / "missing", floor.directory / "uncached missing"
    for path, expected in ((missing, 1), (uncached, 5)):
        before = floor.fs.requests["lookup"]
        for _ in range(5):
            with pytest.raises(FileNotFoundError):
                await floor.do(os.stat, path)
        assert floor.fs.requests["lookup"] - before == expected
    await floor.do(write, missing, b"")
    assert (await floor.do(os.stat, missing)).st_size == 0


async def test_attributes_are_kept_unless_they_may_not_be(floor: Floor) -> None:
    def asked() -> int:
        return floor.fs.requests["getattr"] + floor.fs.requests["lookup"]

    for name, kept in (("kept", True), ("uncached", False)):
        await floor.do(os.mkdir, floor.directory / name)
        await floor.do(os.stat, floor.directory / name)
        before = asked()
        for _ in range(5):
            await floor.do(os.stat, floor.directory / name)
        more = asked() - before
        assert more == 0 if kept else more >= 5


@pytest.mark.root
async def test_file_handles_outlive_the_kernels_memory(base: Path) -> None:
    async with serving(base / "mnt") as before:
        await before.do(os.mkdir, before.directory / "d")
        await before.do((before.directory / "d" / "f").write_bytes, b"content")
        handle = await before.do(file_handle, before.directory / "d" / "f")
    async with serving(base / "mnt", fs=before.fs) as after:
        assert await after.do(read_by_handle, after.directory, handle) == b"content"
    async with serving(base / "mnt") as other:
        with pytest.raises(OSError) as stale:
            await other.do(read_by_handle, other.directory, handle)
        assert stale.value.errno == errno.ESTALE


async def test_extended_attributes(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"")
    await floor.do(os.setxattr, path, b"user.a", b"\0value\xff", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        await floor.do(os.setxattr, path, b"user.a", b"", os.XATTR_CREATE)
    with pytest.raises(OSError) as missing:
        await floor.do(os.setxattr, path, b"user.b", b"", os.XATTR_REPLACE)
    assert missing.value.errno == errno.ENODATA
    await floor.do(os.setxattr, path, b"user.a", b"other", os.XATTR_REPLACE)
    await floor.do(os.setxattr, path, b"user.empty", b"")
    assert await floor.do(os.getxattr, path, b"user.a") == b"other"
    assert sorted(await floor.do(os.listxattr, path)) == ["user.a", "user.empty"]
    await floor.do(os.removexattr, path, b"user.a")
    with pytest.raises(OSError) as gone:
        await floor.do(os.getxattr, path, b"user.a")
    assert gone.value.errno == errno.ENODATA


async def test_acls_go_to_the_engine_like_other_attributes(floor: Floor) -> None:
    path = floor.directory / "f"
    await floor.do(write, path, b"")
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, 1234), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    await floor.do(os.setxattr, path, ACL_ACCESS, value)
    assert floor.fs.node(b"f").xattrs == {ACL_ACCESS: value}
    assert await floor.do(os.getxattr, path, ACL_ACCESS) == value


async def test_space_is_told_as_it_is(floor: Floor) -> None:
    found = await floor.do(os.statvfs, floor.directory)
    assert (found.f_bsize, found.f_frsize, found.f_namemax) == (FACTS.block_bytes, FACTS.block_bytes, FACTS.name_max)
    assert (found.f_blocks, found.f_bfree, found.f_bavail) == (FACTS.blocks, FACTS.blocks_free, FACTS.blocks_available)
    assert (found.f_files, found.f_ffree, found.f_favail) == (FACTS.files, FACTS.files_free, FACTS.files_free)


async def test_errors_become_errno_and_the_mount_goes_on(floor: Floor, log_rule: LogRule) -> None:
    log_rule.expect("mkdir: no room")
    log_rule.expect("mkdir: the disk is gone")
    log_rule.expect("mkdir failed")
    for failure, code in (
        (FileSystemError(errno.EDQUOT), errno.EDQUOT),
        (StoreFullError("no room"), errno.ENOSPC),
        (StoreError("the disk is gone"), errno.EIO),
        (ZeroDivisionError("a fault"), errno.EIO),
    ):
        floor.fs.fail_with["mkdir"] = failure
        with pytest.raises(OSError) as answer:
            await floor.do(os.mkdir, floor.directory / "d")
        assert answer.value.errno == code
    floor.fs.fail_with.clear()
    await floor.do(os.mkdir, floor.directory / "d")


async def test_a_request_without_an_answer_may_fail(floor: Floor, log_rule: LogRule) -> None:
    log_rule.expect("forget failed")
    floor.fs.fail_with["forget"] = ZeroDivisionError("a fault")
    await floor.do(os.mkdir, floor.directory / "d")
    await floor.do(os.rmdir, floor.directory / "d")
    await floor.until(lambda: floor.fs.requests["forget"] == 1)
    floor.fs.fail_with.clear()
    await floor.do(os.mkdir, floor.directory / "d")


async def test_the_mode_arrives_before_the_umask(floor: Floor) -> None:
    at = floor.directory
    await floor.do(subprocess.run, ["sh", "-c", f"umask 027; touch {at}/f; mkdir {at}/d; mkfifo {at}/p"], check=True)
    assert floor.fs.modes == {b"f": (0o666, 0o027), b"d": (0o777, 0o027), b"p": (0o666, 0o027)}
    assert not floor.fs.umask_applied


async def test_a_plain_mount_has_the_umask_applied(base: Path) -> None:
    async with serving(base / "mnt", MountOptions(handshake=False)) as floor:
        await floor.do(subprocess.run, ["sh", "-c", f"umask 027; touch {floor.directory}/f"], check=True)
        assert floor.fs.modes == {b"f": (0o640, 0o027)}
        assert floor.fs.umask_applied


@pytest.mark.parametrize("handshake", [True, False])
async def test_small_writes_do_not_ask_for_capabilities(base: Path, handshake: bool) -> None:
    async with serving(base / "mnt", MountOptions(handshake=handshake)) as floor:
        opened = await floor.do(os.open, floor.directory / "f", os.O_WRONLY | os.O_CREAT)

        def write_small() -> None:
            for _ in range(200):
                os.write(opened, b"x" * 4096)

        asked = await floor.requests("getxattr", write_small)
        await floor.do(os.close, opened)
        assert bytes(floor.fs.node(b"f").data) == b"x" * 4096 * 200
        if handshake:
            assert asked <= 1
        else:
            assert asked >= 200
