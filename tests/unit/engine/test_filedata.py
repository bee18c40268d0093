"""How files are cut, shared and kept: what the repository holds for them, not only what reads give back."""

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.codec.chunker import Chunker
from backupfs.engine.attributes import AttributeChanges
from backupfs.errors import FileSystemError
from tests.crash.simulation import PASSWORD
from tests.decoder.decoder import Repository
from tests.unit.engine.world import KIB, MIB, ROOT, WHO, Mounted, World, make_small, read_all, simulated


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def chunks(world: World, directory: Path, name: bytes = b"f") -> list[tuple[int, bytes]]:
    """(offset, blob id) of a file's extents, as the decoder reads the unmounted repository."""
    with Repository(world.export(directory), PASSWORD) as repository:
        view = repository.present()
        [(number, inode)] = [(number, inode) for path, number, inode in view.walk() if path.rpartition(b"/")[2] == name]
        assert number
        return [(extent.offset, repository.catalog.blobs[extent.blob].blob_id) for extent in view.extents(inode)]


async def cold(m: Mounted) -> None:
    """All that was written has been left alone long enough."""
    await trio.sleep(3 * limits.COMMIT_DELAY_S)


# --- boundaries ---------------------------------------------------------------------------------------------------------

Steps = Sequence[tuple[int, str]]
WHOLE: Steps = [(10**9, "")]
WAYS: dict[str, Steps] = {
    "in pieces of a page": [(4 * KIB, "")] * 1000,
    "in pieces of a megabyte": [(MIB, "")] * 10,
    "in odd pieces": [(77_777, "")] * 50,
    "synced now and then": [(300_000, "sync")] * 12,
    "left alone in between": [(500_000, "wait")] * 8,
    "committed in between": [(410_000, "commit")] * 10,
    "synced after every page, for a while": [(4 * KIB, "sync")] * 40 + [(10**9, "")],
    "snapshots in between": [(700_000, "snapshot")] * 6,
    "closed in between": [(200_000, "close")] * 20,
    "mounted again in between": [(900_000, "mount")] * 5,
}


async def written(world: World, content: bytes, steps: Steps) -> None:
    """Append `content` in pieces, something else between them; then close it and leave it alone."""
    at = 0
    waiting = list(steps)
    while at < len(content):
        async with world.mounted() as m:
            fh = await m.open(b"f")
            while waiting and at < len(content):
                size, then = waiting.pop(0)
                for start in range(at, min(at + size, len(content)), MIB):
                    await m.fs.write(fh, start, content[start : min(start + MIB, at + size)])
                at = min(at + size, len(content))
                if then == "sync":
                    await m.fs.fsync(fh, datasync=False)
                elif then == "wait":
                    await trio.sleep(3.3)
                elif then == "commit":
                    await m.fs.commit()
                elif then == "snapshot":
                    await m.fs.create_snapshot("test")
                elif then == "close":
                    await m.close(b"f")
                    fh = await m.open(b"f")
                elif then == "mount":
                    break
            await m.close(b"f")
            await cold(m)


@pytest.mark.parametrize("way", list(WAYS))
@simulated
async def test_boundaries_depend_on_content_only(tmp_path: Path, way: str) -> None:
    """Once a file is cold, its chunks are those that a single write makes; the end of a synced log may be in smaller ones."""
    content = noise(3_500_000)
    world, plain = World.new(tmp_path / "w"), World.new(tmp_path / "p")
    await written(plain, content, WHOLE)
    await written(world, content, WAYS[way])
    async with world.mounted() as m:
        assert await m.get(b"f") == content
    assert chunks(world, tmp_path / "wc") == chunks(plain, tmp_path / "pc")


@simulated
async def test_a_small_log_synced_line_by_line_is_one_chunk_once_cold(tmp_path: Path) -> None:
    content = noise(120_000)
    world, plain = World.new(tmp_path / "w"), World.new(tmp_path / "p")
    await written(plain, content, WHOLE)
    await written(world, content, [(1000, "sync")] * 120)
    assert chunks(world, tmp_path / "wc") == chunks(plain, tmp_path / "pc")


@simulated
async def test_a_second_copy_stores_nothing_new(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = noise(5 * MIB) + b"text " * 100_000 + bytes(MIB)
    async with world.mounted() as m:
        await m.put(b"one", content)
        await m.fs.commit()
        before = m.fs.stats()
        await m.put(b"two", content, piece=100_000)
        await m.fs.commit()
        after = m.fs.stats()
        assert after.stored_bytes == before.stored_bytes
        assert await m.get(b"two") == content
        await m.unlink(b"one")
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == before.stored_bytes
        assert await m.get(b"two") == content
        await m.unlink(b"two")
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_an_insertion_at_the_front_costs_a_chunk_or_two(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = noise(8 * MIB)
    async with world.mounted() as m:
        await m.put(b"one", content)
        await m.fs.commit()
        before = m.fs.stats().stored_bytes
        await m.put(b"two", noise(KIB, "front") + content)
        await m.fs.commit()
        assert m.fs.stats().stored_bytes - before < 2 * limits.CHUNK_MAX_BYTES


@simulated
async def test_two_files_with_the_same_chunk_at_the_same_time(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = noise(300_000)
    async with world.mounted() as m:
        handles = [await m.open(b"f%d" % i) for i in range(4)]
        for fh in handles:
            await m.fs.write(fh, 0, content)
        async with trio.open_nursery() as nursery:
            for fh in handles:
                nursery.start_soon(m.fs.fsync, fh, False)
        stored = m.fs.stats().stored_bytes
        assert stored < 310_000
        for i in range(4):
            assert await m.get(b"f%d" % i) == content


# --- holes --------------------------------------------------------------------------------------------------------------


@simulated
async def test_zeros_and_gaps_take_no_room(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"zeros", bytes(5 * MIB))
        await m.put(b"gap", b"end", at=40 * MIB)
        await m.fs.commit()
        assert m.fs.stats().stored_bytes < 100
        assert (await m.fs.getattr(await m.ino(b"zeros"))).blocks == 0
        assert (await m.fs.getattr(await m.ino(b"gap"))).blocks == 1
        fh = await m.open(b"gap")
        assert bytes(await m.fs.read(fh, 40 * MIB - 2, 100)) == b"\0\0end"
        assert bytes(await m.fs.read(fh, 17, MIB)) == bytes(MIB)


@simulated
async def test_bytes_where_no_region_begins_any_more(tmp_path: Path) -> None:
    """More extents than an inode holds, up to the last byte that a file may have."""
    world = World.new(tmp_path / "w")
    places = [*((1 << 56) - 3 + (i << 24) for i in range(5)), 1 << 61, (1 << 62) + 5, limits.FILE_SIZE_MAX_BYTES - 4]
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 7, b"near")
        for number, at in enumerate(places):
            await m.fs.write(fh, at, b"far%d" % number)
        await m.fs.fsync(fh, datasync=False)
        await m.fs.create_snapshot("test", name="all")
        assert world.audit(tmp_path / "all", settled=False) == []
        await m.truncate(b"f", (1 << 61) + 2)
        await m.fs.write(fh, places[1], b"new ")
        await m.fs.fsync(fh, datasync=False)
    async with world.mounted() as m:
        old, new = await m.open(b".snapshots/all/f", os.O_RDONLY), await m.open(b"f", os.O_RDONLY)
        for number, at in enumerate(places):
            assert bytes(await m.fs.read(old, at - 1, 5)) == b"\0far%d" % number
        assert bytes(await m.fs.read(new, places[1], 9)) == b"new \0\0\0\0\0"
        assert bytes(await m.fs.read(new, places[2], 4)) == b"far2"
        assert bytes(await m.fs.read(new, 1 << 61, 9)) == b"fa"
        assert bytes(await m.fs.read(new, 0, 11)) == bytes(7) + b"near"
    assert await world.check() == []
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_file_of_terabytes_in_name(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    far = 8 << 40
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, far, b"here")
        await m.truncate(b"f", far + far)
        await m.fs.write(fh, 5 * far, b"and here")
        await m.fs.fsync(fh, datasync=False)
        info = await m.fs.create_snapshot("test")
        assert (await m.fs.getattr(await m.ino(b"f"))).size == 5 * far + 8
        assert bytes(await m.fs.read(fh, far - 1, 6)) == b"\0here\0"
        await m.truncate(b"f", far + 2)
        await m.truncate(b"f", 3 * far)
        assert bytes(await m.fs.read(fh, far - 1, 6)) == b"\0he\0\0\0"
        with pytest.raises(FileSystemError) as raised:
            await m.fs.write(fh, limits.FILE_SIZE_MAX_BYTES - 3, b"four")
        assert raised.value.errno == errno.EFBIG
        with pytest.raises(FileSystemError) as raised:
            await m.truncate(b"f", limits.FILE_SIZE_MAX_BYTES + 1)
        assert raised.value.errno == errno.EFBIG
        old = await m.open(b".snapshots/" + info.name.encode() + b"/f", os.O_RDONLY)
        assert bytes(await m.fs.read(old, 5 * far, 100)) == b"and here"
        await m.fs.release(old)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_blocks_are_right_when_batches_and_looks_come_between_the_steps_of_a_truncation(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            await m.put(b"f", noise(8 * MIB))
            ino = await m.ino(b"f")
            between = 0

            async def look(finished: trio.Event) -> None:
                nonlocal between
                while not finished.is_set():
                    await m.fs.commit()
                    between += (await m.fs.getattr(ino)).blocks - 196 > 0
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                finished = trio.Event()
                nursery.start_soon(look, finished)
                await trio.lowlevel.checkpoint()
                await m.truncate(b"f", 100_000)
                between_steps = between
                finished.set()
            assert between_steps > 1
            assert (await m.fs.getattr(ino)).blocks == 196
        async with world.mounted() as m:
            assert (await m.fs.getattr(ino)).blocks == 196
        assert world.audit(tmp_path / "copy") == []


@simulated
async def test_blocks_follow_what_is_stored(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        ino = await m.ino(b"f")
        await m.fs.write(fh, 0, noise(100_000))
        assert (await m.fs.getattr(ino)).blocks == 196
        await m.fs.fsync(fh, datasync=False)
        assert (await m.fs.getattr(ino)).blocks == 196
        await m.fs.write(fh, 10 * MIB, noise(40 * MIB, "more"))
        await m.fs.fsync(fh, datasync=False)
        assert (await m.fs.getattr(ino)).blocks == (100_000 + 40 * MIB + 511) // 512
        await m.truncate(b"f", 10 * MIB + 512)
        assert (await m.fs.getattr(ino)).blocks == (100_000 + 512 + 511) // 512
        await m.truncate(b"f", 0)
        assert (await m.fs.getattr(ino)).blocks == 0
    assert world.audit(tmp_path / "copy") == []


# --- overwriting --------------------------------------------------------------------------------------------------------


@simulated
async def test_an_overwrite_below_an_append_is_kept(tmp_path: Path) -> None:
    """Both are stored together, and the append begins again at a boundary before the overwrite."""
    for wait in (0.0, 3.3):
        world = World.new(tmp_path / str(wait))
        first, middle, tail = noise(100 * KIB), noise(1000, 1), noise(50 * KIB, 2)
        async with world.mounted() as m:
            await m.put(b"f", first)
            await trio.sleep(11)
            fh = await m.open(b"f")
            await m.fs.write(fh, 50 * KIB, middle)
            await m.fs.write(fh, 100 * KIB, tail)
            await trio.sleep(wait)
            await m.fs.fsync(fh, datasync=False)
            assert await m.get(b"f") == first[: 50 * KIB] + middle + first[50 * KIB + 1000 :] + tail


@simulated
async def test_a_small_overwrite_stores_little_and_reads_nothing(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = bytearray(noise(20 * MIB))
    async with world.mounted() as m:
        await m.put(b"f", bytes(content))
        await m.fs.commit()
        before = m.fs.stats().stored_bytes
        fh = await m.open(b"f")
        draw = random.Random(1)
        for _ in range(50):
            at = draw.randrange(len(content) - 4096)
            content[at : at + 4096] = page = draw.randbytes(4096)
            await m.fs.write(fh, at, page)
        await m.fs.fsync(fh, datasync=False)
        assert m.fs.stats().stored_bytes - before < 50 * 4200
        await m.close(b"f")
        assert await m.get(b"f") == content


@simulated
async def test_a_crowded_region_is_chunked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    monkeypatch.setattr(limits, "REGION_EXTENTS_MAX", 60)
    content = bytearray(noise(2 * MIB))
    async with world.mounted() as m:
        await m.put(b"f", bytes(content))
        await m.fs.commit()
        fh = await m.open(b"f")
        draw = random.Random(1)
        for number in range(120):
            at = draw.randrange(len(content) - 100)
            content[at : at + 100] = piece = draw.randbytes(100)
            await m.fs.write(fh, at, piece)
            if number % 10 == 9:
                await m.fs.fsync(fh, datasync=False)
        await m.close(b"f")
        assert await m.get(b"f") == content
    assert len(chunks(world, tmp_path / "copy")) <= 60
    assert world.audit(tmp_path / "copy2") == []


@simulated
async def test_rechunking_ends_although_every_chunk_is_as_small_as_can_be(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    keys = world.unlocked().keys
    chunker = Chunker(keys.config, keys.chunk_seed)
    draw = random.Random(2)
    page = draw.randbytes(4096)
    while len(chunker.cut(page * 256, is_end=True)) <= 8:
        page = draw.randbytes(4096)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        for at in range(17):
            await m.fs.write(fh, at * MIB, page * 256)
        await m.fs.fsync(fh, datasync=False)
        await m.fs.write(fh, 100, b"x")
        await m.fs.fsync(fh, datasync=False)
        assert bytes(await m.fs.read(fh, 4096 * 1000, 4096)) == page


# --- reading ------------------------------------------------------------------------------------------------------------


@simulated
async def test_reading_while_it_is_stored(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = bytearray(noise(3 * MIB))
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, bytes(content))
        finished = False

        async def store() -> None:
            nonlocal finished
            await m.fs.fsync(fh, datasync=False)
            finished = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store)
            draw = random.Random(1)
            while not finished:
                at = draw.randrange(len(content))
                content[at : at + 10] = b"0123456789"[: len(content) - at]
                await m.fs.write(fh, at, bytes(content[at : at + 10]))
                low = draw.randrange(len(content))
                assert bytes(await m.fs.read(fh, low, 300_000)) == content[low : low + 300_000]
                await trio.lowlevel.checkpoint()
        assert await m.get(b"f") == content


@simulated
async def test_reading_on_fetches_what_comes_next(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    content = noise(12 * MIB)
    async with world.mounted() as m:
        await m.put(b"f", content)
    async with world.mounted() as m:
        fh = await m.open(b"f", os.O_RDONLY)
        for at in range(0, 3 * MIB, MIB // 2):
            assert bytes(await m.fs.read(fh, at, MIB // 2)) == content[at : at + MIB // 2]
        await trio.sleep(1)
        assert m.fs._volume.cache.used_bytes > 4 * MIB
        assert bytes(await m.fs.read(fh, 13 * MIB, 100)) == b""
        await m.close(b"f")


@simulated
async def test_bytes_that_were_never_stored_go_with_the_file(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(MIB))
        await m.unlink(b"f")
        await m.close(b"f")
        await m.fs.idle()
        status = m.fs.status()
        assert (status.dirty_bytes, status.orphans) == (0, 0)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_writers_wait_when_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "DIRTY_BYTES_MAX", 2 * MIB)
    world = World.new(tmp_path / "w")
    content = noise(20 * MIB)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        most = 0
        for at in range(0, len(content), 128 * KIB):
            await m.fs.write(fh, at, content[at : at + 128 * KIB])
            most = max(most, m.fs.status().dirty_bytes)
        assert most <= 2 * MIB + 128 * KIB
        await m.close(b"f")
        assert await m.get(b"f") == content


@simulated
async def test_many_small_files_are_stored_together(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for i in range(1200):
            await m.put(b"f%d" % i, b"content %d" % i)
        await trio.sleep(11)
        assert m.fs.status().dirty_bytes == 0
        assert m.fs.stats().packs <= 2
        assert m.fs.stats().batches < 12
        for i in range(0, 1200, 97):
            assert await m.get(b"f%d" % i) == b"content %d" % i


# --- cutting off --------------------------------------------------------------------------------------------------------


@simulated
async def test_the_space_of_an_emptied_file_comes_back_by_itself(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(40 * MIB))
        await m.fs.commit()
        assert m.fs.stats().stored_bytes > 40 * MIB
        await m.truncate(b"f", 0)
        await trio.sleep(20)
        assert m.fs.stats().stored_bytes == 0
        await m.put(b"f", b"new")
        assert await m.get(b"f") == b"new"
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_truncation_cut_short_by_a_kill_is_finished_before_anyone_writes(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    content = noise(64 * KIB * 30)
    async with world.mounted() as m:
        await m.put(b"f", content)
        await m.fs.commit()
        killed: World | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.truncate, b"f", 100_000)
            while killed is None:
                await trio.lowlevel.checkpoint()
                rows = m.fs._volume.catalog.rows(11)  # type: ignore[arg-type]
                if rows:
                    await m.fs._committer.commit()
                    killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert m.fs.status().orphans == 0
        await m.put(b"f", b"later", at=1_500_000)
        await m.fs.idle()
        expected = content[:100_000].ljust(1_500_000, b"\0") + b"later"
        assert await m.get(b"f") == expected
        assert (await m.fs.getattr(await m.ino(b"f"))).blocks == (100_005 + 511) // 512
    async with killed.mounted() as m:
        assert await m.get(b"f") == expected
    assert killed.audit(tmp_path / "copy") == []


@simulated
async def test_sizes_of_what_is_no_file(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        link = await m.fs.symlink(ROOT, b"l", b"target", WHO)
        for ino, code in ((await m.ino(b"d"), errno.EISDIR), (link.ino, errno.EINVAL)):
            with pytest.raises(FileSystemError) as raised:
                await m.fs.setattr(ino, AttributeChanges(size=0), None, WHO)
            assert raised.value.errno == code


@simulated
async def test_open_with_truncation(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"old")
        await m.open(b"f", os.O_WRONLY | os.O_TRUNC)
        assert await read_all(m.fs, await m.ino(b"f")) == b""
        await m.close(b"f")
        await m.mkdir(b"d")
        with pytest.raises(FileSystemError) as raised:
            await m.open(b"d", os.O_WRONLY | os.O_TRUNC)
        assert raised.value.errno == errno.EISDIR
        assert m.fs.status().open_files == 0


@simulated
async def test_bytes_that_wait_to_be_stored_do_not_come_back_while_a_large_file_ends_in_steps(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", noise(1_500_000))
        await m.fs.commit()
        fh = await m.open(b"file")
        for at in range(0, 1_500_000, 70_000):
            await m.fs.write(fh, at, b"not stored yet")
        await m.unlink(b"file")
        await m.close(b"file")
        await m.fs.commit()
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0
    assert world.audit(tmp_path / "audit") == []
