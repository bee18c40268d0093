"""Checkpoints: what they hold, what is cut behind them, and what their damage costs."""

import errno
import random
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from backupfs import limits
from backupfs.catalog.index import Index
from backupfs.engine import filesystem
from backupfs.engine.checking import Checker, Finding, check
from backupfs.errors import DamageError, RollbackError, StoreError, StoreFullError
from backupfs.format.layout import Sealed
from backupfs.stores.files import Handle
from tests.conftest import LogRule
from tests.crash.disk import failure
from tests.crash.faults import FaultyFiles
from tests.unit.engine.test_snapshots import SlowOffload
from tests.unit.engine.world import REPOSITORY, Mounted, World, simulated


async def live_a_little(m: Mounted, seed: int) -> None:
    """Make, change, remove, rename and keep."""
    draw = random.Random(seed)
    for number in range(12):
        await m.put(b"file%d" % draw.randrange(20), draw.randbytes(draw.randrange(6000)))
        if number == 5:
            await m.fs.create_snapshot("manual")
    names = await m.names(b"")
    await m.unlink(draw.choice(names))
    await m.rename(draw.choice(await m.names(b"")), b"renamed%d" % seed)
    await m.fs.commit()


def segments(world: World) -> list[int]:
    return [int(path.name, 16) for path in world.objects("journal")]


@simulated
async def test_the_journal_is_cut_behind_the_older_of_two_checkpoints_and_either_gives_the_same_tree(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("does not hold, the one before it serves")
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(3):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        await live_a_little(m, 3)
        tree = await m.tree()
        kept = [info.name for info in m.fs.snapshots()]
    numbers = sorted({path.name[:16] for path in world.objects("checkpoints")})
    assert numbers == [f"{2:016x}", f"{3:016x}"]
    assert segments(world)[0] > 1, "the journal before the older checkpoint is gone"
    assert await world.check() == []
    assert world.audit(tmp_path / "audit") == []
    for lost in (None, *world.objects("checkpoints")):
        other = world.after_kill(tmp_path / (lost.name if lost else "none"))
        other.without_index()
        if lost is not None:
            other.disk.unlink(lost)
        async with other.mounted(read_only=lost is not None) as m:
            assert await m.tree() == tree
            assert [info.name for info in m.fs.snapshots()] == kept


@simulated
async def test_a_checkpoint_is_made_when_the_journal_has_grown_and_not_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECKPOINT_MIN_BYTES", 64 * 1024)
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        assert not m.fs._checkpointer.is_due()
        for number in range(40):
            await m.put(b"file%d" % number, b"x" * number)
            await m.fs.commit()
        assert m.fs._checkpointer.is_due()
        while m.fs._checkpointer.is_due():
            await m.fs.commit()
            await trio.sleep(limits.CHECKPOINT_LOOK_S)
        assert world.objects("checkpoints")
    async with world.mounted() as m:
        assert not m.fs._checkpointer.is_due(), "known also to the next mount"


@simulated
async def test_damage_in_the_newest_checkpoint_is_found_and_costs_nothing(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("does not hold")
    log_rule.allow("did not hold and goes")
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(2):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        await live_a_little(m, 2)
        tree = await m.tree()
    for damaged in world.objects("checkpoints"):
        other = world.after_kill(tmp_path / damaged.name)
        flip(other, damaged, 200)
        findings = await other.check()
        assert [finding.object for finding in findings] == [f"checkpoints/{damaged.name[:16]}"]
        other.without_index()
        async with other.mounted() as m:
            assert await m.tree() == tree
            await live_a_little(m, 3)
            await m.fs.make_checkpoint()
            after = await m.tree()
        assert await other.check() == []
        assert other.audit(tmp_path / f"audit of {damaged.name}") == []
        other.without_index()
        async with other.mounted() as m:
            assert await m.tree() == after


@simulated
async def test_without_a_checkpoint_that_holds_a_cut_journal_is_damage(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("does not hold")
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(3):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
    for path in world.objects("checkpoints"):
        if len(path.name) == 16:
            flip(world, path, 150)
    kinds = {finding.object for finding in await world.check()}
    assert {f"checkpoints/{2:016x}", f"checkpoints/{3:016x}"} < kinds
    async with world.mounted() as m:
        assert await m.names(b""), "the index still stands"
    world.without_index()
    with pytest.raises(DamageError, match="missing"):
        async with world.mounted():
            pass


@simulated
async def test_an_index_that_was_left_behind_is_built_anew_from_a_checkpoint(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
    elsewhere = world.after_kill(tmp_path / "elsewhere")
    async with world.mounted() as m:
        for seed in range(1, 4):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        tree = await m.tree()
    newer = World(elsewhere.state, world.disk)
    for parent in [*reversed(newer.state.parents[:-1]), newer.state]:
        newer.disk.make_directory(parent)
    async with newer.mounted() as m:
        assert await m.tree() == tree


class _NoCheckpoints(FaultyFiles):
    """While `failing`, no object of a checkpoint can be made."""

    failing = False

    def create(self, path: Path) -> Handle:
        if self.failing and path.parent.name == "checkpoints":
            raise failure(errno.EIO, "create", path)
        return super().create(path)


@simulated
async def test_memory_goes_back_before_and_after_a_checkpoint_whatever_becomes_of_it(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "w")
    world.files = files = _NoCheckpoints(world.disk, lambda _operation, _number: None)
    returned: list[int] = []
    async with world.mounted() as m:
        volume = m.fs._volume
        volume.seams = replace(volume.seams, give_memory_back=lambda: returned.append(len(world.disk.log)))
        await m.put(b"a", b"content")
        await m.fs.make_checkpoint()
        assert len(returned) == 2
        assert returned[0] < returned[1]
        await m.put(b"b", b"content")
        await m.fs.commit()
        files.failing = True
        with pytest.raises(StoreError):
            await m.fs.make_checkpoint()
        files.failing = False
        assert len(returned) == 4


@simulated
async def test_a_checkpoint_that_could_not_be_made_holds_no_room(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    world.files = files = _NoCheckpoints(world.disk, lambda _operation, _number: None)
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.commit()
        files.failing = True
        with pytest.raises(StoreError) as kept:
            await m.fs.make_checkpoint()
        files.failing = False
        free_bytes, total_bytes = world.disk.free_bytes(m.fs._volume.root)
        assert total_bytes - free_bytes == sum(world.disk.image().listing().values()), "no file without a name is open"
        assert kept.value.errno == errno.EIO, "also while somebody has the error"


@simulated
async def test_a_checkpoint_of_nothing_new_changes_nothing(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.idle()
        for _ in range(3):
            await m.fs.make_checkpoint()
        tree = await m.tree()
    assert {path.name[:16] for path in world.objects("checkpoints")} == {f"{1:016x}"}
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree
        await m.fs.make_checkpoint()


@simulated
async def test_a_checkpoint_does_not_wait_until_nobody_commits(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    world.offload = SlowOffload(0.001, only="_write_blocking")
    done = trio.Event()
    commits = 0

    async def commit_again_and_again(m: Mounted, name: bytes) -> None:
        """While each batch is written, the next is asked for."""
        nonlocal commits
        while not done.is_set():
            await trio.sleep(0.0005)
            await m.mkdir(name + b"%d" % commits)
            await m.fs.commit()
            commits += 1
            assert commits < 200, "the checkpoint is never made"

    async with world.mounted() as m:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_again_and_again, m, b"one")
            await trio.sleep(0.0007)
            nursery.start_soon(commit_again_and_again, m, b"two")
            await trio.sleep(0.02)
            await m.fs.make_checkpoint()
            done.set()
        tree = await m.tree()
    assert await world.check() == []
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree


@simulated
async def test_many_records_are_sorted_in_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SORT_RUN_RECORDS", 7)
    monkeypatch.setattr(limits, "CHECKPOINT_PART_BYTES", 300)
    monkeypatch.setattr(limits, "BREATHE_RECORDS", 3)
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(3):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        tree = await m.tree()
    assert await world.check() == []
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree
    assert world.disk.list(world.state / "sorting") == []


@simulated
async def test_a_checkpoint_that_fails_leaves_the_journal_whole_and_nothing_else(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        before = m.fs.stats().batches
        full = Refusing(world.disk, "checkpoints")
        m.fs._volume.checkpoints._store._files = full  # type: ignore[attr-defined]
        with pytest.raises(StoreError):
            await m.fs.make_checkpoint()
        assert m.fs.stats().batches >= before
        m.fs._volume.checkpoints._store._files = world.disk  # type: ignore[attr-defined]
        assert world.disk.list(REPOSITORY / "checkpoints") == []
        await live_a_little(m, 1)
        await m.fs.make_checkpoint()
        tree = await m.tree()
    assert await world.check() == []
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree


@simulated
async def test_whoever_unmounts_need_not_wait_until_the_last_checkpoint_is_read(tmp_path: Path, small: None) -> None:
    class EnoughError(Exception):
        """Stands for a cancellation."""

    def breathe() -> None:
        raise EnoughError

    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for number in range(200):
            await m.put(b"file%d" % number, b"%d" % number)
        await m.fs.make_checkpoint()
        await live_a_little(m, 1)
        checkpoints = m.fs._volume.checkpoints
        read: list[str] = []
        opened = checkpoints._open

        def noted(name: str, object_id: bytes, what: Sealed) -> bytes:
            read.append(name)
            return opened(name, object_id, what)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "_open", noted)
            patch.setattr(world.offload, "breathe", breathe)
            with pytest.raises(EnoughError):
                await m.fs.make_checkpoint()
        assert len(read) == 2 < len(world.objects("checkpoints")), "the manifest and one part"


@simulated
async def test_making_a_checkpoint_lets_others_go_on_after_every_few_records(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for number in range(1000):
            await m.put(b"file%d" % number, b"%d" % number)
        await m.fs.make_checkpoint()
        checkpoints = m.fs._volume.checkpoints
        records = sum(part.records for part in checkpoints.manifest(1).parts)
        assert records >= 2 * 1000
        await m.put(b"one more", b"1")
        breaths = 0

        def breathe() -> None:
            nonlocal breaths
            breaths += 1

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(world.offload, "breathe", breathe)
            await m.fs.make_checkpoint()
        of_records = records // limits.BREATHE_RECORDS
        assert breaths >= 2 * of_records, "once while the last one is read, once while the next is written"


@simulated
async def test_what_a_dead_process_left_of_a_checkpoint_goes_with_the_next(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.make_checkpoint()
        left = [REPOSITORY / "checkpoints" / name for name in (f"{2:016x}-{7:032x}", f"{2:016x}-{8:032x}.partial", f"{3:016x}.partial")]
        for path in left:
            world.disk.close(world.disk.create(path))
        await live_a_little(m, 1)
        await m.fs.make_checkpoint()
        assert not any(map(world.disk.exists, left))
        assert {path.name[:16] for path in world.objects("checkpoints")} == {f"{1:016x}", f"{2:016x}"}


@simulated
async def test_a_checkpoint_that_a_full_disk_has_no_room_for_takes_none(tmp_path: Path, small: None, log_rule: LogRule) -> None:
    log_rule.expect("the reserve of 65536 bytes has been given up")
    world = World.new(tmp_path / "a", capacity_bytes=3_000_000)
    async with world.mounted() as m:
        for number in range(300):
            await m.put(b"file%d" % number, b"%d" % number)
        await m.fs.idle()
        m.fs._volume.space.release()
        hog = world.disk.create(world.state / "hog")
        world.disk.write_at(hog, 0, [bytes(world.disk.free_bytes(world.state)[0] - 60 * limits.KIB)])
        free_bytes = world.disk.free_bytes(world.state)[0]
        with pytest.raises(StoreFullError):
            await m.fs.make_checkpoint()
        assert world.objects("checkpoints") == []
        assert world.disk.free_bytes(world.state)[0] > free_bytes - limits.RECORDS_ROOM_BYTES, "no more than a segment's end has come"
        for number in range(300):
            await m.unlink(b"file%d" % number)
        await m.fs.commit()
        world.disk.close(hog)
        world.disk.unlink(world.state / "hog")
        await m.fs.make_checkpoint()
        assert world.objects("checkpoints")
        tree = await m.tree()
    assert await world.check() == []
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree() == tree


class Refusing:
    """A disk on which the second object in a folder cannot be put in place."""

    def __init__(self, disk: object, folder: str) -> None:
        self._disk = disk
        self._folder = folder
        self._seen = 0

    def rename(self, old: Path, new: Path) -> None:
        if new.parent.name == self._folder:
            self._seen += 1
            if self._seen > 1:
                raise StoreError(f"rename {new}: refused")
        self._disk.rename(old, new)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)


def flip(world: World, path: Path, at: int) -> None:
    """Change one byte of an object."""
    content = bytearray(world.content(path))
    content[at] ^= 1
    world.disk.unlink(path)
    handle = world.disk.create(path)
    world.disk.write_at(handle, 0, [bytes(content)])
    world.disk.close(handle)


def on(world: World, state: Path) -> World:
    """The same repository on a host with other state."""
    other = World(state, world.disk)
    for parent in [*reversed(state.parents[:-1]), state]:
        if not other.disk.exists(parent):
            other.disk.make_directory(parent)
    state.mkdir(parents=True, exist_ok=True)
    return other


@simulated
async def test_an_index_that_was_half_built_from_an_older_checkpoint_is_not_built_upon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECKPOINT_PART_BYTES", 300)
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(2):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
    elsewhere = on(world, tmp_path / "b")
    apply = Index.apply

    def killed(self: Index, batches: Any) -> None:
        if not batches[0][1]:
            raise KeyboardInterrupt  # all parts are in it, the position is not
        apply(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Index, "apply", killed)
        with pytest.raises(KeyboardInterrupt):
            async with elsewhere.mounted():
                pass
    async with world.mounted() as m:
        for name in await m.names(b""):
            await m.unlink(name)
        for info in m.fs.snapshots():
            await m.fs.delete_snapshot(info.name)
        await m.put(b"the only one", b"x")
        await m.fs.idle()
        await m.fs.make_checkpoint()
        await m.put(b"another", b"x")
        await m.fs.make_checkpoint()
        tree = await m.tree()
    async with elsewhere.mounted() as m:
        assert await m.tree() == tree
        assert m.fs.snapshots() == []
        await m.put(b"third", b"y")
    assert await elsewhere.check() == []
    assert elsewhere.audit(tmp_path / "audit") == []


def bring(to: World, path: Path, content: bytes) -> None:
    """Put an object there."""
    if to.disk.exists(path):
        to.disk.unlink(path)
    handle = to.disk.create(path)
    to.disk.write_at(handle, 0, [content])
    to.disk.close(handle)


async def fork(tmp_path: Path, *, checkpoint: bool) -> tuple[World, World]:
    """Two lives of one repository from one point on, as alike in shape as they can be. The first may end with a checkpoint."""
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.make_checkpoint()
    one, two = world.after_kill(tmp_path / "one"), world.after_kill(tmp_path / "two")
    async with one.mounted() as m:
        for number in range(10):
            await m.put(b"one%d" % number, b"of one")
            await m.fs.commit()
        if checkpoint:
            await m.fs.make_checkpoint()
    async with two.mounted() as m:
        await m.fs.set_policy(random.Random(1).randbytes(5000))  # a frame longer, for the END that stands in the other one
        for number in range(20):
            await m.put(b"two%d" % number, b"of two")
            await m.fs.commit()
    return one, two


@simulated
async def test_a_checkpoint_of_another_history_is_not_gone_on_from(tmp_path: Path) -> None:
    one, two = await fork(tmp_path, checkpoint=True)
    for path in set(one.objects("checkpoints")) - set(two.objects("checkpoints")):
        bring(two, path, one.content(path))
    with pytest.raises(DamageError, match="of two copies"):
        async with on(two, tmp_path / "fresh").mounted():
            pass


@simulated
async def test_an_index_of_another_history_is_not_gone_on_from(tmp_path: Path) -> None:
    one, two = await fork(tmp_path, checkpoint=False)
    mixed = World(one.state, two.disk)
    for parent in [*reversed(one.state.parents[:-1]), one.state]:
        two.disk.make_directory(parent)
    bring(two, one.state / "head", one.content(one.state / "head"))
    with pytest.raises(RollbackError, match="used since"):
        async with mixed.mounted():
            pass
    async with mixed.mounted(accept_rollback=True) as m:
        assert b"two19" in await m.names(b"")
        assert b"one0" not in await m.names(b"")


@simulated
async def test_a_checkpoint_stands_for_a_damaged_end_of_the_journal_and_for_what_follows(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.allow("")
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.idle()
        await m.fs.make_checkpoint()
        tree = await m.tree()
        world = world.after_kill(tmp_path / "killed")
    [last] = world.objects("journal")
    flip(world, last, 5000)
    world = on(world, tmp_path / "fresh")
    async with world.mounted() as m:
        assert await m.tree() == tree
        await live_a_little(m, 1)
        await m.fs.make_checkpoint()
        await live_a_little(m, 2)
        tree = await m.tree()
    for path in world.objects("checkpoints"):
        if path.name.startswith(f"{2:016x}"):
            flip(world, path, 200)
    world = on(world, tmp_path / "freshest")
    async with world.mounted() as m:
        assert await m.tree() == tree


@simulated
async def test_no_journal_is_cut_while_somebody_checks_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        for seed in range(3):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        await live_a_little(m, 3)
        stands: set[Path] = set()
        looking, on_with_it = trio.Event(), trio.Event()

        async def looked(checker: Checker) -> AsyncGenerator[Finding]:
            stands.update(world.objects("checkpoints"), world.objects("journal"))
            looking.set()
            await on_with_it.wait()
            async for finding in check(checker):
                yield finding

        async def all_is_well() -> None:
            assert [finding async for finding in m.fs.check(False, lambda _done, _all: None)] == []

        monkeypatch.setattr(filesystem, "check", looked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(all_is_well)
            await looking.wait()
            await m.fs.make_checkpoint()
            assert stands <= {*world.objects("checkpoints"), *world.objects("journal")}
            on_with_it.set()
        await live_a_little(m, 4)
        await m.fs.make_checkpoint()
        assert len({path.name[:16] for path in world.objects("checkpoints")}) == limits.CHECKPOINTS_KEPT, "what was put off is made up for"


@simulated
async def test_runs_that_a_dead_process_left_are_removed(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    world.disk.make_directory(world.state / "sorting")
    world.disk.close(world.disk.create(world.state / "sorting" / "run-17"))
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.make_checkpoint()
        assert world.disk.list(world.state / "sorting") == []


class Unreadable:
    """A disk on which some files cannot be opened: their sectors are bad."""

    def __init__(self, disk: object, paths: set[Path]) -> None:
        self._disk = disk
        self._paths = paths

    def open(self, path: Path) -> object:
        if path in self._paths:
            raise StoreError(f"read {path}: Input/output error")
        return self._disk.open(path)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> object:
        return getattr(self._disk, name)


@pytest.mark.parametrize("part", [False, True])
def test_a_checkpoint_that_the_disk_cannot_read_costs_nothing(tmp_path: Path, log_rule: LogRule, part: bool) -> None:
    log_rule.expect("does not hold, the one before it serves")
    log_rule.allow("does not hold: read")

    @simulated
    async def main() -> None:
        world = World.new(tmp_path / "a")
        async with world.mounted() as m:
            for seed in range(3):
                await live_a_little(m, seed)
                await m.fs.make_checkpoint()
            tree = await m.tree()
        newest = [path for path in world.objects("checkpoints") if path.name.startswith(f"{3:016x}") and part == ("-" in path.name)]
        world.files = Unreadable(world.disk, set(newest))  # type: ignore[assignment]
        world.without_index()
        async with world.mounted() as m:
            assert await m.tree() == tree

    main()


@simulated
async def test_an_index_that_fails_while_a_checkpoint_is_read_is_no_fault_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
        await m.fs.make_checkpoint()
    world.without_index()

    def full(_index: Index, _batches: Any) -> None:
        raise StoreError("the index could not be written")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="index could not"):
        patch.setattr(Index, "apply", full)
        async with world.mounted():
            pass


@simulated
async def test_a_segment_that_was_forgotten_does_not_hide_that_an_index_was_left_behind(tmp_path: Path) -> None:
    world = World.new(tmp_path / "a")
    async with world.mounted() as m:
        await live_a_little(m, 0)
    first = world.objects("journal")[0]
    content = world.content(first)
    async with world.mounted() as m:
        await live_a_little(m, 1)
    elsewhere = world.after_kill(tmp_path / "elsewhere")
    async with world.mounted() as m:
        for seed in range(2, 5):
            await live_a_little(m, seed)
            await m.fs.make_checkpoint()
        tree = await m.tree()
    assert first not in world.objects("journal")
    bring(world, first, content)  # closed late, by the mount after the one that could not close it
    newer = on(world, elsewhere.state)
    async with newer.mounted() as m:
        assert await m.tree() == tree
