"""Every call to the disk fails once, one after another, under a small workload; and every stretch of calls.

What fsync, commit or a snapshot answered for is there afterwards, whatever failed. What failed was told to somebody. After one
failure everything goes on; after many the mount may have become read-only, and the next one is whole.
"""

import errno
import gc
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.blobs.packs import NewBlob
from backupfs.engine.blobstore import Chunk
from backupfs.engine.filesystem import FileSystem
from backupfs.errors import BackupfsError, FileSystemError
from tests.conftest import LogRule
from tests.crash.disk import Image, SimulatedDisk
from tests.crash.faults import FaultyFiles
from tests.unit.engine.world import KIB, ROOT, WHO, Mounted, World, make_fast, make_small, simulated

CALLS = (
    "create",
    "write_at",
    "sync",
    "sync_directory",
    "rename",
    "unlink",
    "make_directory",
    "allocate",
    "open",
    "read_at",
    "size",
    "exists",
    "list",
)
Versions = dict[bytes, list[bytes | None]]
"""For each name what may stand there: what was last answered for, and everything since. None: nothing."""


def noise(size: int, seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(size)


class Workload:
    """Requests, and what they were answered. Every refusal is noted."""

    def __init__(self, m: Mounted) -> None:
        self.m = m
        self.versions: Versions = {}
        self.snapshots: dict[str, Versions] = {}
        self.refused: list[int] = []
        self.content: dict[bytes, bytes] = {}

    async def ask(self, request: Awaitable[object]) -> bool:
        try:
            await request
        except (BackupfsError, FileSystemError) as error:
            self.refused.append(error.errno)
            return False
        return True

    def changed(self, name: bytes, content: bytes | None) -> None:
        self.versions.setdefault(name, [None]).append(content)
        if content is None:
            self.content.pop(name, None)
        else:
            self.content[name] = content

    def acknowledged(self, *names: bytes) -> None:
        for name in names or list(self.versions):
            self.versions[name] = self.versions[name][-1:]

    async def write(self, name: bytes, at: int, data: bytes, *, sync: bool) -> None:
        m = self.m
        opened = name in m.handles
        if not opened and not await self.ask(m.open(name)):
            return
        if name not in self.content:
            self.changed(name, b"")
        old = self.content[name]
        if await self.ask(m.fs.write(m.handles[name], at, data)):
            self.changed(name, old[:at].ljust(at, b"\0") + data + old[at + len(data) :])
        if sync and await self.ask(m.fs.fsync(m.handles[name], datasync=False)):
            self.acknowledged(name)
        if not opened:
            await self.ask(m.close(name))

    async def commit(self) -> None:
        if await self.ask(self.m.fs.commit()):
            self.acknowledged()

    async def snapshot(self) -> None:
        before = {name: list(versions) for name, versions in self.versions.items()}
        try:
            info = await self.m.fs.create_snapshot("test")
        except BackupfsError as error:
            self.refused.append(error.errno)
            return
        self.acknowledged()
        self.snapshots[info.name] = {name: versions[-1:] for name, versions in before.items()}

    async def run(self) -> None:
        m = self.m
        await self.write(b"a", 0, noise(20_000, 1), sync=True)
        await self.write(b"b", 0, noise(70_000, 2), sync=False)
        await self.ask(m.mkdir(b"d"))
        await self.write(b"d/c", 0, b"text " * 4000, sync=True)
        await self.commit()
        await self.snapshot()
        await self.write(b"a", 10_000, noise(30_000, 3), sync=True)
        await self.write(b"b", 100_000, noise(60_000, 4), sync=False)
        if await self.ask(m.rename(b"a", b"renamed")):
            self.changed(b"renamed", self.content[b"a"])
            self.versions[b"renamed"] = [None, *self.versions[b"a"]]
            self.changed(b"a", None)
        await trio.sleep(7)
        for number in range(6):
            await self.write(b"log", 100 * number, noise(100, number), sync=True)
        if await self.ask(m.unlink(b"b")):
            self.changed(b"b", None)
        await self.snapshot()
        for name in list(self.snapshots)[:1]:
            await self.ask(m.fs.delete_snapshot(name))
            del self.snapshots[name]  # refused, it may be gone all the same
        await self.ask(m.fs.idle())
        await self.write(b"last", 0, noise(90_000, 5), sync=True)
        await self.commit()


class Base:
    """A repository that was used once, to be failed on again and again."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.image: Image | None = None
        self.turn = 0

    async def prepare(self) -> None:
        world = World.new(self.path / "base")
        async with world.mounted() as m:
            await m.put(b"old", noise(50_000, "old"))
        self.image = world.disk.image()

    def world(self) -> World:
        assert self.image is not None
        self.turn += 1
        world = World(self.path / f"turn{self.turn}", SimulatedDisk(self.image))
        world._make_state()
        return world


async def turn(base: Base, verdict: Callable[[str, int], int | None], *, kill: bool) -> tuple[Workload, World, str, int]:
    """One mount under faults: what was answered, what is left, what it said of itself, and how many calls could have failed."""
    world = base.world()
    calls = 0
    armed = False

    def counted(operation: str, _number: int) -> int | None:
        nonlocal calls
        if not armed or operation not in CALLS:
            return None
        calls += 1
        return verdict(operation, calls)

    world.files = FaultyFiles(world.disk, counted)
    workload: Workload | None = None
    left = world
    failure = ""
    try:
        async with world.mounted() as m:
            armed = True
            workload = Workload(m)
            with trio.fail_after(100_000):
                await workload.run()
            failure = m.fs.status().failure
            if kill:
                left = world.after_kill(base.path / f"killed{base.turn}")
    except BackupfsError as error:
        failure = failure or str(error)
    assert workload is not None
    left.files = left.disk
    return workload, left, failure, calls


async def verify(workload: Workload, world: World, directory: Path) -> None:
    """The next mount, on a disk that works."""
    async with world.mounted() as m:
        await compare(m, b"", workload.versions)
        assert await m.get(b"old") == noise(50_000, "old")
        names = {info.name for info in m.fs.snapshots()}
        assert names >= set(workload.snapshots)
        for name, versions in workload.snapshots.items():
            await compare(m, b".snapshots/" + name.encode() + b"/", versions)
        await m.put(b"afterwards", noise(30_000, "after"))
        await m.fs.create_snapshot("test")
        await m.fs.idle()
    assert await world.check() == []
    assert world.audit(directory) == []


async def compare(m: Mounted, top: bytes, versions: Versions) -> None:
    for name, allowed in versions.items():
        try:
            content: bytes | None = await m.get(top + name)
        except FileSystemError as error:
            if error.errno != errno.ENOENT:
                raise
            content = None
        assert content in allowed, (name, allowed[-1] and len(allowed[-1]), content and len(content))


def failing_once(which: int, code: int) -> Callable[[str, int], int | None]:
    """The verdict on calls that lets this one fail."""
    return lambda _operation, number: code if number == which else None


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    make_fast(monkeypatch)


@pytest.mark.parametrize("ending", ["stop", "kill"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@simulated
async def test_any_single_call_fails(tmp_path: Path, code: int, ending: str, log_rule: LogRule, scale: float) -> None:
    log_rule.expect(".")
    base = Base(tmp_path)
    await base.prepare()
    workload, world, failure, count = await turn(base, lambda _operation, _number: None, kill=ending == "kill")
    assert workload.refused == []
    assert failure == ""
    await verify(workload, world, tmp_path / "copy")
    assert count > 80
    step = max(round(3 / scale), 1)
    offset = {"stop": 0, "kill": 1}[ending] + (code == errno.ENOSPC)
    for number in range(1 + offset % step, count + 1, step):
        workload, world, failure, _ = await turn(base, failing_once(number, code), kill=ending == "kill")
        with noted(f"call {number}"):
            await verify(workload, world, tmp_path / f"copy{number}")
            if ending == "kill":
                assert failure == "", "one failure is made good"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
@simulated
async def test_any_stretch_of_calls_fails(tmp_path: Path, code: int, log_rule: LogRule, scale: float, seed: int) -> None:
    log_rule.expect(".")
    draw = random.Random(f"{seed}/{code}")
    base = Base(tmp_path)
    await base.prepare()
    _, _, _, count = await turn(base, lambda _operation, _number: None, kill=False)
    told = 0
    for number in range(int(25 * scale)):
        first, length = draw.randint(1, count), draw.choice([2, 3, 5, 10, 1000])
        kinds = draw.choice(
            [CALLS, ("sync",), ("write_at",), ("rename", "sync_directory"), ("create", "allocate"), ("open", "read_at", "size", "exists", "list")]
        )

        def verdict(operation: str, n: int, first: int = first, length: int = length, kinds: tuple[str, ...] = kinds) -> int | None:
            return code if first <= n < first + length and operation in kinds else None

        workload, world, failure, _ = await turn(base, verdict, kill=draw.random() < 0.3)
        told += bool(workload.refused or failure)
        with noted(f"run {number}: {length} calls of {kinds} from {first}"):
            await verify(workload, world, tmp_path / f"copy{number}")
    assert told


class noted:  # noqa: N801 - reads as a word where it is used
    """Says in a failure which turn it was."""

    def __init__(self, note: str) -> None:
        self.note = note

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            error.add_note(self.note)


# --- a disk that is full ------------------------------------------------------------------------------------------------


@simulated
async def test_a_full_disk_loses_nothing_and_deleting_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the disk to the brim, delete on it, and go on."""
    monkeypatch.setattr(limits, "RESERVE_BYTES", 400 * KIB)
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=7_000_000)
    acknowledged: dict[bytes, bytes] = {}
    async with world.mounted() as m:
        refused = 0
        for number in range(200):
            name, content = b"f%d" % number, noise(40_000, number)
            try:
                fh = await m.open(name)
                await m.fs.write(fh, 0, content)
                await m.fs.fsync(fh, datasync=False)
                await m.close(name)
                acknowledged[name] = content
            except (BackupfsError, FileSystemError) as error:
                if error.errno != errno.ENOSPC:
                    raise
                refused += 1
                if refused > 5:
                    break
        assert refused > 5
        assert m.fs.status().space_short
        facts = await m.fs.statfs()
        assert facts.blocks_available * facts.block_bytes <= 100_000
        for name, content in acknowledged.items():
            assert await m.get(name) == content
        info = None
        for name in list(acknowledged)[:40]:
            await m.unlink(name)
            del acknowledged[name]
        await m.fs.idle()
        await trio.sleep(12)
        assert not m.fs.status().space_short
        assert m.fs.status().failure == ""
        await m.put(b"again", noise(50_000, "again"))
        acknowledged[b"again"] = noise(50_000, "again")
        info = await m.fs.create_snapshot("test")
        assert info.serial == 1
    async with world.mounted() as m:
        for name, content in acknowledged.items():
            assert await m.get(name) == content
    assert await world.check() == []


@simulated
async def test_writes_already_taken_in_find_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """write(2) has returned long before: what was accepted is stored, out of the reserve if need be."""
    monkeypatch.setattr(limits, "RESERVE_BYTES", 400 * KIB)
    monkeypatch.setattr(limits, "DIRTY_BYTES_MAX", 200 * KIB)
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=7_000_000)
    accepted: dict[bytes, bytes] = {}
    async with world.mounted() as m:
        handles = [await m.open(b"f%d" % i) for i in range(150)]
        for i, fh in enumerate(handles):
            content = noise(50_000, i)
            if m.fs.status().space_short:
                break
            await m.fs.write(fh, 0, content)
            accepted[b"f%d" % i] = content
            if i % 10 == 9:
                await trio.sleep(limits.COMMIT_DELAY_S)
        assert len(accepted) < 150
        for request in (m.fs.create(ROOT, b"new", 0o644, os.O_RDWR, WHO), m.truncate(b"f149", 10**6), m.fs.setxattr(ROOT, b"user.a", b"", WHO)):
            with pytest.raises(FileSystemError) as raised:
                await request
            assert raised.value.errno == errno.ENOSPC
        opened = await m.fs.open(await m.ino(b"f149"), os.O_WRONLY, WHO)
        assert opened.direct_io, "here write(2) itself can be refused"
        with pytest.raises(FileSystemError):
            await m.fs.write(opened.fh, 0, b"x")
        await m.fs.commit()
    async with world.mounted() as m:
        for name, content in accepted.items():
            assert await m.get(name) == content


def leave_room(world: World, size_bytes: int) -> None:
    """From now on so many bytes of contents find room, and records as many as are kept free for them."""
    world.disk.set_capacity(world.disk._used_bytes + min(limits.RECORDS_ROOM_BYTES, 50_000_000 // 32) + size_bytes)


@simulated
async def test_what_cannot_be_stored_is_held_once_however_often_it_is_tried(tmp_path: Path, log_rule: LogRule) -> None:
    """An error that holds the frames that it came through, and is held by them, would keep each attempt's chunks until cycles are looked for."""
    log_rule.expect("could not be stored")
    log_rule.allow("the reserve of|the regular commit")
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=50_000_000)
    async with world.mounted() as m:
        fs: FileSystem = m.fs
        handles = [await m.open(b"f%d" % number) for number in range(3)]
        await fs.idle()
        gc.collect()
        gc.disable()
        try:
            leave_room(world, 10 * KIB)
            for number, fh in enumerate(handles):
                await fs.write(fh, 0, noise(2 * limits.FLUSH_SMALL_BYTES, number))
            await trio.sleep(4 * limits.DIRTY_AGE_S)
            for attempt in (fs.fsync(handles[0], datasync=False), fs.create_snapshot("test"), fs.commit()):
                with pytest.raises(BackupfsError):
                    await attempt
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            held = [each for each in gc.garbage if isinstance(each, Chunk | NewBlob | memoryview)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
        assert held == []
        world.disk.set_capacity(50_000_000)
        for fh in handles:
            with suppress(FileSystemError):  # what failed in the background is told once
                await fs.flush(fh)
            await fs.fsync(fh, datasync=False)


@simulated
async def test_on_a_full_disk_what_waits_is_not_worked_on_until_there_is_room(
    tmp_path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_rule.expect("could not be stored")
    log_rule.allow("the reserve of|the regular commit")
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=50_000_000)
    async with world.mounted() as m:
        fs: FileSystem = m.fs
        await fs.idle()
        worked: list[int] = []
        identify = fs._data._blobs.identify

        def counted(pieces: Sequence[bytes | memoryview]) -> list[Chunk]:
            worked.append(len(pieces))
            return identify(pieces)

        monkeypatch.setattr(fs._data._blobs, "identify", counted)
        fh = await m.open(b"f")
        leave_room(world, 10 * KIB)
        await fs.write(fh, 0, noise(6144 * KIB, "full"))
        await trio.sleep(5 * limits.DIRTY_AGE_S)
        tried = len(worked)
        assert tried > 0
        await trio.sleep(100 * limits.DIRTY_AGE_S)
        assert len(worked) == tried
        world.disk.set_capacity(50_000_000)
        await trio.sleep(5 * limits.DIRTY_AGE_S)
        assert not fs._data.unstored()
        with suppress(FileSystemError):
            await fs.flush(fh)
        await fs.fsync(fh, datasync=False)
        assert await m.get(b"f") == noise(6144 * KIB, "full")


@simulated
async def test_errors_of_the_background_reach_every_descriptor_once(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("could not be stored")
    world = World.new(tmp_path / "w")
    failing = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if failing and operation in ("write_at", "create") else None)
    async with world.mounted() as m:
        fs: FileSystem = m.fs
        first, second = await m.open(b"f"), (await fs.open(await m.ino(b"f"), os.O_WRONLY, WHO)).fh
        await fs.idle()  # collection looks once after the mount, and commits before it does
        failing = True
        await fs.write(first, 0, b"x" * 10_000)
        await trio.sleep(4)
        for fh in (first, second):
            with pytest.raises(FileSystemError) as raised:
                await fs.flush(fh)
            assert raised.value.errno == errno.EIO
            await fs.flush(fh)
        with pytest.raises(BackupfsError):
            await fs.fsync(first, datasync=False)
        failing = False
        await fs.flush(first)
        await fs.fsync(first, datasync=False)
        with pytest.raises(FileSystemError):
            await fs.flush(second)
        late = (await fs.open(await m.ino(b"f"), os.O_RDONLY, WHO)).fh
        await fs.flush(late)
        assert await m.get(b"f") == b"x" * 10_000
        assert fs.status().errors


@simulated
async def test_a_damaged_end_costs_its_file_only(tmp_path: Path, log_rule: LogRule) -> None:
    """The last chunk of one file cannot be read; it is appended to. Everybody else goes on, and so does the new part."""
    log_rule.expect("is damaged")
    log_rule.expect("reading inode")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(700, 1))
    [pack] = world.objects("packs")
    world.disk.damage(pack, 200)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 700, b"appended")
        await m.put(b"other", b"content")
        await m.fs.create_snapshot("test")
        await m.fs.fsync(fh, datasync=False)
        assert bytes(await m.fs.read(fh, 700, 100)) == b"appended"
        with pytest.raises(BackupfsError):
            await m.fs.read(fh, 0, 10)
        await m.close(b"f")
    async with world.mounted() as m:
        assert await m.get(b"other") == b"content"
