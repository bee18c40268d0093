"""read, write and their relatives: positions, ends, O_APPEND, O_DIRECT, O_SYNC, what stops a write, and what writing takes away."""

import mmap
import os
import signal
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import run
from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4

PYTHON: Final = "/usr/bin/python3"


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"0123456789")
    return path


def test_positions(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    assert me.call("pwrite", descriptor, b"ab", 4) == 2
    assert me.call("read", descriptor, 3) == b"012", "pwrite moves nothing"
    assert me.call("write", descriptor, b"X") == 1
    assert me.call("read", descriptor, 100) == b"ab6789"
    assert me.call("read", descriptor, 100) == b""
    assert me.call("pread", descriptor, 100, 10_000) == b""
    assert me.call("pread", descriptor, 10, -1) == "EINVAL"
    assert me.call("pwrite", descriptor, b"x", -1) == "EINVAL"
    assert file.read_bytes() == b"012Xab6789"


def test_a_write_behind_the_end_leaves_zeros(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_WRONLY)
    assert me.call("pwrite", descriptor, b"far", 10_000) == 3
    assert file.read_bytes() == b"0123456789" + bytes(9990) + b"far"


def test_the_wrong_descriptor(place: Path, file: Path, me: Actor) -> None:
    reading, writing = me.call("open", file, os.O_RDONLY), me.call("open", file, os.O_WRONLY)
    assert me.call("write", reading, b"x") == "EBADF"
    assert me.call("read", writing, 1) == "EBADF"
    assert me.call("pread", writing, 1, 0) == "EBADF"
    assert me.call("write", reading, b"") == "EBADF"
    directory = me.call("open", place, os.O_RDONLY)
    assert me.call("read", directory, 1) == "EISDIR"
    assert me.call("write", directory, b"x") == "EBADF"
    assert me.call("read", me.call("open", file, os.O_PATH), 1) == "EBADF"
    assert me.call("c", "read", reading, 1, 10) == "EFAULT"
    assert me.call("c", "write", writing, 1, 10) == "EFAULT"
    assert file.read_bytes() == b"0123456789"


def test_appending_goes_to_the_end_whatever_the_position(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR | os.O_APPEND)
    assert me.call("lseek", descriptor, 2, os.SEEK_SET) == 2
    assert me.call("write", descriptor, b"a") == 1
    assert me.call("lseek", descriptor, 0, os.SEEK_CUR) == 11
    assert me.call("pwrite", descriptor, b"b", 0) == 1, "Linux appends with pwrite too"
    assert file.read_bytes() == b"0123456789ab"


def test_appending_by_several(file: Path, alice: Actor, bob: Actor, me: Actor) -> None:
    file.chmod(0o666)
    writers = [(who, who.call("open", file, os.O_WRONLY | os.O_APPEND)) for who in (alice, bob, me)]
    other = me.call("open", file, os.O_WRONLY)
    expected = b"0123456789"
    for n in range(60):
        who, descriptor = writers[n % 3]
        piece = b"%d by %d\n" % (n, who.uid)
        assert who.call("write", descriptor, piece) == len(piece)
        expected += piece
    me.call("pwrite", other, b"!", len(expected))
    alice.call("write", writers[0][1], b"end")
    assert file.read_bytes() == expected + b"!end"
    me.call("ftruncate", other, 3)
    bob.call("write", writers[1][1], b"new")
    assert file.read_bytes() == b"012new"


@pytest.fixture
def block() -> mmap.mmap:
    """Memory at the start of a page."""
    return mmap.mmap(-1, 16_384)


def test_direct_io(file: Path, block: mmap.mmap) -> None:
    block[:] = os.urandom(16_384)
    expected = block[:]
    descriptor = os.open(file, os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwritev(descriptor, [block], 4096) == 16_384
        with file.open("rb") as buffered:
            assert buffered.read() == b"0123456789" + bytes(4086) + expected
        block[:] = bytes(16_384)
        assert os.preadv(descriptor, [block], 4096) == 16_384
        assert block[:] == expected
        with file.open("r+b", buffering=0) as buffered:
            os.pwrite(buffered.fileno(), b"buffered", 4096)
        assert os.preadv(descriptor, [block], 4096) == 16_384
        assert block[:8] == b"buffered"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("offset", "start", "length"), [(1, 0, 4096), (0, 0, 100), (0, 1, 4096)], ids=["offset", "length", "memory"])
def test_unlike_ext4_direct_io_needs_no_alignment(file: Path, block: mmap.mmap, offset: int, start: int, length: int) -> None:
    descriptor = os.open(file, os.O_RDWR | os.O_DIRECT)
    try:
        with memoryview(block)[start : start + length] as piece:
            if here_or_on_ext4(True, False):
                assert os.pwritev(descriptor, [piece], offset) == length
                assert os.preadv(descriptor, [piece], offset) == length
            else:
                with pytest.raises(OSError, match="Invalid argument"):
                    os.pwritev(descriptor, [piece], offset)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC, os.O_SYNC | os.O_APPEND, os.O_DIRECT | os.O_SYNC])
def test_synchronous_writes(file: Path, block: mmap.mmap, flag: int) -> None:
    descriptor = os.open(file, os.O_RDWR | flag)
    try:
        assert os.writev(descriptor, [block]) == 16_384
        os.fdatasync(descriptor)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    assert file.stat().st_size == 16_384 + (10 if flag & os.O_APPEND else 0)


def test_fsync_of_everything_that_can_be_open(place: Path, file: Path, me: Actor) -> None:
    assert me.call("fsync", me.call("open", file, os.O_RDONLY)) is None
    assert me.call("fsync", me.call("open", place, os.O_RDONLY)) is None
    assert me.call("fdatasync", me.call("open", place, os.O_RDONLY)) is None
    assert me.call("fsync", me.call("open", file, os.O_PATH)) == "EBADF"
    os.mkfifo(place / "fifo")
    assert me.call("fsync", me.call("open", place / "fifo", os.O_RDWR)) == "EINVAL"
    assert me.call("c", "syncfs", me.call("open", place, os.O_RDONLY)) == 0


BEYOND: Final = """
import errno, os, resource, signal, sys
descriptor = os.open(sys.argv[1], os.O_RDWR)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which the interpreter ignores
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGXFSZ})
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
def tried(call, *arguments):
    try:
        done = call(*arguments)
    except OSError as error:
        done = errno.errorcode[error.errno]
    print(done, signal.sigtimedwait({signal.SIGXFSZ}, 0) is not None, flush=True)
tried(os.pwrite, descriptor, bytes(20000), 0)
tried(os.pwrite, descriptor, b"x", 9999)
tried(os.pwrite, descriptor, b"x", 10000)
tried(os.ftruncate, descriptor, 10001)
tried(os.truncate, sys.argv[1], 10001)
tried(os.ftruncate, descriptor, 10000)
tried(os.posix_fallocate, descriptor, 0, 20000)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXFSZ})
os.pwrite(descriptor, b"x", 10000)
"""


def test_the_limit_of_a_process(file: Path) -> None:
    """RLIMIT_FSIZE: what fits is written, what is beyond gives EFBIG and SIGXFSZ. What the C library does for fallocate meets it too."""
    done = run([PYTHON, "-I", "-c", BEYOND, file], expect=-signal.SIGXFSZ)
    assert done.stdout.splitlines() == ["10000 False", "1 False", "EFBIG True", "EFBIG True", "EFBIG True", "None False", "EFBIG True"]
    assert file.stat().st_size == 10_000


def test_unlike_ext4_there_is_room_up_to_the_last_byte_that_off_t_can_say(file: Path, me: Actor) -> None:
    last = 2**63 - 2
    descriptor = me.call("open", file, os.O_RDWR)
    assert me.call("pwrite", descriptor, b"x", last) == here_or_on_ext4(1, "EFBIG")
    assert me.call("pwrite", descriptor, b"xy", last) == "EINVAL"
    assert me.call("pwrite", descriptor, b"y", last + 1) == "EINVAL"
    assert me.call("fsync", descriptor) is None
    assert file.stat().st_size == here_or_on_ext4(2**63 - 1, 10)
    assert me.call("pread", descriptor, 1, last) == here_or_on_ext4(b"x", b"")
    assert me.call("pread", descriptor, 20, 0)[:10] == b"0123456789"


@pytest.mark.parametrize("mode", [0o6777, 0o4666, 0o2666])
def test_set_id_bits_go_with_a_write(place: Path, file: Path, alice: Actor, root: Actor, mode: int) -> None:
    for who in (root, alice):
        file.chmod(mode)
        descriptor = who.call("open", file, os.O_WRONLY)
        assert who.call("write", descriptor, b"x") == 1
        assert stat.S_IMODE(file.stat().st_mode) == (mode if who is root else mode & 0o777)
        who.call("fsync", descriptor)
        assert stat.S_IMODE(file.stat().st_mode) == (mode if who is root else mode & 0o777)


def test_set_id_bits_that_are_given_to_an_open_file_go_with_the_next_write(file: Path, alice: Actor) -> None:
    file.chmod(0o666)
    descriptor = alice.call("open", file, os.O_WRONLY)
    alice.call("write", descriptor, b"x")
    file.chmod(0o6777)
    alice.call("write", descriptor, b"y")
    assert stat.S_IMODE(file.stat().st_mode) == 0o777


@pytest.mark.root
def test_set_id_bits_go_when_another_writes_through_what_root_opened(file: Path) -> None:
    file.chmod(0o4777)
    with file.open("r+b") as opened:
        code = f"import os; os.write({opened.fileno()}, b'x')"
        run([PYTHON, "-I", "-c", code], user=65_531, pass_fds=[opened.fileno()], cwd=Path("/"))
    assert stat.S_IMODE(file.stat().st_mode) == 0o777
