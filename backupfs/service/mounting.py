"""Mounting and unmounting as commands see it: what is checked first, the process that serves, the end of it."""

import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from backupfs.engine.filesystem import FileSystem
from backupfs.engine.repository import Unlocked, open_filesystem, unlock
from backupfs.engine.seams import Seams
from backupfs.errors import BackupfsError, UsageError
from backupfs.fuse import mount as kernel
from backupfs.service import daemon
from backupfs.service.control import connected
from backupfs.service.groups import cause
from backupfs.service.kernel_mount import KernelMount
from backupfs.service.locate import Place, at_directory
from backupfs.service.log import RecentTrouble, logging_to
from backupfs.service.messages import NotRunningError, Ready, UnmountRequest, failure
from backupfs.service.offline import findings
from backupfs.service.places import refuse_overlap
from backupfs.service.serving import Check, Engine, Mount, MountJob, Serving
from backupfs.service.state import StateDirectory
from backupfs.stores.files import Files

_log = logging.getLogger(__name__)


def plan(
    place: Place,
    directory: Path,
    *,
    read_only: bool,
    allow_other: bool,
    every_ns: int | None,
    owner: tuple[int, int],
    files: Files,
) -> MountJob:
    """What is to be mounted, checked as far as that goes without the password. A dead mount of ours on the directory is
    cleared.

    Raises LockedError when the repository is mounted already, UsageError when the directory will not do.
    """
    place.state.make()
    with place.state.locked(files):
        kernel.clear_stale(directory)
    try:
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise UsageError(f"{directory} is not a directory")
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}") from error
    if kernel.is_mounted(directory):
        raise UsageError(f"{directory} is a mount of backupfs already; `backupfs umount {directory}` ends it")
    refuse_overlap(directory, {"repository": place.repository, "local state": place.state.path})
    return MountJob(
        repository=place.repository,
        repository_id=place.state.repository_id,
        directory=Path(os.path.realpath(directory)),
        read_only=read_only,
        allow_other=allow_other,
        every_ns=every_ns,
        owner=owner,
    )


def start(job: MountJob, state: StateDirectory, password: bytes, seams: Seams, environ: Mapping[str, str]) -> int:
    """Serve in a new process. Its id, once the mount answers; raises what kept it from that."""

    def work(report: daemon.Report) -> int:
        try:
            return _serve(job, state, password, seams, environ, True, lambda pid: report(Ready(pid)))
        except BackupfsError as error:
            report(failure(error))
            return error.exit_code

    return daemon.start(work).pid


def serve(
    job: MountJob,
    state: StateDirectory,
    password: bytes,
    seams: Seams,
    environ: Mapping[str, str],
    on_ready: Callable[[int], None],
) -> int:
    """Serve in this process until it is stopped or the directory is unmounted; `on_ready` is given the process id."""
    return _serve(job, state, password, seams, environ, False, on_ready)


def _serve(
    job: MountJob,
    state: StateDirectory,
    password: bytes,
    seams: Seams,
    environ: Mapping[str, str],
    detached: bool,
    on_ready: Callable[[int], None],
) -> int:
    with state.locked(seams.files), logging_to(state.log, detached, environ) as recent:
        daemon.keep_memory_private()
        try:
            unlocked = unlock(job.repository, password, files=seams.files)
            serving = _wired(job, state, unlocked, seams, recent)
            trio.run(serving.run, lambda: on_ready(os.getpid()))
        except BaseException as error:
            _log.error("ended: %s", cause(error), exc_info=not isinstance(cause(error), BackupfsError))
            raise cause(error) from None
    return 0


def _wired(job: MountJob, state: StateDirectory, unlocked: Unlocked, seams: Seams, recent: RecentTrouble) -> Serving:
    """Everything that serves one mount, put together."""

    @asynccontextmanager
    async def open_engine() -> AsyncIterator[FileSystem]:
        async with open_filesystem(
            job.repository, unlocked, state.path, seams=seams, read_only=job.read_only, owner=job.owner
        ) as filesystem:
            yield filesystem
