"""Locks between processes: flock, fcntl, those of open file descriptions, and leases. All of them live in the kernel of this host."""

import errno
import fcntl
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import until
from tests.posix.actors import Actor
from tests.posix.differing import outcome

_FLOCK: Final = struct.Struct("hhqqi4x")


def region(kind: int, start: int = 0, length: int = 0) -> bytes:
    """A struct flock; length 0: to the end, wherever that is."""
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)


def lock(who: Actor, descriptor: object, command: int, kind: int, start: int = 0, length: int = 0) -> object:
    return who.call("c", "fcntl", descriptor, command, region(kind, start, length))


def holder(descriptor: int, command: int, kind: int, start: int, length: int) -> tuple[int, int, int, int]:
    """What F_GETLK finds in the way: (kind, start, length, process)."""
    found_kind, _, found_start, found_length, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, command, region(kind, start, length)))
    return found_kind, found_start, found_length, pid


def is_waited_for(path: Path) -> bool:
    """Whether the kernel has somebody wait for a lock on this file."""
    number = f":{path.stat().st_ino} "
    return any("->" in line and number in line for line in Path("/proc/locks").read_text().splitlines())


class Waiting:
    """A call that waits, in a thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._answers: list[object] = []
        self._thread = threading.Thread(target=lambda: self._answers.append(outcome(call)))
        self._thread.start()

    def answer(self) -> object:
        self._thread.join()
        return self._answers[0]

    @property
    def waits(self) -> bool:
        return not self._answers


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(bytes(100))
    path.chmod(0o666)
    return path


@pytest.fixture
def mine(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def test_fcntl_locks_of_two_processes(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_WRLCK, 10, 10))
    rules = [  # kind, start, length
        (fcntl.F_WRLCK, 0, 10, 0),
        (fcntl.F_WRLCK, 20, 0, 0),
        (fcntl.F_WRLCK, 19, 1, "EAGAIN"),
        (fcntl.F_RDLCK, 0, 0, "EAGAIN"),
    ]
    for kind, start, length, expected in rules:
        assert lock(me, theirs, fcntl.F_SETLK, kind, start, length) == expected
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_RDLCK, 10, 10))
    assert lock(me, theirs, fcntl.F_SETLK, fcntl.F_RDLCK, 15, 1) == 0
    assert lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK, 15, 1) == "EAGAIN"
    assert outcome(fcntl.fcntl, mine, fcntl.F_SETLK, region(fcntl.F_WRLCK, 10, 10)) == "EAGAIN", "two readers are in each other's way"


def test_who_is_in_the_way(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK, 5, 10)
    assert holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 100) == (fcntl.F_WRLCK, 5, 10, me.call("getpid"))
    assert holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, 50, 10)[0] == fcntl.F_UNLCK
    me.call("close", theirs)
    assert holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 100)[0] == fcntl.F_UNLCK


def test_parts_of_a_lock_can_be_let_go(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK, 0, 30)
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_UNLCK, 10, 10)
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_RDLCK, 25, 5)
    found = [holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, start, 1)[0] for start in (0, 9, 10, 19, 20, 24, 25, 29, 30)]
    write, read, none = fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK
    assert found == [write, write, none, none, write, write, read, read, none]


def test_closing_any_descriptor_lets_a_process_s_locks_go(file: Path, mine: int, me: Actor) -> None:
    first, second = me.call("open", file, os.O_RDWR), me.call("open", file, os.O_RDWR)
    lock(me, first, fcntl.F_SETLK, fcntl.F_WRLCK)
    me.call("close", second)
    assert holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)[0] == fcntl.F_UNLCK


def test_what_is_needed_for_a_lock(file: Path, place: Path, me: Actor) -> None:
    reading, writing = me.call("open", file, os.O_RDONLY), me.call("open", file, os.O_WRONLY)
    assert lock(me, reading, fcntl.F_SETLK, fcntl.F_WRLCK) == "EBADF"
    assert lock(me, writing, fcntl.F_SETLK, fcntl.F_RDLCK) == "EBADF"
    assert lock(me, reading, fcntl.F_SETLK, fcntl.F_RDLCK) == 0
    assert lock(me, reading, fcntl.F_SETLK, 99) == "EINVAL"
    assert me.call("c", "fcntl", writing, fcntl.F_SETLK, region(fcntl.F_WRLCK, -1, 1)) == "EINVAL"
    assert lock(me, me.call("open", file, os.O_PATH), fcntl.F_SETLK, fcntl.F_RDLCK) == "EBADF"
    assert me.call("c", "flock", reading, fcntl.LOCK_EX | fcntl.LOCK_NB) == 0, "flock does not ask how it was opened"
    assert me.call("c", "flock", me.call("open", place, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB) == 0
    assert me.call("c", "flock", reading, 16) == "EINVAL"


def test_a_process_waits_for_a_lock(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_WRLCK, 0, 10))
    waiting = Waiting(lambda: lock(me, theirs, fcntl.F_SETLKW, fcntl.F_WRLCK, 5, 10))
    until(lambda: is_waited_for(file), "the other process waits for the lock")
    assert waiting.waits
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_UNLCK, 0, 10))
    assert waiting.answer() == 0
    assert holder(mine, fcntl.F_GETLK, fcntl.F_WRLCK, 0, 0)[1:3] == (5, 10)


def test_a_deadlock_is_found(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_WRLCK, 0, 1))
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK, 1, 1)
    waiting = Waiting(lambda: fcntl.fcntl(mine, fcntl.F_SETLKW, region(fcntl.F_WRLCK, 1, 1)))
    until(lambda: is_waited_for(file), "this process waits for the lock")
    assert lock(me, theirs, fcntl.F_SETLKW, fcntl.F_WRLCK, 0, 1) == errno.errorcode[errno.EDEADLK]
    assert waiting.waits
    lock(me, theirs, fcntl.F_SETLK, fcntl.F_UNLCK, 1, 1)
    waiting.answer()
    assert lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK, 1, 1) == "EAGAIN"


def test_flock(file: Path, me: Actor) -> None:
    first, second = me.call("open", file, os.O_RDONLY), me.call("open", file, os.O_RDONLY)
    exclusive, shared, release = (kind | fcntl.LOCK_NB for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN))
    assert me.call("c", "flock", first, exclusive) == 0
    assert me.call("c", "flock", second, shared) == "EAGAIN", "one process, two open files"
    assert me.call("c", "flock", first, shared) == 0
    assert me.call("c", "flock", second, shared) == 0
    assert me.call("c", "flock", first, exclusive) == "EAGAIN"
    duplicate = me.call("dup", second)
    me.call("close", second)
    assert me.call("c", "flock", first, exclusive) == "EAGAIN", "the duplicate keeps it"
    assert me.call("c", "flock", duplicate, release) == 0
    assert me.call("c", "flock", first, exclusive) == 0


def test_somebody_waits_for_flock(file: Path, mine: int, alice: Actor) -> None:
    theirs = alice.call("open", file, os.O_RDONLY)
    fcntl.flock(mine, fcntl.LOCK_EX)
    waiting = Waiting(lambda: alice.call("c", "flock", theirs, fcntl.LOCK_SH))
    until(lambda: is_waited_for(file), "alice waits for the lock")
    assert waiting.waits
    fcntl.flock(mine, fcntl.LOCK_UN)
    assert waiting.answer() == 0


def test_flock_and_fcntl_do_not_see_each_other(file: Path, mine: int, me: Actor) -> None:
    fcntl.flock(mine, fcntl.LOCK_EX)
    assert lock(me, me.call("open", file, os.O_RDWR), fcntl.F_SETLK, fcntl.F_WRLCK) == 0


def test_locks_of_open_files(file: Path, mine: int, me: Actor) -> None:
    first, second = me.call("open", file, os.O_RDWR), me.call("open", file, os.O_RDWR)
    assert lock(me, first, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0, 10) == 0
    assert lock(me, second, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5, 10) == "EAGAIN", "one process, two open files"
    assert holder(mine, fcntl.F_OFD_GETLK, fcntl.F_RDLCK, 0, 0) == (fcntl.F_WRLCK, 0, 10, -1)
    assert lock(me, second, fcntl.F_SETLK, fcntl.F_RDLCK, 0, 1) == "EAGAIN", "those of processes are in the way too"
    me.call("close", me.call("open", file, os.O_RDWR))
    assert lock(me, second, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5, 10) == "EAGAIN", "closing another descriptor lets nothing go"
    me.call("close", first)
    assert lock(me, second, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 5, 10) == 0


def test_locks_survive_rename_and_unlink(file: Path, mine: int, me: Actor) -> None:
    theirs = me.call("open", file, os.O_RDWR)
    fcntl.fcntl(mine, fcntl.F_SETLK, region(fcntl.F_WRLCK))
    moved = file.rename(file.with_name("moved"))
    assert lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK) == "EAGAIN"
    moved.unlink()
    assert lock(me, theirs, fcntl.F_SETLK, fcntl.F_WRLCK) == "EAGAIN"


F_SETLEASE: Final = 1024
F_GETLEASE: Final = 1025
IGNORE: Final = 1


def test_leases(file: Path, me: Actor, alice: Actor) -> None:
    """Whoever holds one is told before another opens the file, and gives it up."""
    me.call("c", "signal", signal.SIGIO, IGNORE)
    held = me.call("open", file, os.O_RDONLY)
    assert me.call("c", "fcntl", held, F_SETLEASE, fcntl.F_WRLCK) == 0
    assert me.call("c", "fcntl", held, F_GETLEASE, 0) == fcntl.F_WRLCK
    assert alice.call("open", file, os.O_RDONLY | os.O_NONBLOCK) == "EAGAIN"
    waiting = Waiting(lambda: alice.call("open", file, os.O_RDONLY))
    until(lambda: me.call("c", "fcntl", held, F_GETLEASE, 0) == fcntl.F_RDLCK, "the holder is asked to go down to a lease for reading")
    assert me.call("c", "fcntl", held, F_SETLEASE, fcntl.F_UNLCK) == 0
    assert isinstance(waiting.answer(), int)
    assert me.call("c", "fcntl", held, F_SETLEASE, fcntl.F_WRLCK) == "EAGAIN", "somebody else has it open"
    assert me.call("c", "fcntl", held, F_SETLEASE, fcntl.F_RDLCK) == 0
    assert me.call("c", "fcntl", held, F_SETLEASE, fcntl.F_UNLCK) == 0


@pytest.mark.root
def test_a_lease_is_for_the_owner(file: Path, alice: Actor) -> None:
    assert alice.call("c", "fcntl", alice.call("open", file, os.O_RDONLY), F_SETLEASE, fcntl.F_RDLCK) == "EACCES"
    os.chown(file, alice.uid, -1)
    assert alice.call("c", "fcntl", alice.call("open", file, os.O_RDONLY), F_SETLEASE, fcntl.F_RDLCK) == 0
