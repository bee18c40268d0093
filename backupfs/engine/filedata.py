"""What files contain: taking writes in, storing them, reading them back.

Bytes go runs (just written) -> in flight (being stored) -> extents (stored). A read puts the three over each other, newest on top. One task at a
time stores a file's bytes; only of a file that grows the next part is cut while those before it are still compressed, sealed and appended, and
the parts count as stored one after the other. Chunk boundaries depend on content only: an appending run starts over at the last boundary that
is known, and only a flush that must have everything stored cuts before the next one is known.
"""

import enum
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVarTuple

import trio

from backupfs import limits
from backupfs.engine.blobstore import BlobStore, Chunk
from backupfs.engine.inodes import InodeState, InodeTable
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, DamageError, StoreFullError, again
from backupfs.format import catalog as records
from backupfs.format.catalog import TOMBSTONE, Extent, Inode, Orphan, Table, number_key, region_key
from backupfs.rules import extents as rules
from backupfs.rules.runs import Piece, Run

log = logging.getLogger(__name__)
Ts = TypeVarTuple("Ts")

_WINDOW_BYTES = limits.CHUNK_MAX_BYTES


class FlushMode(enum.Enum):
    """STREAM stores what is cut for certain; ALL stores everything, the uncertain end in a small blob; COLD cuts at the end of the file too."""

    STREAM = 1
    ALL = 2
    COLD = 3


@dataclass(slots=True)
class _Job:
    """Bytes of one file on their way: from `start` on; what lies before `fresh` is stored already and only helps to find boundaries."""

    state: InodeState
    run: Run
    start: int
    fresh: int
    mode: FlushMode
    appends: bool
    boundary: int | None
    """Where the unfinished chunk begins that this run goes on with, when it is too small to be worth looking for that chunk's end."""
    settles: int
    """With this job all bytes are stored that the file had when it was so long; 0 when others are left."""


@dataclass(slots=True, eq=False)
class _Turn:
    """Some files' jobs, which are stored together. A part of a growing file comes into effect after the part `before` it, or not at all."""

    states: Sequence[InodeState]
    mode: FlushMode
    before: "_Turn | None"
    jobs: list[_Job] = field(default_factory=list)
    cut_to: int | None = None
    """The boundary from which the file can be cut on, once it is known."""
    error: BackupfsError | None = None
    over: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class _Cut:
    """The chunks of a job, which make the bytes [`stored_from`, `end`), and the last boundary that is known."""

    chunks: list[Chunk]
    stored_from: int
    end: int
    boundary: int
    fresh: memoryview
    """The job's own bytes, in one piece."""


class FileData:
    """Contents of the live tree's files, and the reading of all."""

    def __init__(self, volume: Volume, inodes: InodeTable, blobs: BlobStore) -> None:
        self._volume = volume
        self._inodes = inodes
        self._blobs = blobs
        self._dirty: dict[int, InodeState] = {}
        self._long: dict[int, InodeState] = {}
        self.dirty_bytes = 0
        self._waiting = trio.lowlevel.ParkingLot()
        """Who waits for room, in the order of coming: a file's bytes that arrive in order are taken in so."""
        self._coming_in = False
        """One of them is about to: two at a time would come in in any order."""
        self._work = trio.Event()
        self._rests = False
        self._settled = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._jobs = trio.Semaphore(limits.FLUSH_JOBS)
        self._turns: dict[int, _Turn] = {}
        """The newest turn of each file that is being stored."""
        self._ahead = 0
        self._crowded: dict[int, set[int]] = {}
        """Regions of files, by inode number, whose records have grown too long."""
        self._tails: dict[int, InodeState] = {}
        self._ended_to: dict[int, bytes] = {}
        self.stuck = False
        """The last attempt to store something failed: waiting for room would be waiting for ever."""
        self._no_room = False
        """It failed because the disk is full."""
        self.ended: deque[tuple[int, Orphan]] = deque()
        """Data whose regions are still to be ended."""

    # taking writes in

    def write(self, state: InodeState, offset: int, data: Piece) -> None:
        """Take bytes in. Atomic; the caller has waited for `room`."""
        size = len(data)
        before = state.runs.total_bytes
        run_bytes = state.runs.write(offset, data)
        self.dirty_bytes += state.runs.total_bytes - before
        end = offset + size
        if end > state.record.size:
            state.record.size = end
            self._inodes.touch(state)
        state.written_at = trio.current_time()
        state.shown = None
        self._dirty[state.ino] = state
        if run_bytes >= limits.FLUSH_RUN_BYTES:
            self._long[state.ino] = state
            self._work.set()
        elif self.dirty_bytes > limits.DIRTY_BYTES_MAX // 2:
            self._work.set()

    def must_wait(self) -> bool:
        """Whether who brings bytes is to wait for `room` first: most need not, and are spared a coroutine."""
        return self._coming_in or bool(self._waiting) or self._is_full()

    async def room(self) -> None:
        """Wait until more bytes may be taken in."""
        if self.must_wait():
            self._work.set()
            await self._waiting.park()
            self._coming_in = False
            self._let_in()

    # reading

    async def read(self, state: InodeState, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Bytes of a live file: fewer than `size` only at its end."""
        end = min(offset + size, state.record.size)
        if end <= offset:
            return b""
        if state.clean:
            return await self.read_stored(state.record, records.EPOCH_MAX, offset, end)
        # What is taken from where is settled now: bytes may be stored, and leave `in_flight`, while we wait for older ones.
        newer = [*state.in_flight.parts(offset, end), *state.runs.parts(offset, end)]
        if len(newer) == 1 and newer[0].length == end - offset:
            return newer[0].bytes()
        into = bytearray(end - offset)
        into[:] = await self.read_stored(state.record, records.EPOCH_MAX, offset, end)
        for part in newer:
            at = part.start - offset
            for piece in part.pieces:
                into[at : at + len(piece)] = piece
                at += len(piece)
        return into

    async def read_stored(self, record: Inode, epoch: int, low: int, high: int) -> bytes | bytearray | memoryview:
        """Stored bytes [low, high) of a file as a view at `epoch` sees it. Zeros where there is a hole."""
        extents = self.extents(record, epoch, low, high)
        catalog = self._volume.catalog
        for extent in extents:
            catalog.pin(extent[2])
        try:
            chunks = await self._blobs.read([extent[2] for extent in extents])
        finally:
            for extent in extents:
                catalog.unpin(extent[2])
        parts: list[bytes | memoryview] = []
        at = low
        for start, length, number, inner in extents:
            chunk = chunks[number]
            if start > at:
                parts.append(bytes(start - at))
            parts.append(chunk if length == len(chunk) else memoryview(chunk)[inner : inner + length])
            at = start + length
        if at < high:
            parts.append(bytes(high - at))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_ahead(self, record: Inode, epoch: int, low: int, high: int) -> None:
        """Have the chunks of [low, high) fetched into the cache, some at a time, in the background and as far as there is capacity for it."""
        try:
            extents = self.extents(record, epoch, low, min(high, record.size)) if low < record.size else []
        except BackupfsError as error:
            # Whoever reads these bytes is told; reading ahead is nobody's request.
            log.debug("reading ahead: %s", error)
            return
        missing = [extent for extent in extents if not self._blobs.is_at_hand(extent[2])]
        while missing and self._ahead < limits.READ_AHEAD_TASKS:
            numbers: dict[int, None] = {}
            size_bytes = 0
            while missing and size_bytes < limits.READ_AHEAD_STEP_BYTES:
                _, length, number, _ = missing.pop(0)
                numbers[number] = None
                size_bytes += length
            for number in numbers:
                self._volume.catalog.pin(number)
            self._ahead += 1
            self._background(self._fetch, list(numbers))

    def extents(self, record: Inode, epoch: int, low: int, high: int) -> list[Extent]:
        """The extents of [low, high), clipped."""
        if not record.data:
            return rules.clip(record.extents, low, high)
        found: list[Extent] = []
        for region in rules.regions_of(low, high, limits.REGION_BYTES):
            found.extend(rules.clip(self._region(record.data, region, epoch), low, high))
        return found

    # storing

    async def flush(self, states: Sequence[InodeState], mode: FlushMode) -> None:
        """Store what these files have been given so far. Raises the first error; what could not be stored stays unstored."""
        waiting = [state for state in states if not state.clean]
        with self._awaiting(states):
            while waiting:
                busy = [state for state in waiting if state.flushing]
                free = [state for state in waiting if not state.flushing]
                if free:
                    await self._store(self._begin(free, mode))
                else:
                    await self._settled.wait()
                waiting = [state for state in busy if not state.clean]

    async def settled(self) -> None:
        """Wait until some files that are being stored are stored, or failed to be."""
        await self._settled.wait()

    def wake(self) -> None:
        """Writing has stopped for good: nobody is to wait for room any longer."""
        self._waiting.unpark_all()

    def rest(self) -> None:
        """Nothing is written before `stir` is called: `run` need not look for what has been left alone."""
        self._rests = True

    def stir(self) -> None:
        """Something may be written from now on."""
        self._rests = False
        self._work.set()

    async def flush_all(self, *, where_there_is_room: bool = False) -> None:
        """Store everything received so far. One file's trouble does not keep the others from being stored; the first is raised at the end. Nothing is
        tried of what a full disk is known to have no room for, if that is asked for.
        """
        trouble: BackupfsError | None = None
        for group in _groups(list(self._dirty.values())):
            try:
                if not where_there_is_room or await self._has_room(group, FlushMode.ALL):
                    await self.flush(group, FlushMode.ALL)
            except BackupfsError as error:
                trouble = trouble or again(error)
        if trouble is not None:
            raise again(trouble)

    def unstored(self) -> list[InodeState]:
        """Files with bytes not stored."""
        return list(self._dirty.values())

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Task: store long runs as they grow, others when they have been left alone for a while or memory runs short."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                nothing_ages = self._rests and not self._dirty and not self._tails
                with trio.move_on_after(math.inf if nothing_ages else limits.DIRTY_AGE_S / 2):
                    await self._work.wait()
                self._work = trio.Event()
                for state in list(self._long.values()):
                    if self._may_be_cut(state):
                        self._long.pop(state.ino, None)
                        await self._start([state], FlushMode.STREAM)
                pressed = self.dirty_bytes > limits.DIRTY_BYTES_MAX // 2
                old = trio.current_time() - limits.DIRTY_AGE_S
                for state in [s for s in self._tails.values() if not s.flushing and s.written_at <= old]:
                    await self._jobs.acquire()
                    self._background(self._finish_tail, state)
                due = [s for s in self._dirty.values() if s.runs and not s.flushing and (pressed or s.written_at <= old)]
                cold = [] if pressed else [state for state in due if not state.writers]
                for group in _groups(cold):
                    await self._start(group, FlushMode.COLD)
                # Of a file that somebody may go on writing the end is not cut: the next bytes decide where.
                for group in _groups([state for state in due if pressed or state.writers]):
                    await self._start(group, FlushMode.ALL)

    def let_go(self, state: InodeState) -> None:
        """The last writer of a file has closed it: when it has been left alone for a while, small blobs at its end become one chunk."""
        if state.unfinished is not None:
            self._tails[state.ino] = state
            self._work.set()

    async def truncate(self, state: InodeState, size: int) -> None:
        """Set a file's size. Bytes beyond it are gone at once, whatever their number; a longer file ends in a hole."""
        with self._awaiting([state]):
            while state.flushing and size < state.record.size:
                await self._settled.wait()
        record = state.record
        shorter = size < record.size
        before = state.runs.total_bytes
        state.runs.remove(size, limits.FILE_SIZE_MAX_BYTES)
        self.dirty_bytes += state.runs.total_bytes - before
        self._let_in()
        record.size = size
        state.stored_bytes = min(state.stored_bytes, size)
        self._inodes.touch(state)
        if shorter:
            state.unfinished = None
            if not record.data:
                record.extents = rules.clip(record.extents, 0, size)
                record.allocated = rules.covered_bytes(record.extents)
            elif size == 0:
                self.end_data(record.data, 0)
                record.data = record.allocated = 0
            else:
                state.flushing += 1
                try:
                    await self._cut_regions(state, size)
                finally:
                    self._let_go_on([state])
        if state.clean:
            self._is_clean(state)

    def end_data(self, data: int, first: int) -> None:
        """The regions of `data` from `first` on end now. Their records are ended in steps, by the reaper or at the next mount."""
        epoch = self._volume.catalog.epoch
        self._volume.catalog.put(Table.ORPHANS, records.orphan_key(records.ORPHAN_DATA, data), records.encode(Orphan(epoch, first)))
        self.ended.append((data, Orphan(epoch, first)))

    def end_regions(self, data: int, orphan: Orphan, limit: int, record: Inode | None = None) -> bool:
        """One step of ending regions; true when the last is done and the to-do row is gone. Atomic.

        `record` is the file's when it goes on without them.
        """
        catalog = self._volume.catalog
        first = region_key(data, orphan.first - 1) if orphan.first else number_key(data)
        after = self._ended_to.get(data, first)
        keys = []
        for key, value in catalog.scan(Table.REGIONS, number_key(data), after, records.EPOCH_MAX):
            keys.append(key)
            if record is not None:
                record.allocated -= rules.covered_bytes(records.decode_region(value))
            if len(keys) == limit:
                break
        for key in keys:
            catalog.write(Table.REGIONS, key, TOMBSTONE, orphan.epoch)
        if len(keys) == limit:
            # Under a snapshot what was ended stays as tombstones: the next step does not walk over them again.
            self._ended_to[data] = keys[-1]
            return False
        self._ended_to.pop(data, None)
        catalog.put(Table.ORPHANS, records.orphan_key(records.ORPHAN_DATA, data), None)
        return True

    def drop(self, state: InodeState) -> None:
        """Forget the unstored bytes of a file that ends."""
        state.unfinished = None
        self._tails.pop(state.ino, None)
        self._crowded.pop(state.ino, None)
        self.dirty_bytes -= state.runs.total_bytes
        state.runs.remove(0, limits.FILE_SIZE_MAX_BYTES)
        state.in_flight.remove(0, limits.FILE_SIZE_MAX_BYTES)
        self._let_in()
        self._is_clean(state)

    # inside

    def _background(self, work: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        assert self._nursery is not None, "the storing task does not run"
        self._nursery.start_soon(work, *args)

    async def _fetch(self, numbers: list[int]) -> None:
        try:
            await self._blobs.read(numbers)
        except BackupfsError as error:
            log.debug("reading ahead: %s", error)
        finally:
            self._ahead -= 1
            self._blobs.unpin(numbers)

    async def _finish_tail(self, state: InodeState) -> None:
        self._tails.pop(state.ino, None)
        if state.flushing or state.writers or state.dead or not state.clean:
            self._jobs.release()
            return
        state.flushing += 1
        try:
            unfinished, state.unfinished = state.unfinished, None
            if unfinished is not None and unfinished[0] == state.record.size:
                end, start = unfinished
                if len(self.extents(state.record, records.EPOCH_MAX, start, end)) > 1:
                    with trio.CancelScope(shield=True):
                        await self._rewrite(state, start, end)
        except BackupfsError as error:
            # The bytes stay as they are stored; nobody asked for this.
            log.error("the end of inode %d could not be made one chunk: %s", state.ino, error)
        finally:
            self._let_go_on([state])
            self._jobs.release()

    async def _start(self, states: list[InodeState], mode: FlushMode) -> None:
        await self._jobs.acquire()
        try:
            has_room = await self._has_room(states, mode)
            free = self._may_be_cut if mode is FlushMode.STREAM else _is_at_rest
            due = [s for s in states if s.runs and free(s)] if has_room else []
        except BackupfsError as error:
            self._tell_untried(states, error)
            due = []
        if due:
            self._background(self._store_quietly, self._begin(due, mode))
        else:
            self._jobs.release()

    async def _store_quietly(self, turn: _Turn) -> None:
        try:
            await self._store(turn)
        except BackupfsError as error:
            self._tell_untried(turn.states, error)
        finally:
            self._jobs.release()

    def _tell_untried(self, states: Sequence[InodeState], error: BackupfsError) -> None:
        log.error("%d files could not be stored and will be tried again: %s", len(states), error)
        self._volume.errors.append(f"files could not be stored and will be tried again: {error}")

    async def _has_room(self, states: list[InodeState], mode: FlushMode) -> bool:
        """False while a disk that was full still is: that has been told, and chunking, hashing and compressing once more would change nothing."""
        if not self._no_room:
            return True
        needed_bytes = sum(s.runs.total_bytes for s in states)
        if mode is FlushMode.STREAM:
            needed_bytes = min(needed_bytes, limits.FLUSH_JOB_BYTES)
        return await self._volume.seams.offload.disk(self._volume.space.room_bytes) >= needed_bytes

    def _may_be_cut(self, state: InodeState) -> bool:
        """Whether bytes of the file may go on their way: none are, or the boundary behind those is known and nobody waits for their arrival."""
        if _is_at_rest(state):
            return True
        turn = self._turns.get(state.ino)
        return turn is not None and turn.cut_to is not None and not state.awaited and _has_long_run_at(state, turn.cut_to)

    @contextmanager
    def _awaiting(self, states: Sequence[InodeState]) -> Iterator[None]:
        """While somebody waits until what is on its way is stored, nothing follows it."""
        for state in states:
            state.awaited += 1
        try:
            yield
        finally:
            for state in states:
                state.awaited -= 1
            if self._long:
                self._work.set()

    def _begin(self, states: Sequence[InodeState], mode: FlushMode) -> _Turn:
        """Mark files as being stored. Atomic; `_store` is called with what it returns."""
        turn = _Turn(states, mode, self._turns.get(states[0].ino))
        for state in states:
            state.flushing += 1
            self._turns[state.ino] = turn
        return turn

    async def _store(self, turn: _Turn) -> None:
        """Store bytes of the files that are marked."""
        jobs = turn.jobs
        numbers: list[int | None] = []
        try:
            self._plan_all(turn)
            with trio.CancelScope(shield=True):
                prefixes = [await self._prefix(job) for job in jobs]
                cuts: list[_Cut] = await self._compute(jobs, prefixes)
                del prefixes
                self._has_cut(turn, cuts)
                numbers = await self._blobs.store([chunk for cut in cuts for chunk in cut.chunks])
                await self._after(turn.before)
                # First what may fail: the bytes stay in flight, and are tried again, until extents refer to them. All in one step: no batch may have
                # extents behind what it takes for the end of what is stored.
                self._place(jobs, cuts, numbers)
                for job, cut in zip(jobs, cuts, strict=True):
                    self._apply(job, cut)
                self._blobs.unpin(numbers)
                numbers = []
                self.stuck = self._no_room = False
                for state in turn.states:
                    if state.flushing == 1:
                        await self._rechunk(state)
        except BaseException as error:
            # Whatever it was, the bytes go back to where the next attempt finds them.
            self.stuck = True
            self._no_room = isinstance(error, StoreFullError)
            self._blobs.unpin(numbers)
            turn.error = again(error) if isinstance(error, BackupfsError) else BackupfsError(f"what came before could not be stored: {error!r}")
            for job in jobs:
                self._put_back(job)
                job.state.error = turn.error.errno
                job.state.error_count += 1
                job.state.written_at = trio.current_time()
            raise
        finally:
            turn.before = None
            turn.over.set()
            self._let_go_on(turn.states)

    async def _after(self, before: _Turn | None) -> None:
        """Returns when that turn has come into effect; raises what kept it from doing so."""
        if before is not None:
            await before.over.wait()
            if before.error is not None:
                raise again(before.error)

    def _let_go_on(self, states: Sequence[InodeState]) -> None:
        """A turn is over: whoever waited for that, or for room, looks again."""
        for state in states:
            state.flushing -= 1
            if not state.flushing:
                self._turns.pop(state.ino, None)
            if state.clean:
                self._is_clean(state)
            elif not self.stuck and any(run.length >= limits.FLUSH_RUN_BYTES for run in state.runs.runs):
                self._long[state.ino] = state
        self._settled.set()
        self._settled = trio.Event()
        self._let_in()
        if self._long:
            self._work.set()

    def _is_full(self) -> bool:
        return self.dirty_bytes > limits.DIRTY_BYTES_MAX and self._volume.failure is None and not self.stuck

    def _let_in(self) -> None:
        """The first of those who wait, if there is room; who has come in lets the next one in."""
        if self._waiting and not self._coming_in and not self._is_full():
            self._coming_in = True
            self._waiting.unpark()

    def _plan_all(self, turn: _Turn) -> None:
        """Take bytes of a turn's files into flight."""
        for state in turn.states:
            if turn.before is None:
                self._plan(state, turn.mode, turn.jobs)
            elif turn.before.cut_to is not None:
                self._plan_next(state, turn.before.cut_to, turn.jobs)

    def _plan_next(self, state: InodeState, boundary: int, jobs: list[_Job]) -> None:
        """The same for the next part of a growing file, which begins at a known boundary. Nothing, if the file does not go on growing there."""
        run = state.runs.take(boundary, boundary + limits.FLUSH_JOB_BYTES)
        if run is not None:
            state.in_flight.put_below(run)
            jobs.append(_Job(state, run, boundary, boundary, FlushMode.STREAM, run.end >= state.record.size, None, 0))

    def _plan(self, state: InodeState, mode: FlushMode, jobs: list[_Job]) -> None:
        """Take runs of a file into flight: all, or some megabytes of those up to the last long one. A job for each is added to `jobs`."""
        runs = state.runs.runs
        if mode is FlushMode.STREAM:
            last = max((i for i, run in enumerate(runs) if run.length >= limits.FLUSH_RUN_BYTES), default=-1)
            runs = _first_bytes(runs[: last + 1], limits.FLUSH_JOB_BYTES)
        stored = state.stored_bytes
        # What may fail comes before anything is taken.
        boundary_before = self._boundary_before(state, stored) if stored and any(run.start == stored for run in runs) else 0
        taken = state.runs.take_all() if mode is not FlushMode.STREAM else [part for run in runs if (part := state.runs.take(run.start, run.end))]
        for run in taken:
            start = run.start
            boundary: int | None = None
            if start and start == stored:
                if mode is FlushMode.ALL and self._is_small_addition(state, boundary_before, run):
                    boundary = boundary_before
                else:
                    start = boundary_before
            state.in_flight.put_below(run)
            size = state.record.size
            is_last = run is taken[-1]
            settles = size if is_last and mode is not FlushMode.STREAM else 0
            jobs.append(_Job(state, run, start, run.start, mode if is_last else FlushMode.COLD, run.end >= size, boundary, settles))

    def _is_small_addition(self, state: InodeState, boundary: int, run: Run) -> bool:
        """Whether a run may be stored as a small blob without looking back: so many in a row, and never as much as must hold a boundary."""
        config = self._volume.keys.config
        return (
            state.unfinished is not None
            and state.tail_blobs < limits.TAIL_BLOBS_MAX
            and run.length < config.chunk_min_bytes
            and run.end - boundary < config.chunk_max_bytes
        )

    async def _prefix(self, job: _Job) -> bytes | bytearray:
        """The bytes between the last boundary and what is fresh, with what other jobs of the file are about to store there."""
        if job.start == job.fresh:
            return b""
        try:
            prefix = bytearray(await self.read_stored(job.state.record, records.EPOCH_MAX, job.start, job.fresh))
        except DamageError as error:
            # Damage costs the bytes that are damaged, not those that come after them: what is new begins a chunk of its own.
            log.error("inode %d: the end of what is stored is damaged: %s", job.state.ino, error)
            job.start = job.fresh
            return b""
        job.state.in_flight.overlay(job.start, job.fresh, prefix)
        return prefix

    def _boundary_before(self, state: InodeState, end: int) -> int:
        """The last chunk boundary at or before the end of what is stored."""
        if state.unfinished is not None and state.unfinished[0] == end:
            return state.unfinished[1]
        config = self._volume.keys.config
        tail = self.extents(state.record, records.EPOCH_MAX, max(end - config.chunk_max_bytes, 0), end)
        return rules.tail_start(tail, end, config.chunk_min_bytes, config.chunk_max_bytes)

    async def _compute(self, jobs: list[_Job], prefixes: list[bytes | bytearray]) -> list[_Cut]:
        if sum(job.run.length for job in jobs) + sum(map(len, prefixes)) < limits.INLINE_WORK_BYTES:
            return [self._cut(job, prefix) for job, prefix in zip(jobs, prefixes, strict=True)]
        return await self._volume.seams.offload.cpu(lambda: [self._cut(job, prefix) for job, prefix in zip(jobs, prefixes, strict=True)])

    def _cut(self, job: _Job, prefix: bytes | bytearray) -> _Cut:
        """Find chunks and their ids. Touches nothing but the job; runs in a thread."""
        data = memoryview(b"".join([prefix, *job.run.pieces]) if prefix or len(job.run.pieces) > 1 else job.run.pieces[0])
        end = job.start + len(data)
        unfinished = job.mode is FlushMode.ALL and job.appends
        lengths = self._volume.chunker.cut(data, is_end=job.mode is not FlushMode.STREAM and not (unfinished and prefix))
        stored_from = job.start
        boundary = job.start + sum(lengths[:-1] if unfinished and not prefix else lengths)
        covered = job.start + sum(lengths)
        if unfinished and prefix and covered < end:
            lengths.append(end - covered)
            covered = end
        if unfinished and job.boundary is not None and len(lengths) == 1:
            boundary = job.boundary
        pieces = []
        at = stored_from - job.start
        for length in lengths:
            pieces.append(data[at : at + length])
            at += length
        return _Cut(self._blobs.identify(pieces), stored_from, covered if lengths else stored_from, boundary, data[job.fresh - job.start :])

    def _has_cut(self, turn: _Turn, cuts: list[_Cut]) -> None:
        """Cutting is done. What is left over goes back, and the file may be cut on behind it; bytes in flight are held once, in one piece."""
        for job, cut in zip(turn.jobs, cuts, strict=True):
            state, run = job.state, job.run
            if state.dead:
                continue
            length = min(max(cut.end - run.start, 0), run.length)
            if length < run.length or len(run.pieces) > 1:
                job.run = Run(run.start, length, [cut.fresh[:length]] if length else [])
                state.in_flight.remove(run.start, run.end)
                state.in_flight.put_below(job.run)
                self._back_to_runs(state, run.slice(job.run.end, run.end))
            if job.mode is FlushMode.STREAM and length:
                turn.cut_to = cut.end
                if _has_long_run_at(state, cut.end):
                    self._long[state.ino] = state
                    self._work.set()

    def _back_to_runs(self, state: InodeState, run: Run) -> None:
        """Bytes that were in flight wait again to be stored, unless newer ones have taken their place."""
        before = state.runs.total_bytes
        state.runs.put_below(run)
        self.dirty_bytes += state.runs.total_bytes - before - run.length

    def _apply(self, job: _Job, cut: _Cut) -> None:
        """Extents refer to the bytes of a job."""
        state, run = job.state, job.run
        state.in_flight.remove(run.start, run.end)
        self.dirty_bytes -= run.length
        if state.dead:
            return
        size = state.record.size
        state.stored_bytes = size if state.clean else max(state.stored_bytes, min(max(cut.end, job.settles), size))
        ends_open = job.appends or job.mode is FlushMode.STREAM
        state.unfinished = (cut.end, cut.boundary) if ends_open and job.mode is not FlushMode.COLD else None
        state.tail_blobs = 1 if job.boundary is None else state.tail_blobs + 1
        self._inodes.touch(state)

    def _place(self, jobs: Sequence[_Job], cuts: Sequence[_Cut], numbers: Sequence[int | None]) -> None:
        """Have extents refer to what was stored: for each file, and each of its regions, all at once."""
        left = iter(numbers)
        changes: dict[InodeState, list[rules.Change]] = {}
        for job, cut in zip(jobs, cuts, strict=True):
            at = cut.stored_from
            extents: list[Extent] = []
            for chunk in cut.chunks:
                number = next(left)
                if number is not None:
                    extents.append((at, len(chunk.plain), number, 0))
                at += len(chunk.plain)
            if at > cut.stored_from:
                changes.setdefault(job.state, []).append((cut.stored_from, at, extents))
        for state, those in changes.items():
            if not state.dead:
                self._set_extents(state, those)

    def _put_back(self, job: _Job) -> None:
        state = job.state
        if not any(True for _ in state.in_flight.parts(job.run.start, job.run.end)):
            return
        state.in_flight.remove(job.run.start, job.run.end)
        if state.dead:
            self.dirty_bytes -= job.run.length
        else:
            self._back_to_runs(state, job.run)
            self._dirty[state.ino] = state

    def _is_clean(self, state: InodeState) -> None:
        state.stored_bytes = state.record.size
        self._dirty.pop(state.ino, None)
        self._long.pop(state.ino, None)

    def _region(self, data: int, region: int, epoch: int) -> list[Extent]:
        value = self._volume.catalog.value(Table.REGIONS, region_key(data, region), epoch)
        return [] if value is None else records.decode_region(value)

    def _set_extents(self, state: InodeState, changes: Sequence[rules.Change]) -> None:
        """The stretches of these changes consist of what they say from now on."""
        record = state.record
        catalog = self._volume.catalog
        if not record.data:
            record.extents = rules.replace_all(record.extents, changes)
            record.allocated = rules.covered_bytes(record.extents)
            if len(record.extents) <= limits.INLINE_EXTENTS_MAX:
                return
            record.data = self._volume.next_data()
            for region, part in rules.split_at_regions(record.extents, limits.REGION_BYTES).items():
                catalog.write(Table.REGIONS, region_key(record.data, region), records.encode(part))
                if len(part) > limits.REGION_EXTENTS_MAX:
                    self._crowded.setdefault(state.ino, set()).add(region)
            record.extents = []
            return
        for region, those in rules.changes_of_regions(changes, limits.REGION_BYTES).items():
            old = self._region(record.data, region, records.EPOCH_MAX)
            changed = rules.replace_all(old, those)
            if changed != old:
                record.allocated += rules.covered_bytes(changed) - rules.covered_bytes(old)
                value = records.encode(changed) if changed else TOMBSTONE
                catalog.write(Table.REGIONS, region_key(record.data, region), value, refers=(old, changed))
            if len(changed) > limits.REGION_EXTENTS_MAX:
                self._crowded.setdefault(state.ino, set()).add(region)

    async def _rechunk(self, state: InodeState) -> None:
        """Write the most fragmented stretches of this file's overfull regions anew, until their records are short again. Stretches that
        cannot be read stay as they are.
        """
        for region in sorted(self._crowded.get(state.ino, ())):
            before = limits.REGION_BYTES
            while not state.dead and state.record.data:
                extents = self._region(state.record.data, region, records.EPOCH_MAX)
                if len(extents) <= limits.REGION_EXTENTS_MAX // 2 or len(extents) >= before:
                    break
                window = rules.rechunk_window(extents, _WINDOW_BYTES, self._blobs.damaged)
                if window is None:
                    break
                known = len(self._blobs.damaged)
                try:
                    await self._rewrite(state, window[0], min(window[1], extents[-1][0] + extents[-1][1]))
                    before = len(extents)
                except DamageError as error:
                    log.error("inode %d: a stretch of it stays fragmented: %s", state.ino, error)
                    if len(self._blobs.damaged) == known:
                        raise
        self._crowded.pop(state.ino, None)

    async def _rewrite(self, state: InodeState, low: int, high: int) -> None:
        """Store the bytes [low, high) anew, in chunks of their own. The file is marked as being stored."""
        data = memoryview(await self.read_stored(state.record, records.EPOCH_MAX, low, high))
        lengths = self._volume.chunker.cut(data, is_end=True)
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        pieces = [data[at : at + length] for at, length in zip(starts, lengths, strict=True)]
        numbers = await self._blobs.store(await self._volume.seams.offload.cpu(self._blobs.identify, pieces))
        if not state.dead:
            placed = zip(starts, lengths, numbers, strict=True)
            self._set_extents(state, [(low, high, [(low + at, size, blob, 0) for at, size, blob in placed if blob is not None])])
            self._inodes.touch(state)
        self._blobs.unpin(numbers)

    async def _cut_regions(self, state: InodeState, size: int) -> None:
        """End what stands behind `size` in a file's regions: the one it lies in at once, the others in steps."""
        catalog = self._volume.catalog
        data = state.record.data
        [region] = rules.regions_of(size, size + 1, limits.REGION_BYTES)
        old = self._region(data, region, records.EPOCH_MAX)
        kept = rules.clip(old, 0, size)
        if kept != old:
            state.record.allocated -= rules.covered_bytes(old) - rules.covered_bytes(kept)
            catalog.write(Table.REGIONS, region_key(data, region), records.encode(kept) if kept else TOMBSTONE)
        orphan = Orphan(catalog.epoch, region + 1, state.ino)
        catalog.put(Table.ORPHANS, records.orphan_key(records.ORPHAN_DATA, data), records.encode(orphan))
        with trio.CancelScope(shield=True):
            while not self.end_regions(data, orphan, limits.REAP_RECORDS_PER_STEP, state.record):
                await trio.lowlevel.checkpoint()


def _is_at_rest(state: InodeState) -> bool:
    return not state.flushing


def _has_long_run_at(state: InodeState, start: int) -> bool:
    return any(run.start == start and run.length >= limits.FLUSH_RUN_BYTES for run in state.runs.runs)


def _first_bytes(runs: list[Run], size_bytes: int) -> list[Run]:
    """The first runs, about `size_bytes` of them; the last may be cut short."""
    chosen: list[Run] = []
    for run in runs:
        chosen.append(run if run.length <= size_bytes else run.slice(run.start, run.start + size_bytes))
        size_bytes -= run.length
        if size_bytes <= limits.CHUNK_MAX_BYTES:
            break
    return chosen


def _groups(states: Sequence[InodeState]) -> list[list[InodeState]]:
    """Files in groups of some megabytes each, to be stored together."""
    groups: list[list[InodeState]] = []
    size = limits.FLUSH_RUN_BYTES
    for state in states:
        if size >= limits.FLUSH_RUN_BYTES or len(groups[-1]) >= limits.FLUSH_FILES:
            groups.append([])
            size = 0
        groups[-1].append(state)
        size += state.runs.total_bytes
    return groups
