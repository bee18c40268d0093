"""What a repository takes on its disk, held against the disk; and what a survey finds dead in it, against what collection then frees."""

import random
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.engine.attributes import Usage
from backupfs.errors import MissingObjectError, UsageError
from backupfs.stores.files import Handle
from tests.unit.engine.world import REPOSITORY, World, simulated

HOUR_NS = 3600 * 10**9


def noise(size: int, seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def on_disk(world: World, folder: str) -> dict[str, int]:
    return {path.name: len(world.content(path)) for path in world.objects(folder)}


def expected(world: World) -> Usage:
    appended = on_disk(world, "open")
    reserve = appended.pop("reserve", 0)
    packs, journal, checkpoints, aside = (sum(on_disk(world, folder).values()) for folder in ("packs", "journal", "checkpoints", "set-aside"))
    return Usage(packs, journal, checkpoints, sum(appended.values()), reserve, aside)


async def filled(world: World) -> None:
    async with world.mounted() as m:
        for number in range(60):
            await m.put(b"file%d" % number, noise(9000, number))
        await m.fs.create_snapshot("manual")
        await m.fs.make_checkpoint()


@simulated
async def test_usage_is_what_lies_on_the_disk(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backupfs.engine.usage.BREATHE_RECORDS", 2)
    world = World.new(tmp_path / "w")
    await filled(world)
    world.disk.make_directory(REPOSITORY / "set-aside")
    handle = world.disk.create(REPOSITORY / "set-aside" / f"{7:016x}-something")
    world.disk.write_at(handle, 0, [b"x" * 77])
    world.disk.close(handle)
    async with world.mounted() as m:
        await m.put(b"more", noise(5000, "more"))
        await m.fs.commit()
        usage = await m.fs.usage()
        assert usage == expected(world)
        assert min(usage.packs_bytes, usage.journal_bytes, usage.checkpoints_bytes, usage.open_bytes, usage.reserve_bytes) > 0
        assert usage.set_aside_bytes == 77
        assert usage.used_bytes == usage.packs_bytes + usage.journal_bytes + usage.checkpoints_bytes + usage.open_bytes


@simulated
async def test_what_goes_while_it_is_measured_does_not_count(tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    await filled(world)
    async with world.mounted() as m:
        whole = await m.fs.usage()
        gone = [world.objects("packs")[0], world.objects("open")[0]]
        opened = world.disk.open

        def missing(path: Path) -> Handle:
            if path in gone:
                raise MissingObjectError(f"{path} is gone")
            return opened(path)

        sizes = [len(world.content(path)) for path in gone]
        monkeypatch.setattr(world.disk, "open", missing)
        less = await m.fs.usage()
        monkeypatch.undo()
        assert (less.packs_bytes, less.used_bytes + less.reserve_bytes) == (
            whole.packs_bytes - sizes[0],
            whole.used_bytes + whole.reserve_bytes - sum(sizes),
        )


@simulated
async def test_a_survey_changes_nothing_and_foretells_what_collection_frees(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    await filled(world)
    async with world.mounted() as m:
        for number in range(60):
            if number % 4:
                await m.unlink(b"file%d" % number)
        await m.fs.delete_snapshot(m.fs.snapshots()[0].name)
        await m.fs.idle()
        survey = await m.fs.upkeep.survey(thorough=True)
        known = len(m.fs.upkeep._collector._held)
        m.fs.upkeep._collector._held.clear()
        told: list[tuple[int, int]] = []
        assert survey == await m.fs.upkeep.survey(thorough=True, progress=lambda done, total: told.append((done, total)))
        assert told[-1] == (known, known)
        assert known > 0
        assert survey.held_bytes > survey.dead_bytes >= survey.plan.freed_bytes > 0
        freed_bytes = m.fs.upkeep.status().freed_bytes
        m.fs.upkeep.collect_soon()
        await trio.sleep(60)
        assert m.fs.upkeep.status().freed_bytes - freed_bytes == survey.plan.freed_bytes
        assert (await m.fs.upkeep.survey(thorough=True)).plan.packs == ()


@simulated
async def test_what_is_purged_while_it_is_reckoned_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPARED_PER_STEP", 1)  # so that the purge comes between any two rows
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(30):
            await m.put(b"file%d" % number, noise(70_000, number))
        info = await m.fs.create_snapshot("manual")
        for number in range(30):
            await m.unlink(b"file%d" % number)
        whole = await m.fs.reckoner.frees([info.serial])
        assert whole >= 30 * 70_000
        found: list[int] = []

        async def reckon() -> None:
            found.append(await m.fs.reckoner.frees([info.serial]))

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(reckon)
                await trio.lowlevel.checkpoint()
            await m.fs.delete_snapshot(info.name)
            await m.fs.upkeep.collect_now(purge_deleted=True, thorough=True)
        assert all(0 <= bytes_ <= whole for bytes_ in found)
        assert min(found) < whole, "the test has met what it is about"
        assert await m.fs.reckoner.frees([info.serial]) == 0


@simulated
async def test_nothing_is_purged_at_a_mount_before_the_time_to_bring_back_is_over(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted(undelete_ns=HOUR_NS) as m:
        await m.put(b"file", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")
        await m.fs.delete_snapshot(info.name)
    async with world.mounted(undelete_ns=HOUR_NS) as m:
        await m.fs.idle()
        await m.fs.undelete_snapshots([info.name])
        assert await m.get(b".snapshots/" + info.name.encode() + b"/file") == b"then"


@simulated
async def test_several_snapshots_are_changed_or_none(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted(undelete_ns=HOUR_NS) as m:
        names = [(await m.fs.create_snapshot("manual")).name for _ in range(3)]
        await m.fs.pin_snapshots(names[1:2], pinned=True)
        for attempt in (m.fs.delete_snapshots(names), m.fs.undelete_snapshots(names), m.fs.hold_snapshots([names[0], "x"], 1)):
            with pytest.raises(UsageError):
                await attempt
        for wanted in (names, [names[0], "x"]):
            with pytest.raises(UsageError):
                m.fs.check_deletable(wanted)
        m.fs.check_deletable(names[::2])
        assert [(info.name, info.pinned, info.hold_until_ns) for info in m.fs.snapshots()] == [(name, name == names[1], None) for name in names]
        await m.fs.delete_snapshots(names[::2])
        assert [info.name for info in m.fs.snapshots()] == [names[1]]
        await m.fs.undelete_snapshots(names[::2])
        assert len(m.fs.snapshots()) == 3
