"""The task tree of a process that serves one mount.

    signals
    control socket          these two from the first moment to the last, so that a stop is heard and answered
    engine
      └─ mount: requests · schedule · what was asked over the socket

Everything ends the same way: the directory is unmounted (after a signal, by `umount` over the control socket, or from
outside by fusermount3), the loop that serves requests returns, what was asked over the socket and needs the engine is
cancelled, the engine commits and closes, whoever asked for the end is answered, the process is gone.
"""

import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import trio

from backupfs.clock import Clock
from backupfs.engine.attributes import EngineStatus, SnapshotInfo
from backupfs.errors import BackupfsError, LockedError
from backupfs.fuse.unmounting import MountBusyError
from backupfs.rules.names import SnapDir
from backupfs.rules.schedule import SCHEDULED, Activity, Taken, initial
from backupfs.service.configuration import Configuration
from backupfs.service.control import CONNECTIONS_MAX, Replies, listening
from backupfs.service.groups import cause
from backupfs.service.history import Historian, answer
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.log import RecentTrouble
from backupfs.service.messages import (
    CheckRequest,
    CollectRequest,
    ConfigurationRequest,
    ConfigurationTold,
    LayerTold,
    LendRequest,
    MountRecord,
    NotRunningError,
    OutlookRequest,
    PastRequest,
    PolicyRequest,
    PolicySetRequest,
    PolicyTold,
    PruneRequest,
    Ready,
    Request,
    RestoreRequest,
    ServiceStatus,
    SnapshotDeleteRequest,
    SnapshotListRequest,
    SnapshotShowRequest,
    StatsRequest,
    StatusRequest,
    UndoRequest,
    UnmountRequest,
    shown,
)
from backupfs.service.restoring import Forgetter, Restorer, Restores
from backupfs.service.retaining import Retained, Retainer
from backupfs.service.scheduler import Scheduler
from backupfs.service.snapshot_requests import Changing, Shelf, SnapshotRequests, Upkeeping
from backupfs.service.snapshots import Cuttable, SnapshotTaker
from backupfs.service.space_requests import Freeable, SpaceRequests
from backupfs.service.state import StateDirectory
from backupfs.service.telling import PROGRESS_S
from backupfs.service.vocabulary import document, from_json, to_json

_AboutSnapshots = SnapshotListRequest | SnapshotShowRequest | SnapshotDeleteRequest | Changing
_AboutSpace = StatsRequest | OutlookRequest | PruneRequest | CollectRequest
_MOUNT_FIELDS: Final = ("read_only", "allow_other", "suid", "dev", "keep_awake", "snapdir")
"""What is settled when it is mounted."""
LENT_MAX: Final = CONNECTIONS_MAX // 2
"""Snapshots lent at once: each has a connection for as long as it is mounted."""
_log = logging.getLogger(__name__)


class Upkeep(Upkeeping, Freeable, Protocol):
    """The part of the engine's upkeep that is needed here."""

    def wake(self) -> None:
        """There is, or may be, something to do."""
        ...


class Engine(Cuttable, Shelf, Retained, Protocol):
    """The part of the engine that is needed here."""

    @property
    def upkeep(self) -> Upkeep:
        """Background work."""
        ...

    def take_named_with(self, take: Callable[[str], Awaitable[object]]) -> None:
        """What `mkdir .snapshots/NAME` does from now on."""
        ...

    def lending(self, name: str) -> AbstractAsyncContextManager[SnapshotInfo]:
        """Keep a snapshot readable for another process as long as the context lasts."""
        ...

    own_threads: set[int]
    """Threads whose requests are this process's own."""

    def activity(self) -> Activity:
        """What has changed since the last snapshot."""
        ...

    def check(self, read_data: bool, progress: Callable[[int, int], None]) -> AsyncGenerator[object]:
        """The findings as they are made; `progress` is told of bytes looked at and bytes in all."""
        ...

    @property
    def history(self) -> Historian:
        """What is asked about the past."""
        ...

    @property
    def restorer(self) -> Restorer:
        """The way back."""
        ...

    def policy(self) -> bytes:
        """What was given to `set_policy` last, or nothing."""
        ...

    async def set_policy(self, data: bytes) -> None:
        """Durable on return."""
        ...

    def status(self) -> EngineStatus:
        """What the engine is doing."""
        ...


E = TypeVar("E", bound=Engine)


class Mount(Protocol):
    """The kernel's side of one engine."""

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, report when the mount answers, serve requests, return when it is unmounted or detached."""
        ...

    async def unmount(self) -> None:
        """Unmount, or MountBusyError that says who holds it."""
        ...

    async def detach(self) -> None:
        """Take the mount away from whoever uses it."""
        ...

    def write_back(self, path: bytes | None, ino: int) -> None:
        """Bring in the kernel's dirty pages of this inode, which the path below the root led to. Blocks; OSError."""
        ...

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        """Have the kernel forget names and the attributes of inodes. Blocks; OSError."""
        ...


@dataclass(frozen=True, slots=True)
class MountJob:
    """What is to be mounted where, checked. `owner` is the user and group that a new root directory belongs to."""

    repository: Path
    repository_id: str
    directory: Path
    read_only: bool
    allow_other: bool
    suid: bool
    dev: bool
    keep_awake: bool
    snapdir: SnapDir
    configuration: Configuration
    owner: tuple[int, int]
    accept_rollback: bool = False
    at: str = ""
    """Of which point in time the snapshot is to be mounted, and nothing else; as a person says it."""


@dataclass(slots=True)
class _Running:
    """A mount that answers. Requests that use the engine are in `requests` until they are done or cancelled."""

    engine: Engine
    mount: Mount
    hooks: Hooks
    taker: SnapshotTaker
    restores: Restores
    scheduler: Scheduler | None
    retainer: Retainer
    snapshots: SnapshotRequests
    space: SpaceRequests
    requests: dict[trio.CancelScope, trio.Event] = field(default_factory=dict)
    is_unmounted: bool = False
    """Set under `_ending`: whoever wanted to unmount as well has nothing left to do, and the engine may be closing."""


class Serving(Generic[E]):
    """One mount from its engine's opening to its end. Owned by one task tree; `run` is called once.

    `_running` is set while the mount answers; whoever uses it across an await does so inside `_use`.
    """

    def __init__(
        self,
        job: MountJob,
        state: StateDirectory,
        open_engine: Callable[[], AbstractAsyncContextManager[E]],
        make_mount: Callable[[E], Mount],
        clock: Clock,
        recent: RecentTrouble,
        environ: Mapping[str, str],
    ) -> None:
        self._job = job
        self._state = state
        self._open_engine = open_engine
        self._make_mount = make_mount
        self._clock = clock
        self._recent = recent
        self._environ = environ
        self._configuration = job.configuration
        self._effective = job.configuration.effective()
        self._reloading = trio.Lock()
        self._threads = trio.CapacityLimiter(1)
        self._since_ns = clock.now_ns()
        self._phase = "starting"
        self._running: _Running | None = None
        self._lent = 0
        self._stop_asked = trio.Event()
        self._ending = trio.Lock()
        self._closed = trio.Event()
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """End as after a signal."""
        self._stop_asked.set()

    async def run(self, on_ready: Callable[[Ready], None]) -> None:
        """Open, mount, call `on_ready`, serve, and return after a clean end. Raises what went wrong, in exception
        groups.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery)
            async with listening(self._state.socket, self._handle):
                try:
                    async with self._open_engine() as engine:
                        await self._serve(engine, on_ready)
                except Exception as failure:  # noqa: BLE001 raised below, when those who wait for the end have been told
                    self._failure = failure
                finally:
                    self._phase = "closed"
                    self._state.forget()
                    self._closed.set()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, engine: E, on_ready: Callable[[Ready], None]) -> None:
        self._phase = "mounting"
        mount = self._make_mount(engine)
        self._effective = self._configuration.effective(engine.policy())
        hooks = Hooks(self._effective.hooks, self._mounted(), self._environ)
        taker = SnapshotTaker(engine, partial(_as_own, engine.own_threads, mount.write_back), hooks)
        upkeep = engine.upkeep
        retainer = Retainer(engine, upkeep, self._clock, self._effective.retention)
        scheduler = self._scheduler(engine, taker, retainer)
        restores = Restores(engine.restorer, taker, Forgetter(mount.forget))
        snapshots = SnapshotRequests(engine, upkeep, taker, retainer, self._clock)
        running = _Running(engine, mount, hooks, taker, restores, scheduler, retainer, snapshots, SpaceRequests(engine, upkeep, retainer))
        async with trio.open_nursery() as nursery:
            await nursery.start(self._serve_requests, mount, nursery.cancel_scope)
            self._running = running
            self._phase = "serving"
            self._put_in_force()  # it may have been read anew meanwhile
            self._state.note(self._record())
            _log.info("the repository %s is mounted", self._job.repository_id)
            on_ready(self._ready(scheduler))
            nursery.start_soon(self._stop_when_asked, running)
            if scheduler is not None:
                engine.take_named_with(partial(_take_by_mkdir, taker, nursery))
                nursery.start_soon(scheduler.run)
                nursery.start_soon(retainer.run)
        self._running = None
        self._phase = "closing"
        for scope in running.requests:
            scope.cancel()
        for done in list(running.requests.values()):
            await done.wait()
        await engine.commit()
        _log.info("unmounted; everything received is durable")

    async def _serve_requests(self, mount: Mount, whole: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await mount.serve(task_status)
        whole.cancel()

    def _scheduler(self, engine: Engine, taker: SnapshotTaker, retainer: Retainer) -> Scheduler | None:
        if self._job.read_only:
            return None

        async def take(tags: tuple[str, ...]) -> None:
            await taker.take(SCHEDULED, tags=tags)
            retainer.wake()

        schedules = self._effective.schedules
        state = initial(self._clock.now_ns(), schedules, _taken(engine))
        return Scheduler(schedules, state, self._clock, engine.activity, take)

    def _ready(self, scheduler: Scheduler | None) -> Ready:
        if scheduler is None:
            return Ready(os.getpid())
        status = scheduler.status()
        return Ready(os.getpid(), status.every_s if status else None, [view.trigger for view in scheduler.views()])

    def _record(self) -> MountRecord:
        return MountRecord(
            repository=str(self._job.repository),
            repository_id=self._job.repository_id,
            directory=str(self._job.directory),
            pid=os.getpid(),
            since_ns=self._since_ns,
            read_only=self._job.read_only,
        )

    def _mounted(self) -> Mounted:
        return Mounted(str(self._job.directory), str(self._job.repository), self._job.repository_id)

    # --- configuration ------------------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """Read the file anew. When that fails everything stays as it is."""
        async with self._reloading:
            try:
                # in a thread, for the file may lie in the own mount; abandoned rather than waited for, for the same reason
                found = await trio.to_thread.run_sync(self._configuration.reread, abandon_on_cancel=True, limiter=self._threads)
            except BackupfsError as error:
                _log.error("the configuration stays as it was: %s", error)
            except Exception:  # noqa: BLE001 a signal must not end the mount
                _log.exception("the configuration stays as it was")
            else:
                self._configuration = found
                self._put_in_force()
                _log.info("the configuration was read anew, from %s", found.path or "the environment alone")

    def _put_in_force(self) -> None:
        """What configuration and policy say now. The mount itself keeps its options."""
        running = self._running
        if running is None:
            return
        before = self._effective
        now = self._effective = self._configuration.effective(running.engine.policy())
        running.hooks.commands = now.hooks
        running.retainer.retention = now.retention
        running.engine.upkeep.undelete_ns = now.undelete_ns
        running.engine.upkeep.wake()
        if running.scheduler is not None and before.schedules != now.schedules:
            running.scheduler.reschedule(now.schedules, _taken(running.engine))
        job = self._job
        if not job.at and any(getattr(job, field) != getattr(now, field) for field in _MOUNT_FIELDS):
            _log.warning("options of the mount have changed in the configuration; they count from the next mount on")

    # --- the end --------------------------------------------------------------------------------------------------

    async def _watch_signals(self, everything: trio.Nursery, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    everything.start_soon(self._reload)
                    continue
                _log.info("%s: stopping", signal.Signals(number).name)
                self._stop_asked.set()
                if self._phase == "starting":
                    everything.cancel_scope.cancel()

    async def _stop_when_asked(self, running: _Running) -> None:
        await self._stop_asked.wait()
        async with self._ending:
            if running.is_unmounted:
                return
            try:
                await running.taker.settle()
            except BackupfsError as error:
                _log.error("not everything could be made durable before the end: %s", error)
            try:
                await running.mount.unmount()
            except MountBusyError as error:
                _log.warning("the mount is in use by %s; it is taken away from them", _who(error))
                await running.mount.detach()
            running.is_unmounted = True

    async def _unmount(self, running: _Running) -> None:
        async with self._ending:
            if running.is_unmounted:
                return
            try:
                await running.taker.settle()
            except BackupfsError as error:
                if not running.engine.status().failure:
                    raise
                # Writing has stopped for good: staying mounted would not save anything.
                _log.error("not everything could be made durable before the end: %s", error)
            await running.mount.unmount()
            running.is_unmounted = True

    # --- requests over the control socket ----------------------------------------------------------------------------

    @contextmanager
    def _use(self) -> Iterator[_Running]:
        """The running mount; when it ends meanwhile, the user is cancelled and NotRunningError comes out."""
        running = self._running
        if running is None:
            raise NotRunningError(f"the mount on {self._job.directory} is {self._phase}")
        done = trio.Event()
        with trio.CancelScope() as scope:
            running.requests[scope] = done
            try:
                yield running
            finally:
                del running.requests[scope]
                done.set()
        if scope.cancelled_caught:
            raise NotRunningError(f"the mount on {self._job.directory} was ended meanwhile")

    async def _handle(self, request: Request, replies: Replies) -> object:
        match request:
            case StatusRequest():
                return self._status()
            case UnmountRequest():
                return await self._handle_unmount()
            case LendRequest():
                return await self._handle_lend(request.name, replies)
            case ConfigurationRequest():
                return self._handle_configuration()
            case _:
                with self._use() as running:
                    if isinstance(request, PastRequest):
                        done = await self._handle_past(running, request, replies)
                    else:
                        done = await self._handle_in(running, request, replies)
                    return done

    async def _handle_past(self, running: _Running, request: PastRequest, replies: Replies) -> object:
        if not isinstance(request, RestoreRequest | UndoRequest):
            return await answer(running.engine.history, request, replies)
        if not request.dry_run:
            self._refuse_read_only()
        return await running.restores.restore(request, replies)

    async def _handle_in(
        self,
        running: _Running,
        request: CheckRequest | PolicyRequest | PolicySetRequest | _AboutSnapshots | _AboutSpace,
        replies: Replies,
    ) -> object:
        match request:
            case CheckRequest():
                return await _check(running.engine, request.read_data, replies)
            case PolicyRequest():
                return PolicyTold(running.engine.policy().decode(errors="replace"))
            case PolicySetRequest():
                self._refuse_read_only()
                return await self._handle_policy_set(running, request)
            case StatsRequest() | OutlookRequest() | PruneRequest() | CollectRequest():
                return await self._handle_space(running.space, request, replies)
            case _:
                return await self._handle_snapshots(running.snapshots, request, replies)

    async def _handle_space(self, space: SpaceRequests, request: _AboutSpace, replies: Replies) -> object:
        if isinstance(request, StatsRequest):
            return await space.stats(replies)
        if isinstance(request, OutlookRequest):
            return await space.outlook(replies)
        if not request.dry_run:
            self._refuse_read_only()
        return await (space.prune(request, replies) if isinstance(request, PruneRequest) else space.collect(request, replies))

    async def _handle_snapshots(self, snapshots: SnapshotRequests, request: _AboutSnapshots, replies: Replies) -> object:
        match request:
            case SnapshotListRequest():
                return await snapshots.tell_all(request, replies)
            case SnapshotShowRequest():
                return await snapshots.show(request)
            case SnapshotDeleteRequest():
                if not request.dry_run:
                    self._refuse_read_only()
                return await snapshots.delete(request, replies)
            case _:
                self._refuse_read_only()
                return await snapshots.change(request)

    async def _handle_policy_set(self, running: _Running, request: PolicySetRequest) -> PolicyTold:
        """The policy as it is kept, which is in force at once."""
        before = running.engine.policy().decode(errors="replace")
        if request.instead_of not in (None, before):
            raise BackupfsError("somebody else has set the policy meanwhile; nothing was changed: `backupfs policy show` shows it")
        data = to_json(from_json(request.policy.encode(), "the policy"))
        await running.engine.set_policy(data)
        self._put_in_force()
        _log.info("the policy was set")
        return PolicyTold(data.decode())

    def _handle_configuration(self) -> ConfigurationTold:
        with self._use() as running:
            layers = self._configuration.layers(running.engine.policy())
        return ConfigurationTold([LayerTold(shown(layer.origin), document(layer.settings)) for layer in layers])

    def _refuse_read_only(self) -> None:
        if self._job.read_only:
            raise BackupfsError(f"{self._job.directory} is mounted read-only")

    async def _handle_unmount(self) -> object:
        running = self._running
        if running is None:
            raise NotRunningError(f"the mount on {self._job.directory} is {self._phase}")
        await self._unmount(running)
        await self._closed.wait()
        if self._failure is not None:
            raise BackupfsError(f"{self._job.directory} is unmounted, but its end failed: {cause(self._failure)}; see {self._state.log}")
        return {"directory": shown(str(self._job.directory)), "repository": shown(str(self._job.repository)), "pid": os.getpid()}

    async def _handle_lend(self, name: str, replies: Replies) -> object:
        with self._use() as running:
            if self._lent >= LENT_MAX:
                raise LockedError(
                    f"{self._lent} snapshots are mounted by themselves (`mount --at`), more would leave other commands no room: unmount one"
                )
            self._lent += 1
            try:
                async with running.engine.lending(name) as info:
                    await replies.item(info)
                    await replies.gone()
            finally:
                self._lent -= 1
        return {"name": name}

    def _status(self) -> ServiceStatus:
        running = self._running
        scheduler = running.scheduler if running else None
        return ServiceStatus(
            mounted=running is not None,
            phase=self._phase,
            repository=shown(str(self._job.repository)),
            repository_id=self._job.repository_id,
            directory=shown(str(self._job.directory)),
            pid=os.getpid(),
            since_ns=self._since_ns,
            read_only=self._job.read_only,
            log=shown(str(self._state.log)),
            schedule=scheduler.status() if scheduler else None,
            engine=running.engine.status() if running else None,
            errors=self._recent.kept(),
            schedules=scheduler.views() if scheduler else [],
            configuration=shown(str(self._configuration.path)) if self._configuration.path else None,
            retention=running.retainer.status() if running and scheduler else None,
            deleted=running.snapshots.deleted() if running else [],
        )


async def _take_by_mkdir(taker: SnapshotTaker, nursery: trio.Nursery, name: str) -> SnapshotInfo:
    """Take a snapshot of this name. The kernel keeps `.snapshots` to itself until the request is answered, and the hook after the snapshot may want
    to look into it: so that hook runs when the request has its answer.
    """

    async def take(task_status: trio.TaskStatus[SnapshotInfo | Exception]) -> None:
        told: list[SnapshotInfo | Exception] = []

        def tell(cut: SnapshotInfo | Exception) -> None:
            told.append(cut)
            task_status.started(cut)

        try:
            await taker.take("mkdir", name=name, on_cut=tell)
        except Exception:
            if not told:
                raise

    cut: SnapshotInfo | Exception = await nursery.start(take)
    if isinstance(cut, Exception):
        raise cut
    return cut


def _taken(engine: Engine) -> list[Taken]:
    return [Taken(info.time_ns, info.serial, info.why, info.tags) for info in engine.snapshots()]


def _who(error: MountBusyError) -> str:
    """The processes that hold the mount, without the names of what they hold: those must not get into the log."""
    named = error.fields.get("holders")
    found = sorted({str(holder).partition(":")[0] for holder in named}) if isinstance(named, list) else []
    return ", ".join(found) or "a process that may not be looked at"


async def _check(engine: Engine, read_data: bool, replies: Replies) -> object:
    """Run a check: its findings become items, its progress is told every `PROGRESS_S` seconds. The result counts the
    findings.
    """
    at = [0, 0]
    told = [0, 0]
    count = 0

    def note(done: int, total: int) -> None:
        at[:] = done, total

    sender, receiver = trio.open_memory_channel[object](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_find, engine, read_data, note, sender)
        finding: object = None
        while True:
            with trio.move_on_after(PROGRESS_S) as waiting:
                try:
                    finding = await receiver.receive()
                except trio.EndOfChannel:
                    break
            if waiting.cancelled_caught:
                if at != told:
                    told[:] = at
                    await replies.progress(at[0], at[1])
            else:
                count += 1
                await replies.item(finding)
    return {"findings": count}


async def _find(engine: Engine, read_data: bool, note: Callable[[int, int], None], sender: trio.MemorySendChannel[object]) -> None:
    async with sender, aclosing(engine.check(read_data, note)) as findings:
        async for finding in findings:
            await sender.send(finding)


def _as_own(own_threads: set[int], write_back: Callable[[bytes | None, int], None], path: bytes | None, ino: int) -> None:
    """`write_back`, its requests known to the engine as this process's own."""
    thread = threading.get_native_id()
    own_threads.add(thread)
    try:
        write_back(path, ino)
    finally:
        own_threads.discard(thread)
