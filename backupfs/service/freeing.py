"""What deleting snapshots would free, as people mean it: beyond what is deleted already."""

from collections.abc import Collection, Sequence
from typing import Protocol

from backupfs.engine.attributes import SnapshotInfo


class Reckoning(Protocol):
    """The part of the engine's reckoner that is needed here."""

    async def frees(self, serials: Collection[int]) -> int:
        """Stored bytes that would go if these snapshots, and no others, were purged together."""
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


async def frees(engine: Reckonable, serials: Collection[int]) -> int:
    """Stored bytes that come back when these snapshots, deleted or not, are purged with all deleted ones, and would not without them."""
    if not serials:
        return 0
    others = deleted_serials(engine).difference(serials)
    alone = await engine.reckoner.frees(others) if others else 0
    return max(await engine.reckoner.frees(others.union(serials)) - alone, 0)
