"""What a check finds, and which files it names. It looks at the store, not at caches."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.codec.compression import Compressor
from backupfs.engine import repository
from backupfs.engine.checking import Finding
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.head import Head
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import Inode, Table, epoch_suffix, number_key
from backupfs.format.journal import Change, SegmentOpen, encode_batch
from backupfs.format.objects import HEADER_BYTES
from backupfs.format.pack import END_BYTES
from backupfs.journal.segments import JournalReader
from backupfs.journal.writer import JournalWriter
from backupfs.stores.local import LocalStore
from tests.conftest import LogRule
from tests.crash.simulation import SeededRandomness
from tests.unit.engine.world import REPOSITORY, Mounted, World, simulated


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


async def populated(tmp_path: Path) -> World:
    """Two packs, one file in each, and a snapshot that has a file more."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"one", noise(200_000, 1))
        await m.put(b"old", noise(100_000, 3))
        await m.link(b"one", b"same")
        await m.fs.create_snapshot("test")
        await m.unlink(b"old")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/two \xff", noise(200_000, 2))
    assert await world.check() == []
    return world


def pack_with(world: World, findings: list[Finding]) -> set[str]:
    return {finding.object for finding in findings}


def relative(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


async def snapshot_name(world: World) -> str:
    async with world.mounted(read_only=True) as m:
        return m.fs.snapshots()[0].name


@simulated
async def test_every_kind_of_damage_in_a_pack_is_named_with_its_files(tmp_path: Path, log_rule: LogRule) -> None:
    world = await populated(tmp_path)
    snapshot = await snapshot_name(world)
    named: dict[str, set[str]] = {}
    for path in world.objects("packs"):
        size = len(world.content(path))
        ends = [0, 70, size - END_BYTES - 3, size - END_BYTES, size - 50, size - 1]
        for place in [*ends, *range(HEADER_BYTES, size - END_BYTES - 3, 2000)]:
            world.disk.damage(path, place)
            found = await world.check()
            world.disk.damage(path, place)
            assert pack_with(world, found) == {relative(path)}, place
            paths = {p for finding in found for p in finding.paths}
            named.setdefault(relative(path), set()).update(paths)
            # the ends name no file, and a blob all that have it
            assert [f.kind for f in found] in ([["damage"]] if place in ends else [["damage", "damaged-files"], ["damage"]]), place
    first, second = sorted(named.values(), key=len, reverse=True)
    one = {"one", "same"}
    assert first - one == {f".snapshots/{snapshot}/old"} | {
        p for p in first if p.startswith(f".snapshots/{snapshot}/") and p.endswith(("one", "same"))
    }
    assert first & one
    assert second == {"d/two \\udcff"}
    assert await world.check() == []


@simulated
async def test_without_reading_data_only_the_ends_are_looked_at(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    path = world.objects("packs")[0]
    world.disk.damage(path, HEADER_BYTES + 1000)
    assert await world.check(read_data=False) == []
    world.disk.damage(path, len(world.content(path)) - 1)
    assert pack_with(world, await world.check(read_data=False)) == {relative(path)}


@simulated
async def test_every_byte_of_a_small_repository(tmp_path: Path) -> None:
    """Flipped anywhere in any object that something refers to, check finds it and names the object."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(3000))
        await m.put(b"g", b"text " * 500)
    for path in [*world.objects("packs"), *world.objects("journal"), REPOSITORY / "config", *world.objects("keys")]:
        size = len(world.content(path))
        for place in [*range(0, min(size, 400), 23), *range(400, size, 397), size - 1]:
            world.disk.damage(path, place, 1 << place % 8)
            found = await world.check()
            assert pack_with(world, found) == {relative(path)}, place
            world.disk.damage(path, place, 1 << place % 8)
    assert await world.check() == []


@pytest.mark.parametrize("cut", [0, 100, 200, 5000])
@simulated
async def test_a_pack_cut_off(tmp_path: Path, cut: int) -> None:
    world = await populated(tmp_path)
    path = world.objects("packs")[0]
    content = world.content(path)
    world.disk.unlink(path)
    handle = world.disk.create(path)
    world.disk.write_at(handle, 0, [content[:cut]])
    world.disk.close(handle)
    found = await world.check()
    assert pack_with(world, found) == {relative(path)}
    assert any(finding.paths for finding in found)


@simulated
async def test_a_missing_pack(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    path = world.objects("packs")[0]
    world.disk.unlink(path)
    found = await world.check()
    assert {finding.kind for finding in found} == {"missing-object", "damaged-files"}
    assert any(finding.paths for finding in found)


@simulated
async def test_files_beyond_eight_links_and_in_regions_are_named(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"big", noise(200_000))
        for i in range(10):
            await m.link(b"big", b"l%d" % i)
        for name in [b"big", *(b"l%d" % i for i in range(9))]:
            await m.unlink(name)
    world.disk.damage(world.objects("packs")[0], HEADER_BYTES + 100)
    found = await world.check()
    assert [f.paths for f in found if f.kind == "damaged-files"] == [["l9"]]


@simulated
async def test_journal_damage_is_named_and_hides_no_other(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    async with world.mounted() as m:
        await m.put(b"three", noise(1000))
    segments = world.objects("journal")
    assert len(segments) == 3
    for segment in segments:
        for place in (5, 127, 130, 5000):
            world.disk.damage(segment, place)
            assert relative(segment) in pack_with(world, await world.check())
            world.disk.damage(segment, place)
    for segment in segments:
        world.disk.damage(segment, 5000)
    assert pack_with(world, await world.check()) >= {relative(segment) for segment in segments}
    for segment in segments:
        world.disk.damage(segment, 5000)
    for segment in segments[:2]:
        content = world.content(segment)
        world.disk.unlink(segment)
        found = await world.check()
        assert any(f.kind in ("damage", "missing-object") and "missing" in f.detail for f in found)
        handle = world.disk.create(segment)
        world.disk.write_at(handle, 0, [content])
        world.disk.close(handle)
    assert await world.check() == []


@simulated
async def test_no_journal_at_all(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    for segment in world.objects("journal"):
        world.disk.unlink(segment)
    assert [finding.object for finding in await world.check()] == ["journal"]
    assert await World.new(tmp_path / "new").check() == []


@simulated
async def test_an_object_of_another_kind_or_slot(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    [slot, copy] = world.objects("keys")
    content = world.content(slot)
    other = slot.with_name("00" * 16)
    handle = world.disk.create(other)
    world.disk.write_at(handle, 0, [content])
    world.disk.close(handle)
    found = await world.check()
    assert {finding.object for finding in found} == {relative(other), relative(other) + ".copy"}
    assert copy.exists() is False


# --- records that contradict each other ---------------------------------------------------------------------------------


async def with_batch(world: World, make: Callable[[FileSystem], list[Change]]) -> None:
    """Add a batch to the journal that an honest writer would not have made."""
    async with world.mounted() as m:
        changes = make(m.fs)
    keys = world.unlocked().keys
    compressor = Compressor(keys.config.compression, 1)
    store = LocalStore(REPOSITORY, world.disk)
    reader = JournalReader(REPOSITORY / "open", world.disk, store, keys, compressor)
    sequence = reader.sequences()[-1][0]
    last = reader.load(sequence, in_store=True)
    reader.read_frames(last, None)
    opening = SegmentOpen(sequence, last.valid_bytes, reader.hash(last, last.valid_bytes))
    writer = JournalWriter(REPOSITORY / "open", world.disk, store, keys, compressor, SeededRandomness("forged"), opening, last.frames[-1][1].number)
    writer.append(encode_batch(changes))
    writer.close()


def live(path: bytes, m: FileSystem, table: Table) -> tuple[int, bytes, bytes]:
    """(ino, whole key, value) of the newest version of a root entry's inode."""
    entry = m._names.find(1, path)
    assert entry is not None
    found = m._volume.catalog.newest(table, number_key(entry.ino), records.EPOCH_MAX)
    assert found is not None
    return entry.ino, number_key(entry.ino) + epoch_suffix(found[0]), found[1]


@simulated
async def test_names_that_lead_nowhere(tmp_path: Path) -> None:
    """All of them: the entries around them are whole."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for i in range(10):
            await m.put(b"f%d" % i, b"x")
    await with_batch(world, lambda fs: [(Table.INODES, live(b"f%d" % i, fs, Table.INODES)[1], None) for i in (2, 5, 7)])
    found = await world.check()
    assert len([f for f in found if "leads to no inode" in f.detail]) == 3


@simulated
async def test_counts_that_are_wrong(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(1000))
        await m.put(b"g", noise(1000, 1))

    def forge(fs: FileSystem) -> list[Change]:
        blobs = fs._volume.catalog.rows(Table.BLOBS)
        blob = records.decode_blob(blobs[0][1])
        more = records.Blob(blob.id, blob.pack, blob.offset, blob.stored_bytes, blob.plain_bytes, 5)
        packs = fs._volume.catalog.rows(Table.PACKS)
        pack = records.decode_pack(packs[0][1])
        wrong = records.Pack(pack.object_id, pack.live_bytes + 1, pack.state, pack.first_blob)
        return [(Table.BLOBS, blobs[0][0], records.encode(more)), (Table.PACKS, packs[0][0], records.encode(wrong))]

    await with_batch(world, forge)
    found = await world.check()
    assert sorted(f.kind for f in found) == ["count", "count"]


@simulated
async def test_references_to_blobs_without_a_record(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(1000))

    def forge(fs: FileSystem) -> list[Change]:
        _, key, value = live(b"f", fs, Table.INODES)
        inode: Inode = records.decode_inode(value)
        inode.extents = [(0, 1000, 4242, 0)]
        return [(Table.INODES, key, records.encode(inode))]

    await with_batch(world, forge)
    assert any(f.object == "blob 4242" for f in await world.check())


@simulated
async def test_a_trailer_that_lists_something_else(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(1000))

    def forge(fs: FileSystem) -> list[Change]:
        [(key, value)] = fs._volume.catalog.rows(Table.BLOBS)
        blob = records.decode_blob(value)
        moved = records.Blob(blob.id, blob.pack, blob.offset + 1, blob.stored_bytes, blob.plain_bytes, 1)
        return [(Table.BLOBS, key, records.encode(moved))]

    await with_batch(world, forge)
    found = await world.check()
    assert any("trailer" in f.detail for f in found)
    assert any(f.paths == ["f"] for f in found)


@simulated
async def test_a_batch_left_out(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(1000))

    keys = world.unlocked().keys
    store = LocalStore(REPOSITORY, world.disk)
    compressor = Compressor(1, 1)
    reader = JournalReader(REPOSITORY / "open", world.disk, store, keys, compressor)
    last = reader.load(1, in_store=True)
    reader.read_frames(last, None)
    opening = SegmentOpen(1, last.valid_bytes, reader.hash(last, last.valid_bytes))
    number = last.frames[-1][1].number
    writer = JournalWriter(REPOSITORY / "open", world.disk, store, keys, compressor, SeededRandomness(1), opening, number + 1)
    writer.append(encode_batch([]))
    writer.close()
    assert any("batch" in f.detail and "missing" in f.detail for f in await world.check())
    world.without_index()
    Head(world.state / "head", world.disk, keys, SeededRandomness(2)).forget()
    with pytest.raises(DamageError, match="goes from batch"):
        async with world.mounted():
            raise AssertionError("it mounts")


# --- beside a mount -----------------------------------------------------------------------------------------------------


async def check_mounted(m: Mounted, *, read_data: bool = True) -> list[Finding]:
    told: list[tuple[int, int]] = []
    found = [f async for f in m.fs.check(read_data=read_data, progress=lambda done, total: told.append((done, total)))]
    assert all(done <= total for done, total in told)
    return found


@simulated
async def test_checking_what_is_mounted(tmp_path: Path, log_rule: LogRule, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for i in range(10):
            await m.put(b"f%d" % i, noise(20_000, i))
        assert await check_mounted(m) == []
        findings: list[Finding] = []
        stream = m.fs.check(read_data=True, progress=lambda _done, _total: None)
        for i in range(10):
            await m.unlink(b"f%d" % i)
            await m.put(b"g%d" % i, noise(20_000, ("g", i)))
        await m.fs.commit()
        async for finding in stream:
            findings.append(finding)
            await m.put(b"more", noise(20_000, len(findings)))
        assert findings == []
        await m.fs.idle()
        closed = world.objects("packs")
        for path in closed:
            world.disk.damage(path, 70)
        found = await check_mounted(m)
        assert {f.object for f in found} == {relative(path) for path in closed}
        for path in closed:
            world.disk.damage(path, 70)
        assert await check_mounted(m) == []
        assert [p.name for p in world.state.iterdir() if p.name.startswith("check")] == []
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_packs_are_held_while_they_are_checked(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(200_000))
        await m.fs.commit()
        await m.fs.idle()
        packs = set(world.objects("packs"))
        assert packs
        await m.unlink(b"f")
        stream = m.fs.check(read_data=True, progress=lambda _done, _total: None)
        m.fs._volume.held_packs += 1
        await m.fs.idle()
        assert set(world.objects("packs")) >= packs
        m.fs._volume.held_packs -= 1
        assert [f async for f in stream] == []
        await m.fs.idle()
        assert not set(world.objects("packs")) & packs


@simulated
async def test_a_check_that_was_broken_off_leaves_nothing(tmp_path: Path) -> None:
    world = await populated(tmp_path)
    world.disk.damage(REPOSITORY / "config", 20)
    stream = repository.check_repository(
        REPOSITORY, world.unlocked(), world.state, seams=world.seams(), read_data=True, progress=lambda _done, _total: None
    )
    assert (await anext(stream)).object == "config"
    await stream.aclose()
    assert [p.name for p in world.state.iterdir() if p.name.startswith("check")] == []
    (world.state / "check-left-by-a-kill").mkdir()
    async with world.mounted():
        assert [p.name for p in world.state.iterdir() if p.name.startswith("check")] == []
