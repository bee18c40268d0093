"""Snapshots: named epochs. Taking one is a row and the next epoch; deleting one is a mark; purging drops what only it could see.

Purging visits the `changes` between the snapshot and the next kept one, in steps, and reads previous and next anew at every step: snapshots may
be taken and deleted meanwhile. It begins when the index has applied everything written before the mark, so the rows it walks are complete:
what is written later already follows the rules without this snapshot.
"""

import errno
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from backupfs import limits
from backupfs.catalog.catalog import Catalog
from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import FileSystemError, UsageError
from backupfs.format import catalog as records
from backupfs.format.catalog import Snapshot, SnapshotState, Table, number_key
from backupfs.rules.names import snapshot_name, utc_second

_STATE_NAMES = {SnapshotState.KEPT: "kept", SnapshotState.DELETED: "deleted", SnapshotState.PURGING: "purging"}


class Snapshots:
    """The table of snapshots, in memory and in the catalog. Every function is atomic."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._by_serial: dict[int, Snapshot] = {
            records.number_of(key): records.decode_snapshot(value) for key, value in catalog.rows(Table.SNAPSHOTS)
        }
        self._by_name: dict[str, int] = {}
        self._refresh()

    def take(self, serial: int, time_ns: int, name: str, why: str, message: str, tags: Sequence[str]) -> SnapshotInfo:
        """Add a snapshot of the current epoch, which ends with it. The caller freezes a batch in the same step."""
        catalog = self._catalog
        snapshot = Snapshot(catalog.epoch, time_ns, name, SnapshotState.KEPT, why, message, list(tags), catalog.changed_in_epoch)
        self._put(serial, snapshot)
        catalog.put(Table.META, records.META_LAST_NAME, name.encode())
        catalog.epoch += 1
        catalog.changed_in_epoch = 0
        self._refresh()
        return self._info(serial)

    def new_name(self, time_ns: int) -> str:
        """A name for a snapshot taken now: none that is in use, and none that a snapshot of this second has had."""
        taken = {snapshot.name for snapshot in self._by_serial.values()}
        last = self._catalog.get(Table.META, records.META_LAST_NAME)
        name = snapshot_name(time_ns, taken)
        while last is not None and name.startswith(last.decode()[: len(utc_second(time_ns))]) and name <= last.decode():
            taken.add(name)
            name = snapshot_name(time_ns, taken)
        return name

    def delete(self, name: str) -> int:
        """Mark a snapshot deleted; gives its serial."""
        serial = self._by_name.get(name)
        if serial is None:
            raise UsageError(f"there is no snapshot {name!r}; `backupfs snapshot list` shows them")
        old = self._by_serial[serial]
        self._put(serial, _with_state(old, SnapshotState.DELETED))
        self._refresh()
        return serial

    def begin_purge(self, serial: int) -> None:
        """From here on the snapshot no longer counts as kept, and no longer shows."""
        self._put(serial, _with_state(self._by_serial[serial], SnapshotState.PURGING))
        self._refresh()

    def purge_step(self, serial: int, start: bytes) -> bytes | None:
        """Drop what only this snapshot saw, among some of the changes from `start` on. Gives where to go on, or None at the end."""
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
            self._purge_object(Table(table), object_key, previous)
        if len(keys) < limits.PURGE_RECORDS_PER_STEP:
            return None
        return keys[-1] + b"\0"

    def end_purge(self, serial: int) -> None:
        """The snapshot is gone."""
        del self._by_serial[serial]
        self._catalog.put(Table.SNAPSHOTS, number_key(serial), None)
        self._refresh()

    def to_purge(self) -> list[int]:
        """Serials of snapshots that are deleted or half purged, oldest mark first."""
        return [s for s, snapshot in sorted(self._by_serial.items()) if snapshot.state != SnapshotState.KEPT]

    def kept(self) -> list[SnapshotInfo]:
        """Snapshots that are shown, oldest first."""
        return [self._info(s) for s, snapshot in sorted(self._by_serial.items()) if snapshot.state == SnapshotState.KEPT]

    def serial_of(self, name: str) -> int | None:
        """Serial of the shown snapshot of that name."""
        return self._by_name.get(name)

    def latest_name(self) -> str | None:
        """Name of the newest one that is shown."""
        newest = max(self._by_name.values(), default=None)
        return None if newest is None else self._by_serial[newest].name

    def epoch_of(self, serial: int) -> int:
        """The epoch that a view of this snapshot reads at; ESTALE when it is no longer whole."""
        snapshot = self._by_serial.get(serial)
        if snapshot is None or snapshot.state == SnapshotState.PURGING:
            raise FileSystemError(errno.ESTALE)
        return snapshot.epoch

    def time_of(self, serial: int) -> int:
        """When it was taken."""
        return self._by_serial[serial].time_ns

    def _purge_object(self, table: Table, object_key: bytes, previous: int) -> None:
        """Drop the versions of an object that no kept snapshot sees and that something newer has replaced."""
        catalog = self._catalog
        kept = catalog.kept_epochs
        versions = catalog.versions(table, object_key)
        for (newer, _), (older, value) in pairwise(versions):
            if older <= previous:
                break
            if bisect_left(kept, older) == bisect_left(kept, newer):
                catalog.drop_version(table, object_key, older, value)

    def _put(self, serial: int, snapshot: Snapshot) -> None:
        self._by_serial[serial] = snapshot
        self._catalog.put(Table.SNAPSHOTS, number_key(serial), records.encode(snapshot))

    def _refresh(self) -> None:
        counting = sorted(s.epoch for s in self._by_serial.values() if s.state != SnapshotState.PURGING)
        self._catalog.kept_epochs = tuple(counting)
        self._catalog.newest_kept = counting[-1] if counting else 0
        self._by_name = {s.name: n for n, s in self._by_serial.items() if s.state == SnapshotState.KEPT}

    def _info(self, serial: int) -> SnapshotInfo:
        s = self._by_serial[serial]
        state = _STATE_NAMES[SnapshotState(s.state)]
        return SnapshotInfo(serial, s.name, s.time_ns, s.why, s.message, s.tags, s.changes, state)


def _with_state(s: Snapshot, state: SnapshotState) -> Snapshot:
    return Snapshot(s.epoch, s.time_ns, s.name, state, s.why, s.message, s.tags, s.changes)
