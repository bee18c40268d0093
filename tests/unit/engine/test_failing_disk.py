"""A disk on which syncs fail, and the power goes afterwards: what was acknowledged is there, and the repository mounts."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from backupfs.blobs.packs import NewBlob
from backupfs.errors import BackupfsError, StoreError
from backupfs.stores.files import Handle
from tests.conftest import LogRule
from tests.crash.disk import SimulatedDisk, call_site, failure
from tests.crash.faults import FaultyFiles
from tests.crash.power_cut import Mode, crash_states
from tests.unit.engine.test_acknowledged import Hooked
from tests.unit.engine.test_durability import GatedOffload, noise, until
from tests.unit.engine.test_fsync import BLOCK, append_and_sync
from tests.unit.engine.world import REPOSITORY, World, simulated

PACK_HEADER_BYTES = 128


class FailsInTurn(FaultyFiles):
    """Of the calls that a module makes, the next one of each kind that is `due` fails, in that order."""

    def __init__(self, disk: SimulatedDisk, module: str) -> None:
        super().__init__(disk, self._decide)
        self._module = module
        self.due: list[str] = []

    def _decide(self, operation: str, _number: int) -> int | None:
        if self.due and operation == self.due[0] and call_site().startswith(self._module):
            self.due.pop(0)
            return errno.EIO
        return None


class PacksFail(FaultyFiles):
    """As many syncs of packs with blobs in them as are `due` fail; each time `meanwhile` is called first."""

    def __init__(self, disk: SimulatedDisk) -> None:
        super().__init__(disk, lambda _operation, _number: None)
        self.due = 0
        self.meanwhile: Callable[[], None] = lambda: None

    def sync(self, handle: Handle) -> None:
        if self.due and call_site().startswith("blobs/packs.py") and self.inner.size(handle) > PACK_HEADER_BYTES:
            self.due -= 1
            self.meanwhile()
            self.inner.fail_sync(handle)
        self.inner.sync(handle)


class DirectoryFails(FaultyFiles):
    """Syncing the names in a directory fails, once it is `due` and this one is among them."""

    def __init__(self, disk: SimulatedDisk, path: Path, name: str = "") -> None:
        super().__init__(disk, lambda _operation, _number: None)
        self._path = path
        self._name = name
        self.due = False

    def sync_directory(self, path: Path) -> None:
        if self.due and path == self._path and self.inner.exists(path / self._name):
            self.due = False
            raise failure(errno.EIO, "sync", path)
        super().sync_directory(path)


@simulated
async def test_a_blob_that_is_claimed_between_two_moves_is_told_to_leave_where_it_was_claimed(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w", compression=False)
    world.files = files = PacksFail(world.disk)
    noted = []
    async with world.mounted() as m:
        packs, data = m.fs._volume.packs, noise(1000)
        [place] = packs.append([NewBlob(1001, m.fs._volume.keys.blob_id(data), data)])
        files.due = 2
        files.meanwhile = lambda: None if files.due else noted.extend(packs.claim([(1001, place)]))
        moved = packs.sync()
        assert noted[0].pack != place.pack
        assert moved[1001].left == noted[0].pack


@simulated
async def test_what_moved_several_times_before_it_was_noted_is_durable_with_the_answer(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w", compression=False)
    world.offload = offload = GatedOffload()
    world.files = files = PacksFail(world.disk)
    content = noise(100_000)
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.commit()
        await m.fs.write(fh, 0, content)
        appended = offload.gate(f"append {offload.turns.get('append', 0) + 1}", after=True)
        again = offload.gate(f"_write_blocking {offload.turns['_write_blocking'] + 2}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(m.fs.fsync, fh, False)
            await until(lambda: offload.waiting)  # appended, and nobody has noted where
            await m.mkdir(b"d")
            files.due = 3
            nursery.start_soon(m.fs._committer.commit)
            await until(lambda: len(offload.waiting) == 2)  # three packs have failed; the batch is about to be tried again
            assert files.due == 0
            appended.set()
            await until(lambda: m.fs._volume.catalog.active.new_blobs)
            again.set()
        assert m.fs.status().failure == ""
        after = world.after_power_cut(tmp_path / "after")
    async with after.mounted() as m:
        assert await m.get(b"f") == content


@simulated
async def test_what_moves_can_be_read_until_everybody_knows_where_to(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.offload = offload = GatedOffload()
    world.files = files = FailsInTurn(world.disk, "blobs/packs.py")
    expected = b"".join(noise(BLOCK, (b"log", number)) for number in range(5))
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(5):
            await append_and_sync(m, b"log", number)
        files.due = ["write_at"]
        gate = offload.gate("sync", after=True)
        await until(lambda: "sync" in offload.waiting)
        assert files.due == []
        m.fs._volume.cache._chunks.clear()
        try:
            assert await m.get(b"log") == expected
        finally:
            gate.set()
        await trio.sleep(10)
        assert await m.get(b"log") == expected
        assert m.fs._blobs.damaged == set()


@pytest.mark.parametrize("index", [True, False])
@simulated
async def test_the_end_of_a_segment_that_could_not_be_synced(tmp_path: Path, index: bool, log_rule: LogRule) -> None:
    """The next mount reads it from the page cache: it makes it durable, or does not count on it."""
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = FailsInTurn(world.disk, "journal/writer.py")
    async with world.mounted() as m:
        await m.put(b"a", noise(1000))
        await m.fs.commit()
        await m.fs.idle()
        plain = m.fs._volume.journal.close

        def close() -> None:
            files.due = ["sync"]
            plain()

        m.fs._volume.journal.close = close  # type: ignore[method-assign]
    assert files.due == []
    async with world.mounted() as m:
        fh = await m.open(b"b")
        await m.fs.write(fh, 0, noise(1000, 1))
        await m.fs.fsync(fh, datasync=False)
        await m.fs.commit()
        after = world.after_power_cut(tmp_path / "after", index=index)
    async with after.mounted() as m:
        assert await m.get(b"a") == noise(1000)
        assert await m.get(b"b") == noise(1000, 1)
        await m.mkdir(b"d")
        await m.fs.make_checkpoint()
    assert await after.check() == []


@pytest.mark.parametrize("index", [True, False])
@simulated
async def test_mounted_again_after_writing_had_stopped(tmp_path: Path, index: bool, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    broken = False
    world.files = FaultyFiles(
        world.disk,
        lambda operation, _number: errno.EIO if broken and operation in ("sync", "create") and call_site().startswith("journal/writer.py") else None,
    )
    with pytest.raises(StoreError):
        async with world.mounted() as m:
            await m.put(b"a", noise(1000))
            await m.fs.commit()
            broken = True
            await m.put(b"x", noise(1000))
            with pytest.raises(StoreError):
                await m.fs.commit()
    broken = False
    async with world.mounted() as m:
        fh = await m.open(b"b")
        await m.fs.write(fh, 0, noise(1000, 1))
        await m.fs.fsync(fh, datasync=False)
        after = world.after_power_cut(tmp_path / "after", index=index)
    async with after.mounted() as m:
        assert await m.get(b"a") == noise(1000)
        assert await m.get(b"b") == noise(1000, 1)


@pytest.mark.parametrize("first", ["sync", "sync_directory"])
@simulated
async def test_a_segment_that_was_begun_and_could_not_be_taken_back(tmp_path: Path, first: str, log_rule: LogRule) -> None:
    """The next one names the same predecessor."""
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = FailsInTurn(world.disk, "journal/writer.py")
    async with world.mounted() as m:
        await m.put(b"a", noise(1000))
        await m.fs.commit()
        await m.fs._committer.end_segment()
        files.due = [first, "unlink"]
        fh = await m.open(b"b")
        await m.fs.write(fh, 0, noise(1000, 1))
        await m.fs.fsync(fh, datasync=False)
        assert files.due == []
        killed = [world.after_kill(tmp_path / "kept"), world.after_kill(tmp_path / "lost")]
    killed[1].without_index()
    for after in killed:
        assert await after.check() == []
        assert after.audit(tmp_path / f"before {after.state.name}", settled=False) == []
        async with after.mounted() as m:
            assert await m.get(b"b") == noise(1000, 1)
        after.without_index()
        async with after.mounted() as m:
            assert await m.get(b"b") == noise(1000, 1)
        assert await after.check() == []
        assert after.audit(tmp_path / f"copy of {after.state.name}") == []


@simulated
async def test_the_power_goes_while_a_segment_is_begun_for_the_second_time(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = DirectoryFails(world.disk, REPOSITORY / "open")
    async with world.mounted() as m:
        await m.put(b"a", noise(1000))
        await m.fs.commit()
        await m.fs._committer.end_segment()
        files.due = True
        begin = len(world.disk.log)
        await m.mkdir(b"d")
        await m.fs.commit()
        assert not files.due
        syncs = [number + 1 for number in range(begin, len(world.disk.log)) if world.disk.log[number].op.value == "sync"]
        for number, state in enumerate(crash_states(world.disk, 0, syncs[-2:-1], 25)):
            async with world.on(state.image, tmp_path / f"after {number}").mounted() as after:
                assert await after.get(b"a") == noise(1000), state.name


@simulated
async def test_the_name_of_a_folder_of_packs_that_could_not_be_synced_once(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = DirectoryFails(world.disk, REPOSITORY / "packs")
    async with world.mounted() as m:
        await m.put(b"a", noise(50_000))
        await m.fs.commit()
        files.due = True
    assert not files.due
    async with world.mounted():
        after = world.after_power_cut(tmp_path / "after", Mode.UNORDERED)
    async with after.mounted() as m:
        assert await m.get(b"a") == noise(50_000)


@simulated
async def test_killed_between_making_a_folder_of_packs_and_syncing_its_name(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    first = World.new(tmp_path / "w")
    killed: list[World] = []

    class Files(Hooked):
        def sync_directory(self, path: Path) -> None:
            if not killed and path == REPOSITORY / "packs":
                second = first.after_kill(tmp_path / "killed")
                # The disk of both: what the dead process had not synced is not on it.
                second.disk.base, second.disk.log = first.disk.base, list(first.disk.log)
                second.disk._next_node = first.disk._next_node + 100
                killed.append(second)
            first.disk.sync_directory(path)

    first.files = Files(first.disk, "", lambda _handle: None)
    async with first.mounted() as m:
        await m.put(b"a", noise(50_000))
        await m.fs.commit()
    [second] = killed
    async with second.mounted() as m:
        await m.mkdir(b"d")
        await m.fs.commit()
        after = second.after_power_cut(tmp_path / "after", Mode.UNORDERED)
    async with after.mounted() as m:
        assert await m.get(b"a") == noise(50_000)


@simulated
async def test_the_name_of_the_folder_of_checkpoints_that_could_not_be_synced_once(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = DirectoryFails(world.disk, REPOSITORY, "checkpoints")
    async with world.mounted() as m:
        files.due = True
        await m.put(b"a", noise(5000))
        await m.fs.commit()
        with pytest.raises(StoreError):
            await m.fs.make_checkpoint()
        for number in range(3):
            await m.put(b"a%d" % number, noise(5000, number))
            await m.fs.commit()
            await m.fs.make_checkpoint()
        after = world.after_power_cut(tmp_path / "after", Mode.UNORDERED, index=False)
    async with after.mounted() as m:
        assert await m.get(b"a") == noise(5000)


@simulated
async def test_carried_blobs_that_a_mount_could_not_sync(tmp_path: Path, log_rule: LogRule) -> None:
    """The next one finds them in the page cache. The power goes when the index has them, and before their pack is finished as a copy."""
    log_rule.allow("")
    first = World.new(tmp_path / "w")
    async with first.mounted() as m:
        await m.open(b"log")
        for number in range(5):
            await append_and_sync(m, b"log", number)
        world = first.after_kill(tmp_path / "k")
    expected = b"".join(noise(BLOCK, (b"log", number)) for number in range(5))
    world.files = files = FailsInTurn(world.disk, "engine/recovery.py")
    files.due = ["sync"]
    with pytest.raises(BackupfsError):
        async with world.mounted():
            pass
    assert files.due == []
    copies: list[World] = []

    class Files(FaultyFiles):
        def create(self, path: Path) -> Handle:
            if not copies and call_site().startswith("engine/recovery.py"):
                copies.append(world.after_power_cut(tmp_path / "after"))
            return super().create(path)

    world.files = Files(world.disk, lambda _operation, _number: None)
    async with world.mounted() as m:
        assert await m.get(b"log") == expected
    async with copies[0].mounted() as m:
        assert await m.get(b"log") == expected


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_a_segment_that_was_given_up_goes_with_those_around_it(tmp_path: Path, index: str, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = FailsInTurn(world.disk, "journal/writer.py")
    async with world.mounted() as m:
        await m.put(b"a", noise(1000))
        await m.fs.commit()
        files.due = ["sync"]
        for number in range(4):
            await m.put(b"b%d" % number, noise(1000, number))
            await m.fs.commit()
            await m.fs.make_checkpoint()
        killed = world.after_kill(tmp_path / "killed")
    if index == "lost":
        killed.without_index()
    async with killed.mounted() as m:
        assert await m.get(b"a") == noise(1000)
    assert await killed.check() == []
