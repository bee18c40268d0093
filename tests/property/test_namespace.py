"""Names against a tree of plain objects: what may be done, with which errno it is refused, and what stands there afterwards.

Snapshots are whole copies of what the model shows; the process is stopped or killed in between, files are open while their names go.
"""

import errno
import os
import random
import stat
from collections.abc import Awaitable
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.namespace import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from backupfs.errors import FileSystemError
from tests.conftest import LogRule
from tests.unit.engine.world import WHO, Mounted, World, list_directory, make_fast, make_small, simulated

RUNS = 8
STEPS = 130
NAMES = [b"a", b"b", b"c", b"d\n\xff", b"e"]
Shown = dict[bytes, tuple[object, ...]]


class Node:
    """An inode. `entries` is None for what is no directory."""

    def __init__(self, kind: int, content: bytes = b"") -> None:
        self.kind = kind
        self.content = content
        self.links = 0
        self.xattrs: dict[bytes, bytes] = {}
        self.entries: dict[bytes, Node] | None = {} if kind == stat.S_IFDIR else None

    def below(self) -> dict[bytes, "Node"]:
        assert self.entries is not None
        return self.entries

    @property
    def nlink(self) -> int:
        if self.entries is None:
            return self.links
        return 2 + sum(node.entries is not None for node in self.entries.values())


class Tree:
    """The model and the mount, side by side. Directories are known by path, which no step renames into themselves."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.root = Node(stat.S_IFDIR)
        self.open: list[tuple[int, Node]] = []
        self.kept: dict[str, Shown] = {}

    def directories(self) -> dict[bytes, Node]:
        found = {b"": self.root}
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            for name, node in found[path].below().items():
                if node.entries is not None:
                    found[path + b"/" + name if path else name] = node
                    waiting.append(path + b"/" + name if path else name)
        return found

    def place(self) -> tuple[bytes, Node, bytes]:
        """(path of a directory, the directory, a name in it that may or may not be there)."""
        path, directory = self.draw.choice(list(self.directories().items()))
        there = list(directory.below())
        return path, directory, self.draw.choice(there if there and self.draw.random() < 0.5 else NAMES)

    async def ask(self, request: Awaitable[object], refusals: set[int]) -> bool:
        """Whether it was done; refused exactly when there is a reason, with one of the reasons."""
        try:
            await request
        except FileSystemError as error:
            if error.errno not in refusals:
                error.add_note(f"{errno.errorcode[error.errno]} instead of {refusals}")
                raise
            return False
        assert not refusals, f"done in spite of {refusals}"
        return True

    # --- requests ---------------------------------------------------------------------------------------------------

    async def make(self, m: Mounted) -> None:
        path, directory, name = self.place()
        kind = self.draw.choice([stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO])
        if self.draw.random() < 0.1:
            name = self.draw.choice([b".snapshots", b"x" * 256])
        refusals = {errno.EEXIST} if name in directory.below() else set()
        refusals |= {errno.EPERM} if name == b".snapshots" else set()
        refusals |= {errno.ENAMETOOLONG} if len(name) > 255 else set()
        node = Node(kind, b"target" if kind == stat.S_IFLNK else b"")
        parent = await m.ino(path)
        if kind == stat.S_IFREG:
            request: Awaitable[object] = self.create(m, parent, name, node)
        elif kind == stat.S_IFDIR:
            request = self.entered(m, m.fs.mkdir(parent, name, 0o755, WHO))
        elif kind == stat.S_IFLNK:
            request = self.entered(m, m.fs.symlink(parent, name, b"target", WHO))
        else:
            request = self.entered(m, m.fs.mknod(parent, name, kind | 0o644, 0, WHO))
        if await self.ask(request, refusals):
            directory.below()[name] = node
            node.links = 1

    async def entered(self, m: Mounted, request: Awaitable[object]) -> None:
        answer = await request
        m.fs.forget([(getattr(answer, "ino"), 1)])  # noqa: B009 - every answer that enters an inode has one

    async def create(self, m: Mounted, parent: int, name: bytes, node: Node) -> None:
        opened, attributes = await m.fs.create(parent, name, 0o644, os.O_RDWR | os.O_EXCL, WHO)
        m.fs.forget([(attributes.ino, 1)])
        node.content = self.draw.randbytes(self.draw.choice([0, 10, 5000]))
        await m.fs.write(opened.fh, 0, node.content)
        if self.draw.random() < 0.3:
            self.open.append((opened.fh, node))
        else:
            await m.fs.release(opened.fh)

    async def link(self, m: Mounted) -> None:
        path, directory, name = self.place()
        old_path, old_directory, old = self.place()
        node = old_directory.below().get(old)
        if node is not None and node.entries is None:
            request = self.entered(m, m.fs.link(await m.ino(_join(old_path, old)), await m.ino(path), name, WHO))
            if await self.ask(request, {errno.EEXIST} if name in directory.below() else set()):
                directory.below()[name] = node
                node.links += 1

    async def many_links(self, m: Mounted) -> None:
        """More names than stand in the inode's own record."""
        path, directory, name = self.place()
        node = directory.below().get(name)
        if node is not None and node.entries is None and node.links < 30:
            for i in range(9):
                new = b"%s-%d" % (name[:1], i)
                if new not in directory.below():
                    await self.entered(m, m.fs.link(await m.ino(_join(path, name)), await m.ino(path), new, WHO))
                    directory.below()[new] = node
                    node.links += 1

    async def remove(self, m: Mounted) -> None:
        path, directory, name = self.place()
        node = directory.below().get(name)
        parent = await m.ino(path)
        if self.draw.random() < 0.7:
            refusals = {errno.ENOENT} if node is None else {errno.EISDIR} if node.entries is not None else set()
            done = await self.ask(m.fs.unlink(parent, name, WHO), refusals)
        else:
            refusals = {errno.ENOENT} if node is None else {errno.ENOTDIR} if node.entries is None else {errno.ENOTEMPTY} if node.entries else set()
            done = await self.ask(m.fs.rmdir(parent, name, WHO), refusals)
        if done:
            directory.below().pop(name).links -= 1

    async def rename(self, m: Mounted) -> None:
        path, directory, name = self.place()
        new_path, new_directory, new = self.place()
        flags = self.draw.choice([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT, 8])
        node, target = directory.below().get(name), new_directory.below().get(new)
        if _is_within(new_path, _join(path, name)) or (flags == RENAME_EXCHANGE and _is_within(path, _join(new_path, new))):
            return  # the kernel refuses that
        refusals = self.rename_refusals(node, target, flags)
        parents = await m.ino(path), await m.ino(new_path)
        if not await self.ask(m.fs.rename(parents[0], name, parents[1], new, flags, WHO), refusals):
            return
        assert node is not None
        if flags == RENAME_EXCHANGE:
            assert target is not None
            directory.below()[name], new_directory.below()[new] = target, node
        elif target is not node:
            del directory.below()[name]
            new_directory.below()[new] = node
            if target is not None:
                target.links -= 1
            if flags == RENAME_WHITEOUT:
                directory.below()[name] = whiteout = Node(stat.S_IFCHR)
                whiteout.links = 1

    def rename_refusals(self, node: Node | None, target: Node | None, flags: int) -> set[int]:
        """rename(2)."""
        if flags == 8:
            return {errno.EINVAL, errno.ENOENT}
        if node is None or (flags == RENAME_EXCHANGE and target is None):
            return {errno.ENOENT} | ({errno.EEXIST} if flags == RENAME_NOREPLACE and target is not None else set())
        if flags == RENAME_EXCHANGE or target is None:
            return set()
        if flags == RENAME_NOREPLACE:
            return {errno.EEXIST}
        if target is node:
            return set()
        if node.entries is not None and target.entries is None:
            return {errno.ENOTDIR}
        if node.entries is None and target.entries is not None:
            return {errno.EISDIR}
        return {errno.ENOTEMPTY} if target.entries else set()

    async def set_xattr(self, m: Mounted) -> None:
        path, directory, name = self.place()
        node = directory.below().get(name)
        if node is not None:
            ino = await m.ino(_join(path, name))
            key = self.draw.choice([b"user.a", b"user.b"])
            if self.draw.random() < 0.7:
                value = self.draw.randbytes(self.draw.choice([0, 5, 3000]))
                await m.fs.setxattr(ino, key, value, WHO)
                node.xattrs[key] = value
            elif await self.ask(m.fs.removexattr(ino, key, WHO), set() if key in node.xattrs else {errno.ENODATA}):
                del node.xattrs[key]

    async def close(self, m: Mounted) -> None:
        if self.open:
            fh, node = self.open.pop(self.draw.randrange(len(self.open)))
            assert bytes(await m.fs.read(fh, 0, 10_000)) == node.content, "a file lives as long as it is open"
            await m.fs.flush(fh)
            await m.fs.release(fh)

    async def snapshot(self, m: Mounted) -> None:
        self.kept[(await m.fs.create_snapshot("test")).name] = self.shown()

    async def delete_snapshot(self, m: Mounted) -> None:
        if self.kept:
            name = self.draw.choice(list(self.kept))
            del self.kept[name]
            await m.fs.delete_snapshot(name)

    # --- comparing --------------------------------------------------------------------------------------------------

    def shown(self) -> Shown:
        """Everything by path; the first path that leads to a node says which it is."""
        found: Shown = {}
        first: dict[int, bytes] = {}
        for path, directory in sorted(self.directories().items()):
            found[path] = (stat.S_IFDIR, directory.nlink, sorted(directory.xattrs.items()), sorted(directory.below()))
            for name, node in sorted(directory.below().items()):
                if node.entries is None:
                    place = _join(path, name)
                    found[place] = (node.kind, node.nlink, sorted(node.xattrs.items()), node.content, first.setdefault(id(node), place))
        return found

    async def compare(self, m: Mounted) -> None:
        assert await look(m, b"") == self.shown()
        assert {info.name for info in m.fs.snapshots()} == set(self.kept)
        for name, shown in self.kept.items():
            assert await look(m, b".snapshots/" + name.encode()) == shown


async def look(m: Mounted, top: bytes) -> Shown:
    """The same of the mount."""
    found: Shown = {}
    first: dict[int, bytes] = {}
    directories = {b"": await m.ino(top)}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        for name, ino in await list_directory(m.fs, directories[path]):
            assert (await m.fs.lookup(directories[path], name)).ino == ino
            m.fs.forget([(ino, 1)])
            if stat.S_ISDIR((await m.fs.getattr(ino)).mode):
                directories[_join(path, name)] = ino
                waiting.append(_join(path, name))
    for path, ino in sorted(directories.items()):
        a = await m.fs.getattr(ino)
        entries = sorted(await list_directory(m.fs, ino))
        found[path] = (stat.S_IFMT(a.mode), a.nlink, await xattrs(m, ino), [name for name, _ in entries])
        for name, child in entries:
            place = _join(path, name)
            if place not in directories:
                b = await m.fs.getattr(child)
                kind = stat.S_IFMT(b.mode)
                content = b""
                if kind == stat.S_IFREG:
                    content = await m.get(_join(top, place) if top else place)
                elif kind == stat.S_IFLNK:
                    content = await m.fs.readlink(child)
                found[place] = (kind, b.nlink, await xattrs(m, child), content, first.setdefault(child, place))
    return found


async def xattrs(m: Mounted, ino: int) -> list[tuple[bytes, bytes]]:
    return sorted([(name, await m.fs.getxattr(ino, name)) for name in await m.fs.listxattr(ino, WHO)])


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _is_within(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top + b"/")


WEIGHTS = {
    Tree.make: 14,
    Tree.link: 4,
    Tree.many_links: 1,
    Tree.remove: 7,
    Tree.rename: 10,
    Tree.set_xattr: 4,
    Tree.close: 3,
    Tree.snapshot: 1,
    Tree.delete_snapshot: 1,
}


async def live(state: Path, name: str) -> None:
    draw = random.Random(name)
    tree = Tree(draw)
    world = World.new(state / "first")
    for ending in ("stop", "kill", "look"):
        killed: World | None = None
        async with world.mounted() as m:
            await tree.compare(m)
            for number, act in enumerate(draw.choices(list(WEIGHTS), list(WEIGHTS.values()), k=STEPS)):
                await act(tree, m)
                if number % 20 == 0:
                    await tree.compare(m)
            await tree.compare(m)
            if ending == "kill":
                await m.fs.commit()
                killed = world.after_kill(state / "second")
                if draw.random() < 0.5:
                    killed.without_index()
            while tree.open:
                await tree.close(m)
            await m.fs.idle()
            assert m.fs.status().orphans == 0
        assert await world.check() == []
        assert world.audit(state / f"copy-{ending}") == []
        world = killed or world


@pytest.mark.parametrize("number", range(RUNS))
def test_names_against_a_tree_of_objects(
    tmp_path: Path, seed: int, scale: float, number: int, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule
) -> None:
    make_small(monkeypatch)
    make_fast(monkeypatch)
    monkeypatch.setattr(limits, "INODE_CACHE_ENTRIES", 10)
    log_rule.expect("the name .snapshots is reserved")
    for again in range(max(int(scale), 1)):
        simulated(live)(tmp_path / str(again), f"{seed}/{number}/{again}")
