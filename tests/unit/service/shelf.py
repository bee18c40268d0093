"""An engine of snapshots that hold blobs of some sizes, and nothing else: what deleting some frees is counted over and over."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import trio
from msgspec.structs import replace

from backupfs.engine.attributes import SnapshotInfo, Stats, UpkeepStatus, Usage
from backupfs.engine.collecting import Survey
from backupfs.engine.seams import Progress, unwatched
from backupfs.errors import UsageError
from backupfs.rules.collection import CollectionPlan, PackUse

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS


def unheard(_: int) -> None:
    """For whoever does not want to know how far it is."""


NOTHING_USED = Usage(0, 0, 0, 0, 0, 0)


@dataclass
class Wall:
    """The time of day: trio's time plus what it was set to differ by."""

    time: Callable[[], float] = trio.current_time
    offset_ns: int = 50 * 365 * DAY_NS

    def now_ns(self) -> int:
        return round(self.time() * 10**6) * 1000 + self.offset_ns


@dataclass
class FakeUpkeep:
    """Purges and collects when it is told to."""

    shelf: "FakeShelf"
    undelete_ns: int = HOUR_NS
    dead_bytes: int = 0
    woken: int = 0
    collected: list[tuple[bool, bool]] = field(default_factory=list)
    asked_soon: int = 0
    waiting_bytes: int = 0
    purged_records: int = 0
    stopped: bool = False
    work: Callable[[], Awaitable[None]] | None = None

    def wake(self) -> None:
        self.woken += 1

    async def survey(self, *, thorough: bool, progress: Progress = unwatched) -> Survey:
        assert thorough
        progress(1, 1)
        await trio.sleep(self.shelf.pause_s)
        plan = CollectionPlan((PackUse(1, 3 * self.dead_bytes, 2 * self.dead_bytes),) if self.dead_bytes else ())
        return Survey(10 * self.dead_bytes, self.dead_bytes, plan)

    def collect_soon(self) -> None:
        self.asked_soon += 1

    async def collect_now(self, *, purge_deleted: bool, thorough: bool) -> None:
        self.collected.append((purge_deleted, thorough))
        if self.work is not None:
            await self.work()
        if purge_deleted:
            self.shelf.deleted.clear()
        self.shelf.used = replace(self.shelf.used, packs_bytes=self.shelf.used.packs_bytes - self.dead_bytes)
        self.dead_bytes = 0

    def status(self) -> UpkeepStatus:
        return UpkeepStatus(len(self.shelf.deleted), 0, 0, bool(self.waiting_bytes), self.waiting_bytes, 0, 0, self.purged_records, self.stopped)


@dataclass
class FakeShelf:
    """`holds` are the blobs of each snapshot by serial, `sizes` their bytes; `live` are those that the present holds."""

    clock: Wall = field(default_factory=Wall)
    kept: list[SnapshotInfo] = field(default_factory=list)
    deleted: list[SnapshotInfo] = field(default_factory=list)
    holds: dict[int, set[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)
    used: Usage = NOTHING_USED
    free_bytes: int = 0
    pause_s: float = 0
    asked: list[set[int]] = field(default_factory=list)
    meanwhile: list[Callable[[], object]] = field(default_factory=list)
    """Each happens once, while it is reckoned."""
    failures: list[Exception] = field(default_factory=list)
    upkeep: FakeUpkeep = field(init=False)
    reckoner: "FakeShelf" = field(init=False)

    def __post_init__(self) -> None:
        self.upkeep = FakeUpkeep(self)
        self.reckoner = self

    def add(self, age_ns: int, name: str = "", holds: str = "", tags: Sequence[str] = (), serial: int = 0) -> SnapshotInfo:
        """A snapshot of so long ago; `holds` are the letters of its blobs, each of a size of its own."""
        serial = serial or max([0, *(info.serial for info in (*self.kept, *self.deleted))]) + 1
        info = SnapshotInfo(serial, name or f"s{serial}", self.clock.now_ns() - age_ns, "manual", "", list(tags), 0, "kept")
        self.kept.append(info)
        self.holds[serial] = set(holds)
        for blob in holds:
            self.sizes.setdefault(blob, 2 ** (ord(blob) - ord("a")))
        return info

    def change(self, name: str, **fields: object) -> None:
        """Let a kept snapshot be another one."""
        self.kept = [replace(info, **fields) if info.name == name else info for info in self.kept]

    async def records(self, serials: Collection[int], beyond: Collection[int] = ()) -> int:
        await trio.lowlevel.checkpoint()
        return 10 * len(serials)

    async def frees(self, serials: Collection[int], looked_at: Callable[[int], None] = unheard, beyond: Collection[int] = ()) -> int:
        self.asked.append(set(serials))
        for _ in serials:
            looked_at(10)
        await trio.sleep(self.pause_s)
        await trio.lowlevel.checkpoint()
        while self.meanwhile:
            self.meanwhile.pop(0)()
        return self._alone({*serials, *beyond}) - self._alone(beyond)

    def _alone(self, serials: Collection[int]) -> int:
        others = [self.holds[info.serial] for info in (*self.kept, *self.deleted) if info.serial not in serials]
        gone: set[str] = set().union(*(self.holds[serial] for serial in serials)).difference(self.live, *others)
        return sum(self.sizes[blob] for blob in gone)

    def snapshots(self) -> Sequence[SnapshotInfo]:
        return list(self.kept)

    def deleted_snapshots(self) -> Sequence[SnapshotInfo]:
        return list(self.deleted)

    def check_deletable(self, names: Iterable[str]) -> None:
        for name in names:
            (info,) = [info for info in self.kept if info.name == name]
            if info.pinned:
                raise UsageError(f"{name} is pinned")

    async def delete_snapshots(self, names: Iterable[str]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        wanted = list(names)
        self.check_deletable(wanted)
        gone = [replace(info, state="deleted", deleted_ns=self.clock.now_ns()) for info in self.kept if info.name in wanted]
        self.kept = [info for info in self.kept if info.name not in wanted]
        self.deleted += gone
        await trio.lowlevel.checkpoint()

    async def undelete_snapshots(self, names: Iterable[str]) -> None:
        wanted = set(names)
        self.kept = sorted(
            [*self.kept, *(replace(info, state="kept", deleted_ns=None) for info in self.deleted if info.name in wanted)],
            key=lambda info: info.serial,
        )
        self.deleted = [info for info in self.deleted if info.name not in wanted]

    async def pin_snapshots(self, names: Iterable[str], *, pinned: bool) -> None:
        for name in names:
            self.change(name, pinned=pinned)

    async def hold_snapshots(self, names: Iterable[str], until_ns: int) -> None:
        for name in names:
            self.change(name, hold_until_ns=until_ns or None)

    def stats(self) -> Stats:
        return Stats(len(self.kept), 0, 0, self.free_bytes, 1000, 0, 0, 0, 0, 0, 0)

    async def usage(self) -> Usage:
        await trio.lowlevel.checkpoint()
        return self.used

    def names(self) -> list[str]:
        return [info.name for info in self.kept]
