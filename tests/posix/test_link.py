"""link: further names for an inode."""

from pathlib import Path

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, TEAM
from tests.posix.scene import FILES, Watch, each, kind_of, make, nothing_changes

FOLLOW = 0x400


@pytest.mark.parametrize("kind", each(FILES))
def test_all_names_are_one_inode(me: Actor, place: Path, kind: str) -> None:
    names = [place / name for name in ("a", "b", "c")]
    ino = make(me, kind, names[0]).lstat().st_ino
    for n in (1, 2):
        assert me.call("link", names[n - 1], names[n]) is None
        assert [(name.lstat().st_ino, name.lstat().st_nlink, kind_of(name)) for name in names[: n + 1]] == [(ino, n + 1, kind)] * (n + 1)
    if kind != "symlink":
        assert me.call("chmod", names[1], 0o201) is None
        assert {name.lstat().st_mode & 0o7777 for name in names} == {0o201}
    if me.uid == 0:
        assert me.call("lchown", names[2], ALICE, BOB) is None
        assert {(name.lstat().st_uid, name.lstat().st_gid) for name in names} == {(ALICE, BOB)}
    for left, name in ((2, names[0]), (1, names[2]), (0, names[1])):
        assert me.call("unlink", name) is None
        assert me.call("lstat", name) == "ENOENT"
        assert [each_.lstat().st_nlink for each_ in names if kind_of(each_) != "none"] == [left] * left


@pytest.mark.parametrize("kind", each(FILES))
def test_it_changes_the_inode_and_the_new_names_directory(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    make(me, "directory", place / "e")
    make(me, kind, place / "d/x")
    watch = Watch(x=place / "d/x", d=place / "d", e=place / "e", above=place)
    assert me.call("link", place / "d/x", place / "e/y") is None
    assert watch.changes() == {"x": "ctime nlink", "e": "ctime mtime"}
    watch = Watch(x=place / "d/x", d=place / "d", e=place / "e", above=place)
    assert me.call("unlink", place / "e/y") is None
    assert watch.changes() == {"x": "ctime nlink", "e": "ctime mtime"}


def test_a_directory_has_one_name(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    with nothing_changes(d=place / "d", place=place):
        assert me.call("link", place / "d", place / "e") == "EPERM"
        assert me.call("link", place / "d", place / "d/e") == "EPERM"
        assert me.call("link", place / "d/.", place / "e") == "EPERM"


def test_a_users_directory_too(root: Actor, alice: Actor, place: Path) -> None:
    make(root, "directory", place / "d", owner=(ALICE, ALICE))
    make(alice, "directory", place / "d/e")
    with nothing_changes(e=place / "d/e", d=place / "d"):
        assert alice.call("link", place / "d/e", place / "d/f") == "EPERM"


def test_a_link_is_linked_itself_or_followed(me: Actor, place: Path) -> None:
    make(me, "file", place / "file")
    (place / "link").symlink_to("file")
    assert me.call("linkat", place / "link", place / "another link") is None
    assert kind_of(place / "another link") == "symlink"
    assert me.call("linkat", place / "link", place / "another file", FOLLOW) is None
    assert (place / "another file").lstat().st_ino == (place / "file").lstat().st_ino
    assert me.call("linkat", place / "link", place / "x", 1 << 4) == "EINVAL"


def test_the_link_leads_on_from_all_its_names(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "file", place / "target", 0o600)
    make(me, "file", place / "d/target", 0o640)
    (place / "link").symlink_to("target")
    me.call("link", place / "link", place / "d/link")
    assert (place / "link").stat().st_mode & 0o777 == 0o600
    assert (place / "d/link").stat().st_mode & 0o777 == 0o640


def test_both_directories_and_the_way_to_them_must_be_open(root: Actor, alice: Actor, place: Path) -> None:
    for name in ("d", "e"):
        make(root, "directory", place / name, owner=(ALICE, ALICE))
    make(alice, "file", place / "d/x")
    for d, e, expected in ((0o755, 0o755, None), (0o644, 0o755, "EACCES"), (0o755, 0o644, "EACCES"), (0o755, 0o555, "EACCES"), (0o555, 0o755, None)):
        root.call("chmod", place / "d", d)
        root.call("chmod", place / "e", e)
        if expected is None:
            assert alice.call("link", place / "d/x", place / "e/y") is None
            assert alice.call("unlink", place / "e/y") is None
        else:
            with nothing_changes(x=place / "d/x", d=place / "d", e=place / "e"):
                assert alice.call("link", place / "d/x", place / "e/y") == expected, (oct(d), oct(e))


@pytest.mark.parametrize("kind", each(FILES))
def test_failure_leaves_no_trace(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, kind, place / "x", owner=(ALICE, ALICE))
    with nothing_changes(x=place / "x", place=place):
        assert alice.call("link", place / "x", place / "y") == "EACCES"
        assert root.call("link", place / "x", place / "x") == "EEXIST"
        assert root.call("link", place / "none", place / "y") == "ENOENT"


def test_an_inode_without_a_name_gets_none(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    descriptor = me.call("open", place / "x", 0)
    me.call("unlink", place / "x")
    assert me.call("linkat", f"/proc/self/fd/{descriptor}", place / "y", FOLLOW) == "ENOENT"
    make(me, "file", place / "x")
    descriptor = me.call("open", place / "x", 0)
    assert me.call("linkat", f"/proc/self/fd/{descriptor}", place / "y", FOLLOW) is None
    assert me.call("fstat", descriptor).st_nlink == 2


def test_many_names(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "file", place / "x")
    for n in range(100):
        assert me.call("link", place / "x", place / f"d/{n}") is None
    assert (place / "x").lstat().st_nlink == 101
    assert me.call("unlink", place / "x") is None
    assert (place / "d/99").lstat().st_nlink == 100


def test_a_sticky_directory_takes_links_to_what_is_somebody_elses(root: Actor, alice: Actor, place: Path) -> None:
    make(root, "directory", place / "d", 0o1777, owner=(BOB, TEAM))
    make(root, "file", place / "x", 0o666, owner=(BOB, BOB))
    assert alice.call("link", place / "x", place / "d/y") is None
    assert alice.call("unlink", place / "d/y") == "EPERM"
