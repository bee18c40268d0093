"""What a repository takes and what deleting snapshots frees, by its files alone: the independent decoder reads them, nothing of the engine is asked.

It is what `docs/snapshots.md` says under "Space limits", counted the slow way: for every blob all versions that name it.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from pathlib import Path

from backupfs.rules.collection import PackUse, plan_collection
from tests.decoder import catalog, history, packs
from tests.decoder.catalog import Catalog
from tests.decoder.sealing import Keys
from tests.decoder.store import Store

_PRESENT = 1 << 64
"""Where a version ends that nothing has replaced."""


class Space:
    """A repository as its files are at this moment; everything is to be committed."""

    def __init__(self, root: Path, keys: Keys) -> None:
        store = Store(root)
        self._catalog = history.read(store, keys).catalog
        self._spans = _spans_of_blobs(self._catalog)
        self.used_bytes = sum(
            path.stat().st_size
            for folder in ("packs", "journal", "checkpoints", "open")
            for path in (root / folder).rglob("*")
            if path.is_file() and path.name != "reserve"
        )
        self.collectable_bytes = _collectable_bytes(self._catalog, store.packs(), keys)
        """What is dead in packs already, as far as collecting it pays."""

    def purged_bytes(self, serials: set[int]) -> int:
        """Stored bytes that nothing refers to any more once these snapshots, and those that are deleted already, are purged."""
        stays = sorted(s.epoch for serial, s in self._catalog.snapshots.items() if s.state == catalog.KEPT and serial not in serials)
        return sum(self._catalog.blobs[blob].stored_bytes for blob, spans in self._spans.items() if not any(_is_seen(span, stays) for span in spans))

    def frees(self, serials: set[int]) -> int:
        """What the model of the rules asks."""
        return self.purged_bytes(serials) + self.collectable_bytes


def _spans_of_blobs(records: Catalog) -> dict[int, set[tuple[int, int]]]:
    """Blob -> from which epoch to (but not at) which each version stood that names it."""
    spans: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    for table in (catalog.INODES, catalog.REGIONS):
        for versions in records.objects[table].values():
            ends = [*(version.epoch for version in versions[1:]), _PRESENT]
            for version, end in zip(versions, ends, strict=True):
                if version.value:
                    extents = catalog.read_inode(version.value).extents if table == catalog.INODES else catalog.read_region(version.value)
                    for extent in extents:
                        spans[extent.blob].add((version.epoch, end))
    return spans


def _is_seen(span: tuple[int, int], epochs: list[int]) -> bool:
    """Whether the present, or a snapshot of one of these epochs, sees what stood then."""
    first, end = span
    return end == _PRESENT or bisect_left(epochs, first) < bisect_left(epochs, end)


def _collectable_bytes(records: Catalog, closed: dict[bytes, Path], keys: Keys) -> int:
    live: Counter[int] = Counter()
    for blob in records.blobs.values():
        live[blob.pack] += blob.stored_bytes
    uses = [
        PackUse(number, packs.held_bytes(closed[pack.object_id], pack.object_id, keys), live[number])
        for number, pack in records.packs.items()
        if pack.object_id in closed
    ]
    return plan_collection(uses, thorough=True).freed_bytes
