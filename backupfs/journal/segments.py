"""Reading journal segments: which there are, which of their frames count, and whether anything is missing.

The rules of `docs/format.md`, "Journal": a segment counts as far as its successor says, and must hold to there; the last one counts up
to its first bad frame, unless a good frame stands behind that: then it is damaged.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backupfs import limits
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import DamageError
from backupfs.format import journal as journal_format
from backupfs.format import objects
from backupfs.format.journal import HEAD_BYTES, FrameHead, FrameKind, SegmentOpen
from backupfs.format.layout import Sealed
from backupfs.format.objects import HEADER_BYTES, JOURNAL_MAGIC, journal_object_id
from backupfs.stores.files import Files
from backupfs.stores.port import Store

OPEN_PREFIX = "journal-"
_OPEN = re.compile(OPEN_PREFIX + "[0-9a-f]{16}", re.ASCII)
_decode_open = msgspec.msgpack.Decoder(SegmentOpen).decode


def segment_name(sequence: int) -> str:
    """Name of a closed segment in the store."""
    return f"journal/{sequence:016x}"


def open_segment_path(open_directory: Path, sequence: int) -> Path:
    """Where a segment lies while it is appended to."""
    return open_directory / f"{OPEN_PREFIX}{sequence:016x}"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the journal: so many bytes of a segment, after so many batches of the whole journal."""

    segment: int = 0
    segment_bytes: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch's records and the position after it."""

    position: Position
    payload: bytes


@dataclass(slots=True)
class Segment:
    """One segment, as found. `opening` is None when its first frame never became whole: nothing else can stand in it then."""

    sequence: int
    in_store: bool
    data: bytes
    sealer: Sealer | None = None
    opening: SegmentOpen | None = None
    valid_bytes: int = 0
    frames: list[tuple[int, FrameHead]] = field(default_factory=list)


class JournalReader:
    """Reads segments from the store and the open directory. Blocks; holds at most one segment in memory at a time."""

    def __init__(self, open_directory: Path, files: Files, store: Store, keys: Keys, compressor: Compressor) -> None:
        self._directory = open_directory
        self._files = files
        self._store = store
        self._keys = keys
        self._compressor = compressor

    def make_open_durable(self, *, read_only: bool = False) -> None:
        """Make durable what a dead process left in the open directory. It may stand in the page cache only, and what is read of it counts.

        It is written once more, unless `read_only`: of bytes that could not be synced the kernel believes that they were, and syncing them again does
        nothing.
        """
        left = [name for name in self._files.list(self._directory) if _OPEN.fullmatch(name)]
        for name in left:
            path = self._directory / name
            handle = self._files.open(path) if read_only else self._files.reopen(path)
            try:
                if not read_only:
                    self._files.write_at(handle, 0, [self._files.read_at(handle, 0, self._files.size(handle))])
                self._files.sync(handle)
            finally:
                self._files.close(handle)
        if left:
            self._files.sync_directory(self._directory)

    def sequences(self) -> list[tuple[int, bool]]:
        """(sequence, whether it is in the store) of all segments, in order."""
        found: dict[int, bool] = {}
        for name in self._files.list(self._directory):
            if _OPEN.fullmatch(name):
                found[int(name.removeprefix(OPEN_PREFIX), 16)] = False
        for name in self._store.list("journal"):
            found[int(name.removeprefix("journal/"), 16)] = True
        return sorted(found.items())

    def read(self, sequence: int, in_store: bool) -> bytes:
        """The bytes of a segment's file. Raises StoreError."""
        if in_store:
            return self._store.get(segment_name(sequence))
        handle = self._files.open(open_segment_path(self._directory, sequence))
        try:
            return self._files.read_at(handle, 0, self._files.size(handle))
        finally:
            self._files.close(handle)

    def size_bytes(self, sequence: int, in_store: bool) -> int:
        """Length of a segment's file. Raises StoreError."""
        if in_store:
            return self._store.size(segment_name(sequence))
        handle = self._files.open(open_segment_path(self._directory, sequence))
        try:
            return self._files.size(handle)
        finally:
            self._files.close(handle)

    def remove_to(self, last: int) -> None:
        """Remove the segments up to this number, also those that were given up and never handed over. Raises StoreError."""
        for sequence, in_store in self.sequences():
            if sequence > last:
                return
            if in_store:
                self._store.delete(segment_name(sequence))
            else:
                self._files.unlink(open_segment_path(self._directory, sequence))

    def load(self, sequence: int, in_store: bool) -> Segment:
        """A segment with its header and first frame checked, its other frames not yet read. Raises DamageError, StoreError."""
        data = self.read(sequence, in_store)
        segment = Segment(sequence, in_store, data)
        what = f"journal segment {sequence}"
        try:
            header = objects.decode(data[:HEADER_BYTES], JOURNAL_MAGIC, what)
            segment.sealer = self._keys.object_sealer(header, journal_object_id(sequence))
            head, end = self._head(segment, HEADER_BYTES)
            if head.kind != FrameKind.OPEN:
                raise DamageError(f"{what}: its first frame is not an opening")
            segment.opening = _decode_open(self._body(segment, HEADER_BYTES, head))
            segment.valid_bytes = end
            segment.frames.append((HEADER_BYTES, head))
        except DamageError:
            if len(data) > limits.JOURNAL_FRAME_BYTES:
                raise
            segment.sealer = segment.opening = None
        except msgspec.DecodeError as error:
            raise DamageError(f"{what}: its opening does not decode") from error
        return segment

    def read_frames(self, segment: Segment, closed_at: int | None) -> None:
        """Find the segment's frames behind `valid_bytes`: up to `closed_at`, where all must hold, or in the last segment up to the first bad one.

        Raises DamageError naming the place when a frame is bad that counts.
        """
        what = f"journal segment {segment.sequence}"
        at = segment.valid_bytes
        limit = len(segment.data) if closed_at is None else closed_at
        if closed_at is not None and closed_at > len(segment.data):
            raise DamageError(f"{what}: {len(segment.data)} bytes, but {closed_at} were written", object=what)
        while at < limit:
            try:
                head, end = self._head(segment, at)
                self._body(segment, at, head)
            except DamageError as error:
                if closed_at is None and not self._good_frame_from(segment, at + 1):
                    break
                raise DamageError(f"{what}: damaged at byte {at}", object=what, offset=at) from error
            segment.frames.append((at, head))
            at = end
        if closed_at is not None and at != closed_at:
            raise DamageError(f"{what}: a frame runs past byte {closed_at}, where it was closed", object=what)
        segment.valid_bytes = at

    def is_skipped(self, segment: Segment, successor: SegmentOpen) -> bool:
        """Whether the segment behind this one, with this opening, stands in its place: it was begun, could neither be made durable nor taken back,
        and holds nothing.
        """
        if segment.opening != successor or not segment.frames:
            return False
        at, head = segment.frames[0]
        return not self._good_frame_from(segment, at + HEAD_BYTES + head.body_bytes)

    def batches(self, segment: Segment, after_bytes: int) -> Iterator[Batch]:
        """The batches behind `after_bytes`. `read_frames` was called before."""
        for at, head in segment.frames:
            if head.kind == FrameKind.BATCH and at >= after_bytes:
                end = at + HEAD_BYTES + head.body_bytes
                yield Batch(Position(segment.sequence, end, head.number), self._body(segment, at, head))

    def hash(self, segment: Segment, size_bytes: int) -> bytes:
        """Keyed hash of the first bytes of a segment."""
        return self._keys.journal_hasher().update(memoryview(segment.data)[:size_bytes]).digest()

    def _head(self, segment: Segment, at: int) -> tuple[FrameHead, int]:
        if segment.sealer is None:
            raise DamageError(f"journal segment {segment.sequence}: its header cannot be read")
        sealed = segment.data[at : at + HEAD_BYTES]
        if len(sealed) < HEAD_BYTES:
            raise DamageError("journal frame: cut off")
        head = journal_format.decode_head(segment.sealer.open(Sealed.FRAME_HEAD, at, sealed))
        end = at + HEAD_BYTES + head.body_bytes
        if end > len(segment.data) or end % limits.JOURNAL_FRAME_BYTES:
            raise DamageError("journal frame: cut off")
        return head, end

    def _body(self, segment: Segment, at: int, head: FrameHead) -> bytes:
        assert segment.sealer is not None
        start = at + HEAD_BYTES
        plain = segment.sealer.open(Sealed.FRAME_BODY, start, segment.data[start : start + head.body_bytes])
        stored, plain_bytes = journal_format.decode_body(plain)
        return self._compressor.expand(stored, plain_bytes)

    def _good_frame_from(self, segment: Segment, at: int) -> bool:
        step = limits.JOURNAL_FRAME_BYTES
        for candidate in range(at + -at % step, len(segment.data), step):
            try:
                self._head(segment, candidate)
            except DamageError:
                continue
            return True
        return False
