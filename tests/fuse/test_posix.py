"""What POSIX and Linux promise of names, attributes and xattrs, on a real mount."""

import ctypes
import errno
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.mounted import Repository
from tests.oracle.awkward import bind_socket

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4
NOWHERE: Final = -100

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(NOWHERE, os.fsencode(old), NOWHERE, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(old))


@contextmanager
def fails_with(number: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == number, f"{errno.errorcode[caught.value.errno or 0]} instead of {errno.errorcode[number]}"


# --- names --------------------------------------------------------------------------------------------------------


def test_a_name_that_was_looked_for_in_vain_can_be_created(place: Path) -> None:
    path = place / "later"
    for _ in range(3):
        assert not path.exists()
    path.write_bytes(b"here")
    assert path.read_bytes() == b"here"
    path.unlink()
    assert not path.exists()
    path.mkdir()
    assert path.is_dir()


def test_a_name_that_was_looked_for_in_vain_can_be_linked_and_renamed_to(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    for name in ("linked", "renamed", "symlinked", "fifo"):
        assert not (place / name).exists()
    os.link(place / "file", place / "linked")
    os.rename(place / "file", place / "renamed")
    os.symlink("renamed", place / "symlinked")
    os.mkfifo(place / "fifo")
    assert [(place / name).read_bytes() for name in ("linked", "renamed", "symlinked")] == [b"content"] * 3
    assert stat.S_ISFIFO(os.lstat(place / "fifo").st_mode)


def test_create_with_excl_refuses_what_is_there(place: Path) -> None:
    (place / "file").touch()
    os.symlink("nowhere", place / "dangling")
    for name in ("file", "dangling"):
        with fails_with(errno.EEXIST):
            os.open(place / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_names_have_at_most_255_bytes(place: Path) -> None:
    (place / ("n" * 255)).touch()
    with fails_with(errno.ENAMETOOLONG):
        (place / ("n" * 256)).touch()
    with fails_with(errno.ENAMETOOLONG):
        os.stat(place / ("n" * 256))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(
        st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b"..", b".snapshots"}),
        max_size=12,
    )
)
def test_any_bytes_are_a_name(place: Path, names: set[bytes]) -> None:
    directory = os.fsencode(place)
    for name in names:
        with open(directory + b"/" + name, "xb") as file:
            file.write(name)
    assert set(os.listdir(directory)) == names
    for name in names:
        path = directory + b"/" + name
        with open(path, "rb") as file:
            assert file.read() == name
        os.unlink(path)
    assert os.listdir(directory) == []


def test_names_that_differ_in_unicode_form_or_case_are_different(place: Path) -> None:
    names = {"caf\u00e9", "cafe\u0301", "CAF\u00c9", "file", "File", "FILE"}
    for name in names:
        (place / name).write_text(name)
    assert set(os.listdir(place)) == names
    assert all((place / name).read_text() == name for name in names)


# --- rename -------------------------------------------------------------------------------------------------------


def test_rename_replaces_a_file(place: Path) -> None:
    (place / "old").write_bytes(b"old")
    (place / "new").write_bytes(b"new")
    ino = os.stat(place / "new").st_ino
    os.rename(place / "new", place / "old")
    assert os.listdir(place) == ["old"]
    assert (place / "old").read_bytes() == b"new"
    assert os.stat(place / "old").st_ino == ino


def test_rename_between_two_names_of_one_file_does_nothing(place: Path) -> None:
    (place / "one").write_bytes(b"x")
    os.link(place / "one", place / "two")
    os.rename(place / "one", place / "two")
    assert sorted(os.listdir(place)) == ["one", "two"]
    assert os.stat(place / "one").st_nlink == 2


def test_rename_of_directories(place: Path) -> None:
    for name in ("full/below", "empty", "moved/x"):
        (place / name).mkdir(parents=True)
    (place / "file").touch()
    os.rename(place / "moved", place / "empty")
    assert (place / "empty" / "x").is_dir()
    with fails_with(errno.ENOTEMPTY):
        os.rename(place / "empty", place / "full")
    with fails_with(errno.ENOTDIR):
        os.rename(place / "empty", place / "file")
    with fails_with(errno.EISDIR):
        os.rename(place / "file", place / "empty")
    with fails_with(errno.EINVAL):
        os.rename(place / "full", place / "full" / "below" / "self")
    with fails_with(errno.ENOENT):
        os.rename(place / "nothing", place / "something")


def test_a_moved_directory_knows_its_new_parent(place: Path) -> None:
    (place / "a" / "inner").mkdir(parents=True)
    (place / "b").mkdir()
    assert [os.stat(place / name).st_nlink for name in ("a", "b")] == [3, 2]
    os.rename(place / "a" / "inner", place / "b" / "inner")
    assert [os.stat(place / name).st_nlink for name in ("a", "b")] == [2, 3]
    assert os.stat(place / "b" / "inner" / "..").st_ino == os.stat(place / "b").st_ino


def test_rename_noreplace(place: Path) -> None:
    (place / "one").write_bytes(b"1")
    (place / "two").write_bytes(b"2")
    with fails_with(errno.EEXIST):
        renameat2(place / "one", place / "two", RENAME_NOREPLACE)
    assert (place / "two").read_bytes() == b"2"
    renameat2(place / "one", place / "three", RENAME_NOREPLACE)
    assert sorted(os.listdir(place)) == ["three", "two"]


def test_rename_exchange(place: Path) -> None:
    (place / "directory" / "sub").mkdir(parents=True)
    (place / "directory" / "sub" / "inside").write_bytes(b"i")
    (place / "file").write_bytes(b"f")
    renameat2(place / "file", place / "directory" / "sub", RENAME_EXCHANGE)
    assert (place / "directory" / "sub").read_bytes() == b"f"
    assert (place / "file" / "inside").read_bytes() == b"i"
    assert os.stat(place / "directory").st_nlink == 2
    assert os.stat(place / "file" / "..").st_ino == os.stat(place).st_ino
    with fails_with(errno.ENOENT):
        renameat2(place / "file", place / "nothing", RENAME_EXCHANGE)


def test_rename_with_contradicting_flags_is_refused(place: Path) -> None:
    (place / "one").touch()
    (place / "two").touch()
    with fails_with(errno.EINVAL):
        renameat2(place / "one", place / "two", RENAME_NOREPLACE | RENAME_EXCHANGE)


# --- links and nodes ----------------------------------------------------------------------------------------------


def test_link_counts(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    for n in range(20):
        os.link(place / "file", place / f"link-{n}")
    assert os.stat(place / "file").st_nlink == 21
    assert len({os.stat(place / name).st_ino for name in os.listdir(place)}) == 1
    (place / "file").unlink()
    for n in range(19):
        (place / f"link-{n}").unlink()
    assert os.stat(place / "link-19").st_nlink == 1
    assert (place / "link-19").read_bytes() == b"content"


def test_a_change_through_one_link_shows_through_all(place: Path) -> None:
    (place / "one").write_bytes(b"before")
    os.link(place / "one", place / "two")
    (place / "two").write_bytes(b"after")
    os.chmod(place / "two", 0o600)
    assert (place / "one").read_bytes() == b"after"
    assert stat.S_IMODE(os.stat(place / "one").st_mode) == 0o600


def test_a_directory_cannot_be_linked_or_unlinked(place: Path) -> None:
    (place / "directory").mkdir()
    with fails_with(errno.EPERM):
        os.link(place / "directory", place / "second")
    with fails_with(errno.EISDIR):
        os.unlink(place / "directory")


def test_directory_link_counts_and_removal(place: Path) -> None:
    for n in range(5):
        (place / f"d{n}").mkdir()
    assert os.stat(place).st_nlink == 7
    (place / "d0" / "inside").touch()
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(place / "d0")
    with fails_with(errno.ENOTDIR):
        os.rmdir(place / "d0" / "inside")
    os.rmdir(place / "d1")
    assert os.stat(place).st_nlink == 6


def test_a_removed_directory_that_is_still_open_takes_nothing_new(place: Path) -> None:
    (place / "gone").mkdir()
    descriptor = os.open(place / "gone", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rmdir(place / "gone")
        assert os.fstat(descriptor).st_nlink == 0
        assert os.listdir(descriptor) == []
        with fails_with(errno.ENOENT):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor)
    finally:
        os.close(descriptor)


def test_symlinks_keep_their_target(place: Path) -> None:
    targets = [b"x", b"../up", b"/absolute", b"\xff\xfe not utf-8\n", b"t" * 4095]
    for n, target in enumerate(targets):
        os.symlink(target, place / f"link-{n}")
    for n, target in enumerate(targets):
        path = os.fsencode(place / f"link-{n}")
        assert os.readlink(path) == target
        assert os.lstat(path).st_size == len(target)


def test_nodes(place: Path) -> None:
    os.mkfifo(place / "fifo", 0o640)
    bind_socket(os.fsencode(place / "socket"))
    os.mknod(place / "file", stat.S_IFREG | 0o604)
    assert stat.S_ISFIFO(os.lstat(place / "fifo").st_mode)
    assert stat.S_ISSOCK(os.lstat(place / "socket").st_mode)
    assert stat.filemode(os.lstat(place / "file").st_mode) == "-rw----r--"


@pytest.mark.root
def test_device_numbers(place: Path) -> None:
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        for major, minor in ((1, 3), (0, 0), (4095, 1_048_575), (259, 70_000)):
            path = place / f"{kind}-{major}-{minor}"
            os.mknod(path, kind | 0o600, os.makedev(major, minor))
            facts = os.lstat(path)
            assert (stat.S_IFMT(facts.st_mode), os.major(facts.st_rdev), os.minor(facts.st_rdev)) == (
                kind,
                major,
                minor,
            )


def test_a_fifo_carries_data(place: Path) -> None:
    os.mkfifo(place / "fifo")
    with subprocess.Popen(["cat", place / "fifo"], stdout=subprocess.PIPE) as reader:
        (place / "fifo").write_bytes(b"through")
        assert reader.communicate()[0] == b"through"


def test_a_socket_accepts(place: Path) -> None:
    directory = os.open(place, os.O_RDONLY)
    address = f"/proc/self/fd/{directory}/socket"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(address)
        listener.listen(1)
        client.connect(address)
        accepted, _ = listener.accept()
        accepted.close()
    os.close(directory)


# --- attributes ---------------------------------------------------------------------------------------------------

TIMES_NS: Final = (
    0,
    1,
    -1,
    -1_500_000_000,
    999_999_999,
    1_700_000_000_123_456_789,
    2**31 * 10**9 + 5,
    2**32 * 10**9 + 999_999_999,
    -(2**31 - 1) * 10**9,
    15_000_000_000 * 10**9 + 1,
)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_times_are_kept_to_the_nanosecond(place: Path, kind: str) -> None:
    path = place / kind
    if kind == "file":
        path.write_bytes(b"content")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    for time_ns in TIMES_NS:
        os.utime(path, ns=(time_ns + 7 if time_ns else 0, time_ns), follow_symlinks=False)
        facts = os.lstat(path)
        assert (facts.st_atime_ns, facts.st_mtime_ns) == (time_ns + 7 if time_ns else 0, time_ns)


def test_times_set_on_an_open_file_that_was_written_stay(place: Path) -> None:
    with open(place / "file", "wb", buffering=0) as file:
        file.write(b"dirty")
        os.utime(file.fileno(), ns=(5, 123_456_789_987_654_321))
    assert os.stat(place / "file").st_mtime_ns == 123_456_789_987_654_321


def test_what_changes_which_time(place: Path) -> None:
    def set_back(path: Path) -> os.stat_result:
        os.utime(path, ns=(10**18, 10**18))
        return os.stat(path)

    directory = place / "directory"
    directory.mkdir()
    set_back(directory)
    (directory / "new").touch()
    assert os.stat(directory).st_mtime_ns > 10**18
    set_back(directory)
    (directory / "new").unlink()
    assert os.stat(directory).st_mtime_ns > 10**18

    file = place / "file"
    file.write_bytes(b"content")
    before = set_back(file)
    os.chmod(file, 0o600)
    after = os.stat(file)
    assert after.st_mtime_ns == 10**18
    assert after.st_ctime_ns >= before.st_ctime_ns
    file.write_bytes(b"other")
    assert os.stat(file).st_mtime_ns > 10**18
    set_back(file)
    os.truncate(file, 2)
    assert os.stat(file).st_mtime_ns > 10**18
    before = set_back(file)
    os.link(file, place / "second")
    after = os.stat(file)
    assert after.st_mtime_ns == 10**18
    assert after.st_ctime_ns >= before.st_ctime_ns


def test_modes_of_every_kind(place: Path) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    for path in (place / "file", place / "directory"):
        for mode in (0o000, 0o400, 0o644, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
            os.chmod(path, mode)
            assert stat.S_IMODE(os.stat(path).st_mode) == mode
        os.chmod(path, 0o700)


def test_the_umask_applies(place: Path) -> None:
    before = os.umask(0o027)
    try:
        os.close(os.open(place / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "directory", 0o777)
        os.mkfifo(place / "fifo", 0o666)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE(os.stat(place / name).st_mode) for name in os.listdir(place)}
    assert modes == {"file": 0o640, "directory": 0o750, "fifo": 0o640}


@pytest.mark.root
def test_a_set_group_id_directory_hands_its_group_on(place: Path) -> None:
    directory = place / "shared"
    directory.mkdir()
    os.chown(directory, 0, 1234)
    os.chmod(directory, 0o2775)
    (directory / "file").touch()
    (directory / "below").mkdir()
    assert os.stat(directory / "file").st_gid == 1234
    facts = os.stat(directory / "below")
    assert facts.st_gid == 1234
    assert facts.st_mode & stat.S_ISGID


@pytest.mark.root
def test_owners(place: Path) -> None:
    (place / "file").touch()
    os.symlink("file", place / "link")
    os.chown(place / "file", 1, 2)
    os.chown(place / "link", 3, 4, follow_symlinks=False)
    os.chown(place / "file", -1, 5)
    assert (os.stat(place / "file").st_uid, os.stat(place / "file").st_gid) == (1, 5)
    assert (os.lstat(place / "link").st_uid, os.lstat(place / "link").st_gid) == (3, 4)


def test_the_size_of_the_file_system(place: Path) -> None:
    facts = os.statvfs(place)
    assert 0 < facts.f_bavail <= facts.f_bfree <= facts.f_blocks
    assert 0 < facts.f_ffree <= facts.f_files
    assert facts.f_namemax == 255


def test_inode_numbers_are_stable_and_unlike(place: Path) -> None:
    for n in range(50):
        (place / f"{n}").touch()
    numbers = {name: os.stat(place / name).st_ino for name in os.listdir(place)}
    assert len(set(numbers.values())) == 50
    with os.scandir(place) as entries:
        assert {entry.name: entry.inode() for entry in entries} == numbers


# --- open, unlinked files -----------------------------------------------------------------------------------------


def test_an_unlinked_file_lives_while_it_is_open(place: Path) -> None:
    descriptor = os.open(place / "file", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        os.write(descriptor, b"before")
        os.unlink(place / "file")
        assert os.listdir(place) == []
        os.pwrite(descriptor, b"after", 100_000)
        os.fchmod(descriptor, 0o600)
        facts = os.fstat(descriptor)
        assert (facts.st_nlink, facts.st_size, stat.S_IMODE(facts.st_mode)) == (0, 100_005, 0o600)
        assert os.pread(descriptor, 6, 0) == b"before"
        assert os.pread(descriptor, 5, 100_000) == b"after"
        os.ftruncate(descriptor, 3)
        os.fsync(descriptor)
        assert os.pread(descriptor, 10, 0) == b"bef"
    finally:
        os.close(descriptor)


def test_a_file_replaced_by_rename_lives_while_it_is_open(place: Path) -> None:
    (place / "file").write_bytes(b"old content")
    with open(place / "file", "rb") as old:
        (place / "new").write_bytes(b"new")
        os.replace(place / "new", place / "file")
        assert old.read() == b"old content"
    assert (place / "file").read_bytes() == b"new"


# --- xattrs -------------------------------------------------------------------------------------------------------


def test_xattrs(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    (place / "directory").mkdir()
    for path in (place / "file", place / "directory"):
        assert os.listxattr(path) == []
        with fails_with(errno.ENODATA):
            os.getxattr(path, "user.missing")
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, b"user.\xff\xfe", b"\x00\xff")
        os.setxattr(path, "user.empty", b"")
        assert set(os.listxattr(os.fsencode(path))) == {"user.one", os.fsdecode(b"user.\xff\xfe"), "user.empty"}
        assert os.getxattr(path, b"user.\xff\xfe") == b"\x00\xff"
        assert os.getxattr(path, "user.empty") == b""
        with fails_with(errno.EEXIST):
            os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
        with fails_with(errno.ENODATA):
            os.setxattr(path, "user.two", b"2", os.XATTR_REPLACE)
        os.setxattr(path, "user.one", b"2", os.XATTR_REPLACE)
        assert os.getxattr(path, "user.one") == b"2"
        os.removexattr(path, "user.one")
        with fails_with(errno.ENODATA):
            os.removexattr(path, "user.one")
        with fails_with(errno.ENODATA):
            os.getxattr(path, "user.one")


def test_a_large_xattr_and_many(place: Path) -> None:
    (place / "file").touch()
    values = {f"user.attribute-{n}": os.urandom(30) for n in range(20)} | {"user.large": os.urandom(2000)}
    for name, value in values.items():
        os.setxattr(place / "file", name, value)
    assert {name: os.getxattr(place / "file", name) for name in os.listxattr(place / "file")} == values


# --- what cannot be ----------------------------------------------------------------------------------------------


def test_errors_of_paths(place: Path) -> None:
    (place / "file").touch()
    os.symlink("loop", place / "loop")
    with fails_with(errno.ENOTDIR):
        os.stat(place / "file" / "below")
    with fails_with(errno.ELOOP):
        os.stat(place / "loop")
    with fails_with(errno.ENOENT):
        os.mkdir(place / "missing" / "below")
    with fails_with(errno.EEXIST):
        os.mkdir(place / "file")
    with fails_with(errno.EISDIR):
        os.open(place, os.O_WRONLY)
    with fails_with(errno.EINVAL):
        os.readlink(place / "file")


def test_an_xattr_may_have_64_kib(mounted_repository: Repository) -> None:
    path = mounted_repository.directory / "file"
    path.touch()
    value = os.urandom(65_536)
    os.setxattr(path, "user.largest", value)
    with fails_with(errno.E2BIG):
        os.setxattr(path, "user.larger", value + b"x")
    mounted_repository.remount()
    assert os.getxattr(path, "user.largest") == value
    past = mounted_repository.snapshot() / "file"
    os.removexattr(path, "user.largest")
    assert os.getxattr(past, "user.largest") == value
