"""Making checkpoints, and cutting the journal behind them.

Order: the journal's segment is closed · packs and index have what it holds · the image is written, its manifest last · this host remembers
how far it has seen the journal · checkpoints and segments that nobody needs any more go. An interruption anywhere leaves a file half written, parts
without a manifest, or segments that a checkpoint covers: the next one removes them.
"""

import logging
from collections.abc import Iterator

import trio

from backupfs import limits
from backupfs.engine import recovery
from backupfs.engine.committer import Committer
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, DamageError
from backupfs.format.journal import Change, SegmentOpen, decode_batch
from backupfs.journal.segments import JournalReader, Position
from backupfs.journal.sorting import RecordSorter

log = logging.getLogger(__name__)

_SCRATCH = "sorting"


class Checkpointer:
    """Decides when a checkpoint is due, and makes it. One task runs it."""

    def __init__(self, volume: Volume, committer: Committer) -> None:
        self._volume = volume
        self._committer = committer
        self._made_at = 0
        """`appended_bytes` of the journal when the last checkpoint was made by this process."""
        self._not_before = 0
        """`appended_bytes` of the journal before which none is tried again: one could not be made."""
        self._one_at_a_time = trio.Lock()
        self._cutting = trio.Lock()

    @property
    def journal_bytes(self) -> int:
        """The journal since the newest checkpoint."""
        volume = self._volume
        return volume.journal_before_bytes + volume.journal.appended_bytes - self._made_at

    def is_due(self) -> bool:
        """Whether the journal has grown so long that a checkpoint pays."""
        if self._volume.journal.appended_bytes < self._not_before:
            return False
        return self.journal_bytes > max(limits.CHECKPOINT_MIN_BYTES, self._volume.checkpoint_bytes)

    async def run(self) -> None:
        """Task: until cancelled."""
        while True:
            await trio.sleep(limits.CHECKPOINT_LOOK_S)
            if self._volume.failure is None and self.is_due() and not self._volume.held_packs:
                try:
                    await self.make()
                except BackupfsError as error:
                    self._not_before = self._volume.journal.appended_bytes + limits.CHECKPOINT_MIN_BYTES
                    log.error("no checkpoint could be made; the journal stays whole, and it is tried again when it has grown: %s", error)
            if not self.is_due():
                # The journal grows by batches only: a mount that nobody uses is not woken.
                await self._committer.progress()

    async def make(self) -> None:
        """Make one now. Cancelled, it leaves nothing that counts. Raises StoreError, DamageError."""
        async with self._one_at_a_time:
            volume = self._volume
            await self._committer.commit()
            appended = volume.journal.appended_bytes
            journal, batch = await self._committer.end_segment()
            # What its batches carry is in the packs from here on: whoever starts from the checkpoint does not read them.
            await self._committer.applied()
            await volume.seams.offload.disk(self._write, journal, batch)
            with trio.CancelScope(shield=True):
                # It counts: what it makes superfluous goes with it, also when the mount ends just now.
                await self._remember(journal, batch)
            self._made_at = appended
            volume.journal_before_bytes = 0

    async def not_cutting(self) -> None:
        """With packs held (`Volume.held_packs`) before the call, nothing of the journal or the checkpoints goes once this has returned."""
        async with self._cutting:
            pass

    async def _remember(self, journal: SegmentOpen, batch: int) -> None:
        volume = self._volume
        async with self._cutting:
            await volume.seams.offload.disk(self._cut, journal, batch, volume.held_packs > 0)

    def _write(self, journal: SegmentOpen, batch: int) -> None:
        """In a thread. It takes some 50 MiB: others have freed as much, and are to find as much afterwards."""
        give_memory_back = self._volume.seams.give_memory_back
        give_memory_back()
        try:
            self._write_image(journal, batch)
        finally:
            give_memory_back()

    def _write_image(self, journal: SegmentOpen, batch: int) -> None:
        volume = self._volume
        checkpoints = volume.checkpoints
        breathe = volume.seams.offload.breathe
        checkpoints.sweep()
        base = recovery.sound_checkpoint(checkpoints, breathe=breathe)
        if journal.previous_sequence == (base.manifest.segment if base else 0):
            # Nothing has been written since: two checkpoints of one place would let go of the segment that the next one names.
            return
        present = checkpoints.sequences()
        number = present[-1] + 1 if present else 1
        scratch = volume.state / _SCRATCH
        files = volume.seams.files
        files.make_directory(scratch)
        for run in files.list(scratch):
            files.unlink(scratch / run)
        sorter = RecordSorter(scratch, files, volume.keys, volume.seams.randomness, breathe)
        try:
            for changes in _journal_since(volume.journal_reader, base, journal):
                sorter.add(changes)
            # Also where most records of the image go, and few are written that would give way.
            image = checkpoints.records(base.number, base.manifest, breathe) if base else iter(())
            checkpoints.write(number, journal, batch, merged(image, sorter.records()), breathe, volume.space.require_room)
        finally:
            sorter.close()
        for damaged in [other for other in present if other > (base.number if base else 0)]:
            log.error("checkpoint %d did not hold and goes: checkpoint %d was made without it", damaged, number)
            checkpoints.remove(damaged)
        volume.checkpoint_bytes = checkpoints.size_bytes(number)
        log.info("checkpoint %d is made: %d bytes", number, volume.checkpoint_bytes)

    def _cut(self, journal: SegmentOpen, batch: int, somebody_reads: bool) -> None:
        """In a thread: remember how far this host has seen the journal, then remove what nobody needs, unless somebody reads it."""
        volume = self._volume
        volume.head.save(Position(journal.previous_sequence, journal.previous_bytes, batch), journal.previous_hash)
        if somebody_reads:
            return
        kept = volume.checkpoints.sequences()[-limits.CHECKPOINTS_KEPT :]
        if not kept:
            return
        oldest = volume.checkpoints.manifest(kept[0])
        for number in volume.checkpoints.sequences():
            if number not in kept:
                volume.checkpoints.remove(number)
        if len(kept) == limits.CHECKPOINTS_KEPT:
            volume.journal_reader.remove_to(oldest.segment)


def _journal_since(reader: JournalReader, base: recovery.SoundCheckpoint | None, end: SegmentOpen) -> Iterator[Iterator[Change]]:
    """The batches behind a checkpoint, from the store, up to the end of the segment `end`. Raises DamageError where they do not hold."""
    start = base.position if base else Position()
    batch = start.batch
    for segment in recovery.chain(reader, start, base.journal if base else None, None, [], end.previous_sequence):
        if segment.sequence == start.segment:
            continue
        if segment.sequence == end.previous_sequence and (
            segment.valid_bytes < end.previous_bytes or reader.hash(segment, end.previous_bytes) != end.previous_hash
        ):
            raise DamageError(f"journal segment {segment.sequence} is not what was written")
        for item in reader.batches(segment, 0):
            recovery.expect(item, batch)
            batch = item.position.batch
            yield decode_batch(item.payload)


def merged(base: Iterator[Change], changes: Iterator[Change]) -> Iterator[Change]:
    """A sorted image with sorted changes applied to it."""
    change = next(changes, None)
    for record in base:
        table, key, _ = record
        while change is not None and (change[0] < table or (change[0] == table and change[1] < key)):
            if change[2] is not None:
                yield change
            change = next(changes, None)
        if change is None or change[1] != key or change[0] != table:
            yield record
    while change is not None:
        if change[2] is not None:
            yield change
        change = next(changes, None)
