"""A repository on a disk in memory and the engine over it, without threads and without waiting; and short ways to use it."""

import functools
import os
import random
import shutil
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeVar

import lmdb
import pytest

from backupfs import limits
from backupfs.catalog import index
from backupfs.engine import filedata
from backupfs.engine.attributes import AttributeChanges
from backupfs.engine.checking import Finding
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.keyring import Unlocked
from backupfs.engine.repository import check_repository, create_repository, open_filesystem, unlock
from backupfs.engine.seams import Seams
from backupfs.offload import Offload
from backupfs.stores.files import Files
from tests.crash.disk import Image, SimulatedDisk
from tests.crash.power_cut import Fate, Mode, PowerCut
from tests.crash.simulation import KDF, PASSWORD, SMALL_LIMITS, InlineOffload, SeededRandomness, SteppingClock, Who, run
from tests.decoder.audit import audit

ROOT: Final = 1
SNAPSHOTS: Final = 2
REPOSITORY: Final = Path("/repository")
WHO: Final = Who()
KIB: Final = 1024
MIB: Final = 1024 * KIB

P = ParamSpec("P")
R = TypeVar("R")


def simulated(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test in no time, its tasks in an order that its name gives."""

    @functools.wraps(test)
    def in_no_time(*args: P.args, **kwargs: P.kwargs) -> None:
        run(lambda: test(*args, **kwargs), test.__qualname__)

    return in_no_time


def make_small(patch: pytest.MonkeyPatch) -> None:
    """Everything fills up soon."""
    for name, value in SMALL_LIMITS.items():
        patch.setattr(limits, name, value)
    patch.setattr(filedata, "_WINDOW_BYTES", SMALL_LIMITS["CHUNK_MAX_BYTES"])


def make_fast(patch: pytest.MonkeyPatch) -> None:
    """The index is not synced: nobody cuts this host's power."""
    patch.setattr(index, "lmdb", _Unsynced(lmdb))


class _Unsynced:
    """The library, but that nothing waits for the disk."""

    def __init__(self, library: ModuleType) -> None:
        self._library = library

    def open(self, path: str, **options: Any) -> object:
        return self._library.open(path, sync=False, **options)

    def __getattr__(self, name: str) -> object:
        return getattr(self._library, name)


class World:
    """A repository and a host's state. `files` is what the engine is given: the disk, or something that makes it fail."""

    def __init__(self, state: Path, disk: SimulatedDisk) -> None:
        self.state = state
        self.disk = disk
        self.files: Files = disk
        self.offload: Offload = InlineOffload()
        self.clock = SteppingClock()
        self._mounts = 0

    @classmethod
    def new(cls, state: Path, compression: bool = True, capacity_bytes: int = 1 << 40) -> "World":
        """A new repository."""
        world = cls(state, SimulatedDisk(capacity_bytes=capacity_bytes))
        world._make_state()
        create_repository(
            REPOSITORY, PASSWORD, files=world.disk, clock=_StillClock(), randomness=SeededRandomness("repository"), kdf=KDF, compression=compression
        )
        return world

    def after_kill(self, state: Path) -> "World":
        """Another host's end: what is there if the process is killed now. Every write it made is kept."""
        return self.on(self.disk.image(), state)

    def after_power_cut(self, state: Path, mode: Mode = Mode.ORDERED, *, index: bool = True) -> "World":
        """What is there if the power goes now, and nothing of what was not synced has reached the disk."""
        cut = PowerCut(self.disk.base, self.disk.log, 0)
        cut.advance(len(self.disk.log))
        world = self.on(cut.cut(random.Random(0), mode, Fate.LOST), state)
        if not index:
            world.without_index()
        return world

    def on(self, image: Image, state: Path) -> "World":
        """Another disk with that on it, and the index as it is now."""
        world = World(state, SimulatedDisk(image))
        world._make_state()
        if (self.state / "index").exists():
            shutil.copytree(self.state / "index", state / "index")
        if world.disk.exists(self.state / "head"):
            world.disk.rename(self.state / "head", state / "head")
        return world

    def without_index(self) -> None:
        """Lose the index."""
        shutil.rmtree(self.state / "index")

    def unlocked(self, password: bytes = PASSWORD) -> Unlocked:
        """The opened repository."""
        return unlock(REPOSITORY, password, files=self.files)

    def seams(self) -> Seams:
        """What the engine is given; other random bytes for every host and every time."""
        self._mounts += 1
        return Seams(self.files, self.clock, SeededRandomness(f"{self.state.name} mount {self._mounts}"), self.offload)

    @asynccontextmanager
    async def mounted(
        self, *, read_only: bool = False, accept_rollback: bool = False, owner: tuple[int, int] = (0, 0), undelete_ns: int = 0
    ) -> AsyncIterator["Mounted"]:
        """Mount, and stop cleanly at the end."""
        async with open_filesystem(
            REPOSITORY,
            self.unlocked(),
            self.state,
            seams=self.seams(),
            read_only=read_only,
            owner=owner,
            accept_rollback=accept_rollback,
            undelete_ns=undelete_ns,
        ) as fs:
            yield Mounted(fs)

    async def check(self, *, read_data: bool = True) -> list[Finding]:
        """What a check of the unmounted repository finds."""
        findings = check_repository(
            REPOSITORY, self.unlocked(), self.state, seams=self.seams(), read_data=read_data, progress=lambda _done, _total: None
        )
        return [finding async for finding in findings]

    def export(self, directory: Path) -> Path:
        """A copy of the repository in real files, for programs that read those."""
        for name in self.disk.image().listing():
            path = Path(name)
            if path.is_relative_to(REPOSITORY):
                copy = directory / path.relative_to(REPOSITORY)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(self.content(path))
        return directory

    def audit(self, directory: Path, *, settled: bool = True) -> list[str]:
        """What the independent decoder finds wrong, leaks included."""
        return audit(self.export(directory), PASSWORD, settled=settled, closed=settled, region_bytes=limits.REGION_BYTES)

    def objects(self, folder: str) -> list[Path]:
        """All files below a folder of the repository."""
        top = REPOSITORY / folder
        return sorted(Path(name) for name in self.disk.image().listing() if name.startswith(f"{top}/"))

    def content(self, path: Path) -> bytes:
        """A file's bytes."""
        handle = self.disk.open(path)
        try:
            return self.disk.read_at(handle, 0, self.disk.size(handle))
        finally:
            self.disk.close(handle)

    def _make_state(self) -> None:
        self.state.mkdir(parents=True)
        for parent in [*reversed(self.state.parents[:-1]), self.state]:
            self.disk.make_directory(parent)


class _StillClock:
    def now_ns(self) -> int:
        return 1_690_000_000_000_000_000


class Mounted:
    """A mounted file system addressed by paths. Keeps handles by path; counts no lookups: each is forgotten at once."""

    def __init__(self, fs: FileSystem) -> None:
        self.fs = fs
        self.handles: dict[bytes, int] = {}

    async def ino(self, path: bytes) -> int:
        """The inode that a path leads to, without following links."""
        ino = ROOT
        for name in path.split(b"/") if path else ():
            ino = (await self.fs.lookup(ino, name)).ino
            self.fs.forget([(ino, 1)])
        return ino

    async def parent(self, path: bytes) -> tuple[int, bytes]:
        """(directory, name)."""
        directory, _, name = path.rpartition(b"/")
        return await self.ino(directory), name

    async def open(self, path: bytes, flags: int = os.O_RDWR | os.O_CREAT, mode: int = 0o644) -> int:
        """Open, with O_CREAT making it; the handle is kept for `path`."""
        if flags & os.O_CREAT:
            opened, attributes = await self.fs.create(*await self.parent(path), mode, flags, WHO)
            self.fs.forget([(attributes.ino, 1)])
        else:
            opened = await self.fs.open(await self.ino(path), flags, WHO)
        self.handles[path] = opened.fh
        return opened.fh

    async def close(self, path: bytes) -> None:
        """Close what `open` opened."""
        fh = self.handles.pop(path)
        try:
            await self.fs.flush(fh)
        finally:
            await self.fs.release(fh)

    async def put(self, path: bytes, content: bytes, at: int = 0, piece: int = MIB) -> None:
        """Write to a file that is opened for it, made if need be, and closed."""
        fh = await self.open(path)
        for start in range(0, len(content), piece):
            await self.fs.write(fh, at + start, content[start : start + piece])
        await self.close(path)

    async def get(self, path: bytes, piece: int = MIB) -> bytes:
        """All of a file."""
        return await read_all(self.fs, await self.ino(path), piece)

    async def truncate(self, path: bytes, size: int) -> None:
        """Set a file's size."""
        await self.fs.setattr(await self.ino(path), AttributeChanges(size=size), None, WHO)

    async def mkdir(self, path: bytes) -> int:
        """Make a directory."""
        attributes = await self.fs.mkdir(*await self.parent(path), 0o755, WHO)
        self.fs.forget([(attributes.ino, 1)])
        return attributes.ino

    async def unlink(self, path: bytes) -> None:
        """Remove a name."""
        await self.fs.unlink(*await self.parent(path), WHO)

    async def link(self, path: bytes, new: bytes) -> None:
        """A second name."""
        attributes = await self.fs.link(await self.ino(path), *await self.parent(new), WHO)
        self.fs.forget([(attributes.ino, 1)])

    async def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        await self.fs.rmdir(*await self.parent(path), WHO)

    async def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        """Move."""
        await self.fs.rename(*await self.parent(old), *await self.parent(new), flags, WHO)

    async def names(self, path: bytes) -> list[bytes]:
        """A directory's names, in the order of the listing."""
        return [name for name, _ in await list_directory(self.fs, await self.ino(path))]

    async def tree(self, top: bytes = b"") -> dict[bytes, object]:
        """Everything below a directory: what stat, readlink, xattrs and the contents show; inode numbers as hard-link groups."""
        return await read_tree(self.fs, await self.ino(top))


async def read_all(fs: FileSystem, ino: int, piece: int = MIB) -> bytes:
    """A file's content."""
    opened = await fs.open(ino, os.O_RDONLY, WHO)
    try:
        content = bytearray()
        while data := await fs.read(opened.fh, len(content), piece):
            content += data
        return bytes(content)
    finally:
        await fs.release(opened.fh)


async def list_directory(fs: FileSystem, ino: int) -> list[tuple[bytes, int]]:
    """(name, inode) of all entries but `.`, `..` and `.snapshots`."""
    fh = await fs.opendir(ino)
    found: list[tuple[bytes, int]] = []
    cookie = 0
    while entries := await fs.readdir(fh, cookie):
        assert all(a.next_cookie < b.next_cookie for a, b in pairwise(entries)), "cookies rise"
        cookie = entries[-1].next_cookie
        found += [(e.name, e.attributes.ino) for e in entries if e.name not in (b".", b"..", b".snapshots")]
    await fs.releasedir(fh)
    return found


async def read_tree(fs: FileSystem, top: int) -> dict[bytes, object]:
    """See `Mounted.tree`."""
    found: dict[bytes, object] = {}
    groups: dict[int, int] = {}
    waiting = [(b"", top)]
    while waiting:
        path, ino = waiting.pop()
        a = await fs.getattr(ino)
        group = groups.setdefault(a.ino, len(groups))
        xattrs = sorted([(name, await fs.getxattr(ino, name)) for name in await fs.listxattr(ino, WHO)])
        content: object = None
        if stat.S_ISDIR(a.mode):
            entries = sorted(await list_directory(fs, ino))
            content = [name for name, _ in entries]
            waiting += [(path + b"/" + name if path else name, child) for name, child in reversed(entries)]
        elif stat.S_ISLNK(a.mode):
            content = await fs.readlink(ino)
        elif stat.S_ISREG(a.mode):
            content = await read_all(fs, ino)
        found[path] = (group, a.mode, a.nlink, a.uid, a.gid, a.rdev, a.size, a.atime_ns, a.mtime_ns, a.ctime_ns, xattrs, content)
    return found
