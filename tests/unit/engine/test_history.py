"""What changed, every version of a file, where a name has stood: against a walk of the whole trees."""

import errno
import random
import stat
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.engine.attributes import AttributeChanges, SnapshotInfo, TreeChange
from backupfs.engine.namespace import RENAME_EXCHANGE
from backupfs.errors import FileSystemError, UsageError
from tests.unit.engine.world import ROOT, WHO, Mounted, World, list_directory, read_all, simulated

Line = tuple[str, bytes, bytes]
Facts = tuple[int, int, tuple[object, ...], object]


async def walk(m: Mounted, top: int) -> dict[bytes, Facts]:
    """Path -> (inode, type, attributes that count, content) of a whole tree, a present or a past one."""
    found: dict[bytes, Facts] = {}
    waiting = [(b"", top)]
    while waiting:
        path, ino = waiting.pop()
        a = await m.fs.getattr(ino)
        content: object = None
        if stat.S_ISDIR(a.mode):
            waiting += [(path + b"/" + name if path else name, child) for name, child in await list_directory(m.fs, ino)]
        elif stat.S_ISREG(a.mode):
            content = await read_all(m.fs, ino)
        else:
            content = await m.fs.readlink(ino)
        xattrs = tuple(sorted([(name, await m.fs.getxattr(ino, name)) for name in await m.fs.listxattr(ino, WHO)]))
        counting = (a.mode, a.uid, a.gid, xattrs, None if stat.S_ISDIR(a.mode) else a.mtime_ns)
        found[path] = (a.ino & (1 << 40) - 1, stat.S_IFMT(a.mode), counting, content)
    return found


def expected(then: dict[bytes, Facts], now: dict[bytes, Facts]) -> set[Line]:
    """The difference, told by whoever has both trees whole."""
    entries = [
        {(tree[path.rpartition(b"/")[0]][0], path.rpartition(b"/")[2]): (path, facts[0]) for path, facts in tree.items() if path}
        for tree in (then, now)
    ]
    gone = sorted((ino, path) for place, (path, ino) in entries[0].items() if entries[1].get(place, (b"", 0))[1] != ino)
    come = sorted((ino, path) for place, (path, ino) in entries[1].items() if entries[0].get(place, (b"", 0))[1] != ino)
    lines: set[Line] = set()
    exchanged = exchanged_paths(gone, come, now)
    newcomers = {ino for ino, path in come if path in exchanged}
    for path in exchanged:
        lines |= differing(path, then[path], now[path])
    gone = [entry for entry in gone if entry[1] not in exchanged]
    come = [entry for entry in come if entry[1] not in exchanged]
    for ino, path in list(come):
        old = next((entry for entry in gone if entry[0] == ino), None)
        if old is not None:
            lines.add(("R", path, old[1]))
            gone.remove(old)
            come.remove((ino, path))
    lines |= {("-", path, b"") for _, path in gone} | {("+", path, b"") for _, path in come}
    firsts: list[dict[int, bytes]] = [{}, {}]
    for tree, first in zip((then, now), firsts, strict=True):
        for path, facts in tree.items():
            first.setdefault(facts[0], path)
    for ino in (firsts[0].keys() & firsts[1].keys()) - newcomers:
        lines |= {(kind, str(ino).encode(), b"") for kind, _, _ in differing(b"", then[firsts[0][ino]], now[firsts[1][ino]])}
    return lines


def exchanged_paths(gone: list[tuple[int, bytes]], come: list[tuple[int, bytes]], now: dict[bytes, Facts]) -> set[bytes]:
    """Paths that lead to another inode now, but for directories that have moved."""
    moved = {ino for ino, path in come if now[path][1] == stat.S_IFDIR} & {ino for ino, _ in gone}
    there = [{path for ino, path in side if ino not in moved} for side in (gone, come)]
    return there[0] & there[1]


def differing(path: bytes, was: Facts, is_: Facts) -> set[Line]:
    if was[1] != is_[1]:
        return {("T", path, b"")}
    if was[3] != is_[3]:
        return {("M", path, b"")}
    return set() if was[2] == is_[2] else {("P", path, b"")}


def told(changes: list[TreeChange], now: dict[bytes, Facts], exchanged: set[bytes]) -> set[Line]:
    """As `expected` tells it: a file with several names is named by its inode, whichever of them was chosen."""
    lines: set[Line] = set()
    for change in changes:
        path = change.path
        if change.kind in "MPT" and path not in exchanged:
            path = str(now[path][0]).encode()
        lines.add((change.kind, path, change.old_path))
    return lines


class Author:
    """Changes a small tree at random. With `alike` files, those that are made have one of three contents."""

    def __init__(self, m: Mounted, draw: random.Random, alike: bool = False) -> None:
        self.m = m
        self.draw = draw
        self.alike = alike
        self.number = 0

    async def act(self) -> None:
        m, draw = self.m, self.draw
        tree = await walk(m, ROOT)
        files = [path for path, facts in tree.items() if facts[1] == stat.S_IFREG]
        directories = [path for path, facts in tree.items() if facts[1] == stat.S_IFDIR]
        above = draw.choice(directories)
        self.number += 1
        new = (above + b"/" if above else b"") + b"n%d" % draw.randrange(12)
        kind = draw.randrange(10)
        if kind < 3 and new not in tree:
            await m.put(new, b"one of %d" % draw.randrange(3) if self.alike else draw.randbytes(draw.randrange(1, 3000)))
        elif kind == 3 and new not in tree:
            await m.mkdir(new)
        elif kind == 4 and files:
            await m.put(draw.choice(files), b"changed %d" % self.number, at=draw.randrange(100))
        elif kind == 5 and files:
            await m.unlink(draw.choice(files))
        elif kind == 6:
            movable = [path for path in (*files, *directories) if path and new != path and not new.startswith(path + b"/")]
            target = tree.get(new)
            old = draw.choice([*files, *directories])
            if target is not None and old and not old.startswith(new + b"/") and not new.startswith(old + b"/") and old != new:
                await m.rename(old, new, RENAME_EXCHANGE)
            elif movable and (target is None or target[1] == stat.S_IFREG):
                old = draw.choice(movable)
                if target is None or tree[old][1] == stat.S_IFREG:
                    await m.rename(old, new)
        elif kind == 7 and files:
            await m.fs.setattr(await m.ino(draw.choice(files)), AttributeChanges(mode=draw.choice([0o600, 0o644, 0o755])), None, WHO)
        elif kind == 8 and files and new not in tree:
            await m.link(draw.choice(files), new)
        elif files:
            await m.fs.setxattr(await m.ino(draw.choice([*files, *directories])), b"user.x", draw.randbytes(3), WHO)


@pytest.mark.parametrize("life", range(6))
def test_a_difference_is_what_both_trees_whole_tell(tmp_path: Path, seed: int, life: int) -> None:
    @simulated
    async def main() -> None:
        draw = random.Random(f"history/{seed}/{life}")
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            author = Author(m, draw)
            trees: list[tuple[SnapshotInfo, dict[bytes, Facts]]] = []
            for _ in range(5):
                for _ in range(draw.randrange(1, 14)):
                    await author.act()
                info = await m.fs.create_snapshot("manual")
                trees.append((info, await walk(m, await m.ino(b".snapshots/" + info.name.encode()))))
            if draw.random() < 0.5:
                gone = trees.pop(draw.randrange(len(trees)))
                await m.fs.delete_snapshot(gone[0].name)
                await m.fs.idle()
            await author.act()
            points = [(info.serial, tree) for info, tree in trees] + [(0, await walk(m, ROOT))]
            for at, (older, then) in enumerate(points):
                for newer, now in points[at:]:
                    changes = await m.fs.history.diff(older, newer)
                    exchanged = {path for path in then.keys() & now.keys() if then[path][0] != now[path][0]}
                    assert told(changes, now, exchanged) == expected(then, now), (older, newer)

    main()


@simulated
async def test_a_difference_below_a_path_and_in_the_wrong_order(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for name in (b"a", b"ab"):
            await m.mkdir(name)
            await m.put(name + b"/file", b"1")
        first = await m.fs.create_snapshot("manual")
        for name in (b"a", b"ab"):
            await m.put(name + b"/file", b"22")
        second = await m.fs.create_snapshot("manual")
        changes = await m.fs.history.diff(first.serial, 0, b"/a/")
        assert [(c.kind, c.path, c.old_size, c.size) for c in changes] == [("M", b"a/file", 1, 2)]
        with pytest.raises(UsageError, match="newer"):
            await m.fs.history.diff(second.serial, first.serial)


@simulated
async def test_every_version_of_a_file_whatever_was_done_to_its_name(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"old")
        snapshots = []

        async def keep() -> None:
            snapshots.append((await m.fs.create_snapshot("manual")).name)

        await m.put(b"old/first", b"1")
        await keep()
        await m.rename(b"old/first", b"old/name")  # the file is moved
        await keep()
        await m.put(b"old/name", b"22")  # changed in place
        await keep()
        await keep()
        await m.put(b"old/.tmp", b"333")  # written aside and moved over
        await m.rename(b"old/.tmp", b"old/name")
        await keep()
        await m.rename(b"old", b"new")  # its directory is moved
        await m.put(b"new/name", b"4444")
        await keep()
        await m.unlink(b"new/name")  # removed
        await keep()
        await m.put(b"new/name", b"55555")  # and made again
        await keep()
        await m.put(b"new/name", b"666666")
        found = await m.fs.history.versions(b"new/name")
        shown = [(v.path, v.size, v.first, v.last, v.snapshots, v.is_present) for v in found]
        assert shown == [
            (b"new/name", 6, None, None, 0, True),
            (b"new/name", 5, snapshots[7], snapshots[7], 1, False),
            (b"new/name", 4, snapshots[5], snapshots[5], 1, False),
            (b"new/name", 3, snapshots[4], snapshots[4], 1, False),
            (b"new/name", 2, snapshots[2], snapshots[3], 2, False),
            (b"new/name", 1, snapshots[1], snapshots[1], 1, False),
            (b"old/first", 1, snapshots[0], snapshots[0], 1, False),
        ]
        await m.unlink(b"new/name")
        await m.fs.commit()
        assert (await m.fs.history.versions(b"/new/name/"))[0].size == 5, "of what is gone as well"
        assert [v.size for v in await m.fs.history.versions(b"old/name")][-3:] == [2, 1, 1], "and by the path of then"
        for path, code in ((b"never", errno.ENOENT), (b"new/never", errno.ENOENT), (b"never/name", errno.ENOENT)):
            with pytest.raises(FileSystemError) as missing:
                await m.fs.history.versions(path)
            assert missing.value.errno == code
        with pytest.raises(UsageError, match="root"):
            await m.fs.history.versions(b"/")


@simulated
async def test_versions_by_way_of_directories_that_were_made_anew_or_replaced(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:

        async def keep(name: str, path: bytes, size: int) -> None:
            await m.put(path, b"x" * size)
            await m.fs.create_snapshot("manual", name=name)

        async def shown(path: bytes) -> list[tuple[bytes, int, str | None, str | None]]:
            return [(v.path, v.size, v.first, v.last) for v in await m.fs.history.versions(path)]

        for directory in (b"made", b"made/in", b"moved"):
            await m.mkdir(directory)
        await keep("a", b"made/in/f", 1)
        await keep("b", b"moved/f", 2)
        await m.unlink(b"made/in/f")
        await m.rmdir(b"made/in")
        await m.rmdir(b"made")
        await m.fs.create_snapshot("manual", name="gone")
        for directory in (b"made", b"made/in"):
            await m.mkdir(directory)
        await keep("c", b"made/in/f", 3)
        await m.rename(b"moved", b"aside")
        await m.mkdir(b"moved")
        await keep("d", b"moved/f", 4)
        await keep("e", b"aside/f", 5)
        assert await shown(b"made/in/f") == [(b"made/in/f", 3, "c", "e"), (b"made/in/f", 1, "a", "b")]
        assert await shown(b"moved/f") == [(b"moved/f", 4, "d", "e"), (b"moved/f", 2, "b", "c")]
        assert await shown(b"aside/f") == [(b"aside/f", 5, "e", "e"), (b"aside/f", 2, "b", "d")]
        await m.unlink(b"made/in/f")
        await m.rmdir(b"made/in")
        assert await shown(b"made/in/f") == [(b"made/in/f", 3, "c", "e"), (b"made/in/f", 1, "a", "b")]
        await m.put(b"made/in", b"a file now")
        assert await shown(b"made/in/f") == [(b"made/in/f", 3, "c", "e"), (b"made/in/f", 1, "a", "b")]
        await m.unlink(b"made/in")
        await m.mkdir(b"made/in")
        assert await shown(b"made/in/f") == [(b"made/in/f", 3, "c", "e"), (b"made/in/f", 1, "a", "b")]
        with pytest.raises(FileSystemError):
            await shown(b"made/in/never")
        await m.rename(b"moved", b"before")  # what was in the old directory is moved into the one that takes its place
        await m.mkdir(b"moved")
        await m.rename(b"before/f", b"moved/f")
        await m.fs.create_snapshot("manual", name="g")
        found = await m.fs.history.versions(b"moved/f")
        assert [(v.size, v.first, v.last) for v in found] == [(4, "d", "g"), (2, "b", "c")], "each version once"


@simulated
async def test_where_a_name_has_stood(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.mkdir(b"d")
        await m.put(b"d/report.txt", b"1")
        first = (await m.fs.create_snapshot("manual")).name
        await m.unlink(b"d/report.txt")
        await m.put(b"report.md", b"2")
        second = (await m.fs.create_snapshot("manual")).name
        await m.put(b"other", b"")
        found = sorted([f async for f in m.fs.history.find("report.*")], key=lambda f: f.path)
        assert [(f.path, f.first, f.last, f.snapshots, f.is_present) for f in found] == [
            (b"d/report.txt", first, first, 1, False),
            (b"report.md", second, second, 1, True),
        ]
        assert [f.path async for f in m.fs.history.find("d/*.txt")] == [b"d/report.txt"]
        assert [f.path async for f in m.fs.history.find("nothing*")] == []
        with pytest.raises(UsageError, match="longer than any path"):
            assert [f.path async for f in m.fs.history.find("[" * 4097)] == []
        assert [(f.path, f.snapshots, f.is_present) async for f in m.fs.history.find("other")] == [(b"other", 0, True)]


@pytest.mark.parametrize(("life", "groups", "acts"), [(0, 65_536, 12), (1, 65_536, 12), (2, 1, 100)])
def test_what_deleting_would_free_is_what_it_frees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, life: int, groups: int, acts: int
) -> None:
    """Also when so few groups of blobs are counted at once that it takes several shares of them."""
    monkeypatch.setattr(limits, "RECKONED_GROUPS_MAX", groups)  # to be met: it takes hundreds of thousands of blobs

    @simulated
    async def main() -> None:
        draw = random.Random(f"frees/{seed}/{life}")
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            m.fs.upkeep.undelete_ns = 10**15
            author = Author(m, draw)
            for _ in range(8):
                for _ in range(draw.randrange(acts // 2, acts)):
                    await author.act()
                await m.fs.create_snapshot("manual")
            while kept := m.fs.snapshots():
                chosen = draw.sample(kept, draw.randint(1, min(3, len(kept))))
                serials = [info.serial for info in chosen]
                looked_at: list[int] = []
                would = await m.fs.reckoner.frees(serials, looked_at.append)
                records = await m.fs.reckoner.records(serials)
                assert sum(looked_at) == records
                purged = m.fs.upkeep.status().purged_records
                before = m.fs.stats().stored_bytes
                for info in chosen:
                    await m.fs.delete_snapshot(info.name)
                assert await m.fs.reckoner.frees(serials) == would, "marked already, or not"
                await m.fs.upkeep.collect_now(purge_deleted=True, thorough=False)
                assert before - m.fs.stats().stored_bytes == would
                # Marking a snapshot deleted is a change of the present, which a purge up to the present looks at too.
                assert records <= m.fs.upkeep.status().purged_records - purged <= records + 4 * len(chosen)

    main()


@pytest.mark.parametrize("life", range(4))
def test_what_deleting_frees_beyond_what_others_do(tmp_path: Path, seed: int, life: int) -> None:
    """Is what all of them free together, less that. Also where files have the same content, so that what else goes may hold the rest of a blob."""

    @simulated
    async def main() -> None:
        draw = random.Random(f"beyond/{seed}/{life}")
        world = World.new(tmp_path / "w")
        async with world.mounted() as m:
            author = Author(m, draw, alike=True)
            for _ in range(10):
                for _ in range(draw.randrange(1, 10)):
                    await author.act()
                await m.fs.create_snapshot("manual")
            serials = [info.serial for info in m.fs.snapshots()]
            frees = m.fs.reckoner.frees
            for _ in range(20):
                asked = draw.sample(serials, draw.randrange(1, 4))
                others = [serial for serial in serials if serial not in asked and draw.random() < 0.6]
                looked_at: list[int] = []
                assert await frees(asked, looked_at.append, others) == await frees([*asked, *others]) - await frees(others)
                assert sum(looked_at) == await m.fs.reckoner.records(asked, others)

    main()


@simulated
async def test_a_blob_that_two_files_had_goes_with_the_second_of_them(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        serials = []
        for name in (b"first", b"", b"second"):
            if name:
                await m.put(name, b"the same in both")
            serials.append((await m.fs.create_snapshot("manual")).serial)
            if name:
                await m.unlink(name)
        first, between, second = serials
        frees = m.fs.reckoner.frees
        whole = await frees([first, second])
        assert whole > 16
        assert [await frees([first]), await frees([second]), await frees([second], beyond=[between])] == [0, 0, 0]
        assert [await frees([first], beyond=[second]), await frees([second], beyond=[first])] == [whole, whole]


@simulated
async def test_deleting_one_after_the_other_looks_at_what_changed_since_each(tmp_path: Path) -> None:
    """Not at what changed since the first of all that are deleted and not purged yet, which is more each time."""
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        m.fs.upkeep.undelete_ns = 10**15
        serials = []
        for number in range(9):
            for n in range(5):
                await m.put(b"file%d" % n, random.Random(f"{number}/{n}").randbytes(3000))
            serials.append((await m.fs.create_snapshot("manual")).serial)
        counts = []
        for at, serial in enumerate(serials[:-1]):
            looked_at: list[int] = []
            assert await m.fs.reckoner.frees([serial], looked_at.append, serials[:at]) > 5 * 3000
            counts.append(sum(looked_at))
        assert len(set(counts)) == 1, counts


@simulated
async def test_directories_that_changed_places_or_took_another_ones_place_are_told_as_moved(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for name in (b"a", b"b", b"new", b"mixed"):
            await m.mkdir(name)
            await m.put(name + b"/in " + name, b"content of " + name)
        await m.put(b"file", b"a file")
        await m.mkdir(b"old")
        info = await m.fs.create_snapshot("manual")
        await m.rename(b"a", b"b", RENAME_EXCHANGE)
        await m.rename(b"mixed", b"file", RENAME_EXCHANGE)
        await m.rename(b"new", b"old")
        changes = [(c.kind, c.path, c.old_path) for c in await m.fs.history.diff(info.serial, 0)]
        assert changes == [
            ("R", b"a", b"b"),
            ("R", b"b", b"a"),
            ("R", b"file", b"mixed"),
            ("R", b"mixed", b"file"),
            ("-", b"old", b""),
            ("R", b"old", b"new"),
        ]


@simulated
async def test_what_purging_would_free_is_reckoned_while_it_is_purged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "COMPARED_PER_STEP", 1)  # so that the purge comes between any two rows
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for number in range(30):
            await m.put(b"file%d" % number, random.Random(number).randbytes(3000))
        info = await m.fs.create_snapshot("manual")
        for number in range(30):
            await m.unlink(b"file%d" % number)
        await m.fs.idle()
        assert await m.fs.reckoner.frees([info.serial]) > 90_000
        await m.fs.delete_snapshot(info.name)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(m.fs.reckoner.frees, [info.serial])
                await trio.lowlevel.checkpoint()
            nursery.start_soon(m.fs.idle)
        assert await m.fs.reckoner.frees([info.serial]) == 0
