"""What deleting snapshots would free, to the byte: the blobs whose every reference is in versions that only those snapshots see.

Nothing is changed. The rows of `changes` between the snapshots concerned and the next kept ones are looked at, in steps; so it costs what
changed there, not what exists.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import trio

from backupfs import limits
from backupfs.engine.snapshots import Gap, Snapshots
from backupfs.engine.volume import Volume
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import TOMBSTONE, Table


def _nobody_counts(_: int) -> None:
    """For whoever does not want to know how far it is."""


@dataclass(frozen=True, slots=True)
class _Share:
    """One of several parts of all blobs."""

    number: int
    of: int

    def has(self, blob: int) -> bool:
        return blob % self.of == self.number


class Reckoner:
    """Counts what purging would drop."""

    def __init__(self, volume: Volume, snapshots: Snapshots, settle: Callable[[], Awaitable[None]]) -> None:
        """`settle` has everything received so far applied to the index."""
        self._volume = volume
        self._snapshots = snapshots
        self._settle = settle

    async def records(self, serials: Collection[int]) -> int:
        """How many rows of `changes` are looked at for `frees`, and once more when these snapshots are purged: how much work either is."""
        await self._settle()
        counts: list[int] = []
        for gap in self._snapshots.would_drop(serials):
            await self._walk(gap, lambda keys: counts.append(len(keys)))
        return sum(counts)

    async def frees(self, serials: Collection[int], looked_at: Callable[[int], None] = _nobody_counts) -> int:
        """Stored bytes of blobs that would go if these snapshots, and no others, were purged together. Exact while nothing else changes; what is
        purged meanwhile may count or not. `looked_at` is told of rows, as many as `records` says in all.
        """
        await self._settle()
        gaps = self._snapshots.would_drop(serials)
        shares = 1
        while True:
            # Where there are too many blobs to be counted at once, a share of them at a time. Rows are told of as they are looked at first.
            freed = 0
            for share in range(shares):
                references = await self._references(gaps, _Share(share, shares), looked_at)
                looked_at = _nobody_counts
                if references is None:
                    break
                freed += await self._freed(references)
            else:
                return freed
            shares *= 4

    async def _references(self, gaps: Collection[Gap], share: _Share, looked_at: Callable[[int], None]) -> dict[int, int] | None:
        """How often each blob of a share is referred to by what would go; None when there are too many."""
        references: dict[int, int] = {}
        for gap in gaps:
            await self._walk(gap, partial(self._count_rows, gap, references, share, looked_at))
        return None if len(references) > limits.RECKONED_BLOBS_MAX else references

    async def _freed(self, references: dict[int, int]) -> int:
        freed = 0
        for at, (number, count) in enumerate(references.items()):
            freed += self._stored_bytes(number, count)
            if at % limits.RECKON_RECORDS_PER_STEP == limits.RECKON_RECORDS_PER_STEP - 1:
                await trio.lowlevel.checkpoint()
        return freed

    def _stored_bytes(self, number: int, references: int) -> int:
        """Of a blob that nothing else refers to; 0 of others, and of one that has been purged since its references were counted."""
        try:
            blob = self._volume.catalog.blob(number)
        except DamageError:
            return 0
        return blob.stored_bytes if blob.references == references else 0

    def _count_rows(self, gap: Gap, references: dict[int, int], share: _Share, looked_at: Callable[[int], None], keys: list[bytes]) -> None:
        looked_at(len(keys))
        if len(references) > limits.RECKONED_BLOBS_MAX:
            return
        for key in keys:
            epoch, table, object_key = records.split_change(key)
            if table in (Table.INODES, Table.REGIONS):
                newest = self._volume.catalog.newest(Table(table), object_key, gap.last)
                # An object has a row for each of its versions, and is counted once.
                if newest is not None and newest[0] == epoch:
                    self._count_object(gap, Table(table), object_key, references, share)

    async def _walk(self, gap: Gap, look: Callable[[list[bytes]], None]) -> None:
        """Go through the keys of the rows of `changes` in a gap, as many at a time as one step may look at."""
        start = records.change_key(gap.first + 1, 0, b"")
        while True:
            keys = self._volume.catalog.applied_changes(start, gap.last, limits.RECKON_RECORDS_PER_STEP)
            look(keys)
            if len(keys) < limits.RECKON_RECORDS_PER_STEP:
                return
            start = keys[-1] + b"\0"
            await trio.lowlevel.checkpoint()

    def _count_object(self, gap: Gap, table: Table, object_key: bytes, references: dict[int, int], share: _Share) -> None:
        versions = self._volume.catalog.versions_down_to(table, object_key, gap.last, gap.previous)
        for (newer, _), (older, value) in pairwise(versions):
            if older > gap.previous and gap.sees_nothing_of(older, newer) and value != TOMBSTONE:
                for _, _, blob, _ in records.extents_of(table, value):
                    if share.has(blob):
                        references[blob] = references.get(blob, 0) + 1
