"""rename and renameat2."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, TEAM
from tests.posix.scene import DEVICES, FILES, KINDS, Watch, each, kind_of, make, nothing_changes, tick
from tests.posix.test_removing import STICKY

NO_REPLACE: Final = 1
EXCHANGE: Final = 2
WHITEOUT: Final = 4
NONE: Final = "none"
FULL: Final = "full directory"


def put(actor: Actor, kind: str, path: Path) -> Path:
    """Something of a kind, a directory with something in it, or nothing."""
    if kind == FULL:
        make(actor, "directory", path)
        make(actor, "file", path / "inside")
    elif kind != NONE:
        make(actor, kind, path)
    return path


def verdict(source: str, target: str) -> str | None:
    """What rename(2) says of replacing one kind by another."""
    from_directory, onto_directory = source in {"directory", FULL}, target in {"directory", FULL}
    if source == NONE:
        return "ENOENT"
    if target == NONE:
        return None
    if from_directory != onto_directory:
        return "ENOTDIR" if from_directory else "EISDIR"
    return "ENOTEMPTY" if target == FULL else None


@dataclass
class Pair:
    """Two names, each with something of a kind, in two directories or in one."""

    source: str
    target: str
    d: Path
    e: Path
    old: Path = field(init=False)
    new: Path = field(init=False)
    numbers: list[int] = field(init=False)
    """Of the inodes; 0 where there is none."""
    watch: Watch = field(init=False)

    def put(self, actor: Actor) -> None:
        """Make all of it; what the new name leads to has another one, unless it is a directory."""
        for directory in {self.d, self.e}:
            make(actor, "directory", directory)
        self.old, self.new = put(actor, self.source, self.d / "old"), put(actor, self.target, self.e / "new")
        if self.target not in {NONE, FULL, "directory"}:
            assert actor.call("link", self.new, self.e / "also new") is None
        self.numbers = [path.lstat().st_ino if os.path.lexists(path) else 0 for path in (self.old, self.new)]
        self.watch = Watch(wait=False, old=self.old, new=self.new, also=self.e / "also new", d=self.d, e=self.e, above=self.d.parent)


def pairs(actor: Actor, place: Path, source: str, *, apart: bool) -> list[Pair]:
    """A kind with every other, all in directories of their own."""
    found = []
    for number, target in enumerate((*KINDS, FULL, NONE)):
        if target not in DEVICES or actor.uid == 0:
            above = make(actor, "directory", place / f"{number}")
            found.append(Pair(source, target, above / "d", above / ("e" if apart else "d")))
            found[-1].put(actor)
    tick()
    return found


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("source", [*each(KINDS), FULL, NONE])
def test_what_replaces_what(me: Actor, place: Path, source: str, apart: bool) -> None:
    is_directory = source in {"directory", FULL}
    for pair in pairs(me, place, source, apart=apart):
        target, expected = pair.target, verdict(source, pair.target)
        assert me.call("rename", pair.old, pair.new) == expected, target
        if expected:
            assert pair.watch.changes() == {}, target
            continue
        assert not os.path.lexists(pair.old)
        assert pair.new.lstat().st_ino == pair.numbers[0]
        changes = pair.watch.changes(old=pair.new)
        assert (changes.pop("old"), changes.pop("new") == "made") == ("ctime", target == NONE)
        assert changes.pop("also", "") == ("ctime nlink" if target not in {NONE, "directory"} else "")
        lost = is_directory and (apart or target == "directory")
        gained = is_directory and apart and target == NONE
        above = ["ctime mtime nlink" if counts else "ctime mtime" for counts in (lost, gained if apart else lost)]
        assert changes == dict(zip("de", above, strict=True)), target


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("first", [*each(KINDS), FULL])
def test_any_two_can_change_places(me: Actor, place: Path, first: str, apart: bool) -> None:
    for pair in pairs(me, place, first, apart=apart):
        if pair.target == NONE:
            assert me.call("renameat2", pair.old, pair.new, EXCHANGE) == "ENOENT"
            assert pair.watch.changes() == {}
            continue
        assert me.call("renameat2", pair.old, pair.new, EXCHANGE) is None, pair.target
        assert [pair.new.lstat().st_ino, pair.old.lstat().st_ino] == pair.numbers
        changes = pair.watch.changes(old=pair.new, new=pair.old)
        assert changes.pop("also", "ctime") == "ctime"
        assert (changes.pop("old"), changes.pop("new")) == ("ctime", "ctime")
        counts = apart and (first in {"directory", FULL}) != (pair.target in {"directory", FULL})
        assert changes == dict.fromkeys("de", "ctime mtime nlink" if counts else "ctime mtime"), pair.target


@pytest.mark.parametrize("target", [*each(KINDS), FULL])
def test_what_must_not_replace_does_not(me: Actor, place: Path, target: str) -> None:
    put(me, target, place / "new")
    for source in ("file", "directory", "symlink"):
        old = make(me, source, place / source)
        with nothing_changes(place=place, old=old, new=place / "new"):
            assert me.call("renameat2", old, place / "new", NO_REPLACE) == "EEXIST"
        assert me.call("renameat2", old, place / f"free-{source}", NO_REPLACE) is None
        assert kind_of(place / f"free-{source}") == source


def test_flags_that_cannot_be(me: Actor, place: Path) -> None:
    make(me, "file", place / "old")
    make(me, "file", place / "new")
    make(me, "directory", place / "d")
    with nothing_changes(place=place, old=place / "old", new=place / "new"):
        for flags in (NO_REPLACE | EXCHANGE, WHITEOUT | EXCHANGE, 8, 1 << 31):
            assert me.call("renameat2", place / "old", place / "new", flags) == "EINVAL"
        assert me.call("renameat2", place / "old", place / "none", EXCHANGE) == "ENOENT"
        assert me.call("renameat2", place / "none", place / "old", EXCHANGE) == "ENOENT"
        assert me.call("renameat2", place / "none", place / "old", NO_REPLACE) in {"ENOENT", "EEXIST"}
        assert me.call("renameat2", place / "old", place / "old", NO_REPLACE) == "EEXIST"
        assert me.call("renameat2", place / "old", place / "old", EXCHANGE) is None


@pytest.mark.parametrize("kind", each(KINDS))
def test_a_whiteout_is_left_behind(me: Actor, place: Path, kind: str) -> None:
    for target in (NONE, kind):
        old = make(me, kind, place / f"{target}-old")
        new = put(me, target, place / f"{target}-new")
        ino = old.lstat().st_ino
        if target == kind:
            assert me.call("renameat2", old, new, WHITEOUT | NO_REPLACE) == "EEXIST"
        assert me.call("renameat2", old, new, WHITEOUT) is None
        shown = old.lstat()
        assert (shown.st_mode, shown.st_rdev, shown.st_uid, shown.st_nlink) == (stat.S_IFCHR, 0, me.uid, 1)
        assert new.lstat().st_ino == ino
        assert me.call("unlink", old) is None


@pytest.mark.parametrize("kind", each(FILES))
def test_two_names_of_one_inode_are_left_as_they_are(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    make(me, kind, place / "x")
    me.call("link", place / "x", place / "y")
    me.call("link", place / "x", place / "d/z")
    with nothing_changes(x=place / "x", y=place / "y", z=place / "d/z", d=place / "d", place=place):
        assert me.call("rename", place / "x", place / "y") is None
        assert me.call("rename", place / "x", place / "d/z") is None
        assert me.call("rename", place / "x", place / "x") is None
        assert me.call("renameat2", place / "x", place / "y", NO_REPLACE) == "EEXIST"
    assert (place / "x").lstat().st_nlink == 3


@pytest.mark.parametrize("kind", each(FILES))
def test_other_names_are_left_where_they_are(me: Actor, place: Path, kind: str) -> None:
    ino = make(me, kind, place / "a").lstat().st_ino
    me.call("link", place / "a", place / "b")
    assert me.call("rename", place / "a", place / "c") is None
    assert [(kind_of(place / name), (place / name).lstat().st_nlink, (place / name).lstat().st_ino) for name in "bc"] == [(kind, 2, ino)] * 2
    assert me.call("lstat", place / "a") == "ENOENT"


def test_a_directory_onto_itself_is_nothing(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "file", place / "d/x")
    with nothing_changes(d=place / "d", place=place):
        assert me.call("rename", place / "d", place / "d") is None
        assert me.call("rename", f"{place}/d/", f"{place}/d/") is None
        assert me.call("rename", place / "d", f"{place}/d/../d") is None


def test_no_directory_goes_below_itself(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "directory", place / "d/e")
    make(me, "directory", place / "d/e/f")
    make(me, "file", place / "d/e/x")
    with nothing_changes(d=place / "d", e=place / "d/e", f=place / "d/e/f", place=place):
        for target in ("d/new", "d/e", "d/e/f", "d/e/new", "d/e/f/new", "d/e/x"):
            assert me.call("rename", place / "d", place / target) == "EINVAL", target
            assert me.call("renameat2", place / "d", place / "d/e/x", EXCHANGE) == "EINVAL"
        assert me.call("renameat2", place / "d/e/f", place / "d", EXCHANGE) == "EINVAL"
        for source in ("d/e/f", "d/e/x"):  # what lies below cannot replace what is above it
            assert me.call("rename", place / source, place / "d") == "ENOTEMPTY", source
    os.symlink("e", place / "d/link")
    assert me.call("rename", place / "d", place / "d/link/new") == "EINVAL", "by way of a link"


def test_no_dots_are_renamed(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "directory", place / "d/e")
    make(me, "directory", place / "other")
    with nothing_changes(d=place / "d", e=place / "d/e", other=place / "other", place=place):
        for dots in ("d/e/.", "d/e/..", ".", "d/."):
            assert me.call("rename", f"{place}/{dots}", place / "new") == "EBUSY", dots
            assert me.call("rename", place / "other", f"{place}/{dots}") == "EBUSY", dots
            assert me.call("renameat2", f"{place}/{dots}", place / "other", EXCHANGE) == "EBUSY", dots


def test_slashes_at_the_end(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "directory", place / "empty")
    make(me, "file", place / "f")
    os.symlink("d", place / "to-d")
    with nothing_changes(d=place / "d", f=place / "f", link=place / "to-d", place=place):
        assert me.call("rename", f"{place}/f/", place / "new") == "ENOTDIR"
        assert me.call("rename", place / "f", f"{place}/new/") == "ENOTDIR"
        assert me.call("rename", place / "f", f"{place}/d/") in {"ENOTDIR", "EISDIR"}
        assert me.call("rename", f"{place}/to-d/", place / "new") == "ENOTDIR"
        assert me.call("rename", place / "d", f"{place}/to-d/") == "ENOTDIR"
        assert me.call("rename", place / "d", f"{place}/f/") == "ENOTDIR"
        assert me.call("renameat2", f"{place}/f/", place / "d", EXCHANGE) == "ENOTDIR"
    assert me.call("rename", f"{place}/d/", f"{place}/empty///") is None
    assert me.call("rename", f"{place}/empty", f"{place}/new/") is None
    assert kind_of(place / "new") == "directory"


def test_a_moved_directory_knows_the_one_above_it(me: Actor, place: Path) -> None:
    for name in ("a", "b", "a/x", "a/x/y"):
        make(me, "directory", place / name)
    assert me.call("stat", place / "a/x/..").st_ino == (place / "a").stat().st_ino
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (3, 2)
    me.call("chdir", place / "a/x/y")
    assert me.call("rename", place / "a/x", place / "b/z") is None
    assert me.call("stat", place / "b/z/..").st_ino == (place / "b").stat().st_ino
    assert me.call("getcwd") == str(place / "b/z/y")
    assert me.call("stat", "../..").st_ino == (place / "b").stat().st_ino
    assert ((place / "a").stat().st_nlink, (place / "b").stat().st_nlink) == (2, 3)
    assert me.call("renameat2", place / "a", place / "b/z/y", EXCHANGE) is None
    assert me.call("stat", place / "a/..").st_ino == place.stat().st_ino
    assert me.call("stat", place / "b/z/y/..").st_ino == (place / "b/z").stat().st_ino


def test_an_open_file_stays_open_whatever_becomes_of_its_name(me: Actor, place: Path) -> None:
    make(me, "file", place / "old")
    make(me, "file", place / "new")
    old, new = (me.call("open", place / name, os.O_RDWR) for name in ("old", "new"))
    me.call("write", old, b"old")
    me.call("write", new, b"new")
    assert me.call("rename", place / "old", place / "new") is None
    assert (me.call("pread", old, 9, 0), me.call("pread", new, 9, 0)) == (b"old", b"new")
    assert (me.call("fstat", old).st_nlink, me.call("fstat", new).st_nlink) == (1, 0)
    assert (place / "new").read_bytes() == b"old"


# --- who may ------------------------------------------------------------------------------------------------------


def test_both_directories_and_the_way_to_them_must_be_open(root: Actor, alice: Actor, place: Path) -> None:
    for name in ("d", "e"):
        make(root, "directory", place / name, owner=(ALICE, ALICE))
    make(alice, "file", place / "d/x")
    for d, e in ((0o644, 0o755), (0o755, 0o644), (0o555, 0o755), (0o755, 0o555)):
        root.call("chmod", place / "d", d)
        root.call("chmod", place / "e", e)
        with nothing_changes(x=place / "d/x", d=place / "d", e=place / "e"):
            for flags in (0, NO_REPLACE):
                assert alice.call("renameat2", place / "d/x", place / "e/y", flags) == "EACCES", (oct(d), oct(e))
    root.call("chmod", place / "e", 0o755)
    assert alice.call("rename", place / "d/x", place / "e/y") is None
    assert alice.call("rename", place / "e/y", place / "d/x") is None


@pytest.mark.parametrize("kind", each(KINDS))
def test_failure_leaves_no_trace(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, kind, place / "x", owner=(ALICE, ALICE))
    make(root, "file", place / "y")
    with nothing_changes(x=place / "x", y=place / "y", place=place):
        assert alice.call("rename", place / "x", place / "z") == "EACCES"
        assert alice.call("rename", place / "x", place / "y") == "EACCES"
        assert alice.call("renameat2", place / "x", place / "y", EXCHANGE) == "EACCES"


@pytest.mark.parametrize("kind", each(KINDS))
def test_out_of_a_sticky_directory_only_owners_move(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o1777)
    make(root, "directory", place / "e", 0o777)
    for directory, owner, may in STICKY:
        root.call("chown", place / "d", directory, TEAM)
        for target in (NONE, "directory" if kind == "directory" else "file"):
            old = make(root, kind, place / "d/x", 0o777, owner=(owner, TEAM))
            new = put(alice, target, place / "e/y")
            if may:
                assert alice.call("rename", old, place / "d/z") is None, (directory, owner)
                assert alice.call("rename", place / "d/z", new) is None, (directory, owner, target)
            else:
                with nothing_changes(d=place / "d", e=place / "e", old=old, new=new):
                    assert alice.call("rename", old, place / "d/z") == "EPERM", (directory, owner)
                    assert alice.call("rename", old, new) == "EPERM", (directory, owner, target)
                assert root.call("rename", old, new) is None
            assert root.call("rename", new, place / f"{directory}-{owner}-{target}") is None


@pytest.mark.parametrize("kind", each(KINDS))
def test_in_a_sticky_directory_only_owners_replace(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o777)
    make(root, "directory", place / "e", 0o1777)
    for directory, owner, may in STICKY:
        root.call("chown", place / "e", directory, TEAM)
        old = make(alice, "directory" if kind == "directory" else "file", place / "d/x")
        new = make(root, kind, place / "e/y", 0o777, owner=(owner, TEAM))
        if not may:
            with nothing_changes(d=place / "d", e=place / "e", old=old, new=new):
                assert alice.call("rename", old, new) == "EPERM", (directory, owner)
                assert alice.call("renameat2", old, new, EXCHANGE) == "EPERM", (directory, owner)
            assert root.call("rename", old, place / f"d/{directory}-{owner}") is None
            assert root.call("rename", new, place / f"d/{directory}-{owner}-too") is None
            continue
        ino = old.lstat().st_ino
        assert alice.call("rename", old, new) is None, (directory, owner)
        assert new.lstat().st_ino == ino
        assert root.call("rename", new, place / f"d/{directory}-{owner}") is None


def test_a_directory_that_gets_another_above_it_must_be_writable(root: Actor, alice: Actor, place: Path) -> None:
    """For its entry `..` changes."""
    for name in ("d", "e"):
        make(root, "directory", place / name, 0o777)
    for owner, mode, may in ((0, 0o755, False), (BOB, 0o755, False), (BOB, 0o775, True), (ALICE, 0o700, True), (ALICE, 0o577, False)):
        x = make(root, "directory", place / "d/x", mode, owner=(owner, TEAM))
        mine = make(alice, "directory", place / "e/mine")
        assert alice.call("rename", x, place / "d/y") is None
        assert alice.call("rename", place / "d/y", x) is None
        if may:
            assert alice.call("rename", x, place / "e/x") is None
            assert root.call("rename", place / "e/x", x) is None
            assert alice.call("renameat2", mine, x, EXCHANGE) is None
            assert root.call("renameat2", mine, x, EXCHANGE) is None
        else:
            with nothing_changes(d=place / "d", e=place / "e", x=x, mine=mine):
                assert alice.call("rename", x, place / "e/x") == "EACCES"
                assert alice.call("renameat2", x, mine, EXCHANGE) == "EACCES"
                assert alice.call("renameat2", mine, x, EXCHANGE) == "EACCES"
        assert root.call("rmdir", x) is None
        assert root.call("rmdir", mine) is None
    make(root, "file", place / "d/file", 0o600)
    assert alice.call("rename", place / "d/file", place / "e/file") is None, "which a file has not"
