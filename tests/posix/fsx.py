"""Random operations on one file, held against bytes in memory.

The idea is that of fsx, which Apple wrote and every Linux file system is tried with. Added here: several descriptors of different kinds open at
once, mappings that stay open over everything else, snapshots that are compared with what the file was then, remounts, and a kernel that has
forgotten everything. Every choice comes from the seed, so the same seed is the same history.
"""

import mmap
import os
import random
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, Protocol

from backupfs import limits

KIB: Final = limits.KIB
MIB: Final = limits.MIB
PAGE: Final = 4096

LENGTHS: Final = (1, 2, 7, 100, 511, 513, 1000, PAGE - 1, PAGE, PAGE + 1, 5000, 3 * PAGE, 20_000)
LONG: Final = (64 * KIB, 64 * KIB + 1, 128 * KIB - 1, 300_000)
HUGE: Final = (limits.CHUNK_MAX_BYTES + 1, 2 * MIB + 12_345)
SNAPSHOTS_KEPT: Final = 6
FORGET_EVERY: Final = 40_000
REMOUNT_EVERY: Final = 24_000
REMEMBERED: Final = 60
"""So many of the last operations are shown when one fails, and as many that have touched the bytes that differ."""

_NOISE_BYTES: Final = 4 * MIB
_PLAIN: Final = os.O_RDWR
_KINDS: Final = {
    "a": os.O_RDWR,
    "b": os.O_RDWR,
    "append": os.O_RDWR | os.O_APPEND,
    "direct": os.O_RDWR | os.O_DIRECT,
    "sync": os.O_RDWR | os.O_SYNC,
    "read": os.O_RDONLY,
}


class DifferenceError(AssertionError):
    """The file is not what the bytes in memory are."""


class World(Protocol):
    """What can be done to the file system around the file."""

    def snapshot(self) -> Path | None:
        """The directory that shows the snapshot just taken, in which the file has the name that it has in its own directory. None: there are none."""
        ...

    def delete(self, snapshot: Path) -> None:
        """Mark a snapshot deleted."""
        ...

    def remount(self) -> None:
        """Nothing of the file is open."""
        ...

    def forget(self) -> None:
        """Have the kernel drop everything that it can read again."""
        ...


class Exercise:
    """One file, the bytes that it has to be, and what has been done to both."""

    def __init__(self, path: Path, seed: int, world: World, *, size_max_bytes: int, borders: Sequence[int]) -> None:
        self.path = path
        self._world = world
        self._rng = random.Random(seed)
        self._size_max = size_max_bytes
        self._borders = [border for border in borders if border < size_max_bytes]
        self._noise = memoryview(self._rng.randbytes(_NOISE_BYTES))
        self._words = memoryview(b"".join(b"line %d of many\n" % n for n in range(200_000)))
        self._zeros = memoryview(bytes(_NOISE_BYTES))
        self._block = mmap.mmap(-1, 64 * KIB)
        """Memory as direct I/O wants it."""
        self.model = bytearray()
        self._descriptors: dict[str, int] = {}
        self._maps: list[mmap.mmap] = []
        self._past: deque[tuple[Path, bytes]] = deque()
        self.done = 0
        self._history: list[tuple[int, str, int, int]] = []
        weighted: list[tuple[Callable[[], None], float]] = [
            (self.read, 24), (self.write, 24), (self.write_zeros, 2), (self.append, 5), (self.truncate, 0.9), (self.map_read, 7), (self.map_write, 6),
            (self.copy, 1), (self.direct_read, 1.5), (self.direct_write, 0.8), (self.look, 3), (self.forget_pages, 0.4), (self.reopen, 0.5),
            (self.map_again, 0.3), (self.write_much, 0.25), (self.truncate_by_name, 0.2), (self.empty, 0.05), (self.compare, 0.05), (self.sync, 0.15),
            (self.sync_data, 0.1), (self.sync_map, 0.1), (self.sync_write, 0.1), (self.look_back, 0.1), (self.snapshot, 0.03),
        ]  # fmt: skip
        self._operations = [operation for operation, _ in weighted]
        self._bounds = list(accumulate(weight for _, weight in weighted))
        path.touch()
        self._open_all()

    # --- a run ---

    def run(self, operations: int) -> None:
        """So many operations; DifferenceError with the history of what has gone wrong."""
        draw, whole, bounds, chosen = self._rng.random, self._bounds[-1], self._bounds, self._operations
        for _ in range(operations):
            chosen[bisect_right(bounds, draw() * whole)]()
            self.done += 1
            if self.done % FORGET_EVERY == 0:
                self.forget_everything()
            if self.done % REMOUNT_EVERY == 0:
                self.remount()

    def close(self) -> None:
        """Nothing of the file stays open."""
        self._close_all()
        self._block.close()

    def _open_all(self) -> None:
        for kind in _KINDS:
            self._open(kind)
        self.map_again()

    def _close_all(self) -> None:
        for pages in self._maps:
            pages.close()
        self._maps.clear()
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _open(self, kind: str) -> None:
        self._descriptors[kind] = os.open(self.path, _KINDS[kind])

    def _note(self, what: str, offset: int, length: int) -> None:
        self._history.append((self.done, what, offset, length))

    def _fail(self, what: str, offset: int, expected: bytes, found: bytes) -> None:
        shorter = min(len(expected), len(found))
        first = next((i for i in range(shorter) if expected[i] != found[i]), shorter)
        last = next((i for i in range(shorter - 1, -1, -1) if expected[i] != found[i]), shorter)
        low, high = offset + first, offset + max(last + 1, first + 1)
        touching = [entry for entry in self._history if (entry[2] < high and low < entry[2] + entry[3]) or not entry[3]]
        raise DifferenceError(
            f"operation {self.done}, {what}: {len(found)} bytes at {offset} instead of {len(expected)}; they differ in [{low}, {high})\n"
            f"found    {found[first : first + 32].hex()}\nexpected {expected[first : first + 32].hex()}\n"
            f"what touched these bytes, or the whole file, as (operation, what, offset, length):\n{_shown(touching)}\n"
            f"all of the last operations:\n{_shown(self._history)}"
        )

    def _check(self, what: str, offset: int, length: int, found: bytes) -> None:
        expected = self.model[offset : offset + length]
        if found != expected:
            self._fail(what, offset, bytes(expected), found)

    # --- where and what ---

    def _length(self) -> int:
        return self._rng.choice(LENGTHS if self._rng.random() < 0.93 else LONG)

    def _size(self) -> int:
        """A size that the file may be given."""
        rng, kind = self._rng, self._rng.random()
        if kind < 0.3:
            return rng.randrange(128 * KIB)
        if kind < 0.55:
            return min(max(rng.choice(self._borders) + rng.randint(-3, 3), 0), self._size_max)
        if kind < 0.8:
            return min(max(len(self.model) + rng.randint(-9000, 9000), 0), self._size_max)
        return rng.randrange(3 * MIB if kind < 0.95 else self._size_max) % self._size_max

    def _offset(self, length: int) -> int:
        """Where to write: in the file, at one of the borders, at its end or behind it."""
        rng, kind = self._rng, self._rng.random()
        size = len(self.model)
        if kind < 0.55:
            offset = rng.randrange(size + 1)
        elif kind < 0.8:
            offset = rng.choice(self._borders) - rng.choice((0, 1, length, length // 2, 100))
        elif kind < 0.93:
            offset = size
        else:
            offset = size + rng.choice((1, 100, PAGE, 70_000, MIB))
        if kind >= 0.55 and size < MIB < offset and rng.random() < 0.8:
            offset %= 256 * KIB  # most of the time a short file stays one
        return min(max(offset, 0), self._size_max - length)

    def _within(self) -> tuple[int, int]:
        """A stretch of the file."""
        size, length = len(self.model), self._length()
        offset = self._offset(length) if self._rng.random() < 0.3 else self._rng.randrange(size)
        offset = min(offset, size - 1)
        return offset, min(length, size - offset)

    def _bytes(self, length: int) -> memoryview:
        kind = self._rng.random()
        source = self._noise if kind < 0.6 else self._words if kind < 0.95 else self._zeros
        at = self._rng.randrange(len(source) - length)
        return source[at : at + length]

    def _put(self, offset: int, data: memoryview | bytes | bytearray) -> None:
        model = self.model
        if offset > len(model):
            model.extend(bytes(offset - len(model)))
        model[offset : offset + len(data)] = data

    def _any(self) -> int:
        return self._descriptors["a" if self._rng.random() < 0.5 else "b"]

    # --- operations ---

    def read(self) -> None:
        length = self._length()
        offset = self._offset(length)
        kind = self._rng.choice(("a", "b", "append", "sync", "read"))
        self._check(f"read {kind}", offset, length, os.pread(self._descriptors[kind], length, offset))

    def write(self) -> None:
        length = self._length()
        self._write("write", self._any(), self._offset(length), self._bytes(length))

    def write_much(self) -> None:
        length = min(self._rng.choice(HUGE), self._size_max // 2)
        self._write("write much", self._any(), self._offset(length), self._bytes(length))

    def write_zeros(self) -> None:
        length = self._rng.choice((PAGE, 64 * KIB, 100_000, 1))
        self._write("zeros", self._any(), self._offset(length), self._zeros[:length])

    def sync_write(self) -> None:
        length = self._length()
        self._write("write O_SYNC", self._descriptors["sync"], self._offset(length), self._bytes(length))

    def _write(self, what: str, descriptor: int, offset: int, data: memoryview) -> None:
        self._note(what, offset, len(data))
        assert os.pwrite(descriptor, data, offset) == len(data)
        self._put(offset, data)

    def append(self) -> None:
        length = self._length()
        if len(self.model) + length > self._size_max:
            return
        data = self._bytes(length)
        self._note("append", len(self.model), length)
        assert os.write(self._descriptors["append"], data) == length
        self.model += data

    def copy(self) -> None:
        """Within the file, by the kernel."""
        if not self.model:
            return
        source, length = self._within()
        target = self._offset(length)
        if source < target + length and target < source + length:
            return
        self._note(f"copy from {source}", target, length)
        descriptor = self._descriptors["a"]
        assert os.copy_file_range(descriptor, self._descriptors["b"], length, source, target) == length
        self._put(target, self.model[source : source + length])

    def direct_read(self) -> None:
        size = self._rng.choice((PAGE, 4 * PAGE, 64 * KIB))
        offset = self._offset(size) // PAGE * PAGE
        with memoryview(self._block) as block:
            count = os.preadv(self._descriptors["direct"], [block[:size]], offset)
            self._check("read O_DIRECT", offset, size, bytes(block[:count]))

    def direct_write(self) -> None:
        size = self._rng.choice((PAGE, 4 * PAGE, 64 * KIB))
        offset = self._offset(size) // PAGE * PAGE
        data = self._bytes(size)
        self._note("write O_DIRECT", offset, size)
        with memoryview(self._block) as block:
            block[:size] = data
            assert os.pwritev(self._descriptors["direct"], [block[:size]], offset) == size
        self._put(offset, data)

    def _mapped(self, pages: mmap.mmap) -> tuple[int, int]:
        """A stretch that is in the file and in a mapping; none when what is in both is empty."""
        size = min(len(self.model), len(pages))
        if not size:
            return 0, 0
        offset, length = self._within()
        offset = min(offset, size - 1)
        return offset, min(length, size - offset)

    def map_read(self) -> None:
        if self._maps:
            pages = self._rng.choice(self._maps)
            offset, length = self._mapped(pages)
            self._check("read of a mapping", offset, length, pages[offset : offset + length])
            # Nobody has written there: what is mapped behind the end of the file, up to the end of its last page, is zeros.
            size = len(self.model)
            end = min(-(-size // PAGE) * PAGE, len(pages))
            if size < end and (behind := pages[size:end]).strip(b"\0"):
                self._fail("read of a mapping behind the end", size, bytes(end - size), behind)

    def map_write(self) -> None:
        if self._maps:
            offset, length = self._mapped(self._maps[0])
            data = self._bytes(length)
            self._note("write to a mapping", offset, length)
            self._maps[0][offset : offset + length] = bytes(data)
            self._put(offset, data)

    def map_again(self) -> None:
        """One mapping to write to, and one of another descriptor to read from, as long as the file is now; both stay when it changes its length."""
        for pages in self._maps:
            pages.close()
        self._maps.clear()
        if self.model:
            self._note("map", 0, 0)
            self._maps.append(mmap.mmap(self._any(), len(self.model)))
            self._maps.append(mmap.mmap(self._descriptors["read"], len(self.model), prot=mmap.PROT_READ))

    def sync_map(self) -> None:
        if self._maps and len(self._maps[0]) <= len(self.model):
            self._note("msync", 0, 0)
            self._maps[0].flush()

    def truncate(self) -> None:
        self._truncate("ftruncate", self._any(), self._size())

    def truncate_by_name(self) -> None:
        self._truncate("truncate", self.path, self._size())

    def empty(self) -> None:
        self._truncate("ftruncate", self._any(), 0)

    def _truncate(self, what: str, file: int | Path, size: int) -> None:
        low, high = sorted((size, len(self.model)))
        self._note(f"{what} from {len(self.model)} to {size}", low, high - low)
        os.truncate(file, size)
        self._cut(size)
        self.look()

    def _cut(self, size: int) -> None:
        if size < len(self.model):
            del self.model[size:]
        else:
            self.model.extend(bytes(size - len(self.model)))

    def look(self) -> None:
        """What the kernel says of the size, by descriptor and by name."""
        size = os.stat(self.path).st_size if self._rng.random() < 0.5 else os.fstat(self._any()).st_size
        if size != len(self.model):
            self._fail(f"stat says {size} bytes instead of {len(self.model)}", min(size, len(self.model)), b"", b"")

    def reopen(self) -> None:
        kind = self._rng.choice(tuple(_KINDS))
        self._note(f"reopen {kind}", 0, 0)
        os.close(self._descriptors[kind])
        self._open(kind)

    def sync(self) -> None:
        self._note("fsync", 0, 0)
        os.fsync(self._rng.choice(tuple(self._descriptors.values())))

    def sync_data(self) -> None:
        self._note("fdatasync", 0, 0)
        os.fdatasync(self._any())

    def forget_pages(self) -> None:
        """The kernel drops the pages of a stretch, as far as they are clean and nobody has them mapped."""
        offset, length = (0, 0) if self._rng.random() < 0.2 else (self._rng.choice(self._borders), MIB)
        self._note("forget pages", 0, 0)
        os.posix_fadvise(self._any(), offset, length, os.POSIX_FADV_DONTNEED)

    def compare(self) -> None:
        """The whole file."""
        self._check("read of everything", 0, len(self.model) + 1, os.pread(self._descriptors["read"], len(self.model) + 1, 0))

    def snapshot(self) -> None:
        self._note("snapshot", 0, 0)
        past = self._world.snapshot()
        if past is None:
            return
        self._past.append((past, bytes(self.model)))
        self._compare_past(*self._past[-1])
        if len(self._past) > SNAPSHOTS_KEPT:
            oldest, then = self._past.popleft()
            self._compare_past(oldest, then)
            self._world.delete(oldest)

    def look_back(self) -> None:
        """Some of the file in a snapshot."""
        if self._past:
            past, then = self._rng.choice(self._past)
            with open(past / self.path.name, "rb", buffering=0) as file:
                offset, length = self._rng.randrange(len(then) + 1), self._rng.choice(LONG)
                found = os.pread(file.fileno(), length, offset)
                if found != then[offset : offset + length]:
                    self._fail(f"read in {past.name}", offset, then[offset : offset + length], found)

    def _compare_past(self, past: Path, then: bytes) -> None:
        found = (past / self.path.name).read_bytes()
        if found != then:
            self._fail(f"all of {past.name}", 0, then, found)

    def compare_all_past(self) -> None:
        """Every snapshot that is still there."""
        for past, then in self._past:
            self._compare_past(past, then)

    def remount(self) -> None:
        """Everything is closed, the mount goes and comes back, and everything is as it was."""
        self._note("remount", 0, 0)
        self._close_all()
        self._world.remount()
        self._open_all()
        self.look()
        self.compare()
        self.compare_all_past()

    def forget_everything(self) -> None:
        self._note("drop_caches", 0, 0)
        self._world.forget()
        self.compare()


def _shown(history: Sequence[tuple[int, str, int, int]]) -> str:
    return "\n".join(f"  {n} {what} {offset} {length}" if length else f"  {n} {what}" for n, what, offset, length in history[-REMEMBERED:])
