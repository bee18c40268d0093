"""Snapshots: named epochs. Taking one is a row and the next epoch; deleting one is a mark; purging drops what only it could see.

Purging visits the `changes` between the snapshot and the next kept one, in steps, and reads previous and next anew at every step: snapshots may
be taken and deleted meanwhile. It begins when the index has applied everything written before the mark, so the rows it walks are complete:
what is written later already follows the rules without this snapshot.
"""

import errno
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from msgspec.structs import replace

from backupfs import limits
from backupfs.catalog.catalog import Catalog
from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import FileSystemError, UsageError
from backupfs.format import catalog as records
from backupfs.format.catalog import Snapshot, SnapshotState, Table, number_key
from backupfs.rules.names import snapshot_name

_STATE_NAMES = {SnapshotState.KEPT: "kept", SnapshotState.DELETED: "deleted", SnapshotState.PURGING: "purging"}


@dataclass(frozen=True, slots=True)
class Gap:
    """Between two neighbours of `kept`: snapshots that would go, the first of them at epoch `first`; changes up to `last` may have replaced what only
    they see. Epochs of those among them that are `asked` for, in order: of the others it is known that they go.
    """

    kept: list[int]
    asked: list[int]
    first: int
    last: int

    @property
    def previous(self) -> int:
        """The kept epoch before it; 0 when there is none."""
        place = bisect_left(self.kept, self.first)
        return self.kept[place - 1] if place else 0

    def sees_nothing_of(self, older: int, newer: int) -> bool:
        """Whether a version of epoch `older`, replaced at `newer`, would be seen by no snapshot that is kept."""
        return bisect_left(self.kept, older) == bisect_left(self.kept, newer)

    def is_asked_for(self, older: int, newer: int) -> bool:
        """Whether one of the snapshots that are asked for sees that version."""
        return bisect_left(self.asked, older) != bisect_left(self.asked, newer)


class Snapshots:
    """The table of snapshots, in memory and in the catalog. Every function is atomic."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._by_serial: dict[int, Snapshot] = {
            records.number_of(key): records.decode_snapshot(value) for key, value in catalog.rows(Table.SNAPSHOTS)
        }
        self._by_name: dict[str, int] = {}
        self.in_use: Counter[int] = Counter()
        """Serials of snapshots that somebody reads for longer than a step: they are not purged meanwhile."""
        self._given_up: set[int] = set()
        """Serials of deleted snapshots whose time to be brought back the owner has ended."""
        self._refresh()

    def take(self, serial: int, time_ns: int, name: str, why: str, message: str, tags: Sequence[str], before_restore: bytes = b"") -> SnapshotInfo:
        """Add a snapshot of the current epoch, which ends with it. The caller freezes a batch in the same step."""
        catalog = self._catalog
        snapshot = Snapshot(
            catalog.epoch,
            time_ns,
            name,
            SnapshotState.KEPT,
            why,
            message,
            list(tags),
            catalog.changed_in_epoch,
            before_restore=before_restore,
        )
        self._put(serial, snapshot)
        catalog.epoch += 1
        catalog.changed_in_epoch = 0
        self._refresh()
        return self._info(serial)

    def new_name(self, serial: int, time_ns: int) -> str:
        """A name for the snapshot of that number, taken now: none that another has, or has had. It counts as given."""
        known = self._catalog.get(Table.META, records.META_LAST_NAME)
        greatest = "" if known is None else known.decode()
        name = snapshot_name(time_ns, serial, greatest)
        self._catalog.put(Table.META, records.META_LAST_NAME, max(name, greatest).encode())
        return name

    def claim_name(self, name: str, prf: bytes) -> str:
        """Take a name that a person chose, for ever. As `check_unclaimed` when that is not possible; `prf` stands for the name."""
        self.check_unclaimed(name, prf)
        self._catalog.put(Table.META, records.META_NAME_PREFIX + prf, records.encode(0))
        return name

    def check_unclaimed(self, name: str, prf: bytes) -> None:
        """FileSystemError EEXIST when a snapshot has, or has had, that name."""
        if any(s.name == name for s in self._by_serial.values()) or self._catalog.get(Table.META, records.META_NAME_PREFIX + prf) is not None:
            raise FileSystemError(errno.EEXIST)

    def delete(self, names: Iterable[str], now_ns: int) -> None:
        """Mark snapshots deleted: all, or none when there is no such one, or one is pinned or held, which UsageError says."""
        for serial in [self._deletable(name, now_ns) for name in names]:
            self._put(serial, replace(self._by_serial[serial], state=SnapshotState.DELETED, deleted_ns=now_ns))
        self._refresh()

    def check_deletable(self, names: Iterable[str], now_ns: int) -> None:
        """UsageError as `delete` would raise it."""
        for name in names:
            self._deletable(name, now_ns)

    def deleted_by(self, now_ns: int) -> None:
        """No snapshot has been deleted later than now, whatever the clock said then."""
        for serial in self.deleted_later(now_ns):
            self._put(serial, replace(self._by_serial[serial], deleted_ns=now_ns))

    def deleted_later(self, now_ns: int) -> list[int]:
        """Serials of those that were deleted later than now, as the clock said then."""
        return [s for s, snapshot in self._by_serial.items() if snapshot.state == SnapshotState.DELETED and snapshot.deleted_ns > now_ns]

    def undelete(self, names: Iterable[str]) -> None:
        """Bring deleted snapshots back: all, or none when it is too late for one, which UsageError says."""
        for serial in [self._undeletable(name) for name in names]:
            self._put(serial, replace(self._by_serial[serial], state=SnapshotState.KEPT, deleted_ns=0))
            self._given_up.discard(serial)
        self._refresh()

    def give_up_deleted(self) -> None:
        """Of all that are marked deleted now, the time to be brought back is over. Not on record: it holds until the process ends."""
        self._given_up.update(s for s, snapshot in self._by_serial.items() if snapshot.state == SnapshotState.DELETED)

    def _deletable(self, name: str, now_ns: int) -> int:
        serial = self._shown(name)
        snapshot = self._by_serial[serial]
        if snapshot.pinned:
            raise UsageError(f"snapshot {name} is pinned; `backupfs snapshot unpin` lets go of it")
        if snapshot.hold_until_ns > now_ns:
            raise UsageError(f"snapshot {name} is held; `backupfs snapshot hold --release` lets go of it")
        return serial

    def _undeletable(self, name: str) -> int:
        for serial, snapshot in self._by_serial.items():
            if snapshot.name == name and snapshot.state == SnapshotState.DELETED:
                return serial
            if snapshot.name == name and snapshot.state == SnapshotState.PURGING:
                raise UsageError(f"snapshot {name} is being purged: it cannot be brought back any more")
        if name in self._by_name:
            raise UsageError(f"snapshot {name} is not deleted")
        raise UsageError(f"there is no deleted snapshot {name!r}; `backupfs snapshot list --deleted` shows them")

    def pin(self, names: Iterable[str], pinned: bool) -> None:
        """Keep snapshots until they are unpinned: all, or none when there is no such one, which UsageError says."""
        for serial in list(map(self._shown, names)):
            self._put(serial, replace(self._by_serial[serial], pinned=pinned))

    def hold(self, names: Iterable[str], until_ns: int) -> None:
        """Keep snapshots until a time: all, or none as for `pin`; 0 ends the hold. UsageError for a time that no record can say."""
        if until_ns > limits.TIME_MAX_NS:
            raise UsageError("a snapshot can be held until the year 2554; `backupfs snapshot pin` keeps it without an end")
        for serial in list(map(self._shown, names)):
            self._put(serial, replace(self._by_serial[serial], hold_until_ns=until_ns))

    def begin_purge(self, serial: int) -> None:
        """From here on the snapshot no longer counts as kept, and no longer shows."""
        self._put(serial, replace(self._by_serial[serial], state=SnapshotState.PURGING))
        self._refresh()

    def purge_step(self, serial: int, start: bytes) -> tuple[int, bytes | None]:
        """Drop what only this snapshot saw, among some of the changes from `start` on. Gives how many were looked at, and where to go on or None at
        the end.
        """
        catalog = self._catalog
        epoch = self._by_serial[serial].epoch
        kept = catalog.kept_epochs
        place = bisect_left(kept, epoch)
        previous = kept[place - 1] if place else 0
        following = kept[place] if place < len(kept) else catalog.epoch
        start = start or records.change_key(epoch + 1, 0, b"")
        keys = catalog.applied_changes(start, following, limits.PURGE_RECORDS_PER_STEP)
        for key in keys:
            _, table, object_key = records.split_change(key)
            self._purge_object(Table(table), object_key, previous, following)
        return len(keys), None if len(keys) < limits.PURGE_RECORDS_PER_STEP else keys[-1] + b"\0"

    def would_drop(self, serials: Collection[int], beyond: Collection[int] = ()) -> "list[Gap]":
        """What purging these snapshots (all at once, and with them those of `beyond`, which are not asked for) would have to look at: a range of
        changes for each run of them that no kept one interrupts.
        """
        asked = self._epochs(serials)
        going = asked | self._epochs(beyond)
        kept = [epoch for epoch in self._catalog.kept_epochs if epoch not in going]
        gaps: dict[int, Gap] = {}
        for epoch in sorted(going):
            place = bisect_left(kept, epoch)
            if place not in gaps:
                gaps[place] = Gap(kept, [], epoch, kept[place] if place < len(kept) else self._catalog.epoch)
            if epoch in asked:
                gaps[place].asked.append(epoch)
        return list(gaps.values())

    def _epochs(self, serials: Collection[int]) -> set[int]:
        """Of those that there are."""
        return {self._by_serial[serial].epoch for serial in serials if serial in self._by_serial}

    def end_purge(self, serial: int) -> None:
        """The snapshot is gone."""
        del self._by_serial[serial]
        self._given_up.discard(serial)
        self._catalog.put(Table.SNAPSHOTS, number_key(serial), None)
        self._refresh()

    def to_purge(self, deleted_by_ns: int) -> list[int]:
        """Serials of snapshots that are half purged, were marked deleted at that time or before, or given up, oldest first."""
        return [
            s
            for s, snapshot in sorted(self._by_serial.items())
            if snapshot.state == SnapshotState.PURGING
            or (snapshot.state == SnapshotState.DELETED and (snapshot.deleted_ns <= deleted_by_ns or s in self._given_up) and not self.in_use[s])
        ]

    def deleted(self) -> list[SnapshotInfo]:
        """Snapshots that are marked deleted or being purged, oldest first."""
        return [self._info(s) for s, snapshot in sorted(self._by_serial.items()) if snapshot.state != SnapshotState.KEPT]

    def uncounted(self) -> int | None:
        """Serial of the oldest kept snapshot whose changes have not been counted."""
        return next((s for s, snapshot in sorted(self._by_serial.items()) if not snapshot.counted and snapshot.state == SnapshotState.KEPT), None)

    @contextmanager
    def reading(self, *serials: int) -> Iterator[None]:
        """None of these snapshots is purged within; 0 is the present. FileSystemError ESTALE when one is no longer whole."""
        for serial in serials:
            if serial:
                self.epoch_of(serial)
        self.in_use.update(serials)
        try:
            yield
        finally:
            self.in_use.subtract(serials)

    def set_counts(self, serial: int, made: int, altered: int, removed: int) -> None:
        """Note how many inodes were made, altered and removed since the snapshot before."""
        snapshot = self._by_serial.get(serial)
        if snapshot is not None:
            self._put(serial, replace(snapshot, counted=True, made=made, altered=altered, removed=removed))

    def before_restore(self) -> list[tuple[int, bytes]]:
        """(serial, path) of the kept snapshots that were taken before something was restored, oldest first."""
        kept = [(s, snapshot) for s, snapshot in sorted(self._by_serial.items()) if snapshot.state == SnapshotState.KEPT]
        return [(s, snapshot.before_restore) for s, snapshot in kept if snapshot.before_restore]

    @property
    def shown_count(self) -> int:
        """How many are shown."""
        return len(self._by_name)

    def kept(self) -> list[SnapshotInfo]:
        """Snapshots that are shown, oldest first."""
        return [self._info(s) for s, snapshot in sorted(self._by_serial.items()) if snapshot.state == SnapshotState.KEPT]

    def info(self, serial: int) -> SnapshotInfo:
        """One snapshot, as it is shown."""
        return self._info(serial)

    def serial_of(self, name: str) -> int | None:
        """Serial of the shown snapshot of that name."""
        return self._by_name.get(name)

    def latest_name(self) -> str | None:
        """Name of the newest one that is shown."""
        newest = max(self._by_name.values(), default=None)
        return None if newest is None else self._by_serial[newest].name

    def name_of(self, serial: int) -> str:
        """Name of a snapshot; ENOENT when there is none of that number any more."""
        snapshot = self._by_serial.get(serial)
        if snapshot is None:
            raise FileSystemError(errno.ENOENT)
        return snapshot.name

    def newest_of_second(self, second: int) -> int | None:
        """Serial of the newest shown snapshot that was taken in this second since 1970 UTC."""
        return max((s for s in self._by_name.values() if self._by_serial[s].time_ns // 1_000_000_000 == second), default=None)

    def epoch_of(self, serial: int) -> int:
        """The epoch that a view of this snapshot reads at; ESTALE when it is no longer whole."""
        snapshot = self._by_serial.get(serial)
        if snapshot is None or snapshot.state == SnapshotState.PURGING:
            raise FileSystemError(errno.ESTALE)
        return snapshot.epoch

    def time_of(self, serial: int) -> int:
        """When it was taken."""
        return self._by_serial[serial].time_ns

    def _purge_object(self, table: Table, object_key: bytes, previous: int, following: int) -> None:
        """Drop the versions of an object that no kept snapshot sees and that something newer, up to `following`, has replaced."""
        catalog = self._catalog
        kept = catalog.kept_epochs
        versions = catalog.versions_down_to(table, object_key, following, previous)
        # From the oldest on: what is next newer is there still when one goes.
        for (newer, _), (older, value) in reversed(list(pairwise(versions))):
            if older > previous and bisect_left(kept, older) == bisect_left(kept, newer):
                catalog.drop_version(table, object_key, older, value, newer)

    def _put(self, serial: int, snapshot: Snapshot) -> None:
        self._by_serial[serial] = snapshot
        self._catalog.put(Table.SNAPSHOTS, number_key(serial), records.encode_snapshot(snapshot))

    def _refresh(self) -> None:
        counting = sorted(s.epoch for s in self._by_serial.values() if s.state != SnapshotState.PURGING)
        self._catalog.kept_epochs = tuple(counting)
        self._catalog.newest_kept = counting[-1] if counting else 0
        self._by_name = {s.name: n for n, s in self._by_serial.items() if s.state == SnapshotState.KEPT}

    def _info(self, serial: int) -> SnapshotInfo:
        s = self._by_serial[serial]
        state = _STATE_NAMES[SnapshotState(s.state)]
        counts = (s.made, s.altered, s.removed) if s.counted else (None, None, None)
        return SnapshotInfo(
            serial, s.name, s.time_ns, s.why, s.message, s.tags, s.changes, state, s.pinned, s.hold_until_ns or None, s.deleted_ns or None, *counts
        )

    def _shown(self, name: str) -> int:
        serial = self._by_name.get(name)
        if serial is None:
            raise UsageError(f"there is no snapshot {name!r}; `backupfs snapshot list` shows them")
        return serial
