"""The order in which things become durable, and what happens at each place where it can fail."""

import errno
import random
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, TypeVarTuple

import lmdb
import pytest
import trio

from backupfs import limits
from backupfs.errors import BackupfsError, ReadOnlyError, StoreError
from backupfs.format import catalog as records
from backupfs.format.catalog import META_COUNTERS, Table
from tests.conftest import LogRule
from tests.crash.disk import Op
from tests.crash.faults import FaultyFiles
from tests.unit.engine.world import KIB, MIB, REPOSITORY, ROOT, WHO, World, simulated

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


class GatedOffload:
    """Work of a kind waits at its gate, before or after it is done, until the gate is opened."""

    def __init__(self) -> None:
        self.before: dict[str, trio.Event] = {}
        self.after: dict[str, trio.Event] = {}
        self.waiting: list[str] = []
        self.turns: dict[str, int] = {}

    def gate(self, name: str, *, after: bool = False) -> trio.Event:
        """Those whose name ends so stop there."""
        return (self.after if after else self.before).setdefault(name, trio.Event())

    def breathe(self) -> None:
        """See `Offload`: nobody else could run."""

    async def _gated(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        name = getattr(work, "__name__", "")
        turn = self.turns[name] = self.turns.get(name, 0) + 1
        await trio.lowlevel.checkpoint()
        await self._stop(self.before, name, turn)
        result = work(*args)
        await self._stop(self.after, name, turn)
        return result

    async def _stop(self, gates: dict[str, trio.Event], name: str, turn: int) -> None:
        for key in (name, f"{name} {turn}"):
            if key in gates:
                self.waiting.append(key)
                await gates[key].wait()

    cpu = disk = commit = index = _gated


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(1000):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await trio.sleep(0.01)


# --- the order ----------------------------------------------------------------------------------------------------------


@simulated
async def test_nothing_is_acknowledged_before_it_is_synced(tmp_path: Path) -> None:
    """Each fsync is one write and one sync of the journal, which carries what was written; packs and index follow. More goes to the pack first."""
    world = World.new(tmp_path / "w", compression=False)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(1000))
        for number in range(10):
            await m.fs.write(fh, 10 * number, noise(10, ("warm", number)))
            await m.fs.fsync(fh, datasync=False)
        for number in range(10):
            mark = len(world.disk.log)
            await m.fs.write(fh, 1000 + 10 * number, noise(10, number))
            await m.fs.fsync(fh, datasync=False)
            assert [event.op for event in world.disk.log[mark:]] == [Op.WRITE, Op.SYNC]
            assert world.disk.log[mark].node == world.disk.log[mark + 1].node
            assert len(world.disk.log[mark].data) == limits.JOURNAL_FRAME_BYTES
        mark = len(world.disk.log)
        await m.fs.write(fh, 0, noise(limits.CARRIED_BYTES_MAX))
        await m.fs.fsync(fh, datasync=False)
        log = world.disk.log[mark:][-4:]
        assert [event.op for event in log] == [Op.WRITE, Op.SYNC, Op.WRITE, Op.SYNC]
        assert log[0].node != log[2].node


@simulated
async def test_many_who_wait_share_a_batch(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        handles = [await m.open(b"f%d" % i) for i in range(20)]
        before = m.fs.stats().batches
        async with trio.open_nursery() as nursery:
            for fh in handles:
                await m.fs.write(fh, 0, noise(100, fh))
                nursery.start_soon(m.fs.fsync, fh, False)
        assert m.fs.stats().batches - before <= 3


@simulated
async def test_a_batch_is_committed_after_a_while_without_being_asked(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"content")
        await m.mkdir(b"d")
        await trio.sleep(limits.COMMIT_DELAY_S + 1)
        killed = world.after_kill(tmp_path / "k")
        batches = m.fs.stats().batches
        await trio.sleep(100)
        assert m.fs.stats().batches == batches, "nothing is committed when nothing has changed"
    async with killed.mounted() as m:
        assert sorted(await m.names(b"")) == [b"d", b"f"]
        assert await m.get(b"f") == b"content"


@simulated
async def test_a_file_that_replaces_another_is_never_seen_empty(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"old")
        await m.fs.commit()
        fh = await m.open(b"new")
        await m.fs.write(fh, 0, b"newer content")
        await m.rename(b"new", b"f")
        await m.fs._committer.commit()
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert await m.get(b"f") == b"newer content"


@simulated
async def test_no_batch_records_a_size_beyond_its_data(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(200_000))
        await m.fs.fsync(fh, datasync=False)
        await m.fs.write(fh, 200_000, noise(100_000, 1))
        await m.mkdir(b"d")
        await m.fs._committer.commit()
        killed = world.after_kill(tmp_path / "k")
        assert (await m.fs.getattr(await m.ino(b"f"))).size == 300_000
    async with killed.mounted() as m:
        assert await m.names(b"") == await m.names(b"")
        assert await m.get(b"f") == noise(200_000)
        assert b"d" in await m.names(b"")
    assert killed.audit(tmp_path / "copy") == []


# --- packs that are closed or fail while others write ------------------------------------------------------------------


@simulated
async def test_a_pack_is_not_closed_before_its_blobs_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One half of a large append is done, its pack full and synced by another's commit, while the other half is still at work."""
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 300 * KIB)
    world = World.new(tmp_path / "w")
    offload = GatedOffload()
    world.offload = offload
    content = noise(3 * MIB)
    async with world.mounted() as m:
        fh = await m.open(b"big")
        await m.fs.write(fh, 0, content)
        gate = offload.gate(f"append {offload.turns.get('append', 0) + 2}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.fsync, fh, False)
            await until(lambda: offload.waiting)
            for number in range(5):
                await m.mkdir(b"d%d" % number)
                await m.fs._committer.commit()
            gate.set()
        await m.fs.commit()
        await m.close(b"big")
        assert await m.get(b"big") == content
    async with world.mounted() as m:
        assert await m.get(b"big") == content
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_chunks_numbered_early_and_stored_late_survive_a_kill(tmp_path: Path) -> None:
    """A chunk that got its number first reaches the pack after others of that pack are on record; then the process dies."""
    world = World.new(tmp_path / "w")
    offload = GatedOffload()
    world.offload = offload
    async with world.mounted() as m:
        slow, quick = await m.open(b"slow"), await m.open(b"quick")
        await m.fs.write(slow, 0, noise(40_000, "slow"))
        gate = offload.gate(f"append {offload.turns.get('append', 0) + 1}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.fsync, slow, False)
            await until(lambda: offload.waiting)
            await m.fs.write(quick, 0, noise(40_000, "quick"))
            await m.fs.fsync(quick, datasync=False)
            gate.set()
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert await m.get(b"slow") == noise(40_000, "slow")
        assert await m.get(b"quick") == noise(40_000, "quick")
    assert killed.audit(tmp_path / "copy") == []


@simulated
async def test_who_waits_for_anothers_chunk_shares_its_failure(tmp_path: Path, log_rule: LogRule) -> None:
    world = World.new(tmp_path / "w")
    offload = GatedOffload()
    world.offload = offload
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation in ("write_at", "create") else None)
    async with world.mounted() as m:
        handles = [await m.open(name) for name in (b"a", b"b")]
        for fh in handles:
            await m.fs.write(fh, 0, noise(40_000))
        gate = offload.gate(f"append {offload.turns.get('append', 0) + 1}")
        outcomes: list[str] = []

        async def sync(fh: int) -> None:
            try:
                await m.fs.fsync(fh, datasync=False)
                outcomes.append("done")
            except BackupfsError as error:
                outcomes.append(error.kind)

        async with trio.open_nursery() as nursery:
            for fh in handles:
                nursery.start_soon(sync, fh)
            await until(lambda: offload.waiting)
            broken = True
            gate.set()
        assert outcomes == ["store", "store"]
        broken = False
        for fh in handles:
            await m.fs.fsync(fh, datasync=False)
        for name in (b"a", b"b"):
            await m.close(name)
            assert await m.get(name) == noise(40_000)
        assert m.fs.stats().stored_bytes < 41_000
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_two_halves_of_which_one_fails(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    fails = 0
    writes = 0

    def verdict(operation: str, _number: int) -> int | None:
        nonlocal writes, fails
        if fails and operation == "write_at":
            writes += 1
            if writes > 1 and fails:
                fails -= 1
                return errno.EIO
        return None

    world.files = FaultyFiles(world.disk, verdict)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(4 * MIB))
        fails = 4
        with pytest.raises(BackupfsError):
            await m.fs.fsync(fh, datasync=False)
        fails = 0
        await m.fs.fsync(fh, datasync=False)
        await m.close(b"f")
        assert await m.get(b"f") == noise(4 * MIB)
        assert any("a pack could not be written" in text for text in m.fs.status().errors)
    async with world.mounted() as m:
        assert await m.get(b"f") == noise(4 * MIB)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_pack_number_given_after_the_counters_is_never_given_again(tmp_path: Path) -> None:
    """A sync fails while a batch is written; its blobs get a new pack; then the process dies."""
    world = World.new(tmp_path / "w")
    due = 0

    def verdict(operation: str, _number: int) -> int | None:
        nonlocal due
        if operation == "sync" and due:
            due -= 1
            return errno.EIO
        return None

    world.files = FaultyFiles(world.disk, verdict)
    async with world.mounted() as m:
        await m.put(b"f", noise(10_000))
        due = 1
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    index = killed.state / "index"
    assert index.exists()
    async with killed.mounted() as m:
        taken = [records.number_of(key) for key, _ in m.fs._volume.catalog.rows(Table.PACKS)]
        assert records.decode_counters(m.fs._volume.catalog.get(Table.META, META_COUNTERS) or b"").pack > max(taken)
        await m.put(b"g", noise(10_000, 1))
        await m.fs.commit()
        assert (await m.get(b"f"), await m.get(b"g")) == (noise(10_000), noise(10_000, 1))
    async with killed.mounted() as m:
        assert (await m.get(b"f"), await m.get(b"g")) == (noise(10_000), noise(10_000, 1))


@simulated
async def test_a_pack_that_cannot_be_closed_is_finished_later(tmp_path: Path, log_rule: LogRule, small: None) -> None:
    log_rule.expect("could not be closed; it is finished at the next mount")
    world = World.new(tmp_path / "w")
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation == "rename" else None)
    async with world.mounted() as m:
        broken = True
        for number in range(5):
            await m.put(b"f%d" % number, noise(40_000, number))
            await m.fs.commit()
        await m.fs.idle()
        broken = False
        for number in range(5):
            assert await m.get(b"f%d" % number) == noise(40_000, number)
    async with world.mounted() as m:
        for number in range(5):
            assert await m.get(b"f%d" % number) == noise(40_000, number)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_pack_that_cannot_be_removed_or_is_gone(tmp_path: Path, log_rule: LogRule, small: None) -> None:
    log_rule.expect("could not be removed")
    log_rule.expect("was gone before it was removed")
    world = World.new(tmp_path / "w")
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation == "unlink" else None)
    async with world.mounted() as m:
        await m.put(b"f", noise(200_000))
        await m.fs.commit()
        await m.fs.idle()
        broken = True
        await m.unlink(b"f")
        await m.fs.idle()
        broken = False
        await m.put(b"g", noise(200_000, 1))
        await m.fs.commit()
        await m.fs.idle()
        for path in world.objects("packs"):
            world.disk.unlink(path)
        await m.unlink(b"g")
        await m.fs.idle()
        await m.put(b"g", b"goes on")
    async with world.mounted() as m:
        assert await m.get(b"g") == b"goes on"


# --- a commit that fails for good --------------------------------------------------------------------------------------


async def broken_mount(world: World, kinds: tuple[str, ...]) -> None:
    """Everything of these kinds fails from some point on: whoever waits is told, and nothing acknowledged is lost."""
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation in kinds else None)
    with pytest.raises(BackupfsError):
        async with world.mounted() as m:
            await m.put(b"safe", noise(10_000))
            await m.fs.commit()
            fh = await m.open(b"lost")
            await m.fs.write(fh, 0, b"x")
            broken = True
            with pytest.raises(BackupfsError):
                await m.fs.fsync(fh, datasync=False)
            with pytest.raises(BackupfsError):
                for _ in range(3):
                    await m.fs.commit()
            assert m.fs.status().read_only
            for request in (m.fs.mkdir(ROOT, b"d", 0o755, WHO), m.fs.write(fh, 0, b"y"), m.fs.commit()):
                with pytest.raises(ReadOnlyError):
                    await request
            assert await m.get(b"safe") == noise(10_000), "what is there can be read"
            await trio.sleep(30)
    world.files = world.disk
    async with world.mounted() as m:
        assert await m.get(b"safe") == noise(10_000)
    assert await world.check() == []


@simulated
async def test_a_disk_that_syncs_no_more(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("writing stops")
    log_rule.expect("a batch could not be written")
    log_rule.expect("not everything could be committed")
    await broken_mount(World.new(tmp_path / "w"), ("sync",))


@simulated
async def test_a_disk_that_takes_nothing_any_more(tmp_path: Path, log_rule: LogRule) -> None:
    """What cannot be stored stays in memory and is tried again, until the end tells that it is lost."""
    log_rule.expect("not everything could be")
    log_rule.expect("tried in a new segment")
    log_rule.expect("writing stops")
    world = World.new(tmp_path / "w")
    broken = False
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.EIO if broken and operation != "read_at" else None)
    with pytest.raises(BackupfsError):
        async with world.mounted() as m:
            await m.put(b"safe", noise(10_000))
            await m.fs.commit()
            fh = await m.open(b"lost")
            await m.fs.write(fh, 0, b"x")
            broken = True
            for _ in range(2):
                with pytest.raises(BackupfsError):
                    await m.fs.fsync(fh, datasync=False)
            assert await m.get(b"lost") == b"x"
    world.files = world.disk
    async with world.mounted() as m:
        assert await m.get(b"safe") == noise(10_000)
    assert await world.check() == []


@simulated
async def test_an_index_that_cannot_be_written_is_built_anew(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("the index could not be written")
    log_rule.expect("has been given up")
    log_rule.expect("writing stops")
    log_rule.expect("not everything")
    world = World.new(tmp_path / "w")
    with pytest.raises(BackupfsError):
        async with world.mounted() as m:
            await m.put(b"before", b"1")
            await m.fs.commit()
            await m.fs.idle()

            def failing(*_args: object) -> None:
                raise StoreError("the index could not be written: no space")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(m.fs._volume.index), "apply", failing)
                await m.put(b"after", b"2")
                fh = await m.open(b"after")
                await m.fs.fsync(fh, datasync=False)
                await until(lambda: m.fs.status().failure)
                with pytest.raises(ReadOnlyError):
                    await m.mkdir(b"d")
    async with world.mounted() as m:
        assert (await m.get(b"before"), await m.get(b"after")) == (b"1", b"2")
    assert (world.state / "index.damaged").exists()


@simulated
async def test_an_index_that_fails_once_is_tried_again(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("once more with the reserve given up")
    log_rule.expect("has been given up")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        real = type(m.fs._volume.index)._apply_change
        fails = [True]

        def failing(self: object, *args: object) -> None:
            if fails:
                fails.clear()
                raise lmdb.DiskError("no space")
            real(self, *args)  # type: ignore[arg-type]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(m.fs._volume.index), "_apply_change", failing)
            await m.put(b"f", b"1")
            await m.fs.idle()
        assert m.fs.status().failure == ""
        assert await m.get(b"f") == b"1"
    async with world.mounted() as m:
        assert await m.get(b"f") == b"1"


@simulated
async def test_a_task_that_dies_stops_writing_and_frees_who_waits(tmp_path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch) -> None:
    log_rule.expect("a task of the engine failed")
    log_rule.expect("writing stops")
    log_rule.expect("not everything")
    world = World.new(tmp_path / "w")
    with pytest.raises(BackupfsError, match="fault in backupfs"):
        async with world.mounted() as m:
            fh = await m.open(b"f")
            await m.fs.write(fh, 0, b"x")

            async def dying(*_args: object) -> None:
                raise ZeroDivisionError

            monkeypatch.setattr(m.fs._committer, "_make_durable", dying)
            with pytest.raises(BackupfsError):
                await m.fs.fsync(fh, datasync=False)
            with pytest.raises(ReadOnlyError):
                await m.mkdir(b"d")


@simulated
async def test_changes_wait_when_too_much_is_not_yet_in_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that a thousand directories are too much, and no two batches become one layer.
    monkeypatch.setattr(limits, "BATCH_RECORDS", 20)
    monkeypatch.setattr(limits, "LAYER_RECORDS_MAX", 60)
    monkeypatch.setattr(limits, "JOINED_RECORDS_MAX", 10)
    world = World.new(tmp_path / "w")
    offload = GatedOffload()
    world.offload = offload
    made = 0
    async with world.mounted() as m:
        gate = offload.gate("apply")

        async def make() -> None:
            nonlocal made
            for number in range(1000):
                await m.mkdir(b"d%d" % number)
                made += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(make)
            await trio.sleep(20)
            made_then, status = made, m.fs.status()
            gate.set()  # before anything is asserted: the mount does not end otherwise
            assert 0 < made_then < 1000
            assert status.layers_not_applied <= limits.LAYERS_MAX + 2
            assert status.uncommitted_records <= 100
        assert made == 1000
        assert len(await m.names(b"")) == 1000


@simulated
async def test_a_journal_that_cannot_be_closed_is_closed_by_the_next_mount(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("the journal could not be closed; the next mount does it")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(100))

        def failing() -> None:
            raise StoreError("no")

        m.fs._volume.journal.close = failing  # type: ignore[method-assign]
    assert any(name.startswith("journal-") for name in world.disk.list(REPOSITORY / "open"))
    async with world.mounted() as m:
        assert await m.get(b"f") == noise(100)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_fault_of_backupfs_at_the_end_ends_the_mount(tmp_path: Path) -> None:
    """It is raised; nobody waits for what will never come, and what was made durable is there."""
    world = World.new(tmp_path / "w")

    def faulty(*_: object) -> None:
        raise TypeError("a fault")

    with pytest.raises(ExceptionGroup) as raised:
        async with world.mounted() as m:
            await m.put(b"f", noise(100))
            await m.fs.commit()
            m.fs._data._place = faulty  # type: ignore[method-assign, assignment]
            await m.put(b"g", noise(100))
    assert raised.group_contains(TypeError, match="a fault")
    async with world.mounted() as m:
        assert await m.get(b"f") == noise(100)
    assert world.audit(tmp_path / "copy") == []
