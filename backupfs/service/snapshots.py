"""Taking a snapshot of the running mount: first what the kernel still holds is brought in, then the engine cuts.

The first pass asks the kernel, through the own mount, to write back each file that is open for writing or mapped. It
runs with nothing held, neither the loop nor the engine's worker threads: the kernel's writes arrive as requests that
both must serve.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Protocol

import trio

from backupfs.engine.attributes import SnapshotInfo
from backupfs.service.hooks import Hooks

WRITE_BACK_THREADS: Final = 4
"""Files brought in at once. Threads of their own: the engine's may all be needed to serve what these wait for."""
ROUNDS: Final = 3
"""A file that is renamed while its turn comes is looked for again so many times."""
PATIENCE_S: Final = 10.0
"""So long a file's pages may fail to come. Somebody may hold the file in the kernel for ever: in a write(2) whose source is a page of a file
system that does not answer."""
_log = logging.getLogger(__name__)


class Cuttable(Protocol):
    """The part of the engine that is needed here."""

    def writable_paths(self) -> Sequence[tuple[int, bytes | None]]:
        """Inodes with a writable handle, each with a path relative to the root, or None when no name leads to it."""
        ...

    def written_at(self, ino: int) -> float:
        """When (in trio's time) bytes of this inode came last."""
        ...

    def check_name(self, name: str) -> None:
        """UsageError for a name that will not do, FileSystemError EEXIST for one that is taken."""
        ...

    async def create_snapshot(
        self, why: str, message: str = "", tags: Sequence[str] = (), name: str = "", before_restore: bytes = b""
    ) -> SnapshotInfo:
        """Cut; durable on return. Without a `name` it gets one from the time. FileSystemError EEXIST when that is taken."""
        ...

    async def commit(self) -> None:
        """Everything received so far is durable."""
        ...


def _ignore(_: SnapshotInfo | Exception) -> None:
    """Nobody wants to know."""


class SnapshotTaker:
    """Takes snapshots one at a time. `write_back` blocks until the kernel's dirty pages of one inode have arrived."""

    def __init__(self, engine: Cuttable, write_back: Callable[[bytes | None, int], None], hooks: Hooks) -> None:
        self._engine = engine
        self._write_back = write_back
        self._hooks = hooks
        self._one_with_hooks = trio.Lock()
        self._one_at_a_time = trio.Lock()
        """Held while something is brought in, and not while a hook runs: an unmount does not wait for hooks."""
        self._threads = trio.CapacityLimiter(math.inf)
        """Unlimited, for a thread that was given up keeps its place. Their number is bounded by who starts them, and by `_held`."""
        self._held: set[int] = set()
        """Inodes that a thread is at. One that was given up and has not come back is not begun once more."""

    async def take(
        self,
        why: str,
        message: str = "",
        tags: Sequence[str] = (),
        name: str = "",
        on_cut: Callable[[SnapshotInfo | Exception], None] = _ignore,
        *,
        before_restore: bytes = b"",
    ) -> SnapshotInfo:
        """A snapshot with everything that was written, closed or not, before this was called, and by the hook before it. Durable on return.
        `before_restore` is the path that is about to be restored.

        `on_cut` is told of it when it is durable, or of what went wrong instead, before the hook after it runs. HookFailedError when the hook before
        it fails, UsageError for a name that will not do, FileSystemError EEXIST for one that is taken; none is taken then.
        """
        if name:
            self._engine.check_name(name)
        async with self._one_with_hooks:
            return await self._hooks.around(partial(self._take, why, message, tags, name, on_cut, before_restore), why, tags)

    async def _take(
        self, why: str, message: str, tags: Sequence[str], name: str, on_cut: Callable[[SnapshotInfo | Exception], None], before_restore: bytes
    ) -> SnapshotInfo:
        try:
            async with self._one_at_a_time:
                await self._bring_in()
                info = await self._engine.create_snapshot(why, message, tags, name, before_restore)
        except Exception as error:
            on_cut(error)
            raise
        on_cut(info)
        return info

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
        # Renamed again and again, or something is mounted over the path: by its number each can be reached as well.
        await self._bring_in_all(dict.fromkeys(paths))

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
                await self._bring_in_one(path, ino)
            except (FileNotFoundError, NotADirectoryError):
                missed.append(ino)
            except OSError as error:
                _log.warning("a file open for writing could not be written back before the cut: %s", error.strerror)

    async def _bring_in_one(self, path: bytes | None, ino: int) -> None:
        if ino in self._held:
            _log.warning("inode %d is still held in the kernel, so what is written to it is not brought in", ino)
            return
        failed: list[OSError] = []
        with trio.CancelScope(deadline=trio.current_time() + PATIENCE_S) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_longer, scope, ino)
                try:
                    # abandoned rather than waited for: a process that goes down no longer serves what the thread waits for
                    await trio.to_thread.run_sync(self._write_back_now, path, ino, abandon_on_cancel=True, limiter=self._threads)
                except OSError as error:
                    failed.append(error)
                nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]
        if scope.cancelled_caught:
            _log.warning("inode %d is held in the kernel: what is written to it was not brought in within %d s", ino, PATIENCE_S)

    def _write_back_now(self, path: bytes | None, ino: int) -> None:
        """In a thread."""
        self._held.add(ino)
        try:
            self._write_back(path, ino)
        finally:
            self._held.discard(ino)

    async def _wait_longer(self, scope: trio.CancelScope, ino: int) -> None:
        """While the file's pages come, there is patience."""
        while True:
            await trio.sleep(PATIENCE_S / 4)
            scope.deadline = max(scope.deadline, self._engine.written_at(ino) + PATIENCE_S)
