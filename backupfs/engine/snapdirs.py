"""The directories `.snapshots`: one in every directory of the live tree, none of them stored; and the names `@GMT-…` that Samba asks for.

The root's holds the snapshots themselves. In any other directory it holds links into the root's, each to the past of that directory: a directory must
not be reachable by two paths, and the permissions of the directories above it then apply. The same goes for `@GMT-…`, which no listing shows.

Inode numbers: 2 is the root's `.snapshots`, 3 its `latest`. Others have the highest bit set, a snapshot's number where one of the past has it, and
the number of the directory that they belong to; those of `@GMT-…` in a directory itself have the bit below as well.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Final

from backupfs.engine.attributes import Attributes, DirectoryEntry
from backupfs.engine.namespace import SNAPSHOTS_NAME, Namespace
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.view import View
from backupfs.engine.volume import Volume
from backupfs.errors import FileSystemError
from backupfs.ids import INO_BITS, ROOT_INO
from backupfs.rules.names import SnapDir

SNAPSHOTS_INO: Final = 2
LATEST_INO: Final = 3
LATEST_NAME: Final = b"latest"
COOKIE_FIRST: Final = 4
_VIRTUAL: Final = 1 << 63
_BESIDE: Final = 1 << 62
_INO_MASK: Final = (1 << INO_BITS) - 1
_SERIAL_MASK: Final = (1 << (62 - INO_BITS)) - 1
_LATEST: Final = _SERIAL_MASK
_GMT: Final = re.compile(rb"@GMT-([0-9]{4})\.([0-9]{2})\.([0-9]{2})-([0-9]{2})\.([0-9]{2})\.([0-9]{2})")
_COOKIE_LATEST: Final = 3


def is_virtual(ino: int) -> bool:
    """Whether this is the number of something that is stored nowhere."""
    return ino >= _VIRTUAL or SNAPSHOTS_INO <= ino <= LATEST_INO


def is_timely(name: bytes) -> bool:
    """Whether what this name leads to may change with every snapshot, so that nobody may remember it."""
    return name == SNAPSHOTS_NAME or name.startswith(b"@GMT-")


class SnapshotDirectories:
    """Answers for what is virtual. Every function is atomic."""

    def __init__(self, volume: Volume, names: Namespace, snapshots: Snapshots, past: Callable[[int, int], Attributes]) -> None:
        """`past` gives the attributes of an inode in a snapshot."""
        self._volume = volume
        self._names = names
        self._snapshots = snapshots
        self._past = past
        self.mode = SnapDir.VISIBLE
        """Set before the first request: the kernel may be told only one thing."""

    def lookup(self, parent: int, name: bytes) -> Attributes | None:
        """What a virtual name leads to in a directory; None when the name is an ordinary one."""
        if is_virtual(parent):
            return self._lookup_inside(parent, name)
        if parent >> INO_BITS or not is_timely(name) or self.mode is SnapDir.DISABLED:
            return None
        if name == SNAPSHOTS_NAME:
            self._names.directory(parent)
            return self._directory(parent)
        serial = self._at(name)
        return None if serial is None else self._link(_VIRTUAL | _BESIDE | serial << INO_BITS | parent)

    def attributes(self, ino: int) -> Attributes:
        """What stat shows of something virtual."""
        if ino == SNAPSHOTS_INO:
            return self._directory(ROOT_INO)
        if ino == LATEST_INO:
            return self._link(ino)
        return self._link(ino) if _serial(ino) else self._directory(ino & _INO_MASK)

    def target(self, ino: int) -> bytes:
        """Where a virtual link leads."""
        if ino == LATEST_INO:
            return self._latest()
        owner, serial = ino & _INO_MASK, _serial(ino)
        if not serial:
            raise FileSystemError(errno.EINVAL)
        name = self._latest() if serial == _LATEST else self._snapshots.name_of(serial).encode()
        if owner == ROOT_INO:
            return SNAPSHOTS_NAME + b"/" + name if ino & _BESIDE else name
        now = self._names.path_of(owner)
        then = self._view(self._snapshots.serial_of(os.fsdecode(name)) or 0).path_of(owner)
        if now is None or then is None:
            raise FileSystemError(errno.ENOENT)
        depth = now.count(b"/") + (1 if ino & _BESIDE else 2)
        return b"../" * depth + SNAPSHOTS_NAME + b"/" + name + b"/" + then

    def parent(self, ino: int) -> int:
        """The directory above a virtual one."""
        return ROOT_INO if ino == SNAPSHOTS_INO else ino & _INO_MASK

    def entries(self, ino: int, start: int) -> Iterator[DirectoryEntry]:
        """What a listing of a virtual directory shows behind a cookie."""
        if ino != SNAPSHOTS_INO and (not ino & _VIRTUAL or _serial(ino)):
            raise FileSystemError(errno.ENOTDIR)
        owner = ROOT_INO if ino == SNAPSHOTS_INO else ino & _INO_MASK
        kept = self._snapshots.kept()
        if kept and start < _COOKIE_LATEST and self._was_there(owner, kept[-1].serial):
            yield DirectoryEntry(LATEST_NAME, self._lookup_inside(ino, LATEST_NAME), _COOKIE_LATEST)
        for info in kept:
            if COOKIE_FIRST + info.serial > start and self._was_there(owner, info.serial):
                yield DirectoryEntry(info.name.encode(), self._lookup_inside(ino, info.name.encode()), COOKIE_FIRST + info.serial)

    def _lookup_inside(self, directory: int, name: bytes) -> Attributes:
        owner = ROOT_INO if directory == SNAPSHOTS_INO else directory & _INO_MASK
        if directory != SNAPSHOTS_INO and (directory == LATEST_INO or _serial(directory)):
            raise FileSystemError(errno.ENOTDIR)
        if name == LATEST_NAME:
            self._latest()
            return self._link(LATEST_INO if owner == ROOT_INO else _VIRTUAL | _LATEST << INO_BITS | owner)
        at = self._at(name)
        serial = self._snapshots.serial_of(os.fsdecode(name)) if at is None else at
        if serial is None:
            raise FileSystemError(errno.ENOENT)
        if owner == ROOT_INO and at is None:
            return self._past(serial, ROOT_INO)
        return self._link(_VIRTUAL | serial << INO_BITS | owner)

    def _at(self, name: bytes) -> int | None:
        """The newest snapshot of the second that a name `@GMT-…` says; None for other names and when there is none."""
        match = _GMT.fullmatch(name)
        if match is None:
            return None
        try:
            second = int(datetime(*map(int, match.groups()), tzinfo=UTC).timestamp())  # type: ignore[misc, arg-type]
        except ValueError:
            return None
        return self._snapshots.newest_of_second(second)

    def _directory(self, owner: int) -> Attributes:
        root = self._names.inode(ROOT_INO).record
        made = self._volume.created_ns
        ino = SNAPSHOTS_INO if owner == ROOT_INO else _VIRTUAL | owner
        count = self._snapshots.shown_count if owner == ROOT_INO else 0
        mode = 0o755 if owner == ROOT_INO else 0o555
        return Attributes(ino, stat.S_IFDIR | mode, 2 + count, root.uid, root.gid, 0, 4096, made, made, made, 8, cacheable=False)

    def _link(self, ino: int) -> Attributes:
        target = self.target(ino)
        root = self._names.inode(ROOT_INO).record
        serial = _serial(ino) if ino != LATEST_INO else _LATEST
        taken = self._snapshots.time_of(self._newest() if serial == _LATEST else serial)
        return Attributes(ino, stat.S_IFLNK | 0o777, 1, root.uid, root.gid, 0, len(target), taken, taken, taken, 0, cacheable=False)

    def _latest(self) -> bytes:
        name = self._snapshots_latest()
        if name is None:
            raise FileSystemError(errno.ENOENT)
        return name

    def _snapshots_latest(self) -> bytes | None:
        name = self._snapshots.latest_name()
        return None if name is None else name.encode()

    def _newest(self) -> int:
        return self._snapshots.serial_of(self._latest().decode()) or 0

    def _was_there(self, owner: int, serial: int) -> bool:
        return owner == ROOT_INO or self._view(serial).inode(owner) is not None

    def _view(self, serial: int) -> View:
        return View(self._volume.catalog, self._volume.keys, self._snapshots.epoch_of(serial))


def _serial(ino: int) -> int:
    """The number of the snapshot that a virtual link leads to, `_LATEST`, or 0 for a directory."""
    return ino >> INO_BITS & _SERIAL_MASK
