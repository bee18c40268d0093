"""A file system and a model of it, driven together: every request goes to the engine and, in its own words, to a tree in memory.

What the model expects is compared with what the independent decoder reads from the repository's files. The engine runs
without threads and on a clock that jumps, so between two awaits nothing moves and the files can be read, or copied as a
kill would leave them.
"""

import hashlib
import itertools
import os
import random
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from backupfs import limits
from backupfs.engine.attributes import AttributeChanges, Attributes
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.repository import create_repository, open_filesystem, unlock
from backupfs.stores.files import Handle, SystemFiles
from tests.crash.simulation import KDF, PASSWORD, SeededRandomness, SteppingClock, Who, seams
from tests.decoder.audit import audit_opened
from tests.decoder.decoder import Repository, View
from tests.oracle.manifest import Entry, Manifest, differences

ROOT: Final = 1
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_BLOCK_BYTES: Final = 4096
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class UnsyncedFiles(SystemFiles):
    """Nothing here survives a power cut, and nothing needs to: a killed process leaves the page cache."""

    def sync(self, handle: Handle) -> None:
        """See `Files`."""

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""


@dataclass(slots=True)
class Content:
    """A file's bytes in blocks; a missing block is zeros."""

    size: int = 0
    blocks: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> "Content":
        return Content(self.size, dict(self.blocks))

    def write(self, offset: int, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, inner = divmod(offset + at, _BLOCK_BYTES)
            piece = data[at : at + _BLOCK_BYTES - inner]
            old = self.blocks.get(number, bytes(_BLOCK_BYTES))
            self.blocks[number] = old[:inner] + piece + old[inner + len(piece) :]
            at += len(piece)
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        if size < self.size:
            last, inner = divmod(size, _BLOCK_BYTES)
            self.blocks = {number: block for number, block in self.blocks.items() if number < last + bool(inner)}
            if last in self.blocks:
                self.blocks[last] = self.blocks[last][:inner].ljust(_BLOCK_BYTES, b"\0")
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        first = offset // _BLOCK_BYTES
        blocks = (self.blocks.get(n, bytes(_BLOCK_BYTES)) for n in range(first, -(-end // _BLOCK_BYTES)))
        return b"".join(blocks)[offset - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for offset in range(0, self.size, 1 << 20):
            digest.update(self.read(offset, 1 << 20))
        return digest.hexdigest()


@dataclass(slots=True)
class Node:
    """What an inode is expected to be. `children` of a directory; `links` counts names; `shown` is what stat showed last."""

    ino: int
    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    target: bytes = b""
    links: int = 0
    content: Content = field(default_factory=Content)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, "Node"] = field(default_factory=dict)
    shown: Attributes | None = None

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)


Tree = list[tuple[bytes, Node]]
"""Every path with a copy of what is there; the root, b".", first."""


def walk(root: Node) -> Tree:
    """A picture of the tree that later changes leave alone."""
    copies: dict[int, Node] = {}
    found: Tree = []
    waiting = [(b".", root)]
    while waiting:
        path, node = waiting.pop()
        if node.ino not in copies:
            copies[node.ino] = replace(node, content=node.content.copy(), xattrs=dict(node.xattrs), children={})
        found.append((path, copies[node.ino]))
        prefix = b"" if path == b"." else path + b"/"
        waiting += ((prefix + name, child) for name, child in node.children.items())
    return found


def manifest_of(tree: Tree) -> Manifest:
    """As tests.oracle.manifest would make it."""
    paths: dict[int, list[bytes]] = {}
    for path, node in tree:
        paths.setdefault(node.ino, []).append(path)
    hashes = {node.ino: node.content.sha256() for _, node in tree if node.kind == stat.S_IFREG}
    entries = {}
    for path, node in tree:
        assert node.shown is not None, path
        size = {stat.S_IFDIR: None, stat.S_IFLNK: len(node.target)}.get(node.kind, node.content.size)
        entries[path] = Entry(
            path=path,
            type=_TYPES[node.kind],
            mode=stat.S_IMODE(node.mode),
            uid=node.uid,
            gid=node.gid,
            size=size,
            mtime_ns=node.shown.mtime_ns,
            target=node.target if node.kind == stat.S_IFLNK else None,
            same_file_as=min(paths[node.ino]) if len(paths[node.ino]) > 1 else None,
            xattrs=tuple(sorted(node.xattrs.items())),
            rdev=(os.major(node.rdev), os.minor(node.rdev)) if node.kind in {stat.S_IFCHR, stat.S_IFBLK} else None,
            sha256=hashes.get(node.ino),
        )
    return dict(sorted(entries.items()))


def faults_of(view: View, tree: Tree) -> list[str]:
    """How what the decoder reads differs from what is expected: the manifest, and what a manifest does not show."""
    lines = differences(manifest_of(tree), view.manifest())
    expected = dict(tree)
    for path, number, inode in view.walk():
        node = expected.get(path)
        if node is None or node.shown is None:
            continue
        shown = (node.ino, node.shown.nlink, node.shown.atime_ns, node.shown.ctime_ns)
        found = (number, inode.links, inode.atime_ns, inode.ctime_ns)
        if shown != found:
            lines.append(f"{path!r}: inode, links, atime, ctime {shown} are {found}")
    return lines


def expect_none(faults: list[str]) -> None:
    shown = "\n".join(line[:500] for line in faults[:10])
    assert not faults, f"{len(faults)} faults\n{shown}"


@dataclass(slots=True)
class _Open:
    fh: int
    node: Node


class Twin:
    """A repository in `directory`, and its model. `mounted` gives it a file system; `act` draws requests."""

    def __init__(self, directory: Path, seed: object, *, compression: bool = True) -> None:
        self.root = directory / "repository"
        self._state = directory / "state"
        self._files = UnsyncedFiles()
        self.draw = random.Random(f"twin/{seed}")
        self._seed = seed
        self._mounts = itertools.count()
        self._names = itertools.count()
        self._clock = SteppingClock()
        self.tree = Node(ROOT, stat.S_IFDIR | 0o755)
        self.snapshots: dict[str, Tree] = {}
        self._open: list[_Open] = []
        self.biggest_bytes = 200_000
        self.fs: FileSystem
        create_repository(
            self.root,
            PASSWORD,
            files=self._files,
            clock=_StillClock(),
            randomness=SeededRandomness(f"create/{seed}"),
            kdf=KDF,
            compression=compression,
        )

    # life

    @asynccontextmanager
    async def mounted(self, root: Path | None = None) -> AsyncIterator[FileSystem]:
        """Mounted until the end of the block; handles still open there are released first. `root`: a copy, with no state of its own."""
        given = seams(self._files, f"{self._seed}/{next(self._mounts)}")
        where, state = (self.root, self._state) if root is None else (root, root.with_name(root.name + ".state"))
        unlocked = unlock(where, PASSWORD, files=self._files)
        async with open_filesystem(where, unlocked, state, seams=given) as fs:
            if root is not None:
                yield fs
                return
            self.fs = fs
            yield fs
            await self.settle()
        self._drop_reserve(where)

    def _drop_reserve(self, root: Path) -> None:
        (root / "open" / "reserve").unlink(missing_ok=True)

    def kill(self, to: Path) -> None:
        """What a kill at this moment would leave, copied to `to`."""
        shutil.copytree(self.root, to, ignore=shutil.ignore_patterns("reserve"))

    async def settle(self) -> None:
        """Close everything and commit: the files then hold what the model expects."""
        while self._open:
            await self.release(self._open[0])
        await self.look()
        await self.fs.commit()

    async def look(self) -> None:
        """Note what stat shows of everything: times are the engine's to set, and a snapshot is to keep them."""
        for _, node in self._all():
            node.shown = await self.fs.getattr(node.ino)

    # what is expected

    def faults(self, root: Path | None = None, *, present: bool = True, settled: bool = False, closed: bool = False) -> list[str]:
        """Differences between the repository's files and the model, and what the audit says. `present`: all is committed."""
        with Repository(self.root if root is None else root, PASSWORD) as repository:
            lines = audit_opened(repository, settled=settled, closed=closed, contents=True, region_bytes=limits.REGION_BYTES)
            if present:
                lines += (f"present: {line}" for line in faults_of(repository.present(), walk(self.tree)))
            found = {snapshot.name for snapshot in repository.snapshots()}
            if found != self.snapshots.keys():
                lines.append(f"snapshots {sorted(self.snapshots)} are {sorted(found)}")
            for name in sorted(found & self.snapshots.keys()):
                tree = self.snapshots[name]
                lines += (f"{name}: {line}" for line in faults_of(repository.snapshot(name), tree))
        return lines

    # requests

    async def act(self, count: int) -> None:
        """So many requests, drawn at random."""
        choices: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self.create, 10),
            (self.write, 14),
            (self.append, 5),
            (self.peck, 3),
            (self.write_far, 2),
            (self.truncate, 6),
            (self.mkdir, 3),
            (self.rmdir, 1),
            (self.symlink, 2),
            (self.mknod, 2),
            (self.link, 4),
            (self.many_links, 1),
            (self.unlink, 7),
            (self.rename, 6),
            (self.exchange, 2),
            (self.change_attributes, 4),
            (self.setxattr, 4),
            (self.removexattr, 2),
            (self.hold, 3),
            (self.let_go, 4),
            (self.read, 3),
            (self.fsync, 2),
            (self.commit, 1),
            (self.copy, 2),
        ]
        actions = [action for action, _ in choices]
        for action in self.draw.choices(actions, [weight for _, weight in choices], k=count):
            await action()

    async def create(self) -> None:
        parent, name = self._new_name()
        opened, attributes = await self.fs.create(parent.ino, name, 0o644, os.O_RDWR, WHO)
        node = self._entered(parent, name, attributes, stat.S_IFREG | 0o644)
        handle = _Open(opened.fh, node)
        self._open.append(handle)
        if self.draw.random() < 0.8:
            await self._write(handle, 0, self._data())
        if self.draw.random() < 0.8:
            await self.release(handle)

    async def write(self) -> None:
        async with self._opened() as handle:
            if handle is not None:
                size = handle.node.content.size
                await self._write(handle, self.draw.randrange(size + 1), self._data())

    async def append(self) -> None:
        async with self._opened() as handle:
            if handle is not None:
                await self._write(handle, handle.node.content.size, self._data())

    async def write_far(self) -> None:
        async with self._opened() as handle:
            if handle is not None:
                far = self.draw.randrange(20 * self.biggest_bytes)
                await self._write(handle, handle.node.content.size + far, self._data())

    async def peck(self) -> None:
        """Many small overwrites."""
        async with self._opened() as handle:
            if handle is not None and handle.node.content.size:
                for _ in range(self.draw.randrange(1, 120)):
                    at = self.draw.randrange(handle.node.content.size)
                    await self._write(handle, at, self.draw.randbytes(self.draw.randrange(1, 300)))

    async def copy(self) -> None:
        """The content of one file into another, at another place: chunks that are known."""
        source = self._pick(lambda node: node.kind == stat.S_IFREG and node.content.size > 0)
        async with self._opened() as handle:
            if handle is not None and source is not None:
                data = source.content.read(0, min(source.content.size, self.biggest_bytes))
                await self._write(handle, self.draw.choice([0, handle.node.content.size]), data)

    async def truncate(self) -> None:
        node = self._pick(lambda node: node.kind == stat.S_IFREG)
        if node is not None:
            size = self.draw.choice([0, self.draw.randrange(node.content.size + 1), node.content.size + self.draw.randrange(self.biggest_bytes)])
            await self.fs.setattr(node.ino, AttributeChanges(size=size), None, WHO)
            node.content.truncate(size)

    async def mkdir(self) -> None:
        parent, name = self._new_name()
        attributes = await self.fs.mkdir(parent.ino, name, 0o755, WHO)
        self._entered(parent, name, attributes, stat.S_IFDIR | 0o755)

    async def symlink(self) -> None:
        parent, name = self._new_name()
        target = self.draw.randbytes(self.draw.randrange(1, 300)).replace(b"\0", b"/")
        attributes = await self.fs.symlink(parent.ino, name, target, WHO)
        self._entered(parent, name, attributes, stat.S_IFLNK | 0o777).target = target

    async def mknod(self) -> None:
        parent, name = self._new_name()
        mode = self.draw.choice([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]) | 0o600
        rdev = os.makedev(self.draw.randrange(4096), self.draw.randrange(1 << 20)) if mode & 0o20000 and not mode & 0o10000 else 0
        attributes = await self.fs.mknod(parent.ino, name, mode, rdev, WHO)
        self._entered(parent, name, attributes, mode).rdev = rdev

    async def link(self) -> None:
        node = self._pick(lambda node: node.kind != stat.S_IFDIR)
        if node is not None:
            parent, name = self._new_name()
            self._linked(parent, name, node, await self.fs.link(node.ino, parent.ino, name, WHO))

    async def many_links(self) -> None:
        """More names than an inode's record holds."""
        node = self._pick(lambda node: node.kind != stat.S_IFDIR)
        if node is not None:
            for _ in range(self.draw.randrange(2, 14)):
                parent, name = self._new_name()
                self._linked(parent, name, node, await self.fs.link(node.ino, parent.ino, name, WHO))

    async def unlink(self) -> None:
        place = self._pick_name(lambda node: node.kind != stat.S_IFDIR)
        if place is not None:
            parent, name, node = place
            await self.fs.unlink(parent.ino, name, WHO)
            del parent.children[name]
            node.links -= 1

    async def rmdir(self) -> None:
        place = self._pick_name(lambda node: node.kind == stat.S_IFDIR and not node.children)
        if place is not None:
            parent, name, _ = place
            await self.fs.rmdir(parent.ino, name, WHO)
            del parent.children[name]

    async def rename(self) -> None:
        place = self._pick_name(lambda _: True)
        if place is None:
            return
        parent, name, node = place
        into = self._directory(outside=node)
        replaced = None
        fitting = [
            taken
            for taken, other in into.children.items()
            if other is not node and (other.kind == stat.S_IFDIR) == (node.kind == stat.S_IFDIR) and not other.children
        ]
        if fitting and self.draw.random() < 0.6:
            new_name, flags = self.draw.choice(fitting), 0
            replaced = into.children[new_name]
        else:
            new_name, flags = self._name(), self.draw.choice([0, RENAME_NOREPLACE])
        await self.fs.rename(parent.ino, name, into.ino, new_name, flags, WHO)
        del parent.children[name]
        into.children[new_name] = node
        if replaced is not None:
            replaced.links -= 1

    async def exchange(self) -> None:
        first, second = self._pick_name(lambda _: True), self._pick_name(lambda _: True)
        if first is None or second is None:
            return
        (parent, name, node), (other_parent, other_name, other) = first, second
        if node is other or self._contains(node, other_parent) or self._contains(other, parent):
            return
        await self.fs.rename(parent.ino, name, other_parent.ino, other_name, RENAME_EXCHANGE, WHO)
        parent.children[name], other_parent.children[other_name] = other, node

    async def change_attributes(self) -> None:
        node = self._pick(lambda node: node.kind != stat.S_IFLNK)
        if node is not None:
            changes = AttributeChanges()
            if self.draw.random() < 0.5:
                changes.mode = self.draw.randrange(0o1000)
                node.mode = node.kind | changes.mode
            if self.draw.random() < 0.5:
                node.uid = changes.uid = self.draw.randrange(1 << 32)
                node.gid = changes.gid = self.draw.randrange(1 << 32)
            if self.draw.random() < 0.5:
                changes.mtime_ns = self.draw.randrange(-(1 << 61), 1 << 62)
                changes.atime_ns = self.draw.randrange(-(1 << 61), 1 << 62)
            await self.fs.setattr(node.ino, changes, None, WHO)

    async def setxattr(self) -> None:
        node = self._pick(lambda _: True)
        if node is not None:
            name = b"user.%d" % self.draw.randrange(4)
            value = self.draw.randbytes(self.draw.choice([0, 3, 50, 3000]))
            await self.fs.setxattr(node.ino, name, value, WHO)
            node.xattrs[name] = value

    async def removexattr(self) -> None:
        node = self._pick(lambda node: bool(node.xattrs))
        if node is not None:
            name = self.draw.choice(sorted(node.xattrs))
            await self.fs.removexattr(node.ino, name, WHO)
            del node.xattrs[name]

    async def hold(self) -> None:
        """Open a file and leave it open."""
        node = self._pick(lambda node: node.kind == stat.S_IFREG)
        if node is not None:
            self._open.append(_Open((await self.fs.open(node.ino, os.O_RDWR, WHO)).fh, node))

    async def let_go(self) -> None:
        if self._open:
            await self.release(self.draw.choice(self._open))

    async def read(self) -> None:
        async with self._opened() as handle:
            if handle is not None:
                await self._check(handle)

    async def fsync(self) -> None:
        async with self._opened() as handle:
            if handle is not None:
                await self.fs.fsync(handle.fh, datasync=False)

    async def commit(self) -> None:
        await self.fs.commit()

    async def release(self, handle: _Open) -> None:
        """Close; what is read through it is right to the end, names or not."""
        await self._check(handle)
        self._open.remove(handle)
        await self.fs.flush(handle.fh)
        await self.fs.release(handle.fh)

    async def put(self, name: bytes, content: bytes, at: int = 0) -> None:
        """A new file in the root."""
        opened, attributes = await self.fs.create(ROOT, name, 0o644, os.O_RDWR, WHO)
        handle = _Open(opened.fh, self._entered(self.tree, name, attributes, stat.S_IFREG | 0o644))
        self._open.append(handle)
        for start in range(0, len(content), 1 << 20):
            await self._write(handle, at + start, content[start : start + (1 << 20)])
        await self.release(handle)

    async def scatter(self, name: bytes, count: int) -> None:
        """So many small overwrites of a file in the root."""
        node = self.tree.children[name]
        handle = _Open((await self.fs.open(node.ino, os.O_RDWR, WHO)).fh, node)
        self._open.append(handle)
        for _ in range(count):
            await self._write(handle, self.draw.randrange(node.content.size - 5000), self.draw.randbytes(self.draw.randrange(1, 5000)))
        await self.release(handle)

    async def take_snapshot(self, name: str = "") -> str:
        await self.look()
        info = await self.fs.create_snapshot("test", f"message {next(self._names)}", ["one", "two"], name)
        self.snapshots[info.name] = walk(self.tree)
        return info.name

    async def delete_snapshot(self, name: str) -> None:
        """Marked durably when this returns; purged in the background."""
        await self.fs.delete_snapshot(name)
        del self.snapshots[name]

    # inside

    async def _check(self, handle: _Open) -> None:
        size = handle.node.content.size
        at = self.draw.randrange(size + 1)
        expected = handle.node.content.read(at, 1 << 17)
        found = bytes(await self.fs.read(handle.fh, at, 1 << 17))
        if found != expected:
            wrong = next((i for i, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1]), -1)
            raise AssertionError(f"inode {handle.node.ino}: {len(found)} of {len(expected)} bytes at {at}, wrong at {at + wrong}")

    async def _write(self, handle: _Open, offset: int, data: bytes) -> None:
        assert await self.fs.write(handle.fh, offset, data) == len(data)
        handle.node.content.write(offset, data)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Open | None]:
        """A file that is open already, or is for so long; None when there is no file."""
        if self._open and self.draw.random() < 0.4:
            yield self.draw.choice(self._open)
            return
        node = self._pick(lambda node: node.kind == stat.S_IFREG)
        if node is None:
            yield None
            return
        handle = _Open((await self.fs.open(node.ino, os.O_RDWR, WHO)).fh, node)
        self._open.append(handle)
        yield handle
        await self.release(handle)

    def _entered(self, parent: Node, name: bytes, attributes: Attributes, mode: int) -> Node:
        node = Node(attributes.ino, mode, uid=WHO.uid, gid=WHO.gid)
        self._linked(parent, name, node, attributes)
        return node

    def _linked(self, parent: Node, name: bytes, node: Node, attributes: Attributes) -> None:
        assert attributes.ino == node.ino
        self.fs.forget([(node.ino, 1)])
        parent.children[name] = node
        node.links += 1

    def _data(self) -> bytes:
        size = self.draw.choice([self.draw.randrange(1, 200), self.draw.randrange(1, 20_000), self.draw.randrange(1, self.biggest_bytes)])
        kind = self.draw.random()
        if kind < 0.2:
            return bytes(size)
        if kind < 0.6:
            return self.draw.randbytes(-(-size // 7))[:size] * 7
        return self.draw.randbytes(size)

    def _all(self) -> list[tuple[Node | None, Node]]:
        """(parent, node) of every name, and the root."""
        found: list[tuple[Node | None, Node]] = [(None, self.tree)]
        for _, node in found:
            found += ((node, child) for child in node.children.values())
        return found

    def _pick(self, fits: Callable[[Node], bool]) -> Node | None:
        fitting = [node for parent, node in self._all() if parent is not None and fits(node)]
        return self.draw.choice(fitting) if fitting else None

    def _pick_name(self, fits: Callable[[Node], bool]) -> tuple[Node, bytes, Node] | None:
        directories = [node for _, node in self._all() if node.kind == stat.S_IFDIR]
        fitting = [(d, name, node) for d in directories for name, node in d.children.items() if fits(node)]
        return self.draw.choice(fitting) if fitting else None

    def _directory(self, outside: Node | None = None) -> Node:
        directories = [node for _, node in self._all() if node.kind == stat.S_IFDIR]
        return self.draw.choice([node for node in directories if outside is None or not self._contains(outside, node)])

    def _contains(self, top: Node, node: Node) -> bool:
        return top is node or any(self._contains(child, node) for child in top.children.values())

    def _new_name(self) -> tuple[Node, bytes]:
        return self._directory(), self._name()

    def _name(self) -> bytes:
        number = next(self._names)
        return self.draw.choice([b"%d", b"name %d", b"\xff\xfe%d\n", b"long" * 60 + b"%d"]) % number


class _StillClock:
    def now_ns(self) -> int:
        return 1_690_000_000_000_000_000


WHO: Final = Who(uid=1000, gid=100)
