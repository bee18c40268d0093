"""Taking a snapshot of the running mount: first what the kernel still holds is brought in, then the engine cuts.

The first pass asks the kernel, through the own mount, to write back each file that is open for writing or mapped. It
runs with nothing held, neither the loop nor the engine's worker threads: the kernel's writes arrive as requests that
both must serve.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import trio

from backupfs.engine.attributes import SnapshotInfo

WRITE_BACK_THREADS: Final = 4
"""Files brought in at once. Threads of their own: the engine's may all be needed to serve what these wait for."""
ROUNDS: Final = 3
"""A file that is renamed while its turn comes is looked for again so many times."""
_log = logging.getLogger(__name__)


class Cuttable(Protocol):
    """The part of the engine that is needed here."""

    def writable_paths(self) -> Sequence[tuple[int, bytes | None]]:
        """Inodes with a writable handle, each with a path relative to the root, or None when no name leads to it."""
        ...

    async def create_snapshot(self, why: str, message: str = "", tags: Sequence[str] = ()) -> SnapshotInfo:
        """Cut; durable on return."""
        ...

    async def commit(self) -> None:
        """Everything received so far is durable."""
        ...


class SnapshotTaker:
    """Takes snapshots one at a time. `write_back` blocks until the kernel's dirty pages of one inode have arrived."""

    def __init__(self, engine: Cuttable, write_back: Callable[[bytes | None, int], None]) -> None:
        self._engine = engine
        self._write_back = write_back
        self._one_at_a_time = trio.Lock()
        self._threads = trio.CapacityLimiter(WRITE_BACK_THREADS)

    async def take(self, why: str, message: str = "", tags: Sequence[str] = ()) -> SnapshotInfo:
        """A snapshot with everything that was written, closed or not, before this was called. Durable on return."""
        async with self._one_at_a_time:
            await self._bring_in()
            return await self._engine.create_snapshot(why, message, tags)

    async def settle(self) -> None:
        """Everything written so far, open files included, is durable on return."""
        async with self._one_at_a_time:
            await self._bring_in()
            await self._engine.commit()

    async def _bring_in(self) -> None:
        paths = dict(self._engine.writable_paths())
        for _ in range(ROUNDS):
            missed = await self._bring_in_all(paths)
            now = dict(self._engine.writable_paths())
            paths = {ino: now[ino] for ino in missed if ino in now}
            if not paths:
                return
        _log.warning("%d files open for writing were renamed faster than they could be written back before the cut", len(paths))

    async def _bring_in_all(self, paths: dict[int, bytes | None]) -> list[int]:
        """Write back these files. Those that were not found under their path are returned: removed, or renamed
        meanwhile.
        """
        left = iter(paths.items())
        missed: list[int] = []
        async with trio.open_nursery() as nursery:
            for _ in range(min(WRITE_BACK_THREADS, len(paths))):
                nursery.start_soon(self._bring_in_some, left, missed)
        return missed

    async def _bring_in_some(self, left: Iterator[tuple[int, bytes | None]], missed: list[int]) -> None:
        for ino, path in left:
            try:
                # abandoned rather than waited for: a process that goes down no longer serves what the thread waits for
                await trio.to_thread.run_sync(self._write_back, path, ino, abandon_on_cancel=True, limiter=self._threads)
            except (FileNotFoundError, NotADirectoryError):
                missed.append(ino)
            except OSError as error:
                _log.warning("a file open for writing could not be written back before the cut: %s", error.strerror)
