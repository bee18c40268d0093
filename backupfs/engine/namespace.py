"""Names: making, removing, linking and renaming in the live tree. Every function is atomic: it looks, decides and changes in one go.

Permissions are the kernel's business (`default_permissions`); what is decided here is existence, types, counts, inherited attributes and the
one reserved name.
"""

import errno
import logging
import stat
from itertools import islice

from msgspec import structs

from backupfs import limits
from backupfs.engine.attributes import Caller
from backupfs.engine.filedata import FileData
from backupfs.engine.inodes import InodeState, InodeTable
from backupfs.engine.listings import Known, Listing, Listings
from backupfs.engine.view import View
from backupfs.engine.volume import Volume
from backupfs.errors import FileSystemError
from backupfs.format import catalog as records
from backupfs.format.catalog import (
    TOMBSTONE,
    Dentry,
    Inode,
    Orphan,
    Table,
    dentry_key,
    link_key,
    number_key,
)
from backupfs.rules import acl, posix

log = logging.getLogger(__name__)

SNAPSHOTS_NAME = b".snapshots"
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


class Namespace:
    """The live tree's directories. `orphans` are inodes without a name, with the epoch in which they lost it."""

    def __init__(self, volume: Volume, inodes: InodeTable, data: FileData, orphans: dict[int, int]) -> None:
        self._volume = volume
        self._inodes = inodes
        self._data = data
        self._present = View(volume.catalog, volume.keys, records.EPOCH_MAX)
        self._listings = Listings()
        self.orphans = orphans
        self.umask_applied = True

    def inode(self, ino: int) -> InodeState:
        """A live inode; ENOENT when there is none."""
        state = self._inodes.get(ino)
        if state is None:
            raise FileSystemError(errno.ENOENT)
        return state

    def directory(self, ino: int) -> InodeState:
        """A live directory; ENOTDIR when it is something else."""
        state = self.inode(ino)
        if not stat.S_ISDIR(state.record.mode):
            raise FileSystemError(errno.ENOTDIR)
        return state

    def find(self, parent: int, name: bytes) -> Dentry | None:
        """The entry of that name, if there is one."""
        listing = self._listings.get(parent)
        if listing is None or len(name) > limits.NAME_MAX_BYTES:
            return self._present.find(parent, name)
        return listing.find(name)

    def entries(self, ino: int, after_prf: bytes, limit: int) -> list[Known]:
        """Up to `limit` entries of a directory behind a PRF (or from the start), in the order of a listing."""
        listing = self._listings.get(ino)
        if listing is not None:
            self._listings.used(ino)
            return listing.after(after_prf, limit)
        found = list(islice(self._present.entries(ino, after_prf), limit))
        if not after_prf and len(found) < limit:
            self._listings.add(ino, found)
        return found

    def make(self, parent: int, name: bytes, mode: int, rdev: int, target: bytes, who: Caller) -> InodeState:
        """A new inode of any type under a new name."""
        into = self.directory(parent)
        prf = self._free_name(into, name)
        is_directory = stat.S_ISDIR(mode)
        if is_directory and into.record.nlink >= limits.LINKS_MAX:
            raise FileSystemError(errno.EMLINK)
        state = self._unnamed(into, mode, rdev, target, who)
        self._set_name(parent, prf, name, state)
        if is_directory:
            self._listings.add(state.ino, (), is_new=True)
        self._changed_directory(into, state.record.birth_ns, 1 if is_directory else 0)
        return state

    def _unnamed(self, into: InodeState, mode: int, rdev: int, target: bytes, who: Caller) -> InodeState:
        """A new inode that inherits from the directory in which it gets its name."""
        is_directory = stat.S_ISDIR(mode)
        gid = who.gid
        if into.record.mode & stat.S_ISGID:
            mode, gid = posix.new_owner(into.record.mode, into.record.gid, mode, gid)
        xattrs: dict[bytes, bytes] = {}
        default = None if stat.S_ISLNK(mode) else self._inodes.xattrs(into).get(acl.DEFAULT)
        if default is not None:
            entries, mode = acl.inherited(acl.decode(default), mode)
            if not acl.is_minimal(entries):
                xattrs[acl.ACCESS] = acl.encode(entries)
            if is_directory:
                xattrs[acl.DEFAULT] = default
        elif not self.umask_applied and not stat.S_ISLNK(mode):
            mode &= ~who.umask
        now = self._volume.now_ns()
        record = Inode(mode, who.uid, gid, len(target), 2 if is_directory else 1, now, now, now, now, rdev, target, 0, [], [])
        state = self._inodes.add(self._volume.next_ino(), record)
        if xattrs:
            self._inodes.set_xattrs(state, xattrs)
        return state

    def adopt(self, parent: int, name: bytes, record: Inode, data: int, xattrs: dict[bytes, bytes]) -> InodeState:
        """A new inode under a new name that is like an old record, extents included; regions stand under `data` already."""
        into = self.directory(parent)
        prf = self._free_name(into, name)
        is_directory = stat.S_ISDIR(record.mode)
        if is_directory and into.record.nlink >= limits.LINKS_MAX:
            raise FileSystemError(errno.EMLINK)
        now = self._volume.now_ns()
        like = structs.replace(record, nlink=2 if is_directory else 1, ctime_ns=now, birth_ns=now, data=data, extents=list(record.extents), links=[])
        state = self._inodes.add(self._volume.next_ino(), like)
        if xattrs:
            self._inodes.set_xattrs(state, xattrs)
        self._set_name(parent, prf, name, state)
        if is_directory:
            self._listings.add(state.ino, (), is_new=True)
        self._changed_directory(into, now, 1 if is_directory else 0)
        return state

    def link(self, ino: int, parent: int, name: bytes) -> InodeState:
        """Another name for an inode."""
        state, into = self.inode(ino), self.directory(parent)
        prf = self._free_name(into, name)
        if state.record.nlink >= limits.LINKS_MAX:
            raise FileSystemError(errno.EMLINK)
        if state.record.nlink == 0:
            raise FileSystemError(errno.ENOENT)
        now = self._volume.now_ns()
        self._set_name(parent, prf, name, state)
        state.record.nlink += 1
        state.record.ctime_ns = now
        self._inodes.touch(state)
        self._changed_directory(into, now, 0)
        return state

    def unlink(self, parent: int, name: bytes) -> InodeState:
        """Remove a name of something that is no directory."""
        into = self.directory(parent)
        entry = self._existing(parent, name)
        state = self.inode(entry.ino)
        if stat.S_ISDIR(state.record.mode):
            raise FileSystemError(errno.EISDIR)
        now = self._volume.now_ns()
        self._remove_name(parent, name)
        self._lost_name(state, parent, name, now)
        self._changed_directory(into, now, 0)
        return state

    def remove_directory(self, parent: int, name: bytes) -> InodeState:
        """Remove an empty directory."""
        into = self.directory(parent)
        entry = self._existing(parent, name)
        state = self.directory(entry.ino)
        if not self.is_empty(entry.ino):
            raise FileSystemError(errno.ENOTEMPTY)
        now = self._volume.now_ns()
        self._remove_name(parent, name)
        self._lost_name(state, parent, name, now)
        self._changed_directory(into, now, -1)
        return state

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller) -> InodeState | None:
        """Move a name, replacing what stands there unless told otherwise. Gives the inode that lost its name, if one did.

        With RENAME_WHITEOUT a device 0:0 of the caller's stands under the old name afterwards, by which an overlay knows that something is gone.
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, RENAME_WHITEOUT | RENAME_NOREPLACE):
            raise FileSystemError(errno.EINVAL)
        old_dir, new_dir = self.directory(parent), self.directory(new_parent)
        if SNAPSHOTS_NAME in (name, new_name):
            self._refuse_reserved()
        entry = self._existing(parent, name)
        target = self.find(new_parent, new_name)
        state = self.inode(entry.ino)
        if target is not None and flags & RENAME_NOREPLACE:
            raise FileSystemError(errno.EEXIST)
        if target is not None and target.ino == entry.ino:
            return None
        if flags & RENAME_EXCHANGE:
            if target is None:
                raise FileSystemError(errno.ENOENT)
            self._exchange(old_dir, name, entry, new_dir, new_name, target)
            return None
        if new_dir.record.nlink == 0:
            raise FileSystemError(errno.ENOENT)
        replaced = None if target is None else self.inode(target.ino)
        is_directory = stat.S_ISDIR(state.record.mode)
        if replaced is not None:
            self._check_replaceable(replaced, is_directory)
        elif is_directory and old_dir is not new_dir and new_dir.record.nlink >= limits.LINKS_MAX:
            raise FileSystemError(errno.EMLINK)
        # Before anything is changed: nothing that fails may come between.
        whiteout = self._unnamed(old_dir, stat.S_IFCHR, 0, b"", who) if flags & RENAME_WHITEOUT else None
        now = self._volume.now_ns()
        prf, new_prf = self._volume.keys.name_prf(parent, name), self._volume.keys.name_prf(new_parent, new_name)
        self._drop_link(state, parent, prf)
        if whiteout is None:
            self._remove_name(parent, name)
        else:
            self._set_name(parent, prf, name, whiteout)
        if replaced is not None:
            self._lost_name(replaced, new_parent, new_name, now)
        self._set_name(new_parent, new_prf, new_name, state)
        state.record.ctime_ns = now
        self._inodes.touch(state)
        step = 1 if is_directory else 0
        self._changed_directory(old_dir, now, -step)
        self._changed_directory(new_dir, now, step - (1 if is_directory and replaced is not None else 0))
        return replaced

    def is_empty(self, ino: int) -> bool:
        """Whether a directory has no entries."""
        listing = self._listings.get(ino)
        return next(self._present.entries(ino, b""), None) is None if listing is None else listing.is_empty()

    def reap(self, state: InodeState, limit: int) -> bool:
        """One step of ending an inode that has no name and no user; true when it is done. Atomic."""
        epoch = self.orphans[state.ino]
        self._listings.forget(state.ino)
        catalog = self._volume.catalog
        # First, or else they would be stored between two steps, in regions that have ended already.
        self._data.drop(state)
        if state.record.data and not self._data.end_regions(state.record.data, Orphan(epoch, 0), limit):
            return False
        if self._inodes.xattrs(state):
            catalog.write(Table.XATTRS, number_key(state.ino), TOMBSTONE, epoch)
        self._inodes.remove(state, epoch)
        del self.orphans[state.ino]
        self._inodes.is_orphan_no_more(state.ino)
        return True

    def path_of(self, ino: int) -> bytes | None:
        """One path that leads to a live inode, from the root, without a leading slash; None when no name is left."""
        return self._present.path_of(ino, lambda at: None if (state := self._inodes.get(at)) is None else state.record)

    def _free_name(self, into: InodeState, name: bytes) -> bytes:
        """The PRF of a name that is free in a directory that exists."""
        if len(name) > limits.NAME_MAX_BYTES:
            raise FileSystemError(errno.ENAMETOOLONG)
        if name == SNAPSHOTS_NAME:
            self._refuse_reserved()
        if self.find(into.ino, name) is not None:
            raise FileSystemError(errno.EEXIST)
        if into.record.nlink == 0:
            raise FileSystemError(errno.ENOENT)
        return self._volume.keys.name_prf(into.ino, name)

    def _refuse_reserved(self) -> None:
        log.warning(
            "the name .snapshots is reserved in every directory and cannot be made; when copying in a tree that has one, leave it out "
            "(rsync --exclude=.snapshots) or rename it first"
        )
        raise FileSystemError(errno.EPERM)

    def _check_replaceable(self, replaced: InodeState, by_directory: bool) -> None:
        is_directory = stat.S_ISDIR(replaced.record.mode)
        if by_directory and not is_directory:
            raise FileSystemError(errno.ENOTDIR)
        if is_directory and not by_directory:
            raise FileSystemError(errno.EISDIR)
        if is_directory and not self.is_empty(replaced.ino):
            raise FileSystemError(errno.ENOTEMPTY)

    def _existing(self, parent: int, name: bytes) -> Dentry:
        entry = self.find(parent, name)
        if entry is None:
            raise FileSystemError(errno.ENOENT)
        return entry

    def _remove_name(self, parent: int, name: bytes) -> None:
        key = dentry_key(parent, self._volume.keys.name_prf(parent, name))
        self._write_name(self._listings.get(parent), name, key, None)

    def _write_name(self, listing: Listing | None, name: bytes, key: bytes, entry: Dentry | None) -> None:
        value = TOMBSTONE if entry is None else records.encode(entry)
        over = None if listing is None else listing.only_epoch(name)
        if over is None:
            self._volume.catalog.write(Table.DENTRIES, key, value)
        else:
            over = self._volume.catalog.write_over(Table.DENTRIES, key, value, over, ((), ()))
        if listing is not None:
            listing.put(name, key[8:], entry, over)

    def _set_name(self, parent: int, prf: bytes, name: bytes, state: InodeState) -> None:
        listing = self._listings.get(parent)
        self._write_name(listing, name, dentry_key(parent, prf), Dentry(state.ino, state.record.mode >> 12, name))
        if listing is not None:
            self._listings.grown(parent, listing)
        self._add_link(state, parent, prf)

    def _exchange(self, old_dir: InodeState, name: bytes, entry: Dentry, new_dir: InodeState, new_name: bytes, target: Dentry) -> None:
        now = self._volume.now_ns()
        first, second = self.inode(entry.ino), self.inode(target.ino)
        prf = self._volume.keys.name_prf
        self._drop_link(first, old_dir.ino, prf(old_dir.ino, name))
        self._drop_link(second, new_dir.ino, prf(new_dir.ino, new_name))
        self._set_name(new_dir.ino, prf(new_dir.ino, new_name), new_name, first)
        self._set_name(old_dir.ino, prf(old_dir.ino, name), name, second)
        first.record.ctime_ns = second.record.ctime_ns = now
        self._inodes.touch(first)
        self._inodes.touch(second)
        step = stat.S_ISDIR(second.record.mode) - stat.S_ISDIR(first.record.mode)
        self._changed_directory(old_dir, now, step)
        self._changed_directory(new_dir, now, -step)

    def _lost_name(self, state: InodeState, parent: int, name: bytes, now: int) -> None:
        """An inode has lost one of its names; without any left it is an orphan."""
        record = state.record
        self._drop_link(state, parent, self._volume.keys.name_prf(parent, name))
        record.nlink = 0 if stat.S_ISDIR(record.mode) else record.nlink - 1
        record.ctime_ns = now
        self._inodes.touch(state)
        if record.nlink == 0:
            epoch = self._volume.catalog.epoch
            self.orphans[state.ino] = epoch
            self._inodes.lost_last_name(state.ino, epoch)

    def _add_link(self, state: InodeState, parent: int, prf: bytes) -> None:
        if len(state.record.links) < limits.INODE_LINKS_INLINE:
            state.record.links = [*state.record.links, (parent, prf)]
        else:
            self._volume.catalog.write(Table.LINKS, link_key(state.ino, parent, prf), records.encode(0))

    def _drop_link(self, state: InodeState, parent: int, prf: bytes) -> None:
        if (parent, prf) in state.record.links:
            state.record.links = [link for link in state.record.links if link != (parent, prf)]
        else:
            self._volume.catalog.write(Table.LINKS, link_key(state.ino, parent, prf), TOMBSTONE)

    def _changed_directory(self, state: InodeState, now: int, subdirectories: int) -> None:
        record = state.record
        record.mtime_ns = record.ctime_ns = now
        record.nlink += subdirectories
        self._inodes.touch(state)
