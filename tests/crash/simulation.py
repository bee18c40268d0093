"""The engine without a machine: its seams filled with a simulated disk, a clock that steps, random bytes from a seed
and no threads.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar, TypeVarTuple

import trio
import trio.testing
from trio._core import _run as trio_run
from trio._core._run import CancelStatus

from backupfs import limits
from backupfs.engine.seams import Seams
from backupfs.format.keyslot import KdfParameters
from backupfs.stores.files import Files

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

KDF = KdfParameters(time=1, lanes=1, memory_kib=64)
PASSWORD = b"a password that takes no time"

SMALL_LIMITS = {
    "CHUNK_MIN_BYTES": 512,
    "CHUNK_AVG_BYTES": 2048,
    "CHUNK_MAX_BYTES": 8192,
    "PACK_TARGET_BYTES": 48 * limits.KIB,
    "JOURNAL_SEGMENT_TARGET_BYTES": 96 * limits.KIB,
    "CARRIED_BYTES_MAX": 24 * limits.KIB,
    "INDEX_RECORDS": 64,
    "INDEX_LAYERS": 2,
    "JOINED_RECORDS_MAX": 16,
    "RESERVE_BYTES": 64 * limits.KIB,
    "RECORDS_ROOM_BYTES": 16 * limits.KIB,
    "FLUSH_RUN_BYTES": 32 * limits.KIB,
    "FLUSH_JOB_BYTES": 32 * limits.KIB,
    "FLUSH_SMALL_BYTES": 16 * limits.KIB,
    "REGION_BYTES": 64 * limits.KIB,
    "REGION_EXTENTS_MAX": 24,
    "REAP_RECORDS_PER_STEP": 4,
    "PURGE_RECORDS_PER_STEP": 8,
    "CHECKPOINT_MIN_BYTES": 128 * limits.KIB,
    "CHECKPOINT_PART_BYTES": 2 * limits.KIB,
    "SORT_RUN_RECORDS": 40,
    "BREATHE_RECORDS": 16,
    "LISTED_NAMES_MAX": 12,
}
"""What makes a small workload meet every limit: packs and segments that fill up, files of many chunks and regions."""


@dataclass(frozen=True, slots=True)
class Who:
    """A caller."""

    uid: int = 0
    gid: int = 0
    pid: int = 4242
    umask: int = 0


class SteppingClock:
    """A millisecond passes each time somebody looks, and what trio's clock says."""

    def __init__(self, start_ns: int = 1_700_000_000_000_000_000) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """See `Clock`."""
        self._now_ns += 1_000_000
        return self._now_ns + int(trio.current_time() * 1e9)


class SeededRandomness:
    """Bytes that a seed gives."""

    def __init__(self, seed: object) -> None:
        self._draw = random.Random(f"randomness/{seed}")

    def draw(self, size_bytes: int) -> bytes:
        """See `Randomness`."""
        return self._draw.randbytes(size_bytes)


class InlineOffload:
    """Work is done on the spot. `after_index` is called when the index has been written to."""

    def __init__(self, after_index: Callable[[], None] = lambda: None) -> None:
        self._after_index = after_index

    async def cpu(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        await trio.lowlevel.checkpoint()
        return work(*args)

    async def disk(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        await trio.lowlevel.checkpoint()
        return work(*args)

    async def commit(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await self.disk(work, *args)

    async def index(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        await trio.lowlevel.checkpoint()
        result = work(*args)
        self._after_index()
        return result

    def breathe(self) -> None:
        """See `Offload`: nobody else could run."""


class TardyOffload(InlineOffload):
    """Work takes its time, before and after it is done: nothing, some turns of the loop, or seconds."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self._draw = draw

    async def cpu(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await self._in_its_time(super().cpu, work, *args)

    async def disk(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await self._in_its_time(super().disk, work, *args)

    async def index(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await self._in_its_time(super().index, work, *args)

    async def _in_its_time(self, do: Callable[..., Awaitable[T]], work: Callable[[*Ts], T], *args: *Ts) -> T:
        await self._nap()
        result = await do(work, *args)
        with trio.CancelScope(shield=True):  # what is done is told, as by the real threads
            await self._nap()
        return result

    async def _nap(self) -> None:
        if self._draw.random() < 0.5:
            for _ in range(self._draw.randrange(6)):
                await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(self._draw.choice([0.001, 0.01, 0.3, 1, 2.2, 4, 8]))


def seams(files: Files, seed: object, after_index: Callable[[], None] = lambda: None) -> Seams:
    """Everything the engine takes from the world."""
    return Seams(files=files, clock=SteppingClock(), randomness=SeededRandomness(seed), offload=InlineOffload(after_index))


PATIENCE_S = 100_000.0
"""Of the simulation's time, in which no work takes any: whatever is not done by then never is."""


class Patience:
    """Ends a run that waits for ever, and says for what. Cancelling alone would not reach what is shielded."""

    def __init__(self) -> None:
        self.verdict = ""
        self.clock = trio.testing.MockClock(autojump_threshold=0)
        self._jump = self.clock._autojump
        self._main: trio.lowlevel.Task | None = None
        self._outermost: object = None
        # The clock jumps whenever everybody waits; its class is final.
        setattr(self.clock, "_autojump", self._jump_or_end)  # noqa: B010 - a method

    def begin(self) -> None:
        """Called by the main task."""
        self._main = trio.lowlevel.current_task()
        self._outermost = self._main._cancel_status

    def _jump_or_end(self) -> None:
        self._jump()
        if self.clock.current_time() > PATIENCE_S and self._main is not None:
            self.verdict = self.verdict or "it never ends:\n" + "\n".join(_waiting(self._main))
            for task in _below(self._main):
                status: CancelStatus | None = task._cancel_status
                while status is not None and status is not self._outermost:
                    status._scope.shield = False
                    status._scope.cancel()
                    status = status._parent


def _below(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return [task, *(deeper for child in children for deeper in _below(child))]


def _waiting(task: trio.lowlevel.Task) -> list[str]:
    frames = [f"{frame.f_code.co_name}:{line}" for frame, line in task.iter_await_frames() if _is_ours(frame)]
    below = [line for nursery in task.child_nurseries for child in nursery.child_tasks for line in _waiting(child)]
    return [f"{task.name}: {' > '.join(frames)}", *below] if frames else below


def _is_ours(frame: FrameType) -> bool:
    return "site-packages" not in frame.f_code.co_filename and "contextlib" not in frame.f_code.co_filename


def run(main: Callable[[], Awaitable[T]], seed: object) -> T:
    """Run to the end, in no time, with the tasks in an order that the seed gives."""
    # trio shuffles the tasks it wakes; this is how its own users (pytest-trio, hypothesis) make that repeatable.
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - it is declared final
    trio_run._r.seed(f"scheduling/{seed}")
    patience = Patience()

    async def begin() -> T:
        patience.begin()
        return await main()

    try:
        return trio.run(begin, clock=patience.clock)
    finally:
        assert not patience.verdict, patience.verdict


class IndexCopies:
    """Copies of the index's file as it was at positions of the disk's log; equal pages are kept once."""

    _PAGE_BYTES = 4096

    def __init__(self, path: Path, position: Callable[[], int]) -> None:
        self._path = path
        self._position = position
        self._pages: dict[bytes, bytes] = {}
        self._copies: list[tuple[int, list[bytes]]] = []

    def take(self) -> None:
        """Keep what the file holds now."""
        data = self._path.read_bytes()
        pages = [data[at : at + self._PAGE_BYTES] for at in range(0, len(data), self._PAGE_BYTES)]
        self._copies.append((self._position(), [self._pages.setdefault(page, page) for page in pages]))

    def at(self, position: int, back: int = 0) -> bytes | None:
        """What the file held there, or `back` writes earlier; None when it was not there yet."""
        past = [pages for taken, pages in self._copies if taken <= position]
        return b"".join(past[-1 - back]) if len(past) > back else None
