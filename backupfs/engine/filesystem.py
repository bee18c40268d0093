"""The file system: every request of the kernel, in the present and in snapshots.

Requests that change something are admitted one synchronous step at a time: they wait while the overlay is too full or a snapshot's cut parks
them, then decide and change in one go. Requests on snapshots read at the snapshot's epoch and check, after every wait, that it is still there.

Inode numbers as the kernel sees them: 1 the root, 2 `.snapshots`, 3 `.snapshots/latest`, below 2**40 the present, above `serial << 40 | ino`.
"""

import errno
import logging
import math
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import islice

import msgspec
import trio

from backupfs import limits
from backupfs.clock import until_next
from backupfs.engine.attributes import (
    AttributeChanges,
    Attributes,
    Caller,
    DirectoryEntry,
    Disarmed,
    EngineStatus,
    Opened,
    SnapshotInfo,
    SpaceFacts,
    Stats,
    Usage,
)
from backupfs.engine.blobstore import BlobStore
from backupfs.engine.checking import Checker, Finding, check, scratch_directory
from backupfs.engine.checkpointing import Checkpointer
from backupfs.engine.collecting import Collector
from backupfs.engine.committer import Committer
from backupfs.engine.filedata import FileData, FlushMode
from backupfs.engine.history import History
from backupfs.engine.inodes import InodeState, InodeTable
from backupfs.engine.namespace import RENAME_EXCHANGE, RENAME_WHITEOUT, SNAPSHOTS_NAME, Namespace
from backupfs.engine.reckoning import Reckoner
from backupfs.engine.restoring import Restorer
from backupfs.engine.seams import Progress
from backupfs.engine.snapdirs import COOKIE_FIRST, LATEST_INO, SNAPSHOTS_INO, SnapshotDirectories, is_timely, is_virtual
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.upkeep import Upkeep
from backupfs.engine.usage import measure
from backupfs.engine.view import View
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, DamageError, FileSystemError, UsageError, again
from backupfs.format import catalog as records
from backupfs.format.catalog import Inode, Orphan, Table
from backupfs.ids import INO_BITS, ROOT_INO
from backupfs.rules import acl, posix
from backupfs.rules.names import SnapDir, name_fault
from backupfs.rules.schedule import Activity

log = logging.getLogger(__name__)

_INO_MASK = (1 << INO_BITS) - 1
_BLOCK = 512
_DIRECTORY_BYTES = 4096
"""As long every directory shows itself."""
_READDIR_RUN = 208
_COOKIE_SELF = 1
_COOKIE_PARENT = 2
_COOKIE_SNAPSHOTS = 3
_DOTS = (b".", b"..")
_BEGINNINGS = (SNAPSHOTS_NAME, b"@GMT-")
"""No other names lead into the past."""
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_CUT_ATTEMPTS = 8
_STORE_ATTEMPTS = 3
"""At the end each attempt goes to another pack."""


class _FileHandle(msgspec.Struct, eq=False):
    """An open file: `state` is None for one in a snapshot."""

    state: InodeState | None
    serial: int
    record: Inode
    ino: int
    writes: bool = False
    direct: bool = False
    internal: bool = False
    by_root: bool = False
    """With direct I/O: whether root opened it. Nothing tells then who writes."""
    groups: AbstractSet[int] = frozenset()
    """With direct I/O: groups of whoever opened it; the supplementary ones only if a set-gid bit hung on them then."""
    errors_seen: int = 0
    next_offset: int = 0


@dataclass(slots=True)
class _DirectoryHandle:
    ino: int


@dataclass(slots=True, eq=False)
class _Task:
    """A task that only the end of the file system ends, since closing needs it."""

    work: Callable[..., Awaitable[None]]
    scope: trio.CancelScope = field(default_factory=lambda: trio.CancelScope(shield=True))
    ended: trio.Event = field(default_factory=trio.Event)


class FileSystem:
    """One mounted repository. Made by `repository.open_filesystem`; `running` owns its tasks."""

    def __init__(self, volume: Volume, orphans: dict[int, int], ended: Sequence[tuple[int, Orphan]]) -> None:
        self._volume = volume
        self._inodes = InodeTable(volume.catalog)
        self._blobs = BlobStore(volume)
        self._data = FileData(volume, self._inodes, self._blobs)
        self._data.ended.extend(ended)
        self._names = Namespace(volume, self._inodes, self._data, orphans)
        self._snapshots = Snapshots(volume.catalog)
        self._committer = Committer(volume, self._inodes)
        self._checkpointer = Checkpointer(volume, self._committer)
        self._handles: dict[int, _FileHandle] = {}
        self._directories: dict[int, _DirectoryHandle] = {}
        self._next_fh = 1
        self._parked: trio.Event | None = None
        self._taking = trio.Lock()
        self._look_at_space = trio.Event()
        self._rests = False
        """Nothing waits to be committed, and nobody looks for it: who changes something says so."""
        self._stirred = trio.Event()
        self.upkeep = Upkeep(
            volume,
            self._committer,
            self._inodes,
            self._data,
            self._names,
            self._snapshots,
            Collector(volume, self._committer, self._blobs),
            self._admit,
        )
        self.history = History(volume, self._snapshots, self._settle)
        self.reckoner = Reckoner(volume, self._snapshots, self._settle)
        self.restorer = Restorer(
            volume, self._inodes, self._data, self._names, self._snapshots, self.history, self._admit_restore, self._maybe_reap, self.upkeep.wake
        )
        self.snapdirs = SnapshotDirectories(volume, self._names, self._snapshots, self._attributes_then)
        self.disarms_past = Disarmed()
        """What is not shown of the past."""
        self._take_by_name: Callable[[str], Awaitable[object]] = self._take_named
        self.groups_of: Callable[[int], AbstractSet[int]] = lambda _: frozenset()
        """The supplementary groups of a process that waits for an answer. Set by the mount before the first request."""
        self.own_threads: set[int] = set()
        """Threads of this process that are using its own mount (the kernel's `pid` of a request is a thread's): their fsync commits nothing."""

    @property
    def umask_applied(self) -> bool:
        """Whether the kernel applies the umask before a mode arrives here."""
        return self._names.umask_applied

    @umask_applied.setter
    def umask_applied(self, applied: bool) -> None:
        self._names.umask_applied = applied

    # life

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FileSystem"]:
        """Run the tasks; at the end store and commit everything. Raises at the end what kept something from being stored."""
        if not self._volume.read_only:
            self._finish_truncations()
            for ino in list(self._names.orphans):
                state = self._inodes.get(ino)
                if state is not None:
                    self.upkeep.reap_later(state)
            self.upkeep.wake()
        committer = self._committer
        async with trio.open_nursery() as nursery:
            feeding = [_Task(self._data.run)]
            writing: list[_Task] = []
            await nursery.start(self._outliving, feeding[0])
            if self._volume.follows:
                feeding.append(_Task(self._follow))
            if not self._volume.read_only:
                feeding += map(_Task, (self._commit_regularly, self._watch_space, self.upkeep.run, self.upkeep.collect, self._checkpointer.run))
                writing += map(_Task, (committer.run, committer.run_index))
            for task in (*feeding[1:], *writing):
                nursery.start_soon(self._outliving, task)
            try:
                yield self
            finally:
                with trio.CancelScope(shield=True):
                    # Whoever has work for the committer first, the committer itself when it has done all of it, and then the journal.
                    try:
                        await _end(feeding)
                        await self._store_and_commit()
                        if self._volume.failure is None:
                            committer.stop()
                            await _ended(writing)
                    finally:
                        await _end(writing)
                    await self._close_journal()
        if self._volume.failure is not None:
            raise self._volume.failure

    async def _follow(self) -> None:
        """Task: let go of old pages of an index that another process writes to."""
        while True:
            await trio.sleep(limits.FOLLOW_S)
            self._volume.index.renew()

    async def _outliving(self, task: _Task, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a task. One that dies stops writing instead of leaving others to wait for it."""
        try:
            with task.scope:
                if task_status is trio.TASK_STATUS_IGNORED:
                    await task.work()
                else:
                    await task.work(task_status=task_status)
        except Exception as error:
            log.exception("a task of the engine failed")
            self._committer.fail(BackupfsError(f"a task of the engine failed: {error!r}; this is a fault in backupfs"))
            self._data.wake()
        finally:
            task.ended.set()

    def _finish_truncations(self) -> None:
        """End the regions that a truncation had left to end when the process died: the file goes on, so before anyone writes to it."""
        for data, orphan in [entry for entry in self._data.ended if entry[1].owner]:
            state = self._inodes.get(orphan.owner)
            record = None if state is None or state.record.data != data else state.record
            while not self._data.end_regions(data, orphan, limits.REAP_RECORDS_PER_STEP, record):
                continue
            if state is not None:
                self._inodes.touch(state)
            self._data.ended.remove((data, orphan))

    async def _store_and_commit(self) -> None:
        volume = self._volume
        if volume.read_only:
            return
        lost: BackupfsError | None = None
        for _ in range(_STORE_ATTEMPTS):
            try:
                await self._data.flush_all()
                lost = None
                break
            except BackupfsError as error:
                log.error("not everything could be stored before the end: %s", error)
                lost = error
        try:
            await self._committer.commit()
            await self._committer.applied()
            for pack in volume.packs.finish():
                await self._committer.close_pack(pack)
            await self._committer.commit()
            await self._committer.applied()
            await self._committer.removed()
            await self._committer.remove_left_behind()
        except BackupfsError as error:
            log.error("not everything could be committed before the end: %s", error)
            volume.fail(error)
        if lost is not None:
            volume.fail(lost)

    async def _close_journal(self) -> None:
        """Nobody writes to it any more."""
        volume = self._volume
        if volume.read_only or volume.failure is not None or self._committer.left_behind:
            # What is left behind is looked for only after an end that was not a clean one.
            return
        try:
            await volume.seams.offload.disk(volume.close_journal)
        except BackupfsError as error:
            log.error("the journal could not be closed; the next mount does it: %s", error)

    async def _commit_regularly(self) -> None:
        volume = self._volume
        while True:
            await trio.sleep(limits.COMMIT_DELAY_S)
            if not self._has_work():
                await self._rest()
                continue
            await self._look_at_room()
            try:
                await self._data.flush_all(where_there_is_room=True)
            except BackupfsError as error:
                # Whoever fsyncs is told by the file's own error; here it is only put on record.
                log.error("the regular commit: %s", error)
            if self._committer.has_changes() and volume.failure is None:
                try:
                    await self._committer.commit()
                except BackupfsError as error:
                    log.error("the regular commit: %s", error)
            self._committer.follow()

    def _has_work(self) -> bool:
        """Whether something waits for the regular commit, or room for being looked at."""
        return bool(self._data.unstored()) or self._committer.has_changes() or self._committer.is_behind() or self._is_short()

    async def _rest(self) -> None:
        """Returns when somebody is about to change something. Only the disk, which others use, is looked at meanwhile."""
        self._rests = True
        self._stirred = trio.Event()
        self._data.rest()
        while self._rests:
            with trio.move_on_after(until_next(trio.current_time(), limits.LOOK_S)) as waiting:
                await self._stirred.wait()
            if waiting.cancelled_caught:
                await self._look_at_room()
                if self._has_work():
                    self._stir()

    def _stir(self) -> None:
        """A rest ends."""
        self._rests = False
        self._stirred.set()
        self._data.stir()
        self._look_at_space.set()

    async def _look_at_room(self) -> None:
        volume = self._volume
        try:
            await volume.seams.offload.disk(volume.space.refresh, self._data.dirty_bytes)
        except BackupfsError as error:
            log.error("free space cannot be read: %s", error)

    async def _watch_space(self) -> None:
        """Task: look at the disk again whenever much has been accepted, and often while room is short."""
        while True:
            with trio.move_on_after(limits.SPACE_SHORT_LOOK_S if self._is_short() else math.inf):
                await self._look_at_space.wait()
            if self._is_short():
                # What was removed gives its room back with the next batch.
                self._committer.nudge()
            await self._look_at_room()
            self._look_at_space = trio.Event()

    async def idle(self) -> None:
        """Background work that is due is done when this returns."""
        await self.upkeep.idle()

    # names

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        """The inode of a name; ENOENT. The kernel counts one lookup of it."""
        if name in _DOTS:
            # The kernel asks so for what it knows by a file handle only. Without a name it is gone, whether or not the kernel has said yet that it
            # forgets it: were it open, the kernel would know it.
            attributes = self._any_attributes(parent if name == b"." else self._parent(parent))
            if not attributes.nlink:
                raise FileSystemError(errno.ESTALE)
            self.remember((attributes.ino,))
            return attributes
        if name.startswith(_BEGINNINGS) or is_virtual(parent):
            virtual = self.snapdirs.lookup(parent, name)
            if virtual is not None:
                return virtual
        if parent > _INO_MASK:
            serial, ino = parent >> INO_BITS, parent & _INO_MASK
            view = self._view(serial)
            entry = view.find(ino, name)
            record = None if entry is None else view.inode(entry.ino)
            if entry is None or record is None:
                raise FileSystemError(errno.ENOENT)
            return self._past_attributes(serial, entry.ino, record)
        entry = self._names.find(parent, name)
        if entry is None:
            raise FileSystemError(errno.ENOENT)
        return self._entered(self._names.inode(entry.ino))

    def negative_cacheable(self, parent: int, name: bytes) -> bool:
        """Whether the kernel may remember that this name is not there."""
        return not is_virtual(parent) and not is_timely(name)

    async def create(self, parent: int, name: bytes, mode: int, flags: int, who: Caller) -> tuple[Opened, Attributes]:
        """Make a regular file, or open the one that is there, and open it."""
        if self._must_wait(parent):
            await self._admit()
        self._must_have_room()
        entry = None if flags & os.O_EXCL else self._names.find(parent, name)
        if entry is not None:
            opened = await self.open(entry.ino, flags, who)
            return opened, self._entered(self._names.inode(entry.ino))
        state = self._names.make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), 0, b"", who)
        opened = self._open_live(state, flags, who)
        return opened, self._entered(state)

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, who: Caller) -> Attributes:
        """Make a file of any type but a directory or link."""
        if self._must_wait(parent):
            await self._admit()
        self._must_have_room()
        return self._entered(self._names.make(parent, name, mode, rdev, b"", who))

    async def mkdir(self, parent: int, name: bytes, mode: int, who: Caller) -> Attributes:
        """Make a directory. In the root's `.snapshots`, which the kernel lets only its owner write to: take a snapshot of that name."""
        if parent == SNAPSHOTS_INO:
            await self._take_on_request(name)
            return self._any_attributes(self.snapdirs.lookup(parent, name).ino)  # type: ignore[union-attr]
        if self._must_wait(parent):
            await self._admit()
        self._must_have_room()
        return self._entered(self._names.make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), 0, b"", who))

    async def symlink(self, parent: int, name: bytes, target: bytes, who: Caller) -> Attributes:
        """Make a symbolic link."""
        if self._must_wait(parent):
            await self._admit()
        self._must_have_room()
        return self._entered(self._names.make(parent, name, stat.S_IFLNK | 0o777, 0, target, who))

    async def link(self, ino: int, parent: int, name: bytes, who: Caller) -> Attributes:
        """Give an inode another name."""
        _must_be_on_one_side(ino, parent)
        if self._must_wait(parent):
            await self._admit()
        return self._entered(self._names.link(ino, parent, name))

    async def unlink(self, parent: int, name: bytes, who: Caller) -> None:
        """Remove a name."""
        if self._must_wait(parent):
            await self._admit()
        self._maybe_reap(self._names.unlink(parent, name))

    async def rmdir(self, parent: int, name: bytes, who: Caller) -> None:
        """Remove an empty directory. In the root's `.snapshots`: mark a snapshot deleted."""
        if name == SNAPSHOTS_NAME and not is_virtual(parent):
            raise FileSystemError(errno.EPERM)
        if parent == SNAPSHOTS_INO:
            await self._delete_on_request(name)
            return
        if self._must_wait(parent):
            await self._admit()
        self._maybe_reap(self._names.remove_directory(parent, name))

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller) -> None:
        """Move a name. A file that replaces another has its data stored first, so that no batch shows it empty."""
        _must_be_on_one_side(parent, new_parent)
        if self._must_wait(parent):
            await self._admit()
        if flags & RENAME_WHITEOUT:
            self._must_have_room()
        entry, target = self._names.find(parent, name), self._names.find(new_parent, new_name)
        if entry is not None and target is not None:
            moved = (entry, target) if flags & RENAME_EXCHANGE else (entry,)
            unstored = [state for each in moved if not (state := self._names.inode(each.ino)).clean]
            if unstored:
                await self._data.flush(unstored, FlushMode.ALL)
                if self._must_wait(parent):
                    await self._admit()
        replaced = self._names.rename(parent, name, new_parent, new_name, flags, who)
        if replaced is not None:
            self._maybe_reap(replaced)

    async def readlink(self, ino: int) -> bytes:
        """A symbolic link's target."""
        if is_virtual(ino):
            return self.snapdirs.target(ino)
        record = self._record(ino)
        if not stat.S_ISLNK(record.mode):
            raise FileSystemError(errno.EINVAL)
        return record.target

    # attributes

    async def getattr(self, ino: int) -> Attributes:
        """What stat shows."""
        return self._any_attributes(ino)

    async def setattr(self, ino: int, changes: AttributeChanges, fh: int | None, who: Caller) -> Attributes:
        """Change attributes."""
        if self._must_wait(ino):
            await self._admit()
        state = self._names.inode(ino)
        record = state.record
        is_chown = changes.uid is not None or changes.gid is not None
        if not is_chown and changes.sets_nothing() and stat.S_ISREG(record.mode) == (changes.ctime_ns is not None):
            # chown(2) with neither a user nor a group ends set-id bits all the same, for those who may change the mode. Of a regular file the
            # kernel keeps the times and sends its own ctime with it.
            is_chown = True
            if who.uid not in (0, record.uid) and posix.mode_after_chown(record.mode, self._keeps_mark(record, who)) != record.mode:
                raise FileSystemError(errno.EPERM)
        elif not is_chown and changes.ctime_ns is None and changes.sets_nothing():
            # The kernel tells so that somebody who is not root is going to write to a regular file with set-id bits, which end with that: a request
            # that sets nothing, not even a ctime. What is written in a mapping, or by root, comes without it and ends none.
            self._drop_set_id(state, who)
            return self._attributes(state)
        if changes.size is None:
            now = self._change_time(record, changes)
        elif await self._resize(ino, state, changes.size, who):
            now = record.mtime_ns = posix.change_time(self._volume.now_ns(), record.ctime_ns, (changes.atime_ns, changes.mtime_ns))
        else:
            # The kernel keeps the times of a file that has been given the size it had, and so does this side.
            now = record.ctime_ns
        if is_chown:
            self._set_owner(state, changes, who)
        if changes.mode is not None:
            self._set_mode(state, changes.mode)
        if changes.atime_ns is not None:
            record.atime_ns = posix.storable_time(changes.atime_ns)
        if changes.mtime_ns is not None:
            record.mtime_ns = posix.storable_time(changes.mtime_ns)
        record.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns
        self._inodes.touch(state)
        return self._attributes(state)

    def _set_owner(self, state: InodeState, changes: AttributeChanges, who: Caller) -> None:
        """chown(2), which ends set-id bits and capabilities."""
        record = state.record
        if record.mode & _SET_IDS:
            record.mode = posix.mode_after_chown(record.mode, self._keeps_mark(record, who))
        record.uid = record.uid if changes.uid is None else changes.uid
        record.gid = record.gid if changes.gid is None else changes.gid
        if state.xattrs is None or state.xattrs:
            self._drop_capability(state)

    def _change_time(self, record: Inode, changes: AttributeChanges) -> int:
        """The ctime of a change that leaves the size alone: of a regular file the kernel sends it along."""
        if changes.ctime_ns is None:
            return posix.change_time(self._volume.now_ns(), record.ctime_ns, (changes.atime_ns, changes.mtime_ns))
        self._volume.note_change(changes.ctime_ns)
        return changes.ctime_ns

    def _set_mode(self, state: InodeState, mode: int) -> None:
        """chmod(2), which changes the access list with it."""
        state.record.mode = stat.S_IFMT(state.record.mode) | stat.S_IMODE(mode)
        xattrs = self._inodes.xattrs(state)
        if acl.ACCESS in xattrs:
            entries = acl.with_mode(acl.decode(xattrs[acl.ACCESS]), state.record.mode)
            self._inodes.set_xattrs(state, {**xattrs, acl.ACCESS: acl.encode(entries)})

    async def _resize(self, ino: int, state: InodeState, size: int, who: Caller) -> bool:
        """Set a file's size. Whether it had another."""
        record = state.record
        if not stat.S_ISREG(record.mode):
            raise FileSystemError(errno.EISDIR if stat.S_ISDIR(record.mode) else errno.EINVAL)
        if size > limits.FILE_SIZE_MAX_BYTES:
            raise FileSystemError(errno.EFBIG)
        if size > record.size and self._is_short():
            raise FileSystemError(errno.ENOSPC)
        differs = size != record.size
        await self._data.truncate(state, size)
        if self._data.ended:
            self.upkeep.wake()
        if self._must_wait(ino):
            await self._admit()
        self._drop_capability(state)
        if who.uid != 0:
            self._drop_set_id(state, who)
        return differs

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        """An extended attribute's value; ENODATA."""
        _must_be_attribute(name)
        value = self._xattrs(ino).get(name)
        if value is None:
            raise FileSystemError(errno.ENODATA)
        return value

    async def listxattr(self, ino: int, who: Caller) -> list[bytes]:
        """The names of all extended attributes that the caller may know of."""
        return [name for name in self._xattrs(ino) if posix.is_listed(name, who.uid == 0)]

    async def setxattr(self, ino: int, name: bytes, value: bytes, who: Caller) -> None:
        """Set an extended attribute; an access list also sets the mode."""
        _must_be_attribute(name)
        if self._must_wait(ino):
            await self._admit()
        if self._is_short():
            raise FileSystemError(errno.ENOSPC)
        state = self._names.inode(ino)
        xattrs = dict(self._inodes.xattrs(state))
        if len(name) > limits.NAME_MAX_BYTES or len(value) > limits.XATTR_VALUE_MAX_BYTES:
            raise FileSystemError(errno.ERANGE if len(name) > limits.NAME_MAX_BYTES else errno.E2BIG)
        mode_before = state.record.mode
        if name in (acl.ACCESS, acl.DEFAULT):
            self._set_acl(state, xattrs, name, value, who)
        else:
            xattrs[name] = value
        if not posix.attributes_fit(xattrs):
            raise FileSystemError(errno.ENOSPC)
        self._set_xattrs(state, xattrs, mode_before)

    async def removexattr(self, ino: int, name: bytes, who: Caller) -> None:
        """Remove an extended attribute; ENODATA."""
        _must_be_attribute(name)
        if self._must_wait(ino):
            await self._admit()
        state = self._names.inode(ino)
        xattrs = dict(self._inodes.xattrs(state))
        if xattrs.pop(name, None) is None:
            if name in (acl.ACCESS, acl.DEFAULT):
                # What the mode says anyway is no list; taking it away is no error.
                return
            raise FileSystemError(errno.ENODATA)
        self._set_xattrs(state, xattrs, state.record.mode)

    # files

    async def open(self, ino: int, flags: int, who: Caller) -> Opened:
        """Open a file."""
        serial = ino >> INO_BITS
        if serial:
            if flags & (_WRITE_FLAGS | os.O_TRUNC):
                raise FileSystemError(errno.EROFS)
            record = self._record(ino)
            return Opened(self._new_handle(_FileHandle(None, serial, record, ino & _INO_MASK)))
        state = self._names.inode(ino)
        if flags & (_WRITE_FLAGS | os.O_TRUNC):
            self._volume.check_writable()
        opened = self._open_live(state, flags, who)
        if flags & os.O_TRUNC:
            try:
                await self.setattr(ino, AttributeChanges(size=0), opened.fh, who)
            except (BackupfsError, FileSystemError):
                await self.release(opened.fh)
                raise
        return opened

    async def read(self, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Bytes of an open file."""
        handle = self._handles[fh]
        state = handle.state
        record = handle.record if state is None else state.record
        epoch = records.EPOCH_MAX
        # Looked at when the request comes: of two that are under way the later may be answered first.
        goes_on = offset == handle.next_offset
        handle.next_offset = offset + size
        try:
            if state is None:
                epoch = self._snapshots.epoch_of(handle.serial)
            if goes_on:
                self._data.read_ahead(record, epoch, offset + size, offset + size + limits.READ_AHEAD_BYTES)
            if state is not None:
                data = await self._data.read(state, offset, size)
            else:
                end = min(offset + size, record.size)
                data = await self._data.read_stored(record, epoch, offset, end) if offset < end else b""
                self._snapshots.epoch_of(handle.serial)
        except DamageError as error:
            self._report_damage(handle, epoch, offset, error)
            raise
        return data

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """Take bytes in. With a write-back cache `write(2)` has returned long ago; its error reaches the caller's fsync or close."""
        handle = self._handles[fh]
        state = handle.state
        if state is None:
            raise FileSystemError(errno.EROFS)
        if offset + len(data) > limits.FILE_SIZE_MAX_BYTES:
            raise FileSystemError(errno.EFBIG)
        if self._is_full() or self._parked is not None:
            await self._admit()
        if self._data.must_wait():
            await self._data.room()
        no_room = self._data.stuck and self._data.dirty_bytes > limits.DIRTY_BYTES_MAX
        if no_room or (handle.direct and self._is_short()):
            raise FileSystemError(errno.ENOSPC)
        if self._parked is not None:
            await self._admit()
        volume = self._volume
        if volume.space.accept(len(data)):
            self._look_at_space.set()
        self._data.write(state, offset, data)
        volume.counters.written_bytes += len(data)
        if state.xattrs is None or state.xattrs:
            self._drop_capability(state)
        now = volume.now_ns()
        if handle.direct:
            state.record.mode = posix.mode_after_write(state.record.mode, handle.by_root, state.record.gid in handle.groups)
            state.record.mtime_ns = state.record.ctime_ns = now
            self._inodes.touch(state)
        return len(data)

    async def flush(self, fh: int) -> None:
        """A descriptor was closed: tell of bytes that could not be stored."""
        handle = self._handles[fh]
        state = handle.state
        if state is not None and handle.errors_seen != state.error_count:
            self._tell_errors(handle, state)

    async def release(self, fh: int) -> None:
        """The last descriptor of an open file was closed."""
        handle = self._handles.pop(fh)
        state = handle.state
        if state is None:
            return
        state.handles -= 1
        state.writers -= handle.writes
        if not state.writers and state.unfinished is not None:
            self._data.let_go(state)
        if not state.record.nlink:
            self._maybe_reap(state)

    async def fsync(self, fh: int, datasync: bool) -> None:
        """What the file was given, and what was changed before, is durable when this returns."""
        handle = self._handles[fh]
        state = handle.state
        if state is None or handle.internal or self._volume.read_only:
            return
        self._volume.check_writable()
        try:
            await self._data.flush([state], FlushMode.ALL)
        except BackupfsError:
            handle.errors_seen = state.error_count
            raise
        await self._committer.commit()
        self._tell_errors(handle, state)

    # directories

    async def opendir(self, ino: int) -> int:
        """Open a directory."""
        if not stat.S_ISDIR(self._any_attributes(ino).mode):
            raise FileSystemError(errno.ENOTDIR)
        fh = self._next_fh
        self._next_fh += 1
        self._directories[fh] = _DirectoryHandle(ino)
        return fh

    async def readdir(self, fh: int, start: int) -> list[DirectoryEntry]:
        """Some entries behind a cookie (0: from the start), `.` and `..` first; none at the end."""
        ino = self._directories[fh].ino
        found = self._dots(ino, start)
        if is_virtual(ino):
            return found + list(islice(self.snapdirs.entries(ino, start), _READDIR_RUN))
        serial, inner = ino >> INO_BITS, ino & _INO_MASK
        if ino == ROOT_INO and start < _COOKIE_SNAPSHOTS and self.snapdirs.mode is SnapDir.VISIBLE:
            found.append(DirectoryEntry(SNAPSHOTS_NAME, self._any_attributes(SNAPSHOTS_INO), _COOKIE_SNAPSHOTS))
        after = b"" if start < COOKIE_FIRST else (start << 1 | 1).to_bytes(8, "big") + b"\xff" * 8
        if not serial:
            known = self._names.entries(ino, after, _READDIR_RUN)
            states = self._inodes.named([entry.ino for _, entry in known])
            found += [
                DirectoryEntry(entry.name, state.shown or self._attributes(state), _cookie(prf))
                for (prf, entry), state in zip(known, states, strict=True)
            ]
            return found
        view = self._view(serial)
        for prf, entry in islice(view.entries(inner, after), _READDIR_RUN):
            record = view.inode(entry.ino)
            if record is None:
                raise DamageError(f"inode {entry.ino} is named but has no record", ino=entry.ino)
            found.append(DirectoryEntry(entry.name, self._past_attributes(serial, entry.ino, record), _cookie(prf)))
        return found

    def remember(self, inos: Sequence[int]) -> None:
        """The kernel has taken these entries out of a listing: one lookup more of each."""
        self._inodes.lookups.add([ino for ino in inos if LATEST_INO < ino <= _INO_MASK])

    async def releasedir(self, fh: int) -> None:
        """A directory was closed."""
        del self._directories[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """All names are durable when this returns."""
        ino = self._directories[fh].ino
        if not ino >> INO_BITS and not is_virtual(ino) and not self._volume.read_only:
            await self._committer.commit()

    # the rest

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """The kernel drops so many lookups of each of these inodes. What is virtual or past is not counted."""
        gone = self._inodes.lookups.take_back(forgotten)
        orphans = self._names.orphans
        if orphans:
            for ino in gone:
                if ino in orphans and (state := self._inodes.get(ino)) is not None:
                    self._maybe_reap(state)

    def room_for_pages(self, wanted_bytes: int) -> int:
        """The kernel may hold so many bytes that were written and not brought yet. Gives for how many room is kept on the disk."""
        return self._volume.space.room_for_pages(wanted_bytes)

    async def statfs(self) -> SpaceFacts:
        """How much room there is: the repository's disk, less the reserve."""
        space = self._volume.space
        block = 4096
        free = max(space.free_bytes - self._data.dirty_bytes - space.margin_bytes, 0) // block
        used = self._volume.counters.ino
        return SpaceFacts(block, space.total_bytes // block, free, free, 1 << INO_BITS, (1 << INO_BITS) - used, limits.NAME_MAX_BYTES)

    async def commit(self) -> None:
        """Everything received so far is durable when this returns."""
        if self._volume.read_only:
            return
        await self._data.flush_all()
        await self._committer.commit()

    async def _settle(self) -> None:
        await self.commit()
        if not self._volume.read_only:
            await self._committer.applied()

    def writable_paths(self) -> list[tuple[int, bytes | None]]:
        """(inode, path from the root or None) of files that are open for writing: their bytes may stand in the kernel only."""
        seen: dict[int, bytes | None] = {}
        for handle in self._handles.values():
            if handle.writes and handle.state is not None and not handle.internal and handle.ino not in seen:
                seen[handle.ino] = self._names.path_of(handle.ino)
        return list(seen.items())

    def written_at(self, ino: int) -> float:
        """When (in trio's time) bytes of this inode came last."""
        state = self._inodes.get(ino)
        return 0.0 if state is None else state.written_at

    async def create_snapshot(
        self, why: str, message: str = "", tags: Sequence[str] = (), name: str = "", before_restore: bytes = b""
    ) -> SnapshotInfo:
        """Take a snapshot: one point in the order of requests. Durable when this returns. Without a `name` it gets one from the time.

        `before_restore` is the path that is about to be restored. UsageError for a name that will not do, FileSystemError EEXIST for one that is
        taken.
        """
        self._volume.check_writable()
        if name:
            self.check_name(name)
        async with self._taking:
            await self._data.flush_all()
            for _ in range(_CUT_ATTEMPTS):
                if await self._store_parked():
                    break
                await self._data.flush_all()
            try:
                # The records belong to the epoch that ends here.
                self._inodes.record_changed()
                now = self._volume.seams.clock.now_ns()
                serial = self._volume.counters.serial
                if serial >= limits.SNAPSHOTS_EVER_MAX:
                    raise BackupfsError(f"this repository has had {serial - 1} snapshots, and no more can be numbered; begin a new one")
                self._volume.counters.serial += 1
                given = self._claim(name) if name else self._snapshots.new_name(serial, now)
                info = self._snapshots.take(serial, now, given, why, message, tags, before_restore)
                self._volume.counters.written_bytes = 0
                ticket = self._committer.freeze()
            finally:
                self._unpark()
            await self._committer.wait(ticket)
            self.upkeep.wake()
            return info

    def take_named_with(self, take: Callable[[str], Awaitable[object]]) -> None:
        """What `mkdir .snapshots/NAME` does from now on: whoever can bring in what the kernel still holds does that first."""
        self._take_by_name = take

    def check_name(self, name: str) -> None:
        """UsageError for a name that will not do for a new snapshot, FileSystemError EEXIST for one that is, or has been, another's."""
        if fault := name_fault(name):
            raise UsageError(f"{name!r}: {fault}")
        self._snapshots.check_unclaimed(name, self._name_prf(name))

    def _claim(self, name: str) -> str:
        return self._snapshots.claim_name(name, self._name_prf(name))

    def _name_prf(self, name: str) -> bytes:
        return self._volume.keys.name_prf(ROOT_INO, name.encode())

    async def _take_named(self, name: str) -> object:
        return await self.create_snapshot("mkdir", name=name)

    async def _take_on_request(self, name: bytes) -> None:
        try:
            await self._take_by_name(os.fsdecode(name))
        except UsageError as error:
            log.warning("mkdir .snapshots/NAME: %s", error)
            raise FileSystemError(errno.EINVAL) from None

    async def _delete_on_request(self, name: bytes) -> None:
        serial = self._snapshots.serial_of(os.fsdecode(name))
        if serial is None:
            raise FileSystemError(errno.ENOENT)
        try:
            await self.delete_snapshot(os.fsdecode(name))
        except UsageError as error:
            log.warning("rmdir .snapshots/NAME: %s", error)
            raise FileSystemError(errno.EBUSY) from None

    def snapshots(self) -> list[SnapshotInfo]:
        """Those that are kept, oldest first."""
        return self._snapshots.kept()

    async def delete_snapshot(self, name: str) -> None:
        """Mark one deleted, as `delete_snapshots` does."""
        await self.delete_snapshots([name])

    async def delete_snapshots(self, names: Iterable[str]) -> None:
        """Mark snapshots deleted, durably: all of them, or none and UsageError. What only they held goes in the background, later."""
        self._volume.check_writable()
        self._snapshots.delete(names, self._volume.seams.clock.now_ns())
        await self._committer.commit()
        self.upkeep.wake()

    def check_deletable(self, names: Iterable[str]) -> None:
        """UsageError as `delete_snapshots` would raise it now."""
        self._snapshots.check_deletable(names, self._volume.seams.clock.now_ns())

    async def undelete_snapshots(self, names: Iterable[str]) -> None:
        """Bring deleted snapshots back, durably: all of them, or none and UsageError, as when it is too late for one."""
        self._volume.check_writable()
        self._snapshots.undelete(names)
        await self._committer.commit()

    async def pin_snapshots(self, names: Iterable[str], *, pinned: bool) -> None:
        """Keep snapshots until they are unpinned, all or none; durable on return."""
        self._volume.check_writable()
        self._snapshots.pin(names, pinned)
        await self._committer.commit()

    async def hold_snapshots(self, names: Iterable[str], until_ns: int) -> None:
        """Keep snapshots until a time (0: no longer), all or none; durable on return."""
        self._volume.check_writable()
        self._snapshots.hold(names, until_ns)
        await self._committer.commit()

    @asynccontextmanager
    async def lending(self, name: str) -> AsyncIterator[SnapshotInfo]:
        """Keep a snapshot readable for another process, which reads the index itself, as long as the context lasts."""
        serial = self._snapshots.serial_of(name)
        if serial is None:
            raise UsageError(f"there is no snapshot {name!r}; `backupfs snapshot list` shows them")
        try:
            with self._snapshots.reading(serial):
                await self._settle()
                yield self._snapshots.info(serial)
        finally:
            self.upkeep.wake()

    def deleted_snapshots(self) -> list[SnapshotInfo]:
        """Those that are marked deleted or being purged, oldest first."""
        return self._snapshots.deleted()

    def changes_since_snapshot(self) -> int:
        """How much has changed since the last snapshot; 0: nothing."""
        unrecorded = self._inodes.changed_count + len(self._data.unstored())
        return self._volume.catalog.changed_in_epoch + unrecorded

    def policy(self) -> bytes:
        """What `set_policy` was given last; empty when there is none."""
        return self._volume.catalog.get(Table.META, records.META_POLICY) or b""

    async def set_policy(self, data: bytes) -> None:
        """Keep these bytes in the repository, or none when they are empty. Durable when this returns."""
        self._volume.check_writable()
        if len(data) > limits.POLICY_BYTES_MAX:
            raise UsageError(f"a policy has at most {limits.POLICY_BYTES_MAX} bytes, not {len(data)}")
        self._volume.catalog.put(Table.META, records.META_POLICY, data or None)
        await self._committer.commit()

    def activity(self) -> Activity:
        """What has changed since the last snapshot, also before the repository was opened."""
        volume = self._volume
        return Activity(self.changes_since_snapshot(), volume.counters.written_bytes, volume.changed_at_ns, volume.catalog.epoch, volume.changes)

    async def check(self, read_data: bool, progress: Progress) -> AsyncGenerator[Finding]:
        """Check the repository from what the store holds, up to now, while it goes on being used. The findings as they are made."""
        volume = self._volume
        await self._settle()
        upto = None if volume.read_only else self._committer.settled
        volume.held_packs += 1
        try:
            await self._checkpointer.not_cutting()
            scratch = scratch_directory(volume.state)
            checker = await volume.seams.offload.disk(lambda: Checker(volume.root, volume.keys, volume.seams, scratch, read_data, progress, upto))
            async with aclosing(check(checker)) as findings:
                async for finding in findings:
                    yield finding
        finally:
            volume.held_packs -= 1
            self._committer.remove_held_packs()

    async def make_checkpoint(self) -> None:
        """Make a checkpoint of everything up to now, and cut the journal behind the one before, whether or not that is due."""
        self._volume.check_writable()
        await self._checkpointer.make()

    async def usage(self) -> Usage:
        """What the repository takes on its disk, as that has it now."""
        volume = self._volume
        return await volume.seams.offload.disk(measure, volume.root, volume.store, volume.seams)

    def stats(self) -> Stats:
        """How much there is."""
        volume = self._volume
        packs = [records.decode_pack(value) for _, value in volume.catalog.rows(Table.PACKS)]
        position = self._committer.durable
        return Stats(
            snapshots=self._snapshots.shown_count,
            packs=len(packs),
            stored_bytes=sum(pack.live_bytes for pack in packs),
            free_bytes=volume.space.free_bytes,
            total_bytes=volume.space.total_bytes,
            journal_segment=position.segment,
            journal_bytes=position.segment_bytes,
            batches=position.batch,
            index_bytes=volume.index.data_bytes(),
            inodes_made=volume.counters.ino,
            blobs_made=volume.counters.blob,
        )

    def status(self) -> EngineStatus:
        """What is going on."""
        volume = self._volume
        return EngineStatus(
            epoch=volume.catalog.epoch,
            dirty_bytes=self._data.dirty_bytes,
            open_files=len(self._handles),
            uncommitted_records=volume.catalog.active.records + self._inodes.changed_count,
            layers_not_applied=volume.catalog.frozen_layers,
            changes_since_snapshot=self.changes_since_snapshot(),
            snapshots=self._snapshots.shown_count,
            purging=len(self._snapshots.deleted()),
            orphans=len(self._names.orphans),
            upkeep=self.upkeep.status(),
            journal_since_checkpoint_bytes=self._checkpointer.journal_bytes,
            space_short=self._is_short(),
            read_only=volume.read_only or volume.failure is not None,
            failure="" if volume.failure is None else str(volume.failure),
            errors=list(volume.errors),
        )

    # -- inside, admission --

    async def _admit(self) -> None:
        """Wait until a change may be made. The caller makes it before it awaits again."""
        if self._is_full():
            await self._committer.room()
        while self._parked is not None:
            await self._parked.wait()
        if self._rests:
            # Since it was asked first.
            self._stir()

    def _must_wait(self, ino: int) -> bool:
        """Whether who changes this inode is to `_admit` first: most need not, and are spared a coroutine. Raises when it may not be changed."""
        if ino > _INO_MASK or ino <= LATEST_INO:
            self._must_be_live(ino)
        return self._is_full() or self._parked is not None

    def _is_full(self) -> bool:
        """Whether the layer that takes changes has as many as a batch, or too many batches wait. Raises when none may be made any more. Asked before
        each change: it ends a rest.
        """
        if self._rests:
            self._stir()
        volume = self._volume
        if volume.failure is not None or volume.read_only:
            volume.check_writable()
        catalog = volume.catalog
        layer = catalog.active
        return (
            layer.records + self._inodes.changed_count > limits.BATCH_RECORDS
            or layer.value_bytes > limits.BATCH_BYTES
            or catalog.frozen_layers > limits.LAYERS_MAX
        )

    async def _admit_restore(self) -> None:
        await self._admit()
        self._must_have_room()

    def _must_have_room(self) -> None:
        if self._is_short():
            raise FileSystemError(errno.ENOSPC)

    def _must_be_live(self, ino: int) -> None:
        if _is_past(ino):
            raise FileSystemError(errno.EROFS)

    def _is_short(self) -> bool:
        return self._volume.space.is_short()

    async def _store_parked(self) -> bool:
        """Hold changes up for a moment and store the rest. True when nothing is left: changes are then still held up."""
        parked = self._parked = trio.Event()
        trouble: BackupfsError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._unpark_later, parked)
                try:
                    await self._data.flush_all()
                except BackupfsError as error:
                    trouble = again(error)
                nursery.cancel_scope.cancel()
        except BaseException:
            self._unpark()
            raise
        stored = trouble is None and self._parked is parked and not self._data.unstored()
        if not stored:
            self._unpark()
        if trouble is not None:
            raise again(trouble)
        return stored

    async def _unpark_later(self, parked: trio.Event) -> None:
        await trio.sleep(limits.SNAPSHOT_PARK_S)
        if self._parked is parked:
            self._unpark()

    def _unpark(self) -> None:
        if self._parked is not None:
            self._parked.set()
            self._parked = None

    # -- inside, answers --

    def _entered(self, state: InodeState) -> Attributes:
        self._inodes.lookups.add((state.ino,))
        return self._attributes(state)

    def _any_attributes(self, ino: int) -> Attributes:
        if is_virtual(ino):
            return self.snapdirs.attributes(ino)
        if ino > _INO_MASK:
            return self._past_attributes(ino >> INO_BITS, ino & _INO_MASK, self._record(ino))
        return self._attributes(self._names.inode(ino))

    def _attributes(self, state: InodeState) -> Attributes:
        shown = state.shown
        if shown is not None:
            return shown
        r, unstored = state.record, state.runs.total_bytes + state.in_flight.total_bytes
        size = _DIRECTORY_BYTES if stat.S_ISDIR(r.mode) else r.size
        blocks = -(-(_DIRECTORY_BYTES if stat.S_ISDIR(r.mode) else r.allocated + unstored) // _BLOCK)
        shown = Attributes(state.ino, r.mode, r.nlink, r.uid, r.gid, r.rdev, size, r.atime_ns, r.mtime_ns, r.ctime_ns, blocks)
        state.shown = None if unstored else shown
        return shown

    def _past_attributes(self, serial: int, ino: int, r: Inode) -> Attributes:
        top = ino == ROOT_INO
        number = serial << INO_BITS | ino
        disarmed = self.disarms_past
        return Attributes(
            number,
            r.mode & ~_SET_IDS if disarmed.set_id and not stat.S_ISDIR(r.mode) else r.mode,
            r.nlink,
            r.uid,
            r.gid,
            0 if disarmed.devices else r.rdev,
            _DIRECTORY_BYTES if stat.S_ISDIR(r.mode) else r.size,
            r.atime_ns,
            r.mtime_ns,
            r.ctime_ns,
            -(-(_DIRECTORY_BYTES if stat.S_ISDIR(r.mode) else r.allocated) // _BLOCK),
            not top,
        )

    def _attributes_then(self, serial: int, ino: int) -> Attributes:
        record = self._view(serial).inode(ino)
        if record is None:
            raise FileSystemError(errno.ESTALE)
        return self._past_attributes(serial, ino, record)

    def _dots(self, ino: int, start: int) -> list[DirectoryEntry]:
        """The entries of a directory that lead to itself and upwards, as far as they lie behind a cookie."""
        if start >= _COOKIE_PARENT:
            return []
        both = ((b".", ino, _COOKIE_SELF), (b"..", self._parent(ino), _COOKIE_PARENT))
        return [DirectoryEntry(name, self._any_attributes(leads_to), cookie) for name, leads_to, cookie in both if cookie > start]

    def _parent(self, ino: int) -> int:
        """The directory above a directory; itself when it has none."""
        if is_virtual(ino):
            return self.snapdirs.parent(ino)
        serial, inner = ino >> INO_BITS, ino & _INO_MASK
        if inner == ROOT_INO:
            return SNAPSHOTS_INO if serial else ROOT_INO
        links = self._record(ino).links
        return serial << INO_BITS | links[0][0] if links else ino

    def _view(self, serial: int) -> View:
        epoch = self._snapshots.epoch_of(serial) if serial else records.EPOCH_MAX
        return View(self._volume.catalog, self._volume.keys, epoch)

    def _record(self, ino: int) -> Inode:
        serial, inner = ino >> INO_BITS, ino & _INO_MASK
        if not serial:
            return self._names.inode(inner).record
        record = self._view(serial).inode(inner)
        if record is None:
            raise FileSystemError(errno.ENOENT)
        return record

    def _xattrs(self, ino: int) -> dict[bytes, bytes]:
        if is_virtual(ino):
            return {}
        serial, inner = ino >> INO_BITS, ino & _INO_MASK
        return self._view(serial).xattrs(inner) if serial else self._inodes.xattrs(self._names.inode(inner))

    # -- inside, changes --

    def _open_live(self, state: InodeState, flags: int, who: Caller) -> Opened:
        writes = bool(flags & _WRITE_FLAGS)
        handle = _FileHandle(state, 0, state.record, state.ino, writes, internal=who.pid in self.own_threads, errors_seen=state.error_count)
        direct = writes and self._is_short()
        if direct:
            handle.direct = True
            handle.by_root = who.uid == 0
            handle.groups = {who.gid} | (self.groups_of(who.pid) if posix.is_group_mark(state.record.mode) else frozenset())
        state.handles += 1
        state.writers += writes
        return Opened(self._new_handle(handle), direct_io=direct)

    def _new_handle(self, handle: _FileHandle) -> int:
        fh = self._next_fh
        self._next_fh += 1
        self._handles[fh] = handle
        return fh

    def _maybe_reap(self, state: InodeState) -> None:
        if state.ino not in self._names.orphans or state.handles or state.ino in self._inodes.lookups or state.dead:
            return
        if self._parked is None:
            self.upkeep.reap(state)
        else:
            self.upkeep.reap_later(state)

    def _set_acl(self, state: InodeState, xattrs: dict[bytes, bytes], name: bytes, value: bytes, who: Caller) -> None:
        try:
            permissions, is_minimal = acl.summary(value)
        except ValueError:
            raise FileSystemError(errno.EINVAL) from None
        if name == acl.DEFAULT:
            if not stat.S_ISDIR(state.record.mode):
                raise FileSystemError(errno.EACCES)
            xattrs[name] = value
            return
        mode = state.record.mode & ~0o777 | permissions
        state.record.mode = mode if not mode & stat.S_ISGID or self._is_member(state.record.gid, who) else mode & ~stat.S_ISGID
        xattrs.pop(name, None)
        if not is_minimal:
            xattrs[name] = value

    def _set_xattrs(self, state: InodeState, xattrs: dict[bytes, bytes], mode_before: int) -> None:
        differs = xattrs != self._inodes.xattrs(state)
        if differs:  # `cp -a` gives each file the access list that its mode is anyway
            self._inodes.set_xattrs(state, xattrs)
        if not differs and state.record.mode == mode_before:
            return  # no ctime changes then, as on ext4; that of a regular file the kernel changes all the same
        state.record.ctime_ns = self._volume.now_ns()
        self._inodes.touch(state)

    def _is_member(self, gid: int, who: Caller) -> bool:
        """Whether a caller may give set-gid of a group: root and its members. Takes a look at the caller's process, so it is not asked in vain."""
        return who.uid == 0 or who.gid == gid or gid in self.groups_of(who.pid)

    def _keeps_mark(self, record: Inode, who: Caller) -> bool:
        return posix.is_group_mark(record.mode) and self._is_member(record.gid, who)

    def _drop_set_id(self, state: InodeState, who: Caller) -> None:
        """Somebody who is not root changes the content."""
        mode = posix.mode_after_write(state.record.mode, False, self._keeps_mark(state.record, who))
        if mode != state.record.mode:
            state.record.mode = mode
            self._inodes.touch(state)

    def _drop_capability(self, state: InodeState) -> None:
        xattrs = self._inodes.xattrs(state)
        if b"security.capability" in xattrs:
            self._inodes.set_xattrs(state, {n: v for n, v in xattrs.items() if n != b"security.capability"})

    def _tell_errors(self, handle: _FileHandle, state: InodeState) -> None:
        if handle.errors_seen != state.error_count:
            handle.errors_seen = state.error_count
            raise FileSystemError(state.error)

    def _report_damage(self, handle: _FileHandle, epoch: int, offset: int, error: DamageError) -> None:
        if handle.state is not None:
            path = self._names.path_of(handle.ino)
        else:
            path = View(self._volume.catalog, self._volume.keys, epoch).path_of(handle.ino)
        shown = "(no name)" if path is None else os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
        # The log lies in the clear: what is inside the mount is not named there, only to whoever asks the process.
        log.error("reading inode %d at %d: %s; `backupfs status` names the file", handle.ino, offset, error)
        self._volume.errors.append(f"damaged: {shown}: {error}")


async def _end(tasks: Sequence[_Task]) -> None:
    """Cancel these tasks; what they had begun and must not leave half done is done when this returns."""
    for task in tasks:
        task.scope.cancel()
    await _ended(tasks)


async def _ended(tasks: Sequence[_Task]) -> None:
    for task in tasks:
        await task.ended.wait()


def _cookie(prf: bytes) -> int:
    """Where a listing goes on behind the name with this PRF."""
    cookie = records.number_of(prf) >> 1
    return cookie if cookie > COOKIE_FIRST else COOKIE_FIRST  # noqa: FURB136 - `max` takes three times as long, and a listing asks for each entry


def _must_be_attribute(name: bytes) -> None:
    if posix.is_bare_namespace(name):
        raise FileSystemError(errno.EINVAL)
    if not posix.is_attribute_name(name):
        raise FileSystemError(errno.EOPNOTSUPP)


def _is_past(ino: int) -> bool:
    return bool(ino >> INO_BITS) or is_virtual(ino)


def _must_be_on_one_side(one: int, other: int) -> None:
    """Between the present and a snapshot nothing is moved or linked: to programs they are two file systems, and `mv` knows what to do."""
    if _is_past(one) != _is_past(other):
        raise FileSystemError(errno.EXDEV)
