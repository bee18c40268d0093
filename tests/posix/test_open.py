"""open: what it opens, makes and empties, and why it does not."""

import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, TEAM
from tests.posix.scene import KINDS, Watch, each, kind_of, make, mode_of, nothing_changes

ACCESS: Final = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR}
NEEDS: Final = {"read": 4, "write": 2, "both": 6}


@pytest.mark.parametrize("kind", ["file", "fifo", "directory"])
@pytest.mark.parametrize("who", ["owner", "member", "anybody"])
def test_the_mode_decides_who_opens_it_for_what(root: Actor, alice: Actor, bob: Actor, carol: Actor, place: Path, kind: str, who: str) -> None:
    """Of the three classes the first that fits counts, even when a later one would allow more."""
    actor, shift = {"owner": (alice, 6), "member": (bob, 3), "anybody": (carol, 0)}[who]
    path = make(root, kind, place / "x", owner=(ALICE, TEAM))
    reader = root.call("open", path, os.O_RDONLY | os.O_NONBLOCK)  # without one, a FIFO cannot be opened to write
    for others in (0, 0o777):
        for bits in range(8):
            mode = others & ~(7 << shift) | bits << shift
            root.call("chmod", path, mode)
            for name, flags in ACCESS.items():
                answer = actor.call("open", path, flags | os.O_NONBLOCK)
                expected = "" if bits & NEEDS[name] == NEEDS[name] else "EACCES"
                if kind == "directory" and name != "read":
                    expected = "EISDIR"
                assert (answer if isinstance(answer, str) else "") == expected, (oct(mode), name)
                if isinstance(answer, int):
                    actor.call("close", answer)
            answer = actor.call("open", path, os.O_RDONLY | os.O_TRUNC | os.O_NONBLOCK)
            emptied = "EISDIR" if kind == "directory" else "" if bits & 6 == 6 else "EACCES"
            assert (answer if isinstance(answer, str) else "") == emptied, (oct(mode), "emptied")
            if isinstance(answer, int):
                actor.call("close", answer)
    root.call("close", reader)


def test_root_opens_everything(root: Actor, place: Path) -> None:
    for kind in ("file", "directory"):
        path = make(root, kind, place / kind, 0, owner=(ALICE, ALICE))
        assert isinstance(root.call("open", path, os.O_RDONLY), int)
    assert isinstance(root.call("open", place / "file", os.O_RDWR | os.O_TRUNC), int)


def test_a_file_made_read_only_is_written_by_whoever_made_it(root: Actor, alice: Actor, place: Path) -> None:
    make(root, "directory", place / "d", 0o777)
    for mode in (0, 0o400, 0o444):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
            path = place / f"d/{mode}-{flags}"
            descriptor = alice.call("open", path, os.O_CREAT | os.O_EXCL | flags, mode)
            assert isinstance(descriptor, int)
            assert mode_of(path) == mode
            if flags != os.O_RDONLY:
                assert alice.call("write", descriptor, b"x") == 1
            assert alice.call("open", path, os.O_WRONLY) == "EACCES"


@pytest.mark.parametrize("kind", each(KINDS))
def test_a_name_that_is_taken(me: Actor, place: Path, kind: str) -> None:
    path = make(me, kind, place / "x")
    with nothing_changes(x=path, place=place, nowhere=place / "nowhere"):
        for flags in (os.O_RDONLY, os.O_RDWR):
            assert me.call("open", path, os.O_CREAT | os.O_EXCL | flags, 0o644) == "EEXIST"
        if kind == "directory":
            assert me.call("open", path, os.O_CREAT | os.O_RDONLY, 0o644) == "EISDIR"
        if kind == "file":
            assert isinstance(me.call("open", path, os.O_CREAT | os.O_RDWR, 0o777), int)
        if kind == "fifo":
            assert isinstance(me.call("open", path, os.O_CREAT | os.O_RDWR, 0o777), int)


def test_a_directory_is_opened_to_read(me: Actor, place: Path) -> None:
    make(me, "directory", place / "d")
    with nothing_changes(d=place / "d", place=place):
        for flags in (os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW, os.O_PATH, os.O_RDONLY | os.O_NONBLOCK):
            assert isinstance(me.call("open", place / "d", flags), int), oct(flags)
        for flags in (os.O_WRONLY, os.O_RDWR):
            for more in (0, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY, os.O_CREAT):
                assert me.call("open", place / "d", flags | more, 0o644) == "EISDIR", oct(flags | more)
        assert me.call("open", place / "d", os.O_RDONLY | os.O_TRUNC) == "EISDIR"


@pytest.mark.parametrize("kind", each(tuple(kind for kind in KINDS if kind != "directory")))
def test_what_is_to_be_a_directory_and_is_none(me: Actor, place: Path, kind: str) -> None:
    path = make(me, kind, place / "x")
    with nothing_changes(x=path, place=place):
        assert me.call("open", path, os.O_RDONLY | os.O_DIRECTORY) == ("ENOENT" if kind == "symlink" else "ENOTDIR")
        assert me.call("open", path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW) == "ENOTDIR"


def test_links_that_are_not_to_be_followed(me: Actor, place: Path) -> None:
    make(me, "file", place / "file")
    make(me, "directory", place / "d")
    for name in ("file", "d", "none"):
        (place / f"to-{name}").symlink_to(name)
        with nothing_changes(link=place / f"to-{name}", file=place / "file", place=place):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT, os.O_RDWR | os.O_TRUNC):
                assert me.call("open", place / f"to-{name}", flags | os.O_NOFOLLOW, 0o644) == "ELOOP", (name, oct(flags))
            assert me.call("open", place / f"to-{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY) == "ENOTDIR"
    make(me, "file", place / "d/x")
    assert isinstance(me.call("open", place / "to-d/x", os.O_RDONLY | os.O_NOFOLLOW), int), "only the last name counts"
    descriptor = me.call("open", place / "to-none", os.O_PATH | os.O_NOFOLLOW)
    assert me.call("readlink", "", dir_fd=descriptor) == "none"


@pytest.mark.parametrize("name", ACCESS)
def test_a_socket_is_not_opened(me: Actor, place: Path, name: str) -> None:
    make(me, "socket", place / "x")
    with nothing_changes(x=place / "x", place=place):
        assert me.call("open", place / "x", ACCESS[name]) == "ENXIO"
        assert me.call("open", place / "x", ACCESS[name] | os.O_CREAT, 0o644) == "ENXIO"


def test_a_fifo_without_a_reader_takes_no_writer(me: Actor, place: Path) -> None:
    make(me, "fifo", place / "x")
    assert me.call("open", place / "x", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"
    reader = me.call("open", place / "x", os.O_RDONLY | os.O_NONBLOCK)
    writer = me.call("open", place / "x", os.O_WRONLY | os.O_NONBLOCK)
    assert me.call("write", writer, b"through") == 7
    assert me.call("read", reader, 10) == b"through"
    me.call("link", place / "x", place / "y")
    assert isinstance(me.call("open", place / "y", os.O_WRONLY | os.O_NONBLOCK), int), "by every name it is one FIFO"
    me.call("close", reader)
    assert me.call("write", writer, b"x") == "EPIPE"
    assert me.call("open", place / "x", os.O_WRONLY | os.O_NONBLOCK) == "ENXIO"


@pytest.mark.root
def test_a_device_without_a_driver(root: Actor, place: Path) -> None:
    root.call("mknod", place / "x", 0o020666, os.makedev(4095, 1))
    assert root.call("open", place / "x", os.O_RDONLY) in {"ENXIO", "EACCES"}, "or the mount has none at all"


def test_emptying(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_APPEND):
        (place / "x").write_bytes(b"content")
        watch = Watch(x=place / "x", place=place)
        assert isinstance(me.call("open", place / "x", flags | os.O_TRUNC, 0o600), int)
        assert watch.changes() == {"x": "ctime mtime size"}, oct(flags)
        assert (place / "x").read_bytes() == b""


def test_emptying_what_is_empty_is_a_change_too(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    watch = Watch(x=place / "x", place=place)
    assert isinstance(me.call("open", place / "x", os.O_WRONLY | os.O_TRUNC), int)
    assert watch.changes() == {"x": "ctime mtime"}


def test_a_reader_may_not_empty(root: Actor, alice: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", 0o644)
    path.write_bytes(b"content")
    with nothing_changes(x=path):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            assert alice.call("open", path, flags | os.O_TRUNC) == "EACCES"
    assert path.read_bytes() == b"content"


def test_opening_without_making_leaves_no_trace(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    with nothing_changes(x=place / "x", place=place):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_CREAT, os.O_APPEND | os.O_WRONLY, os.O_RDWR | os.O_SYNC, os.O_RDONLY | os.O_CREAT):
            descriptor = me.call("open", place / "x", flags, 0o777)
            assert isinstance(descriptor, int)
            me.call("close", descriptor)


def test_appending_goes_to_the_end_of_then(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    first, second = (me.call("open", place / "x", os.O_WRONLY | os.O_APPEND) for _ in range(2))
    for descriptor, data in ((first, b"one "), (second, b"two "), (first, b"three")):
        me.call("lseek", descriptor, 0, os.SEEK_SET)
        assert me.call("write", descriptor, data) == len(data)
    assert (place / "x").read_bytes() == b"one two three"


def test_a_direction_is_kept(me: Actor, place: Path) -> None:
    (place / "x").write_bytes(b"content")
    with nothing_changes(x=place / "x"):
        reader, writer, path = (me.call("open", place / "x", flags) for flags in (os.O_RDONLY, os.O_WRONLY, os.O_PATH))
        assert me.call("write", reader, b"x") == "EBADF"
        assert me.call("ftruncate", reader, 0) == "EINVAL"
        assert me.call("read", writer, 1) == "EBADF"
        assert me.call("read", path, 1) == "EBADF"
        assert me.call("ftruncate", path, 0) == "EBADF"
        assert me.call("fstat", path).st_size == 7


def test_contradictory_directions(me: Actor, place: Path) -> None:
    make(me, "file", place / "x")
    with nothing_changes(x=place / "x"):
        descriptor = me.call("open", place / "x", os.O_WRONLY | os.O_RDWR)
        assert isinstance(descriptor, int), "Linux lets one ask about it then"
        assert me.call("read", descriptor, 1) == "EBADF"
        assert me.call("write", descriptor, b"x") == "EBADF"


def test_looking_without_a_trace_is_for_owners(root: Actor, alice: Actor, bob: Actor, place: Path) -> None:
    path = make(root, "file", place / "x", 0o666, owner=(ALICE, ALICE))
    assert bob.call("open", path, os.O_RDONLY | os.O_NOATIME) == "EPERM"
    assert isinstance(alice.call("open", path, os.O_RDONLY | os.O_NOATIME), int)
    assert isinstance(root.call("open", path, os.O_RDONLY | os.O_NOATIME), int)


def test_a_path_alone_needs_no_permission(root: Actor, alice: Actor, place: Path) -> None:
    for kind in KINDS:
        path = make(root, kind, place / kind, 0)
        descriptor = alice.call("open", path, os.O_PATH | os.O_NOFOLLOW)
        assert isinstance(descriptor, int), kind
        assert alice.call("fstat", descriptor).st_ino == path.lstat().st_ino
        if kind == "file":
            assert alice.call("open", f"/proc/self/fd/{descriptor}", os.O_RDONLY) == "EACCES"
            assert alice.call("fchmod", descriptor, 0o777) == "EBADF"


def test_a_program_that_runs_is_not_written(me: Actor, place: Path) -> None:
    shutil.copy("/bin/cat", place / "cat")
    (place / "cat").chmod(0o755)
    gate, way_out = me.call("pipe")
    me.call("set_inheritable", gate, True)
    child = me.call("posix_spawn", str(place / "cat"), ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, gate, 0)])
    assert isinstance(child, int)
    with nothing_changes(cat=place / "cat"):
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_CREAT):
            assert me.call("open", place / "cat", flags) == "ETXTBSY"
        assert me.call("truncate", place / "cat", 0) == "ETXTBSY"
    assert isinstance(me.call("open", place / "cat", os.O_RDONLY), int)
    assert me.call("rename", place / "cat", place / "moved") is None
    assert me.call("unlink", place / "moved") is None
    me.call("close", way_out)
    assert me.call("waitpid", child, 0)[1] == 0


def test_a_file_being_written_is_not_run(me: Actor, place: Path) -> None:
    shutil.copy("/bin/true", place / "true")
    (place / "true").chmod(0o755)
    writer = me.call("open", place / "true", os.O_WRONLY)
    assert me.call("posix_spawn", str(place / "true"), ["true"], {}) == "ETXTBSY"
    me.call("close", writer)
    child = me.call("posix_spawn", str(place / "true"), ["true"], {})
    assert me.call("waitpid", child, 0)[1] == 0


def test_a_lease_holds_up_who_opens(me: Actor, place: Path) -> None:
    (place / "x").write_bytes(b"content")
    holder = me.call("open", place / "x", os.O_RDONLY)
    assert me.call("lease", holder, fcntl.F_RDLCK) is None
    with nothing_changes(x=place / "x"):
        os.close(os.open(place / "x", os.O_RDONLY | os.O_NONBLOCK))
        with pytest.raises(BlockingIOError):
            os.open(place / "x", os.O_WRONLY | os.O_NONBLOCK)
    assert me.call("lease", holder, fcntl.F_UNLCK) is None
    os.close(os.open(place / "x", os.O_WRONLY | os.O_NONBLOCK))


def test_large_offsets(me: Actor, place: Path) -> None:
    descriptor = me.call("open", place / "x", os.O_CREAT | os.O_RDWR, 0o644)
    for offset in (2**31 - 1, 2**31 + 1, 2**32 + 1):
        assert me.call("pwrite", descriptor, b"a", offset) == 1
        assert (place / "x").lstat().st_size == offset + 1
        assert me.call("pread", descriptor, 2, offset) == b"a"


def test_what_was_made_in_vain_is_not_there(root: Actor, alice: Actor, place: Path) -> None:
    with nothing_changes(place=place, x=place / "x"):
        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_EXCL):
            assert alice.call("open", place / "x", os.O_CREAT | flags, 0o666) == "EACCES"
    assert kind_of(place / "x") == "none"
