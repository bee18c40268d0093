"""Random requests to a file system, each told to the model as it is asked and answered."""

import os
import random
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from backupfs.engine.attributes import AttributeChanges, SnapshotInfo
from backupfs.engine.filesystem import FileSystem
from backupfs.errors import BackupfsError
from tests.crash.model import Found, Model, Path, Shape
from tests.crash.simulation import Who

ROOT: Final = 1
SNAPSHOTS: Final = b".snapshots"
WHO: Final = Who()
_READ_BYTES: Final = 1 << 16


class Workload:
    """A caller of one mounted file system. `position` gives where the disk's log is; the model goes on from mount to
    mount.
    """

    def __init__(self, fs: FileSystem, model: Model, position: Callable[[], int], draw: random.Random) -> None:
        self._fs = fs
        self._model = model
        self._position = position
        self._draw = draw
        self._handles: dict[int, int] = {}
        self._looked_up: dict[int, int] = {}
        self._next_name = 0

    async def act(self, count: int) -> None:
        """So many random requests; files may be left open."""
        choices: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._create, 6),
            (self._write, 12),
            (self._fsync, 6),
            (self._close, 6),
            (self._reopen, 4),
            (self._truncate, 3),
            (self._rename, 3),
            (self._replace, 4),
            (self._unlink, 3),
            (self._mkdir, 2),
            (self._rmdir, 1),
            (self._link, 1),
            (self._symlink, 1),
            (self._chmod, 2),
            (self._setxattr, 2),
            (self._commit, 1),
            (self._wait, 3),
            (self._snapshot, 2),
            (self._delete_snapshot, 1),
            (self._checkpoint, 1),
            (self._collect, 1),
        ]
        actions = [action for action, _ in choices]
        weights = [weight for _, weight in choices]
        for action in self._draw.choices(actions, weights, k=count):
            await action()

    async def close_all(self) -> None:
        """Close every file."""
        for node in list(self._handles):
            await self._release(node)

    @asynccontextmanager
    async def step(self, what: str, *, acknowledges: bool = False) -> AsyncIterator[int]:
        """One request: asked at the start, answered at the end."""
        begun = self._position()
        yield begun
        self._model.end_step(what, begun, self._position(), acknowledges=acknowledges)

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        path = self._new_path()
        async with self.step(f"create {path!r}"):
            parent, name = await self._parent(path)
            mode = self._draw.choice([0o644, 0o600, 0o755])
            opened, attributes = await self._fs.create(parent, name, mode, os.O_RDWR | os.O_EXCL, WHO)
            self._count(attributes.ino)
            node = self._model.new_node()
            self._handles[node] = opened.fh
            self._model.put(path, Shape("file", node, mode))
        if self._draw.random() < 0.8:
            await self._write_to(node)

    async def _write(self) -> None:
        if self._handles:
            await self._write_to(self._draw.choice(list(self._handles)))

    async def _write_to(self, node: int) -> None:
        old = self._model.content(node)
        size = self._draw.choice([1, 100, 512, 3000, 4096, 20_000, 60_000])
        at = self._draw.choice([0, len(old), len(old), self._draw.randint(0, len(old)), len(old) + 700])
        data = self._data(size, old)
        async with self.step(f"write {at}+{len(data)} to {node}"):
            assert await self._fs.write(self._handles[node], at, data) == len(data)
            self._model.write(node, old[:at].ljust(at, b"\0") + data + old[at + len(data) :])

    def _data(self, size: int, old: bytes) -> bytes:
        kind = self._draw.random()
        if kind < 0.15:
            return bytes(size)
        if kind < 0.3 and old:
            return (old * (size // len(old) + 1))[:size]
        if kind < 0.5:
            return (b"%d " % self._draw.randrange(1000) * size)[:size]
        return self._draw.randbytes(size)

    async def _fsync(self) -> None:
        if self._handles:
            node = self._draw.choice(list(self._handles))
            async with self.step(f"fsync {node}", acknowledges=True):
                await self._fs.fsync(self._handles[node], datasync=self._draw.random() < 0.3)
                self._model.acknowledge(node, self._position())
                self._model.dirty.discard(node)

    async def _close(self) -> None:
        if self._handles:
            await self._release(self._draw.choice(list(self._handles)))

    async def _release(self, node: int) -> None:
        async with self.step(f"close {node}"):
            fh = self._handles.pop(node)
            await self._fs.flush(fh)
            await self._fs.release(fh)
            self._model.dirty.discard(node)

    async def _reopen(self) -> None:
        path = self._some("file")
        if path is not None and self._model.tree[path].node not in self._handles:
            async with self.step(f"open {path!r}"):
                opened = await self._fs.open(await self._resolve(path), os.O_RDWR, WHO)
                self._handles[self._model.tree[path].node] = opened.fh

    async def _truncate(self) -> None:
        path = self._some("file")
        if path is not None:
            node = self._model.tree[path].node
            old = self._model.content(node)
            size = self._draw.choice([0, len(old) // 2, max(len(old) - 1, 0), len(old) + 1000])
            async with self.step(f"truncate {path!r} to {size}"):
                ino = await self._resolve(path)
                await self._fs.setattr(ino, AttributeChanges(size=size), self._handles.get(node), WHO)
                is_open = node in self._handles
                self._model.write(node, old[:size].ljust(size, b"\0"))
                if not is_open:
                    self._model.dirty.discard(node)

    async def _rename(self) -> None:
        old = self._some("file", "directory", "symlink")
        if old is not None:
            new = self._new_path(outside=old)
            await self._move(old, new)

    async def _replace(self) -> None:
        """The way editors save: write aside, rename over; often with an fsync between, not always."""
        new = self._some("file")
        if new is None:
            return
        path = self._new_path()
        async with self.step(f"create {path!r}"):
            parent, name = await self._parent(path)
            opened, attributes = await self._fs.create(parent, name, 0o644, os.O_WRONLY, WHO)
            self._count(attributes.ino)
            node = self._model.new_node()
            self._handles[node] = opened.fh
            self._model.put(path, Shape("file", node, 0o644))
        await self._write_to(node)
        if self._draw.random() < 0.5:
            async with self.step(f"fsync {node}", acknowledges=True):
                await self._fs.fsync(opened.fh, datasync=False)
                self._model.acknowledge(node, self._position())
                self._model.dirty.discard(node)
        if self._draw.random() < 0.7:
            await self._release(node)
        await self._move(path, new)

    async def _move(self, old: Path, new: Path) -> None:
        async with self.step(f"rename {old!r} {new!r}"):
            old_parent, old_name = await self._parent(old)
            new_parent, new_name = await self._parent(new)
            await self._fs.rename(old_parent, old_name, new_parent, new_name, 0, WHO)
            self._model.rename(old, new)

    async def _unlink(self) -> None:
        path = self._some("file", "symlink")
        if path is not None:
            node = self._model.tree[path].node
            async with self.step(f"unlink {path!r}"):
                parent, name = await self._parent(path)
                ino = await self._resolve(path)
                await self._fs.unlink(parent, name, WHO)
                self._model.remove(path)
                if node not in self._handles and all(shape.node != node for shape in self._model.tree.values()):
                    self._fs.forget([(ino, self._looked_up.pop(ino))])

    async def _mkdir(self) -> None:
        path = self._new_path()
        async with self.step(f"mkdir {path!r}"):
            parent, name = await self._parent(path)
            self._count((await self._fs.mkdir(parent, name, 0o755, WHO)).ino)
            self._model.put(path, Shape("directory", self._model.new_node(), 0o755))

    async def _rmdir(self) -> None:
        path = self._some("directory")
        if path and not any(other.startswith(path + b"/") for other in self._model.tree):
            async with self.step(f"rmdir {path!r}"):
                parent, name = await self._parent(path)
                await self._fs.rmdir(parent, name, WHO)
                self._model.remove(path)

    async def _link(self) -> None:
        old = self._some("file")
        if old is not None:
            path = self._new_path()
            async with self.step(f"link {old!r} {path!r}"):
                parent, name = await self._parent(path)
                self._count((await self._fs.link(await self._resolve(old), parent, name, WHO)).ino)
                self._model.put(path, self._model.tree[old])

    async def _symlink(self) -> None:
        path = self._new_path()
        target = b"../target %d" % self._draw.randrange(100)
        async with self.step(f"symlink {path!r}"):
            parent, name = await self._parent(path)
            self._count((await self._fs.symlink(parent, name, target, WHO)).ino)
            self._model.put(path, Shape("symlink", self._model.new_node(), 0o777, target))

    async def _chmod(self) -> None:
        path = self._some("file", "directory")
        if path is not None:
            shape = self._model.tree[path]
            mode = self._draw.choice([0o700, 0o711, 0o750])
            async with self.step(f"chmod {path!r}"):
                await self._fs.setattr(await self._resolve(path), AttributeChanges(mode=mode), None, WHO)
                self._model.reshape(shape.node, Shape(shape.kind, shape.node, mode, b"", shape.xattrs))

    async def _setxattr(self) -> None:
        path = self._some("file", "directory")
        if path is not None:
            shape = self._model.tree[path]
            name = self._draw.choice([b"user.a", b"user.b"])
            value = self._draw.randbytes(self._draw.choice([0, 10, 5000]))
            async with self.step(f"setxattr {path!r}"):
                await self._fs.setxattr(await self._resolve(path), name, value, WHO)
                xattrs = tuple(sorted({**dict(shape.xattrs), name: value}.items()))
                self._model.reshape(shape.node, Shape(shape.kind, shape.node, shape.mode, b"", xattrs))

    async def _commit(self) -> None:
        async with self.step("commit", acknowledges=True):
            await self._fs.commit()
            self._model.acknowledge_all(self._position())

    async def _wait(self) -> None:
        async with self.step("wait"):
            await trio.sleep(self._draw.choice([0.3, 2.5, 11]))

    async def _snapshot(self) -> None:
        async with self.step("snapshot", acknowledges=True) as begun:
            try:
                info = await self._fs.create_snapshot("manual", "message", ["tag"])
            except BackupfsError:
                self._model.refuse_snapshot()
                raise
            self._model.take_snapshot(_label(info), begun, self._position())

    async def _delete_snapshot(self) -> None:
        names = self._model.snapshot_names()
        if names:
            name = self._draw.choice(names)
            async with self.step(f"delete snapshot {name}", acknowledges=True) as begun:
                try:
                    await self._fs.delete_snapshot(name.partition(" ")[2])
                except BackupfsError:
                    self._model.delete_snapshot(name, begun)
                    raise
                self._model.delete_snapshot(name, begun, self._position())

    async def _checkpoint(self) -> None:
        async with self.step("checkpoint"):
            await self._fs.make_checkpoint()

    async def _collect(self) -> None:
        async with self.step("collect"):
            await self._fs.upkeep.collect_now(purge_deleted=True, thorough=True)

    # --- places -----------------------------------------------------------------------------------------------------

    def _some(self, *kinds: str) -> Path | None:
        found = [path for path, shape in self._model.tree.items() if path and shape.kind in kinds]
        return self._draw.choice(found) if found else None

    def _new_path(self, outside: Path | None = None) -> Path:
        """A name not in use, in a directory that is not `outside` or below it."""
        parents = [
            path
            for path, shape in self._model.tree.items()
            if shape.kind == "directory" and (outside is None or not (path == outside or path.startswith(outside + b"/")))
        ]
        parent = self._draw.choice(parents)
        self._next_name += 1
        while parent + b"/n%d" % self._next_name in self._model.tree:
            self._next_name += 1
        return parent + b"/n%d" % self._next_name

    async def _parent(self, path: Path) -> tuple[int, bytes]:
        directory, _, name = path.rpartition(b"/")
        return await self._resolve(directory), name

    async def _resolve(self, path: Path) -> int:
        ino = ROOT
        for name in path.split(b"/")[1:]:
            ino = (await self._fs.lookup(ino, name)).ino
            self._count(ino)
        return ino

    def _count(self, ino: int) -> None:
        self._looked_up[ino] = self._looked_up.get(ino, 0) + 1


async def read_back(fs: FileSystem) -> tuple[dict[Path, Found], dict[str, dict[Path, Found]]]:
    """The present tree, and each snapshot's."""
    snapshots = {}
    for info in fs.snapshots():
        top = await fs.lookup((await fs.lookup(ROOT, SNAPSHOTS)).ino, info.name.encode())
        snapshots[_label(info)] = await _read_tree(fs, top.ino)
    return await _read_tree(fs, ROOT), snapshots


def _label(info: SnapshotInfo) -> str:
    """What a snapshot is called here: its name alone is free again once it has been purged."""
    return f"{info.serial} {info.name}"


async def _read_tree(fs: FileSystem, top: int) -> dict[Path, Found]:
    found: dict[Path, Found] = {}
    waiting: list[tuple[Path, int]] = [(b"", top)]
    while waiting:
        path, ino = waiting.pop()
        found[path] = await _read_one(fs, ino)
        if found[path].shape.kind == "directory":
            fh = await fs.opendir(ino)
            cookie = 0
            while entries := await fs.readdir(fh, cookie):
                cookie = entries[-1].next_cookie
                named = [e for e in entries if e.name not in (b".", b"..") and (path or e.name != SNAPSHOTS)]
                below = [(path + b"/" + e.name, e.attributes.ino) for e in named]
                assert all(place not in found for place, _ in below), "a name is listed twice"
                waiting += below
            await fs.releasedir(fh)
    return found


async def _read_one(fs: FileSystem, ino: int) -> Found:
    attributes = await fs.getattr(ino)
    mode = stat.S_IMODE(attributes.mode)
    xattrs = tuple(sorted([(name, await fs.getxattr(ino, name)) for name in await fs.listxattr(ino, WHO)]))
    if stat.S_ISDIR(attributes.mode):
        return Found(Shape("directory", ino, mode, b"", xattrs), b"")
    if stat.S_ISLNK(attributes.mode):
        return Found(Shape("symlink", ino, mode, await fs.readlink(ino), xattrs), b"")
    opened = await fs.open(ino, os.O_RDONLY, WHO)
    content = bytearray()
    while piece := await fs.read(opened.fh, len(content), _READ_BYTES):
        content += piece
    await fs.flush(opened.fh)
    await fs.release(opened.fh)
    assert len(content) == attributes.size, "a file ends before its size"
    return Found(Shape("file", ino, mode, b"", xattrs), bytes(content))
