"""chmod, fchmod and fchmodat: who may, what they change, and what becomes of set-id bits."""

import itertools
import os
from pathlib import Path
from typing import Any, Final

import pytest

from tests.oracle.awkward import acl
from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, CAROL, TEAM
from tests.posix.scene import KINDS, Watch, each, make, mode_of, nothing_changes

NO_FOLLOW: Final = 0x100
WITH_MODES: Final = tuple(kind for kind in KINDS if kind != "symlink")
WAYS: Final = ("chmod", "through a link", "fchmodat", "fchmod")


def change(actor: Actor, way: str, path: Path, mode: int) -> Any:
    """Set a mode in one of these ways. fchmod needs a descriptor, which a socket and a device give to O_PATH only: by way of /proc then."""
    if way == "chmod":
        return actor.call("chmod", path, mode)
    if way == "through a link":
        link = path.with_name("link-to-it")
        if not os.path.lexists(link):
            link.symlink_to(path.name)
        return actor.call("chmod", link, mode)
    if way == "fchmodat":
        return actor.call("fchmodat", path, mode, NO_FOLLOW)
    descriptor = actor.call("open", path, os.O_PATH)
    try:
        return actor.call("chmod", f"/proc/self/fd/{descriptor}", mode)
    finally:
        actor.call("close", descriptor)


@pytest.mark.parametrize("kind", each(WITH_MODES))
def test_every_kind_takes_every_bit(me: Actor, place: Path, kind: str) -> None:
    path = make(me, kind, place / "x")
    for way, mode in itertools.product(WAYS, (0o111, 0o222, 0o444, 0, 0o777, 0o1621, 0o1700, 0o2755, 0o4755, 0o6555, 0o7777, 0o644)):
        assert change(me, way, path, mode) is None
        assert mode_of(path) == mode, way


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_descriptor_will_do(me: Actor, place: Path, kind: str) -> None:
    path = make(me, kind, place / "x")
    descriptor = me.call("open", path, os.O_RDONLY)
    watch = Watch(x=path, place=place)
    assert me.call("fchmod", descriptor, 0o5711) is None
    assert watch.changes() == {"x": "ctime mode"}
    assert mode_of(path) == 0o5711
    assert me.call("fstat", descriptor).st_mode & 0o7777 == 0o5711
    assert me.call("fchmod", me.call("open", path, os.O_PATH), 0o600) == "EBADF"
    assert me.call("fchmod", 999, 0o600) == "EBADF"


@pytest.mark.parametrize("kind", each(WITH_MODES))
def test_it_changes_mode_and_ctime(me: Actor, place: Path, kind: str) -> None:
    make(me, "directory", place / "d")
    path = make(me, kind, place / "d/x", 0o640)
    change(me, "through a link", path, 0o640)  # which makes the link
    for mode, way in enumerate(WAYS, 0o700):
        for changes in ("ctime mode", "ctime"):  # also when it is the mode that it had
            watch = Watch(x=path, link=place / "d/link-to-it", d=place / "d")
            assert change(me, way, path, mode) is None
            assert watch.changes() == {"x": changes}, way


def test_a_link_itself_has_no_mode_to_change(me: Actor, place: Path) -> None:
    make(me, "symlink", place / "link")
    with nothing_changes(link=place / "link"):
        assert me.call("fchmodat", place / "link", 0o600, NO_FOLLOW) == "ENOTSUP"


@pytest.mark.parametrize("kind", each(WITH_MODES))
def test_the_owner_and_root_may(root: Actor, alice: Actor, bob: Actor, carol: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o777)
    path = make(root, kind, place / "d/x", 0o660, owner=(ALICE, TEAM))
    change(root, "through a link", path, 0o662)
    with nothing_changes(x=path, d=place / "d"):
        for way, actor in itertools.product(WAYS, (bob, carol)):  # neither the group that may write to it nor everybody who may
            assert change(actor, way, path, 0o641) == "EPERM", (way, actor)
    for number, way in enumerate(WAYS):
        for actor, mode in ((alice, 0o640 + number), (root, 0o600 + number)):
            assert change(actor, way, path, mode) is None
            assert mode_of(path) == mode
    root.call("chown", path, 0, 0)
    with nothing_changes(x=path, d=place / "d"):
        for way in WAYS:
            assert change(alice, way, path, 0o641) == "EPERM", way


@pytest.mark.parametrize("kind", each(WITH_MODES))
def test_set_gid_is_for_members_of_the_group(root: Actor, alice: Actor, carol: Actor, place: Path, kind: str) -> None:
    make(root, "directory", place / "d", 0o777)
    hers = make(root, kind, place / "d/hers", 0o755, owner=(ALICE, ALICE))
    teams = make(root, kind, place / "d/teams", 0o755, owner=(ALICE, TEAM))
    others = make(root, kind, place / "d/others", 0o755, owner=(ALICE, CAROL))
    for path, mode, expected in (
        (hers, 0o2755, 0o2755),
        (hers, 0o755, 0o755),
        (teams, 0o2755, 0o2755),
        (teams, 0o6711, 0o6711),
        (others, 0o2755, 0o755),
        (others, 0o6755, 0o4755),
        (others, 0o2644, 0o644),
        (others, 0o3700, 0o1700),
    ):
        assert alice.call("chmod", path, mode) is None
        assert mode_of(path) == expected, (path.name, oct(mode))
    root.call("chmod", others, 0o2755)
    assert mode_of(others) == 0o2755, "root may set it"
    assert carol.call("chmod", others, 0o755) == "EPERM", "being in the group is not owning"


@pytest.mark.parametrize("kind", each(WITH_MODES))
def test_the_sticky_bit_may_be_set_on_everything(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    path = make(root, kind, place / "x", 0o640, owner=(ALICE, ALICE))
    for mode in (0o1644, 0o1640, 0o640):
        assert alice.call("chmod", path, mode) is None
        assert mode_of(path) == mode


def test_effective_ids_decide(root: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", 0o600, owner=(ALICE, ALICE))
    root.call("effective", CAROL, CAROL)
    assert root.call("chmod", path, 0o644) == "EPERM"
    root.call("effective", 0, 0)
    root.call("effective", ALICE, ALICE)
    assert root.call("chmod", path, 0o644) is None
    root.call("effective", 0, 0)


@pytest.mark.parametrize("kind", ["file", "directory", "fifo"])
def test_an_access_list_ends_set_gid_of_a_group_that_one_is_not_in(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    path = make(root, kind, place / "x")
    for actor, group, kept in ((alice, ALICE, True), (alice, TEAM, True), (alice, CAROL, False), (root, CAROL, True)):
        for value in (acl(7, 5, 4), acl(7, 5, 4, users={CAROL: 7})):
            for mode in (0o2755, 0o6640):
                root.call("chown", path, ALICE, group)
                root.call("chmod", path, mode)
                assert actor.call("setxattr", path, "system.posix_acl_access", value) is None
                assert mode_of(path) & 0o6000 == (mode & 0o6000 if kept else mode & 0o4000), (actor, group, oct(mode))
                assert mode_of(path) & 0o777 == (0o754 if len(value) == len(acl(7, 5, 4)) else 0o774)
                root.call("removexattr", path, "system.posix_acl_access")


SET_ID: Final = [
    # before and after a change by somebody who is neither root nor in the group
    (0o4777, 0o777),
    (0o2777, 0o777),
    (0o6777, 0o777),
    (0o2767, 0o767),
    (0o6767, 0o767),
    (0o1777, 0o1777),
    (0o7666, 0o1666),
]


@pytest.mark.parametrize("how", ["write", "truncate", "ftruncate", "open", "fallocate"])
def test_set_id_bits_end_with_a_change_by_somebody_else(root: Actor, carol: Actor, place: Path, how: str) -> None:
    path = make(root, "file", place / "x")
    for mode, after in SET_ID:
        path.write_bytes(b"content")
        root.call("chmod", path, mode)
        descriptor = carol.call("open", path, os.O_RDWR | (os.O_TRUNC if how == "open" else 0))
        assert isinstance(descriptor, int)
        if how == "write":
            assert carol.call("pwrite", descriptor, b"x", 0) == 1
            assert carol.call("fstat", descriptor).st_mode & 0o7777 == after
        elif how == "truncate":
            assert carol.call("truncate", path, 3) is None
        elif how == "ftruncate":
            assert carol.call("ftruncate", descriptor, 3) is None
        elif how == "fallocate":
            assert carol.call("posix_fallocate", descriptor, 0, 100) is None
        carol.call("close", descriptor)
        assert mode_of(path) == after, oct(mode)


@pytest.mark.parametrize("mode", [0o2767, 0o2666])
def test_a_member_of_the_group_keeps_a_set_gid_that_nobody_executes(root: Actor, alice: Actor, place: Path, mode: int) -> None:
    path = make(root, "file", place / "x", owner=(0, TEAM))
    for change in ("write", "truncate"):
        root.call("chmod", path, mode)
        if change == "write":
            assert alice.call("pwrite", alice.call("open", path, os.O_WRONLY), b"x", 0) == 1
        else:
            assert alice.call("truncate", path, 5) is None
        assert mode_of(path) == mode


def test_root_and_readers_leave_set_id_bits(root: Actor, carol: Actor, place: Path) -> None:
    path = make(root, "file", place / "x")
    path.write_bytes(b"content")
    root.call("chmod", path, 0o6777)
    descriptor = root.call("open", path, os.O_RDWR)
    assert root.call("pwrite", descriptor, b"x", 0) == 1
    assert root.call("truncate", path, 3) is None
    assert carol.call("read", carol.call("open", path, os.O_RDONLY), 10) == b"xon"
    assert mode_of(path) == 0o6777


def test_writing_nothing_changes_no_mode(root: Actor, carol: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", 0o6777)
    with nothing_changes(x=path):
        assert carol.call("write", carol.call("open", path, os.O_WRONLY), b"") == 0
