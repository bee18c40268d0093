"""What a repository takes on its disk, measured there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backupfs.engine.attributes import Usage
from backupfs.engine.seams import Seams
from backupfs.engine.space import BALLAST
from backupfs.errors import MissingObjectError
from backupfs.limits import BREATHE_RECORDS
from backupfs.stores.port import Store

OPEN: Final = "open"
"""Folder of what is appended to: packs and the journal's segment; and of the reserve."""
SET_ASIDE: Final = "set-aside"


def measure(root: Path, store: Store, seams: Seams) -> Usage:
    """Blocks for as long as it takes to look at every object. What is removed or comes meanwhile may count or not. Raises StoreError."""
    packs, journal, checkpoints = (sum(_sizes(store, folder, seams)) for folder in ("packs", "journal", "checkpoints"))
    aside = sum(_size(root / SET_ASIDE / name, seams) for name in seams.files.list(root / SET_ASIDE))
    appended = {name: _size(root / OPEN / name, seams) for name in seams.files.list(root / OPEN)}
    reserve = appended.pop(BALLAST, 0)
    return Usage(packs, journal, checkpoints, sum(appended.values()), reserve, aside)


def _sizes(store: Store, folder: str, seams: Seams) -> Iterator[int]:
    for number, name in enumerate(store.list(folder), 1):
        if number % BREATHE_RECORDS == 0:
            seams.offload.breathe()
        try:
            yield store.size(name)
        except MissingObjectError:
            continue


def _size(path: Path, seams: Seams) -> int:
    try:
        handle = seams.files.open(path)
    except MissingObjectError:
        return 0
    try:
        return seams.files.size(handle)
    finally:
        seams.files.close(handle)
