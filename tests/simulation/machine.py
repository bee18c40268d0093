"""A machine whose directory is mounted for months: real files, the real engine and scheduler, and a clock that can do anything.

Beside it the test keeps what must stand: a copy of the tree for each snapshot, and what the model of the rules says. Time is trio's on a mock
clock while the machine is awake; a sleep, or somebody who sets the clock, moves the wall's clock alone.
"""

import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final

import trio
from trio.testing import wait_all_tasks_blocked

from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.repository import check_repository, create_repository, open_filesystem, unlock
from backupfs.engine.seams import Seams
from backupfs.rules.schedule import SCHEDULED, Activity, Taken, initial
from backupfs.service.retaining import Retainer
from backupfs.service.scheduler import Scheduler
from tests.compat.twin import UnsyncedFiles
from tests.crash.simulation import KDF, PASSWORD, InlineOffload, SeededRandomness
from tests.decoder.store import Store, open_store
from tests.models.snapshot_rules import HOUR_NS, MINUTE_NS, SECOND_NS, Duration, Schedule, ScheduleModel, Settings, Snapshot, excess_bytes, fates
from tests.simulation.real_rules import real_retention, real_schedule
from tests.simulation.space import Space
from tests.unit.engine.world import WHO, Mounted

SCHEDULES: Final = (
    Schedule(every=Duration(HOUR_NS), tags=("hourly",)),
    Schedule(cron="30 13 * * *", zone="Europe/Berlin", tags=("noon", "daily"), always=True),
    Schedule(on_idle=Duration(25 * MINUTE_NS), tags=("rest",)),
    Schedule(on_change_bytes=30_000, tags=("much",)),
)
SETTINGS: Final = Settings(
    keep_last=3,
    keep_hourly=Duration(6 * HOUR_NS),
    keep_daily=6,
    keep_weekly=4,
    keep_monthly=3,
    keep_tag=("kept",),
    min_age=Duration(HOUR_NS),
    zone="Europe/Berlin",
)
UNDELETE_NS: Final = HOUR_NS
FILES_MAX: Final = 6
TOO_MANY_BYTES: Final = 25_000
"""By up to so many bytes a new space limit lies below, or above, what the repository takes."""


class Wall:
    """The clock on the wall: trio's time, and what it was set to differ by. `now_ns` works in a run only."""

    def __init__(self, start_ns: int) -> None:
        self._base_ns = start_ns

    def now_ns(self) -> int:
        """See `Clock`."""
        return self._base_ns + round(trio.current_time() * SECOND_NS)

    def set(self, by_ns: int) -> None:
        """Set the clock, or let the machine sleep for so long."""
        self._base_ns += by_ns

    def end_run(self) -> None:
        """The next run begins at trio's time 0 again."""
        self._base_ns = self.now_ns()


class Still:
    """The time at which the repository was made."""

    def now_ns(self) -> int:
        """See `Clock`."""
        return 1_690_000_000 * SECOND_NS


class Tree:
    """A small directory that changes, and what it holds: the bytes of files, None for directories."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.content: dict[bytes, bytes | None] = {b"": None}

    async def change(self, m: Mounted) -> int:
        """Change something; gives how many bytes were written."""
        files = [path for path, content in self.content.items() if content is not None]
        folders = [path for path, content in self.content.items() if content is None]
        what = self._rng.choice(("put", "put", "put", "truncate", "rename", "unlink", "mkdir", "rmdir"))
        path = self._rng.choice(files) if files else b""
        if what == "truncate" and self.content[path]:
            old = self.content[path] or b""
            size = self._rng.randrange(len(old))
            await m.truncate(path, size)
            self.content[path] = old[:size]
        elif what == "rename" and files:
            new = self._new_path(folders)
            await m.rename(path, new)
            self.content[new] = self.content.pop(path)
        elif len(files) > FILES_MAX or (what == "unlink" and files):
            await m.unlink(path)
            del self.content[path]
        elif what == "mkdir" and len(folders) < 4:
            new = self._new_path(folders)
            await m.mkdir(new)
            self.content[new] = None
        elif what == "rmdir" and (empty := [f for f in folders if f and not any(p.startswith(f + b"/") for p in self.content)]):
            gone = self._rng.choice(empty)
            await m.fs.rmdir(*await m.parent(gone), WHO)
            del self.content[gone]
        else:
            return await self._put(m, path if files and self._rng.random() < 0.6 else self._new_path(folders))
        return 0

    async def _put(self, m: Mounted, path: bytes) -> int:
        old = self.content.get(path) or b""
        at = self._rng.randint(0, len(old))
        data = self._rng.randbytes(self._rng.choice((30, 700, 3000, 9000)) + self._rng.randrange(500))
        await m.put(path, data, at)
        self.content[path] = old[:at] + data + old[at + len(data) :]
        return len(data)

    def _new_path(self, folders: list[bytes]) -> bytes:
        folder = self._rng.choice(folders)
        name = b"%06x" % self._rng.randrange(1 << 24)
        return folder + b"/" + name if folder else name


@dataclass(frozen=True, slots=True)
class Copy:
    """A snapshot as it must stand: what the rules are to know of it, its name, what its files hold, and all that could be seen at its cut."""

    snapshot: Snapshot
    name: str
    content: dict[bytes, bytes | None]
    seen: dict[bytes, object]


class Machine:
    """A repository in `directory`. `stay` mounts it for some days; what `happened` is counted."""

    def __init__(self, directory: Path, seed: object, start_ns: int) -> None:
        self.root = directory / "repository"
        self.state = directory / "state"
        self.happened: Counter[str] = Counter()
        self.kept: dict[int, Copy] = {}
        self.deleted: dict[int, Copy] = {}
        self._directory = directory
        self._seed = seed
        self._rng = random.Random(f"machine/{seed}")
        self._wall = Wall(start_ns)
        self._files = UnsyncedFiles()
        self._tree = Tree(self._rng)
        self._model = ScheduleModel(())
        self._written_bytes = 0
        self._has_changed = True
        """The root is new."""
        self._changed_at_ns: int | None = None
        self._asked_ns = 0
        self._expected: list[str] | None = None
        """The tags of the snapshot that the model has taken and the scheduler is to take."""
        self._taken = trio.Event()
        """Set when that has happened."""
        self._is_busy = False
        self._was_killed = False
        self._settings = SETTINGS
        self._fs: FileSystem
        self._m: Mounted
        self._retainer: Retainer
        create_repository(
            self.root, PASSWORD, files=self._files, clock=Still(), randomness=SeededRandomness(f"create/{seed}"), kdf=KDF, compression=True
        )
        self._model.changed(start_ns, 1, 0)
        self._keys = open_store(Store(self.root), PASSWORD)

    # --- a stay -------------------------------------------------------------------------------------------------------

    async def stay(self, days: int, *, killed: bool, limited: bool = False) -> None:
        """Mounted for some days, with one space limit after another if it is `limited`; then it ends, in order or not. To be run on a clock that
        jumps, once in a run.
        """
        copied = self._directory / "killed"
        async with self._mounted() as fs:
            if self._was_killed:
                await self._compare()
            now_ns = self._wall.now_ns()
            self._model.mount(now_ns, [copy.snapshot for copy in self.kept.values()], SCHEDULES)
            schedules = [real_schedule(each) for each in SCHEDULES]
            taken = [Taken(info.time_ns, info.serial, info.why, info.tags) for info in fs.snapshots()]
            scheduler = Scheduler(schedules, initial(now_ns, schedules, taken), self, self._activity, self._take)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.run)
                for _ in range(days):
                    await self._day(limited=limited)
                    await self._compare()
                await self._until_free()
                nursery.cancel_scope.cancel()
            if killed:
                await self._kill(copied)
            else:
                self._wall.set(2 * UNDELETE_NS)
                await fs.idle()
                assert fs.deleted_snapshots() == []
                self.happened["purged"] += len(self.deleted)
                self.deleted.clear()
            self.happened["checkpoints"] = max(fs._volume.checkpoints.sequences(), default=0)
            self.happened["rewritten bytes"] += fs.upkeep.status().copied_bytes
            self._wall.end_run()
        self._was_killed = killed
        if killed:
            for place in (self.root, self.state):
                shutil.rmtree(place)
                (copied / place.name).rename(place)
            self.happened["killed"] += 1

    async def check(self) -> list[object]:
        """What a check finds. To be run as well."""
        unlocked = unlock(self.root, PASSWORD, files=self._files)
        found = check_repository(self.root, unlocked, self.state, seams=self._seams(), read_data=True, progress=lambda _done, _total: None)
        return [finding async for finding in found]

    def now_ns(self) -> int:
        """The scheduler's clock: at each look it is read first, and then the activity."""
        self._asked_ns = self._wall.now_ns()
        return self._asked_ns

    def _seams(self) -> Seams:
        self.happened["runs"] += 1
        return Seams(self._files, self._wall, SeededRandomness(f"{self._seed}/{self.happened['runs']}"), InlineOffload())

    @asynccontextmanager
    async def _mounted(self) -> AsyncIterator[FileSystem]:
        unlocked = unlock(self.root, PASSWORD, files=self._files)
        async with open_filesystem(self.root, unlocked, self.state, seams=self._seams()) as fs:
            fs.upkeep.undelete_ns = UNDELETE_NS
            self._fs, self._m = fs, Mounted(fs)
            self._retainer = Retainer(fs, fs.upkeep, self._wall, real_retention(self._settings))
            self._changed_at_ns = None
            yield fs

    async def _kill(self, to: Path) -> None:
        """Copy what a kill would leave, with whatever goes on in the background."""
        for copy in list(self.kept.values())[:3]:
            if self._may_go(copy):
                await self._delete(copy)
        await self._fs.commit()
        self._wall.set(2 * UNDELETE_NS)
        self._fs.upkeep.wake()
        for _ in range(self._rng.randrange(60)):
            await trio.lowlevel.checkpoint()
        for place in (self.root, self.state):
            shutil.copytree(place, to / place.name)

    # --- what happens -------------------------------------------------------------------------------------------------

    async def _day(self, *, limited: bool) -> None:
        """Some hours awake, with changes now and then; the night is slept through."""
        end = trio.current_time() + self._rng.uniform(2, 6) * 3600
        await self._set_policy(limited=limited)
        while trio.current_time() < end:
            if limited and self._rng.random() < 0.7:
                await self._set_policy(limited=True)
            await trio.sleep(self._rng.uniform(30, 5000))
            await self._until_free()
            self._is_busy = True
            await self._something()
            self._is_busy = False
        self._wall.set(self._rng.randint(14 * HOUR_NS, 18 * HOUR_NS))
        await trio.sleep(1)

    async def _until_free(self) -> None:
        """No snapshot is being taken, or about to be."""
        while self._expected is not None:
            await self._taken.wait()

    async def _something(self) -> None:
        what = self._rng.randrange(100)
        if what < 60:
            for _ in range(self._rng.randint(1, 5)):
                await self._change()
        elif what < 66:
            await self._cut("manual", self._rng.choice(((), ("kept",), ("hourly",))))
            self._model.taken_by_hand(self._wall.now_ns())
        elif what < 72 and self.kept:
            await self._pin_or_hold(self._rng.choice(list(self.kept.values())))
        elif what < 75 and self.kept:
            copy = self._rng.choice(list(self.kept.values()))
            if self._may_go(copy):
                await self._delete(copy)
        elif what < 81:
            await self._undelete()
        elif what < 86:
            await self._prune()
        elif what < 88:
            await self._fs.make_checkpoint()
        elif what < 91:
            self._wall.set(self._rng.choice((-1, 1)) * self._rng.randrange(2 * HOUR_NS))
            self.happened["clock set"] += 1
        else:
            self._wall.set(self._rng.randrange(6 * HOUR_NS))

    async def _change(self) -> None:
        size_bytes = await self._tree.change(self._m)
        self._changed_at_ns = self._wall.now_ns()
        self._written_bytes += size_bytes
        self._has_changed = True
        self._model.changed(self._changed_at_ns, 1, size_bytes)
        self.happened["changes"] += 1

    async def _pin_or_hold(self, copy: Copy) -> None:
        if self._rng.random() < 0.5:
            pinned = self._rng.random() < 0.4
            await self._fs.pin_snapshots([copy.name], pinned=pinned)
            changed = replace(copy.snapshot, pinned=pinned)
        else:
            end_ns = self._wall.now_ns() + self._rng.randint(-5, 20) * 6 * HOUR_NS
            await self._fs.hold_snapshots([copy.name], end_ns)
            changed = replace(copy.snapshot, hold_end_ns=end_ns)
        self.kept[changed.serial] = replace(copy, snapshot=changed)
        self.happened["pinned or held"] += 1

    def _may_go(self, copy: Copy) -> bool:
        return not copy.snapshot.pinned and (copy.snapshot.hold_end_ns or 0) <= self._wall.now_ns()

    async def _delete(self, copy: Copy) -> None:
        await self._fs.delete_snapshot(copy.name)
        self.deleted[copy.snapshot.serial] = self.kept.pop(copy.snapshot.serial)

    async def _undelete(self) -> None:
        """Delete some, and within the time for it bring them back: they are as they were."""
        chosen = [copy for copy in self.kept.values() if self._may_go(copy) and self._rng.random() < 0.3]
        for copy in chosen:
            await self._delete(copy)
        self._wall.set(self._rng.randrange(UNDELETE_NS))
        self._fs.upkeep.wake()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        for copy in chosen:
            await self._fs.undelete_snapshots([copy.name])
            self.kept[copy.snapshot.serial] = self.deleted.pop(copy.snapshot.serial)
            self.happened["undeleted"] += 1

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _activity(self) -> Activity:
        """The scheduler looks: so does the model, and what the engine tells must be what has happened."""
        assert not self._is_busy, "another seed: a look came in the middle of a change"
        assert self._expected is None, f"a snapshot with {self._expected} was due, and was not taken"
        activity = self._fs.activity()
        assert (activity.size_bytes, activity.has_changed) == (self._written_bytes, self._has_changed)
        assert activity.changed_at_ns == self._changed_at_ns
        self._expected = self._model.look(self._asked_ns)
        self._taken = trio.Event()
        self.happened["looks"] += 1
        return activity

    async def _take(self, tags: tuple[str, ...]) -> None:
        """The scheduler takes a snapshot, and retention runs."""
        assert self._expected == list(tags)
        copy = await self._cut(SCHEDULED, tags)
        assert self._asked_ns <= copy.snapshot.time_ns <= self._asked_ns + SECOND_NS
        await self._prune()
        self.happened["scheduled"] += 1
        self._expected = None
        self._taken.set()

    async def _cut(self, why: str, tags: tuple[str, ...]) -> Copy:
        info = await self._fs.create_snapshot(why, tags=tags)
        snapshot = Snapshot(info.serial, info.time_ns, tags, by_schedule=why == SCHEDULED)
        copy = Copy(snapshot, info.name, dict(self._tree.content), await self._m.tree())
        self.kept[info.serial] = copy
        self._written_bytes, self._has_changed = 0, False
        self.happened["taken"] += 1
        return copy

    async def _set_policy(self, *, limited: bool) -> None:
        """Somebody sets the policy, with a space limit that is reached or soon will be, or without one."""
        settings = SETTINGS
        if limited:
            limit_bytes = (await self._space()).used_bytes - self._rng.randrange(-TOO_MANY_BYTES, TOO_MANY_BYTES)
            fraction = self._rng.choice((Fraction(1), Fraction(1), Fraction(3, 10)))
            settings = replace(SETTINGS, space_limit_bytes=limit_bytes, max_delete_fraction=fraction)
        await self._until_free()
        self._settings = settings
        self._retainer.retention = real_retention(settings)

    async def _space(self) -> Space:
        """What the files say when nothing goes on in the background any more; nothing will until something else is done."""
        await self._fs.commit()
        await self._fs.idle()
        await wait_all_tasks_blocked()
        return Space(self.root, self._keys)

    async def _prune(self) -> None:
        """Retention runs: it decides with what the engine shows and counts, the model with what the test has kept and counts in the files."""
        settings, kept = self._settings, [copy.snapshot for copy in self.kept.values()]
        space = None if settings.space_limit_bytes is None else await self._space()
        too_many = 0 if space is None else excess_bytes(settings, space.used_bytes, 0, 0)
        now_ns = self._wall.now_ns()
        expected = fates(kept, settings, now_ns, too_many, _nothing if space is None else space.frees)
        gone = {serial for serial, stays in expected.items() if not stays}
        if space is not None:
            marked = {info.serial for info in self._fs.deleted_snapshots()}
            reckoned, counted = await self._fs.reckoner.frees(marked | gone), space.purged_bytes(gone)
            assert reckoned == counted, f"purging {marked | gone} is reckoned to free {reckoned} bytes, not {counted}"
        plan = await self._retainer.apply()
        assert plan.excess_bytes == too_many, f"{plan.excess_bytes} bytes are too many, not {too_many}"
        decided = {fate.serial: fate.keep for fate in plan.fates}
        assert decided == expected, f"{[fate.serial for fate in plan.deleted]} go, not {sorted(gone)}"
        if space is not None and too_many:
            by_rules = {serial for serial, stays in fates(kept, settings, now_ns, 0, _nothing).items() if not stays}
            self._count_limit(by_rules, gone, too_many, space.frees(gone))
        for serial in gone:
            self.deleted[serial] = self.kept.pop(serial)
        self.happened["deleted by retention"] += len(gone)

    def _count_limit(self, by_rules: set[int], gone: set[int], too_many: int, freed_bytes: int) -> None:
        """The ways in which a run under a space limit ends."""
        self.happened["thinned by the space limit"] += len(gone - by_rules)
        if freed_bytes < too_many:
            self.happened["runs that could not free enough"] += 1
        elif gone == by_rules:
            self.happened["runs in which enough came back by itself"] += 1
        else:
            self.happened["runs that were thinned until it was enough"] += 1

    # --- what must stand ----------------------------------------------------------------------------------------------

    async def _compare(self) -> None:
        """Exactly these snapshots stand, each as it was, and the present."""
        await self._until_free()
        self._is_busy = True
        shown, expected = [_facts(info) for info in self._fs.snapshots()], sorted(_facts_of(copy) for copy in self.kept.values())
        assert shown == expected, f"there are {shown}\ninstead of {expected}"
        names = await self._m.names(b".snapshots")
        assert set(names) - {b"latest"} == {copy.name.encode() for copy in self.kept.values()}
        assert {info.serial for info in self._fs.deleted_snapshots()} <= self.deleted.keys()
        for copy in self.kept.values():
            found = await self._m.tree(b".snapshots/" + copy.name.encode())
            assert _contents(found) == copy.content, copy.name
            assert found == copy.seen, copy.name
            self.happened["trees compared"] += 1
        assert _contents(await self._m.tree()) == self._tree.content
        self._is_busy = False


def _nothing(_: set[int]) -> int:
    return 0


def _facts(info: SnapshotInfo) -> tuple[object, ...]:
    return info.serial, info.time_ns, info.name, tuple(info.tags), info.why == SCHEDULED, info.pinned, info.hold_until_ns or 0


def _facts_of(copy: Copy) -> tuple[object, ...]:
    s = copy.snapshot
    return s.serial, s.time_ns, copy.name, s.tags, s.by_schedule, s.pinned, s.hold_end_ns or 0


def _contents(seen: dict[bytes, object]) -> dict[bytes, bytes | None]:
    found: dict[bytes, bytes | None] = {}
    for path, facts in seen.items():
        assert isinstance(facts, tuple)
        found[path] = facts[-1] if isinstance(facts[-1], bytes) else None
    return found
