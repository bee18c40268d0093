#!/usr/bin/env python3
"""The empty file system: one on pyfuse3 that keeps names in dictionaries and throws data away.

    scripts/emptyfs.py MOUNTPOINT [--no-xattr]

What a request costs here is what the kernel, libfuse, pyfuse3 and trio cost; whatever a real file system adds is its
own. Writeback caching is on, attributes and entries never time out, reads return zeros, `getxattr` answers ENODATA
(with `--no-xattr` ENOSYS, after which the kernel stops asking: that is faster, and not what a file system with xattrs
can do). Unmount with `fusermount3 -u`.
"""

# ruff: noqa: ARG002, D102 - pyfuse3 fixes the signatures of its handlers and documents them

import errno
import stat
import sys
import time
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

FOREVER_S: Final = 1e6
ZEROS: Final = bytes(1 << 20)


class Node:
    """An inode: attributes, and the names below it if it is a directory."""

    __slots__ = ("children", "gid", "ino", "mode", "rdev", "size", "target", "time_ns", "uid")

    def __init__(self, ino: int, mode: int, ctx: RequestContext | None = None) -> None:
        self.ino, self.mode, self.size, self.rdev, self.target = ino, mode, 0, 0, b""
        self.uid, self.gid = (ctx.uid, ctx.gid) if ctx else (0, 0)
        self.children: dict[bytes, int] = {}
        self.time_ns = time.time_ns()


class EmptyFs(pyfuse3.Operations):
    """Names in dictionaries, data nowhere."""

    enable_writeback_cache = True
    supports_dot_lookup = False

    def __init__(self, xattr_errno: int) -> None:
        super().__init__()
        self.xattr_errno = xattr_errno
        self.nodes = {1: Node(1, stat.S_IFDIR | 0o755)}
        self.next_ino = 2

    def attributes(self, node: Node) -> EntryAttributes:
        """What the kernel is told of a node, for good."""
        e = EntryAttributes()
        e.st_ino, e.st_mode, e.st_size, e.st_rdev = node.ino, node.mode, node.size, node.rdev
        e.st_uid, e.st_gid, e.st_nlink = node.uid, node.gid, 1
        e.st_atime_ns = e.st_mtime_ns = e.st_ctime_ns = node.time_ns
        e.entry_timeout = e.attr_timeout = FOREVER_S
        return e

    def add(self, parent: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        """A new node under that name."""
        node = Node(self.next_ino, mode, ctx)
        self.next_ino += 1
        self.nodes[node.ino] = node
        self.nodes[parent].children[name] = node.ino
        return node

    async def getattr(self, inode: InodeT, ctx: RequestContext | None = None) -> EntryAttributes:
        return self.attributes(self.nodes[inode])

    async def lookup(self, parent: InodeT, name: FileNameT, ctx: RequestContext | None = None) -> EntryAttributes:
        ino = self.nodes[parent].children.get(name)
        if ino is None:
            raise FUSEError(errno.ENOENT)
        return self.attributes(self.nodes[ino])

    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: SetattrFields, fh: FileHandleT | None, ctx: RequestContext
    ) -> EntryAttributes:
        node = self.nodes[inode]
        if fields.update_size:
            node.size = attr.st_size
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_mtime:
            node.time_ns = attr.st_mtime_ns
        return self.attributes(node)

    async def mkdir(self, parent: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(self.add(parent, name, stat.S_IFDIR | mode, ctx))

    async def mknod(self, parent: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext) -> EntryAttributes:
        node = self.add(parent, name, mode, ctx)
        node.rdev = rdev
        return self.attributes(node)

    async def symlink(self, parent: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext) -> EntryAttributes:
        node = self.add(parent, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        return self.attributes(node)

    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(self.nodes[inode].target)

    async def create(self, parent: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: RequestContext) -> tuple[FileInfo, EntryAttributes]:
        node = self.add(parent, name, stat.S_IFREG | stat.S_IMODE(mode), ctx)
        return FileInfo(fh=FileHandleT(node.ino), keep_cache=True), self.attributes(node)

    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return ZEROS[: max(0, min(size, self.nodes[fh].size - off))]

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        node = self.nodes[fh]
        node.size = max(node.size, off + len(buf))
        return len(buf)

    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        return FileHandleT(inode)

    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        entries = list(self.nodes[fh].children.items())
        for cookie, (name, ino) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, FileNameT(name), self.attributes(self.nodes[ino]), cookie):
                break

    async def unlink(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        del self.nodes[parent].children[name]

    async def rmdir(self, parent: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        del self.nodes[parent].children[name]

    async def rename(
        self,
        parent: InodeT,
        name: FileNameT,
        new_parent: InodeT,
        new_name: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        self.nodes[new_parent].children[new_name] = self.nodes[parent].children.pop(name)

    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        raise FUSEError(self.xattr_errno)

    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        return []

    async def flush(self, fh: FileHandleT) -> None:
        pass

    async def release(self, fh: FileHandleT) -> None:
        pass

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        pass

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        s = StatvfsData()
        s.f_bsize = s.f_frsize = 4096
        s.f_blocks = s.f_bfree = s.f_bavail = 1 << 30
        s.f_files = s.f_ffree = s.f_favail = 1 << 30
        s.f_namemax = 255
        return s


def main() -> None:
    options = set(pyfuse3.default_options) | {"fsname=emptyfs"}
    xattr_errno = errno.ENOSYS if "--no-xattr" in sys.argv else pyfuse3.ENOATTR
    pyfuse3.init(EmptyFs(xattr_errno), sys.argv[1], options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
