"""What files contain, against plain byte strings: written at any place, cut, stored at any time, snapshotted, mounted again.

The limits are small, so that a few kilobytes meet all of them: regions, crowded regions, packs and segments that fill up.
"""

import random
from pathlib import Path

import pytest
import trio

from tests.crash.simulation import TardyOffload
from tests.unit.engine.world import Mounted, World, make_fast, make_small, simulated

NAMES = [b"a", b"b", b"c"]
STEPS = 45
RUNS = 10


class Files:
    """Some files and what they must contain."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.content: dict[bytes, bytes] = {}
        self.kept: dict[str, dict[bytes, bytes]] = {}
        self.open: set[bytes] = set()

    def some(self) -> bytes:
        return self.draw.choice(NAMES)

    def data(self, old: bytes) -> bytes:
        size = self.draw.choice([1, 100, 511, 4096, 9000, 20_000, 60_000])
        kind = self.draw.random()
        if kind < 0.15:
            return bytes(size)
        if kind < 0.3 and old:
            return (old * (size // len(old) + 1))[:size]
        return self.draw.randbytes(size)

    def place(self, old: bytes) -> int:
        return self.draw.choice([0, len(old), len(old), len(old), self.draw.randint(0, len(old)), len(old) + self.draw.choice([1, 5000, 150_000])])

    async def handle(self, m: Mounted, name: bytes) -> int:
        if name not in self.open:
            await m.open(name)
            self.open.add(name)
            self.content.setdefault(name, b"")
        return m.handles[name]

    async def write(self, m: Mounted) -> None:
        name = self.some()
        fh = await self.handle(m, name)
        for _ in range(self.draw.choice([1, 1, 2, 6])):
            old = self.content[name]
            at, data = self.place(old), self.data(old)
            assert await m.fs.write(fh, at, data) == len(data)
            self.content[name] = old[:at].ljust(at, b"\0") + data + old[at + len(data) :]

    async def scatter(self, m: Mounted) -> None:
        """Many small overwrites, as a database makes them."""
        name = self.some()
        fh = await self.handle(m, name)
        for _ in range(30):
            old = self.content[name]
            at = self.draw.randint(0, len(old))
            data = b"%06d" % at
            await m.fs.write(fh, at, data)
            self.content[name] = old[:at] + data + old[at + len(data) :]

    async def truncate(self, m: Mounted) -> None:
        name = self.some()
        if name in self.content:
            old = self.content[name]
            size = self.draw.choice([0, len(old) // 2, max(len(old) - 1, 0), len(old) + 70_000, self.draw.randint(0, len(old))])
            await m.truncate(name, size)
            self.content[name] = old[:size].ljust(size, b"\0")

    async def fsync(self, m: Mounted) -> None:
        if self.open:
            await m.fs.fsync(m.handles[self.draw.choice(sorted(self.open))], datasync=False)

    async def close(self, m: Mounted) -> None:
        if self.open:
            name = self.draw.choice(sorted(self.open))
            self.open.remove(name)
            await m.close(name)

    async def unlink(self, m: Mounted) -> None:
        name = self.some()
        if name in self.content and name not in self.open:
            del self.content[name]
            await m.unlink(name)

    async def wait(self, m: Mounted) -> None:
        await trio.sleep(self.draw.choice([0.5, 2.5, 3.3, 11]))

    async def commit(self, m: Mounted) -> None:
        await m.fs.commit()

    async def snapshot(self, m: Mounted) -> None:
        info = await m.fs.create_snapshot("test")
        self.kept[info.name] = dict(self.content)

    async def delete_snapshot(self, m: Mounted) -> None:
        if self.kept:
            name = self.draw.choice(sorted(self.kept))
            del self.kept[name]
            await m.fs.delete_snapshot(name)

    async def read(self, m: Mounted) -> None:
        for name, content in self.content.items():
            fh = await self.handle(m, name)
            for _ in range(3):
                at, size = self.draw.randint(0, len(content) + 10), self.draw.choice([1, 4096, 200_000])
                assert bytes(await m.fs.read(fh, at, size)) == content[at : at + size]
            assert (await m.fs.getattr(await m.ino(name))).size == len(content)

    async def compare(self, m: Mounted) -> None:
        for name, content in self.content.items():
            assert await m.get(name, 50_000) == content
        assert {info.name for info in m.fs.snapshots()} == set(self.kept)
        for snapshot, files in self.kept.items():
            assert sorted(await m.names(b".snapshots/" + snapshot.encode())) == sorted(files)
            for name, content in files.items():
                assert await m.get(b".snapshots/" + snapshot.encode() + b"/" + name) == content


WEIGHTS = {
    Files.write: 12,
    Files.scatter: 2,
    Files.truncate: 5,
    Files.fsync: 4,
    Files.close: 3,
    Files.unlink: 2,
    Files.wait: 5,
    Files.commit: 1,
    Files.snapshot: 2,
    Files.delete_snapshot: 1,
    Files.read: 4,
}
ACTIONS = list(WEIGHTS)


async def commit_now_and_then(m: Mounted, draw: random.Random) -> None:
    while True:
        await trio.sleep(draw.choice([0.01, 0.05, 0.3, 1]))
        await m.fs.commit()


async def live(state: Path, name: str, *, tardy: bool = False) -> None:
    """Three mounts: one ended in order, one killed after a commit, one that then looks.

    `tardy`: threads take their time, and others commit meanwhile.
    """
    draw = random.Random(name)
    files = Files(draw)
    world = World.new(state / "first", compression=draw.random() < 0.5)
    for ending in ("stop", "kill", "look"):
        killed: World | None = None
        if tardy:
            world.offload = TardyOffload(draw)
        async with world.mounted() as m:
            async with trio.open_nursery() as meanwhile:
                if tardy:
                    meanwhile.start_soon(commit_now_and_then, m, random.Random(f"{name} {ending}"))
                await files.compare(m)
                for act in draw.choices(ACTIONS, list(WEIGHTS.values()), k=STEPS):
                    await act(files, m)
                await files.compare(m)
                meanwhile.cancel_scope.cancel()
            if ending == "kill":
                await m.fs.commit()
                killed = world.after_kill(state / "second")
                if draw.random() < 0.5:
                    killed.without_index()
            await m.fs.idle()
            for path in sorted(files.open):
                await m.close(path)
            files.open.clear()
        assert await world.check() == []
        assert world.audit(state / f"copy-{ending}") == []
        world = killed or world


@pytest.mark.parametrize("number", range(RUNS))
@pytest.mark.parametrize("tardy", [False, True], ids=["work takes no time", "threads take their time"])
def test_contents_against_byte_strings(tmp_path: Path, seed: int, scale: float, number: int, tardy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    make_fast(monkeypatch)
    for again in range(max(int(scale), 1)):
        simulated(live)(tmp_path / str(again), f"{seed}/{number}/{again}", tardy=tardy)
