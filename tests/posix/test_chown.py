"""chown, fchown and lchown: who may, what they change, and what becomes of set-id bits."""

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, CAROL, TEAM
from tests.posix.scene import KINDS, Watch, each, make, mode_of, owner_of

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


@dataclass
class Objects:
    """Something of one kind for each way of giving it away; a link itself is given away without going through links."""

    paths: dict[str, Path]
    beside: dict[str, Path]
    """The links to them, and the directory above, which nothing changes."""

    def watch(self) -> Watch:
        return Watch(**{way.replace(" ", "_"): path for way, path in self.paths.items()}, **self.beside)

    def all_change(self, attributes: str) -> dict[str, str]:
        """What a watch tells when these attributes have changed, of all of them."""
        return {way.replace(" ", "_"): attributes for way in self.paths}


@pytest.fixture
def objects(root: Actor, place: Path, request: pytest.FixtureRequest) -> Objects:
    """Alice's and TEAM's, of the kind that the test says, and in a directory that everybody may change."""
    kind = request.getfixturevalue("kind")
    make(root, "directory", place / "d", 0o777)
    paths, beside = {}, {"d": place / "d"}
    for number, way in enumerate(WAYS if kind != "symlink" else ("lchown", "fchown")):
        make(root, "directory", place / f"d/{number}", 0o777)
        paths[way] = make(root, kind, place / f"d/{number}/x", 0o666, owner=(ALICE, TEAM))
        change(root, way, paths[way], SAME, SAME)  # which makes the link
        beside |= {f"d{number}": place / f"d/{number}", f"link{number}": place / f"d/{number}/link-to-it"}
    return Objects(paths, beside)


@pytest.mark.parametrize("kind", each(KINDS))
def test_root_gives_to_whom_it_likes(root: Actor, objects: Objects, kind: str) -> None:
    watch = objects.watch()
    for way, path in objects.paths.items():
        assert change(root, way, path, 123, 456) is None
        assert owner_of(path) == (123, 456)
    assert watch.changes() == objects.all_change("ctime gid uid")
    large = 2**32 - 2
    for way, path in objects.paths.items():
        for uid, gid, expected in ((SAME, 7, (123, 7)), (8, SAME, (8, 7)), (SAME, SAME, (8, 7)), (large, large, (large, large)), (0, 0, (0, 0))):
            assert change(root, way, path, uid, gid) is None
            assert owner_of(path) == expected


@pytest.mark.parametrize("kind", each(KINDS))
def test_an_owner_gives_to_groups_of_hers(alice: Actor, objects: Objects, kind: str) -> None:
    for uid, gid, changes in ((SAME, ALICE, "ctime gid"), (ALICE, TEAM, "ctime gid"), (ALICE, TEAM, "ctime"), (SAME, TEAM, "ctime")):
        watch = objects.watch()
        for way, path in objects.paths.items():
            assert change(alice, way, path, uid, gid) is None
            assert owner_of(path) == (ALICE, gid)
        assert watch.changes() == objects.all_change(changes), "also when nothing is new"


@pytest.mark.parametrize("kind", each(KINDS))
def test_everything_else_is_roots(alice: Actor, bob: Actor, carol: Actor, objects: Objects, kind: str) -> None:
    watch = objects.watch()
    for way, path in objects.paths.items():
        for actor, uid, gid in (
            (alice, BOB, SAME), (alice, BOB, BOB), (alice, SAME, CAROL), (alice, ALICE, BOB), (alice, BOB, ALICE), (alice, BOB, TEAM),
            (bob, BOB, SAME), (bob, BOB, BOB), (bob, SAME, BOB), (bob, SAME, TEAM), (bob, ALICE, TEAM), (bob, ALICE, ALICE), (carol, ALICE, SAME),
        ):  # fmt: skip
            assert change(actor, way, path, uid, gid) == "EPERM", (actor, way, uid, gid)
    assert watch.changes() == {}


@pytest.mark.parametrize("kind", each(KINDS))
def test_changing_nothing_is_everybodys(root: Actor, alice: Actor, carol: Actor, objects: Objects, kind: str) -> None:
    for actor in (root, alice, carol):
        watch = objects.watch()
        for way, path in objects.paths.items():
            assert change(actor, way, path, SAME, SAME) is None
        assert watch.changes() == objects.all_change("ctime")


SET_ID: Final = [(0o6555, 0o555), (0o4711, 0o711), (0o2755, 0o755), (0o7777, 0o1777)]


@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind != "symlink")))
def test_set_id_bits_do_not_go_to_another_owner(root: Actor, alice: Actor, place: Path, kind: str) -> None:
    path = make(root, kind, place / "x")
    for way, (mode, after) in itertools.product(WAYS, SET_ID):
        for actor, uid, gid in ((root, BOB, BOB), (root, SAME, CAROL), (root, BOB, SAME), (alice, SAME, ALICE), (alice, ALICE, TEAM)):
            root.call("chown", path, ALICE, TEAM)
            root.call("chmod", path, mode)
            assert change(actor, way, path, uid, gid) is None
            assert mode_of(path) == (mode if kind == "directory" else after), (actor, way, uid, gid, oct(mode))


def test_set_gid_that_nobody_executes_stays_for_members(root: Actor, alice: Actor, place: Path) -> None:
    path = make(root, "file", place / "x")
    for actor, group, after in ((root, CAROL, 0o2644), (alice, TEAM, 0o2644), (alice, ALICE, 0o2644), (alice, CAROL, 0o644)):
        root.call("chown", path, ALICE, group)
        root.call("chmod", path, 0o6644)
        assert actor.call("chown", path, SAME, TEAM) is None
        assert mode_of(path) == after, (actor, group)


@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind not in {"symlink", "directory"})))
def test_set_id_bits_go_when_nothing_else_changes(root: Actor, alice: Actor, carol: Actor, objects: Objects, kind: str) -> None:
    for mode, after in SET_ID:
        for way, path in objects.paths.items():
            for actor in (root, alice):
                root.call("chmod", path, mode)
                assert change(actor, way, path, SAME, SAME) is None
                assert mode_of(path) == after, (actor, way, oct(mode))
            root.call("chmod", path, mode)
        watch = objects.watch()
        for way, path in objects.paths.items():
            assert change(carol, way, path, SAME, SAME) == "EPERM", "whoever may not change the mode"
        assert watch.changes() == {}


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
