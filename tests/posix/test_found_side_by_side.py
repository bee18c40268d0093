"""What running side by side with ext4 has found, each in the fewest calls."""

import mmap
import os
import stat
from pathlib import Path

import pytest

from tests.oracle.awkward import acl
from tests.posix import calls
from tests.posix.differing import here_or_on_ext4, outcome, times_moved
from tests.posix.identities import ALICE, acting_as


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_a_touch_gives_one_time_to_all_three(place: Path, kind: str) -> None:
    path = place / kind
    if kind == "symlink":
        path.symlink_to("nowhere")
    elif kind == "directory":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | (stat.S_IFREG if kind == "file" else stat.S_IFIFO))
    calls.utimensat(os.fsencode(path), "now", "now", follow=False)
    facts = os.lstat(path)
    assert facts.st_atime_ns == facts.st_mtime_ns == facts.st_ctime_ns


def test_an_attribute_that_is_set_to_what_it_is_changes_no_ctime(place: Path) -> None:
    """Of regular files the kernel changes it, once the answer is that it was done."""
    (place / "directory").mkdir()
    settings = (("user.a", b"value"), ("system.posix_acl_access", acl(7, 5, 5, users={1001: 7})), ("system.posix_acl_default", acl(7, 0, 0)))
    for name, value in settings:
        os.setxattr(place / "directory", name, value)
    before = os.stat(place / "directory").st_ctime_ns
    for name, value in settings:
        os.setxattr(place / "directory", name, value)
    assert os.stat(place / "directory").st_ctime_ns == before
    os.setxattr(place / "directory", "user.a", b"other")
    assert os.stat(place / "directory").st_ctime_ns > before


def test_unlike_ext4_writing_into_a_fifo_moves_no_times(place: Path) -> None:
    os.mkfifo(place / "fifo")
    before = os.stat(place / "fifo")
    descriptor = os.open(place / "fifo", os.O_RDWR)
    os.write(descriptor, b"x")
    after = os.fstat(descriptor)
    assert (after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns) == here_or_on_ext4((False, False), (True, True))
    os.close(descriptor)


def test_unlike_ext4_a_whiteout_that_is_refused_moves_no_times(place: Path) -> None:
    """ext4 has made the whiteout by the time it finds that there is a directory that is not empty, and takes it back."""
    (place / "filled" / "child").mkdir(parents=True)
    (place / "directory").mkdir()

    def rename() -> None:
        assert outcome(calls.renameat2, os.fsencode(place / "directory"), os.fsencode(place / "filled"), calls.RENAME_WHITEOUT) == "ENOTEMPTY"

    assert times_moved(place, rename) == here_or_on_ext4("", "mc")


# --- set-id bits and writing --------------------------------------------------------------------------------------


@pytest.fixture
def own(place: Path) -> int:
    """A descriptor of `place / "file"`, which is alice's, opened by her; her group is not the file's."""
    os.chmod(place, 0o777)
    with acting_as(ALICE, 0):
        descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o666)
    os.chown(descriptor, -1, 0)
    return descriptor


def _mode(descriptor: int) -> int:
    return os.fstat(descriptor).st_mode & 0o7777


@pytest.mark.root
def test_bits_that_are_set_after_writing_stay(own: int, place: Path) -> None:
    """The kernel sends the pages before it sends the bits."""
    os.write(own, b"dirty")
    os.fchmod(own, 0o6777)
    os.fsync(own)
    os.rename(place / "file", place / "asked for anew")
    assert _mode(own) == 0o6777
    os.close(own)


@pytest.mark.root
@pytest.mark.parametrize(("mode", "expected"), [(0o6777, 0o777), (0o2644, 0o644), (0o4644, 0o644)])
def test_bits_go_when_somebody_writes_who_has_opened_the_file_before(own: int, mode: int, expected: int) -> None:
    os.fchmod(own, mode)
    with acting_as(ALICE, 0):
        os.pwrite(own, b"x", 5000)
    assert _mode(own) == expected
    os.close(own)


@pytest.mark.root
def test_bits_go_when_somebody_writes_through_a_descriptor_that_root_opened(place: Path) -> None:
    descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT, 0o666)
    os.fchmod(descriptor, 0o6777)
    os.pwrite(descriptor, b"root", 0)
    assert _mode(descriptor) == 0o6777
    with acting_as(ALICE, 0):
        os.pwrite(descriptor, b"alice", 0)
    assert _mode(descriptor) == 0o777
    os.close(descriptor)


@pytest.mark.root
def test_bits_stay_when_root_writes_through_a_descriptor_that_somebody_opened(own: int) -> None:
    os.fchmod(own, 0o6777)
    os.pwrite(own, b"root", 0)
    os.fsync(own)
    assert _mode(own) == 0o6777
    os.close(own)


@pytest.mark.root
def test_bits_stay_when_a_mapping_is_written(own: int) -> None:
    os.ftruncate(own, 5000)
    os.fchmod(own, 0o6777)
    with acting_as(ALICE, 0), mmap.mmap(own, 5000) as memory:
        memory[:5] = b"alice"
        memory.flush()
    assert _mode(own) == 0o6777
    os.close(own)


@pytest.mark.root
def test_the_mode_is_the_same_when_the_kernel_has_forgotten_it(own: int, place: Path) -> None:
    os.fchmod(own, 0o6777)
    with acting_as(ALICE, 0):
        os.pwrite(own, b"x", 0)
    os.fchmod(own, 0o4755)
    os.close(own)
    os.rename(place / "file", place / "other")
    assert (place / "other").stat().st_mode & 0o7777 == 0o4755
