"""unlink and rmdir."""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, TEAM
from tests.posix.scene import FILES, KINDS, Watch, each, kind_of, make, nothing_changes, remove


@pytest.mark.parametrize("kind", each(KINDS))
def test_the_last_name_goes_and_its_directory_changes(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    path = make(me, kind, place / "d/x")
    watch = Watch(x=path, d=place / "d", above=place)
    assert remove(me, kind, path) is None
    assert watch.changes() == {"x": "gone", "d": "ctime mtime nlink" if kind == "directory" else "ctime mtime"}
    with nothing_changes(d=place / "d"):
        assert remove(me, kind, path) == "ENOENT"


@pytest.mark.parametrize("kind", each(FILES))
def test_unlink_changes_the_ctime_of_what_has_other_names(me: Actor, place: Path, kind: str) -> None:
    make(me, kind, place / "x")
    me.call("link", place / "x", place / "y")
    watch = Watch(x=place / "x", y=place / "y")
    assert me.call("unlink", place / "y") is None
    assert watch.changes() == {"x": "ctime nlink", "y": "gone"}


@pytest.mark.parametrize("kind", each(FILES))
def test_rmdir_is_for_directories_and_unlink_for_the_rest(me: Actor, place: Path, kind: str) -> None:
    make(me, kind, place / "x")
    make(me, "directory", place / "d")
    with nothing_changes(x=place / "x", d=place / "d", place=place):
        assert me.call("rmdir", place / "x") == "ENOTDIR"
        assert me.call("unlink", place / "d") == "EISDIR"


def test_a_user_may_not_unlink_a_directory_either(root: Actor, alice: Actor, place: Path) -> None:
    make(root, "directory", place / "d", 0o777)
    make(alice, "directory", place / "d/e")
    with nothing_changes(d=place / "d", e=place / "d/e"):
        assert alice.call("unlink", place / "d/e") == "EISDIR"


@pytest.mark.parametrize("kind", each(KINDS))
def test_a_directory_with_something_in_it_stays(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    make(me, kind, place / "d/x")
    with nothing_changes(d=place / "d", x=place / "d/x", place=place):
        assert me.call("rmdir", place / "d") == "ENOTEMPTY"
    assert remove(me, kind, place / "d/x") is None
    assert me.call("rmdir", place / "d") is None


def test_no_directory_goes_by_its_dots(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    make(me, "directory", place / "d/e")
    with nothing_changes(d=place / "d", e=place / "d/e", place=place):
        assert me.call("rmdir", f"{place}/d/e/.") == "EINVAL"
        assert me.call("rmdir", f"{place}/d/e/..") == "ENOTEMPTY"
        assert me.call("rmdir", f"{place}/d/.") == "EINVAL"


def test_a_directory_in_use_goes_and_is_empty_for_ever(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    descriptor = me.call("open", place / "d", os.O_RDONLY)
    assert me.call("rmdir", place / "d") is None
    assert me.call("fstat", descriptor).st_nlink == 0
    assert me.call("listdir", descriptor) == []
    assert me.call("open", f"/proc/self/fd/{descriptor}/x", os.O_CREAT | os.O_WRONLY, 0o644) == "ENOENT"


@pytest.mark.root
def test_a_mount_point_is_busy(root: Actor, place: Path) -> None:
    make(root, "directory", place / "d")
    assert root.call("c", "mount", "none", str(place / "d"), "tmpfs", 0, None) == 0
    try:
        with nothing_changes(place=place):
            assert root.call("rmdir", place / "d") == "EBUSY"
            assert root.call("rename", place / "d", place / "e") == "EBUSY"
    finally:
        assert root.call("c", "umount2", str(place / "d"), 0) == 0
    assert root.call("rmdir", place / "d") is None


def test_the_mount_itself_is_busy(me: Actor, posix_mount: Path, place: Path) -> None:
    if os.environ.get("BACKUPFS_TEST_NATIVE") == "1":
        pytest.skip("it is an ordinary directory there")
    with nothing_changes(mount=posix_mount):
        assert me.call("rmdir", posix_mount) == "EBUSY"
        assert me.call("rename", posix_mount, place / "x") == "EXDEV"
        assert me.call("unlink", posix_mount) == "EISDIR"
        assert me.call("rmdir", f"{posix_mount}/.") == "EINVAL"
        assert me.call("rename", f"{posix_mount}/.", place / "x") == "EBUSY"


STICKY: Final = [
    # directory's owner, object's owner, whether alice may remove it
    (ALICE, ALICE, True),
    (ALICE, 0, True),
    (ALICE, BOB, True),
    (0, ALICE, True),
    (BOB, ALICE, True),
    (0, 0, False),
    (BOB, BOB, False),
    (BOB, 0, False),
]


@pytest.mark.parametrize("kind", each(KINDS))
def test_in_a_sticky_directory_only_owners_remove(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o1777)
    for directory, owner, may in STICKY:
        root.call("chown", place / "d", directory, TEAM)
        path = make(root, kind, place / "d/x", owner=(owner, TEAM))
        if kind not in {"symlink", "directory"}:
            root.call("chmod", path, 0o666)
        if may:
            assert remove(alice, kind, path) is None, (directory, owner)
            assert kind_of(path) == "none"
        else:
            with nothing_changes(d=place / "d", x=path):
                assert remove(alice, kind, path) == "EPERM", (directory, owner)
            assert remove(root, kind, path) is None


def test_without_the_bit_whoever_may_write_to_the_directory_removes(root: Actor, alice: Actor, place: Path) -> None:
    make(root, "directory", place / "d", 0o775, owner=(BOB, TEAM))
    make(root, "file", place / "d/x", 0o600, owner=(BOB, BOB))
    assert alice.call("unlink", place / "d/x") is None


@pytest.mark.parametrize("kind", each(KINDS))
def test_failure_leaves_no_trace(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    make(root, kind, place / "x", owner=(ALICE, ALICE))
    with nothing_changes(x=place / "x", place=place):
        assert remove(alice, kind, place / "x") == "EACCES"


def test_an_open_file_outlives_its_name(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    descriptor = me.call("open", place / "x", os.O_RDWR)
    assert me.call("write", descriptor, b"Hello") == 5
    assert me.call("unlink", place / "x") is None
    assert me.call("fstat", descriptor).st_nlink == 0
    assert me.call("pread", descriptor, 10, 0) == b"Hello"
    assert me.call("write", descriptor, b", world") == 7
    assert me.call("fchmod", descriptor, 0o604) is None
    shown = me.call("fstat", descriptor)
    assert (shown.st_nlink, shown.st_size, shown.st_mode & 0o777) == (0, 12, 0o604)
