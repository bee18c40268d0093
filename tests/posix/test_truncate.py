"""truncate, ftruncate and open with O_TRUNC: sizes, contents, times, set-id bits, and who may."""

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import TEAM
from tests.posix.differing import here_or_on_ext4, outcome, times_moved

LARGEST: Final = 2**63 - 1
CONTENT: Final = bytes(range(1, 256)) * 50


def by_descriptor(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


WAYS: Final[dict[str, Callable[[Path, int], None]]] = {"truncate": os.truncate, "ftruncate": by_descriptor}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Callable[[Path, int], None]:
    return WAYS[request.param]


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("size", [0, 1, 567, 4095, 4096, 4097, len(CONTENT), len(CONTENT) + 1, 65_536, 1_234_567])
def test_the_start_stays_and_zeros_follow(file: Path, size: int, way: Callable[[Path, int], None]) -> None:
    way(file, size)
    assert file.stat().st_size == size
    assert file.read_bytes() == CONTENT[:size].ljust(size, b"\0")


def test_what_was_cut_off_does_not_come_back(file: Path, way: Callable[[Path, int], None]) -> None:
    for size in (5000, 3, 9000):
        way(file, size)
    assert file.read_bytes() == CONTENT[:3].ljust(9000, b"\0")


def test_sizes_that_are_refused(file: Path, way: Callable[[Path, int], None]) -> None:
    assert times_moved(file, lambda: [outcome(way, file, size) for size in (-1, -999_999, -(2**63))]) == ""
    assert [outcome(way, file, size) for size in (-1, -999_999, -(2**63))] == ["EINVAL"] * 3
    assert file.stat().st_size == len(CONTENT)


def test_unlike_ext4_a_file_may_have_any_size_that_off_t_can_say(file: Path, way: Callable[[Path, int], None]) -> None:
    assert outcome(way, file, LARGEST) == here_or_on_ext4(None, "EFBIG")
    assert file.stat().st_size == here_or_on_ext4(LARGEST, len(CONTENT))
    with file.open("rb") as opened:
        assert opened.read(len(CONTENT)) == CONTENT
    way(file, 0)
    assert file.stat().st_blocks == 0


def test_which_times_move(file: Path, way: Callable[[Path, int], None]) -> None:
    assert times_moved(file, lambda: way(file, 3)) == "mc"
    assert times_moved(file, lambda: way(file, 3000)) == "mc"
    assert times_moved(file, lambda: way(file, 0)) == "mc"


def test_ftruncate_and_o_trunc_to_the_size_that_it_has_move_times(file: Path) -> None:
    assert times_moved(file, lambda: by_descriptor(file, len(CONTENT))) == "mc"
    os.truncate(file, 0)
    assert times_moved(file, lambda: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))) == "mc"


def test_unlike_ext4_truncate_to_the_size_that_it_has_moves_no_times(file: Path) -> None:
    assert times_moved(file, lambda: os.truncate(file, len(CONTENT))) == here_or_on_ext4("", "mc")


def test_what_cannot_be_truncated(place: Path) -> None:
    (place / "directory").mkdir()
    (place / "file").touch()
    os.mkfifo(place / "fifo")
    os.symlink("loop", place / "loop")
    os.symlink("a" * 200, place / "dangling")
    tried = {
        name: outcome(os.truncate, f"{place}/{name}", 0)
        for name in ("directory", "directory/", "fifo", "loop", "dangling", "missing", "missing/below", "file/below", "file/", "n" * 256, "n/" * 2100)
    }
    assert tried == {
        "directory": "EISDIR",
        "directory/": "EISDIR",
        "fifo": "EINVAL",
        "loop": "ELOOP",
        "dangling": "ENOENT",
        "missing": "ENOENT",
        "missing/below": "ENOENT",
        "file/below": "ENOTDIR",
        "file/": "ENOTDIR",
        "n" * 256: "ENAMETOOLONG",
        "n/" * 2100: "ENAMETOOLONG",
    }


@pytest.mark.root
def test_devices_cannot_be_truncated(place: Path, me: Actor) -> None:
    os.mknod(place / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert me.call("truncate", place / "device", 0) == "EINVAL"
    assert me.call("c", "truncate", 1, 0) == "EFAULT"


def test_a_symlink_leads_to_the_file(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to("file")
    os.truncate(link, 5)
    assert (file.stat().st_size, link.lstat().st_size) == (5, 4)


def test_ftruncate_wants_a_descriptor_to_write_with(file: Path, me: Actor) -> None:
    reading = me.call("open", file, os.O_RDONLY)
    assert me.call("ftruncate", reading, 0) == "EINVAL"
    assert me.call("ftruncate", me.call("open", file, os.O_PATH), 0) == "EBADF"
    assert me.call("ftruncate", me.call("open", file.parent, os.O_RDONLY), 0) == "EINVAL"
    me.call("close", reading)
    assert me.call("ftruncate", reading, 0) == "EBADF"
    assert file.stat().st_size == len(CONTENT)


def test_the_right_to_write_is_that_of_opening(place: Path, alice: Actor) -> None:
    place.chmod(0o777)
    writing = alice.call("open", place / "hers", os.O_CREAT | os.O_RDWR, 0)
    assert alice.call("ftruncate", writing, 0) is None
    assert alice.call("ftruncate", writing, 10) is None
    assert alice.call("truncate", place / "hers", 5) == "EACCES"
    assert (place / "hers").stat().st_size == 10


def test_who_may_truncate(file: Path, alice: Actor, bob: Actor) -> None:
    rules = [  # owner's mode, by the owner, by another
        (0o644, None, "EACCES"),
        (0o444, "EACCES", "EACCES"),
        (0o200, None, "EACCES"),
        (0o602, None, None),
        (0o422, "EACCES", None),
    ]
    os.chown(file, alice.uid, alice.gid)
    for mode, owners, others in rules:
        file.chmod(mode)
        assert times_moved(file, lambda: None) == ""
        found = alice.call("truncate", file, 100), bob.call("truncate", file, 101)
        assert (f"{mode:o}", *found) == (f"{mode:o}", owners, others)


def test_a_refusal_changes_no_times(file: Path, alice: Actor) -> None:
    assert times_moved(file, lambda: alice.call("truncate", file, 1)) == ""
    assert file.stat().st_size == len(CONTENT)


def test_a_directory_that_may_not_be_searched(file: Path, alice: Actor) -> None:
    inner = file.parent / "inner"
    inner.mkdir()
    moved = file.rename(inner / "file")
    moved.chmod(0o666)
    inner.chmod(0o766)
    assert alice.call("truncate", moved, 0) == "EACCES"
    inner.chmod(0o701)
    assert alice.call("truncate", moved, 0) is None


@pytest.fixture
def running(place: Path) -> Iterator[Path]:
    program = place / "program"
    shutil.copy("/bin/sleep", program)
    with subprocess.Popen([program, "1000"]) as child:
        yield program
        child.kill()


def test_a_program_that_runs_is_busy(running: Path) -> None:
    assert outcome(os.truncate, running, 0) == "ETXTBSY"
    assert outcome(os.open, running, os.O_WRONLY) == "ETXTBSY"
    assert outcome(os.open, running, os.O_WRONLY | os.O_TRUNC) == "ETXTBSY"
    assert running.stat().st_size > 0


def test_unlike_ext4_o_trunc_without_the_right_to_write_empties_a_program_that_runs(running: Path) -> None:
    """POSIX leaves open what O_RDONLY with O_TRUNC does."""
    assert outcome(os.open, running, os.O_RDONLY | os.O_TRUNC) == "ETXTBSY"
    assert (running.stat().st_size > 0) is here_or_on_ext4(False, True)


def test_a_program_that_is_open_for_writing_does_not_run(place: Path) -> None:
    program = place / "program"
    shutil.copy("/bin/true", program)
    with program.open("ab"):
        assert outcome(subprocess.call, [program]) == "ETXTBSY"
    assert subprocess.call([program]) == 0


def truncated_by(who: Actor, how: str, file: Path) -> None:
    if how == "truncate":
        who.call("truncate", file, 5)
    elif how == "ftruncate":
        who.call("ftruncate", who.call("open", file, os.O_WRONLY), 5)
    else:
        who.call("open", file, os.O_WRONLY | os.O_TRUNC)
    assert file.stat().st_size < len(CONTENT)


@pytest.mark.parametrize("mode", [0o6777, 0o2777, 0o4777, 0o4666, 0o2666, 0o2676])
@pytest.mark.parametrize("how", ["truncate", "ftruncate", "o_trunc"])
def test_set_id_bits_go_unless_root_does_it(file: Path, alice: Actor, carol: Actor, root: Actor, mode: int, how: str) -> None:
    """Set-gid without the group's right to execute, which once stood for mandatory locks, stays when a member of the group does it."""
    os.chown(file, 0, TEAM)
    for who in (root, alice, carol):
        file.write_bytes(CONTENT)
        file.chmod(mode)
        truncated_by(who, how, file)
        goes = 0 if who is root else stat.S_ISUID if who is alice and not mode & stat.S_IXGRP else stat.S_ISUID | stat.S_ISGID
        assert (who, oct(stat.S_IMODE(file.stat().st_mode))) == (who, oct(mode & ~goes))
