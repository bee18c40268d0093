"""From what a dead process left, or somebody changed, to a mounted file system: by itself, or with a clear refusal."""

import errno
import random
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from backupfs.catalog.index import DISTRUSTED
from backupfs.engine import recovery
from backupfs.errors import DamageError, MissingObjectError, RollbackError, StoreError
from backupfs.format.catalog import Table
from backupfs.journal.segments import segment_name
from tests.conftest import LogRule
from tests.crash.disk import Image, SimulatedDisk
from tests.crash.faults import FaultyFiles
from tests.unit.engine.world import REPOSITORY, Mounted, World, simulated

INDEX_AGAIN = "the index cannot be used and is built anew"


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


async def fill(m: Mounted, number: int = 0) -> None:
    for i in range(4):
        await m.put(b"%d-%d" % (number, i), noise(30_000, (number, i)))


async def expect(world: World, *numbers: int) -> None:
    async with world.mounted() as m:
        assert sorted(await m.names(b"")) == sorted(b"%d-%d" % (number, i) for number in numbers for i in range(4))
        for number in numbers:
            for i in range(4):
                assert await m.get(b"%d-%d" % (number, i)) == noise(30_000, (number, i))


def open_files(world: World) -> list[str]:
    return [name for name in world.disk.list(REPOSITORY / "open") if name != "reserve"]


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_after_a_kill_everything_committed_is_there_and_tidy(tmp_path: Path, index: str, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
        await m.fs.commit()
        await fill(m, 1)
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    assert open_files(killed)
    if index == "lost":
        killed.without_index()
    await expect(killed, 0, 1)
    assert open_files(killed) == []
    assert killed.audit(tmp_path / "copy") == []
    assert await killed.check() == []


@simulated
async def test_killed_again_and_again(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    for number in range(6):
        async with world.mounted() as m:
            await fill(m, number)
            await m.fs.commit()
            await m.put(b"uncommitted", b"x")
            killed = world.after_kill(tmp_path / f"k{number}")
        world = killed
        if number % 2:
            world.without_index()
    await expect(world, *range(6))
    assert world.audit(tmp_path / "copy") == []


class Mounting:
    """Lets the `fails`-th call that changes something fail, as long as the mount is not there."""

    CHANGING = frozenset({"create", "write_at", "sync", "sync_directory", "rename", "unlink", "make_directory"})

    def __init__(self, fails: int) -> None:
        self.fails = fails
        self.calls = 0
        self.over = False

    def verdict(self, operation: str, _number: int) -> int | None:
        if self.over or operation not in self.CHANGING:
            return None
        self.calls += 1
        return 5 if self.calls == self.fails else None


@simulated
async def test_a_recovery_cut_short_at_any_call_is_repeated(tmp_path: Path, small: None) -> None:
    """The first mount after a kill fails at each of its calls in turn; the next one goes on."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
        await m.fs.idle()
        await fill(m, 1)
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    image = killed.disk.image()
    number = failures = 0
    while True:
        number += 1
        once = World(tmp_path / f"n{number}", SimulatedDisk(image))
        once.state.mkdir()
        for parent in [*reversed(once.state.parents[:-1]), once.state]:
            once.disk.make_directory(parent)
        mounting = Mounting(number)
        once.files = FaultyFiles(once.disk, mounting.verdict)
        try:
            async with once.mounted():
                mounting.over = True
        except StoreError:
            failures += 1
        else:
            assert mounting.calls < number, "what was not needed did not fail"
            break
        once.files = once.disk
        await expect(once, 0, 1)
        assert open_files(once) == []
        assert await once.check() == []
    assert failures > 15


@simulated
async def test_packs_nobody_names_are_set_aside(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
        await m.fs.commit()
        await fill(m, 1)
        killed = world.after_kill(tmp_path / "k")
    await expect(killed, 0)
    aside = killed.disk.list(REPOSITORY / "set-aside")
    assert aside == sorted(aside)
    assert killed.audit(tmp_path / "copy") == []


@simulated
async def test_a_missing_pack_costs_the_files_in_it(tmp_path: Path, log_rule: LogRule, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    lost = next(name for name in open_files(killed) if len(name) == 32)
    killed.disk.unlink(REPOSITORY / "open" / lost)
    log_rule.expect("is missing: what it held cannot be read")
    log_rule.expect("reading inode")
    async with killed.mounted() as m:
        readable = 0
        for i in range(4):
            try:
                assert await m.get(b"0-%d" % i) == noise(30_000, (0, i))
                readable += 1
            except MissingObjectError:
                continue
        assert readable < 4
        await m.put(b"new", b"goes on")
    assert any(finding.kind == "missing-object" for finding in await killed.check())


# --- the journal --------------------------------------------------------------------------------------------------------


async def three_segments(tmp_path: Path) -> World:
    world = World.new(tmp_path / "w")
    for number in range(3):
        async with world.mounted() as m:
            await fill(m, number)
    return world


@simulated
async def test_damage_that_the_index_covers_costs_nothing(tmp_path: Path, log_rule: LogRule) -> None:
    """Any byte of any segment, with the index in place: the mount is as ever, and check names the segment."""
    world = await three_segments(tmp_path)
    await expect(world, 0, 1, 2)
    segments = world.objects("journal")
    for segment in segments:
        size = len(world.content(segment))
        for place in (0, 50, 127, 128, 140, 4000, 4096, 4130, 8000, size - 5000, size - 1):
            world.disk.damage(segment, place)
            image = world.disk.image()
            state = tmp_path / f"{segment.name}-{place}"
            once = world.after_kill(state)
            if segment == segments[-1]:
                log_rule.expect("journal|index")
            await expect(once, 0, 1, 2)
            assert any(finding.object == str(segment.relative_to(REPOSITORY)) for finding in await once.check())
            world.disk.damage(segment, place)
            assert isinstance(image, Image)


@simulated
async def test_damage_that_the_index_does_not_cover_is_never_skipped(tmp_path: Path) -> None:
    world = await three_segments(tmp_path)
    world.without_index()
    for segment in world.objects("journal"):
        size = len(world.content(segment))
        for place in (0, 127, 128, 4000, 4096, 4130, 6000):
            assert place < size - 4096
            world.disk.damage(segment, place)
            with pytest.raises(DamageError):
                async with world.mounted():
                    raise AssertionError("it mounts")
            world.disk.damage(segment, place)
    await expect(world, 0, 1, 2)


@simulated
async def test_a_journal_cut_short_is_a_rollback_or_damage(tmp_path: Path) -> None:
    """Whoever takes the newest batches away is noticed by a host that has seen them, with its index or without."""
    for lose_index in (False, True):
        world = await three_segments(tmp_path / str(lose_index))
        segment = world.objects("journal")[-1]
        whole = world.content(segment)
        if lose_index:
            world.without_index()
        for size in (0, 100, 4096, 8192):
            world.disk.unlink(segment)
            handle = world.disk.create(segment)
            world.disk.write_at(handle, 0, [whole[:size]])
            world.disk.close(handle)
            with pytest.raises(DamageError):
                async with world.mounted():
                    raise AssertionError("it mounts")


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_an_older_repository_is_refused_unless_it_is_wanted(tmp_path: Path, index: str, log_rule: LogRule) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
    old = world.disk.image()
    async with world.mounted() as m:
        await fill(m, 1)
    roll_back(world, old)
    if index == "lost":
        world.without_index()
    before = {p: s for p, s in world.disk.image().listing().items() if not p.endswith("lock")}
    with pytest.raises(RollbackError, match="accept-rollback"):
        async with world.mounted():
            raise AssertionError("it mounts")
    assert {p: s for p, s in world.disk.image().listing().items() if not p.endswith("lock")} == before, "nothing was changed"
    async with world.mounted(accept_rollback=True) as m:
        assert len(await m.names(b"")) == 4
        await fill(m, 2)
    await expect(world, 0, 2)
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_another_history_of_the_same_length_is_refused(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
    fork = world.after_kill(tmp_path / "fork")
    for branch in (world, fork):
        async with branch.mounted() as m:
            await fill(m, 1)
    roll_back(world, fork.disk.image())
    world.without_index()
    with pytest.raises(RollbackError):
        async with world.mounted():
            raise AssertionError("it mounts")


@simulated
async def test_a_host_that_has_seen_nothing_takes_what_there_is(tmp_path: Path) -> None:
    world = await three_segments(tmp_path)
    other = World(tmp_path / "other", world.disk)
    other._make_state()
    await expect(other, 0, 1, 2)


@simulated
async def test_a_read_only_mount_of_what_was_closed_in_order_writes_nothing(tmp_path: Path) -> None:
    """Not outside the repository either: it is there for who wants to read from a full disk."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m)
    world.files = FaultyFiles(world.disk, lambda operation, _number: errno.ENOSPC if operation in ("create", "write_at") else None)
    async with world.mounted(read_only=True) as m:
        assert len(await m.names(b"")) == 4


@pytest.mark.parametrize("index", ["kept", "lost"])
@simulated
async def test_what_a_read_only_mount_has_seen_after_a_kill_is_remembered(tmp_path: Path, index: str) -> None:
    """Its index knows batches that it will read once more, because packs lack what they carry; a journal without them is an older one."""
    world = World.new(tmp_path / "w")
    older = None
    async with world.mounted() as m:
        await m.open(b"log")
        for number in range(20):
            if number == 10:
                older = world.disk.image()
            await m.fs.write(m.handles[b"log"], number * 4096, noise(4096, number))
            await m.fs.fsync(m.handles[b"log"], datasync=False)
        killed = world.after_kill(tmp_path / "k")
    if index == "lost":
        killed.without_index()
    async with killed.mounted(read_only=True):
        pass
    again = killed.after_kill(tmp_path / "again")
    assert older is not None
    roll_back(killed, older)
    for read_only in (True, False):
        with pytest.raises(RollbackError):
            async with killed.mounted(read_only=read_only):
                raise AssertionError("it mounts")
    async with again.mounted() as m:
        assert await m.get(b"log") == b"".join(noise(4096, number) for number in range(20))


@simulated
async def test_a_head_that_does_not_open_is_damage_not_nothing(tmp_path: Path) -> None:
    world = await three_segments(tmp_path)
    world.disk.damage(world.state / "head", 40)
    with pytest.raises(DamageError):
        async with world.mounted():
            raise AssertionError("it mounts")
    async with world.mounted(accept_rollback=True):
        pass
    await expect(world, 0, 1, 2)


def roll_back(world: World, old: Image) -> None:
    """Give the repository the files of an older image; the host's state stays."""
    before = SimulatedDisk(old)
    for name in world.disk.image().listing():
        if name.startswith(str(REPOSITORY)):
            world.disk.unlink(Path(name))
    for name in old.listing():
        if name.startswith(str(REPOSITORY)):
            source, target = before.open(Path(name)), None
            for parent in reversed(Path(name).parents):
                world.disk.make_directory(parent) if str(parent) != "/" else None
            target = world.disk.create(Path(name))
            world.disk.write_at(target, 0, [before.read_at(source, 0, 1 << 30)])
            world.disk.close(target)


# --- the index ----------------------------------------------------------------------------------------------------------

PAGE = 4096


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:-PAGE], id="cut off"),
        pytest.param(lambda data: data[:5000], id="most gone"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: b"text" * (len(data) // 4), id="something else"),
        pytest.param(lambda data: data[:20] + struct.pack("<I", 77) + data[24 : PAGE + 20] + struct.pack("<I", 77) + data[PAGE + 24 :], id="version"),
    ],
)
@simulated
async def test_an_index_that_cannot_be_trusted_is_built_anew(tmp_path: Path, change: Callable[[bytes], bytes], log_rule: LogRule) -> None:
    log_rule.expect(INDEX_AGAIN)
    world = await three_segments(tmp_path)
    path = world.state / "index" / "data.mdb"
    path.write_bytes(change(path.read_bytes()))
    await expect(world, 0, 1, 2)
    assert (world.state / "index.damaged").exists()


@simulated
async def test_an_index_of_another_repository_is_built_anew(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect(INDEX_AGAIN)
    world = await three_segments(tmp_path)
    for _ in range(2):
        with lmdb.open(str(world.state / "index"), lib_version=0, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
            txn.put(b"\xffposition", b"nonsense that was never sealed.")
        await expect(world, 0, 1, 2)


@simulated
async def test_a_distrusted_index_is_set_aside(tmp_path: Path) -> None:
    world = await three_segments(tmp_path)
    (world.state / "index" / DISTRUSTED).touch()
    await expect(world, 0, 1, 2)
    assert not (world.state / "index" / DISTRUSTED).exists()
    assert (world.state / "index.damaged" / DISTRUSTED).exists()


@simulated
async def test_damage_in_a_record_that_the_mount_needs(tmp_path: Path, log_rule: LogRule) -> None:
    """It is met only after the index has opened; the mount makes a second attempt with one built anew."""
    world = await three_segments(tmp_path)
    with lmdb.open(str(world.state / "index"), lib_version=0, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
        value = txn.get(bytes([Table.META]) + b"counters")
        assert value is not None
        txn.put(bytes([Table.META]) + b"counters", value[:-1] + bytes([value[-1] ^ 1]))
    await expect(world, 0, 1, 2)


@simulated
async def test_damage_in_a_record_that_a_request_meets(tmp_path: Path) -> None:
    world = await three_segments(tmp_path)
    async with world.mounted() as m:
        ino = await m.ino(b"1-2")
    with lmdb.open(str(world.state / "index"), lib_version=0, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
        cursor = txn.cursor()
        assert cursor.set_range(bytes([Table.INODES]) + ino.to_bytes(8, "big"))
        txn.put(cursor.key(), cursor.value()[:-1] + b"\0")
    async with world.mounted() as m:
        with pytest.raises(DamageError):
            await m.fs.getattr(ino)
        assert await m.get(b"0-0") == noise(30_000, (0, 0))
    await expect(world, 0, 1, 2)


@simulated
async def test_replay_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await three_segments(tmp_path)
    world.without_index()
    monkeypatch.setattr(recovery, "_REPLAY_BYTES", 100)
    await expect(world, 0, 1, 2)


@simulated
async def test_a_batch_out_of_order_is_damage(tmp_path: Path) -> None:
    """Two journals of one repository that went on from the same segment cannot be mixed."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await fill(m, 0)
    fork = world.after_kill(tmp_path / "fork")
    async with world.mounted() as m:
        await fill(m, 1)
    for _ in range(2):
        async with fork.mounted() as m:
            await fill(m, 2)
    for sequence in (3,):
        content = fork.content(REPOSITORY / segment_name(sequence))
        handle = world.disk.create(REPOSITORY / segment_name(sequence))
        world.disk.write_at(handle, 0, [content])
        world.disk.close(handle)
    world.without_index()
    with pytest.raises(DamageError):
        async with world.mounted():
            raise AssertionError("it mounts")
