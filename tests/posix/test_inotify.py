"""inotify: what somebody who watches is told of what is done through the mount."""

import ctypes
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.posix.actors import Actor

_libc: Final = ctypes.CDLL(None, use_errno=True)
_EVENT: Final = struct.Struct("iIII")
NAMES: Final = {
    0x1: "access",
    0x2: "modify",
    0x4: "attrib",
    0x8: "close after writing",
    0x10: "close",
    0x20: "open",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete self",
    0x800: "move self",
    0x8000: "ignored",
}
ALL_EVENTS: Final = 0xFFF
IS_DIRECTORY: Final = 0x4000_0000


class Watch:
    """Events of one directory or file, in the order in which they came."""

    def __init__(self, path: Path) -> None:
        self.descriptor = _libc.inotify_init1(os.O_NONBLOCK)
        assert _libc.inotify_add_watch(self.descriptor, os.fsencode(path), ALL_EVENTS) > 0

    def seen(self) -> list[tuple[str, str]]:
        """(event, name) since the last look; names are empty for what is watched itself."""
        events: list[tuple[str, str]] = []
        while True:
            try:
                data = os.read(self.descriptor, 65_536)
            except BlockingIOError:
                return events
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
                events.append((NAMES[mask & ~IS_DIRECTORY], os.fsdecode(name)))
                data = data[_EVENT.size + length :]


@pytest.fixture
def watch(place: Path) -> Iterator[Callable[[Path], Watch]]:
    made: list[Watch] = []

    def begin(path: Path) -> Watch:
        made.append(Watch(path))
        return made[-1]

    yield begin
    for each in made:
        os.close(each.descriptor)


def test_what_happens_in_a_directory(place: Path, watch: Callable[[Path], Watch], me: Actor) -> None:
    (place / "inner").mkdir()
    watched = watch(place)
    rules: list[tuple[tuple[object, ...], list[str]]] = [
        (("mkdir", place / "d"), ["create"]),
        (("create", place / "f"), ["create", "open", "close after writing"]),
        (("symlink", "x", place / "l"), ["create"]),
        (("link", place / "f", place / "f2"), ["create"]),
        (("chmod", place / "f", 0o600), ["attrib"]),
        (("setxattr", place / "f", "user.one", b""), ["attrib"]),
        (("truncate", place / "f", 10), ["modify"]),
        (("utime", place / "f"), ["attrib"]),
        (("rename", place / "f", place / "g"), ["moved from", "moved to"]),
        (("rename", place / "g", place / "inner" / "g"), ["moved from"]),
        (("rename", place / "inner" / "g", place / "g"), ["moved to"]),
        (("unlink", place / "g"), ["delete"]),
        (("rmdir", place / "d"), ["delete"]),
        (("create", place / "inner" / "below"), []),
    ]
    for (name, *arguments), expected in rules:
        assert me.call(str(name), *arguments) is None
        found = [event for event, _ in watched.seen()]
        assert (name, arguments, found) == (name, arguments, expected)


def test_what_happens_to_a_file(place: Path, watch: Callable[[Path], Watch], me: Actor) -> None:
    file = place / "file"
    file.write_bytes(b"content")
    watched = watch(file)
    descriptor = me.call("open", file, os.O_RDWR)
    me.call("read", descriptor, 3)
    me.call("write", descriptor, b"x")
    me.call("pread", descriptor, 3, 0)
    me.call("ftruncate", descriptor, 3)
    me.call("close", descriptor)
    assert [event for event, _ in watched.seen()] == ["open", "access", "modify", "access", "modify", "close after writing"]
    file.rename(place / "moved")
    (place / "moved").unlink()
    assert [event for event, _ in watched.seen()] == ["move self", "attrib", "delete self", "ignored"]
