"""What deleting snapshots would free, as people mean it: beyond what is deleted already."""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.seams import Progress


class Reckoning(Protocol):
    """The part of the engine's reckoner that is needed here."""

    async def frees(self, serials: Collection[int], looked_at: Callable[[int], None] = ...) -> int:
        """Stored bytes that would go if these snapshots, and no others, were purged together. `looked_at` is told of records."""
        ...

    async def records(self, serials: Collection[int]) -> int:
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
    questions = [asked for asked in (others, others.union(serials)) if asked]
    total = sum([await engine.reckoner.records(asked) for asked in questions]) if progress is not None else 0
    done = 0

    def looked_at(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, max(done, total))

    *alone, together = [await engine.reckoner.frees(asked, looked_at) for asked in questions]
    return max(together - sum(alone), 0)
