"""The way back: what a restore into the live tree does, and what it leaves alone."""

import errno
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.attributes import AttributeChanges, SnapshotInfo
from backupfs.engine.restoring import RestorePlan
from backupfs.errors import FileSystemError, UsageError
from backupfs.format.catalog import ORPHAN_DATA, Table, orphan_key
from tests.unit.engine.test_history import Author
from tests.unit.engine.world import ROOT, WHO, Mounted, World, simulated

_CTIME = 9


def shown(tree: dict[bytes, object]) -> dict[bytes, object]:
    """A tree as `Mounted.tree` gives it, but for the times of change, which nobody can set; hard links by the paths that share an inode."""
    shared: dict[int, set[bytes]] = {}
    for path, facts in tree.items():
        assert isinstance(facts, tuple)
        shared.setdefault(facts[0], set()).add(path)
    return {
        path: (sorted(shared[facts[0]]), *facts[1:_CTIME], *facts[_CTIME + 1 :])  # type: ignore[index]
        for path, facts in tree.items()
    }


async def past(m: Mounted, info: SnapshotInfo, path: bytes = b"") -> dict[bytes, object]:
    return shown(await m.tree(b".snapshots/" + info.name.encode() + (b"/" + path if path else b"")))


async def restore(m: Mounted, plan: RestorePlan) -> list[tuple[str, bytes, str]]:
    return [(step.action, step.path, trouble) async for step, trouble in m.fs.restorer.carry_out(plan)]


@pytest.mark.parametrize("life", range(8))
def test_a_whole_tree_is_as_it_was_and_undone_as_it_is(tmp_path: Path, seed: int, life: int) -> None:
    @simulated
    async def main() -> None:
        draw = random.Random(f"restore/{seed}/{life}")
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            author = Author(m, draw)
            for _ in range(15):
                await author.act()
            info = await m.fs.create_snapshot("manual")
            expected = await past(m, info)
            for _ in range(draw.randrange(1, 25)):
                await author.act()
            present = shown(await m.tree())
            safety = await m.fs.create_snapshot("restore", before_restore=b"/")
            done = await restore(m, await m.fs.restorer.plan(info.serial, b"", overwrite=True, delete=True))
            assert [entry for entry in done if entry[2]] == []
            assert shown(await m.tree()) == expected
            assert await past(m, info) == expected
            again = await m.fs.restorer.plan(info.serial, b"", overwrite=True, delete=True)
            assert (again.steps, again.skipped) == ([], [])
            assert m.fs.restorer.last_restored() == (safety.serial, b"")
            await restore(m, await m.fs.restorer.plan(safety.serial, b"", overwrite=True, delete=True))
            assert shown(await m.tree()) == present
            await m.fs.idle()
        assert await world.check() == []
        assert world.audit(tmp_path / "audit") == []

    main()


@pytest.mark.parametrize("life", range(4))
def test_nothing_is_overwritten_or_removed_unasked(tmp_path: Path, seed: int, life: int) -> None:
    @simulated
    async def main() -> None:
        draw = random.Random(f"unasked/{seed}/{life}")
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            author = Author(m, draw)
            for _ in range(15):
                await author.act()
            info = await m.fs.create_snapshot("manual")
            then = await m.tree(b".snapshots/" + info.name.encode())
            for _ in range(12):
                await author.act()
            before = await m.tree()
            plan = await m.fs.restorer.plan(info.serial, b"")
            assert {step.action for step in plan.steps} <= {"add"}
            await restore(m, plan)
            after = await m.tree()
            assert before.keys() <= after.keys()
            assert after.keys() - before.keys() == {path for path in then.keys() - before.keys() if _fits(path, after)}
            for path, facts in before.items():
                assert isinstance(facts, tuple)
                if not isinstance(facts[-1], list):
                    now = after[path]
                    assert isinstance(now, tuple)
                    assert (now[1], *now[3:_CTIME]) == (facts[1], *facts[3:_CTIME]), "all but the count of names"
                    assert now[-1] == facts[-1]

    main()


def _fits(path: bytes, tree: dict[bytes, object]) -> bool:
    """Whether every part above a path is a directory: a file in its way is not removed unasked."""
    above = path.rpartition(b"/")[0]
    while above:
        facts = tree.get(above)
        if not isinstance(facts, tuple) or not isinstance(facts[-1], list):
            return False
        above = above.rpartition(b"/")[0]
    return True


@simulated
async def test_a_large_file_comes_back_without_data_and_is_an_ordinary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REGION_BYTES", 256 * 1024)
    monkeypatch.setattr(limits, "RESTORE_REGIONS_PER_STEP", 3)
    content = random.Random(1).randbytes(4_000_000)
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/file", content)
        await m.fs.setxattr(await m.ino(b"d/file"), b"user.note", b"kept", WHO)
        await m.link(b"d/file", b"d/second name")
        info = await m.fs.create_snapshot("manual")
        then = await past(m, info)
        await m.put(b"d/file", b"spoilt" * 1000, at=1_000_000)
        await m.unlink(b"d/second name")
        await m.fs.commit()
        stored = m.fs.stats().stored_bytes
        plan = await m.fs.restorer.plan(info.serial, b"d", overwrite=True)
        assert {(s.action, s.path) for s in plan.steps} >= {("replace", b"d/file"), ("add", b"d/second name")}
        assert [entry for entry in await restore(m, plan) if entry[2]] == []
        await m.fs.commit()
        assert m.fs.stats().stored_bytes <= stored, "no data was added"
        assert shown(await m.tree()) == then
        touched = m.fs.restorer.touched
        assert (await m.ino(b"d"), b"file") in touched.names
        assert await m.ino(b"d") in touched.inodes
        await m.put(b"d/file", b"overwritten", at=5)
        await m.truncate(b"d/file", 3_000_000)
        changed = bytearray(content[:3_000_000])
        changed[5:16] = b"overwritten"
        assert await m.get(b"d/second name") == bytes(changed), "both names are one file"
        assert await past(m, info) == then
        await m.fs.delete_snapshot(info.name)
        await m.fs.idle()
        assert await m.get(b"d/file") == bytes(changed)
    assert await world.check() == []
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_one_file_comes_back_with_the_directories_above_it(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"a")
        await m.mkdir(b"a/b")
        await m.put(b"a/b/wanted", b"here")
        await m.put(b"a/b/other", b"not asked for")
        await m.fs.setattr(await m.ino(b"a/b"), AttributeChanges(mode=0o700, mtime_ns=5), None, WHO)
        info = await m.fs.create_snapshot("manual")
        for name in (b"a/b/wanted", b"a/b/other"):
            await m.unlink(name)
        await m.fs.rmdir(await m.ino(b"a"), b"b", WHO)
        await m.fs.rmdir(ROOT, b"a", WHO)
        plan = await m.fs.restorer.plan(info.serial, b"/a/b/wanted")
        assert [(s.action, s.path) for s in plan.steps] == [("add", b"a"), ("add", b"a/b"), ("add", b"a/b/wanted")]
        await restore(m, plan)
        assert await m.get(b"a/b/wanted") == b"here"
        assert await m.names(b"a/b") == [b"wanted"]
        facts = await m.fs.getattr(await m.ino(b"a/b"))
        assert (facts.mode & 0o777, facts.mtime_ns) == (0o700, 5)


@simulated
async def test_a_copy_beside_what_is_there(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.mkdir(b"d/e")
        await m.put(b"d/e/file", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.put(b"d/e/file", b"now!")
        await restore(m, await m.fs.restorer.plan(info.serial, b"d", b"/d of then"))
        assert await m.get(b"d of then/e/file") == b"then"
        assert await m.get(b"d/e/file") == b"now!"
        for target, kind, pattern in ((b"d", UsageError, None), (b"d of then", UsageError, "exists"), (b"", UsageError, "root")):
            if target != b"d":
                with pytest.raises(kind, match=pattern):
                    await m.fs.restorer.plan(info.serial, b"d", target)
        with pytest.raises(FileSystemError) as nowhere:
            await m.fs.restorer.plan(info.serial, b"d", b"missing/place")
        assert nowhere.value.errno == errno.ENOENT
        with pytest.raises(FileSystemError) as never:
            await m.fs.restorer.plan(info.serial, b"never")
        assert never.value.errno == errno.ENOENT
        with pytest.raises(FileSystemError) as neither:
            await m.fs.restorer.plan(info.serial, b"never", b"x")
        assert neither.value.errno == errno.ENOENT
        with pytest.raises(UsageError, match="nothing has been restored"):
            m.fs.restorer.last_restored()


@simulated
async def test_what_changed_since_the_plan_is_left_out_and_said(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"file", b"then")
        await m.put(b"gone", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.put(b"file", b"now!")
        await m.unlink(b"gone")
        await m.fs.rmdir(ROOT, b"d", WHO)
        await m.put(b"extra", b"x")
        plan = await m.fs.restorer.plan(info.serial, b"", overwrite=True, delete=True)
        await m.unlink(b"file")
        await m.put(b"gone", b"made meanwhile")
        await m.unlink(b"extra")
        done = await restore(m, plan)
        assert {path for _, path, trouble in done if trouble} == {b"file", b"gone", b"extra"}
        assert await m.get(b"gone") == b"made meanwhile"
        assert await m.names(b"d") == []


@pytest.fixture
def in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copying the regions of a file takes several steps."""
    monkeypatch.setattr(limits, "REGION_BYTES", 64 * 1024)
    monkeypatch.setattr(limits, "RESTORE_REGIONS_PER_STEP", 2)


async def interrupted(m: Mounted, plan: RestorePlan, act: Callable[[], Awaitable[object]]) -> list[tuple[str, bytes, str]]:
    """Carry a plan out; `act` comes when the regions of a file are half copied."""
    done: list[tuple[str, bytes, str]] = []
    restorer, acted = m.fs.restorer, False
    admit = restorer._admit

    async def then_act() -> None:
        nonlocal acted
        if m.fs._volume.catalog.get(Table.ORPHANS, orphan_key(ORPHAN_DATA, m.fs._volume.counters.data - 1)) is not None and not acted:
            acted = True
            await act()
        await admit()

    restorer._admit = then_act
    try:
        done += await restore(m, plan)
    finally:
        restorer._admit = admit
    assert acted
    return done


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("kind", ["made", "moved"])
def test_what_comes_to_stand_there_while_a_large_file_is_copied_is_left_alone(tmp_path: Path, in_steps: None, there: bool, kind: str) -> None:
    @simulated
    async def main() -> None:
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            await m.mkdir(b"d")
            await m.put(b"d/file", random.Random(2).randbytes(2_000_000))
            info = await m.fs.create_snapshot("manual")
            await m.unlink(b"d/file")
            if there:
                await m.put(b"d/file", b"other")
            await m.fs.idle()

            async def act() -> None:
                if kind == "moved":
                    await m.rename(b"d", b"e")
                    return
                if there:
                    await m.unlink(b"d/file")
                await m.put(b"d/file", b"made meanwhile")

            plan = await m.fs.restorer.plan(info.serial, b"d/file", overwrite=there)
            [(_, _, trouble)] = await interrupted(m, plan, act)
            assert trouble
            if kind == "made":
                assert await m.get(b"d/file") == b"made meanwhile"
            else:
                assert await m.names(b"e") == ([b"file"] if there else [])
            await m.fs.idle()
        assert await world.check() == []
        assert world.audit(tmp_path / "audit") == []

    main()


@simulated
async def test_a_directory_keeps_the_time_of_what_others_do_while_a_large_file_is_copied(tmp_path: Path, in_steps: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/file", random.Random(2).randbytes(2_000_000))
        info = await m.fs.create_snapshot("manual")
        await m.put(b"d/file", b"other")
        directory = await m.ino(b"d")
        made_ns = 0

        async def act() -> None:
            nonlocal made_ns
            await m.put(b"d/made meanwhile", b"x")
            made_ns = (await m.fs.getattr(directory)).mtime_ns

        await interrupted(m, await m.fs.restorer.plan(info.serial, b"d/file", overwrite=True), act)
        assert (await m.fs.getattr(directory)).mtime_ns == made_ns


@simulated
async def test_large_directories_are_walked_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPARED_PER_STEP", 3)
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        for number in range(9):
            await m.mkdir(b"d/sub%d" % number)
            for below in range(number):
                await m.put(b"d/sub%d/file%d" % (number, below), b"%d" % below)
        then = await m.tree(b"d")
        info = await m.fs.create_snapshot("manual")
        await m.rename(b"d", b"e")
        await restore(m, await m.fs.restorer.plan(info.serial, b"", overwrite=True, delete=True))
        assert shown(await m.tree(b"d")) == shown(then)
        assert b"e" not in await m.names(b"")


@simulated
async def test_a_restore_that_fails_half_way_leaves_nothing_behind(tmp_path: Path, in_steps: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", random.Random(2).randbytes(2_000_000))
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")
        await m.fs.idle()

        async def act() -> None:
            raise FileSystemError(errno.ENOSPC)

        [(_, _, trouble)] = await interrupted(m, await m.fs.restorer.plan(info.serial, b"file"), act)
        assert trouble
        await m.fs.delete_snapshot(info.name)
        await m.fs.idle()
        assert m.fs.stats().stored_bytes == 0
    assert await world.check() == []
    assert world.audit(tmp_path / "audit") == []


@simulated
async def test_a_snapshot_is_not_purged_while_it_is_restored_from(tmp_path: Path, in_steps: None) -> None:
    content = random.Random(2).randbytes(2_000_000)
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", content)
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")

        async def act() -> None:
            await m.fs.delete_snapshot(info.name)
            await m.fs.idle()

        [(_, _, trouble)] = await interrupted(m, await m.fs.restorer.plan(info.serial, b"file"), act)
        assert trouble == ""
        assert await m.get(b"file") == content
        await m.fs.idle()
        assert m.fs.deleted_snapshots() == []
    assert world.audit(tmp_path / "audit") == []


@pytest.mark.parametrize("kind", ["lost", "changed"])
def test_a_file_that_was_to_get_its_second_name_back_is_looked_at_again(tmp_path: Path, kind: str) -> None:
    @simulated
    async def main() -> None:
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            await m.put(b"first", b"then")
            await m.link(b"first", b"second")
            info = await m.fs.create_snapshot("manual")
            await m.unlink(b"second")
            await m.put(b"second", b"another")
            plan = await m.fs.restorer.plan(info.serial, b"second", overwrite=True)
            assert plan.steps[0].shared_ino
            await m.open(b"first")
            if kind == "lost":
                await m.unlink(b"first")
            else:
                await m.fs.write(m.handles[b"first"], 0, b"now!")
            assert [trouble for _, _, trouble in await restore(m, plan)] == [""]
            assert await m.get(b"second") == b"then"
            await m.close(b"first")
            await m.fs.idle()
        assert await world.check() == []
        assert world.audit(tmp_path / "audit") == []

    main()


@simulated
async def test_a_place_that_no_path_can_name_is_refused(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/file", b"then")
        info = await m.fs.create_snapshot("manual")
        for target in (b"..", b"d/..", b"d/.", b"d/../e", b"x\0y", b".snapshots", b"d/.snapshots", b".snapshots/x"):
            with pytest.raises(UsageError, match="place"):
                await m.fs.restorer.plan(info.serial, b"d", target)
        await restore(m, await m.fs.restorer.plan(info.serial, b"/d//file", b"//d//back/"))
        assert await m.get(b"d/back") == b"then"


@simulated
async def test_a_tree_as_deep_as_there_are_is_compared_and_restored(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        ino = ROOT
        for _ in range(1500):
            attributes = await m.fs.mkdir(ino, b"d", 0o755, WHO)
            ino = attributes.ino
        deep = b"/".join([b"d"] * 1500)
        opened, _ = await m.fs.create(ino, b"file", 0o644, os.O_RDWR | os.O_CREAT, WHO)
        await m.fs.release(opened.fh)
        info = await m.fs.create_snapshot("manual")
        await m.fs.unlink(ino, b"file", WHO)
        assert [(c.kind, c.path) for c in await m.fs.history.diff(info.serial, 0)] == [("-", deep + b"/file")]
        plan = await m.fs.restorer.plan(info.serial, b"")
        assert [(s.action, s.path) for s in plan.steps] == [("add", deep + b"/file")]
        assert [trouble for _, _, trouble in await restore(m, plan)] == [""]


@simulated
async def test_a_restore_that_is_killed_leaves_nothing_behind(tmp_path: Path, in_steps: None) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", random.Random(2).randbytes(2_000_000))
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")
        await m.fs.idle()
        ends: list[World] = []

        async def act() -> None:
            await m.fs.create_snapshot("manual")
            ends.append(world.after_kill(tmp_path / "killed"))

        await interrupted(m, await m.fs.restorer.plan(info.serial, b"file"), act)
    [killed] = ends
    async with killed.mounted() as m:
        await m.fs.idle()
        assert await m.names(b"") == []
    assert await killed.check() == []
    assert killed.audit(tmp_path / "audit") == []


@simulated
async def test_undoing_what_was_missing_removes_it_with_the_directories_made_for_it(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for path in (b"a", b"a/b", b"a/b/c"):
            await m.mkdir(path)
        await m.put(b"a/b/c/file", b"here")
        await m.put(b"a/b/c/file2", b"here")
        info = await m.fs.create_snapshot("manual")
        for name in (b"a/b/c/file", b"a/b/c/file2"):
            await m.unlink(name)
        for path, name in ((b"a/b", b"c"), (b"a", b"b"), (b"", b"a")):
            await m.fs.rmdir(await m.ino(path), name, WHO)

        async def there_and_back(alone: bool) -> list[bytes]:
            await m.fs.create_snapshot("restore", before_restore=b"a/b/c/file")
            await restore(m, await m.fs.restorer.plan(info.serial, b"a/b/c/file"))
            if not alone:
                await m.put(b"a/other", b"made since")
            plan = await m.fs.restorer.plan_undo()
            assert {step.action for step in plan.steps} == {"remove"}
            assert [entry for entry in await restore(m, plan) if entry[2]] == []
            assert (await m.fs.restorer.plan_undo()).steps == []
            return sorted(await m.tree())

        assert await there_and_back(alone=True) == [b""]
        assert await there_and_back(alone=False) == [b"", b"a", b"a/other"]
        touched = m.fs.restorer.take_touched()
        assert (await m.ino(b"a"), b"b") in touched.names
        assert m.fs.restorer.take_touched().names == []


@simulated
async def test_undo_is_undone_by_undo(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.put(b"file", b"now!")
        await m.put(b"another", b"left alone")
        for expected in (b"then", b"now!", b"then"):
            plan = await (m.fs.restorer.plan(info.serial, b"file", overwrite=True) if expected == b"then" else m.fs.restorer.plan_undo())
            assert [(step.action, step.path) for step in plan.steps] == [("replace", b"file")]
            await m.fs.create_snapshot("restore", before_restore=b"file")
            await restore(m, plan)
            assert await m.get(b"file") == expected
        await restore(m, await m.fs.restorer.plan_undo())
        assert await m.get(b"file") == b"now!"
        assert await m.get(b"another") == b"left alone"


@simulated
async def test_a_restore_that_is_given_up_leaves_what_came_as_it_was(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        for n in range(4):
            await m.put(b"d/%d" % n, b"here")
        await m.fs.setattr(await m.ino(b"d"), AttributeChanges(mtime_ns=5), None, WHO)
        info = await m.fs.create_snapshot("manual")
        for n in range(4):
            await m.unlink(b"d/%d" % n)
        await m.fs.rmdir(ROOT, b"d", WHO)
        plan = await m.fs.restorer.plan(info.serial, b"d")
        async with aclosing(m.fs.restorer.carry_out(plan)) as steps:
            async for step, _ in steps:
                if step.path == b"d/1":
                    break
        assert sorted(await m.names(b"d")) == [b"0", b"1"]
        assert (await m.fs.getattr(await m.ino(b"d"))).mtime_ns == 5
        assert await m.ino(b"d") in m.fs.restorer.touched.inodes


@simulated
async def test_a_full_disk_is_said_of_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"file", b"then")
        info = await m.fs.create_snapshot("manual")
        await m.unlink(b"file")
        plan = await m.fs.restorer.plan(info.serial, b"file")
        monkeypatch.setattr(m.fs, "_is_short", lambda: True)
        assert await restore(m, plan) == [("add", b"file", "No space left on device")]
