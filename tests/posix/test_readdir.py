"""Listings: what stays is seen exactly once, whatever else happens; positions can be told and gone back to; small buffers are enough."""

import ctypes
import errno
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor
from tests.posix.differing import times_moved

_libc: Final = ctypes.CDLL(None, use_errno=True)
for _name in ("opendir", "readdir"):
    getattr(_libc, _name).restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
_HEAD: Final = struct.Struct("<QqHB")


class Directory:
    """opendir(3) and what belongs to it."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))

    def next(self) -> tuple[str, int, int] | None:
        """(name, inode, type), None at the end."""
        ctypes.set_errno(0)
        address = _libc.readdir(self._stream)
        if address is None:
            assert ctypes.get_errno() == 0
            return None
        ino, _, length, kind = _HEAD.unpack(ctypes.string_at(address, _HEAD.size))
        name = ctypes.string_at(address + _HEAD.size, length - _HEAD.size).split(b"\0")[0]
        return os.fsdecode(name), ino, kind

    def entries(self) -> Iterator[tuple[str, int, int]]:
        while (entry := self.next()) is not None:
            yield entry

    def names(self) -> Iterator[str]:
        return (entry[0] for entry in self.entries())

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(position))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


@contextmanager
def opened(path: Path) -> Iterator[Directory]:
    directory = Directory(path)
    try:
        yield directory
    finally:
        directory.close()


@pytest.fixture
def many(place: Path) -> Path:
    """A directory of 450 names, which takes several requests to list."""
    made = place / "many"
    made.mkdir()
    for n in range(450):
        (made / f"{n:04d}-{'x' * (n % 200)}").touch()
    return made


def test_dot_and_dot_dot_come_once(place: Path, many: Path) -> None:
    with opened(many) as directory:
        entries = list(directory.entries())
    numbers = {name: ino for name, ino, _ in entries}
    assert len(entries) == len(numbers) == 452
    assert numbers["."] == many.stat().st_ino
    assert numbers[".."] == place.stat().st_ino
    assert all(numbers[name] == (many / name).stat().st_ino for name in os.listdir(many)[:50])


def test_an_empty_directory_and_one_that_was_removed(place: Path) -> None:
    (place / "empty").mkdir()
    with opened(place / "empty") as directory:
        assert set(directory.names()) == {".", ".."}
        (place / "empty").rmdir()
        directory.rewind()
        assert list(directory.names()) == []


def test_kinds(place: Path, me: Actor) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    (place / "symlink").symlink_to("x")
    os.mkfifo(place / "fifo")
    me.call("chdir", place)
    me.call("bind", "socket")
    with opened(place) as directory:
        kinds = {name: kind << 12 for name, _, kind in directory.entries()}
    assert kinds == {name: stat.S_IFMT((place / name).lstat().st_mode) for name in [*os.listdir(place), ".", ".."]}


@pytest.mark.parametrize("every", [1, 3])
def test_what_stays_is_seen_once_while_others_come_and_go(many: Path, every: int) -> None:
    names = sorted(os.listdir(many))
    kept, removed, renamed = names[::3], names[1::3], names[2::3]
    seen: Counter[str] = Counter()
    with opened(many) as directory:
        for n, name in enumerate(directory.names()):
            seen[name] += 1
            if n % every == 0 and removed and renamed:
                (many / removed.pop()).unlink()
                moving = renamed.pop()
                (many / moving).rename(many / f"moved-{moving}")
                (many / f"new-{n}").touch()
    assert {name: seen[name] for name in kept} == dict.fromkeys(kept, 1)
    assert max(seen.values()) == 1


def test_removing_what_was_just_seen(many: Path) -> None:
    with opened(many) as directory:
        for name in directory.names():
            if name not in {".", ".."}:
                (many / name).unlink()
    assert os.listdir(many) == []


def test_positions_lead_back(many: Path) -> None:
    with opened(many) as directory:
        positions = [directory.tell()]
        names = []
        while (entry := directory.next()) is not None:
            names.append(entry[0])
            positions.append(directory.tell())
        for n in (0, 1, 2, 3, 10, 207, 208, 209, 300, 449, 451, 452):
            directory.seek(positions[n])
            assert list(directory.names())[:5] == names[n : n + 5]
        directory.seek(positions[300])
        (many / names[300]).unlink()
        directory.seek(positions[300])
        assert next(directory.names()) == names[301], "a position stands between two names, also when one of them goes"


def test_a_listing_that_is_begun_again_is_up_to_date(many: Path) -> None:
    with opened(many) as directory:
        before = set(directory.names())
        (many / "new").touch()
        (many / min(before - {".", ".."})).unlink()
        directory.rewind()
        assert set(directory.names()) == before - {min(before - {".", ".."})} | {"new"}


def test_two_listings_at_once(many: Path) -> None:
    with opened(many) as one, opened(many) as other:
        pairs = list(zip(one.names(), other.names(), strict=True))
    assert all(a == b for a, b in pairs)
    assert len(pairs) == 452


@pytest.mark.parametrize("size", [24, 40, 280, 65_536])
def test_buffers_of_any_size(many: Path, size: int) -> None:
    """getdents64: an entry that does not fit into the rest waits for the next call; one that fits into no buffer is EINVAL."""
    (many / ("n" * 255)).touch()
    longest = (19 + 255 + 1 + 7) // 8 * 8
    buffer = ctypes.create_string_buffer(size)
    descriptor = os.open(many, os.O_RDONLY | os.O_DIRECTORY)
    found: list[str] = []
    try:
        while True:
            length = _libc.getdents64(descriptor, buffer, ctypes.c_size_t(size))
            if length <= 0:
                break
            at = 0
            while at < length:
                _, _, step, _ = _HEAD.unpack_from(buffer.raw, at)
                found.append(os.fsdecode(buffer.raw[at + _HEAD.size : at + step].split(b"\0")[0]))
                at += step
        if size >= longest:
            assert length == 0
            assert sorted(found) == sorted([*os.listdir(many), ".", ".."])
        else:
            assert (length, errno.errorcode[ctypes.get_errno()]) == (-1, "EINVAL")
            assert len(set(found)) == len(found)
    finally:
        os.close(descriptor)


def test_what_can_be_listed(place: Path, alice: Actor, me: Actor) -> None:
    (place / "file").touch()
    (place / "closed").mkdir(mode=0o711)
    assert me.call("listdir", place / "file") == "ENOTDIR"
    assert me.call("open", place / "file", os.O_RDONLY | os.O_DIRECTORY) == "ENOTDIR"
    assert me.call("listdir", place / "missing") == "ENOENT"
    assert alice.call("listdir", place / "closed") == "EACCES"
    assert alice.call("stat", place / "closed" / "missing") == "ENOENT"
    assert me.call("c", "getdents64", me.call("open", place / "file", os.O_RDONLY), 0, 0) == "ENOTDIR"


def test_listing_moves_no_times(many: Path) -> None:
    assert times_moved(many, lambda: os.listdir(many)) == ""


def test_ways_up(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    assert os.stat(f"{place}/a/b/../..").st_ino == place.stat().st_ino
    assert os.stat(f"{place}/./a/./b/.").st_ino == (place / "a" / "b").stat().st_ino
    descriptor = os.open(place / "a" / "b", os.O_PATH)
    try:
        (place / "a" / "b").rename(place / "b")
        assert os.stat("..", dir_fd=descriptor).st_ino == place.stat().st_ino
        (place / "b").rmdir()
        assert os.stat(".", dir_fd=descriptor).st_nlink == 0
    finally:
        os.close(descriptor)
