"""What was acknowledged stays, whatever comes after: kills and power cuts one after the other, ends in the middle of work, damage met late."""

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from backupfs import limits
from backupfs.blobs.packs import NewBlob
from backupfs.clock import SystemClock
from backupfs.engine.attributes import AttributeChanges
from backupfs.engine.filesystem import FileSystem
from backupfs.errors import BackupfsError, DamageError, StoreError
from backupfs.format import catalog as records
from backupfs.format.catalog import Table, number_key
from backupfs.journal.writer import JournalWriter
from backupfs.offload import ThreadOffload
from backupfs.stores.files import Handle
from tests.conftest import LogRule
from tests.crash.disk import SimulatedDisk, call_site, failure
from tests.crash.power_cut import Fate, Mode, PowerCut
from tests.unit.engine.test_durability import GatedOffload, noise, until
from tests.unit.engine.world import KIB, MIB, REPOSITORY, ROOT, WHO, Mounted, World, simulated


class Hooked:
    """A disk; `before_sync` is called before each sync that a module of the program asks for."""

    def __init__(self, disk: SimulatedDisk, module: str, before_sync: Callable[[Handle], None]) -> None:
        self._disk = disk
        self._module = module
        self._before_sync = before_sync

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def sync(self, handle: Handle) -> None:
        if call_site().startswith(self._module):
            self._before_sync(handle)
        self._disk.sync(handle)


async def sync_names(fs: FileSystem) -> None:
    fh = await fs.opendir(ROOT)
    await fs.fsyncdir(fh, datasync=False)
    await fs.releasedir(fh)


async def damage_first_blob(world: World, m: Mounted, name: bytes, at: int) -> tuple[Path, int]:
    """A byte of the blob that holds this byte of a file, whose pack is closed by now."""
    fs = m.fs
    state = fs._inodes.get(await m.ino(name))
    assert state is not None
    [extent] = fs._data.extents(state.record, records.EPOCH_MAX, at, at + 1)
    blob = fs._volume.catalog.blob(extent[2])
    pack = fs._volume.catalog.pack_object_id(blob.pack).hex()
    return REPOSITORY / "packs" / pack[:2] / pack, blob.offset + 20


# --- kills, cuts, ends --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["lost", "kept"])
@simulated
async def test_what_recovery_reads_from_the_page_cache_is_made_durable_first(tmp_path: Path, index: str) -> None:
    """Killed between a batch's write and its sync; the next mount counts that batch and builds on it; then the power goes."""
    world = World.new(tmp_path / "w")
    killed: list[tuple[int, World]] = []
    armed = False

    def kill(_handle: Handle) -> None:
        nonlocal armed
        if armed:
            armed = False
            copy = world.after_kill(tmp_path / "killed")
            copy.disk._next_node += 100  # the two logs are read as one below
            killed.append((len(world.disk.log), copy))

    world.files = Hooked(world.disk, "journal/writer.py", kill)
    async with world.mounted() as m:
        await m.put(b"a", b"a" * 1000)
        await m.fs.commit()
        await m.put(b"b", b"b" * 1000)
        armed = True
        await m.fs.commit()
    [(position, second)] = killed
    async with second.mounted() as m:
        fh = await m.open(b"c")
        await m.fs.write(fh, 0, b"c" * 1000)
        await m.fs.fsync(fh, datasync=False)
        cut = PowerCut(world.disk.base, [*world.disk.log[:position], *second.disk.log], 0)
        cut.advance(position + len(second.disk.log))
        third = World(tmp_path / "third", SimulatedDisk(cut.cut(random.Random(0), Mode.ORDERED, Fate.LOST)))
        third._make_state()
        if index == "kept":
            shutil.copytree(second.state / "index", third.state / "index")
    async with third.mounted() as m:
        assert await m.get(b"a") == b"a" * 1000
        assert await m.get(b"c") == b"c" * 1000
    assert await third.check() == []


def _takes_its_time(draw: random.Random, _handle: Handle) -> None:
    time.sleep(draw.uniform(0.001, 0.005))


def test_the_journal_has_one_writer_also_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted snapshots are being purged when the mount ends; with threads, and a disk that takes its time."""
    inside: list[int] = []
    overlaps: list[str] = []

    def watched(name: str) -> None:
        plain = getattr(JournalWriter, name)

        def call(self: JournalWriter, *args: Any, **how: Any) -> Any:
            me = threading.get_ident()
            overlaps.extend(name for other in inside if other != me)
            inside.append(me)
            try:
                return plain(self, *args, **how)
            finally:
                inside.remove(me)

        monkeypatch.setattr(JournalWriter, name, call)

    watched("append")
    watched("close")

    async def main() -> None:
        for attempt in range(8):
            draw = random.Random(attempt)
            world = World.new(tmp_path / f"w{attempt}")
            world.files = Hooked(world.disk, "", partial(_takes_its_time, draw))
            world.offload, world.clock = ThreadOffload(), SystemClock()  # type: ignore[assignment]
            async with world.mounted() as m:
                names = []
                for _ in range(8):
                    await m.put(b"f", draw.randbytes(5000))
                    names.append((await m.fs.create_snapshot("manual")).name)
                for name in names[:-1]:
                    await m.fs.delete_snapshot(name)
            world.files = world.disk
            assert await world.check() == []

    trio.run(main)
    assert overlaps == []


@simulated
async def test_the_end_waits_for_blobs_that_are_on_their_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small blobs at a closed file's end are being made one chunk: its pack is not closed before that is noted."""
    monkeypatch.setattr(limits, "INLINE_WORK_BYTES", 0)
    world = World.new(tmp_path / "w")
    world.offload = offload = GatedOffload()
    content = b"".join(noise(300, i) for i in range(3))

    async def let_through(gate: trio.Event) -> None:
        await trio.sleep(100)
        gate.set()

    async with trio.open_nursery() as nursery, world.mounted() as m:
        fh = await m.open(b"log")
        for i in range(3):
            await m.fs.write(fh, 300 * i, content[300 * i : 300 * (i + 1)])
            await m.fs.fsync(fh, datasync=False)
        await m.close(b"log")
        turn = f"append {offload.turns['append'] + 1}"
        gate = offload.gate(turn, after=True)
        await until(lambda: turn in offload.waiting)
        nursery.start_soon(let_through, gate)
    world.offload = GatedOffload()
    assert await world.check() == []
    async with world.mounted() as m:
        assert await m.get(b"log") == content


@pytest.mark.parametrize("sync_fails", [False, True])
@simulated
async def test_a_sync_waits_for_another_of_a_pack_that_has_failed_since(tmp_path: Path, sync_fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_UNSYNCED_BYTES", 4096)
    world = World.new(tmp_path / "w", compression=False)
    syncing, go_on = threading.Event(), threading.Event()
    slow = write_fails = False

    def before_sync(handle: Handle) -> None:
        nonlocal slow
        if slow:
            slow = False
            syncing.set()
            assert go_on.wait(10)
            if sync_fails:
                world.disk.fail_sync(handle)

    class Files(Hooked):
        def write_at(self, handle: Handle, offset: int, parts: list[bytes]) -> None:
            if write_fails and call_site().startswith("blobs/packs.py"):
                raise failure(errno.ENOSPC, "write", handle)
            world.disk.write_at(handle, offset, parts)

    world.files = Files(world.disk, "blobs/packs.py", before_sync)  # type: ignore[assignment]
    async with world.mounted() as m:
        packs, keys = m.fs._volume.packs, m.fs._volume.keys

        def blob(number: int, size: int) -> NewBlob:
            data = noise(size, number)
            return NewBlob(number, keys.blob_id(data), data)

        [place] = packs.append([blob(1001, 1000)])
        packs.claim([(1001, place)])
        slow = True
        packs.append([blob(1002, 8000)])
        assert packs.much_unsynced()
        other = threading.Thread(target=packs.sync_much)  # blob 1001 too
        other.start()
        assert syncing.wait(10)
        write_fails = True
        with pytest.raises(StoreError):
            packs.append([blob(1003, 500)])
        write_fails = False
        moved: list[dict[int, Any]] = []
        committing = threading.Thread(target=lambda: moved.append(packs.sync()))
        committing.start()
        committing.join(0.2)
        assert committing.is_alive(), "it must wait until the other has synced"
        go_on.set()
        other.join(10)
        committing.join(10)
        assert (1001 in moved[0]) == sync_fails
        assert packs.sync() == {}


@simulated
async def test_a_size_that_was_acknowledged_is_not_taken_back(tmp_path: Path, small: None) -> None:
    """A file is made longer while it is stored with another one, which is still being chunked anew when it is stored itself."""
    world = World.new(tmp_path / "w")
    world.offload = offload = GatedOffload()
    async with world.mounted() as m:
        fh, ino = await m.open(b"f"), await m.ino(b"f")
        await m.fs.write(fh, 0, b"x" * 1000)
        crowded = await m.open(b"crowded")
        for i in range(40):
            await m.fs.write(crowded, 300 * i, noise(100, i))
        gates = [offload.gate("append", after=True), offload.gate("append 2", after=True), offload.gate("identify")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs._data.flush_all)
            await until(lambda: "append" in offload.waiting)
            await m.truncate(b"f", 5000)
            gates[0].set()
            await until(lambda: "identify" in offload.waiting)
            await m.fs.fsync(fh, datasync=False)
            await m.fs.write(fh, 0, b"y")
            await m.fs.setattr(ino, AttributeChanges(mtime_ns=1), fh, WHO)
            await sync_names(m.fs)
            killed = world.after_kill(tmp_path / "k")
            for gate in gates:
                gate.set()
    async with killed.mounted() as m:
        assert (await m.fs.getattr(await m.ino(b"f"))).size == 5000


@simulated
async def test_an_exchange_stores_both_files(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"old" * 1000)
        await m.fs.commit()
        await m.put(b"f.new", b"new" * 1000)
        await m.rename(b"f", b"f.new", 2)
        await sync_names(m.fs)
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert await m.get(b"f") == b"new" * 1000
        assert await m.get(b"f.new") == b"old" * 1000


@simulated
async def test_a_cancelled_snapshot_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(100_000))
        real = m.fs._data.flush_all
        calls = 0

        async def cancelled_the_second_time() -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                scope.cancel()
            await trio.lowlevel.checkpoint()
            await real()

        with monkeypatch.context() as patch, trio.CancelScope() as scope:
            patch.setattr(m.fs._data, "flush_all", cancelled_the_second_time)
            await m.fs.create_snapshot("manual")
        assert scope.cancelled_caught
        with trio.fail_after(100):
            await m.fs.write(fh, 0, b"x")


# --- damage -------------------------------------------------------------------------------------------------------------


@simulated
async def test_writing_the_content_of_a_damaged_blob_again_heals_it(tmp_path: Path, log_rule: LogRule) -> None:
    """The same content is not referred to where it cannot be read: it is stored anew, for all who have it."""
    world = World.new(tmp_path / "w")
    content = noise(50_000)
    async with world.mounted() as m:
        await m.put(b"old", content)
        await m.put(b"kept", noise(1000, "kept"))
        past = b".snapshots/" + (await m.fs.create_snapshot("manual")).name.encode() + b"/old"
        where = await damage_first_blob(world, m, b"old", 0)
    world.disk.damage(*where)
    log_rule.expect("reading inode")
    async with world.mounted() as m:
        with pytest.raises(DamageError):
            await m.get(b"old")
        await m.unlink(b"old")
        fh = await m.open(b"new")
        await m.fs.write(fh, 0, content)
        await m.fs.fsync(fh, datasync=False)
        await m.close(b"new")
        assert await m.get(b"new") == content
        assert await m.get(past) == content
        killed = world.after_kill(tmp_path / "k")
    for each in (killed, world):
        assert await each.check() == []
        async with each.mounted() as m:
            assert await m.get(b"new") == content
            assert await m.get(past) == content
    assert world.audit(tmp_path / "export") == []


async def _write_here_and_there(m: Mounted, fh: int, at: int, step: int, count: int) -> None:
    for i in range(count):
        await m.fs.write(fh, at + step * i, noise(50, i))
        await m.fs.fsync(fh, datasync=False)


@simulated
async def test_damage_in_a_fragmented_file_costs_nobody_a_sync(tmp_path: Path, log_rule: LogRule, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"db", noise(64 * KIB))
        await m.put(b"other", b"x")
        await m.fs.commit()
        where = await damage_first_blob(world, m, b"db", 100)
    world.disk.damage(*where)
    log_rule.expect("stays fragmented")
    async with world.mounted() as m:
        fh, other = await m.open(b"db", os.O_RDWR), await m.open(b"other", os.O_RDWR)
        await _write_here_and_there(m, fh, 100, 120, 40)
        await m.fs.write(fh, 30_000, b"more")
        await m.fs.write(other, 1, b"y")
        await m.fs.create_snapshot("manual")
        await m.fs.fsync(other, datasync=False)
        assert bytes(await m.fs.read(fh, 30_000, 4)) == b"more"


@simulated
async def test_damage_in_a_fragmented_file_with_the_limits_as_they_are(tmp_path: Path, log_rule: LogRule) -> None:
    world = World.new(tmp_path / "w", compression=False)
    async with world.mounted() as m:
        await m.put(b"db", noise(16 * MIB))
        await m.fs.commit()
        where = await damage_first_blob(world, m, b"db", 4 * MIB + 512 * KIB)
    world.disk.damage(*where)
    log_rule.expect("stays fragmented")
    async with world.mounted() as m:
        fh = await m.open(b"db", os.O_RDWR)
        await _write_here_and_there(m, fh, 4 * MIB, 6 * KIB, 530)


@simulated
async def test_bytes_that_extents_cannot_be_made_of_are_kept(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index holds a value that does not open, once, while stored bytes are taken note of."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"db", noise(64 * KIB))
        await m.fs.commit()
        await m.fs._committer.applied()
        fh = await m.open(b"db", os.O_RDWR)
        await m.fs.write(fh, 1000, b"N" * 100)
        with monkeypatch.context() as patch:
            _do_not_open(m, patch, lambda table, _key: table is Table.REGIONS)
            with pytest.raises(DamageError):
                await m.fs.fsync(fh, datasync=False)
        await m.fs.fsync(fh, datasync=False)
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert (await m.get(b"db"))[1000:1100] == b"N" * 100


@simulated
async def test_an_index_that_cannot_be_read_stops_writing_and_loses_nothing_in_silence(
    tmp_path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Met while a snapshot's batch is made: what comes after is refused, not acknowledged and left out."""
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:  # of what the mount itself has made it needs to read nothing
        for name in (b"a", b"b"):
            await m.put(name, name * 1000)
    with pytest.RaisesGroup(BackupfsError, flatten_subgroups=True, allow_unwrapped=True):
        async with world.mounted() as m:
            handles = [await m.open(name, os.O_RDWR) for name in (b"a", b"b")]
            unreadable = number_key(await m.ino(b"a"))
            for fh in handles:
                await m.fs.write(fh, 0, b"new" * 300)
                await m.fs._data.flush_all()
            _do_not_open(m, monkeypatch, lambda table, key: table is Table.INODES and key[:8] == unreadable)
            with pytest.raises(DamageError):
                await m.fs.create_snapshot("manual")
            with pytest.raises(BackupfsError):
                await m.fs.fsync(handles[1], datasync=False)


def _do_not_open(m: Mounted, patch: pytest.MonkeyPatch, which: Callable[[Table, bytes], bool]) -> None:
    index = m.fs._volume.index
    real = index.open_record

    def open_record(table: Table, key: bytes, sealed: bytes) -> bytes:
        if which(table, key):
            raise DamageError("a value of the index does not open")
        return real(table, key, sealed)

    patch.setattr(index, "open_record", open_record)
