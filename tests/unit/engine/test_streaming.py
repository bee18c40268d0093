"""Long files, in and out: how often bytes are cut, stored and read, in which order parts come into effect, and what others wait for meanwhile.

Counts, never times: a slow path is one that does something twice.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.blobs.packs import NewBlob
from backupfs.blobs.reader import BlobReader
from backupfs.codec.chunker import Chunker
from backupfs.engine.blobstore import BlobStore
from backupfs.engine.filedata import FileData
from backupfs.engine.inodes import InodeState
from backupfs.errors import BackupfsError, DamageError, FileSystemError, StoreError
from backupfs.format.catalog import Blob
from backupfs.rules.runs import Piece
from tests.conftest import LogRule
from tests.unit.engine.test_durability import GatedOffload, noise, until
from tests.unit.engine.test_filedata import chunks, cold
from tests.unit.engine.world import Mounted, World, simulated

PART = 32 * limits.KIB  # FLUSH_JOB_BYTES of the small limits


@pytest.fixture(autouse=True)
def parts_go_to_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of the usual limits do; these are so small that they would be kept back for the journal."""
    monkeypatch.setattr(limits, "INLINE_WORK_BYTES", 0)


async def state_of(m: Mounted, name: bytes) -> InodeState:
    state = m.fs._inodes.get(await m.ino(name))
    assert state is not None
    return state


async def write_all(m: Mounted, fh: int, content: bytes, start: int = 0) -> None:
    for at in range(0, len(content), PART // 4):
        await m.fs.write(fh, start + at, content[at : at + PART // 4])


# --- in -----------------------------------------------------------------------------------------------------------------


@simulated
async def test_a_growing_file_is_cut_once_and_nothing_of_it_is_read_back(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REGION_BYTES", 64 * PART)
    monkeypatch.setattr(limits, "REGION_EXTENTS_MAX", 4000)  # or regions are chunked anew
    cut: list[int] = []
    real = Chunker.cut

    def counted(self: Chunker, data: bytes | memoryview, is_end: bool) -> list[int]:
        cut.append(len(data))
        return real(self, data, is_end)

    monkeypatch.setattr(Chunker, "cut", counted)
    world = World.new(tmp_path / "w", compression=False)
    world.offload = offload = GatedOffload()
    content = noise(40 * PART, 1)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await write_all(m, fh, content)
        await m.close(b"f")
        await cold(m)
        lengths = real(m.fs._volume.chunker, content, is_end=True)
    assert len(cut) <= 42 + len(content) // PART // 4
    assert sum(cut) < len(content) + len(cut) * limits.CHUNK_MAX_BYTES
    assert "read_all" not in offload.turns
    stored = sum(len(world.content(path)) for path in world.objects("packs"))
    assert stored < len(content) * 1.1
    assert [at for at, _ in chunks(world, tmp_path / "copy")] == [sum(lengths[:i]) for i in range(len(lengths))]


@simulated
async def test_parts_are_on_their_way_together_and_come_into_effect_in_their_order(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w", compression=False)
    world.offload = offload = GatedOffload()
    content = noise(12 * PART, 2)
    first = offload.gate("append 1")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        state = await state_of(m, b"f")
        await write_all(m, fh, content)
        await until(lambda: offload.turns.get("append", 0) > limits.FLUSH_JOBS)
        await trio.sleep(0.5)
        assert state.flushing == limits.FLUSH_JOBS
        assert state.stored_bytes == state.settled_record().size == 0, "what comes first is not stored yet"
        assert bytes(await m.fs.read(fh, 0, len(content))) == content
        first.set()
        await until(lambda: not state.flushing)
        assert state.stored_bytes >= len(content) - PART
        assert bytes(await m.fs.read(fh, 0, len(content))) == content
        await m.close(b"f")
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_what_follows_a_part_that_failed_is_tried_again_with_it(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule
) -> None:
    world = World.new(tmp_path / "w", compression=False)
    world.offload = offload = GatedOffload()
    real = BlobStore.append
    broken = True

    def append(self: BlobStore, new: list[NewBlob]) -> object:
        if broken and any(blob.number == 1 for blob in new):
            raise StoreError("no")
        return real(self, new)

    monkeypatch.setattr(BlobStore, "append", append)
    first = offload.gate("append 1")
    log_rule.expect("could not be stored and will be tried again: no")
    content = noise(6 * PART, 3)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        state = await state_of(m, b"f")
        await write_all(m, fh, content)
        await until(lambda: offload.turns.get("append", 0) > 3)
        first.set()
        await until(lambda: not state.flushing)
        assert state.stored_bytes == 0
        assert state.error_count >= 2
        assert state.runs.total_bytes == m.fs.status().dirty_bytes == len(content)
        assert bytes(await m.fs.read(fh, 0, len(content))) == content
        broken = False
        with pytest.raises(FileSystemError):
            await m.fs.fsync(fh, datasync=False)  # tells of the failure; the bytes are stored by now
        await m.fs.fsync(fh, datasync=False)
        assert state.clean
        await m.close(b"f")
    assert world.audit(tmp_path / "copy") == []
    async with world.mounted() as m:
        assert await m.get(b"f") == content


@simulated
async def test_a_sync_and_a_truncation_end_although_the_file_goes_on_growing(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w", compression=False)
    content = noise(200 * PART, 4)
    done: list[int] = []
    async with world.mounted() as m:
        fh = await m.open(b"f")
        at = 0

        async def sync() -> None:
            await m.fs.fsync(fh, datasync=False)
            done.append(at)

        async with trio.open_nursery() as nursery:
            while at < len(content) and not done:
                await m.fs.write(fh, at, content[at : at + PART])
                at += PART
                await trio.lowlevel.checkpoint()
                if at == 8 * PART:
                    nursery.start_soon(sync)
        assert done
        assert done[0] < len(content)
        state = await state_of(m, b"f")
        assert state.stored_bytes >= 8 * PART
        await write_all(m, fh, content[: 20 * PART], at)
        await trio.lowlevel.checkpoint()
        await m.truncate(b"f", 3 * PART + 7)
        assert await m.get(b"f") == content[: 3 * PART + 7]
        await m.close(b"f")
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_who_waits_for_room_is_let_in_in_the_order_of_coming(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """So bytes that arrive in order are taken in so, and no gap is taken for a hole."""
    monkeypatch.setattr(limits, "DIRTY_BYTES_MAX", 4 * PART)
    world = World.new(tmp_path / "w", compression=False)
    world.offload = offload = GatedOffload()
    gate = offload.gate("append")
    content = noise(40 * PART, 5)
    taken: list[int] = []
    real = FileData.write

    def write(self: FileData, state: InodeState, offset: int, data: Piece) -> None:
        taken.append(offset)
        real(self, state, offset, data)

    monkeypatch.setattr(FileData, "write", write)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        async with trio.open_nursery() as nursery:

            async def send(at: int) -> None:
                await m.fs.write(fh, at, content[at : at + PART])

            for at in range(0, len(content), PART):
                nursery.start_soon(send, at)
                await trio.testing.wait_all_tasks_blocked()
            assert m.fs.status().dirty_bytes <= 5 * PART
            gate.set()
        assert taken == sorted(taken)
        assert len(taken) == 40
        await m.close(b"f")
        assert await m.get(b"f") == content
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_removing_what_was_not_stored_lets_others_in(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRTY_BYTES_MAX", 2 * PART)
    world = World.new(tmp_path / "w")
    world.offload = offload = GatedOffload()
    gate = offload.gate("<lambda>")
    async with world.mounted() as m:
        doomed, kept = await m.open(b"doomed"), await m.open(b"kept")
        await m.fs.write(doomed, 0, noise(PART, 6))
        await trio.testing.wait_all_tasks_blocked()
        await m.fs.write(doomed, PART, noise(2 * PART, 7))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.write, kept, 0, b"kept")
            await trio.testing.wait_all_tasks_blocked()
            assert (await state_of(m, b"kept")).clean
            state = await state_of(m, b"doomed")
            m.fs._data.drop(state)
        assert not (await state_of(m, b"kept")).clean
        gate.set()
        await m.close(b"doomed")
        await m.close(b"kept")


# --- out ----------------------------------------------------------------------------------------------------------------


class Reads:
    """Visits to a thread, and the blobs that were read in each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.visits: list[list[bytes]] = []
        self.preads = 0
        all_of, one = BlobReader.read_all, BlobReader._sealed

        def read_all(reader: BlobReader, wanted: Sequence[tuple[Blob, bytes]]) -> list[bytes | BackupfsError]:
            self.visits.append([blob.id for blob, _ in wanted])
            return all_of(reader, wanted)

        def sealed(reader: BlobReader, pack_object_id: bytes, offset: int, size_bytes: int) -> object:
            self.preads += 1
            return one(reader, pack_object_id, offset, size_bytes)

        monkeypatch.setattr(BlobReader, "read_all", read_all)
        monkeypatch.setattr(BlobReader, "_sealed", sealed)


@pytest.mark.parametrize("where", ["present", "snapshot"])
@simulated
async def test_a_file_read_in_order_is_fetched_once_and_in_few_visits(
    tmp_path: Path, where: str, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_AHEAD_BYTES", 4 * PART)
    monkeypatch.setattr(limits, "READ_AHEAD_STEP_BYTES", PART)
    world = World.new(tmp_path / "w")
    content = noise(40 * PART, 8)
    async with world.mounted() as m:
        await m.put(b"f", content, piece=PART)
        name = (await m.fs.create_snapshot("test")).name
    blobs = chunks(world, tmp_path / "copy")
    reads = Reads(monkeypatch)
    async with world.mounted() as m:
        path = b"f" if where == "present" else b".snapshots/" + name.encode() + b"/f"
        assert await m.get(path, PART) == content
    seen = [blob_id for visit in reads.visits for blob_id in visit]
    assert sorted(seen) == sorted({blob_id for _, blob_id in blobs}), "each chunk once"
    assert len(reads.visits) < len(blobs) / 8
    assert len(blobs) > 400
    assert reads.preads < len(blobs) * 0.7


@simulated
async def test_two_requests_under_way_do_not_end_reading_ahead(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel asks for the next megabyte before it has the last; which is answered first is chance."""
    monkeypatch.setattr(limits, "READ_AHEAD_BYTES", 4 * PART)
    monkeypatch.setattr(limits, "READ_AHEAD_STEP_BYTES", PART)
    world = World.new(tmp_path / "w")
    first_part = PART - 4096  # and a hole, so that no chunk belongs to two requests
    content = noise(first_part, 9) + bytes(4096) + noise(23 * PART, 11)
    async with world.mounted() as m:
        await m.put(b"f", content[:first_part])
        await m.put(b"f", content[PART:], at=PART, piece=PART)
    world.offload = offload = GatedOffload()
    first = offload.gate("read_all 1")
    async with world.mounted() as m:
        fh = await m.open(b"f", os.O_RDONLY)
        found: dict[int, bytes] = {}

        async def read(at: int) -> None:
            found[at] = bytes(await m.fs.read(fh, at, PART))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, 0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read, PART)
            await until(lambda: PART in found)
            assert 0 not in found, "the later one was answered first"
            first.set()
        await read(2 * PART)
        await trio.testing.wait_all_tasks_blocked()
        state = await state_of(m, b"f")
        ahead = m.fs._data.extents(state.record, 2**63, 3 * PART, 7 * PART - 1)
        assert all(m.fs._blobs.is_at_hand(extent[2]) for extent in ahead)
        assert found == {at: content[at : at + PART] for at in (0, PART, 2 * PART)}
        await m.close(b"f")


@simulated
async def test_damage_costs_the_chunk_that_has_it_and_not_those_fetched_with_it(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule
) -> None:
    world = World.new(tmp_path / "w")
    content = noise(8 * PART, 10)
    async with world.mounted() as m:
        await m.put(b"f", content, piece=PART)
    blobs = chunks(world, tmp_path / "copy")
    at, spoilt = blobs[3]
    real = BlobReader._opened

    def opened(self: BlobReader, source: object, blob: Blob, sealed: memoryview, pack: bytes) -> bytes:
        if blob.id == spoilt:
            sealed = memoryview(bytes(len(sealed)))
        return real(self, source, blob, sealed, pack)  # type: ignore[arg-type]

    monkeypatch.setattr(BlobReader, "_opened", opened)
    log_rule.expect("reading inode")
    async with world.mounted() as m:
        fh = await m.open(b"f", os.O_RDONLY)
        with pytest.raises(DamageError):
            await m.fs.read(fh, 0, PART)
        reads = Reads(monkeypatch)
        assert bytes(await m.fs.read(fh, 0, at)) == content[:at]
        assert reads.visits == [], "they were kept"
        after = blobs[4][0]
        assert bytes(await m.fs.read(fh, after, len(content))) == content[after:]
        await m.close(b"f")


@simulated
async def test_holes_between_chunks_read_as_zeros(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        for at in (1000, 9000, 30_000):
            await m.fs.write(fh, at, noise(500, at))
        await m.close(b"f")
        await m.truncate(b"f", 40_000)
    expected = bytearray(40_000)
    for at in (1000, 9000, 30_000):
        expected[at : at + 500] = noise(500, at)
    async with world.mounted() as m:
        assert await m.get(b"f") == expected
        fh = await m.open(b"f", os.O_RDONLY)
        for low, high in ((0, 10), (990, 1010), (1400, 1600), (31_000, 40_000), (1000, 1500)):
            assert bytes(await m.fs.read(fh, low, high - low)) == expected[low:high]
        await m.close(b"f")
