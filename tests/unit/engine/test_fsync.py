"""What one fsync costs, in writes, syncs and bytes; and what becomes of contents that so far only the journal has."""

import errno
import random
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.engine.repository import rebuild_index
from backupfs.format import config
from backupfs.offload import ThreadOffload
from tests.conftest import LogRule
from tests.crash.disk import Event, Op
from tests.crash.faults import FaultyFiles
from tests.crash.power_cut import crash_states
from tests.unit.engine.test_durability import GatedOffload
from tests.unit.engine.world import KIB, REPOSITORY, Mounted, World, simulated

BLOCK = 4 * KIB


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


async def append_and_sync(m: Mounted, path: bytes, number: int) -> None:
    """As a log or a database does it."""
    await m.fs.write(m.handles[path], number * BLOCK, noise(BLOCK, (path, number)))
    await m.fs.fsync(m.handles[path], datasync=False)


def written(events: list[Event]) -> list[Event]:
    return [event for event in events if event.op is Op.WRITE]


def syncs(events: list[Event]) -> int:
    return sum(event.op is Op.SYNC for event in events)


@simulated
async def test_four_kib_take_one_write_of_two_blocks_and_one_sync(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.open(b"log")
        await append_and_sync(m, b"log", 0)
        for number in range(1, 30):
            mark = len(world.disk.log)
            await append_and_sync(m, b"log", number)
            events = world.disk.log[mark:]
            assert [event.op for event in events] == [Op.WRITE, Op.SYNC]
            assert len(events[0].data) <= 2 * limits.JOURNAL_FRAME_BYTES


@simulated
async def test_packs_and_index_follow_with_the_regular_commit_once_for_all(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    world.offload = offload = GatedOffload()
    async with world.mounted() as m:
        await m.open(b"log")
        await m.fs.commit()
        await trio.sleep(limits.COMMIT_DELAY_S + 1)
        applied, mark = offload.turns["apply"], len(world.disk.log)
        for number in range(40):
            await append_and_sync(m, b"log", number)
            assert m.fs.status().layers_not_applied <= 2
        assert offload.turns["apply"] == applied
        assert syncs(world.disk.log[mark:]) <= 42
        mark = len(world.disk.log)
        await trio.sleep(limits.COMMIT_DELAY_S + 1)
        assert offload.turns["apply"] == applied + 1
        assert m.fs.status().layers_not_applied == 0
        late = written(world.disk.log[mark:])
        assert len(late) == 1, "one write of the pack, without gaps"
        assert syncs(world.disk.log[mark:]) == 1
        assert 39 * BLOCK <= len(late[0].data) < 41 * BLOCK, "the first of all has made the pack"


@simulated
async def test_the_index_lets_a_few_large_batches_gather(tmp_path: Path) -> None:
    """Who makes some ten thousand files in a row is left alone by it; who makes more has it follow in pieces, not all behind the last one."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for batch in range(1, limits.INDEX_LAYERS + 1):
            for number in range(limits.JOINED_RECORDS_MAX // 2):
                await m.mkdir(b"d%d.%d" % (batch, number))
            await m.fs.commit()
            await trio.sleep(limits.COMMIT_DELAY_S / 100)
            assert m.fs.status().layers_not_applied == batch % limits.INDEX_LAYERS
        await m.mkdir(b"one more")
        await m.fs.commit()
        await trio.sleep(limits.COMMIT_DELAY_S / 100)
        assert m.fs.status().layers_not_applied == 1
        names = set(await m.names(b""))
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert set(await m.names(b"")) == names


@simulated
async def test_eight_who_wait_at_once_share_a_sync(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    paths = [b"log %d" % number for number in range(8)]
    async with world.mounted() as m:
        for path in paths:
            await m.open(path)
        await m.fs.commit()
        mark = len(world.disk.log)
        for number in range(10):
            async with trio.open_nursery() as nursery:
                for path in paths:
                    nursery.start_soon(append_and_sync, m, path, number)
        events = world.disk.log[mark:]
        assert syncs(events) <= 25, "80 answers"
        assert sum(len(event.data) for event in written(events)) < 1.6 * 80 * BLOCK


@simulated
async def test_what_is_large_is_written_once(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w", compression=False)
    content = noise(limits.CARRIED_BYTES_MAX)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, content)
        mark = len(world.disk.log)
        await m.fs.fsync(fh, datasync=False)
        assert sum(len(event.data) for event in written(world.disk.log[mark:])) < len(content) + 2 * limits.JOURNAL_FRAME_BYTES


@simulated
async def test_where_room_is_short_nothing_is_written_twice(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=80_000_000)
    async with world.mounted() as m:
        await m.open(b"log")
        await append_and_sync(m, b"log", 0)
        world.disk.set_capacity(world.disk.free_bytes(REPOSITORY)[1] - world.disk.free_bytes(REPOSITORY)[0] + 100 * KIB)
        await trio.sleep(limits.COMMIT_DELAY_S + limits.LOOK_S)
        assert m.fs.status().space_short
        mark = len(world.disk.log)
        await append_and_sync(m, b"log", 1)
        assert syncs(world.disk.log[mark:]) >= 2
        assert sum(len(event.data) for event in written(world.disk.log[mark:])) < 2 * BLOCK + 300
        world.disk.set_capacity(1 << 40)


@simulated
async def test_a_repository_from_before_carries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "FEATURES", 0)
    world = World.new(tmp_path / "w", compression=False)
    monkeypatch.undo()
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(8):  # all packs are there then
            await append_and_sync(m, b"log", number)
        mark = len(world.disk.log)
        await append_and_sync(m, b"log", 8)
        assert syncs(world.disk.log[mark:]) == 2, "the pack, then the journal"
        assert sum(len(event.data) for event in written(world.disk.log[mark:])) < 2 * BLOCK + 300
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_what_no_pack_has_yet_can_be_read(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(3):
            await append_and_sync(m, b"log", number)
        m.fs._volume.cache._chunks.clear()
        assert await m.get(b"log") == b"".join(noise(BLOCK, (b"log", number)) for number in range(3))


@pytest.mark.parametrize("index", ["kept", "lost", "rebuilt"])
@simulated
async def test_what_only_the_journal_has_is_in_its_pack_after_the_next_mount(tmp_path: Path, index: str) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(20):
            await append_and_sync(m, b"log", number)
        killed = world.after_kill(tmp_path / "k")
    expected = b"".join(noise(BLOCK, (b"log", number)) for number in range(20))
    (pack,) = [path for path in killed.objects("open") if len(path.name) == 32]
    assert len(killed.content(pack)) < 2 * BLOCK
    assert await killed.check() == [], "a check knows what the next mount puts there"
    assert killed.audit(tmp_path / "before", settled=False) == []
    if index == "lost":
        killed.without_index()
    if index == "rebuilt":
        await rebuild_index(REPOSITORY, killed.unlocked(), killed.state, seams=killed.seams(), progress=lambda _done, _total: None)
        assert len(killed.content(pack)) > 20 * BLOCK
    async with killed.mounted() as m:
        assert await m.get(b"log") == expected
    assert killed.audit(tmp_path / "after") == []
    assert await killed.check() == []


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_a_read_only_mount_shows_what_only_the_journal_has_and_writes_nothing(tmp_path: Path, index: str) -> None:
    """And the index that it leaves does not keep the next mount from putting it where it belongs."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(20):
            await append_and_sync(m, b"log", number)
        killed = world.after_kill(tmp_path / "k")
    if index == "lost":
        killed.without_index()
    expected = b"".join(noise(BLOCK, (b"log", number)) for number in range(20))
    for _ in range(2):
        mark = len(killed.disk.log)
        async with killed.mounted(read_only=True) as m:
            assert await m.get(b"log") == expected
            assert [finding async for finding in m.fs.check(read_data=True, progress=lambda _done, _total: None)] == []
        assert {event.site.partition(":")[0] for event in written(killed.disk.log[mark:])} == {"engine/head.py"}, "what this host has seen"
    async with killed.mounted() as m:
        assert await m.get(b"log") == expected
    async with killed.mounted() as m:
        assert await m.get(b"log") == expected
    assert killed.audit(tmp_path / "copy") == []


@simulated
async def test_what_was_put_into_a_pack_is_durable_before_the_index_has_it(tmp_path: Path) -> None:
    """The process dies; the index is built anew, which puts it there; then the power is cut."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(20):
            await append_and_sync(m, b"log", number)
        killed = world.after_kill(tmp_path / "k")
    await rebuild_index(REPOSITORY, killed.unlocked(), killed.state, seams=killed.seams(), progress=lambda _done, _total: None)
    disk = next(crash_states(killed.disk, 0, [len(killed.disk.log)], 1)).disk()
    for directory in [*reversed(killed.state.parents[:-1]), killed.state]:
        disk.make_directory(directory)
    async with World(killed.state, disk).mounted() as m:
        assert await m.get(b"log") == b"".join(noise(BLOCK, (b"log", number)) for number in range(20))


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_a_pack_that_fails_when_it_is_to_follow_costs_nothing(tmp_path: Path, index: str, log_rule: LogRule) -> None:
    """What durable batches have there moves; the journal says so before the index has them."""
    world = World.new(tmp_path / "w")
    broken = 0

    def verdict(operation: str, _number: int) -> int | None:
        nonlocal broken
        if broken and operation == "sync":
            broken -= 1
            return errno.EIO
        return None

    world.files = FaultyFiles(world.disk, verdict)
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(10):
            await append_and_sync(m, b"log", number)
        broken = 1
        await trio.sleep(limits.COMMIT_DELAY_S + 1)
        assert broken == 0
        assert m.fs.status().layers_not_applied == 0
        await append_and_sync(m, b"log", 10)
        killed = world.after_kill(tmp_path / "k")
    expected = b"".join(noise(BLOCK, (b"log", number)) for number in range(11))
    for each in (killed, world):
        if index == "lost":
            each.without_index()
        async with each.mounted() as m:
            assert await m.get(b"log") == expected
        assert each.audit(tmp_path / f"copy of {each.state.name}") == []


@simulated
async def test_packs_that_can_never_be_synced_end_the_writing(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("packs could not be synced and are tried again")
    log_rule.expect("writing stops")
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation == "sync" else None)
    killed = None
    with pytest.raises(Exception, match="could not be"):
        async with world.mounted() as m:
            await m.open(b"log")
            await append_and_sync(m, b"log", 0)
            broken = True
            await trio.sleep(limits.COMMIT_DELAY_S + 1)
            assert m.fs.status().failure
            assert await m.get(b"log") == noise(BLOCK, (b"log", 0))
            killed = world.after_kill(tmp_path / "k")
    assert killed is not None
    async with killed.mounted() as m:
        assert await m.get(b"log") == noise(BLOCK, (b"log", 0)), "it was acknowledged, and the journal has it"


def test_a_batch_goes_to_a_thread_and_its_error_comes_back() -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "no")

    async def main() -> None:
        offload = ThreadOffload()
        assert await offload.commit(divmod, 7, 2) == (3, 1)
        with pytest.raises(OSError, match="no"):
            await offload.commit(fail)

    trio.run(main)
