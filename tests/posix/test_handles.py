"""name_to_handle_at and open_by_handle_at: handles that stay good while the file lives, as NFS wants them."""

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor

pytestmark = pytest.mark.root

_libc: Final = ctypes.CDLL(None, use_errno=True)
FOLLOW: Final = 0x400
NOFOLLOW_PATH: Final = os.O_PATH | os.O_NOFOLLOW


def handle_of(path: Path, flags: int = 0, room: int = 128) -> bytes | str:
    """A struct file_handle, or the name of the error."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", room, 0), 8 + 128)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), flags):
        return errno.errorcode[ctypes.get_errno()]
    length, _ = struct.unpack_from("Ii", buffer.raw)
    return buffer.raw[: 8 + length]


def opened_by(handle: bytes | str, place: Path, flags: int = os.O_RDONLY) -> int | str:
    assert isinstance(handle, bytes), handle
    mount = os.open(place, os.O_RDONLY)
    try:
        descriptor = _libc.open_by_handle_at(mount, handle, flags)
        return int(descriptor) if descriptor >= 0 else errno.errorcode[ctypes.get_errno()]
    finally:
        os.close(mount)


def stat_by(handle: bytes | str, place: Path, flags: int = os.O_PATH) -> os.stat_result | str:
    descriptor = opened_by(handle, place, flags)
    if isinstance(descriptor, str):
        return descriptor
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def test_a_handle_opens_the_file_wherever_it_is(place: Path) -> None:
    (place / "directory").mkdir()
    file = place / "file"
    file.write_bytes(b"content")
    handle = handle_of(file)
    moved = file.rename(place / "directory" / "moved")
    descriptor = opened_by(handle, place, os.O_RDWR)
    assert isinstance(descriptor, int)
    assert os.read(descriptor, 100) == b"content"
    os.write(descriptor, b" and more")
    os.close(descriptor)
    assert moved.read_bytes() == b"content and more"
    assert handle_of(moved) == handle


def test_handles_of_directories_and_symlinks(place: Path) -> None:
    (place / "directory").mkdir()
    (place / "link").symlink_to("directory")
    for name, flags in (("directory", os.O_PATH), ("link", NOFOLLOW_PATH)):
        facts = stat_by(handle_of(place / name), place, flags)
        assert isinstance(facts, os.stat_result), facts
        assert facts.st_ino == (place / name).lstat().st_ino
    assert handle_of(place / "link", FOLLOW) == handle_of(place / "directory")
    descriptor = opened_by(handle_of(place / "directory"), place)
    assert isinstance(descriptor, int)
    assert os.stat("..", dir_fd=descriptor).st_ino == place.stat().st_ino
    os.close(descriptor)


def test_a_handle_of_what_is_gone_is_stale(place: Path) -> None:
    # Made without opening it: the kernel sends the release of what was open after close() has returned,
    # and until it is answered the file has no name but is open still.
    for make, remove in ((os.mknod, os.unlink), (os.mkdir, os.rmdir)):
        path = place / "it"
        make(path)
        handle = handle_of(path)
        remove(path)
        assert stat_by(handle, place) == "ESTALE"
        make(path)
        assert stat_by(handle, place) == "ESTALE", "another of the same name is another"
        remove(path)


def test_an_open_file_without_a_name_has_one_still(place: Path) -> None:
    file = place / "file"
    with file.open("wb") as held:
        handle = handle_of(file)
        file.unlink()
        facts = stat_by(handle, place)
        assert isinstance(facts, os.stat_result), facts
        assert (facts.st_ino, facts.st_nlink) == (os.fstat(held.fileno()).st_ino, 0)


def test_room(place: Path) -> None:
    assert handle_of(place, room=0) == "EOVERFLOW"
    assert handle_of(place, room=129) == "EINVAL"
    assert handle_of(place / "missing") == "ENOENT"


def test_opening_by_handle_is_for_root(place: Path, alice: Actor) -> None:
    place.chmod(0o777)
    (place / "file").touch(0o666)
    handle = handle_of(place / "file")
    assert isinstance(handle, bytes)
    assert alice.call("c", "open_by_handle_at", alice.call("open", place, os.O_RDONLY), handle, os.O_RDONLY) == "EPERM"


def test_a_handle_that_means_nothing(place: Path) -> None:
    handle = handle_of(place)
    assert isinstance(handle, bytes)
    head, inside = handle[:8], handle[8:]
    assert stat_by(head + b"\xee" * len(inside), place) == "ESTALE"
