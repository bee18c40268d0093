"""What requests cost, in counts that are the same on every machine: looks into the index, readings of the clock, records, batches."""

import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from backupfs import limits
from backupfs.catalog.catalog import Catalog, Layer
from backupfs.catalog.index import Index
from backupfs.engine.attributes import AttributeChanges
from backupfs.errors import FileSystemError
from backupfs.format.catalog import Table
from tests.conftest import LogRule
from tests.unit.engine.world import REPOSITORY, ROOT, WHO, Mounted, World, list_directory, simulated

FILES = 40


@contextmanager
def counting(world: World, into: Counter[str]) -> Iterator[None]:
    """Counts looks into the index, which may each wait for a disk, and readings of the clock, which are two system calls."""
    real_seek, real_get, clock = Index.seek, Index.get, world.clock

    def seek(self: Index, table: Table, start: bytes) -> tuple[bytes, bytes] | None:
        into["looks"] += 1
        return real_seek(self, table, start)

    def get(self: Index, table: Table, key: bytes) -> bytes | None:
        into["looks"] += 1
        return real_get(self, table, key)

    class Counting:
        def now_ns(self) -> int:
            into["clock"] += 1
            return clock.now_ns()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "seek", seek)
        patch.setattr(Index, "get", get)
        patch.setattr(world, "clock", Counting())
        yield


async def missing(m: Mounted, parent: int, name: bytes) -> None:
    """The lookup by which the kernel finds out that a name is free."""
    with pytest.raises(FileSystemError) as answer:
        await m.fs.lookup(parent, name)
    assert answer.value.errno == errno.ENOENT


async def make(m: Mounted, parent: int, name: bytes) -> int:
    """A file made and closed, by the requests of a program that does that. The kernel goes on knowing it."""
    await missing(m, parent, name)
    opened, attributes = await m.fs.create(parent, name, 0o644, os.O_CREAT | os.O_EXCL | os.O_WRONLY, WHO)
    await m.fs.getattr(parent)
    await m.fs.flush(opened.fh)
    await m.fs.release(opened.fh)
    return attributes.ino


@simulated
async def test_files_in_a_new_directory(tmp_path: Path) -> None:
    """Nothing about them is looked up, from the first request to the last, whatever batches come in between."""
    world = World.new(tmp_path / "host")
    counts: Counter[str] = Counter()
    with counting(world, counts):
        async with world.mounted() as m:
            top = await m.mkdir(b"d")
            counts.clear()
            inos = [await make(m, top, b"%d" % n) for n in range(FILES)]
            assert counts == {"clock": FILES}
            await m.fs.commit()
            counts.clear()
            for ino in inos:
                for changes in (
                    AttributeChanges(atime_ns=5, mtime_ns=5, ctime_ns=9),
                    AttributeChanges(uid=1, ctime_ns=9),
                    AttributeChanges(mode=0o600, ctime_ns=9),
                ):
                    await m.fs.setattr(ino, changes, None, WHO)
            assert not counts, "the kernel has said when"
            await m.fs.commit()
            counts.clear()
            for n in range(FILES):
                await missing(m, top, b"new %d" % n)
                await m.fs.rename(top, b"%d" % n, top, b"new %d" % n, 0, WHO)
            assert counts == {"clock": FILES}
            await m.fs.commit()
            counts.clear()
            assert len(await list_directory(m.fs, top)) == FILES
            assert not counts
            for n, ino in enumerate(inos):
                await m.fs.unlink(top, b"new %d" % n, WHO)
                m.fs.forget([(ino, 1)])
            assert counts == {"clock": FILES}
            await m.fs.commit()
            assert m.fs.status().orphans == 0
            assert await list_directory(m.fs, top) == []
    assert await world.check() == []


@simulated
async def test_names_of_an_old_directory(tmp_path: Path) -> None:
    """One look tells whether a name is there, for all requests that follow; once the directory has been listed none is needed."""
    world = World.new(tmp_path / "host")
    async with world.mounted() as m:
        top = await m.mkdir(b"d")
        for n in range(FILES):
            await make(m, top, b"old %d" % n)
    counts: Counter[str] = Counter()
    with counting(world, counts):
        async with world.mounted() as m:
            await m.fs.getattr(top)
            counts.clear()
            for n in range(FILES):
                await make(m, top, b"%d" % n)
            assert counts == {"looks": FILES + 1, "clock": FILES}, "one for the default access list of the directory"
            listed = await list_directory(m.fs, top)
            assert len(listed) == 2 * FILES
            counts.clear()
            for n in range(FILES):
                await missing(m, top, b"missing %d" % n)
                await m.fs.lookup(top, b"old %d" % n)
            assert await list_directory(m.fs, top) == listed
            assert not counts


@simulated
async def test_records_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is four records; what was made and removed since the last batch is none."""
    world = World.new(tmp_path / "host")
    batches: list[Counter[str]] = []
    real = Catalog.freeze

    def freeze(self: Catalog) -> Any:
        layer: Layer
        layer, dead = real(self)
        batches.append(Counter(Table(table).name for table, _, value in layer.changes() if value is not None))
        return layer, dead

    monkeypatch.setattr(Catalog, "freeze", freeze)
    async with world.mounted() as m:
        top = await m.mkdir(b"d")
        await m.fs.commit()
        batches.clear()
        for n in range(FILES):
            await m.put(b"d/%d" % n, b"content %d" % n)
        assert not batches, "nobody has asked for one"
        await m.fs.commit()
        assert sum(batches, Counter()) == {
            "INODES": FILES + 1, "DENTRIES": FILES, "BLOBS": FILES, "BLOB_IDS": FILES, "PACKS": 1, "META": 1,
        }  # fmt: skip
        batches.clear()
        for n in range(FILES):
            ino = await make(m, top, b"passing %d" % n)
            await m.fs.unlink(top, b"passing %d" % n, WHO)
            m.fs.forget([(ino, 1)])
        await m.fs.commit()
        assert sum(batches, Counter()) == {"INODES": 1, "META": 1}
    assert await world.check() == []


@simulated
async def test_a_file_that_is_removed_while_it_is_open(tmp_path: Path) -> None:
    """It is an orphan in the batch, and in none that comes after its end."""
    world = World.new(tmp_path / "host")
    async with world.mounted() as m:
        await m.open(b"f")
        await m.fs.commit()
        await m.unlink(b"f")
        await m.fs.commit()
        rows = m.fs._volume.catalog.rows
        assert len(rows(Table.ORPHANS)) == 1
        await m.close(b"f")
        assert rows(Table.ORPHANS) == []
        await m.fs.commit()
    assert await world.check() == []


@simulated
async def test_what_stat_shows_is_kept(tmp_path: Path) -> None:
    """With what the kernel's side has made of it, until something of it changes."""
    world = World.new(tmp_path / "host")
    async with world.mounted() as m:
        top = await m.mkdir(b"d")
        ino = await make(m, top, b"f")
        shown = await m.fs.getattr(ino)
        assert await m.fs.getattr(ino) is shown
        assert await m.fs.lookup(top, b"f") is shown
        fh = await m.open(b"d/f", os.O_RDWR)
        assert (await m.fs.getattr(ino)).blocks == 0
        await m.fs.write(fh, 0, bytes(1000))
        written = await m.fs.getattr(ino)
        assert (written.size, written.blocks) == (1000, 2)
        await m.fs.write(fh, 0, b"x" * 1000)
        assert await m.fs.getattr(ino) == written
        await m.close(b"d/f")
        await m.fs.commit()
        stored = await m.fs.getattr(ino)
        assert stored == written
        assert await m.fs.getattr(ino) is stored
        changed = await m.fs.setattr(ino, AttributeChanges(mode=0o600), None, WHO)
        assert (changed.mode & 0o777, (await m.fs.getattr(ino)).mode & 0o777) == (0o600, 0o600)
        before = await m.fs.getattr(top)
        await m.fs.mkdir(top, b"below", 0o755, WHO)
        assert (await m.fs.getattr(top)).nlink == before.nlink + 1
        assert (await m.fs.getattr(ROOT)).nlink == 3


@simulated
async def test_scattered_overwrites_change_the_record_of_a_region_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: Counter[bytes] = Counter()
    real = Catalog.write

    def write(self: Catalog, table: Table, object_key: bytes, *args: Any, **more: Any) -> None:
        if table == Table.REGIONS:
            written[object_key] += 1
        real(self, table, object_key, *args, **more)

    world = World.new(tmp_path / "w")
    draw = random.Random(1)
    content = bytearray(draw.randbytes(40 << 20))  # three regions
    async with world.mounted() as m:
        await m.put(b"f", bytes(content))
        await m.fs.commit()
        stored_bytes = m.fs.stats().stored_bytes
        monkeypatch.setattr(Catalog, "write", write)
        fh = await m.open(b"f")
        pages = draw.sample(range(len(content) >> 12), 1200)
        for page in pages:
            content[page << 12 : (page + 1) << 12] = data = draw.randbytes(4096)
            await m.fs.write(fh, page << 12, data)
        await m.fs.fsync(fh, datasync=False)
        assert sorted(written.values()) == [1, 1, 1]
        assert m.fs.stats().stored_bytes - stored_bytes < len(pages) * 4200, "and no chunk is written anew"
        await m.close(b"f")
        assert await m.get(b"f") == content


HOUR_S = 3600


@simulated
async def test_a_mount_that_nobody_uses_is_woken_by_its_regular_looks_only(tmp_path: Path) -> None:
    woken_at: set[float] = set()

    class Wakes(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            woken_at.add(trio.current_time())

    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"content")
        await trio.sleep(3 * limits.COMMIT_DELAY_S)
        wakes = Wakes()
        trio.lowlevel.add_instrument(wakes)
        await trio.sleep(HOUR_S)
        trio.lowlevel.remove_instrument(wakes)
        assert len(woken_at) <= HOUR_S / limits.LOOK_S + 1
        await m.put(b"g", b"more")
        await trio.sleep(2 * limits.DIRTY_AGE_S)
        assert not m.fs.status().dirty_bytes, "what comes after a rest is stored as soon as anything else"
        await trio.sleep(HOUR_S)
        await m.mkdir(b"d")
        await trio.sleep(limits.COMMIT_DELAY_S + 0.1)
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert sorted(await m.names(b"")) == [b"d", b"f", b"g"]


@simulated
async def test_what_was_asked_for_before_a_rest_ends_it(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m, trio.open_nursery() as nursery:
        fh = await m.open(b"f")
        await m.fs.commit()
        m.fs._parked = trio.Event()  # as a snapshot's cut does, which holds for 50 ms at most: a rest must begin meanwhile
        nursery.start_soon(m.mkdir, b"d")
        nursery.start_soon(m.fs.write, fh, 0, b"content")
        await trio.sleep(3 * limits.COMMIT_DELAY_S)
        m.fs._unpark()
        await trio.sleep(limits.COMMIT_DELAY_S + 0.1)
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert sorted(await m.names(b"")) == [b"d", b"f"]
        assert await m.get(b"f") == b"content"


@simulated
async def test_the_first_bytes_after_a_rest_have_the_disk_looked_at(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w", capacity_bytes=80_000_000)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await trio.sleep(2 * limits.COMMIT_DELAY_S + 1)
        free_bytes, total_bytes = world.disk.free_bytes(REPOSITORY)
        world.disk.set_capacity(total_bytes - free_bytes + 2_000_000)  # less than half of the reserve
        await trio.testing.wait_all_tasks_blocked()
        assert not m.fs.status().space_short, "nobody has looked"
        await m.fs.write(fh, 0, b"content")
        await trio.testing.wait_all_tasks_blocked()
        assert m.fs.status().space_short
        world.disk.set_capacity(1 << 40)


@simulated
async def test_memory_goes_back_once_for_so_many_records_and_without_their_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MEMORY_BACK_RECORDS", 100)  # a hundred thousand take minutes here
    world = World.new(tmp_path / "w")
    layers: list[int] = []
    async with world.mounted() as m:
        volume = m.fs._volume
        volume.seams = replace(volume.seams, give_memory_back=lambda: layers.append(volume.catalog.frozen_layers))
        for number in range(100):
            await m.put(b"f%d" % number, b"content")
            await m.fs.commit()
            await m.fs._committer.applied()
        assert set(layers) == {0}
        records_of_one = 3  # a name, an inode, the directory's times; some of the blob and the counters
        assert 100 * records_of_one / 200 <= len(layers) <= 100 * 3 * records_of_one / 100


LOOK_S = 10e-6


@simulated
async def test_chores_look_at_little_at_a_time_and_leave_most_of_the_loop_to_others(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    real_seek = Index.seek
    looks: dict[trio.lowlevel.Task, int] = {}
    ended: list[float] = []
    most = 0

    class Turns(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            looks[task] = 0

        def after_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal most
            if looks.get(task):
                most = max(most, looks[task])
                ended.append(trio.current_time())

    clock: Any = trio.lowlevel.current_clock()

    def seek(self: Index, table: Table, start: bytes) -> tuple[bytes, bytes] | None:
        task = trio.lowlevel.current_task()
        looks[task] = looks.get(task, 0) + 1
        clock.jump(LOOK_S)
        return real_seek(self, table, start)

    async with world.mounted() as m:
        for number in range(600):
            await m.put(b"file%d" % number, b"%d" % number)
        await m.fs.idle()
        turns = Turns()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Index, "seek", seek)
            trio.lowlevel.add_instrument(turns)
            taken = await m.fs.create_snapshot("manual")
            await trio.sleep(60)
            assert m.fs.snapshots()[0].made == 601, "the root as well"
            steps, counted_s = len(ended), ended[-1] - ended[0]
            await m.fs.delete_snapshot(taken.name)
            await m.fs.upkeep.collect_now(purge_deleted=True, thorough=False)
            trio.lowlevel.remove_instrument(turns)
    assert steps >= 600 / limits.COMPARED_PER_STEP
    assert most <= 6 * limits.COMPARED_PER_STEP
    looked_s = 2 * 600 * LOOK_S
    assert counted_s >= 2.5 * looked_s, "after each step but the last it waits for twice as long"
