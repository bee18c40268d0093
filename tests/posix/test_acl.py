"""Access control lists: who may do what by them, what new files inherit, and how they and the mode go together. The rules are those of acl(5)."""

import itertools
import os
import random
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import TEAM
from tests.posix.differing import outcome
from tests.posix.lists import ACCESS, DEFAULT, acl

pytestmark = pytest.mark.root

CREW: Final = 65_520
"""A group that only dave is in."""


@pytest.fixture
def dave(actor: Callable[..., Actor]) -> Actor:
    return actor(65_519, 65_518, (CREW, TEAM))


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"content")
    return path


def granted(
    who: Actor, owner: int, group: int, wanted: int, *, mode: tuple[int, int, int], users: dict[int, int], groups: dict[int, int], mask: int | None
) -> bool:
    """acl(5), "Access check algorithm"; but Linux reads no list where the mode has no bits for the group."""
    limit = 7 if mask is None else mask
    if (mode[1] if mask is None else mask) == 0:
        users, groups, mode = {}, {}, (mode[0], 0, mode[2])
    if who.uid == owner:
        return wanted & mode[0] == wanted
    if who.uid in users:
        return wanted & users[who.uid] & limit == wanted
    own = {who.gid, *who.groups}
    matching = ([mode[1]] if group in own else []) + [bits for gid, bits in groups.items() if gid in own]
    if matching:
        return any(wanted & bits & limit == wanted for bits in matching)
    return wanted & mode[2] == wanted


@pytest.mark.parametrize("seed", range(3))
def test_who_may_do_what(file: Path, alice: Actor, bob: Actor, carol: Actor, dave: Actor, seed: int) -> None:
    """The file is alice's and TEAM's; bob may be named, and CREW."""
    rng = random.Random(seed)
    os.chown(file, alice.uid, TEAM)
    for _ in range(25):
        mode = rng.randrange(8), rng.randrange(8), rng.randrange(8)
        users = {bob.uid: rng.randrange(8)} if rng.random() < 0.5 else {}
        groups = {gid: rng.randrange(8) for gid in (CREW, carol.gid) if rng.random() < 0.5}
        mask = rng.randrange(8) if users or groups or rng.random() < 0.2 else None
        os.setxattr(file, ACCESS, acl(*mode, users=users, groups=groups, mask=mask))
        for who, wanted in itertools.product((alice, bob, carol, dave), range(1, 8)):
            expected = granted(who, alice.uid, TEAM, wanted, mode=mode, users=users, groups=groups, mask=mask)
            found = who.call("access", file, wanted)
            assert found == (None if expected else "EACCES"), (who, wanted, mode, users, groups, mask)


def test_what_the_check_says_is_what_happens(place: Path, file: Path, bob: Actor, carol: Actor) -> None:
    os.setxattr(file, ACCESS, acl(6, 0, 0, users={bob.uid: 6}, mask=4))
    assert bob.call("open", file, os.O_RDWR) == "EACCES"
    assert bob.call("read", bob.call("open", file, os.O_RDONLY), 100) == b"content"
    assert carol.call("open", file, os.O_RDONLY) == "EACCES"
    os.setxattr(file, ACCESS, acl(6, 0, 4, users={bob.uid: 0}, mask=4))
    assert bob.call("open", file, os.O_RDONLY) == "EACCES", "an entry can take rights away"
    assert carol.call("read", carol.call("open", file, os.O_RDONLY), 100) == b"content"
    os.setxattr(place, ACCESS, acl(7, 5, 5, users={bob.uid: 7}))
    assert bob.call("create", place / "new") is None
    assert carol.call("create", place / "newer") == "EACCES"
    os.setxattr(place, ACCESS, acl(7, 5, 5, users={bob.uid: 4}))
    assert sorted(bob.call("listdir", place)) == ["file", "new"]
    assert bob.call("stat", file) == "EACCES"
    os.setxattr(place, ACCESS, acl(7, 5, 5, users={bob.uid: 1}))
    assert bob.call("listdir", place) == "EACCES"
    assert bob.call("stat", file).st_size == 7


def test_root_needs_somebody_who_may_execute(file: Path, root: Actor) -> None:
    os.setxattr(file, ACCESS, acl(0, 0, 0, users={65_532: 0}))
    assert root.call("access", file, os.R_OK | os.W_OK) is None
    assert root.call("access", file, os.X_OK) == "EACCES"
    os.setxattr(file, ACCESS, acl(0, 0, 0, users={65_532: 1}))
    assert root.call("access", file, os.X_OK) is None


# --- lists and modes ------------------------------------------------------------------------------------------------


def test_chmod_sets_the_mask(file: Path, alice: Actor, bob: Actor) -> None:
    os.chown(file, alice.uid, TEAM)
    os.setxattr(file, ACCESS, acl(6, 4, 0, users={bob.uid: 7}))
    assert stat.S_IMODE(file.stat().st_mode) == 0o670
    for mode in range(0, 0o1000, 0o37):
        assert alice.call("chmod", file, mode) is None
        expected = acl(mode >> 6, 4, mode & 7, users={bob.uid: 7}, mask=mode >> 3 & 7)
        assert os.getxattr(file, ACCESS) == expected
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_list_sets_the_mode(file: Path) -> None:
    for owner, group, other in itertools.product((0, 5, 7), repeat=3):
        os.setxattr(file, ACCESS, acl(owner, group, other))
        assert stat.S_IMODE(file.stat().st_mode) == owner << 6 | group << 3 | other
        assert os.listxattr(file) == []
        os.setxattr(file, ACCESS, acl(owner, group, other, mask=2))
        assert stat.S_IMODE(file.stat().st_mode) == owner << 6 | 2 << 3 | other
        assert os.listxattr(file) == [ACCESS]


def test_removing_a_list_leaves_the_mode(file: Path) -> None:
    os.setxattr(file, ACCESS, acl(6, 0, 4, users={1: 6}))
    os.removexattr(file, ACCESS)
    assert stat.S_IMODE(file.stat().st_mode) == 0o664
    assert outcome(os.getxattr, file, ACCESS) == "ENODATA"
    os.removexattr(file, ACCESS)
    assert outcome(os.removexattr, file.parent, DEFAULT) is None


def test_set_id_and_sticky_bits_stay(file: Path, place: Path) -> None:
    for path, bits in ((file, 0o6000), (place, 0o3000)):
        path.chmod(bits | 0o755)
        os.setxattr(path, ACCESS, acl(7, 5, 5, users={1: 7}))
        assert stat.S_IMODE(path.stat().st_mode) == bits | 0o775


def test_set_gid_goes_when_an_owner_outside_of_the_group_sets_a_list(file: Path, alice: Actor, carol: Actor) -> None:
    for owner, bits in ((alice, 0o2000), (carol, 0)):
        os.chown(file, owner.uid, TEAM)
        file.chmod(0o2775)
        assert owner.call("setxattr", file, ACCESS, acl(7, 7, 5)) is None
        assert stat.S_IMODE(file.stat().st_mode) == bits | 0o775


WRONG: Final = {
    "version": b"\3\0\0\0" + acl(7, 5, 5)[4:],
    "short": b"\2\0",
    "torn": acl(7, 5, 5)[:-1],
    "no owner": acl(7, 5, 5)[:4] + acl(7, 5, 5)[12:],
    "no other": acl(7, 5, 5)[:-8],
    "two owners": acl(7, 5, 5)[:12] + acl(7, 5, 5)[4:],
    "unknown tag": acl(7, 5, 5) + struct.pack("<HHi", 0x40, 7, -1),
    "named without mask": acl(7, 5, 5)[:12] + struct.pack("<HHi", 2, 7, 1) + acl(7, 5, 5)[12:],
    "nobody named": acl(7, 5, 5, users={-1: 7}),
    "bits": struct.pack("<I", 2) + struct.pack("<HHi", 1, 8, -1) + acl(7, 5, 5)[12:],
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_list_is_refused(place: Path, kind: str) -> None:
    assert outcome(os.setxattr, place, ACCESS, WRONG[kind]) in {"EINVAL", "ENOTSUP"}
    assert outcome(os.setxattr, place, DEFAULT, WRONG[kind]) in {"EINVAL", "ENOTSUP"}
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert os.listxattr(place) == []


def test_users_named_twice_and_in_no_order_are_refused(place: Path) -> None:
    """The kernel wants each once, ascending or not."""
    named = [struct.pack("<HHi", 2, 7, who) for who in (5, 3)]
    start, mask, end = acl(7, 5, 5)[:12], struct.pack("<HHi", 16, 7, -1), acl(7, 5, 5)[-8:]
    group = acl(7, 5, 5)[12:20]
    value = start + named[0] + named[1] + group + mask + end
    assert outcome(os.setxattr, place, ACCESS, value) is None
    assert len(os.getxattr(place, ACCESS)) == len(value)


def test_a_long_list(file: Path) -> None:
    value = acl(7, 5, 5, users={1000 + n: n % 8 for n in range(100)}, groups={1000 + n: n % 8 for n in range(100)})
    os.setxattr(file, ACCESS, value)
    assert os.getxattr(file, ACCESS) == value


# --- inheritance ----------------------------------------------------------------------------------------------------

MAKERS: Final[dict[str, Callable[[Actor, Path, int], object]]] = {
    "file": lambda who, path, mode: who.call("close", who.call("open", path, os.O_CREAT | os.O_WRONLY, mode)),
    "mknod": lambda who, path, mode: who.call("mknod", path, stat.S_IFREG | mode),
    "directory": lambda who, path, mode: who.call("mkdir", path, mode),
    "fifo": lambda who, path, mode: who.call("mkfifo", path, mode),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_without_a_default_list_the_umask_counts(place: Path, alice: Actor, maker: str, umask: int) -> None:
    place.chmod(0o777)
    alice.call("umask", umask)
    for mode in (0o777, 0o666, 0o640, 0o000, 0o751):
        made = place / f"{mode:o}"
        assert MAKERS[maker](alice, made, mode) is None
        assert stat.S_IMODE(made.stat().st_mode) == mode & ~umask
        assert os.listxattr(made) == []


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_with_a_default_list_it_does_not(place: Path, alice: Actor, maker: str, umask: int) -> None:
    place.chmod(0o777)
    default = acl(7, 5, 1, users={65_532: 7}, groups={CREW: 4}, mask=6)
    os.setxattr(place, DEFAULT, default)
    alice.call("umask", umask)
    for mode in (0o777, 0o666, 0o640, 0o000, 0o751):
        made = place / f"{mode:o}"
        assert MAKERS[maker](alice, made, mode) is None
        owner, mask, other = mode >> 6 & 7, mode >> 3 & 6, mode & 1
        assert stat.S_IMODE(made.stat().st_mode) == owner << 6 | mask << 3 | other
        assert os.getxattr(made, ACCESS) == acl(owner, 5, other, users={65_532: 7}, groups={CREW: 4}, mask=mask)
        if maker == "directory":
            assert os.getxattr(made, DEFAULT) == default
        else:
            assert os.listxattr(made) == [ACCESS]


def test_a_default_list_of_three_entries_makes_modes(place: Path, alice: Actor) -> None:
    place.chmod(0o777)
    os.setxattr(place, DEFAULT, acl(7, 2, 0))
    alice.call("umask", 0o777)
    for maker, make in MAKERS.items():
        make(alice, place / maker, 0o666)
        assert stat.S_IMODE((place / maker).stat().st_mode) == 0o620
        assert os.listxattr(place / maker) == ([DEFAULT] if maker == "directory" else [])


def test_symlinks_inherit_nothing(place: Path, alice: Actor) -> None:
    place.chmod(0o777)
    os.setxattr(place, DEFAULT, acl(7, 5, 1, users={65_532: 7}))
    alice.call("symlink", "x", place / "link")
    assert stat.S_IMODE((place / "link").lstat().st_mode) == 0o777
    assert os.listxattr(place / "link", follow_symlinks=False) == []


def test_a_default_list_gives_no_access_to_its_own_directory(place: Path, alice: Actor) -> None:
    os.setxattr(place, DEFAULT, acl(7, 7, 7, users={alice.uid: 7}))
    assert stat.S_IMODE(place.stat().st_mode) == 0o755
    assert alice.call("create", place / "new") == "EACCES"
    place.chmod(0o700)
    assert os.getxattr(place, DEFAULT) == acl(7, 7, 7, users={alice.uid: 7})


def test_links_and_renames_inherit_nothing(place: Path, file: Path) -> None:
    inner = place / "inner"
    inner.mkdir()
    os.setxattr(inner, DEFAULT, acl(7, 5, 1, users={65_532: 7}))
    os.link(file, inner / "link")
    file.rename(inner / "file")
    assert os.listxattr(inner / "file") == []


def test_set_gid_directories_and_default_lists_go_together(place: Path, alice: Actor) -> None:
    os.chown(place, 0, TEAM)
    place.chmod(0o2777)
    os.setxattr(place, DEFAULT, acl(7, 7, 0, groups={CREW: 7}))
    alice.call("mkdir", place / "directory", 0o777)
    alice.call("create", place / "file", 0o666)
    assert [(stat.S_IMODE((place / name).stat().st_mode), (place / name).stat().st_gid) for name in ("directory", "file")] == [
        (0o2770, TEAM),
        (0o660, TEAM),
    ]
