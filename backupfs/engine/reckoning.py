"""What deleting snapshots would free, to the byte: the blobs whose every reference is in versions that only those snapshots see.

Nothing is changed. The rows of `changes` between the snapshots concerned and the next kept ones are looked at, in steps; so it costs what
changed there, not what exists.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import trio

from backupfs import limits
from backupfs.engine.counts import Counts
from backupfs.engine.snapshots import Gap, Snapshots
from backupfs.engine.volume import Volume
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import TOMBSTONE, Table

Version = tuple[int, bytes]
"""(epoch, value)"""


def _nobody_counts(_: int) -> None:
    """For whoever does not want to know how far it is."""


@dataclass(frozen=True, slots=True)
class _Share:
    """One of several parts of all blobs: whole groups of neighbours, which are counted together."""

    number: int
    of: int

    def has(self, blob: int) -> bool:
        return blob // Counts.NEIGHBOURS % self.of == self.number


class Reckoner:
    """Counts what purging would drop."""

    def __init__(self, volume: Volume, snapshots: Snapshots, settle: Callable[[], Awaitable[None]]) -> None:
        """`settle` has everything received so far applied to the index."""
        self._volume = volume
        self._snapshots = snapshots
        self._settle = settle

    async def records(self, serials: Collection[int], beyond: Collection[int] = ()) -> int:
        """How many rows of `changes` are looked at for `frees`, and, where nothing is `beyond`, once more when these snapshots are purged: how much
        work either is.
        """
        await self._settle()
        counts: list[int] = []
        for gap in self._snapshots.would_drop(serials, beyond):
            if gap.asked:
                await self._walk(gap, gap.asked[0], lambda keys: counts.append(len(keys)))
        return sum(counts)

    async def frees(self, serials: Collection[int], looked_at: Callable[[int], None] = _nobody_counts, beyond: Collection[int] = ()) -> int:
        """Stored bytes of blobs that would go if these snapshots, and no others, were purged together; with `beyond`, what goes beyond what purging
        those alone would free. Exact while nothing else changes; what is purged meanwhile may count or not. `looked_at` is told of rows, as many as
        `records` says in all.
        """
        await self._settle()
        gaps = self._snapshots.would_drop(serials, beyond)
        shares = 1
        while True:
            # Where there are too many blobs to be counted at once, a share of them at a time. Rows are told of as they are looked at first.
            freed = 0
            for number in range(shares):
                found = await self._frees(gaps, bool(beyond), _Share(number, shares), looked_at)
                looked_at = _nobody_counts
                if found is None:
                    break
                freed += found
            else:
                return freed
            shares *= 4

    async def _frees(self, gaps: Collection[Gap], goes_more: bool, share: _Share, looked_at: Callable[[int], None]) -> int | None:
        """What the blobs of a share come to; None when there are too many. `goes_more`: than is asked for.

        Only objects that have changed since the first snapshot asked for have versions that go with it. Where something else refers to blobs of
        these, it may be what goes anyway: to know that, all changes have to be gone through, and are if there are any such blobs.
        """
        references = Counts()
        for gap in gaps:
            if gap.asked:
                await self._count(gap, gap.asked[0], partial(_asked_for, gap, share, references), looked_at)
                if references.groups > limits.RECKONED_GROUPS_MAX:
                    return None
        unsure = Counts()
        freed = await self._freed(references, unsure if goes_more else None)
        if unsure.groups:
            references = Counts()
            for gap in gaps:
                await self._count(gap, gap.first, partial(_that_go, gap, unsure, references), _nobody_counts)
            freed += await self._freed(references, None)
        return freed

    async def _freed(self, references: Counts, unsure: Counts | None) -> int:
        """Stored bytes of those that nothing else refers to. Those that something else refers to are added to `unsure`."""
        freed = 0
        for at, (number, count) in enumerate(references.items()):
            try:
                blob = self._volume.catalog.blob(number)
            except DamageError:
                continue  # purged since its references were counted
            if blob.references == count:
                freed += blob.stored_bytes
            elif unsure is not None:
                unsure.add((number,))
            if at % limits.COMPARED_PER_STEP == limits.COMPARED_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
        return freed

    async def _count(self, gap: Gap, first: int, count: Callable[[Table, list[Version]], None], looked_at: Callable[[int], None]) -> None:
        """Have every object that has changed behind `first` counted, with its versions from the last in the gap down to the first before it."""
        catalog = self._volume.catalog

        def look(keys: list[bytes]) -> None:
            looked_at(len(keys))
            for key in keys:
                epoch, number, object_key = records.split_change(key)
                if number not in (Table.INODES, Table.REGIONS):
                    continue
                table = Table(number)
                newest = catalog.newest(table, object_key, gap.last)
                # An object has a row for each of its versions, and is counted once.
                if newest is not None and newest[0] == epoch:
                    count(table, [newest, *catalog.versions_down_to(table, object_key, epoch - 1, gap.previous)])

        await self._walk(gap, first, look)

    async def _walk(self, gap: Gap, first: int, look: Callable[[list[bytes]], None]) -> None:
        """Go through the keys of the rows of `changes` behind `first` in a gap, as many at a time as one step may look at."""
        start = records.change_key(first + 1, 0, b"")
        while True:
            keys = self._volume.catalog.applied_changes(start, gap.last, limits.COMPARED_PER_STEP)
            look(keys)
            if len(keys) < limits.COMPARED_PER_STEP:
                return
            start = keys[-1] + b"\0"
            await trio.lowlevel.checkpoint()


def _blobs(table: Table, value: bytes) -> list[int]:
    return [] if value == TOMBSTONE else [blob for _, _, blob, _ in records.extents_of(table, value)]


def _going(gap: Gap, versions: list[Version]) -> Iterable[tuple[int, int, bytes]]:
    """(epoch, epoch of the next one, value) of the versions that go."""
    for (newer, _), (older, value) in pairwise(versions):
        if older > gap.previous and gap.sees_nothing_of(older, newer):
            yield older, newer, value


def _that_go(gap: Gap, these: Counts, references: Counts, table: Table, versions: list[Version]) -> None:
    """Count how often what goes refers to these blobs."""
    for _, _, value in _going(gap, versions):
        references.add(blob for blob in _blobs(table, value) if blob in these)


def _asked_for(gap: Gap, share: _Share, references: Counts, table: Table, versions: list[Version]) -> None:
    """Count how often what goes of one object refers to blobs that what is asked for refers to, and nothing that stays of it."""
    if references.groups > limits.RECKONED_GROUPS_MAX:
        return
    going = list(_going(gap, versions))
    asked = {blob for older, newer, value in going if gap.is_asked_for(older, newer) for blob in _blobs(table, value) if share.has(blob)}
    if asked:
        gone = {older for older, _, _ in going}
        asked.difference_update(blob for epoch, value in versions if epoch not in gone for blob in _blobs(table, value))
        references.add(blob for _, _, value in going for blob in _blobs(table, value) if blob in asked)
