"""lseek, holes among it: what a file reads where nothing was written, what it takes, and where holes are found."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4, outcome

MIB: Final = 1 << 20


@pytest.fixture
def sparse(place: Path) -> Path:
    """A page of data, a hole, and one byte at the end: a mebibyte in all."""
    path = place / "sparse"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"a" * 4096)
    os.pwrite(descriptor, b"b", MIB - 1)
    os.fsync(descriptor)
    os.close(descriptor)
    return path


def test_a_hole_reads_as_zeros_and_takes_no_room(sparse: Path) -> None:
    assert sparse.read_bytes() == b"a" * 4096 + bytes(MIB - 4097) + b"b"
    assert sparse.stat().st_blocks * 512 <= 64 << 10


def blocks_after(path: Path, change: Callable[[int], object]) -> int:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        change(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path.stat().st_blocks


def test_blocks_come_and_go_with_the_data(place: Path) -> None:
    path = place / "file"
    assert blocks_after(path, lambda descriptor: None) == 0
    assert blocks_after(path, lambda descriptor: os.ftruncate(descriptor, 64 * MIB)) == 0
    assert 2048 <= blocks_after(path, lambda descriptor: os.pwrite(descriptor, os.urandom(MIB), 32 * MIB)) < 2200
    assert blocks_after(path, lambda descriptor: os.ftruncate(descriptor, 32 * MIB)) == 0


def test_unlike_ext4_what_an_open_file_takes_is_told_when_it_is_closed(place: Path) -> None:
    """With its write-back cache the kernel asks for st_blocks anew when a descriptor was closed, not before."""
    descriptor = os.open(place / "file", os.O_CREAT | os.O_RDWR)
    os.fstat(descriptor)
    os.write(descriptor, os.urandom(MIB))
    os.fsync(descriptor)
    assert (os.fstat(descriptor).st_blocks >= 2048) is here_or_on_ext4(False, True)
    os.close(descriptor)
    assert (place / "file").stat().st_blocks >= 2048


def test_data_and_holes_between_start_and_end(sparse: Path) -> None:
    descriptor = os.open(sparse, os.O_RDONLY)
    try:
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        assert os.lseek(descriptor, MIB - 1, os.SEEK_DATA) == MIB - 1
        assert os.lseek(descriptor, MIB - 1, os.SEEK_HOLE) == MIB
        assert [outcome(os.lseek, descriptor, at, how) for at in (MIB, MIB + 1) for how in (os.SEEK_DATA, os.SEEK_HOLE)] == ["ENXIO"] * 4
        assert outcome(os.lseek, descriptor, -1, os.SEEK_DATA) == "ENXIO"
        # What is found is true: no data in what is said to be a hole.
        at = 0
        while at < MIB:
            hole = os.lseek(descriptor, at, os.SEEK_HOLE)
            data = outcome(os.lseek, descriptor, hole, os.SEEK_DATA)
            end = data if isinstance(data, int) else MIB
            assert os.pread(descriptor, end - hole, hole) == bytes(end - hole)
            at = end
    finally:
        os.close(descriptor)


def test_unlike_ext4_a_hole_is_not_found(sparse: Path) -> None:
    """pyfuse3 hands no LSEEK over: the kernel takes the whole file for data, which is always allowed."""
    descriptor = os.open(sparse, os.O_RDONLY)
    try:
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == here_or_on_ext4(MIB, 4096)
        assert (os.lseek(descriptor, 8192, os.SEEK_DATA) > 8192) is here_or_on_ext4(False, True)
    finally:
        os.close(descriptor)


def test_positions(sparse: Path, me: Actor) -> None:
    descriptor = me.call("open", sparse, os.O_RDWR)
    assert me.call("lseek", descriptor, 10, os.SEEK_SET) == 10
    assert me.call("lseek", descriptor, -3, os.SEEK_CUR) == 7
    assert me.call("lseek", descriptor, 5, os.SEEK_END) == MIB + 5
    assert me.call("lseek", descriptor, -MIB - 1, os.SEEK_END) == "EINVAL"
    assert me.call("lseek", descriptor, -1, os.SEEK_SET) == "EINVAL"
    assert me.call("lseek", descriptor, 0, 99) == "EINVAL"
    assert me.call("lseek", descriptor, 0, os.SEEK_CUR) == MIB + 5, "what failed moves nothing"
    assert me.call("read", descriptor, 10) == b""
    assert me.call("write", descriptor, b"far") == 3
    assert sparse.stat().st_size == MIB + 8
    os.mkfifo(sparse.with_name("fifo"))
    assert me.call("lseek", me.call("open", sparse.with_name("fifo"), os.O_RDWR), 0, 0) == "ESPIPE"


def test_unlike_ext4_a_position_may_lie_where_no_file_of_ext4_ends(sparse: Path, me: Actor) -> None:
    descriptor = me.call("open", sparse, os.O_RDWR)
    assert me.call("lseek", descriptor, 2**63 - 1, os.SEEK_SET) == here_or_on_ext4(2**63 - 1, "EINVAL")
