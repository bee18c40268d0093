"""From what lies on the disk to a volume: replaying the journal into the index, closing what a dead process left open.

Nothing an earlier process opened is appended to. Its last segment counts as far as it is whole, and the new one says so; its unfinished packs
are finished as copies; what nobody knows is set aside, not deleted.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from backupfs import limits
from backupfs.blobs.packs import finish_abandoned, pack_name
from backupfs.blobs.reader import BlobReader
from backupfs.catalog.index import DISTRUSTED, Index, JournalPlace
from backupfs.codec.keys import Keys
from backupfs.engine.head import SeenHistory
from backupfs.engine.seams import Progress, Seams
from backupfs.errors import DamageError, MissingObjectError, RollbackError, StoreError
from backupfs.format import catalog as records
from backupfs.format.catalog import PackState, Table, number_key
from backupfs.format.checkpoint import Manifest
from backupfs.format.journal import Change, SegmentOpen, decode_batch, decode_carried
from backupfs.format.pack import PackEntry
from backupfs.journal.checkpoints import Checkpoints
from backupfs.journal.segments import (
    OPEN_PREFIX,
    Batch,
    JournalReader,
    Position,
    Segment,
    open_segment_path,
    segment_name,
)
from backupfs.stores.files import Files, Handle
from backupfs.stores.local import LocalStore
from backupfs.stores.port import Store

log = logging.getLogger(__name__)

_ROLLBACK = (
    "the journal in the repository ends before what this host has seen of it: the repository was put back to an older state or its newest "
    "segment is damaged. Nothing was changed. If the older state is what you want, mount with --accept-rollback"
)
_OTHER_HISTORY = (
    "the journal in the repository is not the one that this host has seen: the repository was put back to an older state and used since. Nothing was "
    "changed. If what is there now is what you want, mount with --accept-rollback"
)
_OTHER_CHECKPOINT = (
    "the newest checkpoint in the repository ends with another journal than the one that is there: objects of two copies were mixed. Nothing was "
    "changed. Take all of `checkpoints` and `journal` from one copy"
)
_REPLAY_BYTES = 2 * limits.MIB


@dataclass(slots=True)
class Replayed:
    """Where the journal ends: the position, and its last segment as the next one is to name it."""

    position: Position
    last: SegmentOpen
    batches: int = 0
    torn: list[int] = field(default_factory=list)
    """Segments that were begun and never became whole."""
    unclosed: list[int] = field(default_factory=list)
    """Segments that count and still lie in the open directory."""


def open_index(directory: Path, keys: Keys, seams: Seams, journal: JournalReader, checkpoints: Checkpoints) -> Index:
    """The index, or an empty one in place of one that cannot be trusted or needs more of the journal than is left; it is set aside. Blocks."""
    if (directory / DISTRUSTED).exists():
        set_index_aside(directory)
    try:
        index = Index(directory, keys, seams.randomness)
        try:
            fault = _fault(index, journal, checkpoints)
        except DamageError:
            index.close()
            raise
    except DamageError as error:
        log.warning("the index cannot be used and is built anew from the journal: %s", error)
    else:
        if not fault:
            return index
        index.close()
        log.info("the index %s, and is built anew from a checkpoint", fault)
    set_index_aside(directory)
    return Index(directory, keys, seams.randomness)


def set_index_aside(directory: Path) -> None:
    """Put the index where it is not used; the one that was there before goes. Nothing is done when there is none."""
    if not directory.exists():
        return
    aside = directory.with_name(directory.name + ".damaged")
    if aside.exists():
        for old in aside.iterdir():
            old.unlink()
        aside.rmdir()
    directory.rename(aside)


@dataclass(frozen=True, slots=True)
class SoundCheckpoint:
    """A checkpoint that has been read in full and holds."""

    number: int
    manifest: Manifest

    @property
    def position(self) -> Position:
        """Where the journal goes on behind it."""
        return Position(self.manifest.segment, self.manifest.segment_bytes, self.manifest.batch)

    @property
    def journal(self) -> SegmentOpen:
        """The segment that it ends with, as the next one names it."""
        return SegmentOpen(self.manifest.segment, self.manifest.segment_bytes, self.manifest.segment_hash)


def sound_checkpoint(
    checkpoints: Checkpoints, take: Callable[[list[Change]], None] = lambda _: None, breathe: Callable[[], None] = lambda: None
) -> SoundCheckpoint | None:
    """The newest checkpoint that holds; `take` is given its records, some thousands at a time. None when there is none.

    When one turns out not to hold, `take` has been given some of it: what an older one and the journal since then say stands above that. Blocks.
    """
    for number in reversed(checkpoints.sequences()):
        # What `take` raises is no fault of the checkpoint's.
        try:
            manifest = checkpoints.manifest(number)
            pieces = in_pieces(checkpoints.records(number, manifest, breathe))
            piece = next(pieces, None)
        except (DamageError, StoreError) as error:
            _does_not_hold(number, error)
            continue
        while piece is not None:
            take(piece)
            try:
                piece = next(pieces, None)
            except (DamageError, StoreError) as error:
                _does_not_hold(number, error)
                break
        else:
            return SoundCheckpoint(number, manifest)
    return None


def in_pieces(changes: Iterator[Change]) -> Iterator[list[Change]]:
    """As many as one transaction of the index is to have."""
    while piece := list(islice(changes, limits.BATCH_RECORDS)):
        yield piece


def _does_not_hold(number: int, error: Exception) -> None:
    log.error("checkpoint %d does not hold, the one before it serves: %s", number, error)


def chain(
    reader: JournalReader, start: Position, cut: SegmentOpen | None, seen: SeenHistory | None, torn: list[int], last: int | None = None
) -> Iterator[Segment]:
    """The segments from `start` on, up to number `last`, as they follow each other, their frames behind `start` read.

    The first may be missing when it is known from a checkpoint (`cut`). Those that were begun and never became whole, or that the next one stands
    in for, are passed over and added to `torn`. Raises DamageError, naming the segment, when one is missing, damaged behind `start` or names another
    predecessor; damage before `start` is only told, for the index has what stood there. Blocks.
    """
    first = start.segment
    before: Segment | None = None
    for sequence, in_store in reader.sequences():
        if sequence < first or (last is not None and sequence > last):
            continue
        segment = _load(reader, sequence, in_store, start, seen)
        if sequence == first:
            _expect_known(reader, segment, cut, seen)
        if segment.opening is None:
            torn.append(sequence)
            continue
        opening = segment.opening
        if before is not None and reader.is_skipped(before, opening):
            if not before.in_store:
                torn.append(before.sequence)
            before = segment
            continue
        if sequence != first:
            _expect_predecessor(reader, before, opening, first, cut)
        if before is not None:
            yield before
        before = segment
    if before is not None:
        reader.read_frames(before, None)
        yield before
    elif first:
        raise RollbackError(_ROLLBACK)


def _expect_predecessor(reader: JournalReader, before: Segment | None, opening: SegmentOpen, first: int, cut: SegmentOpen | None) -> None:
    """Raises DamageError when a segment with this opening does not follow on the one before. Damage before the start is only told."""
    if before is None:
        if first and opening != cut:
            raise DamageError(f"journal segment {first} is missing", segment=first)
        if not first and opening.previous_sequence:
            raise DamageError(f"journal segment {opening.previous_sequence} is missing", segment=opening.previous_sequence)
        return
    if opening.previous_sequence != before.sequence:
        raise DamageError(f"journal segment {opening.previous_sequence} is missing", segment=opening.previous_sequence)
    if before.sequence == first and cut is not None and opening != cut:
        raise DamageError(f"the segment behind journal segment {first} does not follow on the one that the checkpoint ends with", segment=first)
    reader.read_frames(before, opening.previous_bytes)
    if reader.hash(before, opening.previous_bytes) != opening.previous_hash:
        told = f"journal segment {before.sequence} is not the one that its successor names"
        if before.sequence != first:
            raise DamageError(told)
        log.error("%s: it is damaged before what the index holds; `backupfs check` says where", told)


def _expect_known(reader: JournalReader, segment: Segment, cut: SegmentOpen | None, seen: SeenHistory | None) -> None:
    """Raises RollbackError when the segment that replay starts in is whole and not the one that a checkpoint or this host knows: it is of another
    history. Where it does not hold it is damaged, and what stood there is known.
    """
    known = cut
    if known is None and seen is not None and seen.position.segment == segment.sequence:
        known = SegmentOpen(seen.position.segment, seen.position.segment_bytes, seen.hash)
    if known is None or len(segment.data) < known.previous_bytes or reader.hash(segment, known.previous_bytes) == known.previous_hash:
        return
    try:
        whole = reader.load(segment.sequence, segment.in_store)
        reader.read_frames(whole, None)
    except DamageError:
        return
    if whole.valid_bytes >= known.previous_bytes:
        raise RollbackError(_OTHER_HISTORY if cut is None else _OTHER_CHECKPOINT)


def _load(reader: JournalReader, sequence: int, in_store: bool, start: Position, seen: SeenHistory | None) -> Segment:
    try:
        segment = reader.load(sequence, in_store)
    except DamageError as error:
        if sequence != start.segment:
            raise
        data = reader.read(sequence, in_store)
        if len(data) < start.segment_bytes:
            raise
        log.error("%s: the index has what stood there; `backupfs check` says more", error)
        segment = Segment(sequence, in_store, data, opening=SegmentOpen(0, 0, b""))
        if seen is not None and seen.position == Position(sequence, len(data), start.batch):
            # It was closed in order behind the last batch that the index has: nothing more can stand in it.
            segment.valid_bytes = len(data)
    if sequence == start.segment and len(segment.data) >= start.segment_bytes:
        segment.valid_bytes = max(segment.valid_bytes, start.segment_bytes)
    return segment


def _newest(checkpoints: Checkpoints) -> tuple[int, int]:
    """(the segment up to which it stands for the journal, its bytes) of the newest checkpoint whose manifest holds; zeros without one. Its parts are
    not read.
    """
    for number in reversed(checkpoints.sequences()):
        try:
            return checkpoints.manifest(number).segment, checkpoints.size_bytes(number)
        except (DamageError, StoreError) as error:
            _does_not_hold(number, error)
    return 0, 0


def _fault(index: Index, reader: JournalReader, checkpoints: Checkpoints) -> str:
    """Why an index that opens cannot be gone on with: what it is; empty when it can. Blocks."""
    segment = index.position[0]
    if not segment and any(True for table in Table for _ in index.scan(table, b"")):
        # What stands in it may have ended since: the checkpoint that it is built from now does not say so.
        return "was half built"
    left = [sequence for sequence, _ in reader.sequences()]
    if left and segment and segment not in left and segment <= _newest(checkpoints)[0]:
        return "is older than what is left of the journal, which has been cut off because checkpoints took its place"
    return ""


class CarriedBlobs:
    """Brings the blobs that batches carry to where they belong: into packs that a dead process left open. What is written is what that process has
    sealed for that place, also where it stands already: it may be what could not be synced, which the kernel does not write again by itself. Blocks.

    `read_only`: nothing is written, and what the packs lack is in `lacking`, for whoever reads them.
    """

    def __init__(self, open_directory: Path, files: Files, *, read_only: bool = False) -> None:
        self._directory = open_directory
        self._files = files
        self._open = files.open if read_only else files.reopen
        self.read_only = read_only
        self._handles: dict[bytes, Handle | None] = {}
        self.lacking: dict[bytes, dict[int, bytes]] = {}
        """Sealed bytes by object id of the pack and offset."""
        self.settled: JournalPlace = 0, 0, 0
        """Up to here nothing is lacking."""

    def put(self, payload: bytes, place: JournalPlace) -> None:
        """Those of the batch that ends there. A pack that is not there was closed since, and has them. Raises DamageError, StoreError."""
        for blob in decode_carried(payload):
            handle = self._handle(blob.object_id)
            if handle is None:
                continue
            if not self.read_only:
                self._files.write_at(handle, blob.offset, [blob.sealed])
            elif self._files.read_at(handle, blob.offset, len(blob.sealed)) != blob.sealed:
                self.lacking.setdefault(blob.object_id, {})[blob.offset] = blob.sealed
        if not self.lacking:
            self.settled = place

    def sync(self) -> None:
        """All of them are durable when this returns; also those that were there: after a kill they may stand in the page cache only."""
        for handle in self._handles.values():
            if handle is not None and not self.read_only:
                self._files.sync(handle)

    def close(self) -> None:
        """Let go of the packs."""
        for handle in self._handles.values():
            if handle is not None:
                self._files.close(handle)
        self._handles.clear()

    def _handle(self, object_id: bytes) -> Handle | None:
        if object_id not in self._handles:
            try:
                self._handles[object_id] = self._open(self._directory / object_id.hex())
            except MissingObjectError:
                self._handles[object_id] = None
        return self._handles[object_id]


def replay(
    reader: JournalReader, checkpoints: Checkpoints, index: Index, seen: SeenHistory | None, carried: CarriedBlobs, progress: Progress
) -> Replayed:
    """Bring the index up to the journal's end; an empty one starts from a checkpoint. Raises DamageError or RollbackError; never takes a shorter
    journal for the whole. `progress` is told of (bytes read, bytes in all). Blocks.

    The index's position stays before the first batch of which something is lacking: the next mount reads it once more, and puts that where it
    belongs.
    """
    reader.make_open_durable(read_only=carried.read_only)
    start, cut = Position(*index.position), None
    done_bytes = 0
    if not start.segment:
        base = sound_checkpoint(checkpoints, lambda piece: index.apply([((0, 0, 0), piece)]))
        if base is not None:
            done_bytes = checkpoints.size_bytes(base.number)
            start, cut = base.position, base.journal
            index.apply([((start.segment, start.segment_bytes, start.batch), [])])
    result = Replayed(start, cut or SegmentOpen(0, 0, b""))
    waiting: list[tuple[JournalPlace, list[Change]]] = []
    waiting_bytes = 0
    carried.settled = start.segment, start.segment_bytes, start.batch
    # An index that is as new as what was seen is itself the proof of it.
    seen_found = seen is None or seen.position.batch <= start.batch
    # Given up after a failed write, and never handed over: the segments that followed say how far they count.
    result.unclosed.extend(sequence for sequence, in_store in reader.sequences() if sequence < start.segment and not in_store)
    total_bytes = done_bytes + sum(reader.size_bytes(*each) for each in reader.sequences() if each[0] >= start.segment)
    for segment in chain(reader, start, cut, seen, result.torn):
        if not segment.in_store:
            result.unclosed.append(segment.sequence)
        if seen is not None and not seen_found and segment.sequence == seen.position.segment:
            if segment.valid_bytes < seen.position.segment_bytes or (reader.hash(segment, seen.position.segment_bytes) != seen.hash):
                raise RollbackError(_ROLLBACK)
            seen_found = True
        if segment.sequence == start.segment and segment.valid_bytes < start.segment_bytes:
            raise RollbackError(_ROLLBACK)
        after = start.segment_bytes if segment.sequence == start.segment else 0
        for batch in reader.batches(segment, after):
            expect(batch, result.position.batch)
            result.position = batch.position
            result.batches += 1
            place = batch.position.segment, batch.position.segment_bytes, batch.position.batch
            carried.put(batch.payload, place)
            waiting.append((place, list(decode_batch(batch.payload))))
            waiting_bytes += len(batch.payload)
            if waiting_bytes >= _REPLAY_BYTES:
                carried.sync()
                index.apply(waiting, carried.settled)
                waiting, waiting_bytes = [], 0
        done_bytes += len(segment.data)
        progress(done_bytes, total_bytes)
        result.position = Position(segment.sequence, segment.valid_bytes, result.position.batch)
        result.last = SegmentOpen(segment.sequence, segment.valid_bytes, _true_hash(reader, segment, cut, seen))
    if waiting:
        carried.sync()
        index.apply(waiting, carried.settled)
    if not seen_found:
        raise RollbackError(_ROLLBACK)
    index.renew()
    return result


def _true_hash(reader: JournalReader, segment: Segment, cut: SegmentOpen | None, seen: SeenHistory | None) -> bytes:
    """Hash of what counts of a segment, as it was written if a checkpoint or this host has noted that: it may be damaged where the catalog has all of
    it.
    """
    if cut is not None and (cut.previous_sequence, cut.previous_bytes) == (segment.sequence, segment.valid_bytes):
        return cut.previous_hash
    if seen is not None and (seen.position.segment, seen.position.segment_bytes) == (segment.sequence, segment.valid_bytes):
        return seen.hash
    return reader.hash(segment, segment.valid_bytes)


def expect(batch: Batch, before: int) -> None:
    """Raises DamageError when this is not the batch after number `before`."""
    if batch.position.batch != before + 1:
        raise DamageError(f"the journal goes from batch {before} to batch {batch.position.batch}")


def journal_since_checkpoint(reader: JournalReader, checkpoints: Checkpoints, store: Store) -> tuple[int, int]:
    """(bytes of the closed segments behind the newest checkpoint, bytes of that checkpoint). One that does not hold counts as none. Blocks."""
    covered, size = _newest(checkpoints)
    return sum(store.size(segment_name(sequence)) for sequence, in_store in reader.sequences() if in_store and sequence > covered), size


class SetAside:
    """Where recovery puts what belongs to nothing that was committed: under a number that rises from recovery to recovery. Blocks."""

    def __init__(self, directory: Path, number: int, files: Files) -> None:
        self._directory = directory
        self._prefix = f"{number:016x}-"
        self._files = files

    def put(self, path: Path) -> None:
        """Move a file there."""
        log.info("%s belongs to nothing that was committed and is set aside in %s", path.name, self._directory)
        self._files.make_directory(self._directory)
        self._files.rename(path, self._directory / (self._prefix + path.name))

    def forget_oldest(self) -> None:
        """Remove what was put there long ago: nothing has missed it since."""
        names = self._files.list(self._directory)
        kept = sorted({_recovery_of(name) for name in names})[-limits.SET_ASIDE_KEPT :]
        for name in names:
            if _recovery_of(name) not in kept:
                self._files.unlink(self._directory / name)


def _recovery_of(name: str) -> str:
    return name.rpartition("-")[0]


def retire_segments(result: Replayed, open_directory: Path, aside: SetAside, store: LocalStore) -> None:
    """Move segments that a dead process left in the open directory to where they belong. Blocks."""
    for sequence in result.unclosed:
        store.put_file(segment_name(sequence), open_segment_path(open_directory, sequence))
    for sequence in result.torn:
        aside.put(open_segment_path(open_directory, sequence))


def finish_packs(
    index: Index, reader: BlobReader, open_directory: Path, aside: SetAside, store: LocalStore, keys: Keys, seams: Seams, unclean: bool
) -> list[Change]:
    """Close the packs that a dead process left open; after an unclean end set aside those that no record names.

    Gives the changed rows of packs, for the first batch. Blocks.
    """
    files = seams.files
    changes: list[Change] = []
    known: set[str] = set()
    closed: set[str] = set()
    for key, sealed in list(index.scan(Table.PACKS, b"")):
        pack = records.decode_pack(index.open_record(Table.PACKS, key, sealed))
        closed.add(pack_name(pack.object_id))
        if pack.state != PackState.OPEN:
            continue
        number = records.number_of(key)
        name = pack.object_id.hex()
        known.add(name)
        path = open_directory / name
        entries = _entries(index, number, pack.first_blob)
        if not entries:
            changes.append((Table.PACKS, key, None))
            # It may have been handed to the store, and the process has been told that this failed.
            for lying in (path, store.root / pack_name(pack.object_id)):
                if files.exists(lying):
                    aside.put(lying)
            continue
        if files.exists(path) and not _is_closed(store, pack.object_id):
            _finish_pack(path, entries, pack.object_id, open_directory, store, keys, seams)
            reader.forget(pack.object_id)
        elif files.exists(path):
            files.unlink(path)
        elif not _is_closed(store, pack.object_id):
            log.error("pack %s is missing: what it held cannot be read; `backupfs check` names the files", name)
            continue
        row = records.Pack(pack.object_id, pack.live_bytes, PackState.SEALED, pack.first_blob)
        changes.append((Table.PACKS, key, records.encode(row)))
    _set_unknown_aside(open_directory, known, closed if unclean else None, aside, store, files)
    return changes


def _set_unknown_aside(open_directory: Path, known: set[str], closed: set[str] | None, aside: SetAside, store: LocalStore, files: Files) -> None:
    """Packs that no record names: in the open directory, and with `closed`, the names of all that are known, in the store."""
    for name in files.list(open_directory):
        if name not in known and len(name) == _PACK_NAME_CHARACTERS and not name.startswith(OPEN_PREFIX):
            aside.put(open_directory / name)
        elif name.endswith(_FINISHING):
            files.unlink(open_directory / name)
    if closed is not None:
        for name in [name for name in store.list("packs") if name not in closed]:
            aside.put(store.root / name)


_FINISHING = ".finishing"
_PACK_NAME_CHARACTERS = 32


def _finish_pack(path: Path, entries: list[PackEntry], object_id: bytes, open_directory: Path, store: LocalStore, keys: Keys, seams: Seams) -> None:
    files = seams.files
    handle = files.open(path)
    try:
        source = files.read_at(handle, 0, max(entry.offset + entry.stored_bytes for entry in entries))
    finally:
        files.close(handle)
    finishing = open_directory / (object_id.hex() + _FINISHING)
    if files.exists(finishing):
        files.unlink(finishing)
    handle = files.create(finishing)
    try:
        files.write_at(handle, 0, finish_abandoned(source, entries, object_id, keys, seams.randomness))
        files.sync(handle)
    finally:
        files.close(handle)
    store.put_file(pack_name(object_id), finishing)
    files.unlink(path)


def _entries(index: Index, pack: int, first_blob: int) -> list[PackEntry]:
    entries = []
    for key, sealed in index.scan(Table.BLOBS, number_key(first_blob)):
        blob = records.decode_blob(index.open_record(Table.BLOBS, key, sealed))
        if blob.pack == pack:
            entries.append(PackEntry(blob.id, blob.offset, blob.stored_bytes, blob.plain_bytes))
    return sorted(entries, key=lambda entry: entry.offset)


def _is_closed(store: LocalStore, object_id: bytes) -> bool:
    try:
        store.size(pack_name(object_id))
    except MissingObjectError:
        return False
    return True
