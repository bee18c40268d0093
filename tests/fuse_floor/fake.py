"""A file system in dictionaries behind the engine's interface: enough of POSIX to send every kind of request through a mount."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from msgspec import structs

from backupfs.engine.attributes import AttributeChanges, Attributes, Caller, DirectoryEntry, Opened, SpaceFacts
from backupfs.errors import FileSystemError

FACTS = SpaceFacts(block_bytes=4096, blocks=1000, blocks_free=900, blocks_available=800, files=700, files_free=600, name_max=255)
RUN = 7
"""Entries in one run of a listing: few, so that runs meet the edges of requests."""
UNCACHED = b"uncached"
"""Names that begin like this are never kept by the kernel."""
_SET_ID = stat.S_ISUID | stat.S_ISGID


@dataclass
class Node:
    attributes: Attributes
    data: bytearray = field(default_factory=bytearray)
    children: dict[bytes, int] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    target: bytes = b""
    lookups: int = 0


class FakeFileSystem:
    """`requests` counts engine calls by name, `modes` keeps what create and its like were given, `fail_with` makes a call raise instead."""

    def __init__(self, uid: int = 0, gid: int = 0) -> None:
        self.umask_applied = True
        self.groups_of: Callable[[int], AbstractSet[int]] = lambda _: frozenset()
        self.requests: Counter[str] = Counter()
        self.room_bytes = 200 << 20
        """For so many of the kernel's pages there is room."""
        self.kept_bytes = 0
        self.modes: dict[bytes, tuple[int, int]] = {}
        self.fail_with: dict[str, Exception] = {}
        self.nodes: dict[int, Node] = {}
        self.handles: dict[int, int] = {}
        self._next_ino = 1
        self._next_fh = 1
        self._now_ns = 1_700_000_000_123_456_789
        self._add(stat.S_IFDIR | 0o755, uid, gid)

    # --- names ----------------------------------------------------------------------------------------------------

    def negative_cacheable(self, parent: int, name: bytes) -> bool:
        return not name.startswith(UNCACHED)

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        self._count("lookup")
        if name == b".":
            known = self.nodes.get(parent)
            if known is None or not known.attributes.nlink:
                raise FileSystemError(errno.ESTALE)
            return self._shown(parent)
        if name == b"..":
            return self._shown(next((ino for ino, node in self.nodes.items() if parent in node.children.values()), 1))
        ino = self._directory(parent).get(name)
        if ino is None:
            raise FileSystemError(errno.ENOENT)
        return self._shown(ino)

    def room_for_pages(self, wanted_bytes: int) -> int:
        self.kept_bytes = min(wanted_bytes, self.room_bytes)
        return self.kept_bytes

    def remember(self, inos: Sequence[int]) -> None:
        for ino in inos:
            self.requests["remember"] += 1
            self.nodes[ino].lookups += 1

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        for ino, count in forgotten:
            self._count("forget")
            node = self.nodes[ino]
            node.lookups -= count
            assert node.lookups >= 0
            self._drop_if_unused(ino)

    async def mkdir(self, parent: int, name: bytes, mode: int, who: Caller) -> Attributes:
        self._count("mkdir")
        return self._shown(self._make(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), who))

    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, who: Caller) -> Attributes:
        self._count("mknod")
        ino = self._make(parent, name, mode, who)
        self.nodes[ino].attributes.rdev = rdev
        return self._shown(ino)

    async def symlink(self, parent: int, name: bytes, target: bytes, who: Caller) -> Attributes:
        self._count("symlink")
        ino = self._make(parent, name, stat.S_IFLNK | 0o777, who)
        self.nodes[ino].target = target
        self.nodes[ino].attributes.size = len(target)
        return self._shown(ino)

    async def link(self, ino: int, parent: int, name: bytes, who: Caller) -> Attributes:
        self._count("link")
        self._directory(parent)[name] = ino
        self.nodes[ino].attributes.nlink += 1
        return self._shown(ino)

    async def create(self, parent: int, name: bytes, mode: int, flags: int, who: Caller) -> tuple[Opened, Attributes]:
        self._count("create")
        ino = self._make(parent, name, stat.S_IFREG | stat.S_IMODE(mode), who)
        return Opened(self._opened(ino)), self._shown(ino)

    async def unlink(self, parent: int, name: bytes, who: Caller) -> None:
        self._count("unlink")
        self._remove(parent, name)

    async def rmdir(self, parent: int, name: bytes, who: Caller) -> None:
        self._count("rmdir")
        if self._directory(self._directory(parent)[name]):
            raise FileSystemError(errno.ENOTEMPTY)
        self._remove(parent, name)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, who: Caller) -> None:
        self._count("rename")
        self._count(f"rename {flags}")
        source, target = self._directory(parent), self._directory(new_parent)
        if flags == 2:
            source[name], target[new_name] = target[new_name], source[name]
            return
        if new_name in target:
            if flags == 1:
                raise FileSystemError(errno.EEXIST)
            self._remove(new_parent, new_name)
        target[new_name] = source.pop(name)

    # --- inodes ---------------------------------------------------------------------------------------------------

    async def getattr(self, ino: int) -> Attributes:
        self._count("getattr")
        if ino not in self.nodes:
            raise FileSystemError(errno.ENOENT)
        return self._copy(ino)

    async def setattr(self, ino: int, changes: AttributeChanges, fh: int | None, who: Caller) -> Attributes:
        self._count("setattr")
        attributes = self.nodes[ino].attributes
        if changes.mode is not None:
            attributes.mode = stat.S_IFMT(attributes.mode) | changes.mode
        if changes.size is not None:
            self._resize(ino, changes.size)
        for name in ("uid", "gid", "atime_ns", "mtime_ns", "ctime_ns"):
            value = getattr(changes, name)
            if value is not None:
                setattr(attributes, name, value)
        return self._copy(ino)

    async def readlink(self, ino: int) -> bytes:
        self._count("readlink")
        return self.nodes[ino].target

    async def statfs(self) -> SpaceFacts:
        self._count("statfs")
        return FACTS

    async def getxattr(self, ino: int, name: bytes) -> bytes:
        self._count("getxattr")
        value = self.nodes[ino].xattrs.get(name)
        if value is None:
            raise FileSystemError(errno.ENODATA)
        return value

    async def setxattr(self, ino: int, name: bytes, value: bytes, who: Caller) -> None:
        self._count("setxattr")
        self.nodes[ino].xattrs[name] = value

    async def listxattr(self, ino: int, who: Caller) -> list[bytes]:
        self._count("listxattr")
        return list(self.nodes[ino].xattrs)

    async def removexattr(self, ino: int, name: bytes, who: Caller) -> None:
        self._count("removexattr")
        if self.nodes[ino].xattrs.pop(name, None) is None:
            raise FileSystemError(errno.ENODATA)

    # --- files ----------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, who: Caller) -> Opened:
        self._count("open")
        if flags & os.O_TRUNC:
            self._resize(ino, 0)
        return Opened(self._opened(ino))

    async def read(self, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        self._count("read")
        return memoryview(bytes(self.nodes[self.handles[fh]].data[offset : offset + size]))

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        self._count("write")
        ino = self.handles[fh]
        node = self.nodes[ino]
        if len(node.data) < offset + len(data):
            self._resize(ino, offset + len(data))
        node.data[offset : offset + len(data)] = data
        node.attributes.mode &= ~_SET_ID
        return len(data)

    async def flush(self, fh: int) -> None:
        self._count("flush")

    async def release(self, fh: int) -> None:
        self._count("release")
        self._drop_if_unused(self.handles.pop(fh))

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._count("fdatasync" if datasync else "fsync")

    # --- directories ----------------------------------------------------------------------------------------------

    async def opendir(self, ino: int) -> int:
        self._count("opendir")
        return self._opened(ino)

    async def readdir(self, fh: int, start_cookie: int) -> list[DirectoryEntry]:
        self._count("readdir")
        children = sorted(self._directory(self.handles[fh]).items(), key=lambda child: child[1])
        return [DirectoryEntry(name, self._copy(ino), ino) for name, ino in children if ino > start_cookie][:RUN]

    async def releasedir(self, fh: int) -> None:
        self._count("releasedir")
        self._drop_if_unused(self.handles.pop(fh))

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._count("fsyncdir")

    # --- for tests ------------------------------------------------------------------------------------------------

    def node(self, path: bytes) -> Node:
        """The node at a path of names."""
        ino = 1
        for name in path.split(b"/"):
            ino = self.nodes[ino].children[name]
        return self.nodes[ino]

    def _count(self, name: str) -> None:
        self.requests[name] += 1
        if name in self.fail_with:
            raise self.fail_with[name]

    def _add(self, mode: int, uid: int, gid: int) -> int:
        ino, self._next_ino = self._next_ino, self._next_ino + 1
        now = self._now_ns
        self.nodes[ino] = Node(Attributes(ino, mode, 1, uid, gid, 0, 0, now, now, now, 0))
        return ino

    def _make(self, parent: int, name: bytes, mode: int, who: Caller) -> int:
        children = self._directory(parent)
        if name in children:
            raise FileSystemError(errno.EEXIST)
        self.modes[name] = (stat.S_IMODE(mode), who.umask)
        children[name] = ino = self._add(mode if self.umask_applied else mode & ~who.umask, who.uid, who.gid)
        self.nodes[ino].attributes.cacheable = not name.startswith(UNCACHED)
        return ino

    def _directory(self, ino: int) -> dict[bytes, int]:
        node = self.nodes[ino]
        if not stat.S_ISDIR(node.attributes.mode):
            raise FileSystemError(errno.ENOTDIR)
        return node.children

    def _shown(self, ino: int) -> Attributes:
        node = self.nodes[ino]
        node.lookups += 1
        return self._copy(ino)

    def _copy(self, ino: int) -> Attributes:
        """What was handed out does not change."""
        return structs.replace(self.nodes[ino].attributes, answer=None)

    def _opened(self, ino: int) -> int:
        fh, self._next_fh = self._next_fh, self._next_fh + 1
        self.handles[fh] = ino
        return fh

    def _remove(self, parent: int, name: bytes) -> None:
        children = self._directory(parent)
        if name not in children:
            raise FileSystemError(errno.ENOENT)
        ino = children.pop(name)
        self.nodes[ino].attributes.nlink -= 1
        self._drop_if_unused(ino)

    def _drop_if_unused(self, ino: int) -> None:
        node = self.nodes[ino]
        if node.attributes.nlink == 0 and node.lookups == 0 and ino not in self.handles.values():
            del self.nodes[ino]

    def _resize(self, ino: int, size: int) -> None:
        node = self.nodes[ino]
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.attributes.size = size
        node.attributes.blocks = -(-size // 512)
