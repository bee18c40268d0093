"""Appending to the journal. One batch at a time: its frame is synced before the next is begun, so a reader can tell torn from damaged."""

from pathlib import Path

import msgspec

from backupfs import limits
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Hasher, Keys, Sealer
from backupfs.errors import StoreError
from backupfs.format import journal as journal_format
from backupfs.format import objects
from backupfs.format.journal import HEAD_BYTES, FrameHead, FrameKind, SegmentEnd, SegmentOpen
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, Sealed
from backupfs.format.objects import HEADER_BYTES, JOURNAL_MAGIC, journal_object_id
from backupfs.journal.segments import Position, open_segment_path, segment_name
from backupfs.randomness import Randomness
from backupfs.stores.files import Files, Handle
from backupfs.stores.port import Store


class JournalWriter:
    """The end of the journal. All functions block and are called from one thread at a time."""

    def __init__(
        self,
        open_directory: Path,
        files: Files,
        store: Store,
        keys: Keys,
        compressor: Compressor,
        randomness: Randomness,
        previous: SegmentOpen,
        batch: int,
    ) -> None:
        """The next segment follows on `previous`; the last batch written so far is `batch`."""
        self._directory = open_directory
        self._files = files
        self._store = store
        self._keys = keys
        self._compressor = compressor
        self._randomness = randomness
        self._previous = previous
        self._sequence = previous.previous_sequence
        self._taken = self._sequence
        """The highest number given to a segment, begun or not."""
        self.appended_bytes = 0
        """What has been appended by this process, all segments together."""
        self._batch = batch
        self._handle: Handle | None = None
        self._sealer: Sealer | None = None
        self._hasher: Hasher = keys.journal_hasher()
        self._end = 0
        self._batches = 0
        self._failed = False

    @property
    def position(self) -> Position:
        """Where the journal ends: everything before is durable."""
        return Position(self._sequence, self._end, self._batch)

    @property
    def closed(self) -> SegmentOpen | None:
        """The segment before the next one, when none is being appended to: its number, its bytes that count, their hash."""
        return self._previous if self._handle is None else None

    def last_hash(self) -> bytes:
        """Hash of the segment that `position` names, up to there."""
        return self._hasher.digest()

    def open(self, above: int = 0) -> None:
        """Begin a segment; it is durable, and names what came before, when this returns. Its number is higher than `above`."""
        sequence = self._taken = max(self._taken, above) + 1
        header, self._sealer = self._keys.new_object(JOURNAL_MAGIC, journal_object_id(sequence), self._randomness)
        handle = self._files.create(open_segment_path(self._directory, sequence))
        try:
            header_bytes = objects.encode(header)
            frame = self._frame(HEADER_BYTES, FrameKind.OPEN, self._batch, msgspec.msgpack.encode(self._previous))
            self._files.write_at(handle, 0, [header_bytes, *frame])
            self._files.sync(handle)
            self._files.sync_directory(self._directory)
        except StoreError:
            self._files.close(handle)
            self._files.unlink(open_segment_path(self._directory, sequence))
            raise
        self._handle = handle
        self._sequence = sequence
        self._hasher = self._keys.journal_hasher().update(header_bytes).update(b"".join(frame))
        self._end = HEADER_BYTES + sum(map(len, frame))
        self._batches = 0
        self._failed = False

    def append(self, payload: bytes, *, compress: bool = True) -> Position:
        """Write the next batch; it is durable when this returns. After an error it may be tried again: in a new segment.

        What is mostly sealed bytes is not worth trying to `compress`.
        """
        if self._failed:
            self._abandon()
        if self._handle is None:
            self.open()
        if self._end >= limits.JOURNAL_SEGMENT_TARGET_BYTES:
            self.close()
            self.open()
        self._write(FrameKind.BATCH, self._batch + 1, payload, compress=compress)
        self._batch += 1
        self._batches += 1
        return self.position

    def close(self) -> None:
        """End the segment and hand it to the store; the next one names it."""
        if self._failed:
            self._abandon()
        if self._handle is None:
            return
        self._write(FrameKind.END, self._batch, msgspec.msgpack.encode(SegmentEnd(self._batches)))
        self._retire()
        self._store.put_file(segment_name(self._sequence), open_segment_path(self._directory, self._sequence))

    def _abandon(self) -> None:
        """Leave the segment as it stands, after a failed write: what is behind its end does not count, its successor says so."""
        self._retire()
        self._failed = False

    def _retire(self) -> None:
        assert self._handle is not None
        self._previous = SegmentOpen(self._sequence, self._end, self._hasher.digest())
        handle, self._handle = self._handle, None
        self._files.close(handle)

    def _write(self, kind: FrameKind, number: int, payload: bytes, *, compress: bool = True) -> None:
        assert self._handle is not None
        frame = self._frame(self._end, kind, number, payload, compress=compress)
        try:
            self._files.write_at(self._handle, self._end, frame)
            self._files.sync(self._handle)
        except StoreError:
            self._failed = True
            raise
        for part in frame:
            self._hasher.update(part)
        written = sum(map(len, frame))
        self._end += written
        self.appended_bytes += written

    def _frame(self, at: int, kind: FrameKind, number: int, payload: bytes, *, compress: bool = True) -> list[bytes]:
        assert self._sealer is not None
        stored = self._compressor.compress(payload) if compress else payload
        body = journal_format.encode_body(at, stored, len(payload), pad_segment=kind == FrameKind.END)
        head = FrameHead(kind, len(body) + SEAL_OVERHEAD_BYTES, number)
        return [
            self._sealer.seal(Sealed.FRAME_HEAD, at, journal_format.encode_head(head)),
            self._sealer.seal(Sealed.FRAME_BODY, at + HEAD_BYTES, body),
        ]
