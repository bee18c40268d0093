"""How a path leads to an object, or why it does not: the same rules for every call that takes one."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, TEAM
from tests.posix.scene import BAD_ADDRESS, DEVICES, FILES, NAME_MAX, PATH_MAX, make, nothing_changes

Path_ = Any
"""A path, or a number that is the address of none."""

HERE: Final = -100
S_IFIFO: Final = 0o010000
CALLS: Final[dict[str, Callable[[Path_, Path], tuple[Any, ...]]]] = {
    "access": lambda path, _: ("access", path, os.F_OK),
    "chmod": lambda path, _: ("chmod", path, 0o644),
    "lchmod": lambda path, _: ("fchmodat", path, 0o644, 0x100),
    "chown": lambda path, _: ("chown", path, -1, -1),
    "lchown": lambda path, _: ("lchown", path, -1, -1),
    "chdir": lambda path, _: ("chdir", path),
    "stat": lambda path, _: ("stat", path),
    "lstat": lambda path, _: ("lstat", path),
    "readlink": lambda path, _: ("readlink", path),
    "open": lambda path, _: ("open", path, os.O_RDONLY),
    "open, create": lambda path, _: ("open", path, os.O_WRONLY | os.O_CREAT, 0o644),
    "mkdir": lambda path, _: ("mkdir", path, 0o755),
    "rmdir": lambda path, _: ("rmdir", path),
    "unlink": lambda path, _: ("unlink", path),
    "mkfifo": lambda path, _: ("mkfifo", path, 0o644),
    "mknod": lambda path, _: ("mknod", path, S_IFIFO | 0o644),
    "bind": lambda path, _: ("bind", path),
    "symlink": lambda path, _: ("symlink", "target", path),
    "link, from": lambda path, other: ("link", path, other / "new"),
    "link, to": lambda path, other: ("link", other / "old", path),
    "rename, from": lambda path, other: ("rename", path, other / "new"),
    "rename, to": lambda path, other: ("rename", other / "old", path),
    "truncate": lambda path, _: ("truncate", path, 0),
    "utime": lambda path, _: ("utime", path),
    "statvfs": lambda path, _: ("statvfs", path),
    "listxattr": lambda path, _: ("listxattr", path),
}
MAKING: Final = ("open, create", "mkdir", "mkfifo", "mknod", "bind", "symlink", "link, to", "rename, to")
"""Calls for which the last name need not be there."""
AT_A_SLASH: Final = {"open, create": "EISDIR"} | dict.fromkeys(("mkdir", "mkfifo", "mknod", "symlink", "link, to"), "EEXIST")
"""What calls say of a path to a file with a slash behind it, other than ENOTDIR."""
ON_DIRECTORIES: Final = ("chdir", "rmdir")
RAW: Final[dict[str, Callable[[Path_, Path], tuple[Any, ...]]]] = {
    "access": lambda path, _: ("access", path, 0),
    "chmod": lambda path, _: ("chmod", path, 0o644),
    "lchmod": lambda path, _: ("fchmodat", HERE, path, 0o644, 0x100),
    "chown": lambda path, _: ("chown", path, -1, -1),
    "lchown": lambda path, _: ("lchown", path, -1, -1),
    "open": lambda path, _: ("open", path, 0),
    "open, create": lambda path, _: ("open", path, os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": lambda path, _: ("mkdir", path, 0o755),
    "rmdir": lambda path, _: ("rmdir", path),
    "unlink": lambda path, _: ("unlink", path),
    "mkfifo": lambda path, _: ("mkfifo", path, 0o644),
    "mknod": lambda path, _: ("mknod", path, S_IFIFO | 0o644, 0),
    "symlink, target": lambda path, other: ("symlink", path, str(other / "new")),
    "symlink": lambda path, _: ("symlink", "target", path),
    "link, from": lambda path, other: ("link", path, str(other / "new")),
    "link, to": lambda path, other: ("link", str(other / "old"), path),
    "rename, from": lambda path, other: ("rename", path, str(other / "new")),
    "rename, to": lambda path, other: ("rename", str(other / "old"), path),
    "truncate": lambda path, _: ("truncate", path, 0),
}


@pytest.fixture
def other(me: Actor, place: Path) -> Path:
    """Where the other path of a call with two of them lies: `old` is there, `new` is not."""
    made = place / "other"
    made.mkdir()
    make(me, "file", made / "old")
    return made


@pytest.mark.parametrize("call", CALLS)
def test_what_is_not_a_directory_leads_nowhere(me: Actor, place: Path, other: Path, call: str) -> None:
    kinds = [kind for kind in FILES if kind != "symlink" and (kind not in DEVICES or me.uid == 0)]
    obstacles = {kind: make(me, kind, place / kind) for kind in kinds}
    with nothing_changes(place=place, other=other, old=other / "old", **obstacles):
        for kind, obstacle in obstacles.items():
            for below in ("below", "below/further", ".", "..", ""):
                expected = "ENOTDIR" if below else AT_A_SLASH.get(call, "ENOTDIR")
                assert me.call(*CALLS[call](f"{obstacle}/{below}", other)) == expected, (kind, below)


@pytest.mark.parametrize("call", CALLS)
def test_a_missing_directory_leads_nowhere(me: Actor, place: Path, other: Path, call: str) -> None:
    with nothing_changes(place=place, other=other, old=other / "old"):
        assert me.call(*CALLS[call](place / "none/below", other)) == "ENOENT"
        if call != "bind":  # which makes up a name of its own then, in no directory
            assert me.call(*CALLS[call]("", other)) == "ENOENT"
        if call not in MAKING:
            assert me.call(*CALLS[call](place / "none", other)) == "ENOENT"


@pytest.mark.parametrize("call", CALLS)
def test_a_link_to_nothing_is_followed_or_not(me: Actor, place: Path, other: Path, call: str) -> None:
    (place / "link").symlink_to("none")
    if call == "open, create":
        assert isinstance(me.call(*CALLS[call](place / "link", other)), int), "the link's target is made"
        assert (place / "none").is_file()
        return
    expected: tuple[Any, ...] = {
        "lchmod": ("ENOTSUP",),
        "lchown": (None,),
        "readlink": ("none",),
        "rmdir": ("ENOTDIR",),
        "unlink": (None,),
        "link, from": (None,),
        "link, to": ("EEXIST",),
        "mkdir": ("EEXIST",),
        "mkfifo": ("EEXIST",),
        "mknod": ("EEXIST",),
        "symlink": ("EEXIST",),
        "bind": ("EADDRINUSE",),
        "rename, from": (None,),
        "rename, to": (None,),
    }.get(call, ("ENOENT",))
    if call == "lstat":
        assert me.call(*CALLS[call](place / "link", other)).st_size == len("none")
    else:
        assert me.call(*CALLS[call](place / "link", other)) in expected


@pytest.mark.parametrize("call", CALLS)
def test_links_that_lead_to_each_other_are_left(me: Actor, place: Path, other: Path, call: str) -> None:
    (place / "one").symlink_to("two")
    (place / "two").symlink_to("one")
    with nothing_changes(place=place, one=place / "one", two=place / "two", other=other, old=other / "old"):
        for name in ("one", "two"):
            assert me.call(*CALLS[call](place / name / "below", other)) == "ELOOP"


@pytest.mark.parametrize("call", ["chmod", "chown", "chdir", "stat", "open", "open, create", "access", "truncate", "utime", "statvfs", "listxattr"])
def test_a_link_to_itself_has_no_end(me: Actor, place: Path, other: Path, call: str) -> None:
    (place / "loop").symlink_to("loop")
    with nothing_changes(place=place, loop=place / "loop"):
        assert me.call(*CALLS[call](place / "loop", other)) == "ELOOP"


def test_forty_links_are_followed_and_no_more(me: Actor, place: Path) -> None:
    make(me, "file", place / "link-0")
    for n in range(41):
        (place / f"link-{n + 1}").symlink_to(f"link-{n}")
    assert me.call("stat", place / "link-40").st_ino == (place / "link-0").stat().st_ino
    assert me.call("stat", place / "link-41") == "ELOOP"


@pytest.mark.parametrize("call", [call for call in CALLS if call != "bind"])
def test_a_name_has_255_bytes_at_most(me: Actor, place: Path, other: Path, call: str) -> None:
    longest = place / ("n" * NAME_MAX)
    if call not in MAKING:
        make(me, "directory" if call in ON_DIRECTORIES else "symlink" if call == "readlink" else "file", longest)
    with nothing_changes(place=place, other=other, old=other / "old"):
        assert me.call(*CALLS[call](place / ("n" * (NAME_MAX + 1)), other)) == "ENAMETOOLONG"
        assert me.call(*CALLS[call](place / ("n" * (NAME_MAX + 1)) / "below", other)) == "ENAMETOOLONG"
    answer = me.call(*CALLS[call](longest, other))
    assert not isinstance(answer, str) or answer == "nowhere"


@pytest.mark.parametrize("call", [call for call in CALLS if call != "bind"])
def test_a_path_has_4095_bytes_at_most(me: Actor, place: Path, other: Path, call: str) -> None:
    """A chain of directories would take hundreds of calls for each: "./" is as long a way."""
    me.call("chdir", place)
    steps = (PATH_MAX - 201) // 2
    name = "x" * (PATH_MAX - 1 - 2 * steps)
    longest = "./" * steps + name
    if call not in MAKING:
        make(me, "directory" if call in ON_DIRECTORIES else "symlink" if call == "readlink" else "file", place / name)
    with nothing_changes(place=place, other=other, old=other / "old"):
        assert me.call(*CALLS[call](longest + "x", other)) == "ENAMETOOLONG"
    answer = me.call(*CALLS[call](longest, other))
    assert not isinstance(answer, str) or answer == "nowhere"


def test_the_longest_path_may_lead_through_directories(me: Actor, place: Path) -> None:
    me.call("chdir", place)
    steps = ["d" * (NAME_MAX // 2)] * 31
    for n in range(len(steps)):
        assert me.call("mkdir", "/".join(steps[: n + 1]), 0o755) is None
    above = "/".join(steps)
    longest = f"{above}/" + "x" * (PATH_MAX - 2 - len(above))
    assert len(longest) == PATH_MAX - 1
    assert me.call("create", longest, 0o644) is None
    assert me.call("link", longest, "short") is None
    assert me.call("stat", longest).st_nlink == 2
    assert me.call("rename", "short", "shorter") is None
    assert me.call("rename", longest, "long") is None
    assert me.call("symlink", "target", longest) is None
    assert me.call("unlink", longest) is None


@pytest.mark.parametrize("call", RAW)
def test_a_path_outside_memory_is_an_error(me: Actor, place: Path, other: Path, call: str) -> None:
    with nothing_changes(place=place, other=other, old=other / "old"):
        for address in (None, BAD_ADDRESS):
            assert me.call("c", *RAW[call](address, other)) == "EFAULT"


@dataclass
class Case:
    """Somebody, with a directory of alice's and TEAM's that holds something of his own."""

    actor: Actor
    bits: int
    """The three bits of a mode that count for him."""
    guarded: Path
    inside: Path
    other: Path

    def mode(self, allowed: int) -> int:
        """A mode in which he has these permissions of the three, and nobody else has any."""
        return self.bits & allowed * 0o111

    def mode_but(self, allowed: int) -> int:
        """A mode in which he has these permissions of the three, and everybody else has all."""
        return 0o777 & ~self.bits | self.mode(allowed)


@pytest.fixture
def cases(root: Actor, alice: Actor, bob: Actor, carol: Actor, place: Path) -> list[Case]:
    """The owner, a member of the group by supplement, and somebody who is neither."""
    found = []
    for name, actor, bits in (("owner", alice, 0o700), ("member", bob, 0o070), ("anybody", carol, 0o007)):
        guarded = make(root, "directory", place / name, owner=(ALICE, TEAM))
        other = make(root, "directory", place / f"{name}-other", 0o777)
        make(root, "file", other / "old", owner=(actor.uid, actor.gid))
        found.append(Case(actor, bits, guarded, make(root, "directory", guarded / "inside", 0o777), other))
    return found


def watched(cases: list[Case]) -> dict[str, Path]:
    """Everything of theirs that a call might change."""
    return {
        f"{case.guarded.name}/{path.name}": path
        for case in cases
        for path in (case.guarded, case.inside, case.inside / "x", case.guarded / "x", case.other, case.other / "old")
    }


@pytest.mark.parametrize("call", CALLS)
def test_every_directory_on_the_way_must_let_one_through(root: Actor, cases: list[Case], call: str) -> None:
    kind = "directory" if call in ON_DIRECTORIES else "symlink" if call == "readlink" else "file"
    for case in cases:
        make(root, kind, case.inside / "x", owner=(case.actor.uid, case.actor.gid))
        root.call("chmod", case.guarded, case.mode_but(6))
    path = "inside/new" if call in MAKING else "inside/x"
    with nothing_changes(**watched(cases)):
        for case in cases:
            assert case.actor.call(*CALLS[call](case.guarded / path, case.other)) == "EACCES", case
    for case in cases:
        root.call("chmod", case.guarded, case.mode(1))
        answer = case.actor.call(*CALLS[call](case.guarded / path, case.other))
        assert not isinstance(answer, str) or answer == "nowhere", case


@pytest.mark.parametrize("call", CALLS)
def test_root_is_let_through(root: Actor, place: Path, other: Path, call: str) -> None:
    make(root, "directory", place / "guarded", 0, owner=(ALICE, ALICE))
    kind = "directory" if call in ON_DIRECTORIES else "symlink" if call == "readlink" else "file"
    make(root, kind, place / "guarded/x", 0, owner=(ALICE, ALICE))
    answer = root.call(*CALLS[call](place / "guarded" / ("new" if call in MAKING else "x"), other))
    assert not isinstance(answer, str) or answer == "nowhere"


@pytest.mark.parametrize("call", [*MAKING, "unlink", "rmdir", "rename, from"])
def test_a_directory_must_let_one_write_to_change_its_names(root: Actor, cases: list[Case], call: str) -> None:
    for case in cases:
        make(root, "directory" if call == "rmdir" else "file", case.guarded / "x", owner=(case.actor.uid, case.actor.gid))
    name = "new" if call in MAKING else "x"
    for allowed in (5, 6):
        for case in cases:
            root.call("chmod", case.guarded, case.mode_but(allowed))
        with nothing_changes(**watched(cases)):
            for case in cases:
                assert case.actor.call(*CALLS[call](case.guarded / name, case.other)) == "EACCES", (case, allowed)
    for case in cases:
        root.call("chmod", case.guarded, case.mode(3))
        assert not isinstance(case.actor.call(*CALLS[call](case.guarded / name, case.other)), str), case


def test_a_name_is_bytes_and_nothing_else(me: Actor, place: Path) -> None:
    for name in (b"a\nb", b"\xff\xfe", b" ", b"-", b"...", b"..a", b"~", b"\\", b"*?[", b"\x01\x7f", "ü".encode(), b"u\xcc\x88"):
        path = os.fsencode(place) + b"/" + name
        assert me.call("create", path, 0o644) is None
        assert os.listdir(os.fsencode(place)) == [name]
        assert me.call("rename", path, path + b"2") is None
        assert me.call("lstat", path) == "ENOENT"
        assert me.call("unlink", path + b"2") is None


def test_every_byte_but_two_may_stand_in_a_name(me: Actor, place: Path) -> None:
    name = bytes(byte for byte in range(1, 256) if byte != ord("/"))
    assert len(name) == 254
    assert me.call("create", os.fsencode(place) + b"/" + name, 0o644) is None
    assert os.listdir(os.fsencode(place)) == [name]


def test_names_that_look_alike_are_different(me: Actor, place: Path) -> None:
    names = ["a", "A", "ü", "u\u0308", "Ü", "a ", " a", "a."]
    for name in names:
        assert me.call("create", place / name, 0o644) is None, name
    assert sorted(os.listdir(place)) == sorted(names)


def test_the_two_names_that_are_always_there(me: Actor, place: Path) -> None:
    (place / "d").mkdir()
    (place / "d/e").mkdir()
    here = place.stat().st_ino
    for way in (".", "d/..", "d/e/../..", "./d/./..", "d/.././."):
        assert me.call("stat", f"{place}/{way}").st_ino == here, way
    assert me.call("rmdir", place / "d/e") is None
    assert me.call("stat", f"{place}/d/e/..") == "ENOENT"
    for way in (".", "..", "d/.", "d/.."):
        with nothing_changes(place=place, d=place / "d"):
            assert me.call("mkdir", f"{place}/{way}", 0o755) == "EEXIST"
            assert me.call("mkfifo", f"{place}/{way}", 0o644) == "EEXIST"
            assert me.call("symlink", "target", f"{place}/{way}") == "EEXIST"
            assert me.call("unlink", f"{place}/{way}") == "EISDIR"
            assert me.call("open", f"{place}/{way}", os.O_CREAT | os.O_WRONLY, 0o644) == "EISDIR"


def test_above_an_open_directory_without_a_name_there_is_still_a_way(me: Actor, place: Path) -> None:
    (place / "d").mkdir()
    assert me.call("chdir", place / "d") is None
    assert me.call("rmdir", place / "d") is None
    assert me.call("stat", ".").st_nlink == 0
    assert me.call("stat", "..").st_ino == place.stat().st_ino
    assert me.call("create", "new", 0o644) == "ENOENT"
    assert me.call("mkdir", "new", 0o755) == "ENOENT"
    assert me.call("symlink", "target", "new") == "ENOENT"
    assert me.call("rename", place / "none", "new") == "ENOENT"


@pytest.mark.parametrize("call", ["mkdir", "rmdir", "rename directory", "rename file", "stat", "mkfifo", "symlink", "create", "unlink"])
def test_a_slash_at_the_end_asks_for_a_directory(me: Actor, place: Path, call: str) -> None:
    make(me, "directory", place / "d")
    make(me, "file", place / "f")
    (place / "to-d").symlink_to("d")
    (place / "to-f").symlink_to("f")
    answers: dict[str, tuple[tuple[Any, ...], str | None]] = {
        "mkdir": (("mkdir", f"{place}/new/", 0o755), None),
        "rmdir": (("rmdir", f"{place}/d/"), None),
        "rename directory": (("rename", f"{place}/d/", f"{place}/new/"), None),
        "rename file": (("rename", f"{place}/f", f"{place}/new/"), "ENOTDIR"),
        "mkfifo": (("mkfifo", f"{place}/new/", 0o644), "ENOENT"),
        "symlink": (("symlink", "target", f"{place}/new/"), "ENOENT"),
        "create": (("open", f"{place}/new/", os.O_CREAT | os.O_WRONLY, 0o644), "EISDIR"),
        "unlink": (("unlink", f"{place}/d/"), "EISDIR"),
    }
    if call in answers:
        words, expected = answers[call]
        assert me.call(*words) == expected
        return
    assert me.call("lstat", f"{place}/to-d/").st_ino == (place / "d").stat().st_ino
    assert me.call("lstat", f"{place}/to-f/") == "ENOTDIR"
    assert me.call("lstat", f"{place}/f/") == "ENOTDIR"
    assert me.call("rmdir", f"{place}/to-d/") == "ENOTDIR"
    assert me.call("rename", f"{place}/to-d/", f"{place}/new") == "ENOTDIR"
