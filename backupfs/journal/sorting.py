"""Sorting more records than memory is to hold: sorted runs, sealed on the host's own disk, merged when they are read.

Of several records with one key the one added last counts. Nothing here is durable: a process that dies leaves files that its successor removes.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

from backupfs import limits
from backupfs.codec.keys import Keys, Sealer
from backupfs.format.journal import Change, decode_batch, encode_batch
from backupfs.format.layout import Sealed
from backupfs.randomness import Randomness
from backupfs.stores.files import Files, Handle

_SALT_BYTES = 32


class RecordSorter:
    """Takes records in the order in which they were written, gives them back by table and key. Blocks; to be closed."""

    def __init__(self, directory: Path, files: Files, keys: Keys, randomness: Randomness, breathe: Callable[[], None]) -> None:
        """`breathe` is called every few hundred records."""
        self._directory = directory
        self._files = files
        self._keys = keys
        self._randomness = randomness
        self._breathe = breathe
        self._newest: dict[tuple[int, bytes], bytes | None] = {}
        self._runs: list[_Run] = []

    def add(self, changes: Iterable[Change]) -> None:
        """More records, each newer than all before."""
        newest = self._newest
        for number, (table, key, value) in enumerate(changes):
            newest[table, key] = value
            if not number % limits.BREATHE_RECORDS:
                self._breathe()
        if len(newest) >= limits.SORT_RUN_RECORDS:
            self._runs.append(self._spill())
            newest.clear()

    def records(self) -> Iterator[Change]:
        """All of them, each key once, sorted; removed ones have the value None."""
        # Of equal keys heapq.merge gives those of earlier iterables first: so the newest come first.
        sources = [self._in_memory(), *(run.records() for run in reversed(self._runs))]
        before: tuple[int, bytes] | None = None
        for table, key, value in heapq.merge(*sources, key=_place):
            if (table, key) != before:
                before = table, key
                yield table, key, value

    def close(self) -> None:
        """Remove the runs."""
        while self._runs:
            self._runs.pop().remove()

    def _in_memory(self) -> Iterator[Change]:
        newest = self._newest
        return ((table, key, newest[table, key]) for table, key in sorted(newest))

    def _spill(self) -> "_Run":
        salt = self._randomness.draw(_SALT_BYTES)
        run = _Run(self._directory / f"run-{len(self._runs)}", self._files, self._keys.local_sealer(b"sorting", salt))
        run.write(in_parts(self._in_memory(), self._breathe))
        return run


class _Run:
    """A file of sealed pieces; where each stands is known in memory only."""

    def __init__(self, path: Path, files: Files, sealer: Sealer) -> None:
        self._path = path
        self._files = files
        self._sealer = sealer
        self._pieces: list[tuple[int, int]] = []

    def write(self, parts: Iterable[list[Change]]) -> None:
        if self._files.exists(self._path):
            self._files.unlink(self._path)
        with closing(_Open(self._files, self._files.create(self._path))) as file:
            at = 0
            for part in parts:
                sealed = self._sealer.seal(Sealed.SORTED_RUN, at, encode_batch(part))
                self._files.write_at(file.handle, at, [sealed])
                self._pieces.append((at, len(sealed)))
                at += len(sealed)

    def records(self) -> Iterator[Change]:
        with closing(_Open(self._files, self._files.open(self._path))) as file:
            for at, size in self._pieces:
                yield from decode_batch(self._sealer.open(Sealed.SORTED_RUN, at, self._files.read_at(file.handle, at, size)))

    def remove(self) -> None:
        self._files.unlink(self._path)


class _Open:
    def __init__(self, files: Files, handle: Handle) -> None:
        self.handle = handle
        self._files = files

    def close(self) -> None:
        self._files.close(self.handle)


def in_parts(changes: Iterable[Change], breathe: Callable[[], None]) -> Iterator[list[Change]]:
    """The records in lists of about `CHECKPOINT_PART_BYTES` each."""
    part: list[Change] = []
    size = 0
    for number, change in enumerate(changes):
        part.append(change)
        size += len(change[1]) + len(change[2] or b"")
        if size >= limits.CHECKPOINT_PART_BYTES:
            yield part
            part, size = [], 0
        if not number % limits.BREATHE_RECORDS:
            breathe()
    if part:
        yield part


def _place(change: Change) -> tuple[int, bytes]:
    return change[0], change[1]
