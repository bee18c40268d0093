"""fallocate and posix_fallocate. pyfuse3 hands no FALLOCATE over, so the kernel answers EOPNOTSUPP and the C library writes instead."""

import errno
import os
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4, outcome, times_moved

KEEP_SIZE: Final = 1
PUNCH_HOLE: Final = 2
ZERO_RANGE: Final = 16
CONTENT: Final = b"content" * 1000


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("mode", [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_unlike_ext4_fallocate_is_not_supported(file: Path, me: Actor, mode: int) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    assert me.call("c", "fallocate", descriptor, mode, 0, 4096) == here_or_on_ext4(errno.errorcode[errno.EOPNOTSUPP], 0)
    assert file.read_bytes()[4096:] == CONTENT[4096:]
    assert (file.read_bytes() == CONTENT) or not here_or_on_ext4(True, mode in {0, KEEP_SIZE})


def allocated(me: Actor, file: Path, offset: int, length: int, flags: int = os.O_RDWR) -> object:
    return me.call("posix_fallocate", me.call("open", file, flags), offset, length)


def test_a_file_grows_and_keeps_what_it_has(file: Path, me: Actor) -> None:
    assert allocated(me, file, 0, 567) is None
    assert file.read_bytes() == CONTENT
    assert allocated(me, file, 20_000, 3456) is None
    assert file.read_bytes() == CONTENT.ljust(23_456, b"\0")


def test_an_empty_file(place: Path, me: Actor) -> None:
    (place / "new").touch()
    assert allocated(me, place / "new", 0, 567, os.O_WRONLY) is None
    assert (place / "new").read_bytes() == bytes(567)


def test_times(file: Path, me: Actor) -> None:
    assert times_moved(file, lambda: allocated(me, file, 0, 12_300)) == "mc"
    assert times_moved(file, lambda: allocated(me, file, 0, 0)) == ""


def test_what_is_refused(place: Path, file: Path, me: Actor) -> None:
    os.mkfifo(place / "fifo")
    assert allocated(me, file, 0, 0) == "EINVAL"
    assert allocated(me, file, -1, 10) == "EINVAL"
    assert allocated(me, file, 0, -1) == "EINVAL"
    assert allocated(me, file, 2**62, 2**62) == "EFBIG"
    assert allocated(me, file, 0, 10, os.O_RDONLY) == "EBADF"
    assert allocated(me, place / "fifo", 0, 10) == "ESPIPE"
    assert me.call("posix_fallocate", 250, 0, 10) == "EBADF"
    assert file.read_bytes() == CONTENT


def test_the_mode_that_a_new_file_gets_is_not_asked(place: Path, me: Actor, alice: Actor) -> None:
    place.chmod(0o777)
    for who in (me, alice):
        path = place / str(who.uid)
        assert who.call("posix_fallocate", who.call("open", path, os.O_CREAT | os.O_RDWR, 0), 0, 1) is None
        assert path.stat().st_size == 1


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR | os.O_APPEND], ids=["write only", "append"])
def test_unlike_ext4_posix_fallocate_needs_to_read_and_not_to_append(file: Path, me: Actor, flags: int) -> None:
    """The C library looks whether there is something where it would write a zero, and cannot write in the middle of a file that is appended to."""
    assert allocated(me, file, 0, 100, flags) == here_or_on_ext4("EBADF", None)
    assert file.read_bytes() == CONTENT


def test_unlike_ext4_allocated_room_is_not_reserved(file: Path) -> None:
    """Chunks of zeros become holes, so what was allocated takes no space, and writing there can fail for lack of room."""
    descriptor = os.open(file, os.O_RDWR)
    assert outcome(os.posix_fallocate, descriptor, 0, 8 << 20) is None
    os.fsync(descriptor)
    os.close(descriptor)
    assert file.stat().st_size == 8 << 20
    assert (file.stat().st_blocks * 512 <= 2 << 20) is here_or_on_ext4(True, False)
