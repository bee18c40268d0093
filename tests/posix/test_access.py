"""access and faccessat: what may be done, by the real ids or the effective ones."""

import itertools
import os
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, BOB, TEAM
from tests.posix.scene import KINDS, each, make, nothing_changes

EFFECTIVE: Final = 0x200
NO_FOLLOW: Final = 0x100


@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind != "symlink")))
@pytest.mark.parametrize("who", ["owner", "member", "anybody", "root"])
def test_the_first_class_that_fits_decides(root: Actor, alice: Actor, bob: Actor, carol: Actor, place: Path, kind: str, who: str) -> None:
    actor, shift = {"owner": (alice, 6), "member": (bob, 3), "anybody": (carol, 0), "root": (root, 0)}[who]
    path = make(root, kind, place / "x", owner=(ALICE, TEAM))
    for bits, others in itertools.product(range(8), (0, 0o777)):
        mode = others & ~(7 << shift) | bits << shift
        root.call("chmod", path, mode)
        for asked in range(8):
            may = bits & asked == asked
            if who == "root":
                may = not asked & os.X_OK or kind == "directory" or bool(mode & 0o111)
            assert actor.call("access", path, asked) == (None if may else "EACCES"), (oct(mode), asked)
            if who != "root":
                assert actor.call("access", path, asked, EFFECTIVE) == (None if may else "EACCES"), (oct(mode), asked)


def test_what_cannot_be_asked(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    with nothing_changes(x=place / "x", place=place):
        assert me.call("access", place / "x", 8) == "EINVAL"
        assert me.call("access", place / "x", 0, 1) == "EINVAL"
        assert me.call("access", place / "none", os.F_OK) == "ENOENT"


def test_a_link_is_followed_or_not(me: Actor, place: Path) -> None:
    (place / "link").symlink_to("none")
    assert me.call("access", place / "link", os.F_OK) == "ENOENT"
    assert me.call("access", place / "link", os.F_OK, NO_FOLLOW) is None


def test_real_and_effective_ids_are_told_apart(root: Actor, place: Path) -> None:
    hers = make(root, "file", place / "hers", 0o600, owner=(ALICE, ALICE))
    guarded = make(root, "directory", place / "guarded", 0o700, owner=(BOB, BOB))
    make(root, "file", guarded / "x", 0o666)
    root.call("effective", BOB, BOB)
    assert root.call("access", hers, os.R_OK) is None, "as root"
    assert root.call("access", hers, os.R_OK, EFFECTIVE) == "EACCES", "as bob"
    assert root.call("open", hers, os.O_RDONLY) == "EACCES"
    assert root.call("access", guarded / "x", os.R_OK, EFFECTIVE) is None
    root.call("effective", 0, 0)
    root.call("effective", ALICE, ALICE)
    assert root.call("access", hers, os.R_OK | os.W_OK, EFFECTIVE) is None
    assert root.call("access", guarded / "x", os.R_OK, EFFECTIVE) == "EACCES"
    assert root.call("access", guarded / "x", os.R_OK) is None
    root.call("effective", 0, 0)


def test_what_effective_ids_make_is_theirs(root: Actor, place: Path) -> None:
    make(root, "directory", place / "d", 0o777)
    root.call("effective", BOB, TEAM)
    for kind in ("file", "directory", "fifo", "symlink"):
        shown = make(root, kind, place / f"d/{kind}").lstat()
        assert (shown.st_uid, shown.st_gid) == (BOB, TEAM)
    root.call("effective", 0, 0)


def test_a_group_of_many_counts(actor: object, root: Actor, place: Path) -> None:
    """The last of more groups than fit anywhere at once."""
    many = tuple(range(50_000, 50_100))
    member = actor(BOB, BOB, many)  # type: ignore[operator]
    stranger = actor(BOB, BOB, many[:-1])  # type: ignore[operator]
    path = make(root, "file", place / "x", 0o060, owner=(ALICE, many[-1]))
    assert member.call("access", path, os.R_OK | os.W_OK) is None
    assert stranger.call("access", path, os.R_OK) == "EACCES"
    d = make(root, "directory", place / "d", 0o030, owner=(ALICE, many[-1]))
    assert member.call("create", d / "x", 0o644) is None
    assert stranger.call("create", d / "y", 0o644) == "EACCES"
