"""What comes into being and with what attributes: open with O_CREAT, mkdir, mkfifo, mknod, bind, symlink."""

import os
import stat
from pathlib import Path
from typing import Any, Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, TEAM
from tests.posix.scene import FILES, KINDS, Watch, each, kind_of, make, mode_of, nothing_changes, owner_of, remove

HOW: Final[dict[str, tuple[Any, ...]]] = {
    "open": ("open", os.O_CREAT | os.O_WRONLY),
    "open, exclusive": ("open", os.O_CREAT | os.O_EXCL | os.O_RDWR),
    "open, to read": ("open", os.O_CREAT | os.O_RDONLY),
    "mkdir": ("mkdir",),
    "mkfifo": ("mkfifo",),
    "mknod file": ("mknod", stat.S_IFREG),
    "mknod fifo": ("mknod", stat.S_IFIFO),
    "mknod socket": ("mknod", stat.S_IFSOCK),
    "mknod block": ("mknod", stat.S_IFBLK, os.makedev(1, 2)),
    "mknod char": ("mknod", stat.S_IFCHR, os.makedev(1, 2)),
}
ONLY_ROOTS: Final = ("mknod block", "mknod char")
EVERY_WAY: Final = [pytest.param(how, marks=pytest.mark.root) if how in ONLY_ROOTS else how for how in HOW]


def new(actor: Actor, how: str, path: Path, mode: int) -> Any:
    """Make something in one of these ways; None, or the name of the error."""
    call, *more = HOW[how]
    if call == "open":
        answer = actor.call("open", path, *more, mode)
        return actor.call("close", answer) if isinstance(answer, int) else answer
    if call == "mknod":
        return actor.call("mknod", path, more[0] | mode, *more[1:])
    return actor.call(call, path, mode)


UMASKS: Final = [
    # umask, mode asked for, mode given
    (0o022, 0o755, 0o755),
    (0o022, 0o151, 0o151),
    (0o077, 0o151, 0o100),
    (0o070, 0o345, 0o305),
    (0o501, 0o345, 0o244),
    (0, 0o777, 0o777),
    (0, 0, 0),
]


@pytest.mark.parametrize("how", EVERY_WAY)
def test_the_umask_takes_its_bits_from_the_mode(me: Actor, place: Path, how: str) -> None:
    kind = how.rsplit(maxsplit=1)[-1] if how.startswith("mknod") else {"mkdir": "directory", "mkfifo": "fifo"}.get(how, "file")
    for number, (umask, mode, expected) in enumerate(UMASKS):
        me.call("umask", umask)
        path = place / f"{number}"
        assert new(me, how, path, mode) is None
        assert (kind_of(path), mode_of(path)) == (kind, expected), (oct(umask), oct(mode))
        if kind == "directory":
            path.rmdir()  # whatever its mode


@pytest.mark.parametrize("how", EVERY_WAY)
def test_bits_above_the_permissions(me: Actor, place: Path, how: str) -> None:
    for bits in (0o1000, 0o2000, 0o4000, 0o7000):
        assert new(me, how, place / f"{bits}", 0o711 | bits) is None
        assert mode_of(place / f"{bits}") == 0o711 | (bits & 0o1000 if how == "mkdir" else bits)


def test_a_symbolic_link_and_a_socket_know_no_mode(me: Actor, place: Path) -> None:
    me.call("umask", 0o027)
    me.call("symlink", "target", place / "link")
    me.call("bind", place / "socket")
    assert (mode_of(place / "link"), mode_of(place / "socket")) == (0o777, 0o750)
    assert me.call("readlink", place / "link") == "target"


@pytest.mark.parametrize("kind", each(KINDS))
def test_it_belongs_to_whoever_made_it(root: Actor, alice: Actor, bob: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o777, owner=(BOB, TEAM))
    if kind in {"block", "char"}:
        assert owner_of(make(root, kind, place / "d/roots")) == (0, 0)
        return
    assert owner_of(make(alice, kind, place / "d/hers")) == (ALICE, ALICE)
    assert owner_of(make(bob, kind, place / "d/his")) == (BOB, BOB)
    assert owner_of(make(root, kind, place / "d/roots")) == (0, 0)


@pytest.mark.parametrize("kind", each(KINDS))
def test_a_set_gid_directory_gives_its_group(root: Actor, alice: Actor, carol: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o2777, owner=(BOB, TEAM))
    for actor in (root,) if kind in {"block", "char"} else (root, alice, carol):
        made = make(actor, kind, place / f"d/{actor.uid}")
        assert owner_of(made) == (actor.uid, TEAM)
        assert bool(mode_of(made) & stat.S_ISGID) == (kind == "directory"), "directories hand it on"


@pytest.mark.parametrize("how", [how for how in HOW if how not in ONLY_ROOTS])
def test_set_gid_of_a_group_that_one_is_not_in_is_not_given(root: Actor, alice: Actor, carol: Actor, place: Path, how: str) -> None:
    make(root, "directory", place / "d", 0o2777, owner=(BOB, TEAM))
    kept = 0 if how == "mkdir" else 0o2000
    for actor, mode, expected in (
        (alice, 0o2755, 0o755 | kept),  # a member by supplement
        (carol, 0o2755, 0o755),
        (carol, 0o2745, 0o745 | kept),  # without execution it is no such program
        (carol, 0o4755, 0o755 if how == "mkdir" else 0o4755),
        (root, 0o2755, 0o755 | kept),
    ):
        path = place / f"d/{actor.uid}-{mode:o}"
        assert new(actor, how, path, mode) is None
        assert mode_of(path) == expected | (0o2000 if how == "mkdir" else 0), (actor, oct(mode))


@pytest.mark.parametrize("kind", each(KINDS))
def test_making_shows_in_the_directory_only(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    make(me, "file", place / "d/beside")
    watch = Watch(d=place / "d", beside=place / "d/beside", above=place)
    made = make(me, kind, place / "d/new")
    assert watch.changes() == {"d": "ctime mtime nlink" if kind == "directory" else "ctime mtime"}
    shown, above = made.lstat(), (place / "d").lstat()
    assert shown.st_nlink == (2 if kind == "directory" else 1)
    assert shown.st_size == (len("nowhere") if kind == "symlink" else shown.st_size if kind == "directory" else 0)
    assert {shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns} == {shown.st_mtime_ns}, "its times are one"
    assert abs(shown.st_mtime_ns - above.st_mtime_ns) < 10**9, "and about the directory's"


@pytest.mark.parametrize("there", each(KINDS))
def test_a_name_that_is_taken_is_left_alone(me: Actor, place: Path, there: str) -> None:
    make(me, "directory", place / "d")
    path = make(me, there, place / "d/x")
    make(me, "file", place / "other")
    with nothing_changes(d=place / "d", x=path, other=place / "other"):
        for how in HOW:
            if how in ONLY_ROOTS and me.uid:
                continue
            if how in {"open", "open, to read"}:
                continue  # see test_open
            assert new(me, how, path, 0o777) == "EEXIST", how
        assert me.call("symlink", "target", path) == "EEXIST"
        assert me.call("link", place / "other", path) == "EEXIST"
        assert me.call("bind", path) == "EADDRINUSE"


def test_what_is_made_where_a_link_to_nothing_leads(me: Actor, place: Path) -> None:
    (place / "link").symlink_to("target")
    assert me.call("open", place / "link", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644) == "EEXIST"
    assert isinstance(me.call("open", place / "link", os.O_CREAT | os.O_WRONLY, 0o640), int)
    assert (kind_of(place / "target"), mode_of(place / "target")) == ("file", 0o640)


@pytest.mark.parametrize("how", ONLY_ROOTS)
def test_devices_are_made_by_root(alice: Actor, root: Actor, place: Path, how: str) -> None:
    make(root, "directory", place / "d", 0o777)
    with nothing_changes(d=place / "d", x=place / "d/x"):
        assert new(alice, how, place / "d/x", 0o644) == "EPERM"


@pytest.mark.root
@pytest.mark.parametrize("kind", [stat.S_IFBLK, stat.S_IFCHR])
def test_a_device_keeps_its_number(root: Actor, place: Path, kind: int) -> None:
    for major, minor in ((1, 2), (1, 3), (255, 255), (256, 256), (4095, 1_048_575)):
        path = place / f"{major}-{minor}"
        assert root.call("mknod", path, kind | 0o755, os.makedev(major, minor)) is None
        shown = path.lstat()
        assert (os.major(shown.st_rdev), os.minor(shown.st_rdev), shown.st_mode) == (major, minor, kind | 0o755)
        assert root.call("mknod", path, kind | 0o777, os.makedev(3, 4)) == "EEXIST"


def test_mknod_of_nothing_is_a_file_and_of_other_types_an_error(me: Actor, place: Path) -> None:
    assert me.call("mknod", place / "zero", 0o604) is None
    assert (kind_of(place / "zero"), mode_of(place / "zero")) == ("file", 0o604)
    with nothing_changes(place=place):
        assert me.call("mknod", place / "x", stat.S_IFDIR | 0o755) == "EPERM"
        for bits in (stat.S_IFLNK, 0o030000, 0o050000, 0o110000, 0o170000):
            assert me.call("mknod", place / "x", bits | 0o644) == "EINVAL", oct(bits)


def test_a_link_leads_wherever_it_is_told(me: Actor, place: Path) -> None:
    targets = ["x", "../\n ü", "/absolute", "a//b/./../", "t" * 60, "t" * 255, "t" * 256, "t/" * 2047 + "t"]
    for number, target in enumerate(targets):
        path = place / f"{number}"
        assert me.call("symlink", target, path) is None
        assert me.call("readlink", path) == target
        assert path.lstat().st_size == len(target.encode())
    assert len(targets[-1]) == 4095


def test_a_link_leads_no_further_than_a_path(me: Actor, place: Path) -> None:
    with nothing_changes(place=place):
        assert me.call("symlink", "t" * 4096, place / "link") == "ENAMETOOLONG"
        assert me.call("symlink", "", place / "link") == "ENOENT"


@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind != "symlink")))
def test_only_links_are_read_as_links(me: Actor, place: Path, kind: str) -> None:
    make(me, kind, place / "x")
    assert me.call("readlink", place / "x") == "EINVAL"


@pytest.mark.parametrize("kind", each(FILES))
def test_a_name_that_was_freed_is_free(me: Actor, place: Path, kind: str) -> None:
    for other in ("directory", "file", "symlink"):
        first = make(me, kind, place / "x").lstat().st_ino
        assert remove(me, kind, place / "x") is None
        assert kind_of(make(me, other, place / "x")) == other
        assert (place / "x").lstat().st_ino != first or os.environ.get("BACKUPFS_TEST_NATIVE") == "1", "numbers do not come back"
        assert remove(me, other, place / "x") is None


def test_directories_count_those_below_them(me: Actor, place: Path) -> None:
    for n in range(3):
        assert place.lstat().st_nlink == 2 + n
        make(me, "directory", place / f"d{n}")
        make(me, "file", place / f"f{n}")
