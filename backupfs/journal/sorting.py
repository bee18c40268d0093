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
_PREFIX = [bytes([number]) for number in range(256)]


class RecordSorter:
    """Takes records in the order in which they were written, gives them back by table and key. Blocks; to be closed."""

    def __init__(self, directory: Path, files: Files, keys: Keys, randomness: Randomness, breathe: Callable[[], None]) -> None:
        """`breathe` is called every few hundred records."""
        self._directory = directory
        self._files = files
        self._keys = keys
        self._randomness = randomness
        self._breathe = breathe
        self._newest: dict[bytes, bytes | None] = {}
        """By the table's number and the key in one: such are compared three times as fast as pairs, while nothing else in the process goes on."""
        self._runs: list[_Run] = []

    def add(self, changes: Iterable[Change]) -> None:
        """More records, each newer than all before."""
        newest = self._newest
        for number, (table, key, value) in enumerate(changes):
            newest[_PREFIX[table] + key] = value
            if len(newest) >= limits.SORT_RUN_RECORDS:
                self._runs.append(self._spill())
                newest.clear()
            if not number % limits.BREATHE_RECORDS:
                self._breathe()

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
        return ((place[0], place[1:], newest[place]) for place in sorted(newest))

    def _spill(self) -> "_Run":
        salt = self._randomness.draw(_SALT_BYTES)
        run = _Run(self._directory / f"run-{len(self._runs)}", self._files, self._keys.local_sealer(b"sorting", salt))
        run.write(encoded_parts(self._in_memory(), limits.SORT_PIECE_BYTES, self._breathe))
        return run


class _Run:
    """A file of sealed pieces; where each stands is known in memory only."""

    def __init__(self, path: Path, files: Files, sealer: Sealer) -> None:
        self._path = path
        self._files = files
        self._sealer = sealer
        self._pieces: list[tuple[int, int]] = []
        self._read_from: _Open | None = None

    def write(self, parts: Iterable[tuple[bytes, int]]) -> None:
        if self._files.exists(self._path):
            self._files.unlink(self._path)
        with closing(_Open(self._files, self._files.create(self._path))) as file:
            at = 0
            for payload, _ in parts:
                sealed = self._sealer.seal(Sealed.SORTED_RUN, at, payload)
                self._files.write_at(file.handle, at, [sealed])
                self._pieces.append((at, len(sealed)))
                at += len(sealed)

    def records(self) -> Iterator[Change]:
        with closing(_Open(self._files, self._files.open(self._path))) as file:
            self._read_from = file
            for at, size in self._pieces:
                yield from decode_batch(self._sealer.open(Sealed.SORTED_RUN, at, self._files.read_at(file.handle, at, size)))

    def remove(self) -> None:
        self._files.unlink(self._path)
        if self._read_from is not None:
            # Whoever read it may have been interrupted, and an error on record holds him: while the file is open the disk does not get its room back.
            self._read_from.close()


class _Open:
    """An open file, closed once however often that is asked."""

    def __init__(self, files: Files, handle: Handle) -> None:
        self.handle = handle
        self._files = files
        self._is_open = True

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._files.close(self.handle)


def encoded_parts(changes: Iterable[Change], part_bytes: int, breathe: Callable[[], None]) -> Iterator[tuple[bytes, int]]:
    """The records as `encode_batch` has them, in parts of about so many bytes, each with the number of its records. `breathe` is called every few
    hundred.
    """
    encoded: list[bytes] = []
    group: list[Change] = []
    size = count = 0
    for change in changes:
        group.append(change)
        size += len(change[1]) + len(change[2] or b"")
        is_full = size >= part_bytes
        if is_full or len(group) >= limits.BREATHE_RECORDS:
            encoded.append(encode_batch(group))
            count += len(group)
            group.clear()
            breathe()
        if is_full:
            yield b"".join(encoded), count
            encoded.clear()
            size = count = 0
    if size:
        encoded.append(encode_batch(group))
        yield b"".join(encoded), count + len(group)


def _place(change: Change) -> tuple[int, bytes]:
    return change[0], change[1]
