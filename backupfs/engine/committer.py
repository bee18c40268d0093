"""Making things durable: batches, one after another, and the index behind them.

A batch: freeze the overlay (synchronously: a point in the order of changes) · sync the packs · append to the journal and sync it: **now** it is
durable · apply to the index · drop the layer. Freezing may run ahead of the rest; the order of batches is the order of freezing.
"""

import logging
from collections import deque
from dataclasses import dataclass

import trio

from backupfs import limits
from backupfs.blobs.packs import Moved, OpenPack, pack_name
from backupfs.catalog.catalog import Layer
from backupfs.engine.inodes import InodeTable
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, MissingObjectError, StoreError, StoreFullError
from backupfs.format import catalog as records
from backupfs.format.catalog import META_COUNTERS, Pack, Table
from backupfs.format.journal import Change, SegmentOpen, encode_batch
from backupfs.journal.segments import Position

log = logging.getLogger(__name__)

_LAYERS_MAX = 8
"""Frozen layers that may wait for the index before changes do."""


@dataclass(slots=True)
class _Frozen:
    ticket: int
    layer: Layer
    dead: list[Pack]


class Committer:
    """Owns the order of batches. `freeze` is atomic; `wait` waits for durability; `run` and `run_index` are the two tasks behind it."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self._volume = volume
        self._inodes = inodes
        self._pending: deque[_Frozen] = deque()
        self._to_apply: deque[tuple[_Frozen, Position, list[Change]]] = deque()
        self._frozen_ticket = 0
        self._durable_ticket = 0
        self._applied_ticket = 0
        self._wanted = False
        self._work = trio.Event()
        self._index_work = trio.Event()
        self._progress = trio.Event()
        self._stopping = False
        self._saved_counters = b""
        self._dead: deque[Pack] = deque()
        self.left_behind: list[Pack] = []
        """Packs that nothing lives in and that could not be removed."""
        self._closing = trio.Lock()
        self._end_asked: list[tuple[int, trio.Event]] = []
        """Who waits for the end of the journal's segment, each with the ticket that is to be in it."""
        self._ended: tuple[SegmentOpen, int] | None = None
        self.durable = volume.journal.position
        """Where the last batch ends that is durable."""

    def has_changes(self) -> bool:
        """Whether anything waits to be frozen."""
        return self._volume.catalog.has_changes() or self._inodes.changed_count > 0

    def freeze(self) -> int:
        """Make everything changed so far a batch; its ticket can be waited for. Atomic.

        Raises BackupfsError when it cannot be made; writing has stopped then, for half of it may be counted.
        """
        try:
            return self._freeze()
        except BackupfsError as error:
            self.fail(error)
            raise

    def _freeze(self) -> int:
        self._inodes.record_changed()
        catalog = self._volume.catalog
        counters = self._volume.counters
        counters.epoch = catalog.epoch
        counters.changed_records = catalog.changed_in_epoch
        encoded = records.encode_counters(counters)
        if encoded != self._saved_counters:
            catalog.put(Table.META, META_COUNTERS, encoded)
            self._saved_counters = encoded
        layer, dead = catalog.freeze()
        self._frozen_ticket += 1
        self._pending.append(_Frozen(self._frozen_ticket, layer, dead))
        self._work.set()
        return self._frozen_ticket

    async def commit(self) -> None:
        """Everything changed before the call is durable when this returns. Raises what stopped writing."""
        self._volume.check_writable()
        if self.has_changes():
            ticket = self._frozen_ticket + 1
            self._wanted = True
            self._work.set()
        else:
            ticket = self._frozen_ticket
        await self.wait(ticket)

    async def wait(self, ticket: int) -> None:
        """The batch with this ticket is durable when this returns. Raises what stopped writing."""
        while self._durable_ticket < ticket:
            if self._volume.failure is not None:
                raise self._volume.failure
            await self._progress.wait()

    async def applied(self) -> None:
        """Everything durable by now is in the index when this returns."""
        ticket = self._durable_ticket
        while self._applied_ticket < ticket:
            if self._volume.failure is not None:
                raise self._volume.failure
            await self._progress.wait()

    async def removed(self) -> None:
        """Packs that nothing lived in when the index was last written are gone when this returns, unless somebody holds them."""
        while self._dead and not self._volume.held_packs:
            if self._volume.failure is not None:
                return
            await self._progress.wait()

    async def remove_left_behind(self) -> None:
        """Try once more to remove the packs that could not be removed."""
        again, self.left_behind = self.left_behind, []
        for pack in again:
            await self._remove_pack(pack)

    async def end_segment(self) -> tuple[SegmentOpen, int]:
        """Close the journal's segment: with everything frozen by now and all before it stands in the store when this returns. The segment, and the
        last batch in it. Raises what kept it from being closed.
        """
        asked = trio.Event()
        self._end_asked.append((self._frozen_ticket, asked))
        self._work.set()
        await asked.wait()
        if self._volume.failure is not None:
            raise self._volume.failure
        if self._ended is None:
            raise StoreError("the journal's segment could not be closed; the log says why")
        return self._ended

    def fail(self, error: BackupfsError) -> None:
        """Writing stops for good; whoever waits is told."""
        self._volume.fail(error)
        self._tell()

    def nudge(self) -> None:
        """Ask for a batch without waiting for it."""
        self._wanted = True
        self._work.set()

    async def room(self) -> None:
        """Wait while the overlay is too full to take more."""
        catalog = self._volume.catalog
        while (
            catalog.active.records + self._inodes.changed_count > limits.LAYER_RECORDS_MAX
            or catalog.active.value_bytes > limits.LAYER_BYTES_MAX
            or catalog.frozen_layers > _LAYERS_MAX
        ):
            if self._volume.failure is not None:
                return
            self.nudge()
            await self._progress.wait()

    def stop(self) -> None:
        """Let `run` and `run_index` return once nothing is pending."""
        self._stopping = True
        self._work.set()
        self._index_work.set()

    def remove_held_packs(self) -> None:
        """Nobody needs the packs any more that nothing lives in."""
        self._index_work.set()

    async def run(self) -> None:
        """Task: take batches to durability."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._has_failed():
                self._tell()
                return
            while self._pending or (self._wanted and self.has_changes()):
                if not self._pending:
                    self._wanted = False
                    self.freeze()
                await self._make_durable(self._pending[0])
                if self._has_failed():
                    self._tell()
                    return
                # Not only when nothing is left to do: that may never be so.
                await self._end_segment_if_asked()
            self._wanted = False
            await self._end_segment_if_asked()
            if self._stopping and not self._pending:
                return

    async def run_index(self) -> None:
        """Task: apply durable batches to the index, then remove what they no longer name."""
        while True:
            await self._index_work.wait()
            self._index_work = trio.Event()
            while self._to_apply:
                batches = list(self._to_apply)
                if not await self._apply([(p, c) for _, p, c in batches]):
                    self._tell()
                    return
                for frozen, _, _ in batches:
                    self._to_apply.popleft()
                    self._volume.catalog.drop_layer(frozen.layer)
                    self._applied_ticket = frozen.ticket
                    self._dead.extend(frozen.dead)
                self._tell()
            while self._dead and not self._volume.held_packs:
                await self._remove_pack(self._dead[0])
                self._dead.popleft()
                self._tell()
            if self._stopping and self._applied_ticket == self._frozen_ticket:
                return

    async def _make_durable(self, frozen: _Frozen) -> None:
        volume = self._volume
        try:
            position, changes = await self._write(frozen.layer)
        except StoreError as first:
            full = isinstance(first, StoreFullError)
            if full and not await volume.seams.offload.disk(volume.space.release):
                volume.fail(first)
                return
            if not full:
                volume.errors.append(f"a batch could not be written and is tried in a new segment: {first}")
                log.error("a batch could not be written and is tried in a new segment: %s", first)
            try:
                position, changes = await self._write(frozen.layer)
            except BackupfsError as error:
                volume.fail(error)
                return
        self._pending.popleft()
        self.durable = position
        self._durable_ticket = frozen.ticket
        self._to_apply.append((frozen, position, changes))
        self._index_work.set()
        self._tell()
        for pack in volume.packs.full_packs():
            await self.close_pack(pack)

    async def _end_segment_if_asked(self) -> None:
        if not self._end_asked or self._end_asked[-1][0] > self._durable_ticket:
            return
        volume = self._volume
        try:
            await volume.seams.offload.disk(volume.journal.close)
        except StoreError as error:
            log.error("the journal's segment could not be closed: %s", error)
        closed = volume.journal.closed
        self._ended = None if closed is None else (closed, volume.journal.position.batch)
        self._tell_ended()

    def _tell_ended(self) -> None:
        asked, self._end_asked = self._end_asked, []
        for _, event in asked:
            event.set()

    async def _write(self, layer: Layer) -> tuple[Position, list[Change]]:
        """Packs first, then the journal, in one visit to a thread unless blobs had to move to another pack."""
        volume = self._volume
        while True:
            moved, position, changes = await volume.seams.offload.disk(self._write_blocking, layer)
            if position is not None:
                return position, changes
            for number, move in moved.items():
                place = move.place
                facts = volume.packs.facts(place.pack)
                assert facts is not None, "a blob moved into a pack that is not open"
                volume.catalog.move_blob(layer, number, move.left, place.pack, place.offset, place.stored_bytes, facts)
                volume.catalog.pack_taken(layer, place.pack)

    def _write_blocking(self, layer: Layer) -> tuple[dict[int, Moved], Position | None, list[Change]]:
        moved = self._volume.packs.sync()
        if moved:
            return moved, None, []
        changes = list(layer.changes())
        return {}, self._volume.journal.append(encode_batch(changes)), changes

    async def close_pack(self, pack: OpenPack) -> None:
        """Give a full pack its end; one that nothing refers to goes instead."""
        volume = self._volume
        async with self._closing:
            if not volume.packs.is_open(pack):
                return
            try:
                if not pack.unclaimed and not volume.catalog.names_pack(pack.number):
                    await volume.seams.offload.disk(volume.packs.discard, pack)
                    return
                await volume.seams.offload.disk(volume.packs.close, pack)
            except StoreError as error:
                told = f"pack {pack.object_id.hex()} could not be closed; it is finished at the next mount: {error}"
                volume.errors.append(told)
                log.error("%s", told)
                volume.packs.give_up(pack)
                return
            volume.reader.forget(pack.object_id)
            dead = volume.catalog.pack_sealed(pack.number)
            if dead is not None:
                self.freeze()
                self._pending[-1].dead.append(dead)

    async def _apply(self, batches: list[tuple[Position, list[Change]]]) -> bool:
        volume = self._volume
        places = [((p.segment, p.segment_bytes, p.batch), changes) for p, changes in batches]
        try:
            try:
                await volume.seams.offload.index(volume.index.apply, places)
            except StoreError as first:
                # LMDB reports a full disk as a plain I/O error; the transaction was undone.
                log.error("the index could not be written, once more with the reserve given up: %s", first)
                await volume.seams.offload.disk(volume.space.release)
                await volume.seams.offload.index(volume.index.apply, places)
        except StoreError as error:
            volume.index.distrust()
            volume.fail(error)
            return False
        return True

    async def _remove_pack(self, pack: Pack) -> None:
        volume = self._volume
        volume.reader.forget(pack.object_id)
        try:
            await volume.seams.offload.disk(volume.store.delete, pack_name(pack.object_id))
        except MissingObjectError:
            log.warning("pack %s was gone before it was removed", pack.object_id.hex())
        except StoreError as error:
            log.error("pack %s could not be removed: %s", pack.object_id.hex(), error)
            self.left_behind.append(pack)

    def _has_failed(self) -> bool:
        return self._volume.failure is not None

    def _tell(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
        if self._has_failed():
            self._tell_ended()
