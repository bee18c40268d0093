"""Restores into the live tree, as they are asked for over the control socket.

What the kernel holds is brought in, then a plan is made; when there is anything to do a snapshot is taken, so that all of it can be undone, then the
plan is carried out, and the kernel is told what to forget while it goes on: until it has, it may show for a moment what it has known before.
"""

import logging
import math
import os
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Final, Protocol

import msgspec
import trio

from backupfs.engine.attributes import RestoreStep
from backupfs.engine.restoring import RestorePlan, Touched
from backupfs.errors import BackupfsError
from backupfs.service.control import Replies
from backupfs.service.history import said_of
from backupfs.service.messages import RestoreRequest, UndoRequest, shown_path, type_word
from backupfs.service.snapshots import PATIENCE_S, SnapshotTaker
from backupfs.service.telling import PROGRESS_S

FORGET_NAMES: Final = 256
"""The kernel is told when so many names have changed."""
FORGET_THREADS: Final = 4
WHY: Final = "restore"
OPTION: Final = {"replace": "--overwrite", "attributes": "--overwrite", "remove": "--delete"}
"""What has to be given for a step of this kind."""
_log = logging.getLogger(__name__)


class Restorer(Protocol):
    """The part of the engine that is needed here."""

    async def plan(self, serial: int, path: bytes, target: bytes | None = None, *, overwrite: bool = False, delete: bool = False) -> RestorePlan:
        """What it takes."""
        ...

    async def plan_undo(self) -> RestorePlan:
        """What it takes to undo the last one."""
        ...

    def carry_out(self, plan: RestorePlan) -> AsyncGenerator[tuple[RestoreStep, str]]:
        """Each step, with what was wrong or nothing."""
        ...

    def take_touched(self) -> Touched:
        """What the kernel has to forget since this was last asked."""
        ...


class StepTold(msgspec.Struct, frozen=True):
    """A step. `stage` is `planned`, `skipped` (then `option` is what would have it done) or `failed` (then `trouble` says why); `action` is add,
    replace, attributes or remove.
    """

    stage: str
    action: str
    path: str
    type: str
    size: int
    option: str | None = None
    trouble: str | None = None


class RestoreTold(msgspec.Struct, frozen=True):
    """What was done: of so many steps so many, after a snapshot of this name (None: nothing was to be done). `held` are names that the kernel could
    not be told yet, because somebody holds their directory.
    """

    target: str
    steps: int
    done: int
    skipped: int
    failed: int
    before: str | None
    held: int


class Forgetter:
    """Tells the kernel what to forget, from threads and with patience: a directory that somebody holds in the kernel is told when it is free, and
    waited for only so long. `forget` blocks.
    """

    def __init__(self, forget: Callable[[Sequence[tuple[int, bytes]], Sequence[int]], None]) -> None:
        self._forget = forget
        self._threads = trio.CapacityLimiter(math.inf)
        """Unlimited, for a thread that was given up keeps its place. There is one for each directory that is held."""
        self._lock = threading.Lock()
        self._waiting: dict[int, list[bytes]] = defaultdict(list)
        """Names to be forgotten, by directory."""
        self._held: set[int] = set()
        """Directories that a thread is at. Guarded, with `_waiting`, by the lock."""

    async def forget(self, touched: Touched) -> None:
        """All of it, but for what somebody holds: that is left to the thread that waits for it, and said in the log."""
        with self._lock:
            for directory, name in touched.names:
                self._waiting[directory].append(name)
            left = iter(list(self._waiting))
        async with trio.open_nursery() as nursery:
            for _ in range(FORGET_THREADS):
                nursery.start_soon(self._forget_some, left)
            nursery.start_soon(self._patiently, self._forget_attributes, sorted(touched.inodes))

    def held(self) -> int:
        """Names that the kernel could not be told yet."""
        with self._lock:
            return sum(map(len, self._waiting.values()))

    async def _forget_some(self, left: Iterator[int]) -> None:
        for directory in left:
            if not await self._patiently(self._forget_names, directory):
                _log.warning("directory %d is held in the kernel by another process: it shows what was restored when that lets go", directory)

    async def _patiently(self, work: Callable[..., None], *args: object) -> bool:
        with trio.move_on_after(PATIENCE_S) as scope:
            # abandoned rather than waited for: what holds it up may be somebody else's for ever
            await trio.to_thread.run_sync(work, *args, abandon_on_cancel=True, limiter=self._threads)
        return not scope.cancelled_caught

    def _forget_names(self, directory: int) -> None:
        """In a thread. Also those that come while it is at it; nothing where another thread is."""
        with self._lock:
            if directory in self._held:
                return
            self._held.add(directory)
        while True:
            with self._lock:
                names = list(self._waiting.get(directory, ()))
                if not names:
                    self._waiting.pop(directory, None)
                    self._held.discard(directory)
                    return
            self._ask([(directory, name) for name in names], [])
            with self._lock:
                del self._waiting[directory][: len(names)]

    def _forget_attributes(self, inodes: Sequence[int]) -> None:
        """In a thread."""
        self._ask([], inodes)

    def _ask(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        try:
            self._forget(names, inodes)
        except OSError as error:
            _log.error("the kernel refuses to forget what was restored: %s", error.strerror)


class Restores:
    """Carries out what is asked for, one at a time."""

    def __init__(self, restorer: Restorer, taker: SnapshotTaker, forgetter: Forgetter) -> None:
        self._restorer = restorer
        self._taker = taker
        self._forgetter = forgetter
        self._one_at_a_time = trio.Lock()

    async def restore(self, request: RestoreRequest | UndoRequest, replies: Replies) -> RestoreTold:
        """The plan as items, then, unless it is only to be shown, what became of it, which is durable by then. Ends early when nobody listens any
        more.
        """
        async with self._one_at_a_time:
            await self._taker.settle()
            plan = await self._plan(request)
            for step in plan.steps:
                await replies.item(_told("planned", step))
            for step in plan.skipped:
                await replies.item(_told("skipped", step, option=OPTION[step.action]))
            if request.dry_run or not plan.steps:
                return RestoreTold(shown_path(plan.target), len(plan.steps), 0, len(plan.skipped), 0, None, 0)
            before = await self._taker.take(WHY, f"before {_what(request, plan)}", before_restore=plan.target or b"/")
            failed = await self._carry_out_while_heard(plan, replies)
            await self._taker.settle()
            done = len(plan.steps) - failed
            return RestoreTold(shown_path(plan.target), len(plan.steps), done, len(plan.skipped), failed, before.name, self._forgetter.held())

    async def _plan(self, request: RestoreRequest | UndoRequest) -> RestorePlan:
        if isinstance(request, UndoRequest):
            return await self._restorer.plan_undo()
        where = "is not in that snapshot; `backupfs versions` shows what there is of it"
        if request.target is not None:
            where = f"is not in that snapshot, or there is no directory for {os.fsdecode(request.target)!r}"
        with said_of(request.path, where):
            return await self._restorer.plan(request.serial, request.path, request.target, overwrite=request.overwrite, delete=request.delete)

    async def _carry_out_while_heard(self, plan: RestorePlan, replies: Replies) -> int:
        """How many steps failed. BackupfsError when nobody listens any more: then it ends where it is."""
        failed: list[int] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_until_gone, replies, nursery.cancel_scope)
                failed.append(await self._carry_out(plan, replies))
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.TooSlowError):
            _log.info("whoever asked for a restore has gone")
        if not failed:
            raise BackupfsError("the restore was given up, for whoever asked for it has gone; `backupfs restore --undo` takes back what was done")
        return failed[0]

    async def _carry_out(self, plan: RestorePlan, replies: Replies) -> int:
        failed = 0
        touched = 0
        told_at = trio.current_time()
        try:
            async with aclosing(self._restorer.carry_out(plan)) as steps:
                count = 0
                async for step, trouble in steps:
                    count += 1
                    touched += 1
                    if trouble:
                        failed += 1
                        await replies.item(_told("failed", step, trouble=trouble))
                    if touched >= FORGET_NAMES:
                        touched = 0
                        await self._forgetter.forget(self._restorer.take_touched())
                    if trio.current_time() >= told_at + PROGRESS_S:
                        told_at = trio.current_time()
                        await replies.progress(count, len(plan.steps))
        finally:
            # Whatever has been done, the kernel must not go on showing what was before.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * PATIENCE_S):
                await self._forgetter.forget(self._restorer.take_touched())
        return failed


async def _until_gone(replies: Replies, scope: trio.CancelScope) -> None:
    await replies.gone()
    scope.cancel()


def _told(stage: str, step: RestoreStep, *, option: str | None = None, trouble: str | None = None) -> StepTold:
    return StepTold(stage, step.action, shown_path(step.path), type_word(step.type), step.size, option, trouble)


def _what(request: RestoreRequest | UndoRequest, plan: RestorePlan) -> str:
    return f"{'the undo of a' if isinstance(request, UndoRequest) else 'a'} restore of {shown_path(plan.target) or 'everything'}"
