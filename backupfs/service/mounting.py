"""Mounting as commands see it: what is checked first, and the process that serves."""

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import trio

from backupfs.engine.attributes import Disarmed
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.keyring import Unlocked
from backupfs.engine.repository import open_filesystem, unlock
from backupfs.engine.seams import Seams
from backupfs.errors import BackupfsError
from backupfs.fuse.mount import Mount, MountOptions
from backupfs.fuse.mount_point import check_directory, check_machine
from backupfs.fuse.unmounting import clear_stale
from backupfs.rules.names import SnapDir
from backupfs.rules.quantities import CENTURY_NS
from backupfs.service import daemon, past
from backupfs.service.configuration import Configuration
from backupfs.service.groups import cause
from backupfs.service.locate import Place
from backupfs.service.log import RecentTrouble, logging_to
from backupfs.service.messages import Ready, failure
from backupfs.service.places import refuse_overlap
from backupfs.service.serving import MountJob, Serving
from backupfs.service.state import StateDirectory
from backupfs.stores.files import Files

_log = logging.getLogger(__name__)


def plan(
    place: Place,
    directory: Path,
    *,
    configuration: Configuration,
    owner: tuple[int, int],
    accept_rollback: bool,
    files: Files,
    at: str = "",
) -> tuple[MountJob, StateDirectory]:
    """What is to be mounted, checked as far as that goes without the password, and where its local state is to lie. A dead mount of ours on the
    directory is cleared. With `at`, of what time a snapshot is to be mounted: that may be done beside the mount that is there.

    Raises LockedError when the repository is mounted already, UsageError when the directory will not do.
    """
    options = configuration.effective()
    state = past.state_beside(place.state, directory) if at and past.is_served(place.state) else place.state
    state.make()
    with state.locked(files):
        clear_stale(directory)
    check_machine(os.geteuid(), allow_other=options.allow_other, suid=options.suid, dev=options.dev)
    # Before it is said that the directory is not empty, with advice for that.
    refuse_overlap(directory, {"repository": place.repository, "local state": place.state.path})
    check_directory(directory, os.geteuid())
    job = MountJob(
        repository=place.repository,
        repository_id=place.state.repository_id,
        directory=Path(os.path.realpath(directory)),
        read_only=options.read_only or bool(at),
        allow_other=options.allow_other,
        suid=options.suid,
        dev=options.dev,
        keep_awake=options.keep_awake,
        snapdir=SnapDir.DISABLED if at else options.snapdir,
        configuration=configuration,
        owner=owner,
        accept_rollback=accept_rollback,
        at=at,
    )
    return job, state


def start(job: MountJob, state: StateDirectory, password: bytes, seams: Seams, environ: Mapping[str, str]) -> Ready:
    """Serve in a new process. Returns when the mount answers; raises what kept it from that."""

    def work(report: daemon.Report) -> int:
        try:
            return _serve(job, state, password, seams, environ, True, report)
        except BackupfsError as error:
            report(failure(error))
            return error.exit_code

    return daemon.start(work)


def serve(
    job: MountJob,
    state: StateDirectory,
    password: bytes,
    seams: Seams,
    environ: Mapping[str, str],
    on_ready: Callable[[Ready], None],
) -> int:
    """Serve in this process until it is stopped or the directory is unmounted; `on_ready` is called when the mount answers."""
    return _serve(job, state, password, seams, environ, False, on_ready)


def _serve(
    job: MountJob,
    state: StateDirectory,
    password: bytes,
    seams: Seams,
    environ: Mapping[str, str],
    detached: bool,
    on_ready: Callable[[Ready], None],
) -> int:
    with state.locked(seams.files), logging_to(state.log, detached, environ) as recent:
        daemon.keep_memory_private()
        daemon.keep_memory_together()
        daemon.look_for_cycles_rarely()
        try:
            unlocked = unlock(job.repository, password, files=seams.files)
            seams = replace(seams, give_memory_back=daemon.give_memory_back)
            serving = _wired(job, state, unlocked, seams, recent, environ)
            trio.run(serving.run, on_ready)
        except BaseException as error:  # noqa: BLE001 it is passed on
            _log.error("ended: %s", cause(error), exc_info=not isinstance(cause(error), BackupfsError))
            raise cause(error) from None
    return 0


def _wired(
    job: MountJob, state: StateDirectory, unlocked: Unlocked, seams: Seams, recent: RecentTrouble, environ: Mapping[str, str]
) -> Serving[FileSystem]:
    """Everything that serves one mount, put together."""
    options = MountOptions(read_only=job.read_only, allow_other=job.allow_other, suid=job.suid, dev=job.dev, keep_awake=job.keep_awake)

    main = StateDirectory(state.path.parent, job.repository_id)

    def open_engine() -> AbstractAsyncContextManager[FileSystem]:
        if job.at and state.path != main.path:
            return past.lent(job, main, unlocked, seams, serving.stop)
        if job.at:
            return past.alone(job, state, unlocked, seams)
        return open_filesystem(
            job.repository,
            unlocked,
            state.path,
            seams=seams,
            read_only=job.read_only,
            owner=job.owner,
            accept_rollback=job.accept_rollback,
            undelete_ns=CENTURY_NS,  # until the policy that the repository keeps is known
        )

    def make_mount(filesystem: FileSystem) -> Mount:
        filesystem.snapdirs.mode = job.snapdir
        filesystem.disarms_past = Disarmed(set_id=job.suid, devices=job.dev)
        return Mount(filesystem, job.directory, options)

    serving = Serving(job, state, open_engine, make_mount, seams.clock, recent, environ)
    return serving
