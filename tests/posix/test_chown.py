"""chown, fchown and lchown: who may, what they change, and what becomes of set-id bits."""

import os
from pathlib import Path
from typing import Any, Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, CAROL, TEAM
from tests.posix.scene import KINDS, Watch, each, make, mode_of, nothing_changes, owner_of

pytestmark = pytest.mark.root

WAYS: Final = ("chown", "lchown", "through a link", "fchown")
SAME: Final = -1


def change(actor: Actor, way: str, path: Path, uid: int, gid: int) -> Any:
    """Set an owner in one of these ways; what cannot be opened otherwise is reached through /proc."""
    if way == "through a link":
        link = path.with_name("link-to-it")
        if not os.path.lexists(link):
            link.symlink_to(path.name)
        return actor.call("chown", link, uid, gid)
    if way == "fchown":
        descriptor = actor.call("open", path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return actor.call("c", "fchownat", descriptor, "", uid, gid, 0x1000) or None  # AT_EMPTY_PATH
        finally:
            actor.call("close", descriptor)
    return actor.call(way, path, uid, gid)


def cases() -> list[Any]:
    """Each kind in each way; a link itself is not changed through links."""
    kinds = {kind: each((kind,))[0] for kind in KINDS}
    return [
        pytest.param(kind, way, marks=getattr(parameter, "marks", ()))
        for kind, parameter in kinds.items()
        for way in WAYS
        if kind != "symlink" or way in {"lchown", "fchown"}
    ]


@pytest.mark.parametrize(("kind", "way"), cases())
def test_root_gives_to_whom_it_likes(root: Actor, place: Path, kind: str, way: str) -> None:
    make(root, "directory", place / "d")
    path = make(root, kind, place / "d/x")
    change(root, way, path, 0, 0)  # which makes the link
    watch = Watch(x=path, link=place / "d/link-to-it", d=place / "d")
    assert change(root, way, path, 123, 456) is None
    assert watch.changes() == {"x": "ctime gid uid"}
    assert owner_of(path) == (123, 456)
    for uid, gid, expected in (
        (SAME, 7, (123, 7)),
        (8, SAME, (8, 7)),
        (SAME, SAME, (8, 7)),
        (2**32 - 2, 2**32 - 2, (2**32 - 2, 2**32 - 2)),
        (0, 0, (0, 0)),
    ):
        assert change(root, way, path, uid, gid) is None
        assert owner_of(path) == expected


@pytest.mark.parametrize(("kind", "way"), cases())
def test_an_owner_gives_to_groups_of_hers(root: Actor, alice: Actor, place: Path, kind: str, way: str) -> None:
    make(root, "directory", place / "d", 0o777)
    path = make(root, kind, place / "d/x", owner=(ALICE, CAROL))
    change(root, way, path, SAME, SAME)
    watch = Watch(x=path, link=place / "d/link-to-it", d=place / "d")
    assert change(alice, way, path, SAME, ALICE) is None
    assert watch.changes() == {"x": "ctime gid"}
    watch = Watch(x=path)
    assert change(alice, way, path, ALICE, TEAM) is None
    assert watch.changes() == {"x": "ctime gid"}
    assert owner_of(path) == (ALICE, TEAM)
    watch = Watch(x=path)
    assert change(alice, way, path, ALICE, TEAM) is None
    assert watch.changes() == {"x": "ctime"}, "also when nothing is new"


@pytest.mark.parametrize(("kind", "way"), cases())
def test_everything_else_is_roots(root: Actor, alice: Actor, bob: Actor, carol: Actor, place: Path, kind: str, way: str) -> None:
    make(root, "directory", place / "d", 0o777)
    path = make(root, kind, place / "d/x", 0o666, owner=(ALICE, ALICE))
    change(root, way, path, SAME, SAME)
    with nothing_changes(x=path, link=place / "d/link-to-it", d=place / "d"):
        for actor, uid, gid in (
            (alice, BOB, SAME), (alice, BOB, BOB), (alice, SAME, CAROL), (alice, ALICE, BOB), (alice, BOB, ALICE), (alice, BOB, TEAM),
            (bob, BOB, SAME), (bob, BOB, BOB), (bob, SAME, BOB), (bob, SAME, TEAM), (bob, ALICE, ALICE), (carol, ALICE, SAME),
        ):  # fmt: skip
            assert change(actor, way, path, uid, gid) == "EPERM", (actor, uid, gid)


@pytest.mark.parametrize(("kind", "way"), cases())
def test_changing_nothing_is_everybodys(root: Actor, carol: Actor, place: Path, kind: str, way: str) -> None:
    make(root, "directory", place / "d", 0o777)
    path = make(root, kind, place / "d/x", 0o600)
    change(root, way, path, SAME, SAME)
    for actor in (root, carol):
        watch = Watch(x=path, link=place / "d/link-to-it", d=place / "d")
        assert change(actor, way, path, SAME, SAME) is None
        assert watch.changes() == {"x": "ctime"}


SET_ID: Final = [(0o6555, 0o555), (0o4711, 0o711), (0o2755, 0o755), (0o7777, 0o1777)]


@pytest.mark.parametrize("way", ["chown", "through a link", "fchown"])
@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind != "symlink")))
def test_set_id_bits_do_not_go_to_another_owner(root: Actor, alice: Actor, place: Path, kind: str, way: str) -> None:
    path = make(root, kind, place / "x")
    for mode, after in SET_ID:
        for actor, uid, gid in ((root, BOB, BOB), (root, SAME, CAROL), (root, BOB, SAME), (alice, SAME, ALICE), (alice, ALICE, TEAM)):
            root.call("chown", path, ALICE, TEAM)
            root.call("chmod", path, mode)
            assert change(actor, way, path, uid, gid) is None
            assert mode_of(path) == (mode if kind == "directory" else after), (actor, uid, gid, oct(mode))


def test_set_gid_that_nobody_executes_stays_for_members(root: Actor, alice: Actor, place: Path) -> None:
    path = make(root, "file", place / "x")
    for actor, group, after in ((root, CAROL, 0o2644), (alice, TEAM, 0o2644), (alice, ALICE, 0o2644), (alice, CAROL, 0o644)):
        root.call("chown", path, ALICE, group)
        root.call("chmod", path, 0o6644)
        assert actor.call("chown", path, SAME, TEAM) is None
        assert mode_of(path) == after, (actor, group)


@pytest.mark.parametrize("way", ["chown", "fchown"])
@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind not in {"symlink", "directory"})))
def test_set_id_bits_go_when_nothing_else_changes(root: Actor, alice: Actor, carol: Actor, place: Path, kind: str, way: str) -> None:
    path = make(root, kind, place / "x", owner=(ALICE, ALICE))
    for mode, after in SET_ID:
        for actor in (root, alice):
            root.call("chmod", path, mode)
            assert change(actor, way, path, SAME, SAME) is None
            assert mode_of(path) == after, (actor, oct(mode))
        root.call("chmod", path, mode)
        with nothing_changes(x=path):
            assert change(carol, way, path, SAME, SAME) == "EPERM", "whoever may not change the mode"


def test_a_directory_keeps_its_bits_when_nothing_else_changes(root: Actor, carol: Actor, place: Path) -> None:
    path = make(root, "directory", place / "x", 0o7777)
    for actor in (root, carol):
        watch = Watch(x=path)
        assert actor.call("chown", path, SAME, SAME) is None
        assert watch.changes() == {"x": "ctime"}


def test_a_descriptor_will_do(root: Actor, alice: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", owner=(ALICE, ALICE))
    descriptor = alice.call("open", path, os.O_RDONLY)
    assert alice.call("fchown", descriptor, SAME, TEAM) is None
    assert alice.call("fstat", descriptor).st_gid == TEAM
    assert alice.call("fchown", descriptor, BOB, SAME) == "EPERM"
    assert alice.call("fchown", alice.call("open", path, os.O_PATH), SAME, ALICE) == "EBADF"


def test_the_new_owner_has_the_rights(root: Actor, alice: Actor, bob: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", 0o600, owner=(ALICE, ALICE))
    assert isinstance(alice.call("open", path, os.O_RDWR), int)
    assert root.call("chown", path, BOB, SAME) is None
    assert alice.call("open", path, os.O_RDONLY) == "EACCES"
    assert isinstance(bob.call("open", path, os.O_RDWR), int)
