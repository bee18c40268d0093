"""utimensat and futimens: what is set, to which precision, through what, and who may."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import OLD_NS, times_moved

NOW: Final = (0, (1 << 30) - 1)
OMIT: Final = (0, (1 << 30) - 2)
NOFOLLOW: Final = 0x100
EMPTY_PATH: Final = 0x1000
FIRST: Final = (1_900_000_000, 123_456_789)
SECOND: Final = (1_950_000_000, 987_654_321)


def shown(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    facts = path.lstat()
    return divmod(facts.st_atime_ns, 10**9), divmod(facts.st_mtime_ns, 10**9)


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


MAKERS: Final[dict[str, Callable[[Path, Actor], object]]] = {
    "file": lambda path, me: path.touch(),
    "directory": lambda path, me: path.mkdir(),
    "fifo": lambda path, me: os.mkfifo(path),
    "socket": lambda path, me: (me.call("chdir", path.parent), me.call("bind", path.name)),
    "symlink": lambda path, me: path.symlink_to("nowhere"),
    "character device": lambda path, me: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "block device": lambda path, me: os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(7, 3)),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_keeps_nanoseconds(place: Path, root: Actor, kind: str) -> None:
    path = place / "it"
    MAKERS[kind](path, root)
    assert root.call("utimensat", path, FIRST, SECOND, NOFOLLOW) is None
    assert shown(path) == (FIRST, SECOND)


@pytest.mark.parametrize("seconds", [0, 1, -1, 2**31 - 1, 2**31, 2**32, 1 - 2**31, 15_032_385_534])
def test_times_far_away(file: Path, me: Actor, seconds: int) -> None:
    assert me.call("utimensat", file, (seconds, 1), (seconds, 999_999_999)) is None
    assert shown(file) == ((seconds, 1), (seconds, 999_999_999))


def test_omit_leaves_alone(file: Path, me: Actor) -> None:
    old = divmod(OLD_NS, 10**9)
    me.call("utimensat", file, FIRST, OMIT)
    assert shown(file) == (FIRST, old)
    me.call("utimensat", file, OMIT, SECOND)
    assert shown(file) == (FIRST, SECOND)
    assert times_moved(file, lambda: me.call("utimensat", file, OMIT, OMIT)) == ""


def test_now_is_now(file: Path, me: Actor) -> None:
    assert times_moved(file, lambda: me.call("utimensat", file, NOW, NOW)) == "amc"
    moved = file.stat()
    assert moved.st_atime_ns == moved.st_mtime_ns
    assert abs(moved.st_ctime_ns - moved.st_mtime_ns) < 10**9
    assert times_moved(file, lambda: me.call("utimensat", file, NOW, OMIT)) == "ac"
    assert times_moved(file, lambda: me.call("utimensat", file, OMIT, NOW)) == "mc"
    assert times_moved(file, lambda: me.call("c", "utimensat", -100, str(file), None, 0)) == "amc"


def test_setting_a_time_moves_ctime(file: Path, me: Actor) -> None:
    assert times_moved(file, lambda: me.call("utimensat", file, FIRST, OMIT)) == "ac"
    assert times_moved(file, lambda: me.call("utimensat", file, OMIT, divmod(OLD_NS, 10**9))) == "c"


def test_symlinks_are_followed_or_not(place: Path, file: Path, me: Actor) -> None:
    link = place / "link"
    link.symlink_to("file")
    me.call("utimensat", link, FIRST, SECOND, NOFOLLOW)
    old = divmod(OLD_NS, 10**9)
    assert (shown(link), shown(file)) == ((FIRST, SECOND), (old, old))
    me.call("utimensat", link, SECOND, FIRST)
    assert shown(file) == (SECOND, FIRST)
    assert shown(link)[1] == SECOND


def test_through_descriptors(place: Path, file: Path, me: Actor) -> None:
    directory = me.call("open", place, os.O_RDONLY)
    assert me.call("utimensat", "file", FIRST, SECOND, 0, directory) is None
    assert shown(file) == (FIRST, SECOND)
    descriptor = me.call("open", file, os.O_RDONLY)
    assert me.call("utime", descriptor, ns=(5, 6)) is None
    assert shown(file) == ((0, 5), (0, 6))
    assert me.call("utimensat", "", FIRST, SECOND, EMPTY_PATH, me.call("open", file, os.O_PATH)) is None
    assert shown(file) == (FIRST, SECOND)


def test_an_open_file_that_was_unlinked(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    file.unlink()
    me.call("utime", descriptor, ns=(5, 6))
    facts = me.call("fstat", descriptor)
    assert (facts.st_atime_ns, facts.st_mtime_ns) == (5, 6)


def test_times_set_after_writing_stay(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_WRONLY)
    me.call("write", descriptor, b"dirty")
    me.call("utime", descriptor, ns=(5, 6))
    me.call("fsync", descriptor)
    me.call("close", descriptor)
    assert shown(file) == ((0, 5), (0, 6))


def test_errors(place: Path, file: Path, me: Actor) -> None:
    os.symlink("loop", place / "loop")
    os.symlink("missing", place / "dangling")
    assert me.call("utimensat", file, (0, 10**9), FIRST) == "EINVAL"
    assert me.call("utimensat", file, FIRST, (0, -1)) == "EINVAL"
    assert me.call("utimensat", file, FIRST, FIRST, 0x4) == "EINVAL"
    assert me.call("utimensat", place / "missing", FIRST, FIRST) == "ENOENT"
    assert me.call("utimensat", place / "dangling", FIRST, FIRST) == "ENOENT"
    assert me.call("utimensat", file / "below", FIRST, FIRST) == "ENOTDIR"
    assert me.call("utimensat", "x", FIRST, FIRST, 0, me.call("open", file, os.O_RDONLY)) == "ENOTDIR"
    assert me.call("utimensat", place / "loop", FIRST, FIRST) == "ELOOP"
    assert me.call("utimensat", place / ("n" * 256), FIRST, FIRST) == "ENAMETOOLONG"
    assert me.call("utimensat", "x", FIRST, FIRST, 0, 200) == "EBADF"
    assert me.call("utimensat", "", FIRST, FIRST) == "ENOENT"
    assert me.call("c", "utimensat", -100, 1, None, 0) == "EFAULT"


WISHES: Final = {
    "both now": (NOW, NOW),
    "both given": (FIRST, SECOND),
    "access given": (FIRST, OMIT),
    "change given": (OMIT, FIRST),
    "access now": (NOW, OMIT),
    "change now": (OMIT, NOW),
    "nothing": (OMIT, OMIT),
}


@pytest.mark.parametrize("wish", WISHES)
def test_who_may(file: Path, alice: Actor, bob: Actor, root: Actor, wish: str) -> None:
    """The owner and root may set anything; whoever may write may set both to now; nobody needs a right for nothing."""
    times = WISHES[wish]
    os.chown(file, alice.uid, alice.gid)
    for mode in (0o644, 0o444, 0o000, 0o666, 0o002):
        file.chmod(mode)
        stranger: object = "EPERM"
        if wish == "nothing" or (wish == "both now" and mode & 0o002):
            stranger = None
        elif wish == "both now":
            stranger = "EACCES"
        found = [who.call("utimensat", file, *times) for who in (root, alice, bob)]
        assert (oct(mode), *found) == (oct(mode), None, None, stranger)


def test_a_right_from_an_access_list_is_enough_for_now(file: Path, bob: Actor) -> None:
    assert bob.call("utimensat", file, NOW, NOW) == "EACCES"
    file.chmod(0o640)
    entries = ((1, 6, -1), (2, 6, bob.uid), (4, 0, -1), (16, 6, -1), (32, 0, -1))
    value = (2).to_bytes(4, "little") + b"".join(
        t.to_bytes(2, "little") + p.to_bytes(2, "little") + (i & 0xFFFFFFFF).to_bytes(4, "little") for t, p, i in entries
    )
    os.setxattr(file, "system.posix_acl_access", value)
    assert bob.call("utimensat", file, NOW, NOW) is None
    assert bob.call("utimensat", file, FIRST, SECOND) == "EPERM"


def test_a_descriptor_to_write_with_is_no_right(file: Path, bob: Actor) -> None:
    """What counts is the file's mode of now, not how the descriptor was opened."""
    file.chmod(0o666)
    descriptor = bob.call("open", file, os.O_WRONLY)
    file.chmod(0o644)
    assert bob.call("c", "futimens", descriptor, None) == "EACCES"
    file.chmod(0o666)
    assert bob.call("c", "futimens", descriptor, None) == 0
