"""Work that must not run on the event loop: long computations and everything that may wait for a disk.

There is one limiter for each kind of work, so that slow disks do not take the processors' places and the index has exactly one writer.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, TypeVarTuple

import trio

from backupfs import limits

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_BREATH_S = 0.0002
"""Without waiting at all the same thread would mostly take the interpreter's lock again at once."""


class Offload(Protocol):
    """Runs a function elsewhere and waits for its result. A cancelled caller still waits: the work is never left running unseen."""

    async def cpu(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Compute: chunking, hashing, compressing, sealing, and the writes that go with them."""
        ...

    async def disk(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Wait for the store: reads, syncs, renames, listings."""
        ...

    async def commit(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Make a batch durable: what others wait for goes to a thread by the shortest way. The caller sees to it that there is one at a time."""
        ...

    async def index(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """Write to the index; one at a time."""
        ...

    def breathe(self) -> None:
        """Called every now and then by long work on many small things: lets the loop have the interpreter, and raises trio.Cancelled when
        whoever waits for the work has been cancelled.
        """
        ...


class ThreadOffload:
    """trio's worker threads under three limiters."""

    def __init__(self, cpu_threads: int = limits.CPU_THREADS, disk_threads: int = limits.DISK_THREADS) -> None:
        self._cpu = trio.CapacityLimiter(cpu_threads)
        self._disk = trio.CapacityLimiter(disk_threads)
        self._index = trio.CapacityLimiter(1)

    async def cpu(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._cpu)

    async def disk(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._disk)

    async def commit(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`. Without a limiter, and so without the turn of the loop that asking one takes; the thread has no context of the task's."""
        task = trio.lowlevel.current_task()
        token = trio.lowlevel.current_trio_token()

        def deliver(result: Any) -> None:
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

        trio.lowlevel.start_thread_soon(partial(work, *args), deliver)
        result: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return result

    async def index(self, work: Callable[[*Ts], T], *args: *Ts) -> T:
        """See `Offload`."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._index)

    def breathe(self) -> None:
        """See `Offload`."""
        time.sleep(_BREATH_S)
        trio.from_thread.check_cancelled()
