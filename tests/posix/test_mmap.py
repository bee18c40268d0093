"""Mappings, shared and private, while the file grows and shrinks; msync; what SIGBUS is for."""

import mmap
import os
import signal
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import run
from tests.posix.actors import Actor

PAGE: Final = mmap.PAGESIZE
PYTHON: Final = "/usr/bin/python3"


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"m" * (3 * PAGE + 100))
    return path


def test_shared_and_private(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as shared, mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE) as private:
        shared[0:1] = b"S"
        assert os.pread(opened.fileno(), 1, 0) == b"S"
        private[1:2] = b"P"
        assert os.pread(opened.fileno(), 2, 0) == b"Sm"
        os.pwrite(opened.fileno(), b"W", PAGE)
        assert shared[PAGE : PAGE + 1] == b"W"
        shared.flush()
    assert file.read_bytes()[: PAGE + 1] == b"Sm" + b"m" * (PAGE - 2) + b"W"


def test_behind_the_end_in_the_last_page_are_zeros_and_what_is_written_there_is_lost(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as ending:
        opened.truncate(3 * PAGE + 50)
        assert ending[3 * PAGE + 50 :] == bytes(50)
        ending[3 * PAGE + 60 : 3 * PAGE + 63] = b"xxx"
        ending.flush()
        opened.truncate(4 * PAGE)
        assert os.pread(opened.fileno(), PAGE, 3 * PAGE) == (b"m" * 50).ljust(PAGE, b"\0")


def test_a_mapping_sees_the_file_grow(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(4 * PAGE)
        with mmap.mmap(opened.fileno(), 4 * PAGE) as mapped:
            opened.truncate(100)
            opened.truncate(2 * PAGE)
            assert mapped[0 : 2 * PAGE] == (b"m" * 100).ljust(2 * PAGE, b"\0")
            mapped[PAGE : PAGE + 3] = b"new"
    assert file.read_bytes() == (b"m" * 100).ljust(PAGE, b"\0") + b"new".ljust(PAGE, b"\0")


TOUCH: Final = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
mapped = mmap.mmap(descriptor, 2 * mmap.PAGESIZE)
os.ftruncate(descriptor, 10)
print(mapped[20], flush=True)
if sys.argv[2] == "read":
    mapped[mmap.PAGESIZE]
else:
    mapped[mmap.PAGESIZE] = 1
"""


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_page_behind_the_end_is_a_bus_error(file: Path, how: str) -> None:
    done = run([PYTHON, "-I", "-c", TOUCH, file, how], expect=-signal.SIGBUS)
    assert done.stdout == "0\n"
    assert file.stat().st_size == 10


def test_what_may_be_mapped(place: Path, file: Path, me: Actor) -> None:
    reading = os.open(file, os.O_RDONLY)
    writing = os.open(file, os.O_WRONLY)
    directory = os.open(place, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(reading, PAGE)
        with mmap.mmap(reading, PAGE, flags=mmap.MAP_PRIVATE) as private:
            private[0:1] = b"p"
        with pytest.raises(PermissionError):
            mmap.mmap(writing, PAGE, flags=mmap.MAP_PRIVATE)
        assert me.call("c", "mmap", 0, PAGE, 1, 1, 250, 0) == "EBADF"
        with pytest.raises(OSError, match="No such device"):
            mmap.mmap(directory, PAGE, prot=mmap.PROT_READ)
    finally:
        for descriptor in (reading, writing, directory):
            os.close(descriptor)
    assert file.read_bytes()[:1] == b"m"


def test_a_mapping_outlives_descriptor_and_name(file: Path) -> None:
    descriptor = os.open(file, os.O_RDWR)
    with mmap.mmap(descriptor, PAGE) as mapped:
        os.close(descriptor)
        file.unlink()
        mapped[0:5] = b"still"
        mapped.flush()
        assert mapped[0:6] == b"stillm"


def test_what_a_mapping_wrote_is_there_when_it_is_gone(file: Path) -> None:
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        mapped[PAGE : 2 * PAGE] = b"n" * PAGE
    assert file.read_bytes() == b"m" * PAGE + b"n" * PAGE + b"m" * (PAGE + 100)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    assert file.read_bytes() == b"m" * PAGE + b"n" * PAGE + b"m" * (PAGE + 100)


def test_msync_wants_what_is_mapped(me: Actor) -> None:
    assert me.call("c", "msync", 1, PAGE, 4) == "EINVAL"
    assert me.call("c", "msync", PAGE, PAGE, 4) == "ENOMEM"


def test_a_hole_can_be_written_through_a_mapping(place: Path) -> None:
    with (place / "sparse").open("w+b") as opened:
        opened.truncate(1 << 20)
        with mmap.mmap(opened.fileno(), 0) as mapped:
            assert mapped[500_000] == 0
            mapped[500_000] = 7
            mapped.flush()
    assert (place / "sparse").read_bytes() == bytes(500_000) + b"\7" + bytes((1 << 20) - 500_001)


def test_a_file_can_be_copied_into_itself_through_its_mapping(file: Path) -> None:
    """The pages that are read from are those that are written to."""
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped, memoryview(mapped)[: 2 * PAGE] as source:
        assert os.pwrite(opened.fileno(), source, PAGE - 7) == 2 * PAGE
    assert file.read_bytes() == b"m" * (3 * PAGE + 100)
