"""setxattr, getxattr, listxattr, removexattr: names, sizes, flags, kinds of files, and who may in which namespace."""

import ctypes
import errno
import os
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4, outcome
from tests.posix.lists import ACCESS, DEFAULT, acl

UNSUPPORTED: Final = errno.errorcode[errno.EOPNOTSUPP]
KINDS: Final = ("file", "directory", "symlink", "fifo", "device")


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.touch()
    return path


@pytest.fixture
def kinds(place: Path, file: Path) -> Path:
    (place / "directory").mkdir()
    (place / "symlink").symlink_to("file")
    os.mkfifo(place / "fifo")
    if os.geteuid() == 0:
        os.mknod(place / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return place


# --- names, sizes, flags --------------------------------------------------------------------------------------------

NAMES: Final = {  # name: (set, get, remove), None for success
    "user.one": (None, b"v", None),
    "user.with.dots": (None, b"v", None),
    "user." + "n" * 250: (None, b"v", None),
    "user." + "n" * 251: ("ERANGE", "ERANGE", "ERANGE"),
    "trusted." + "n" * 247: (None, b"v", None),
    "trusted." + "n" * 248: ("ERANGE", "ERANGE", "ERANGE"),
    "security.one": (None, b"v", None),
    "": ("ERANGE", "ERANGE", "ERANGE"),
    "user.": ("EINVAL", "EINVAL", "EINVAL"),
    "trusted.": ("EINVAL", "EINVAL", "EINVAL"),
    "security.": ("EINVAL", "EINVAL", "EINVAL"),
    "user": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "User.one": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "one": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "os2.one": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "btrfs.compression": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "system.one": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "fuse_stacktrace": (UNSUPPORTED, UNSUPPORTED, UNSUPPORTED),
    "security.capability": ("EINVAL", "ENODATA", "ENODATA"),
    ACCESS: ("EINVAL", "ENODATA", None),
    DEFAULT: ("EINVAL", "ENODATA", None),
}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{name[:20]}-{len(name)}")
def test_names(file: Path, root: Actor, name: str) -> None:
    assert root.call("getxattr", file, name) in {"ENODATA", *[each for each in NAMES[name] if isinstance(each, str)]}
    found = (root.call("setxattr", file, name, b"v"), root.call("getxattr", file, name), root.call("removexattr", file, name))
    assert found == NAMES[name]
    assert os.listxattr(file) == []


def test_any_bytes_are_a_name(file: Path) -> None:
    names = [b"user.\xff\xfe", b"user. ", b"user.\n", "user.\u00e9".encode()]
    for name in names:
        os.setxattr(file, name, name)
    assert sorted(os.listxattr(os.fsencode(file))) == sorted(map(os.fsdecode, names))
    assert [os.getxattr(file, name) for name in names] == names


def test_sizes(file: Path) -> None:
    assert outcome(os.setxattr, file, "user.large", bytes(65_537)) == "E2BIG"
    for size in (0, 1, 255, 4000, 1, 0):
        os.setxattr(file, "user.one", b"x" * size)
        assert os.getxattr(file, "user.one") == b"x" * size
    assert os.listxattr(file) == ["user.one"]


def test_unlike_ext4_a_value_may_have_64_kib(file: Path) -> None:
    """ext4 without the feature ea_inode keeps all of a file's in a block."""
    assert outcome(os.setxattr, file, "user.large", b"x" * 65_536) == here_or_on_ext4(None, "ENOSPC")
    assert outcome(os.getxattr, file, "user.large") == here_or_on_ext4(b"x" * 65_536, "ENODATA")


def test_there_is_an_end_to_it(file: Path) -> None:
    """Whatever can be set can be listed."""
    with pytest.raises(OSError) as caught:
        for n in range(10_000):
            os.setxattr(file, f"user.{n:0250}", b"")
    assert caught.value.errno == errno.ENOSPC
    assert len(os.listxattr(file)) == n
    os.removexattr(file, f"user.{0:0250}")
    os.setxattr(file, "user.other", b"")


def test_many_large_ones_have_an_end_too(file: Path) -> None:
    with pytest.raises(OSError) as caught:
        for n in range(100):
            os.setxattr(file, f"user.{n}", bytes(60_000))
    assert caught.value.errno == errno.ENOSPC
    assert [len(os.getxattr(file, f"user.{each}")) for each in range(n)] == [60_000] * n


def test_flags(file: Path) -> None:
    assert outcome(os.setxattr, file, "user.one", b"1", os.XATTR_REPLACE) == "ENODATA"
    assert outcome(os.getxattr, file, "user.one") == "ENODATA"
    assert outcome(os.setxattr, file, "user.one", b"1", os.XATTR_CREATE) is None
    assert outcome(os.setxattr, file, "user.one", b"2", os.XATTR_CREATE) == "EEXIST"
    assert os.getxattr(file, "user.one") == b"1"
    assert outcome(os.setxattr, file, "user.one", b"3", os.XATTR_REPLACE) is None
    assert outcome(os.setxattr, file, "user.one", b"4", os.XATTR_CREATE | os.XATTR_REPLACE) == "EEXIST"
    assert outcome(os.setxattr, file, "user.one", b"5", 4) == "EINVAL"
    assert os.getxattr(file, "user.one") == b"3"


def test_unlike_ext4_create_and_replace_together_create(file: Path) -> None:
    """pyfuse3 looks for one flag only, and does not hand them over."""
    flags = os.XATTR_CREATE | os.XATTR_REPLACE
    assert outcome(os.setxattr, file, "user.one", b"1", flags) == here_or_on_ext4(None, "ENODATA")


def test_buffers(file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    path = os.fsencode(file)

    def sized(name: str, size: int, *arguments: object) -> object:
        buffer = ctypes.create_string_buffer(64)
        length = getattr(libc, name)(path, *arguments, buffer, ctypes.c_size_t(size))
        return errno.errorcode[ctypes.get_errno()] if length < 0 else length

    os.setxattr(file, "user.long", b"0123456789")
    assert [sized("getxattr", size, b"user.long") for size in (0, 9, 10, 64)] == [10, "ERANGE", 10, 10]
    assert [sized("listxattr", size) for size in (0, 9, 10, 64)] == [10, "ERANGE", 10, 10]


def test_removing(file: Path) -> None:
    os.setxattr(file, "user.one", b"1")
    os.setxattr(file, "user.two", b"2")
    os.removexattr(file, "user.one")
    assert outcome(os.removexattr, file, "user.one") == "ENODATA"
    assert os.listxattr(file) == ["user.two"]


def test_through_descriptors(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDONLY)
    assert me.call("setxattr", descriptor, "user.one", b"1") is None
    file.unlink()
    assert me.call("setxattr", descriptor, "user.two", b"2") is None
    assert sorted(me.call("listxattr", descriptor)) == ["user.one", "user.two"]
    assert me.call("getxattr", descriptor, "user.two") == b"2"
    assert me.call("removexattr", descriptor, "user.one") is None
    path_only = me.call("open", file.parent, os.O_PATH)
    assert me.call("setxattr", path_only, "user.one", b"1") == "EBADF"


def test_paths(place: Path, file: Path, me: Actor) -> None:
    os.symlink("loop", place / "loop")
    for path, error in (("missing", "ENOENT"), ("loop", "ELOOP"), ("file/below", "ENOTDIR"), ("n" * 256, "ENAMETOOLONG")):
        assert me.call("setxattr", place / path, "user.one", b"") == error
        assert me.call("getxattr", place / path, "user.one") == error
        assert me.call("listxattr", place / path) == error
        assert me.call("removexattr", place / path, "user.one") == error


# --- kinds and namespaces -------------------------------------------------------------------------------------------

SYMLINKS_LISTS: Final = (UNSUPPORTED, UNSUPPORTED)
ON_KINDS: Final = {  # namespace: what setting and then getting give on each kind, in the order of KINDS
    "user.one": ((None, b"v"), (None, b"v"), ("EPERM", "ENODATA"), ("EPERM", "ENODATA"), ("EPERM", "ENODATA")),
    "trusted.one": ((None, b"v"),) * 5,
    "security.one": ((None, b"v"),) * 5,
    ACCESS: ((None, "ENODATA"), (None, "ENODATA"), SYMLINKS_LISTS, (None, "ENODATA"), (None, "ENODATA")),
    DEFAULT: (("EACCES", "ENODATA"), (None, acl(6, 4, 4)), SYMLINKS_LISTS, ("EACCES", "ENODATA"), ("EACCES", "ENODATA")),
}


@pytest.mark.root
@pytest.mark.parametrize("name", ON_KINDS)
def test_kinds_of_files(kinds: Path, name: str) -> None:
    value = b"v" if not name.startswith("system.") else acl(6, 4, 4)
    for kind, expected in zip(KINDS, ON_KINDS[name], strict=True):
        path = kinds / kind
        found = (outcome(os.setxattr, path, name, value, follow_symlinks=False), outcome(os.getxattr, path, name, follow_symlinks=False))
        assert (kind, *found) == (kind, *expected)
        listed = [name] if isinstance(expected[1], bytes) else []
        assert os.listxattr(path, follow_symlinks=False) == listed


def test_who_may_in_user(file: Path, alice: Actor, bob: Actor) -> None:
    """user.*: whoever may write to the file sets, whoever may read it gets; anybody lists."""
    os.chown(file, alice.uid, alice.gid)
    os.setxattr(file, "user.one", b"1")
    for mode, reads, writes in ((0o644, True, False), (0o600, False, False), (0o602, False, True), (0o666, True, True)):
        file.chmod(mode)
        assert bob.call("getxattr", file, "user.one") == (b"1" if reads else "EACCES")
        assert bob.call("setxattr", file, "user.one", b"1") == (None if writes else "EACCES")
        assert bob.call("removexattr", file, "user.two") == ("ENODATA" if writes else "EACCES")
        assert bob.call("listxattr", file) == ["user.one"]
    file.chmod(0o400)
    assert alice.call("setxattr", file, "user.one", b"2") == "EACCES"
    assert alice.call("getxattr", file, "user.one") == b"1"


def test_user_in_sticky_directories_is_the_owners(place: Path, alice: Actor, bob: Actor, root: Actor) -> None:
    directory = place / "sticky"
    directory.mkdir()
    os.chown(directory, alice.uid, alice.gid)
    for mode, others in ((0o1777, "EPERM"), (0o777, None)):
        directory.chmod(mode)
        assert bob.call("setxattr", directory, "user.one", b"1") == others
        assert alice.call("setxattr", directory, "user.one", b"1") is None
        assert root.call("setxattr", directory, "user.one", b"1") is None


def test_who_may_in_trusted(file: Path, alice: Actor, root: Actor) -> None:
    """trusted.*: root's alone; for others it is not there."""
    os.chown(file, alice.uid, alice.gid)
    assert alice.call("setxattr", file, "trusted.one", b"1") == "EPERM"
    assert root.call("setxattr", file, "trusted.one", b"1") is None
    assert root.call("listxattr", file) == ["trusted.one"]
    assert alice.call("listxattr", file) == []
    assert alice.call("getxattr", file, "trusted.one") == "ENODATA"
    assert alice.call("removexattr", file, "trusted.one") == "EPERM"


def test_who_may_in_security(file: Path, alice: Actor, root: Actor) -> None:
    """security.*: root sets, anybody gets."""
    os.chown(file, alice.uid, alice.gid)
    file.chmod(0)
    assert alice.call("setxattr", file, "security.one", b"1") == "EPERM"
    assert root.call("setxattr", file, "security.one", b"1") is None
    assert alice.call("getxattr", file, "security.one") == b"1"
    assert alice.call("listxattr", file) == ["security.one"]
    assert alice.call("removexattr", file, "security.one") == "EPERM"


def test_who_may_in_system(file: Path, alice: Actor, bob: Actor, root: Actor) -> None:
    """Access lists: the owner and root set, anybody who gets there gets."""
    os.chown(file, alice.uid, alice.gid)
    file.chmod(0o666)
    value = acl(6, 0, 0, users={bob.uid: 4})
    assert bob.call("setxattr", file, ACCESS, value) == "EPERM"
    assert alice.call("setxattr", file, ACCESS, value) is None
    assert bob.call("getxattr", file, ACCESS) == value
    assert bob.call("removexattr", file, ACCESS) == "EPERM"
    assert root.call("removexattr", file, ACCESS) is None
    assert bob.call("getxattr", file, ACCESS) == "ENODATA"


CAPABILITY: Final = bytes.fromhex("0100000200040000000000000000000000000000")


def test_a_capability(file: Path, alice: Actor, root: Actor) -> None:
    os.chown(file, alice.uid, alice.gid)
    assert root.call("setxattr", file, "security.capability", CAPABILITY) is None
    assert root.call("getxattr", file, "security.capability") == CAPABILITY
    assert alice.call("setxattr", file, "security.capability", CAPABILITY) == "EPERM"
    for change in (("truncate", file, 5), ("chown", file, alice.uid, alice.gid)):
        root.call("setxattr", file, "security.capability", CAPABILITY)
        assert root.call(*change) is None
        assert root.call("listxattr", file) == []


def test_a_capability_goes_with_a_write(file: Path, root: Actor) -> None:
    descriptor = root.call("open", file, os.O_WRONLY)
    root.call("setxattr", file, "security.capability", CAPABILITY)
    root.call("write", descriptor, b"x")
    root.call("fsync", descriptor)
    assert root.call("listxattr", file) == []


def test_unlike_ext4_a_capability_goes_with_what_was_written_before(file: Path, root: Actor) -> None:
    """The kernel sends pages when it likes, and a WRITE does not say when its bytes were written."""
    descriptor = root.call("open", file, os.O_WRONLY)
    root.call("write", descriptor, b"x")
    root.call("setxattr", file, "security.capability", CAPABILITY)
    root.call("fsync", descriptor)
    assert root.call("listxattr", file) == here_or_on_ext4([], ["security.capability"])
