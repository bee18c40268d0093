"""copy_file_range, sendfile, splice, and the ioctls with which files are cloned and looked into."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.posix.differing import here_or_on_ext4, outcome, times_moved

CONTENT: Final = bytes(range(256)) * 400
FICLONE: Final = 0x40049409
FS_IOC_GETFLAGS: Final = 0x80086601
FS_IOC_SETFLAGS: Final = 0x40086602
FS_IOC_FSGETXATTR: Final = 0x801C581F
FS_IOC_FIEMAP: Final = 0xC020660B
NODUMP: Final = 0x40


@pytest.fixture
def files(place: Path) -> Iterator[tuple[int, int]]:
    """A file with something in it and an empty one, both open for reading and writing."""
    (place / "full").write_bytes(CONTENT)
    descriptors = [os.open(place / name, os.O_CREAT | os.O_RDWR) for name in ("full", "empty")]
    yield descriptors[0], descriptors[1]
    for descriptor in descriptors:
        os.close(descriptor)


def test_a_range_is_copied(place: Path, files: tuple[int, int]) -> None:
    full, empty = files
    assert os.copy_file_range(full, empty, 1 << 20) == len(CONTENT)
    assert (place / "empty").read_bytes() == CONTENT
    assert os.copy_file_range(full, empty, 10) == 0, "at the end"
    assert os.copy_file_range(full, empty, 100, 1000, 200_000) == 100
    assert os.pread(empty, 101, 199_999) == b"\0" + CONTENT[1000:1100]
    assert os.copy_file_range(full, full, 100, 0, 50_000) == 100
    assert os.pread(full, 100, 50_000) == CONTENT[:100]


def test_what_copy_file_range_refuses(place: Path, files: tuple[int, int]) -> None:
    full, empty = files
    assert outcome(os.copy_file_range, full, full, 100, 0, 50) == "EINVAL", "overlapping"
    assert outcome(os.copy_file_range, full, empty, 10, 1 << 30, 0) == 0
    others = [os.open(place / "full", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_APPEND)]
    directory = os.open(place, os.O_RDONLY)
    try:
        assert outcome(os.copy_file_range, empty, others[0], 10, 0, 0) == "EBADF"
        assert outcome(os.copy_file_range, others[1], empty, 10, 0, 0) == "EBADF"
        assert outcome(os.copy_file_range, full, others[2], 10, 0, 0) == "EBADF"
        assert outcome(os.copy_file_range, directory, empty, 10, 0, 0) == "EISDIR"
    finally:
        for descriptor in (*others, directory):
            os.close(descriptor)


def test_copying_moves_times_of_what_is_written(files: tuple[int, int]) -> None:
    full, empty = files
    assert times_moved(empty, lambda: os.copy_file_range(full, empty, 1000, 0, 0)) == "mc"
    assert times_moved(full, lambda: os.copy_file_range(full, empty, 1000, 0, 0)) == ""


def test_sendfile_and_splice(place: Path, files: tuple[int, int]) -> None:
    full, empty = files
    assert os.sendfile(empty, full, 100, 5000) == 5000
    assert (place / "empty").read_bytes() == CONTENT[100:5100]
    reading, writing = os.pipe()
    try:
        assert os.splice(full, writing, 4096, offset_src=256) == 4096
        assert os.splice(reading, empty, 4096, offset_dst=0) == 4096
    finally:
        os.close(reading)
        os.close(writing)
    assert (place / "empty").read_bytes() == CONTENT[256:4352] + CONTENT[4196:5100]


def test_a_file_cannot_be_cloned(files: tuple[int, int]) -> None:
    """Nor on ext4. `cp --reflink=auto` copies, and what it copies is stored once."""
    full, empty = files
    assert outcome(fcntl.ioctl, empty, FICLONE, full) == errno.errorcode[errno.EOPNOTSUPP]


@pytest.mark.parametrize(
    ("request_number", "argument"),
    [(FS_IOC_GETFLAGS, bytes(8)), (FS_IOC_SETFLAGS, struct.pack("q", NODUMP)), (FS_IOC_FSGETXATTR, bytes(28))],
    ids=["lsattr", "chattr", "project"],
)
def test_unlike_ext4_there_are_no_inode_flags(files: tuple[int, int], request_number: int, argument: bytes) -> None:
    """pyfuse3 hands no IOCTL over."""
    answer = outcome(fcntl.ioctl, files[0], request_number, argument)
    assert (answer == "ENOTTY") is here_or_on_ext4(True, False)


def test_unlike_ext4_extents_are_not_told(files: tuple[int, int]) -> None:
    argument = bytearray(struct.pack("QQIIII", 0, 2**64 - 1, 0, 0, 0, 0))
    assert outcome(fcntl.ioctl, files[0], FS_IOC_FIEMAP, argument) == here_or_on_ext4(errno.errorcode[errno.EOPNOTSUPP], 0)


def test_an_unknown_ioctl(files: tuple[int, int]) -> None:
    assert outcome(fcntl.ioctl, files[0], 0x1234, bytes(4)) == "ENOTTY"
