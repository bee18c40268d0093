"""Bytes written and not yet stored: runs of a file, sorted, never touching each other.

Pieces are kept as they came (one copy is made, when a run is handed on), so a streaming write costs an append to a list.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

Piece = bytes | memoryview


@dataclass(slots=True)
class Run:
    """Contiguous bytes from `start` on."""

    start: int
    length: int = 0
    pieces: list[Piece] = field(default_factory=list)

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.length

    def bytes(self) -> bytes:
        """All of it in one object."""
        return b"".join(self.pieces) if len(self.pieces) != 1 else bytes(self.pieces[0])

    def slice(self, low: int, high: int) -> "Run":
        """The part in [low, high), sharing the pieces' memory."""
        part = Run(max(low, self.start))
        at = self.start
        for piece in self.pieces:
            size = len(piece)
            first, last = max(low - at, 0), min(high - at, size)
            if first < last:
                part.pieces.append(piece if last - first == size else memoryview(piece)[first:last])
                part.length += last - first
            at += size
        return part


class Runs:
    """The unstored bytes of one file. Newer bytes replace older ones."""

    __slots__ = ("runs", "total_bytes")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.total_bytes = 0

    def __bool__(self) -> bool:
        return bool(self.runs)

    def write(self, offset: int, data: Piece) -> int:
        """Put `data` at `offset`. Gives the length of the run that it has become part of."""
        if not data:
            return 0
        runs = self.runs
        if not runs:
            runs.append(Run(offset, len(data), [data]))
            self.total_bytes = len(data)
            return len(data)
        last = runs[-1]
        if last.end == offset:
            last.pieces.append(data)
            last.length += len(data)
            self.total_bytes += len(data)
            return last.length
        self.remove(offset, offset + len(data))
        return self._insert(Run(offset, len(data), [data]))

    def put_below(self, run: Run) -> None:
        """Put older bytes back: only where nothing newer stands."""
        if not run.length:
            return
        if not self.runs:
            self.runs.append(Run(run.start, run.length, run.pieces.copy()))
            self.total_bytes = run.length
            return
        at = run.start
        if at > self.runs[-1].end:
            self.runs.append(Run(at, run.length, run.pieces.copy()))
            self.total_bytes += run.length
            return
        for newer in list(self._touching(run.start, run.end)):
            if newer.start > at:
                self._insert(run.slice(at, newer.start))
            at = max(at, newer.end)
        if at < run.end:
            self._insert(run.slice(at, run.end))

    def remove(self, low: int, high: int) -> None:
        """Forget what stands in [low, high)."""
        if high <= low:
            return
        runs = self.runs
        if not runs:
            return
        if len(runs) == 1 and low <= runs[0].start and runs[0].end <= high:
            runs.clear()
            self.total_bytes = 0
            return
        first = self._first_ending_after(low)
        if first == len(runs) or runs[first].start >= high:
            return
        last = first
        rest: list[Run] = []
        while last < len(runs) and runs[last].start < high:
            run = runs[last]
            self.total_bytes -= run.length
            if run.start < low:
                rest.append(run.slice(run.start, low))
            if run.end > high:
                rest.append(run.slice(high, run.end))
            last += 1
        runs[first:last] = rest
        self.total_bytes += sum(run.length for run in rest)

    def take(self, low: int, high: int) -> Run | None:
        """Remove and return the run that begins at `low`, up to `high`; None when none begins there."""
        index = self._first_ending_after(low)
        if index == len(self.runs) or self.runs[index].start != low:
            return None
        run = self.runs[index]
        if run.end <= high:
            del self.runs[index]
            self.total_bytes -= run.length
            return run
        run = run.slice(low, high)
        self.remove(low, run.end)
        return run

    def take_all(self) -> list[Run]:
        """Remove and return all runs."""
        taken, self.runs, self.total_bytes = self.runs, [], 0
        return taken

    def overlay(self, low: int, high: int, into: bytearray | memoryview) -> None:
        """Copy what stands in [low, high) over `into`, whose first byte is the file's byte `low`."""
        for part in self.parts(low, high):
            at = part.start - low
            for piece in part.pieces:
                into[at : at + len(piece)] = piece
                at += len(piece)

    def parts(self, low: int, high: int) -> Iterator[Run]:
        """The runs' parts in [low, high), in order."""
        for run in self._touching(low, high):
            yield run.slice(low, high)

    def _touching(self, low: int, high: int) -> Iterator[Run]:
        """The runs that have bytes in [low, high), in order. To be used up before any changes."""
        for index in range(self._first_ending_after(low), len(self.runs)):
            run = self.runs[index]
            if run.start >= high:
                return
            yield run

    def _first_ending_after(self, offset: int) -> int:
        return bisect_right(self.runs, offset, key=lambda run: run.end)

    def _insert(self, run: Run) -> int:
        runs = self.runs
        index = bisect_right(runs, run.start, key=lambda other: other.start)
        self.total_bytes += run.length
        if index < len(runs) and runs[index].start == run.end:
            after = runs.pop(index)
            run = Run(run.start, run.length + after.length, [*run.pieces, *after.pieces])
        if index and runs[index - 1].end == run.start:
            before = runs[index - 1]
            before.pieces.extend(run.pieces)
            before.length += run.length
            return before.length
        runs.insert(index, run)
        return run.length
