"""What is done in the background: ending what has no name, purging deleted snapshots, counting changes, getting space back. Small steps, each atomic.

Two tasks: chores, which are short and come first, and collection, which may be long and gives way.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from backupfs import limits
from backupfs.clock import until_next
from backupfs.engine.attributes import UpkeepStatus
from backupfs.engine.collecting import Collector, Survey
from backupfs.engine.committer import Committer
from backupfs.engine.filedata import FileData
from backupfs.engine.inodes import InodeState, InodeTable
from backupfs.engine.namespace import Namespace
from backupfs.engine.seams import Progress, unwatched
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, again
from backupfs.format import catalog as records
from backupfs.format.catalog import TOMBSTONE, Table

log = logging.getLogger(__name__)


class Upkeep:
    """Owns the queue of inodes to be ended and the order of the chores. `run` and `collect` are its tasks."""

    def __init__(
        self,
        volume: Volume,
        committer: Committer,
        inodes: InodeTable,
        data: FileData,
        names: Namespace,
        snapshots: Snapshots,
        collector: Collector,
        admit: Callable[[], Awaitable[None]],
    ) -> None:
        """`admit` waits until a change may be made."""
        self._volume = volume
        self._committer = committer
        self._inodes = inodes
        self._data = data
        self._names = names
        self._snapshots = snapshots
        self._collector = collector
        self._admit = admit
        self.undelete_ns = 0
        """So long after it was marked a deleted snapshot can be brought back for certain."""
        self._purged_records = 0
        self._to_reap: dict[int, InodeState] = {}
        self._chores = trio.Event()
        self._done = trio.Event()
        self._waited_for = 0
        """How many wait until no chore is left."""
        self._stopped = False
        self._collecting = trio.Event()
        self._collected = trio.Event()
        self._collects = True
        self._is_collecting = False
        self._interruption: tuple[int, BackupfsError] | None = None
        """Number of the last question that was answered by an error, and the error."""
        self._in_hurry = False
        self._thorough = False
        self._asked = 0
        self._answered = 0

    def reap(self, state: InodeState) -> None:
        """End an inode that nobody names or uses: at once if that is little work, or else in steps."""
        if state.flushing or not self._names.reap(state, limits.REAP_RECORDS_PER_STEP):
            self.reap_later(state)

    def reap_later(self, state: InodeState) -> None:
        """End an inode in steps."""
        self._to_reap[state.ino] = state
        self._chores.set()

    def wake(self) -> None:
        """There is, or may be, something to do."""
        self._chores.set()

    async def run(self) -> None:
        """Task: the chores."""
        try:
            while True:
                with trio.move_on_after(until_next(trio.current_time(), limits.LOOK_S)):
                    await self._chores.wait()
                self._chores = trio.Event()
                if self._has_chores():
                    await self._admit()
                    self._follow_clock()
                    await self._do_chores()
                if not self._has_chores():
                    self._tell_done()
                    if self._collector.is_due():
                        self._collecting.set()
        except BackupfsError as error:
            if self._volume.failure is None:
                log.error("background work stops until the next mount: %s", error)
                self._volume.errors.append(f"background work stopped: {error}")
        finally:
            # Whatever ended it, nobody is left waiting.
            self._stopped = True
            self._tell_done()

    async def collect(self) -> None:
        """Task: rewriting packs whose live share has fallen."""
        try:
            while True:
                await self._collecting.wait()
                self._collecting = trio.Event()
                self._is_collecting = True
                asked, hurry, thorough = self._asked, self._in_hurry, self._thorough
                self._in_hurry = self._thorough = False
                try:
                    await self._collector.run(await self._collector.plan(thorough=thorough), hurry=hurry)
                except BackupfsError as error:
                    if self._volume.failure is not None:
                        return
                    log.error("collecting space was interrupted and goes on later: %s", error)
                    self._volume.errors.append(f"collecting space was interrupted: {error}")
                    self._interruption = asked, again(error)
                self._answered = asked
                self._is_collecting = False
                self._tell_collected()
        finally:
            self._collects = False
            self._tell_collected()

    async def collect_now(self, *, purge_deleted: bool, thorough: bool) -> None:
        """Get all space back that can be got, without pauses; with `purge_deleted` also of snapshots that could still be brought back.

        Raises what interrupted it.
        """
        self._volume.check_writable()
        if purge_deleted:
            self._snapshots.give_up_deleted()
        await self._chores_done()
        await self._committer.commit()
        await self._committer.applied()
        self._asked += 1
        asked = self._asked
        self._in_hurry = True
        self._thorough = self._thorough or thorough
        self._collecting.set()
        while self._answered < asked and self._collects:
            await self._collected.wait()
        self._volume.check_writable()
        if self._interruption is not None and self._interruption[0] >= asked:
            raise again(self._interruption[1])

    def collect_soon(self) -> None:
        """Get all space back that is dead already, in the background and with pauses."""
        self._thorough = True
        self._collecting.set()

    async def survey(self, *, thorough: bool, progress: Progress = unwatched) -> Survey:
        """What is dead, and what collection would rewrite now. `progress` is told of packs."""
        return await self._collector.survey(thorough=thorough, progress=progress)

    async def idle(self) -> None:
        """Everything that is due is done when this returns. Raises what interrupted it."""
        await self._chores_done()
        under_way = self._is_collecting or self._collecting.is_set()
        if (under_way or self._collector.is_due()) and self._volume.failure is None and not self._stopped:
            await self.collect_now(purge_deleted=False, thorough=False)
        await self._committer.commit()
        await self._committer.applied()
        await self._committer.removed()

    def status(self) -> UpkeepStatus:
        """What is going on, and what waits."""
        so_far = self._collector.so_far
        return UpkeepStatus(
            deleted=len(self._snapshots.deleted()),
            purging=len(self._due()),
            orphans=len(self._names.orphans),
            packs_to_rewrite=so_far.waiting_packs,
            waiting_bytes=so_far.waiting_bytes,
            copied_bytes=so_far.copied_bytes,
            freed_bytes=so_far.freed_bytes,
            purged_records=self._purged_records,
            stopped=self._stopped,
        )

    async def _chores_done(self) -> None:
        self._follow_clock()
        self._waited_for += 1
        try:
            while self._has_chores() and self._volume.failure is None and not self._stopped:
                done = self._done
                self._chores.set()
                await done.wait()
        finally:
            self._waited_for -= 1

    async def _give_way(self, began: float) -> None:
        """After a step that began at that time of the loop's: a snapshot, for one, takes some twenty turns of the loop, and each would wait for a
        step of its own.
        """
        await trio.sleep(0 if self._waited_for else limits.CHORES_GIVE_WAY * (trio.current_time() - began))

    def _tell_done(self) -> None:
        self._done.set()
        self._done = trio.Event()

    def _tell_collected(self) -> None:
        self._collected.set()
        self._collected = trio.Event()

    def _due(self) -> list[int]:
        return self._snapshots.to_purge(self._volume.seams.clock.now_ns() - self.undelete_ns)

    def _follow_clock(self) -> None:
        """A clock that was set back is no reason to keep what was deleted for longer than the time to bring it back."""
        self._snapshots.deleted_by(self._volume.seams.clock.now_ns())

    def _has_chores(self) -> bool:
        is_set_back = self._snapshots.deleted_later(self._volume.seams.clock.now_ns())
        return bool(self._to_reap or self._data.ended or self._due() or is_set_back or self._snapshots.uncounted() is not None)

    async def _do_chores(self) -> None:
        while self._to_reap or self._data.ended:
            await self._admit()
            began = trio.current_time()
            if self._step():
                await self._give_way(began)
            else:
                await self._data.settled()
        while (serial := self._snapshots.uncounted()) is not None:
            await self._count(serial)
        # Asked anew each time: meanwhile the others may have been brought back, or lent.
        while due := self._due():
            await self._purge(due[0])

    def _step(self) -> bool:
        """One step of ending; false when what is left waits for bytes that are being stored."""
        limit = limits.REAP_RECORDS_PER_STEP
        if self._data.ended:
            if self._data.end_regions(*self._data.ended[0], limit):
                self._data.ended.popleft()
            return True
        ino, state = next((entry for entry in self._to_reap.items() if not entry[1].flushing), (0, None))
        if state is None:
            return False
        if ino not in self._names.orphans or state.handles or ino in self._inodes.lookups or self._names.reap(state, limit):
            del self._to_reap[ino]
        return True

    async def _purge(self, serial: int) -> None:
        self._snapshots.begin_purge(serial)
        await self._committer.commit()
        await self._committer.applied()
        at: bytes | None = b""
        while at is not None:
            await self._admit()
            began = trio.current_time()
            records_looked_at, at = self._snapshots.purge_step(serial, at)
            self._purged_records += records_looked_at
            await self._give_way(began)
        self._snapshots.end_purge(serial)
        await self._committer.commit()

    async def _count(self, serial: int) -> None:
        """Count what a snapshot changed: the inodes that have a version of the epoch that ended with it."""
        await self._committer.commit()
        await self._committer.applied()
        epoch = self._snapshots.epoch_of(serial)
        made = altered = removed = 0
        start = records.change_key(epoch, Table.INODES, b"")
        while True:
            began = trio.current_time()
            keys = self._volume.catalog.applied_changes(start, epoch, limits.COMPARED_PER_STEP)
            for key in keys:
                _, table, object_key = records.split_change(key)
                if table != Table.INODES:
                    keys = []
                    break
                was, now = self._exists(object_key, epoch - 1), self._exists(object_key, epoch)
                made += now and not was
                altered += now and was
                removed += was and not now
            if len(keys) < limits.COMPARED_PER_STEP:
                break
            start = keys[-1] + b"\0"
            await self._give_way(began)
        await self._admit()
        self._snapshots.set_counts(serial, made, altered, removed)

    def _exists(self, object_key: bytes, epoch: int) -> bool:
        """Whether a view at that epoch has a name for the inode."""
        found = self._volume.catalog.newest(Table.INODES, object_key, epoch)
        return found is not None and found[1] != TOMBSTONE and records.decode_inode(found[1]).nlink > 0
