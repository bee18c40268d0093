"""Getting space back: deleted snapshots until they are purged, dead packs, packs that are mostly dead."""

import random
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.blobs.packs import OpenPack
from backupfs.errors import FileSystemError, StoreError, UsageError
from backupfs.format.catalog import Pack
from backupfs.rules.collection import COPIED_PER_FREED_MAX, PackUse, plan_collection
from tests.conftest import LogRule
from tests.crash.faults import FaultyFiles
from tests.unit.engine.world import REPOSITORY, World, simulated

HOUR_NS = 3600 * 10**9


def noise(size: int, seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def pack_bytes(world: World) -> int:
    return sum(len(world.content(path)) for path in world.objects("packs"))


@simulated
async def test_packs_that_are_mostly_dead_are_rewritten_and_everything_reads_right(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(60):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.create_snapshot("manual")
        await m.fs.commit()
    before = pack_bytes(world)
    async with world.mounted() as m:
        for number in range(60):
            if number % 3:
                await m.unlink(b"file%d" % number)
        [info] = m.fs.snapshots()
        await m.fs.delete_snapshot(info.name)
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        status = m.fs.upkeep.status()
        tree = await m.tree()
        assert status.packs_to_rewrite == 0
        assert 0 < status.copied_bytes <= COPIED_PER_FREED_MAX * status.freed_bytes
    assert pack_bytes(world) < before * 0.45
    assert await world.check() == []
    assert world.audit(tmp_path / "audit") == []
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree
        for number in range(0, 60, 3):
            assert await m.get(b"file%d" % number) == noise(9000, number)


@simulated
async def test_reading_goes_on_while_packs_are_rewritten(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(40):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.commit()
    async with world.mounted() as m:
        for number in range(40):
            if number % 4:
                await m.unlink(b"file%d" % number)
        m.fs._volume.cache._capacity = 0
        stop = trio.Event()

        async def read_on() -> None:
            while not stop.is_set():
                for number in range(0, 40, 4):
                    assert await m.get(b"file%d" % number) == noise(9000, number)
                    await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_on)
            await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
            stop.set()


@simulated
async def test_a_deleted_snapshot_can_be_brought_back_until_its_time_is_over(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        await m.put(b"file", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.put(b"file", b"now!")
        await m.fs.delete_snapshot(info.name)
        assert m.fs.snapshots() == []
        assert [deleted.name for deleted in m.fs.deleted_snapshots()] == [info.name]
        await trio.sleep(1800)
        await m.fs.undelete_snapshots([info.name])
        assert await m.get(b".snapshots/" + info.name.encode() + b"/file") == b"then"
        with pytest.raises(UsageError, match="not deleted"):
            await m.fs.undelete_snapshots([info.name])
        await m.fs.delete_snapshot(info.name)
        await trio.sleep(3700)
        await m.fs.idle()
        assert m.fs.deleted_snapshots() == []
        with pytest.raises(UsageError, match="no deleted snapshot"):
            await m.fs.undelete_snapshots([info.name])
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_the_owner_can_shorten_the_time(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        await m.put(b"file", noise(200_000, 1))
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")
        await m.fs.delete_snapshot(info.name)
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        assert m.fs.stats().stored_bytes > 200_000
        await m.fs.upkeep.collect_now(purge_deleted=True, thorough=True)
        assert m.fs.stats().stored_bytes == 0


@simulated
async def test_a_shortened_time_is_only_that_of_what_was_deleted_then(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        names = [(await m.fs.create_snapshot("manual")).name for _ in range(3)]
        await m.fs.delete_snapshot(names[0])
        async with m.fs.lending(names[1]):
            await m.fs.delete_snapshot(names[1])
            await m.fs.upkeep.collect_now(purge_deleted=True, thorough=True)
            assert [deleted.name for deleted in m.fs.deleted_snapshots()] == [names[1]]
            await m.fs.undelete_snapshots([names[1]])
        world.clock._now_ns -= 24 * HOUR_NS
        await m.fs.delete_snapshots(names[1:])
        await m.fs.idle()
        assert [deleted.name for deleted in m.fs.deleted_snapshots()] == names[1:], "a clock that was set back shortens no other's time"
        await m.fs.undelete_snapshots(names[1:])


@simulated
async def test_a_clock_that_was_set_back_does_not_keep_what_was_deleted(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        info = await m.fs.create_snapshot("manual")
        await m.fs.delete_snapshot(info.name)
    world.clock._now_ns -= 1000 * HOUR_NS
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        await trio.sleep(1800)
        assert [deleted.name for deleted in m.fs.deleted_snapshots()] == [info.name], "the time to bring it back is not shortened"
        await trio.sleep(3700)
        await m.fs.idle()
        assert m.fs.deleted_snapshots() == []


@simulated
async def test_pinned_and_held_snapshots_are_not_deleted(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        info = await m.fs.create_snapshot("manual")
        await m.fs.pin_snapshots([info.name], pinned=True)
        with pytest.raises(UsageError, match="pinned"):
            await m.fs.delete_snapshot(info.name)
        await m.fs.pin_snapshots([info.name], pinned=False)
        await m.fs.hold_snapshots([info.name], world.clock.now_ns() + HOUR_NS)
        with pytest.raises(UsageError, match="held"):
            await m.fs.delete_snapshot(info.name)
        with pytest.raises(UsageError, match="no snapshot"):
            await m.fs.pin_snapshots(["another"], pinned=True)
    async with world.mounted() as m:
        [again] = m.fs.snapshots()
        assert again.hold_until_ns
        await trio.sleep(3700)
        await m.fs.delete_snapshot(info.name)


@simulated
async def test_changes_are_counted_in_the_background(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(7):
            await m.put(b"file%d" % number, b"x")
        await m.fs.create_snapshot("manual")
        await m.put(b"file1", b"changed")
        await m.unlink(b"file2")
        await m.unlink(b"file3")
        await m.put(b"new", b"y")
        await m.put(b"passing", b"z")
        await m.unlink(b"passing")
        await m.fs.create_snapshot("manual")
        await m.fs.idle()
        first, second = m.fs.snapshots()
        assert (first.made, first.altered, first.removed) == (8, 0, 0), "the root is one of them"
        assert (second.made, second.altered, second.removed) == (1, 2, 2), "the root and a file were altered"


@simulated
async def test_what_cannot_be_read_is_left_alone_and_said(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    log_rule.expect("is not rewritten")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(30):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.commit()
    damaged = world.objects("packs")[0]
    content = bytearray(world.content(damaged))
    for at in range(200, len(content) - 2000, 700):
        content[at] ^= 1
    world.disk.unlink(damaged)
    handle = world.disk.create(damaged)
    world.disk.write_at(handle, 0, [bytes(content)])
    world.disk.close(handle)
    async with world.mounted() as m:
        for number in range(30):
            if number % 4:
                await m.unlink(b"file%d" % number)
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        assert any("is not rewritten" in error for error in m.fs.status().errors)
    assert damaged in world.objects("packs")


@simulated
async def test_a_failure_while_collecting_loses_nothing(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(30):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.commit()
    for failing in range(0, 24, 3):
        calls, collecting = [0], [False]

        def verdict(operation: str, _number: int, failing: int = failing, calls: list[int] = calls, on: list[bool] = collecting) -> int | None:
            if operation in ("write_at", "sync", "create") and on[0]:
                calls[0] += 1
                return 5 if calls[0] == failing else None
            return None

        once = world.after_kill(tmp_path / f"f{failing}")
        once.files = FaultyFiles(once.disk, verdict)
        async with once.mounted() as m:
            for number in range(30):
                if number % 4:
                    await m.unlink(b"file%d" % number)
            await m.fs.commit()
            collecting[0] = True
            await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
            collecting[0] = False
            for number in range(0, 30, 4):
                assert await m.get(b"file%d" % number) == noise(9000, number)
        once.files = once.disk
        assert await once.check() == []


@pytest.mark.parametrize("gone", [5, 4, 2])
@simulated
async def test_on_a_full_disk_room_comes_back_with_what_is_removed(tmp_path: Path, small: None, gone: int, log_rule: LogRule) -> None:
    """Copying what lives takes room that only the reserve has."""
    log_rule.allow("")
    world = World.new(tmp_path / "w", compression=False, capacity_bytes=1200 * 1024)
    async with world.mounted() as m:
        written = []
        with pytest.raises(FileSystemError, match="ENOSPC"):
            for number in range(1000):
                await m.put(b"file%d" % number, noise(9000, number))
                written.append(number)
                await trio.sleep(0.2)
        await m.fs.commit()
        assert len(written) > 70
        assert world.disk.exists(REPOSITORY / "open" / "reserve")
        kept = [number for number in written if number % gone]
        for number in written:
            if number not in kept:
                await m.unlink(b"file%d" % number)
        await m.fs.commit()
        before, _ = world.disk.free_bytes(REPOSITORY)
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        after, _ = world.disk.free_bytes(REPOSITORY)
        assert after - before > 9000 * (len(written) - len(kept)) // 3
        await trio.sleep(60)
        await m.put(b"new", noise(9000, "new"))
        await m.fs.commit()
        for number in kept:
            assert await m.get(b"file%d" % number) == noise(9000, number)
    assert await world.check() == []


def test_a_plan_frees_what_is_worth_it_and_stays_in_proportion() -> None:
    draw = random.Random(7)
    for _ in range(300):
        packs = []
        for number in range(draw.randrange(30)):
            held = draw.randrange(1, 64 << 20)
            packs.append(PackUse(number, held, round(held * draw.choice([1.0, 0.99, draw.random(), draw.random() ** 2]))))
        plan = plan_collection(packs)
        assert plan.copied_bytes <= COPIED_PER_FREED_MAX * plan.freed_bytes
        assert all(pack.dead_bytes for pack in plan.packs)
        left = sum(pack.dead_bytes for pack in packs) - plan.freed_bytes
        held = sum(pack.held_bytes for pack in packs)
        if left > max(0.03 * held, 1 << 20):
            others = [pack for pack in packs if pack not in plan.packs and pack.dead_bytes]
            cheapest = min(others, key=lambda pack: pack.live_bytes / pack.held_bytes)
            assert plan.copied_bytes + cheapest.live_bytes > COPIED_PER_FREED_MAX * (plan.freed_bytes + cheapest.dead_bytes)
    assert plan_collection([PackUse(1, limits.PACK_TARGET_BYTES, limits.PACK_TARGET_BYTES)]).packs == ()


@simulated
async def test_what_is_brought_back_while_another_is_being_purged_is_not_purged(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = HOUR_NS
        infos = []
        for turn in range(2):
            for number in range(30):
                await m.put(b"file%d" % number, noise(600, (turn, number)))
            infos.append(await m.fs.create_snapshot("manual"))
        for number in range(30):
            await m.put(b"file%d" % number, b"now")
        await m.fs.idle()
        for info in infos:
            await m.fs.delete_snapshot(info.name)
        m.fs._snapshots.give_up_deleted()
        m.fs.upkeep.wake()
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
            if [info.state for info in m.fs.deleted_snapshots()] == ["purging", "deleted"]:
                break
        await m.fs.undelete_snapshots([infos[1].name])
        await m.fs.idle()
        assert [info.name for info in m.fs.snapshots()] == [infos[1].name]
        for number in range(30):
            assert await m.get(b".snapshots/%s/file%d" % (infos[1].name.encode(), number)) == noise(600, (1, number))
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_several_who_wait_for_the_background_work_are_all_told(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(20):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.create_snapshot("manual")
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(m.fs.idle)
                nursery.start_soon(lambda: m.fs.upkeep.collect_now(purge_deleted=False, thorough=False))


@pytest.mark.parametrize("thorough", [(True, False), (False, True)])
def test_who_asks_for_less_takes_nothing_from_who_asked_for_more(tmp_path: Path, small: None, thorough: tuple[bool, bool]) -> None:
    @simulated
    async def main() -> None:
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            for number in range(20):
                await m.put(b"file%d" % number, noise(9000, number))
        async with world.mounted() as m:
            await m.fs.idle()
            for number in range(20):
                if number % 4:
                    await m.unlink(b"file%d" % number)

            async def ask(each: bool) -> None:
                await m.fs.upkeep.collect_now(purge_deleted=False, thorough=each)

            async with trio.open_nursery() as nursery:
                for each in thorough:
                    nursery.start_soon(ask, each)
                    while m.fs.upkeep._asked == 0:
                        await trio.lowlevel.checkpoint()
            assert m.fs.upkeep.status().freed_bytes > 0

    main()


@simulated
async def test_who_asked_for_space_is_told_what_interrupted_it_and_it_goes_on_later(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(20):
            await m.put(b"file%d" % number, noise(9000, number))
    async with world.mounted() as m:
        await m.fs.idle()
        for number in range(20):
            if number % 4:
                await m.unlink(b"file%d" % number)
        await m.fs.commit()
        append = m.fs._volume.packs.append

        def refuse(blobs: object) -> None:
            raise StoreError("refused")

        m.fs._volume.packs.append = refuse  # type: ignore[assignment,method-assign]
        with pytest.raises(StoreError, match="refused"):
            await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        m.fs._volume.packs.append = append  # type: ignore[method-assign]
        assert m.fs.upkeep._collector.is_due()
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        assert m.fs.upkeep.status().freed_bytes > 0


@simulated
async def test_what_once_had_to_move_to_another_pack_is_rewritten_like_all_else(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    failing = [False]
    world.files = FaultyFiles(world.disk, lambda operation, _number: 5 if operation == "sync" and failing[0] else None)
    async with world.mounted() as m:
        await m.fs.idle()
        sync_pack = m.fs._volume.packs._sync_pack

        def failing_once(pack: OpenPack) -> bool:
            failing[0] = not hurt
            hurt.add(pack.number)
            try:
                return sync_pack(pack)
            finally:
                failing[0] = False

        hurt: set[int] = set()
        m.fs._volume.packs._sync_pack = failing_once  # type: ignore[method-assign]
        for number in range(30):
            await m.put(b"file%d" % number, noise(4000, number))
            await m.fs.commit()
        assert hurt
        assert m.fs._volume.packs._moved == {}, "whoever was told need not be told again"
        for number in range(1, 30):
            if number % 4:
                await m.unlink(b"file%d" % number)
        await m.fs.upkeep.collect_now(purge_deleted=False, thorough=True)
        assert m.fs.upkeep.status().copied_bytes > 0
        for number in range(0, 30, 4):
            assert await m.get(b"file%d" % number) == noise(4000, number)
        assert m.fs.status().failure == ""
    assert await world.check() == []


@simulated
async def test_a_pack_that_goes_while_it_is_looked_at_is_no_trouble(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(20):
            await m.put(b"file%d" % number, noise(9000, number))
    async with world.mounted() as m:
        await m.fs.idle()
        collector = m.fs.upkeep._collector
        collector._held.clear()
        packs = await collector._closed_packs()
        for number in range(20):
            await m.unlink(b"file%d" % number)
        await m.fs.idle()

        async def stale() -> list[tuple[int, Pack]]:
            return packs

        monkeypatch.setattr(collector, "_closed_packs", stale)
        assert (await collector.plan(thorough=True)).packs == ()
        assert m.fs.status().errors == []


@pytest.mark.parametrize("until_the_end", [False, True])
def test_a_pack_that_could_not_be_removed_does_not_stay_for_ever(tmp_path: Path, small: None, log_rule: LogRule, until_the_end: bool) -> None:
    log_rule.expect("could not be removed")

    @simulated
    async def main() -> None:
        await remove_in_vain(tmp_path, until_the_end)

    main()


async def remove_in_vain(tmp_path: Path, until_the_end: bool) -> None:
    world = World.new(tmp_path / "w")
    failing = [False]
    world.files = FaultyFiles(world.disk, lambda operation, _number: 5 if operation == "unlink" and failing[0] else None)
    async with world.mounted() as m:
        failing[0] = False
        for number in range(20):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.commit()
        failing[0] = True
        for number in range(20):
            await m.unlink(b"file%d" % number)
        await m.fs.idle()
        assert world.objects("packs")
        failing[0] = until_the_end
    failing[0] = False
    async with world.mounted() as m:
        await m.fs.idle()
    assert world.objects("packs") == []
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_a_full_disk_is_pruned_free_and_written_again(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    """Snapshots of a changing file until the disk is full; then all but the first go, one after another."""
    log_rule.allow("")
    world = World.new(tmp_path / "w", capacity_bytes=3_000_000)
    async with world.mounted() as m:
        await m.put(b"kept", noise(100_000, "kept"))
        first = await m.fs.create_snapshot("manual")
        full = False
        for number in range(40):
            try:
                await m.put(b"file", noise(90_000, number))
                await m.fs.create_snapshot("manual")
            except (FileSystemError, StoreError):
                full = True
                break
        assert full, "the disk was never full"
        assert not m.fs.status().failure
        for info in m.fs.snapshots():
            if info.name != first.name:
                await m.fs.delete_snapshot(info.name)
                await m.fs.idle()
        assert not m.fs.status().failure
        await trio.sleep(30)
        await m.put(b"again", noise(900_000, "again"))
        await m.fs.commit()
        assert await m.get(b"kept") == noise(100_000, "kept")
    async with world.mounted() as m:
        assert await m.get(b"again") == noise(900_000, "again")
    assert await world.check() == []
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_what_is_being_collected_already_is_waited_for(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(60):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.commit()
    async with world.mounted() as m:
        await m.fs.idle()
        for number in range(60):
            if number % 3:
                await m.unlink(b"file%d" % number)
        await m.fs.upkeep.idle()
        m.fs.upkeep.collect_soon()
        while not m.fs.upkeep.status().packs_to_rewrite:
            await trio.lowlevel.checkpoint()
        await m.fs.idle()
        status = m.fs.upkeep.status()
        assert (status.packs_to_rewrite, status.copied_bytes > 0) == (0, True)
