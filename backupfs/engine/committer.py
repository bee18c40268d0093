"""Making things durable: batches, one after another, and the index behind them.

A batch: freeze the overlay (synchronously: a point in the order of changes) · sync the packs, unless the batch is small enough to carry what they do
not have yet · append to the journal and sync it: **now** it is durable. Freezing may run ahead of the rest; the order of batches is the order of
freezing.

The index follows later, with many batches at once: when somebody asks, when much has gathered, with the regular commit. First the packs are synced:
what the index has is never carried again.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import trio

from backupfs import limits
from backupfs.blobs.packs import Moved, OpenPack, pack_name
from backupfs.catalog.catalog import Layer
from backupfs.engine.inodes import InodeTable
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, MissingObjectError, StoreError, StoreFullError
from backupfs.format import catalog as records
from backupfs.format.catalog import META_COUNTERS, Pack, Table
from backupfs.format.config import FEATURE_CARRIED_BLOBS
from backupfs.format.journal import Change, SegmentOpen, encode_batch
from backupfs.journal.segments import Position

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(slots=True)
class _Frozen:
    """A batch, or several that are durable and wait for the index as one."""

    ticket: int
    layer: Layer
    dead: list[Pack]
    position: Position = field(default_factory=Position)
    """Where it ends, once it is durable."""
    changes: Sequence[Change] = ()
    """The layer's records, if they are many and have been listed already."""


class Committer:
    """Owns the order of batches. `freeze` is atomic; `wait` waits for durability; `run` and `run_index` are the two tasks behind it."""

    def __init__(self, volume: Volume, inodes: InodeTable) -> None:
        self._volume = volume
        self._inodes = inodes
        self._pending: deque[_Frozen] = deque()
        self._following: list[_Frozen] = []
        """Durable, and the index is not to have them yet: blobs of theirs may stand in the journal only."""
        self._to_apply: deque[_Frozen] = deque()
        self._is_index_due = False
        self._frozen_ticket = 0
        self._durable_ticket = 0
        self._applied_ticket = 0
        self._wanted = False
        self._work = trio.Event()
        self._index_work = trio.Event()
        self._progress = trio.Event()
        self._stopping = False
        self._saved_counters = b""
        self._applied_records = 0
        """Since memory was last given back."""
        self._dead: deque[Pack] = deque()
        self.left_behind: list[Pack] = []
        """Packs that nothing lives in and that could not be removed."""
        self._closing = trio.Lock()
        self._end_asked: list[tuple[int, trio.Event]] = []
        """Who waits for the end of the journal's segment, each with the ticket that is to be in it."""
        self._ended: tuple[SegmentOpen, int] | None = None
        self.durable = volume.journal.position
        """Where the last batch ends that is durable."""
        self.settled = volume.journal.position
        """Up to here the packs have everything; the index has it, or is about to."""

    def has_changes(self) -> bool:
        """Whether anything waits to be frozen."""
        return self._volume.catalog.has_changes() or self._inodes.changed_count > 0

    def is_behind(self) -> bool:
        """Whether something durable waits until the index is to follow."""
        return bool(self._following)

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
        self.follow()
        while self._applied_ticket < ticket:
            if self._volume.failure is not None:
                raise self._volume.failure
            await self._progress.wait()

    async def progress(self) -> None:
        """The next batch is durable, or in the index, or writing has stopped, when this returns."""
        await self._progress.wait()

    def follow(self) -> None:
        """Have the index follow to what is durable, without waiting for it."""
        if self._following:
            self._is_index_due = True
            self._work.set()

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
        """Ask for a batch if there is enough for one, and wait while the overlay is too full to take more."""
        catalog = self._volume.catalog
        if self._exceeds(limits.BATCH_RECORDS, limits.BATCH_BYTES):
            self.nudge()
        while self._volume.failure is None:
            if catalog.frozen_layers > limits.LAYERS_MAX:
                self.follow()
            elif self._exceeds(limits.LAYER_RECORDS_MAX, limits.LAYER_BYTES_MAX):
                self.nudge()
            else:
                return
            await self._progress.wait()

    def _exceeds(self, records: int, value_bytes: int) -> bool:
        """Whether the layer that takes changes has more than this."""
        layer = self._volume.catalog.active
        return layer.records + self._inodes.changed_count > records or layer.value_bytes > value_bytes

    def stop(self) -> None:
        """Let `run` and `run_index` return once nothing is pending."""
        self._stopping = True
        self.follow()
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
                await self._hand_over_if_due()
            self._wanted = False
            await self._end_segment_if_asked()
            self._is_index_due = self._is_index_due or self._stopping
            await self._hand_over_if_due()
            if self._has_failed():
                self._tell()
                return
            if self._stopping and not self._pending and not self._following:
                return

    async def run_index(self) -> None:
        """Task: apply durable batches to the index, then remove what they no longer name."""
        while True:
            await self._index_work.wait()
            self._index_work = trio.Event()
            while self._to_apply:
                batches = self._next_for_index()
                if not await self._apply(batches):
                    self._tell()
                    return
                for frozen in batches:
                    self._to_apply.popleft()
                    self._volume.catalog.drop_layer(frozen.layer)
                    self._applied_ticket = frozen.ticket
                    self._applied_records += frozen.layer.records
                    self._dead.extend(frozen.dead)
                self._tell()
                if self._applied_records >= limits.MEMORY_BACK_RECORDS:
                    # What batches and transactions leave free lies between what stays, more of it from hour to hour.
                    self._applied_records = 0
                    seams = self._volume.seams
                    await seams.offload.index(seams.give_memory_back)
            while self._dead and not self._volume.held_packs:
                await self._remove_pack(self._dead[0])
                self._dead.popleft()
                self._tell()
            if self._stopping and self._applied_ticket == self._frozen_ticket:
                return

    def _next_for_index(self) -> list[_Frozen]:
        """The oldest batches, as many as go into one transaction."""
        taken: list[_Frozen] = []
        records = 0
        for batch in self._to_apply:
            records += batch.layer.records
            if taken and records > limits.INDEX_RECORDS:
                break
            taken.append(batch)
        return taken

    async def _make_durable(self, frozen: _Frozen) -> None:
        position = await self._insist(lambda: self._write(frozen), "a batch could not be written and is tried in a new segment")
        if position is None:
            return
        self._pending.popleft()
        self.durable = frozen.position = position
        self._durable_ticket = frozen.ticket
        self._following.append(frozen)
        self._tell()
        # Whoever waits is answered first.
        await trio.lowlevel.cancel_shielded_checkpoint()
        self._join_following()
        await self._close_full_packs()

    async def _insist(self, work: Callable[[], Awaitable[T]], told: str) -> T | None:
        """Do something without which nothing more can be made durable: once more when it fails, on a full disk with the reserve given up. None when
        writing has stopped.
        """
        volume = self._volume
        try:
            return await work()
        except StoreError as first:
            full = isinstance(first, StoreFullError)
            if full and not await volume.seams.offload.disk(volume.space.release):
                volume.fail(first)
                return None
            if not full:
                volume.errors.append(f"{told}: {first}")
                log.error("%s: %s", told, first)
            try:
                return await work()
            except BackupfsError as error:
                volume.fail(error)
                return None

    def _join_following(self) -> None:
        """A batch has become durable. Small ones are joined: so few layers lie above the index however many batches do."""
        following = self._following
        is_small = following[-1].layer.records <= limits.JOINED_RECORDS_MAX
        if len(following) > 1 and is_small and following[-2].layer.records <= limits.INDEX_RECORDS:
            newer, older = following.pop(), following[-1]
            self._volume.catalog.join_layers(older.layer, newer.layer)
            older.ticket, older.position = newer.ticket, newer.position
            older.dead += newer.dead
            older.changes = ()
        if (
            len(following) >= limits.INDEX_LAYERS
            or any(each.dead for each in following)
            or sum(each.layer.value_bytes for each in following) > limits.INDEX_BYTES
        ):
            self._is_index_due = True

    async def _hand_over_if_due(self) -> None:
        """Make durable in the packs what durable batches carry, then give those to the index."""
        if not self._is_index_due or not self._following or self._has_failed():
            return
        moved = await self._insist(self._sync_packs, "packs could not be synced and are tried again")
        if moved is None:
            return
        if moved:
            # Where these stand now is in the journal with the next batch; until then the index must not have it otherwise.
            layer = self._pending[0].layer if self._pending else self._volume.catalog.active
            for number in moved:
                self._volume.catalog.repeat_blob(layer, number)
            self._correct(layer, moved)
            self.nudge()
            return
        self._is_index_due = False
        self.settled = self._following[-1].position
        self._to_apply.extend(self._following)
        self._following.clear()
        self._index_work.set()
        await self._close_full_packs()

    async def _sync_packs(self) -> dict[int, Moved]:
        return await self._volume.seams.offload.disk(self._volume.packs.sync)

    async def _close_full_packs(self) -> None:
        for pack in self._volume.packs.full_packs():
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

    async def _write(self, frozen: _Frozen) -> Position:
        """Packs first where that is needed, then the journal, in one visit to a thread unless blobs had to move to another pack."""
        layer = frozen.layer
        while True:
            written = await self._volume.seams.offload.commit(self._write_blocking, frozen)
            if isinstance(written, Position):
                return written
            for number in written:
                self._volume.catalog.repeat_blob(layer, number)
            self._correct(layer, written)

    def _write_blocking(self, frozen: _Frozen) -> Position | dict[int, Moved]:
        """Where the batch ends; or the blobs that have moved, and it is not written."""
        packs = self._volume.packs
        # Where room is short nothing is written twice.
        may_carry = self._volume.keys.config.features & FEATURE_CARRIED_BLOBS and not self._volume.space.is_short()
        carried = packs.carry(limits.CARRIED_BYTES_MAX if may_carry else 0)
        if carried is None:
            moved = packs.sync()
            if moved:
                return moved
        carries = bool(carried)
        changes = list(frozen.layer.changes())
        position = self._volume.journal.append(encode_batch(changes, carried or ()), compress=not carries)
        if len(changes) > limits.JOINED_RECORDS_MAX:
            frozen.changes = changes
        packs.carried()
        return position

    def _correct(self, layer: Layer, moved: Mapping[int, Moved]) -> None:
        """Have a batch that is not written yet, and those after it, say where these blobs stand now."""
        volume = self._volume
        for number, move in moved.items():
            place = move.place
            facts = volume.packs.facts(place.pack)
            assert facts is not None, "a blob moved into a pack that is not open"
            volume.catalog.move_blob(layer, number, move.left, place.pack, place.offset, place.stored_bytes, facts)
            volume.catalog.pack_taken(layer, place.pack)

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

    async def _apply(self, batches: Sequence[_Frozen]) -> bool:
        volume = self._volume

        def apply() -> None:
            ends = [each.position for each in batches]
            volume.index.apply(
                [((p.segment, p.segment_bytes, p.batch), each.changes or each.layer.changes()) for p, each in zip(ends, batches, strict=True)]
            )

        try:
            try:
                await volume.seams.offload.index(apply)
            except StoreError as first:
                # LMDB reports a full disk as a plain I/O error; the transaction was undone.
                log.error("the index could not be written, once more with the reserve given up: %s", first)
                await volume.seams.offload.disk(volume.space.release)
                await volume.seams.offload.index(apply)
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
