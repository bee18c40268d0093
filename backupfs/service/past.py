"""Mounting one snapshot: beside the process that has the repository mounted, which lends it, or alone.

Beside it, this process has no lock and writes nothing: it reads the index that the other one writes, and has a directory of local state of its own.
When the other one ends, so does this mount.
"""

import hashlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from backupfs.clock import Clock
from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.keyring import Unlocked
from backupfs.engine.repository import open_filesystem, open_lent_snapshot
from backupfs.engine.seams import Seams
from backupfs.rules.when import Known, resolve
from backupfs.service.client import connected
from backupfs.service.messages import LendRequest, NotRunningError, SnapshotListRequest
from backupfs.service.places import local_zone
from backupfs.service.serving import MountJob
from backupfs.service.state import StateDirectory

_log = logging.getLogger(__name__)


def is_served(state: StateDirectory) -> bool:
    """Whether a process has the repository mounted."""
    try:
        with connected(state.socket):
            return True
    except NotRunningError:
        return False


def state_beside(state: StateDirectory, directory: Path) -> StateDirectory:
    """Local state of a mount of one snapshot on this directory, beside the one that `state` belongs to."""
    mark = hashlib.blake2b(bytes(directory), digest_size=8).hexdigest()
    return StateDirectory(state.path.parent, f"{state.repository_id}.at-{mark}")


def lent(job: MountJob, main: StateDirectory, unlocked: Unlocked, seams: Seams, stop: Callable[[], None]) -> AbstractAsyncContextManager[FileSystem]:
    """The snapshot that the job asks for, lent by the process that serves `main`. `stop` is called when that one ends."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[FileSystem]:
        known: list[Any] = []
        with connected(main.socket) as client:
            client.ask(SnapshotListRequest(), known.append)
        name = _chosen(job.at, [(s["serial"], s["name"], s["time_ns"]) for s in known], seams.clock)
        with connected(main.socket) as client:
            await trio.to_thread.run_sync(client.borrow, LendRequest(name))
            async with open_lent_snapshot(job.repository, unlocked, main.path, name, seams=seams) as filesystem, trio.open_nursery() as nursery:

                async def watch() -> None:
                    await trio.lowlevel.wait_readable(client)
                    _log.info("the mount that this snapshot was lent by has ended")
                    stop()

                nursery.start_soon(watch)
                yield filesystem
                nursery.cancel_scope.cancel()

    return opened()


def alone(job: MountJob, state: StateDirectory, unlocked: Unlocked, seams: Seams) -> AbstractAsyncContextManager[FileSystem]:
    """The snapshot that the job asks for, of a repository that nobody has mounted: it is locked, and recovered in the index if need be."""

    def choose(snapshots: Sequence[SnapshotInfo]) -> str:
        return _chosen(job.at, [(s.serial, s.name, s.time_ns) for s in snapshots], seams.clock)

    return open_filesystem(job.repository, unlocked, state.path, seams=seams, read_only=True, choose=choose)


def _chosen(text: str, known: Sequence[tuple[int, str, int]], clock: Clock) -> str:
    serial = resolve(text, [Known(*each) for each in known], clock.now_ns(), local_zone(os.environ))
    return next(name for number, name, _ in known if number == serial)
