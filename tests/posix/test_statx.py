"""stat, statx, statvfs: what is told of a file and of the file system."""

import ctypes
import os
import stat
import struct
from pathlib import Path
from typing import Final

import pytest

from tests.fuse.conftest import NATIVE
from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4

BASIC: Final = 0x7FF
BTIME: Final = 0x800
NOFOLLOW: Final = 0x100
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Statx:
    """struct statx, as far as it is looked at."""

    def __init__(self, path: Path, flags: int = 0, mask: int = 0xFFF) -> None:
        buffer = ctypes.create_string_buffer(256)
        assert _libc.statx(-100, os.fsencode(path), flags, mask, buffer) == 0, os.strerror(ctypes.get_errno())
        self.mask, self.block_bytes, self.attributes, self.nlink, self.uid, self.gid, self.mode = struct.unpack_from("<IIQIIIH", buffer, 0)
        self.ino, self.size, self.blocks, self.attributes_mask = struct.unpack_from("<4Q", buffer, 0x20)
        times = [struct.unpack_from("<qI", buffer, at) for at in (0x40, 0x50, 0x60, 0x70)]
        self.atime_ns, self.btime_ns, self.ctime_ns, self.mtime_ns = (seconds * 10**9 + ns for seconds, ns in times)


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"content" * 1000)
    return path


def test_statx_says_what_stat_says(place: Path, file: Path) -> None:
    (place / "link").symlink_to("file")
    for path in (place, file, place / "link"):
        told, facts = Statx(path, NOFOLLOW), path.lstat()
        assert told.mask & BASIC == BASIC
        assert (told.ino, told.mode, told.nlink, told.uid, told.gid) == (facts.st_ino, facts.st_mode, facts.st_nlink, facts.st_uid, facts.st_gid)
        assert (told.atime_ns, told.mtime_ns, told.ctime_ns) == (facts.st_atime_ns, facts.st_mtime_ns, facts.st_ctime_ns)
        assert (told.size, told.blocks, told.block_bytes) == (facts.st_size, facts.st_blocks, facts.st_blksize)
        assert told.attributes & told.attributes_mask == told.attributes


def test_unlike_ext4_statx_tells_no_time_of_birth(file: Path) -> None:
    """It is on record; but libfuse 3 asks by GETATTR, which has no place for it."""
    told = Statx(file)
    assert (told.mask & BTIME != 0) is here_or_on_ext4(False, True)
    assert (told.btime_ns == 0) is here_or_on_ext4(True, False)


def test_kinds_and_sizes(place: Path, file: Path) -> None:
    (place / "directory").mkdir()
    (place / "link").symlink_to("f" * 100)
    os.mkfifo(place / "fifo")
    sizes = {name: (place / name).lstat().st_size for name in ("file", "link", "fifo", "directory")}
    assert sizes == {"file": 7000, "link": 100, "fifo": 0, "directory": 4096}
    assert (place / "fifo").stat().st_blocks == 0
    assert {(place / name).lstat().st_dev for name in sizes} == {place.stat().st_dev}
    assert (place / "directory").stat().st_nlink == 2
    assert (place / "fifo").stat().st_rdev == 0


def test_unlike_ext4_blocks_are_those_that_are_taken_not_whole_pages(file: Path) -> None:
    """st_blocks counts bytes of content that are stored, in 512s; ext4 takes its blocks whole."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
    assert file.stat().st_blocks == here_or_on_ext4(14, 16)


def test_the_file_system(place: Path) -> None:
    told = os.statvfs(place)
    assert (told.f_bsize, told.f_frsize, told.f_namemax) == (4096, 4096, 255)
    assert 0 < told.f_bavail <= told.f_bfree < told.f_blocks
    assert 0 < told.f_favail <= told.f_ffree < told.f_files
    assert not told.f_flag & os.ST_RDONLY
    assert told.f_flag & os.ST_NOATIME or NATIVE
    file = place / "file"
    file.touch()
    descriptor = os.open(file, os.O_PATH)
    assert os.fstatvfs(descriptor).f_blocks == told.f_blocks
    os.close(descriptor)


@pytest.mark.root
def test_unlike_ext4_devices_are_closed_and_set_id_bits_lend_nothing(place: Path, me: Actor) -> None:
    """Mounts are `nodev` and `nosuid`: what a user may make on a file system of a process of his is no device of the machine's."""
    flags = os.statvfs(place).f_flag & (os.ST_NODEV | os.ST_NOSUID)
    assert flags == here_or_on_ext4(os.ST_NODEV | os.ST_NOSUID, 0)
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert (me.call("open", place / "null", os.O_RDONLY) == "EACCES") is here_or_on_ext4(True, False)


def test_inodes_that_are_used_are_counted(place: Path) -> None:
    before = os.statvfs(place).f_ffree
    for n in range(10):
        (place / f"{n}").touch()
    assert os.statvfs(place).f_ffree <= before - 10


def test_who_may_stat(place: Path, file: Path, alice: Actor) -> None:
    file.chmod(0)
    assert alice.call("stat", file).st_size == 7000
    assert isinstance(alice.call("statvfs", file), tuple)
    place.chmod(0o700)
    assert alice.call("stat", file) == "EACCES"
    assert alice.call("statvfs", file) == "EACCES"


def test_errors(place: Path, file: Path, me: Actor) -> None:
    os.symlink("loop", place / "loop")
    for call in ("stat", "statvfs"):
        assert me.call(call, place / "missing") == "ENOENT"
        assert me.call(call, file / "below") == "ENOTDIR"
        assert me.call(call, place / "loop") == "ELOOP"
        assert me.call(call, place / ("n" * 256)) == "ENAMETOOLONG"
    assert stat.S_ISLNK(me.call("lstat", place / "loop").st_mode)
    assert me.call("c", "stat", 1, 1) == "EFAULT"
    assert me.call("fstat", 250) == "EBADF"
