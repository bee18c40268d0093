"""Snapshots: what they show, when they are cut, how they go."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import pytest
import trio
from msgspec.structs import replace

from backupfs import limits
from backupfs.engine.attributes import AttributeChanges, SnapshotInfo
from backupfs.engine.snapdirs import SNAPSHOTS_INO
from backupfs.errors import BackupfsError, FileSystemError, ReadOnlyError, StoreError, UsageError
from backupfs.format.catalog import META_POLICY, Table
from backupfs.rules.names import SnapDir
from tests.conftest import LogRule
from tests.crash.faults import FaultyFiles
from tests.unit.engine.world import KIB, MIB, ROOT, WHO, Mounted, World, simulated

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def place(info: SnapshotInfo) -> bytes:
    return b".snapshots/" + info.name.encode()


def noise(size: int, seed: object = 0) -> bytes:
    return random.Random(str(seed)).randbytes(size)


async def populate(m: Mounted) -> None:
    await m.mkdir(b"d")
    await m.mkdir(b"d/empty")
    await m.put(b"d/one", noise(300_000))
    await m.put(b"two", b"text " * 10_000)
    await m.put(b"sparse", b"end", at=20 * MIB)
    await m.link(b"two", b"d/hard link")
    for i in range(12):
        await m.link(b"two", b"link %d" % i)
    await m.fs.symlink(ROOT, b"soft", b"d/one", WHO)
    await m.fs.mknod(ROOT, b"fifo", 0o010640, 0, WHO)
    ino = await m.ino(b"d/one")
    await m.fs.setxattr(ino, b"user.a", b"\0\1", WHO)
    await m.fs.setattr(ino, AttributeChanges(mode=0o4751, uid=3, gid=4, atime_ns=1, mtime_ns=2), None, WHO)
    await m.fs.setattr(await m.ino(b"d"), AttributeChanges(mode=0o2770), None, WHO)


async def upset(m: Mounted) -> None:
    """Change everything."""
    await m.put(b"two", b"other", at=17)
    await m.truncate(b"d/one", 5)
    await m.fs.removexattr(await m.ino(b"d/one"), b"user.a", WHO)
    await m.fs.setattr(await m.ino(b"d"), AttributeChanges(mode=0o700, uid=9, mtime_ns=7), None, WHO)
    await m.rename(b"d/one", b"d/three")
    await m.unlink(b"sparse")
    await m.unlink(b"soft")
    for i in range(12):
        await m.unlink(b"link %d" % i)
    await m.fs.rmdir(await m.ino(b"d"), b"empty", WHO)
    await m.fs.setxattr(ROOT, b"user.top", b"1", WHO)


@simulated
async def test_a_snapshot_is_what_stood_there(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await populate(m)
        expected = await m.tree()
        info = await m.fs.create_snapshot("test", "why not", ["tag"])
        assert (info.serial, info.why, info.message, info.tags, info.state) == (1, "test", "why not", ["tag"], "kept")
        assert await m.tree(place(info)) == expected
        await upset(m)
        assert await m.tree(place(info)) == expected
        await m.fs.commit()
        assert await m.tree(place(info)) == expected
        present = await m.tree()
    async with world.mounted() as m:
        assert m.fs.snapshots() == [replace(info, made=8, altered=0, removed=0)]
        assert await m.tree(place(info)) == expected
        assert await m.tree() == present
    world.without_index()
    async with world.mounted() as m:
        assert await m.tree(place(info)) == expected
        assert await m.tree() == present
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_snapshot_is_durable_when_it_is_answered(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await populate(m)
        await m.open(b"still open")
        await m.fs.write(m.handles[b"still open"], 0, noise(500_000))
        info = await m.fs.create_snapshot("test")
        expected = await m.tree(place(info))
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        assert await m.tree(place(info)) == expected
        assert await m.get(place(info) + b"/still open") == noise(500_000)


@simulated
async def test_changes_are_counted(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        assert m.fs.changes_since_snapshot() > 0
        await m.fs.create_snapshot("test")
        assert m.fs.changes_since_snapshot() == 0
        assert (await m.fs.create_snapshot("test")).changes == 0
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, b"x")
        assert m.fs.changes_since_snapshot() > 0
        assert (await m.fs.create_snapshot("test")).changes >= 3
    async with world.mounted() as m:
        assert m.fs.changes_since_snapshot() == 0
        await m.mkdir(b"d")
        await m.fs.commit()
    async with world.mounted() as m:
        assert m.fs.changes_since_snapshot() >= 2


@simulated
async def test_activity_is_what_was_changed_since_the_last_snapshot_and_when(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.fs.create_snapshot("test")
        at_first = m.fs.activity()
        assert (at_first.records, at_first.size_bytes, at_first.changed_at_ns) == (0, 0, None)
        fh = await m.open(b"f")
        made = m.fs.activity()
        assert made.records > 0
        assert made.size_bytes == 0
        assert made.changed_at_ns is not None
        for size in (10, 200):
            await m.fs.write(fh, 5, bytes(size))
        written = m.fs.activity()
        assert written.size_bytes == 210
        assert written.changed_at_ns is not None
        assert written.changed_at_ns > made.changed_at_ns
        with pytest.raises(FileSystemError):
            await m.mkdir(b"f")
        await m.fs.read(fh, 0, 100)
        assert m.fs.activity() == written, "what changes nothing is no change"
        await m.fs.create_snapshot("test")
        after = m.fs.activity()
        assert (after.records, after.size_bytes, after.changed_at_ns) == (0, 0, written.changed_at_ns)
        assert at_first.epoch == made.epoch == written.epoch < after.epoch
        await m.fs.write(fh, 0, b"x")
        await m.close(b"f")
        await m.fs.commit()
        last = m.fs.activity()
    killed = world.after_kill(tmp_path / "killed")
    for where in (world, killed):
        async with where.mounted() as m:
            reopened = m.fs.activity()
            assert reopened.records == last.records > 0
            assert (reopened.size_bytes, reopened.changed_at_ns, reopened.epoch) == (1, None, after.epoch)
            await m.put(b"g", bytes(30))
            assert m.fs.activity().size_bytes == 31
            await m.fs.create_snapshot("test")
        async with where.mounted() as m:
            assert (m.fs.activity().records, m.fs.activity().size_bytes) == (0, 0)


@simulated
async def test_names_are_never_given_twice(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    names = []
    async with world.mounted() as m:
        for _ in range(6):
            info = await m.fs.create_snapshot("test")
            names.append(info.name)
            if len(names) % 2:
                await m.fs.delete_snapshot(info.name)
                await m.fs.idle()
    async with world.mounted() as m:
        names.append((await m.fs.create_snapshot("test")).name)
    assert len(set(names)) == 7
    assert names == sorted(names)


@simulated
async def test_a_clock_that_was_set_back_gives_no_name_again(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    names = []
    async with world.mounted() as m:
        for _ in range(3):
            world.clock._now_ns = 1_700_000_000_000_000_000 - int(trio.current_time() * 1e9)
            for _ in range(3):
                info = await m.fs.create_snapshot("test")
                names.append(info.name)
                await m.fs.delete_snapshot(info.name)
                await m.fs.idle()
                await trio.sleep(1)
    assert len(set(names)) == 9
    assert len({name[:18] for name in names}) == 3, "of three seconds"
    assert world.audit(tmp_path / "audit") == []


# --- the cut --------------------------------------------------------------------------------------------------------


class SlowOffload:
    """Visits to a thread take a while, in the simulation's time: all, or those of one kind of work."""

    def __init__(self, seconds: float, only: str = "") -> None:
        self.seconds = seconds
        self.only = only

    async def _slow(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        await trio.sleep(self.seconds if self.only in getattr(work, "__qualname__", "") else 0)
        return work(*args)

    cpu = disk = commit = index = _slow

    def breathe(self) -> None:
        """See `Offload`: nobody else could run."""


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.06])
@simulated
async def test_writers_are_held_up_for_a_moment_at_most(tmp_path: Path, seconds: float) -> None:
    """While a snapshot is taken under writers; each of their requests is answered within the bound."""
    world = World.new(tmp_path / "w")
    world.offload = SlowOffload(seconds)
    async with world.mounted() as m:
        handles = [await m.open(b"f%d" % i) for i in range(3)]
        longest = 0.0
        written = dict.fromkeys(handles, 0)
        done = False

        async def write(fh: int) -> None:
            nonlocal longest
            while not done:
                began = trio.current_time()
                await m.fs.write(fh, written[fh], noise(5000, f"{fh} {written[fh]}"))
                written[fh] += 5000
                longest = max(longest, trio.current_time() - began)
                began = trio.current_time()
                await m.fs.getattr(ROOT)
                await m.fs.read(fh, written[fh] - 100, 100)
                assert trio.current_time() == began, "reading is never held up"
                await trio.sleep(0.004)

        async with trio.open_nursery() as nursery:
            for fh in handles:
                nursery.start_soon(write, fh)
            await trio.sleep(0.5)
            before = dict(written)
            info = await m.fs.create_snapshot("test")
            done = True
        assert longest <= limits.SNAPSHOT_PARK_S + 1e-6
        for i, fh in enumerate(handles):
            got = await m.get(place(info) + b"/f%d" % i)
            assert len(got) <= written[fh]
            whole = b"".join(noise(5000, f"{fh} {at}") for at in range(0, written[fh], 5000))
            assert got == whole[: len(got)]
            if seconds < 0.01:
                assert len(got) >= before[fh], "everything that had arrived when it was asked for"


@simulated
async def test_a_store_that_fails_in_the_cut_lets_everybody_go(tmp_path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, b"before")
        real = m.fs._data.flush_all
        calls = 0

        async def failing() -> None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise StoreError("the disk is gone for a moment")
            await real()

        monkeypatch.setattr(m.fs._data, "flush_all", failing)
        with pytest.raises(StoreError):
            await m.fs.create_snapshot("test")
        with trio.fail_after(1):
            await m.fs.write(fh, 0, b"after")
            await m.mkdir(b"d")
        assert m.fs.snapshots() == []
        info = await m.fs.create_snapshot("test")
        assert await m.get(place(info) + b"/f") == b"aftere"


@simulated
async def test_two_snapshots_at_once_are_taken_one_after_the_other(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(MIB))
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(m.fs.create_snapshot, "test")
        assert [info.serial for info in m.fs.snapshots()] == [1, 2, 3]


@simulated
async def test_a_file_without_a_name_is_in_no_snapshot(tmp_path: Path) -> None:
    """Its name went before the cut; it is written on, closed after it, and leaves nothing behind."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        first = await m.fs.create_snapshot("test")
        fh = await m.open(b"f")
        await m.fs.write(fh, 0, noise(200_000))
        await m.fs.commit()
        seen = await m.fs.create_snapshot("test")
        await m.unlink(b"f")
        info = await m.fs.create_snapshot("test")
        await m.fs.write(fh, 100_000, noise(500_000, 1))
        await m.fs.commit()
        await m.fs.create_snapshot("test")
        await m.close(b"f")
        await m.fs.idle()
        assert await m.names(place(first)) == await m.names(place(info)) == []
        assert await m.get(place(seen) + b"/f") == noise(200_000)
        stored = m.fs.stats().stored_bytes
        assert 200_000 < stored < 210_000
        await m.fs.delete_snapshot(seen.name)
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0
    assert world.audit(tmp_path / "copy") == []


# --- going ----------------------------------------------------------------------------------------------------------


async def gone(request: Callable[[], object]) -> bool:
    try:
        await request()  # type: ignore[misc]
    except FileSystemError as error:
        return error.errno == errno.ESTALE
    return False


@simulated
async def test_who_is_inside_a_deleted_snapshot_gets_estale(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await populate(m)
        info = await m.fs.create_snapshot("test")
        other = await m.fs.create_snapshot("test")
        top = (await m.fs.lookup(SNAPSHOTS_INO, info.name.encode())).ino
        ino = (await m.fs.lookup(top, b"two")).ino
        fh, directory = (await m.fs.open(ino, os.O_RDONLY, WHO)).fh, await m.fs.opendir(top)
        await m.fs.delete_snapshot(info.name)
        assert [i.name for i in m.fs.snapshots()] == [other.name]
        await m.fs.idle()
        with pytest.raises(FileSystemError):
            await m.fs.lookup(SNAPSHOTS_INO, info.name.encode())
        for request in (
            lambda: m.fs.getattr(ino),
            lambda: m.fs.lookup(top, b"two"),
            lambda: m.fs.read(fh, 0, 10),
            lambda: m.fs.readdir(directory, 0),
            lambda: m.fs.open(ino, os.O_RDONLY, WHO),
            lambda: m.fs.opendir(top),
            lambda: m.fs.listxattr(ino, WHO),
            lambda: m.fs.readlink(ino),
        ):
            assert await gone(request)
        await m.fs.release(fh)
        await m.fs.releasedir(directory)
        assert await m.tree(place(other))
        assert m.fs.status().purging == 0


@simulated
async def test_a_read_that_began_before_the_end_is_not_answered_with_what_is_gone(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(MIB))
        info = await m.fs.create_snapshot("test")
        await m.unlink(b"f")
    world.offload = SlowOffload(30, "BlobReader.read_all")
    async with world.mounted() as m:
        fh = await m.open(place(info) + b"/f", os.O_RDONLY)
        results: list[object] = []

        async def read() -> None:
            try:
                results.append(bytes(await m.fs.read(fh, 0, MIB)))
            except FileSystemError as error:
                results.append(error.errno)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            await m.fs.delete_snapshot(info.name)
            await m.fs.idle()
            assert results == []
        assert results == [errno.ESTALE]
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0


@simulated
async def test_deleting_what_is_not_there(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        info = await m.fs.create_snapshot("test")
        with pytest.raises(UsageError, match="no snapshot"):
            await m.fs.delete_snapshot("2000-01-01T000000Z")
        await m.fs.delete_snapshot(info.name)
        with pytest.raises(UsageError):
            await m.fs.delete_snapshot(info.name)


@simulated
async def test_nothing_is_left_of_what_two_half_purged_snapshots_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    def failing(_serial: int, _start: bytes) -> bytes | None:
        raise BackupfsError("not yet")

    log_rule.expect("background work stops until the next mount")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for content in (b"one", b"two"):
            await m.put(b"f", content)
            await m.fs.create_snapshot("test")
        await m.unlink(b"f")
        await m.fs.create_snapshot("test")
        first, second, _ = m.fs.snapshots()
        monkeypatch.setattr(m.fs._snapshots, "purge_step", failing)
        await m.fs.delete_snapshots([second.name])
        await m.fs.idle()
        await m.fs.delete_snapshots([first.name])
    monkeypatch.undo()
    async with world.mounted() as m:
        # The older goes first, and finds the versions of both.
        await m.fs.idle()
        assert m.fs.status().purging == 0
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_purging_goes_on_where_a_kill_cut_it_short(tmp_path: Path, small: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(4):
            for i in range(15):
                await m.put(b"f%d" % i, noise(3000, f"{number} {i}"))
            await m.fs.create_snapshot("test")
        names = [info.name for info in m.fs.snapshots()]
        expected = await m.tree(b".snapshots/" + names[3].encode())
        await m.fs.delete_snapshot(names[1])
        await m.fs.delete_snapshot(names[2])
        while m.fs.status().purging == 2:
            await trio.lowlevel.checkpoint()
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    async with killed.mounted() as m:
        await m.fs.idle()
        assert [info.name for info in m.fs.snapshots()] == [names[0], names[3]]
        assert await m.tree(b".snapshots/" + names[3].encode()) == expected
    assert killed.audit(tmp_path / "copy") == []


@simulated
async def test_the_space_of_a_snapshot_comes_back(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", noise(3 * MIB))
        infos = [await m.fs.create_snapshot("test")]
        for number in range(3):
            await m.put(b"f", noise(64 * KIB, number), at=MIB * number)
            infos.append(await m.fs.create_snapshot("test"))
        await m.unlink(b"f")
        await m.fs.idle()
        assert m.fs.stats().stored_bytes > 3 * MIB
        for info in (infos[1], infos[3], infos[0], infos[2]):
            await m.fs.delete_snapshot(info.name)
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_background_work_that_fails_is_told_and_nobody_waits_for_it(tmp_path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch) -> None:
    log_rule.expect("background work stops until the next mount")
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        info = await m.fs.create_snapshot("test")

        def failing(_serial: int, _start: bytes) -> bytes | None:
            raise BackupfsError("a row does not decode")

        monkeypatch.setattr(m.fs._snapshots, "purge_step", failing)
        await m.fs.delete_snapshot(info.name)
        await m.fs.idle()
        assert any("background work stopped" in text for text in m.fs.status().errors)
        await m.put(b"f", b"goes on")
    monkeypatch.undo()
    async with world.mounted() as m:
        await m.fs.idle()
        assert m.fs.status().purging == 0
        assert await m.get(b"f") == b"goes on"


@simulated
async def test_no_snapshot_when_nothing_can_be_written(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("writing stops")
    log_rule.expect("not everything could be committed")
    world = World.new(tmp_path / "w")
    files = FaultyFiles(world.disk, lambda operation, _number: 5 if broken and operation == "sync" else None)
    broken = False
    world.files = files
    with pytest.raises(BackupfsError):
        async with world.mounted() as m:
            info = await m.fs.create_snapshot("test")
            broken = True
            await m.mkdir(b"d")
            log_rule.expect("tried in a new segment")
            with pytest.raises(BackupfsError):
                await m.fs.commit()
            for request in (m.fs.create_snapshot("test"), m.fs.delete_snapshot(info.name)):
                with pytest.raises(ReadOnlyError):
                    await request
            assert m.fs.status().read_only
            assert m.fs.status().failure


# --- the policy and the directory of snapshots -------------------------------------------------------------------------


@simulated
async def test_a_policy_is_kept_as_it_is_and_no_change_of_the_tree(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        assert m.fs.policy() == b""
        await m.fs.create_snapshot("test")
        await m.fs.set_policy(b"\0first")
        await m.fs.set_policy(b"\0second")
        assert m.fs.policy() == b"\0second"
        assert m.fs.changes_since_snapshot() == 0
    async with world.mounted() as m:
        assert m.fs.policy() == b"\0second"
        await m.fs.set_policy(b"")
        assert m.fs.policy() == b""
    async with world.mounted() as m:
        assert m.fs.policy() == b""
        assert m.fs._volume.catalog.get(Table.META, META_POLICY) is None


@simulated
async def test_a_policy_that_is_too_long_or_cannot_be_written(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.fs.set_policy(b"x" * limits.POLICY_BYTES_MAX)
        with pytest.raises(UsageError, match="at most"):
            await m.fs.set_policy(b"x" * (limits.POLICY_BYTES_MAX + 1))
        assert m.fs.policy() == b"x" * limits.POLICY_BYTES_MAX
    async with world.mounted(read_only=True) as m:
        assert m.fs.policy() == b"x" * limits.POLICY_BYTES_MAX
        with pytest.raises(ReadOnlyError):
            await m.fs.set_policy(b"y")


@simulated
async def test_the_directory_of_snapshots_may_be_hidden_or_left_out(tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("the name .snapshots is reserved")
    async with World.new(tmp_path / "w").mounted() as m:
        await m.put(b"file", b"content")
        info = await m.fs.create_snapshot("test")
        for snapdir in SnapDir:
            m.fs.snapdirs.mode = snapdir
            fh = await m.fs.opendir(ROOT)
            listed = {entry.name for entry in await m.fs.readdir(fh, 0)}
            await m.fs.releasedir(fh)
            assert (b".snapshots" in listed) == (snapdir is SnapDir.VISIBLE)
            assert b"file" in listed
            with pytest.raises(FileSystemError, match="EPERM"):
                await m.mkdir(b".snapshots")
            if snapdir is SnapDir.DISABLED:
                with pytest.raises(FileSystemError, match="ENOENT"):
                    await m.fs.lookup(ROOT, b".snapshots")
            else:
                assert (await m.fs.lookup(ROOT, b".snapshots")).ino == SNAPSHOTS_INO
                assert await m.get(place(info) + b"/file") == b"content"


@pytest.mark.parametrize("nth", [0, 2])
def test_what_purging_costs_does_not_depend_on_how_many_snapshots_there_are(tmp_path: Path, nth: int) -> None:
    @simulated
    async def main() -> None:
        costs = []
        for snapshots in (8, 40):
            world = World.new(tmp_path / f"{snapshots}")
            async with world.mounted() as m:
                for number in range(snapshots):
                    await m.put(b"file", b"version %d" % number)
                    await m.fs.create_snapshot("manual")
                await m.put(b"file", b"now")
                await m.fs.idle()
                catalog = m.fs._volume.catalog
                newest, count = catalog.newest, [0]

                def counted(*args: Any, count: list[int] = count, newest: Callable[..., Any] = newest) -> Any:
                    count[0] += 1
                    return newest(*args)

                catalog.newest = counted  # type: ignore[method-assign,assignment]
                await m.fs.delete_snapshot(m.fs.snapshots()[nth].name)
                await m.fs.idle()
                assert m.fs.deleted_snapshots() == []
                costs.append(count[0])
            assert world.audit(tmp_path / f"audit {snapshots}") == []
        assert costs[0] == costs[1] > 0

    main()
