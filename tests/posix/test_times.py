"""Which call moves which of a file's and a directory's times. Reading moves none, as with `noatime`."""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.posix.differing import here_or_on_ext4, outcome, times_moved

MINIMAL_LIST: Final = (2).to_bytes(4, "little") + b"".join(tag.to_bytes(2, "little") + b"\6\0\xff\xff\xff\xff" for tag in (1, 4, 32))
ACCESS: Final = "system.posix_acl_access"


@pytest.fixture
def opened(place: Path) -> Iterator[tuple[Path, int]]:
    """A file of 9000 bytes with an extended attribute, and a descriptor of it."""
    path = place / "file"
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    os.write(descriptor, b"content" * 1286)
    os.setxattr(path, "user.one", b"1")
    yield path, descriptor
    os.close(descriptor)


def rename_back(path: Path) -> None:
    os.rename(path, f"{path}2")
    os.rename(f"{path}2", path)


def exchange_contents(path: Path, descriptor: int) -> None:
    os.preadv(descriptor, [bytearray(10)], 0)
    os.pwritev(descriptor, [b"a", b"b"], 5)


ON_A_FILE: Final[dict[str, tuple[str, Callable[[Path, int], object]]]] = {
    "read": ("", lambda path, descriptor: os.pread(descriptor, 10, 0)),
    "read everything": ("", lambda path, descriptor: path.read_bytes()),
    "write": ("mc", lambda path, descriptor: os.pwrite(descriptor, b"x", 3)),
    "writev": ("mc", exchange_contents),
    "write behind the end": ("mc", lambda path, descriptor: os.pwrite(descriptor, b"x", 20_000)),
    "write nothing": ("", lambda path, descriptor: os.pwrite(descriptor, b"", 3)),
    "truncate": ("mc", lambda path, descriptor: os.ftruncate(descriptor, 5)),
    "truncate to what it is": ("mc", lambda path, descriptor: os.ftruncate(descriptor, 9002)),
    "fsync": ("", lambda path, descriptor: os.fsync(descriptor)),
    "open and close": ("", lambda path, descriptor: os.close(os.open(path, os.O_RDWR))),
    "stat": ("", lambda path, descriptor: os.stat(path)),
    "chmod": ("c", lambda path, descriptor: os.chmod(path, 0o600)),
    "chmod to what it is": ("c", lambda path, descriptor: os.chmod(path, 0o644)),
    "fchmod": ("c", lambda path, descriptor: os.fchmod(descriptor, 0o600)),
    "chown to what it is": ("c", lambda path, descriptor: os.chown(path, os.geteuid(), os.getegid())),
    "link": ("c", lambda path, descriptor: os.link(path, f"{path}2")),
    "unlink a link": ("c", lambda path, descriptor: os.unlink(path)),
    "rename": ("c", lambda path, descriptor: rename_back(path)),
    "set an attribute": ("c", lambda path, descriptor: os.setxattr(path, "user.two", b"2")),
    "change an attribute": ("c", lambda path, descriptor: os.setxattr(path, "user.one", b"2")),
    "remove an attribute": ("c", lambda path, descriptor: os.removexattr(path, "user.one")),
    "read an attribute": ("", lambda path, descriptor: os.getxattr(path, "user.one")),
    "list attributes": ("", lambda path, descriptor: os.listxattr(path)),
    "set an access list": ("c", lambda path, descriptor: os.setxattr(path, ACCESS, MINIMAL_LIST)),
    "allocate": ("mc", lambda path, descriptor: os.posix_fallocate(descriptor, 0, 30_000)),
}


@pytest.mark.parametrize("name", ON_A_FILE)
def test_a_file(opened: tuple[Path, int], name: str) -> None:
    path, descriptor = opened
    expected, call = ON_A_FILE[name]
    os.link(path, f"{path} too")
    assert times_moved(descriptor, lambda: call(path, descriptor)) == expected


@pytest.mark.parametrize("name", ["set an attribute to what it is", "remove an access list that it has not"])
def test_unlike_ext4_what_changes_nothing_of_an_attribute_moves_ctime(opened: tuple[Path, int], name: str) -> None:
    path, descriptor = opened
    calls = {
        "set an attribute to what it is": lambda: os.setxattr(path, "user.one", b"1"),
        "remove an access list that it has not": lambda: os.removexattr(path, ACCESS),
    }
    assert times_moved(descriptor, calls[name]) == here_or_on_ext4("c", "")


def test_a_mapping(opened: tuple[Path, int]) -> None:
    _, descriptor = opened
    with mmap.mmap(descriptor, 9000) as shared, mmap.mmap(descriptor, 9000, flags=mmap.MAP_PRIVATE) as private:

        def write(mapped: mmap.mmap) -> None:
            mapped[5] = 1 + mapped[5] % 100
            shared.flush()

        assert times_moved(descriptor, lambda: shared[0]) == ""
        assert times_moved(descriptor, lambda: write(shared)) == "mc"
        assert times_moved(descriptor, lambda: write(shared)) == "mc", "msync makes the next write count again"
        assert times_moved(descriptor, lambda: write(private)) == ""


IN_A_DIRECTORY: Final[dict[str, tuple[str, Callable[[Path], object]]]] = {
    "list": ("", os.listdir),
    "look a name up": ("", lambda place: (place / "file").exists()),
    "look in vain": ("", lambda place: (place / "missing").exists()),
    "create": ("mc", lambda place: (place / "new").touch()),
    "open what is there": ("", lambda place: os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY))),
    "write to a file": ("", lambda place: (place / "file").write_bytes(b"x")),
    "mkdir": ("mc", lambda place: (place / "new").mkdir()),
    "rmdir": ("mc", lambda place: (place / "directory").rmdir()),
    "symlink": ("mc", lambda place: (place / "new").symlink_to("x")),
    "mkfifo": ("mc", lambda place: os.mkfifo(place / "new")),
    "link": ("mc", lambda place: os.link(place / "file", place / "new")),
    "unlink": ("mc", lambda place: (place / "file").unlink()),
    "rename": ("mc", lambda place: (place / "file").rename(place / "new")),
    "rename to another directory": ("mc", lambda place: (place / "file").rename(place.parent / "new")),
    "change something below": ("", lambda place: (place / "directory" / "new").touch()),
    "chmod": ("c", lambda place: place.chmod(0o700)),
    "set an attribute": ("c", lambda place: os.setxattr(place, "user.one", b"1")),
    "set a default list": ("c", lambda place: os.setxattr(place, "system.posix_acl_default", MINIMAL_LIST)),
    "mkdir in vain": ("", lambda place: outcome((place / "file").mkdir)),
    "unlink in vain": ("", lambda place: outcome((place / "missing").unlink)),
    "rmdir in vain": ("", lambda place: outcome((place / "file").rmdir)),
    "rename in vain": ("", lambda place: outcome(os.rename, place / "file", place / "directory")),
}


@pytest.mark.parametrize("name", IN_A_DIRECTORY)
def test_a_directory(place: Path, name: str) -> None:
    inner = place / "inner"
    (inner / "directory").mkdir(parents=True)
    (inner / "file").write_bytes(b"content")
    expected, call = IN_A_DIRECTORY[name]
    assert times_moved(inner, lambda: call(inner)) == expected


def test_a_symlink_that_is_followed_or_read_keeps_its_times(place: Path) -> None:
    link = place / "link"
    link.symlink_to(".")
    assert times_moved(link, lambda: (os.readlink(link), os.listdir(link))) == ""


def test_what_is_made_has_one_time(place: Path) -> None:
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    os.symlink("x", place / "symlink")
    os.mknod(place / "file")
    for path in place.iterdir():
        facts = path.lstat()
        assert facts.st_atime_ns == facts.st_mtime_ns == facts.st_ctime_ns, path
    assert place.stat().st_mtime_ns == place.stat().st_ctime_ns == (place / "file").stat().st_ctime_ns


def test_what_is_written_later_is_not_older(place: Path) -> None:
    """As `make` wants it: one file is made, and then another written to."""
    for n in range(50):
        (place / f"{n} first").touch()
        first = (place / f"{n} first").stat().st_mtime_ns
        (place / f"{n} second").write_bytes(b"x")
        assert first <= (place / f"{n} second").stat().st_mtime_ns
