"""What is mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5)). Nothing here touches a mounted file system."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
TYPE: Final = b"fuse.backupfs"
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line. `device` is the (major, minor) of what is mounted, `point` the directory it is mounted on."""

    mount_id: int
    device: tuple[int, int]
    point: bytes
    options: frozenset[bytes]
    type: bytes

    @property
    def ours(self) -> bool:
        """Whether a backupfs is or was behind it."""
        return self.type == TYPE


def parse(text: bytes) -> list[MountEntry]:
    """The table, in the order of mounting: of several entries with one point, the last is what is seen."""
    return [_entry(line) for line in text.splitlines()]


def _entry(line: bytes) -> MountEntry:
    fields = line.split(b" ")
    type_at = fields.index(b"-", 6) + 1  # optional fields come before it
    major, minor = fields[2].split(b":")
    return MountEntry(
        mount_id=int(fields[0]),
        device=(int(major), int(minor)),
        point=_unescaped(fields[4]),
        options=frozenset(fields[5].split(b",")),
        type=_unescaped(fields[type_at]),
    )


def _unescaped(field: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), field)


def read(source: Path = MOUNTINFO) -> list[MountEntry]:
    """The table of this process's mount namespace."""
    return parse(source.read_bytes())


def find(directory: Path, table: list[MountEntry]) -> MountEntry | None:
    """What is mounted on this very directory. Its own last component is looked at only when nothing is mounted there by that name, because
    a mount whose process hangs would hang the look.
    """
    parent, name = os.path.split(os.path.abspath(os.fsencode(directory)))
    point = os.path.join(os.path.realpath(parent), name)
    found = _last(point, table)
    return found if found is not None else _last(os.path.realpath(point), table)


def _last(point: bytes, table: list[MountEntry]) -> MountEntry | None:
    return next((entry for entry in reversed(table) if entry.point == point), None)


def is_mounted(directory: Path, source: Path = MOUNTINFO) -> bool:
    """Whether a backupfs is mounted on this directory, alive or dead."""
    entry = find(directory, read(source))
    return entry is not None and entry.ours
