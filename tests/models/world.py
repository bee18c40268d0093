"""What the events of `years.py` happen to: the snapshots that there are, and the space that they take.

`live` leads one or several sets of rules through the same events and compares what they decide. The world does what all of them say; as soon as two
differ it stops with `Disagreement`. It knows none of the rules itself.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from tests.models.snapshot_rules import HOUR_NS, Schedule, ScheduleModel, Settings, Snapshot, excess_bytes, fates
from tests.models.years import (
    Changed,
    ClockSet,
    Deleted,
    Event,
    Held,
    Looked,
    Mounted,
    Pinned,
    PolicyChanged,
    Pruned,
    Slept,
    TakenByHand,
    Undeleted,
)

T = TypeVar("T")

UNDELETE_NS = HOUR_NS
DISK_BYTES = 5000 * 2**20
LIVE_DATA = 20  # pieces of data that the mounted directory consists of; with each snapshot one of the older ones has been overwritten
TOLD = 12  # events that a disagreement shows


class Rules(Protocol):
    """Rules for taking and keeping snapshots: the model, or an adapter of the real ones."""

    def mount(self, now_ns: int, snapshots: Sequence[Snapshot], schedules: tuple[Schedule, ...]) -> None:
        """Begin with these schedules. What had changed since the last snapshot is still changed."""

    def changed(self, now_ns: int, records: int, size_bytes: int) -> None:
        """So much has changed."""

    def taken_by_hand(self, now_ns: int) -> None:
        """Somebody has taken a snapshot."""

    def look(self, now_ns: int, *, fails: bool) -> list[str] | None:
        """The tags of the snapshot that is due, or None. With `fails` the attempt to take it fails."""

    def excess_bytes(self, settings: Settings, used_bytes: int, free_bytes: int, total_bytes: int) -> int:
        """How many bytes are too many. `used` is what the repository takes, the others are of its disk."""

    def fates(
        self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Callable[[set[int]], int]
    ) -> dict[int, bool]:
        """For each serial, whether the snapshot stays."""


class ModelRules:
    """The rules as the model has them."""

    def __init__(self) -> None:
        self._schedules = ScheduleModel(())

    def mount(self, now_ns: int, snapshots: Sequence[Snapshot], schedules: tuple[Schedule, ...]) -> None:
        self._schedules.mount(now_ns, snapshots, schedules)

    def changed(self, now_ns: int, records: int, size_bytes: int) -> None:
        self._schedules.changed(now_ns, records, size_bytes)

    def taken_by_hand(self, now_ns: int) -> None:
        self._schedules.taken_by_hand(now_ns)

    def look(self, now_ns: int, *, fails: bool) -> list[str] | None:
        return self._schedules.look(now_ns, fails=fails)

    def is_any_due(self, now_ns: int) -> bool:
        return self._schedules.is_any_due(now_ns)

    def excess_bytes(self, settings: Settings, used_bytes: int, free_bytes: int, total_bytes: int) -> int:
        return excess_bytes(settings, used_bytes, free_bytes, total_bytes)

    def fates(
        self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Callable[[set[int]], int]
    ) -> dict[int, bool]:
        return fates(snapshots, settings, now_ns, too_many, frees)


class Disagreement(AssertionError):
    """Two sets of rules decide differently."""


@dataclass(slots=True)
class _Data:
    """Bytes that the snapshots from `first` to `last` see; the directory itself still has them while `last` is None."""

    first: int
    last: int | None
    size_bytes: int


@dataclass(slots=True)
class World:
    """The snapshots by serial, the policy, the data."""

    kept: dict[int, Snapshot] = field(default_factory=dict)
    deleted: dict[int, tuple[Snapshot, int]] = field(default_factory=dict)  # and when it was marked
    settings: Settings = field(default_factory=Settings)
    last_serial: int = 0
    unsaved_bytes: int = 0
    data: list[_Data] = field(default_factory=list)
    pruned: frozenset[int] = frozenset()  # the serials that retention deleted at the last event

    def take(self, now_ns: int, tags: Iterable[str], *, by_schedule: bool) -> None:
        self.last_serial += 1
        self.kept[self.last_serial] = Snapshot(self.last_serial, now_ns, tuple(tags), by_schedule=by_schedule)
        live = [data for data in self.data if data.last is None]
        if len(live) >= LIVE_DATA:
            live[self.last_serial * 7919 % len(live)].last = self.last_serial - 1
        self.data.append(_Data(self.last_serial, None, self.unsaved_bytes))
        self.unsaved_bytes = 0

    def delete(self, now_ns: int, serials: Iterable[int]) -> None:
        for serial in serials:
            self.deleted[serial] = self.kept.pop(serial), now_ns

    def undelete(self, serial: int) -> None:
        self.kept[serial], _ = self.deleted.pop(serial)

    def purge(self, now_ns: int) -> None:
        """What was marked deleted an hour ago is gone, and with it the data that nobody else sees."""
        for serial in [serial for serial, (_, marked_ns) in self.deleted.items() if marked_ns + UNDELETE_NS <= now_ns]:
            del self.deleted[serial]
        seers = sorted({*self.kept, *self.deleted})
        self.data = [data for data in self.data if _is_seen(data, seers)]

    def frees(self, serials: set[int]) -> int:
        """How many bytes purging these frees, together with all that are deleted already."""
        seers = sorted(set(self.kept) - serials)
        return sum(data.size_bytes for data in self.data if not _is_seen(data, seers))

    def space(self) -> tuple[int, int, int]:
        """The bytes that the repository takes, that are free on its disk, and that it has."""
        used_bytes = sum(data.size_bytes for data in self.data)
        return used_bytes, max(0, DISK_BYTES - used_bytes), DISK_BYTES


def _is_seen(data: _Data, seers: list[int]) -> bool:
    if data.last is None:
        return True
    at = bisect_left(seers, data.first)
    return at < len(seers) and seers[at] <= data.last


def live(events: Iterable[Event], rules: Sequence[Rules]) -> Iterator[tuple[Event, World]]:
    """Let the events happen, and yield after each of them; retention also runs after every scheduled run that took a snapshot."""
    world, told = World(), deque[str](maxlen=TOLD)

    def agreed(decisions: list[T]) -> T:
        for other in decisions[1:]:
            if other != decisions[0]:
                raise Disagreement("\n".join(["", *told, f"first: {decisions[0]}", f"other: {other}"]))
        return decisions[0]

    def prune(now_ns: int) -> None:
        world.purge(now_ns)
        snapshots, settings = list(world.kept.values()), world.settings
        too_many = agreed([each.excess_bytes(settings, *world.space()) for each in rules])
        told.append(f"  prune at {now_ns}, {too_many} bytes too many, {settings}")
        stay = agreed([each.fates(snapshots, settings, now_ns, too_many, world.frees) for each in rules])
        world.pruned = frozenset(serial for serial, stays in stay.items() if not stays)
        world.delete(now_ns, sorted(world.pruned))

    for event in events:
        told.append(repr(event))
        world.pruned = frozenset()
        match event:
            case Mounted(now_ns, schedules):
                for each in rules:
                    each.mount(now_ns, list(world.kept.values()), schedules)
            case Changed(now_ns, records, size_bytes):
                world.unsaved_bytes += size_bytes
                for each in rules:
                    each.changed(now_ns, records, size_bytes)
            case Looked(now_ns, fails):
                tags = agreed([each.look(now_ns, fails=fails) for each in rules])
                if tags is not None and not fails:
                    told.append(f"  taken: {world.last_serial + 1} {tags}")
                    world.take(now_ns, tags, by_schedule=True)
                    prune(now_ns)
            case TakenByHand(now_ns, its_tags):
                world.take(now_ns, its_tags, by_schedule=False)
                for each in rules:
                    each.taken_by_hand(now_ns)
            case Pinned(_, pick, pinned):
                if world.kept:
                    snapshot = _picked(list(world.kept.values()), pick)
                    world.kept[snapshot.serial] = replace(snapshot, pinned=pinned)
            case Held(_, pick, hold_end_ns):
                if world.kept:
                    snapshot = _picked(list(world.kept.values()), pick)
                    world.kept[snapshot.serial] = replace(snapshot, hold_end_ns=hold_end_ns)
            case Deleted(now_ns, pick):
                if world.kept:
                    world.delete(now_ns, [_picked(list(world.kept), pick)])
            case Undeleted(_, pick):
                if world.deleted:
                    world.undelete(_picked(list(world.deleted), pick))
            case PolicyChanged(_, settings):
                world.settings = settings
            case Pruned(now_ns):
                prune(now_ns)
            case Slept() | ClockSet():
                pass
        yield event, world


def _picked(among: list[T], pick: int) -> T:
    return among[pick % len(among)]
