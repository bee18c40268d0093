"""Content: whatever way it is written, it reads back, also after the kernel has forgotten it."""

import errno
import mmap
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.oracle.awkward import noise, text

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB


def forget_pages(path: Path) -> None:
    """The kernel drops what it holds of the file: the next read is answered by the file system."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 64 * KIB, 256 * KIB + 1, MIB, 5 * MIB + 12345])
@pytest.mark.parametrize("make", [text, noise])
def test_what_was_written_is_read(place: Path, size: int, make: object) -> None:
    content = (text if make is text else noise)(random.Random(size), size)
    path = place / "file"
    path.write_bytes(content)
    assert path.read_bytes() == content
    forget_pages(path)
    assert path.read_bytes() == content
    assert path.stat().st_size == size


def test_writing_through_a_mapping(place: Path) -> None:
    path = place / "mapped"
    content = bytearray(noise(random.Random(1), 3 * MIB))
    path.write_bytes(content)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        for offset in (0, 4095, 1 * MIB - 3, 3 * MIB - 5):
            pages[offset : offset + 5] = content[offset : offset + 5] = b"MMAP!"
        assert os.pread(file.fileno(), 5, 4095) == b"MMAP!"
        pages.flush()
    forget_pages(path)
    assert path.read_bytes() == content


def test_a_mapping_sees_what_is_written(place: Path) -> None:
    path = place / "mapped"
    path.write_bytes(bytes(64 * KIB))
    with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        file.seek(10_000)
        file.write(b"written")
        assert pages[10_000:10_007] == b"written"


def test_appending_through_several_descriptors(place: Path) -> None:
    path = place / "log"
    descriptors = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644) for _ in range(3)]
    expected = b""
    for n in range(300):
        line = b"line %d\n" % n
        os.write(descriptors[n % 3], line)
        expected += line
    for descriptor in descriptors:
        os.close(descriptor)
    forget_pages(path)
    assert path.read_bytes() == expected


def test_several_processes_append_whole_lines(place: Path) -> None:
    path = place / "log"
    code = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)\n"
        "for n in range(200): os.write(fd, f'{sys.argv[2]} {n}\\n'.encode())\n"
    )
    writers = [subprocess.Popen([sys.executable, "-I", "-c", code, path, str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0, 0, 0, 0]
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{writer} {n}" for writer in range(4) for n in range(200))
    for writer in range(4):
        own = [int(line.split()[1]) for line in lines if line.startswith(f"{writer} ")]
        assert own == sorted(own)


def test_holes_read_as_zeros_and_take_no_space(place: Path) -> None:
    path = place / "sparse"
    with open(path, "wb") as file:
        file.write(b"start")
        file.seek(40 * MIB)
        file.write(b"end")
    assert path.stat().st_size == 40 * MIB + 3
    forget_pages(path)
    content = path.read_bytes()
    assert content == b"start" + bytes(40 * MIB - 5) + b"end"
    assert path.stat().st_blocks * 512 < 4 * MIB


def test_a_sparse_file_of_20_gib(place: Path) -> None:
    path = place / "huge"
    pieces = {0: b"first", 7 * GIB + 123: b"somewhere", 20 * GIB - 4: b"last"}
    with open(path, "wb", buffering=0) as file:
        for offset, piece in pieces.items():
            os.pwrite(file.fileno(), piece, offset)
    assert path.stat().st_size == 20 * GIB
    forget_pages(path)
    with open(path, "rb", buffering=0) as file:
        for offset, piece in pieces.items():
            assert os.pread(file.fileno(), len(piece), offset) == piece
        assert os.pread(file.fileno(), 8 * KIB, 3 * GIB) == bytes(8 * KIB)
        assert os.pread(file.fileno(), 10, 20 * GIB) == b""
    os.truncate(path, 7 * GIB + 125)
    os.truncate(path, 8 * GIB)
    forget_pages(path)
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 12, 7 * GIB + 120) == b"\0\0\0so\0\0\0\0\0\0\0"


def test_a_file_of_terabytes_nominal_size(place: Path) -> None:
    path = place / "terabytes"
    path.touch()
    os.truncate(path, 10 << 40)
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"far", 9 << 40)
    forget_pages(path)
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 5, (9 << 40) - 1) == b"\0far\0"
    assert path.stat().st_size == 10 << 40
    os.truncate(path, 0)
    assert path.read_bytes() == b""


def test_truncating_inside_a_page_and_growing_again_shows_zeros(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"\xff" * 300_000)
    os.truncate(path, 100_001)
    os.truncate(path, 200_000)
    forget_pages(path)
    assert path.read_bytes() == b"\xff" * 100_001 + bytes(99_999)


def test_o_trunc_begins_anew(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"x" * 2 * MIB)
    with open(path, "wb") as file:
        file.write(b"short")
    forget_pages(path)
    assert path.read_bytes() == b"short"


def open_directly(path: Path) -> int | None:
    """A descriptor with O_DIRECT; None where the file system has no such thing."""
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT, 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return None


def test_reading_and_writing_directly(place: Path) -> None:
    """O_DIRECT is either refused or right."""
    path = place / "direct"
    descriptor = open_directly(path)
    if descriptor is None:
        return
    try:
        with mmap.mmap(-1, 256 * KIB) as block:
            block[:] = noise(random.Random(3), 256 * KIB)
            assert os.writev(descriptor, [block]) == 256 * KIB
            expected = block[:]
        with mmap.mmap(-1, 256 * KIB) as block:
            assert os.preadv(descriptor, [block], 0) == 256 * KIB
            assert block[:] == expected
    finally:
        os.close(descriptor)
    assert path.read_bytes() == expected


def test_o_sync_and_fdatasync(place: Path) -> None:
    descriptor = os.open(place / "file", os.O_CREAT | os.O_WRONLY | os.O_SYNC, 0o644)
    try:
        os.write(descriptor, b"synchronous")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    directory = os.open(place, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    assert (place / "file").read_bytes() == b"synchronous"
