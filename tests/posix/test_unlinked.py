"""Files that are open and have no name any more, and O_TMPFILE, which would make such ones."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import here_or_on_ext4

FOLLOW: Final = 0x400
EMPTY_PATH: Final = 0x1000


@pytest.fixture
def file(place: Path) -> Path:
    path = place / "file"
    path.write_bytes(b"content")
    return path


def test_it_can_be_used_like_any_other(file: Path, me: Actor) -> None:
    owner, group = (1, 2) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    descriptor = me.call("open", file, os.O_RDWR)
    file.unlink()
    assert os.listdir(file.parent) == []
    assert me.call("fstat", descriptor).st_nlink == 0
    assert me.call("pread", descriptor, 100, 0) == b"content"
    assert me.call("pwrite", descriptor, b"far", 10_000) == 3
    assert me.call("ftruncate", descriptor, 10_001) is None
    assert me.call("pread", descriptor, 100, 9_998) == b"\0\0f"
    assert me.call("fchmod", descriptor, 0o640) is None
    assert me.call("fchown", descriptor, owner, group) is None
    assert me.call("fsync", descriptor) is None
    assert me.call("utime", descriptor, ns=(1, 2)) is None
    facts = me.call("fstat", descriptor)
    assert (facts.st_mode & 0o777, facts.st_uid, facts.st_gid, facts.st_size, facts.st_mtime_ns) == (0o640, owner, group, 10_001, 2)


def test_another_of_its_name_is_another_file(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    file.unlink()
    file.write_bytes(b"new")
    assert me.call("fstat", descriptor).st_ino != file.stat().st_ino
    me.call("write", descriptor, b"old")
    assert file.read_bytes() == b"new"
    other = file.with_name("other")
    other.write_bytes(b"other")
    descriptor = me.call("open", file, os.O_RDONLY)
    other.replace(file)
    assert me.call("read", descriptor, 10) == b"new"
    assert me.call("fstat", descriptor).st_nlink == 0


def test_it_gets_no_name_again(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    file.unlink()
    assert me.call("linkat", f"/proc/self/fd/{descriptor}", file, FOLLOW) == "ENOENT"
    assert me.call("linkat", "", file, EMPTY_PATH, descriptor) == "ENOENT"
    assert not file.exists()


def test_it_can_be_opened_again_through_proc(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDWR)
    file.unlink()
    again = me.call("open", f"/proc/self/fd/{descriptor}", os.O_RDWR | os.O_TRUNC)
    assert me.call("write", again, b"anew") == 4
    assert me.call("pread", descriptor, 10, 0) == b"anew"
    assert me.call("stat", f"/proc/self/fd/{descriptor}").st_nlink == 0


def test_a_file_with_a_name_left_can_be_linked_through_proc(file: Path, me: Actor) -> None:
    descriptor = me.call("open", file, os.O_RDONLY)
    assert me.call("linkat", f"/proc/self/fd/{descriptor}", file.with_name("link"), FOLLOW) is None
    assert (me.call("fstat", descriptor).st_nlink, file.with_name("link").read_bytes()) == (2, b"content")


def test_a_directory_without_a_name(place: Path, me: Actor) -> None:
    (place / "d").mkdir()
    descriptor = me.call("open", place / "d", os.O_RDONLY)
    me.call("chdir", place / "d")
    (place / "d").rmdir()
    assert me.call("fstat", descriptor).st_nlink == 0
    assert me.call("listdir", descriptor) == []
    assert me.call("getcwd") == "ENOENT"
    assert me.call("create", "new") == "ENOENT"
    assert me.call("mkdir", "new") == "ENOENT"
    assert me.call("symlink", "x", "new") == "ENOENT"
    assert me.call("fchmod", descriptor, 0o700) is None
    assert me.call("stat", "..").st_ino == place.stat().st_ino


def test_unlike_ext4_o_tmpfile_is_not_supported(place: Path, me: Actor) -> None:
    """pyfuse3 hands no TMPFILE over. EOPNOTSUPP is what open(2) tells programs to expect; they make a name and unlink it."""
    made = me.call("open", place, os.O_TMPFILE | os.O_RDWR, 0o600)
    if here_or_on_ext4(True, False):
        assert made == errno.errorcode[errno.EOPNOTSUPP]
    else:
        assert me.call("fstat", made).st_nlink == 0
    assert me.call("open", place, os.O_TMPFILE | os.O_RDONLY) == "EINVAL"
    assert os.listdir(place) == []


def test_temporary_files_of_programs(place: Path, me: Actor) -> None:
    """They try O_TMPFILE first."""
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"temporary")
        file.seek(0)
        assert file.read() == b"temporary"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert os.listdir(place) == []
