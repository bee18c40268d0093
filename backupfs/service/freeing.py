"""What deleting snapshots would free, as people mean it: beyond what is deleted already."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.seams import Progress


class Reckoning(Protocol):
    """The part of the engine's reckoner that is needed here."""

    async def frees(self, serials: Collection[int], looked_at: Callable[[int], None] = ..., beyond: Collection[int] = ...) -> int:
        """Stored bytes that would go if these snapshots were purged together with those of `beyond`, and would not without them. `looked_at` is told
        of records.
        """
        ...

    async def records(self, serials: Collection[int], beyond: Collection[int] = ...) -> int:
        """How many records that takes to look at."""
        ...


class Reckonable(Protocol):
    """The part of the engine that is needed here."""

    @property
    def reckoner(self) -> Reckoning:
        """Counts."""
        ...

    def deleted_snapshots(self) -> Sequence[SnapshotInfo]:
        """Those that are marked deleted or being purged."""
        ...


def deleted_serials(engine: Reckonable) -> frozenset[int]:
    """Of the snapshots that are marked deleted or being purged."""
    return frozenset(info.serial for info in engine.deleted_snapshots())


async def frees(engine: Reckonable, serials: Collection[int], progress: Progress | None = None) -> int:
    """Stored bytes that come back when these snapshots, deleted or not, are purged with all deleted ones, and would not without them. `progress` is
    told of records.
    """
    if not serials:
        return 0
    others = deleted_serials(engine).difference(serials)
    if progress is None:
        return await engine.reckoner.frees(serials, beyond=others)
    total = await engine.reckoner.records(serials, others)
    done = 0

    def looked_at(more: int) -> None:
        nonlocal done
        done += more
        progress(done, max(done, total))

    return await engine.reckoner.frees(serials, looked_at, others)
