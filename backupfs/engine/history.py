"""History: what changed between two points in time, every version of a file, and where a name has ever stood.

All of it reads the versioned records: differences cost what changed, versions cost how many there are. A walk may take several steps; whatever is
committed and applied when it begins is seen by it.
"""

import errno
import os
import stat
from bisect import bisect_left
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatchcase
from operator import itemgetter

import trio
from msgspec.structs import replace

from backupfs import limits
from backupfs.engine.attributes import FileVersion, Found, SnapshotInfo, TreeChange
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.view import View
from backupfs.engine.volume import Volume
from backupfs.errors import FileSystemError, UsageError
from backupfs.format import catalog as records
from backupfs.format.catalog import EPOCH_MAX, TOMBSTONE, Dentry, Inode, Table, dentry_key, number_key
from backupfs.ids import ROOT_INO


class ChangeKind(Enum):
    """How an entry differs: it is new, gone, has other content, another path, another type, or other attributes only."""

    ADDED = "+"
    REMOVED = "-"
    MODIFIED = "M"
    RENAMED = "R"
    TYPE = "T"
    ATTRIBUTES = "P"


@dataclass(slots=True)
class TouchedRecords:
    """What has a version between two epochs: inodes, names (parent and PRF), inodes by a change of their extended attributes, and data numbers."""

    inodes: set[int] = field(default_factory=set)
    names: set[tuple[int, bytes]] = field(default_factory=set)
    xattrs: set[int] = field(default_factory=set)
    data: set[int] = field(default_factory=set)


class History:
    """Reads the past of the tree. One for each opened repository."""

    def __init__(self, volume: Volume, snapshots: Snapshots, settle: Callable[[], Awaitable[None]]) -> None:
        """`settle` has everything received so far applied to the index."""
        self._volume = volume
        self._snapshots = snapshots
        self._settle = settle

    # differences

    async def diff(self, older: int, newer: int, below: bytes = b"") -> list[TreeChange]:
        """What differs between two snapshots, given by serial (0: the present), at and below a path; sorted by path. UsageError when the order is
        wrong.
        """
        with self._snapshots.reading(older, newer):
            await self._settle()
            first, last = self._epoch(older), self._epoch(newer)
            if first > last:
                raise UsageError("the second of the two must be the newer one")
            touched = await self._touched(first + 1, last)
            then, now = _Tree(self._view(first), touched), _Tree(self._view(last), touched)
            changes: list[TreeChange] = []
            for number, change in enumerate(self._compare(touched, then, now)):
                if not number % limits.COMPARED_PER_STEP:
                    await trio.lowlevel.checkpoint()
                if change is not None and _is_below(change, below):
                    changes.append(change)
            return sorted(changes, key=lambda change: (change.path, change.kind))

    async def touched(self, older: int) -> TouchedRecords:
        """What has a version between a snapshot, given by serial, and the present."""
        await self._settle()
        return await self._touched(self._epoch(older) + 1, self._volume.catalog.epoch)

    async def _touched(self, first: int, last: int) -> TouchedRecords:
        touched = TouchedRecords()
        start = records.change_key(first, 0, b"")
        while True:
            keys = self._volume.catalog.applied_changes(start, last, limits.RECKON_RECORDS_PER_STEP)
            for key in keys:
                _, table, object_key = records.split_change(key)
                if table == Table.INODES:
                    touched.inodes.add(records.number_of(object_key))
                elif table == Table.DENTRIES:
                    touched.names.add((records.number_of(object_key), object_key[8:]))
                elif table == Table.XATTRS:
                    touched.xattrs.add(records.number_of(object_key))
                elif table == Table.REGIONS:
                    touched.data.add(records.number_of(object_key))
            if len(keys) < limits.RECKON_RECORDS_PER_STEP:
                return touched
            start = keys[-1] + b"\0"
            await trio.lowlevel.checkpoint()

    def _compare(self, touched: TouchedRecords, then: "_Tree", now: "_Tree") -> Iterator[TreeChange | None]:
        """The changes, and None for what turned out to be none: others have their turn between."""
        gone: dict[int, list[bytes]] = {}
        come: dict[int, list[bytes]] = {}
        for place in touched.names:
            _note_moved(place, then, now, gone, come)
            yield None
        for paths in (*gone.values(), *come.values()):
            paths.sort()
        replaced: set[int] = set()
        for path, (old, new) in _replaced(gone, come, now).items():
            gone[old].remove(path)
            come[new].remove(path)
            replaced.add(new)
            yield from self._differing(path, old, new, then, now)
        for ino in gone.keys() & come.keys():
            while gone[ino] and come[ino]:
                yield from self._described(ChangeKind.RENAMED, come[ino].pop(0), ino, then, now, gone[ino].pop(0))
        for ino, paths in gone.items():
            for path in paths:
                yield from self._described(ChangeKind.REMOVED, path, ino, then, now)
        for ino, paths in come.items():
            for path in paths:
                yield from self._described(ChangeKind.ADDED, path, ino, then, now)
        for ino in (touched.inodes | touched.xattrs) - replaced:
            yield None
            path_now = now.path_of(ino)
            if path_now is not None and then.path_of(ino) is not None:
                yield from self._differing(path_now, ino, ino, then, now)
            yield None

    def _differing(self, path: bytes, old: int, new: int, then: "_Tree", now: "_Tree") -> Iterator[TreeChange]:
        was, is_ = then.inode(old), now.inode(new)
        if was is None or is_ is None:
            return
        if stat.S_IFMT(was.mode) != stat.S_IFMT(is_.mode):
            kind = ChangeKind.TYPE
        elif content_differs(was, is_, then.view, now.view, then.touched):
            kind = ChangeKind.MODIFIED
        elif attributes_differ(was, is_) or then.view.xattrs(old) != now.view.xattrs(new):
            kind = ChangeKind.ATTRIBUTES
        else:
            return
        yield from self._described(kind, path, new, then, now, b"", old)

    def _described(
        self, kind: ChangeKind, path: bytes, ino: int, then: "_Tree", now: "_Tree", old_path: bytes = b"", old_ino: int = 0
    ) -> Iterator[TreeChange]:
        was = then.inode(old_ino or ino) if kind is not ChangeKind.ADDED else None
        is_ = now.inode(ino) if kind is not ChangeKind.REMOVED else None
        shown = is_ or was
        if shown is not None:
            sizes = None if was is None else was.size, None if is_ is None else is_.size
            yield TreeChange(kind.value, path, old_path, stat.S_IFMT(shown.mode), *sizes)

    # versions

    async def versions(self, path: bytes) -> list[FileVersion]:
        """Every distinct version of what the path has led to that a kept snapshot or the present shows, newest first. FileSystemError ENOENT when it
        never led anywhere.

        It follows the name in its directory, whatever that is called, and where the name was new, what was moved there under its older name. Where
        the path has led by way of other directories before, it follows the name in those as well.
        """
        await self._settle()
        kept = [(info, self._snapshots.epoch_of(info.serial)) for info in self._snapshots.kept()]
        versions: list[tuple[int, FileVersion]] = []
        known: set[tuple[int, int]] = set()
        """What was moved from one of these directories to another has been come by already."""
        step = 0
        with self._snapshots.reading(*(info.serial for info, _ in kept)):
            places = list(self._places(path))
            for place in places:
                found: list[tuple[FileVersion, Inode, int]] = []
                for ino, low, high, shown_path in self._lives(*place):
                    for epoch, value, until in self._versions_between(ino, low, high):
                        seen = _seen_by(kept, epoch, until)
                        if (seen or until == EPOCH_MAX) and value != TOMBSTONE and (ino, epoch) not in known:
                            known.add((ino, epoch))
                            inode = records.decode_inode(value)
                            found.append((_version(inode, ino, shown_path, seen, is_present=until == EPOCH_MAX), inode, until))
                        step += 1
                        if not step % limits.COMPARED_PER_STEP:
                            await trio.lowlevel.checkpoint()
                versions += self._distinct(found)
        if not places:
            raise FileSystemError(errno.ENOENT)
        # Of one place they are in order.
        return [version for _, version in sorted(versions, key=itemgetter(0), reverse=True)]

    def _distinct(self, found: Sequence[tuple[FileVersion, Inode, int]]) -> list[tuple[int, FileVersion]]:
        """Without those that differ from the next newer one in nothing but what others did to its names: the two are one version. Each with the last
        epoch that sees it.
        """
        kept: list[tuple[int, FileVersion]] = []
        newer: tuple[FileVersion, Inode, int] | None = None
        for entry in found:
            version, _, until = entry
            if newer is not None and self._is_same(entry, newer):
                until, last = kept.pop()
                version = replace(
                    last, first=version.first or last.first, last=last.last or version.last, snapshots=last.snapshots + version.snapshots
                )
            kept.append((until, version))
            newer = entry
        return kept

    def _is_same(self, older: tuple[FileVersion, Inode, int], newer: tuple[FileVersion, Inode, int]) -> bool:
        (one, was, until), (other, is_, later) = older, newer
        if (one.path, one.ino) != (other.path, other.ino) or attributes_differ(was, is_):
            return False
        if (was.size, was.target, was.data) != (is_.size, is_.target, is_.data):
            return False
        older_view, newer_view = self._view(until), self._view(later)
        return older_view.extents(was) == newer_view.extents(is_) and older_view.xattrs(one.ino) == newer_view.xattrs(one.ino)

    def _lives(self, parent: int, name: bytes, until: int, shown_parent: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """(inode, first epoch, last epoch, path then) of what a name in a directory, of that path, has led to up to an epoch, newest first."""
        catalog = self._volume.catalog
        prf = self._volume.keys.name_prf(parent, name)
        version = catalog.newest(Table.DENTRIES, dentry_key(parent, prf), until)
        while version is not None:
            epoch, value = version
            before = catalog.newest(Table.DENTRIES, dentry_key(parent, prf), epoch - 1) if epoch else None
            if value != TOMBSTONE:
                entry = records.decode_dentry(value)
                shown = shown_parent + b"/" + name if shown_parent else name
                yield entry.ino, epoch, until, shown
                earlier = self._place_at(entry.ino, epoch - 1) if before is None or before[1] == TOMBSTONE else None
                if earlier is not None:
                    # It was moved here: its older versions stand under its older name.
                    parent, prf, name = earlier
                    shown_parent = self._view(epoch - 1).path_of(parent) or b""
                    before = catalog.newest(Table.DENTRIES, dentry_key(parent, prf), epoch - 1)
            until, version = epoch - 1, before

    def _places(self, path: bytes) -> Iterator[tuple[int, bytes, int, bytes]]:
        """(directory, name, epoch, the directory's path) of where a path leads at last, in the present or in the last view that had each part of it,
        and of each other directory in which it has led somewhere before, newest first.
        """
        parts = [part for part in path.split(b"/") if part]
        if not parts:
            raise UsageError("the root has no versions of its own; `backupfs diff` says what changed below it")
        known: set[int] = set()
        until = EPOCH_MAX
        while until >= 0:
            directory, last, since = self._way(parts, until)
            if directory is not None and directory not in known:
                known.add(directory)
                yield directory, parts[-1], last, b"/".join(parts[:-1])
            until = since - 1

    def _way(self, parts: Sequence[bytes], until: int) -> tuple[int | None, int, int]:
        """The directory in which a path ends in the last view, not later than `until`, that has each part of it, None when none has; that view's
        epoch; and the first epoch of this way to it.
        """
        catalog = self._volume.catalog
        since = before = 0
        parent = directory = int(ROOT_INO)
        for part in parts:
            # Since when the last part is there does not matter: its directory has all versions of it.
            since = max(since, before)
            key = dentry_key(parent, self._volume.keys.name_prf(parent, part))
            version = catalog.newest(Table.DENTRIES, key, until)
            if version is not None and version[1] == TOMBSTONE:
                until = version[0] - 1
                version = catalog.newest(Table.DENTRIES, key, until)
            if version is None:
                return None, until, since
            before = version[0]
            directory, parent = parent, records.decode_dentry(version[1]).ino
        return directory, until, since

    def _place_at(self, ino: int, epoch: int) -> tuple[int, bytes, bytes] | None:
        """(directory, PRF, name) of an inode in the view at an epoch; None when it had no name."""
        view = self._view(epoch)
        inode = view.inode(ino)
        for parent, prf in () if inode is None else view.links(ino, inode):
            value = self._volume.catalog.value(Table.DENTRIES, dentry_key(parent, prf), epoch)
            if value is not None:
                return parent, prf, records.decode_dentry(value).name
        return None

    def _versions_between(self, ino: int, low: int, high: int) -> Iterator[tuple[int, bytes, int]]:
        """(epoch, value, last epoch that sees it) of an inode's versions in views from `low` to `high`, newest first."""
        until = high
        for epoch, value in self._volume.catalog.versions_down_to(Table.INODES, number_key(ino), high, low):
            yield epoch, value, until
            until = epoch - 1

    # names

    async def find(self, pattern: str) -> AsyncGenerator[Found]:
        """Every name that fits a shell pattern and that a kept snapshot or the present shows; with a slash in it the pattern is for whole paths.
        UsageError for one that is longer than any path.
        """
        if len(pattern) > limits.PATTERN_MAX:
            raise UsageError(f"a pattern of {len(pattern)} characters is longer than any path; {limits.PATTERN_MAX} are the most")
        await self._settle()
        kept = [(info, self._snapshots.epoch_of(info.serial)) for info in self._snapshots.kept()]
        # A pattern for whole paths has the path of every name looked up.
        step = limits.COMPARED_PER_STEP if "/" in pattern else limits.RECKON_RECORDS_PER_STEP
        start = b""
        newer: tuple[bytes, int] = (b"", 0)
        with self._snapshots.reading(*(info.serial for info, _ in kept)):
            while True:
                rows = self._volume.catalog.applied_rows(Table.DENTRIES, start, step)
                for key, value in rows:
                    object_key, epoch = records.split_version(key)
                    until = newer[1] - 1 if newer[0] == object_key else EPOCH_MAX
                    newer = object_key, epoch
                    if value != TOMBSTONE:
                        found = self._found(pattern, records.number_of(object_key), records.decode_dentry(value), epoch, until, kept)
                        if found is not None:
                            yield found
                if len(rows) < step:
                    return
                start = rows[-1][0] + b"\0"
                await trio.lowlevel.checkpoint()

    def _found(self, pattern: str, parent: int, entry: Dentry, epoch: int, until: int, kept: Sequence[tuple[SnapshotInfo, int]]) -> Found | None:
        name = os.fsdecode(entry.name)
        whole = "/" in pattern
        if not whole and not fnmatchcase(name, pattern):
            return None
        seen = _seen_by(kept, epoch, until)
        is_present = until == EPOCH_MAX
        if not seen and not is_present:
            return None
        above = self._view(EPOCH_MAX if is_present else self._snapshots.epoch_of(seen[-1].serial)).path_of(parent)
        if above is None:
            return None
        path = above + b"/" + entry.name if above else entry.name
        if whole and not fnmatchcase(os.fsdecode(path), pattern.strip("/")):
            return None
        if not seen:
            return Found(path, entry.type << 12, None, None, 0, is_present)
        return Found(path, entry.type << 12, seen[0].name, seen[-1].name, len(seen), is_present, (seen[0].serial, seen[-1].serial))

    # inside

    def _epoch(self, serial: int) -> int:
        return self._snapshots.epoch_of(serial) if serial else self._volume.catalog.epoch

    def _view(self, epoch: int) -> View:
        return View(self._volume.catalog, self._volume.keys, epoch)


class _Tree:
    """A view that remembers the paths of directories it was asked for."""

    def __init__(self, view: View, touched: TouchedRecords) -> None:
        self.view = view
        self.touched = touched
        self._paths: dict[int, bytes | None] = {ROOT_INO: b""}
        self._inodes: dict[int, Inode | None] = {}

    def entry(self, parent: int, prf: bytes) -> Dentry | None:
        return self.view.entry(parent, prf)

    def inode(self, ino: int) -> Inode | None:
        if ino not in self._inodes:
            self._inodes[ino] = self.view.inode(ino)
        return self._inodes[ino]

    def path(self, parent: int, name: bytes) -> bytes | None:
        """Of a name in a directory; None when no path leads there."""
        above = self.path_of(parent)
        return None if above is None else above + b"/" + name if above else name

    def path_of(self, ino: int) -> bytes | None:
        """Of an inode, by its first name that leads somewhere."""
        way: list[int] = []
        above: int | None = ino
        while above is not None and above not in self._paths:
            self._paths[above] = None
            way.append(above)
            inode = self.inode(above)
            above = inode.links[0][0] if inode is not None and inode.links else None
        # The topmost first: going up from name to name instead would go as deep as the tree.
        for at in reversed(way):
            self._paths[at] = self._find_path(at)
        return self._paths[ino]

    def _find_path(self, ino: int) -> bytes | None:
        inode = self.inode(ino)
        for parent, prf in () if inode is None else self.view.links(ino, inode):
            entry = self.entry(parent, prf)
            if entry is not None and (path := self.path(parent, entry.name)) is not None:
                return path
        return None


def _note_moved(place: tuple[int, bytes], then: _Tree, now: _Tree, gone: dict[int, list[bytes]], come: dict[int, list[bytes]]) -> None:
    """Note the paths that inodes have lost and got by a change of one name."""
    parent, prf = place
    was, is_ = then.entry(parent, prf), now.entry(parent, prf)
    if was is not None and is_ is not None and was.ino == is_.ino:
        return
    if was is not None and (path := then.path(parent, was.name)) is not None:
        gone.setdefault(was.ino, []).append(path)
    if is_ is not None and (path := now.path(parent, is_.name)) is not None:
        come.setdefault(is_.ino, []).append(path)


def _replaced(gone: dict[int, list[bytes]], come: dict[int, list[bytes]], now: _Tree) -> dict[bytes, tuple[int, int]]:
    """The paths that led to one inode and now lead to another: replaced, as editors and `mv` do it.

    Not where one of the two is a directory that has moved: what stands in it has another path as well, and nothing else tells of that.
    """
    moved = {ino for ino in gone.keys() & come.keys() if (inode := now.inode(ino)) is not None and stat.S_ISDIR(inode.mode)}
    was = {path: ino for ino, paths in gone.items() if ino not in moved for path in paths}
    return {path: (was[path], ino) for ino, paths in come.items() if ino not in moved for path in paths if path in was}


def content_differs(was: Inode, is_: Inode, then: View, now: View, touched: TouchedRecords) -> bool:
    """Whether two records, seen in these views, stand for other content: bytes, a link's target, a device."""
    if stat.S_ISDIR(is_.mode):
        return False
    if (was.size, was.target, was.rdev) != (is_.size, is_.target, is_.rdev):
        return True
    if was.data == is_.data and was.data and was.data not in touched.data:
        return False
    return then.extents(was) != now.extents(is_)


def attributes_differ(was: Inode, is_: Inode) -> bool:
    """Whether mode, owner or time of last change differ. Extended attributes have records of their own."""
    if stat.S_ISDIR(is_.mode):
        # A directory's times and count of links follow from what is told of its entries.
        return (was.mode, was.uid, was.gid) != (is_.mode, is_.uid, is_.gid)
    return (was.mode, was.uid, was.gid, was.mtime_ns) != (is_.mode, is_.uid, is_.gid, is_.mtime_ns)


def _is_below(change: TreeChange, top: bytes) -> bool:
    top = top.strip(b"/")
    return not top or any(path == top or path.startswith(top + b"/") for path in (change.path, change.old_path))


def _seen_by(kept: Sequence[tuple[SnapshotInfo, int]], epoch: int, until: int) -> list[SnapshotInfo]:
    """The kept snapshots whose views lie between two epochs, both included."""
    first = bisect_left(kept, epoch, key=lambda entry: entry[1])
    last = bisect_left(kept, until + 1, key=lambda entry: entry[1]) if until < EPOCH_MAX else len(kept)
    return [info for info, _ in kept[first:last]]


def _version(inode: Inode, ino: int, path: bytes, seen: Sequence[SnapshotInfo], *, is_present: bool) -> FileVersion:
    names = [info.name for info in seen]
    return FileVersion(
        path, ino, stat.S_IFMT(inode.mode), inode.size, inode.mtime_ns, stat.S_IMODE(inode.mode), inode.uid, inode.gid,
        names[0] if names else None, names[-1] if names else None, len(names), is_present,
    )  # fmt: skip
