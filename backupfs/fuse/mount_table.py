"""What is mounted where, from /proc/self/mountinfo (proc_pid_mountinfo(5)). Nothing here asks what it is asked about."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOUNTINFO: Final = Path("/proc/self/mountinfo")
TYPE: Final = b"fuse.backupfs"
_SYMLINKS_MAX: Final = 40
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
    return [_entry(line) for line in text.split(b"\n") if line]


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


def resolved(directory: Path, table: list[MountEntry]) -> bytes:
    """The real path of a directory. A directory that something is mounted on is not looked at itself: a mount whose process hangs would hang
    the look.
    """
    points = {entry.point for entry in table}
    path = os.path.join(os.getcwdb(), os.fsencode(directory))
    for _ in range(_SYMLINKS_MAX):
        parent, name = os.path.split(path.rstrip(b"/"))
        if name in (b"", b".", b".."):
            break
        path = os.path.join(os.path.realpath(parent), name)
        if path in points:
            return path
        try:
            target = os.readlink(path)
        except OSError:  # no symlink, or nothing at all
            return path
        path = os.path.join(os.path.dirname(path), target)
    return os.path.realpath(path)


def find(directory: Path, table: list[MountEntry]) -> MountEntry | None:
    """What is mounted on this very directory."""
    point = resolved(directory, table)
    return next((entry for entry in reversed(table) if entry.point == point), None)


def is_mounted(directory: Path, source: Path = MOUNTINFO) -> bool:
    """Whether a backupfs is mounted on this directory, alive or dead."""
    entry = find(directory, read(source))
    return entry is not None and entry.ours
