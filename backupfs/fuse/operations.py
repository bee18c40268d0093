"""Kernel requests become engine calls, errors become errno. Nothing is decided here.

Every handler is guarded once, by `guarded` at the class: whatever is not a `FUSEError` becomes one, because anything else that
leaves a handler ends the mount for everybody. The handlers stand in for an empty file system: each fills one answer and awaits
one engine call.
"""

import errno
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from functools import wraps
from typing import Final, Protocol, TypeVar, TypeVarTuple, cast

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, SetattrFields, StatvfsData

from backupfs.engine.attributes import AttributeChanges, Attributes, Caller, DirectoryEntry, Opened, SpaceFacts
from backupfs.errors import BackupfsError, FileSystemError

FOREVER_S: Final = 1e9
"""Nobody but this mount changes the tree, so what the kernel was told stays true."""
_PERMISSIONS: Final = 0o7777
log = logging.getLogger(__name__)
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Class = TypeVar("Class", bound=type)


class FileSystem(Protocol):
    """The part of the engine that requests need. Failures are `FileSystemError` (an ordinary answer) or `BackupfsError`."""

    umask_applied: bool
    """Set by the mount before the first request: whether modes arrive with the caller's umask taken off."""

    groups_of: Callable[[int], AbstractSet[int]]
    """Set by the mount before the first request: the supplementary groups of a process that waits for an answer."""

    def room_for_pages(self, wanted_bytes: int) -> int:
        """The kernel may hold so many bytes that were written and not brought yet. Gives for how many room is kept."""
        ...

    def negative_cacheable(self, parent: int, name: bytes) -> bool:
        """Whether the kernel may remember for ever that this name is missing."""
        ...

    def remember(self, inos: Sequence[int]) -> None:
        """The kernel was shown these inodes in a listing and counts one lookup of each."""
        ...

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """The kernel takes so many lookups of each of these inodes back."""
        ...

    async def lookup(self, parent: int, name: bytes) -> Attributes: ...
    async def getattr(self, ino: int) -> Attributes: ...
    async def setattr(self, ino: int, changes: AttributeChanges, fh: int | None, who: Caller) -> Attributes: ...
    async def readlink(self, ino: int) -> bytes: ...
    async def create(self, parent: int, name: bytes, mode: int, flags: int, who: Caller) -> tuple[Opened, Attributes]: ...
    async def mkdir(self, parent: int, name: bytes, mode: int, who: Caller) -> Attributes: ...
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, who: Caller) -> Attributes: ...
    async def symlink(self, parent: int, name: bytes, target: bytes, who: Caller) -> Attributes: ...
    async def link(self, ino: int, parent: int, name: bytes, who: Caller) -> Attributes: ...
    async def unlink(self, parent: int, name: bytes, who: Caller) -> None: ...
    async def rmdir(self, parent: int, name: bytes, who: Caller) -> None: ...
    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller) -> None: ...
    async def open(self, ino: int, flags: int, who: Caller) -> Opened: ...
    async def read(self, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview: ...
    async def write(self, fh: int, offset: int, data: bytes) -> int: ...
    async def flush(self, fh: int) -> None: ...
    async def release(self, fh: int) -> None: ...
    async def fsync(self, fh: int, datasync: bool) -> None: ...
    async def opendir(self, ino: int) -> int: ...
    async def readdir(self, fh: int, start_cookie: int) -> Sequence[DirectoryEntry]: ...
    async def releasedir(self, fh: int) -> None: ...
    async def fsyncdir(self, fh: int, datasync: bool) -> None: ...
    async def statfs(self) -> SpaceFacts: ...
    async def getxattr(self, ino: int, name: bytes) -> bytes: ...
    async def setxattr(self, ino: int, name: bytes, value: bytes, who: Caller) -> None: ...
    async def listxattr(self, ino: int, who: Caller) -> Sequence[bytes]: ...
    async def removexattr(self, ino: int, name: bytes, who: Caller) -> None: ...


def answering(handler: Callable[[*Ts], Awaitable[T]]) -> Callable[[*Ts], Awaitable[T]]:
    """The handler, with every error turned into the errno that the kernel is answered with. Cancellation passes."""

    @wraps(handler)
    async def guarded(*args: *Ts) -> T:
        try:
            return await handler(*args)
        except FileSystemError as answer:
            raise FUSEError(answer.errno) from None
        except FUSEError:
            raise
        except BackupfsError as trouble:
            log.error("%s: %s", handler.__name__, trouble)
            raise FUSEError(trouble.errno) from None
        except Exception:
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded


def silent(handler: Callable[[*Ts], Awaitable[None]]) -> Callable[[*Ts], Awaitable[None]]:
    """The handler of a request that has no answer: its errors go to the log only."""

    @wraps(handler)
    async def guarded(*args: *Ts) -> None:
        try:
            await handler(*args)
        except Exception:
            log.exception("%s failed", handler.__name__)

    return guarded


_UNCOUNTED: Final = (b".", b"..")
"""The kernel counts no lookup for these."""
_UNANSWERED: Final = frozenset({"forget"})


def every_handler_guarded(handlers: Class) -> Class:
    """Guard every coroutine of the class, so that none can be forgotten."""
    for name, member in list(vars(handlers).items()):
        if inspect.iscoroutinefunction(member):
            setattr(handlers, name, silent(member) if name in _UNANSWERED else answering(member))
    return handlers


def entry(attributes: Attributes) -> EntryAttributes:
    """Attributes as the kernel takes them, with the time for which it may keep them. Made once for each."""
    made = attributes.answer
    if made is not None:
        return cast(EntryAttributes, made)
    answer = EntryAttributes()  # one link, no device number, generation 0 (inode numbers do not come back)
    answer.st_ino = attributes.ino
    answer.st_mode = attributes.mode
    answer.st_nlink = attributes.nlink
    answer.st_uid = attributes.uid
    answer.st_gid = attributes.gid
    answer.st_size = attributes.size
    answer.st_blocks = attributes.blocks
    answer.st_atime_ns = attributes.atime_ns
    answer.st_mtime_ns = attributes.mtime_ns
    answer.st_ctime_ns = attributes.ctime_ns
    if attributes.rdev:
        answer.st_rdev = attributes.rdev
    answer.entry_timeout = answer.attr_timeout = FOREVER_S if attributes.cacheable else 0
    attributes.answer = answer
    return answer


def _missing() -> EntryAttributes:
    """The answer "there is no such name, and you may remember that"."""
    answer = EntryAttributes()
    answer.st_ino = 0
    answer.entry_timeout = FOREVER_S
    return answer


@every_handler_guarded
class Operations(pyfuse3.Operations):
    """What pyfuse3 calls. `access` and `poll` stay unsupported: the kernel then decides by mode and ACL, and by its own default."""

    enable_writeback_cache = True
    enable_acl = True  # the kernel reads ACLs with getxattr, keeps them, and checks permissions against them
    supports_dot_lookup = True  # file handles (NFS, open_by_handle_at) outlive the kernel's memory of an inode

    def __init__(self, fs: FileSystem) -> None:
        super().__init__()
        self._fs = fs
        self._missing = _missing()

    # --- names ----------------------------------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return entry(await self._fs.lookup(parent_inode, name))
        except FileSystemError as answer:
            if answer.errno == errno.ENOENT and self._fs.negative_cacheable(parent_inode, name):
                return self._missing
            raise

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self._fs.forget(inode_list)

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return entry(await self._fs.mkdir(parent_inode, name, mode, ctx))

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return entry(await self._fs.mknod(parent_inode, name, mode, rdev, ctx))

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return entry(await self._fs.symlink(parent_inode, name, target, ctx))

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return entry(await self._fs.link(inode, new_parent_inode, new_name, ctx))

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.unlink(parent_inode, name, ctx)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.rmdir(parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._fs.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    # --- inodes ---------------------------------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return entry(await self._fs.getattr(inode))

    async def setattr(self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext) -> EntryAttributes:
        changes = AttributeChanges()
        if fields.update_mode:
            changes.mode = attr.st_mode & _PERMISSIONS
        if fields.update_uid:
            changes.uid = attr.st_uid
        if fields.update_gid:
            changes.gid = attr.st_gid
        if fields.update_size:
            changes.size = attr.st_size
        if fields.update_atime:
            changes.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            changes.mtime_ns = attr.st_mtime_ns
        if fields.update_ctime:
            changes.ctime_ns = attr.st_ctime_ns
        return entry(await self._fs.setattr(inode, changes, fh, ctx))

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._fs.readlink(inode)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._fs.getxattr(inode, name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._fs.setxattr(inode, name, value, ctx)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return await self._fs.listxattr(inode, ctx)

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._fs.removexattr(inode, name, ctx)

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        facts = await self._fs.statfs()
        answer = StatvfsData()
        answer.f_bsize = answer.f_frsize = facts.block_bytes
        answer.f_blocks = facts.blocks
        answer.f_bfree = facts.blocks_free
        answer.f_bavail = facts.blocks_available
        answer.f_files = facts.files
        answer.f_ffree = answer.f_favail = facts.files_free
        answer.f_namemax = facts.name_max
        return answer

    # --- files ----------------------------------------------------------------------------------------------------

    async def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        opened, attributes = await self._fs.create(parent_inode, name, mode, flags, ctx)
        return FileInfo(opened.fh, opened.direct_io, opened.keep_cache), entry(attributes)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        opened = await self._fs.open(inode, flags, ctx)
        return FileInfo(opened.fh, opened.direct_io, opened.keep_cache)

    async def read(self, fh: int, off: int, size: int) -> bytes | bytearray | memoryview:  # type: ignore[override]  # any buffer is taken
        return await self._fs.read(fh, off, size)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._fs.write(fh, off, buf)

    async def flush(self, fh: int) -> None:
        await self._fs.flush(fh)

    async def release(self, fh: int) -> None:
        await self._fs.release(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.fsync(fh, datasync)

    # --- directories ----------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return await self._fs.opendir(inode)

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        # one run a request; no await between an entry's acceptance and its count
        accept, taken = pyfuse3.readdir_reply, []
        for item in await self._fs.readdir(fh, start_id):
            name, attributes = item.name, item.attributes
            if not accept(token, name, attributes.answer or entry(attributes), item.next_cookie):
                break
            if name not in _UNCOUNTED:
                taken.append(attributes.ino)
        self._fs.remember(taken)

    async def releasedir(self, fh: int) -> None:
        await self._fs.releasedir(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.fsyncdir(fh, datasync)
