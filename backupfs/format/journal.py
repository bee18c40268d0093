"""A journal segment: frames that end at multiples of 4 KiB, each synced before the next is begun.

    header (128) · frame · frame · …          frame = head (sealed, 32 bytes) · body (sealed)

Head and body are sealed at their offsets, which are their nonces. The first frame names what came before
(`SegmentOpen`), batches follow, and a segment that was closed ends with `SegmentEnd`.
"""

import enum
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from backupfs import limits
from backupfs.errors import DamageError, UsageError
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, padme

_HEAD = struct.Struct(">B3xIQ")
HEAD_PLAIN_BYTES: Final = _HEAD.size
HEAD_BYTES: Final = HEAD_PLAIN_BYTES + SEAL_OVERHEAD_BYTES
_BODY = struct.Struct(">II")
_RECORD = struct.Struct(">BHI")
_DELETED: Final = 0xFFFF_FFFF
_CARRIED: Final = 13
"""Stands where a record has its table: sealed bytes of a pack. No table of the catalog has this number."""
_CARRIED_KEY = struct.Struct(">16sQ")


class FrameKind(enum.IntEnum):
    """What a frame's body is."""

    OPEN = 1
    BATCH = 2
    END = 3


@dataclass(frozen=True, slots=True)
class FrameHead:
    """`number` is the batch's, or that of the last batch before it in the other kinds."""

    kind: FrameKind
    body_bytes: int
    number: int


class SegmentOpen(msgspec.Struct, array_like=True, frozen=True):
    """The first frame's body: the segment before, as far as it counts, and its hash; zero, zero and nothing for the
    first of all.
    """

    previous_sequence: int
    previous_bytes: int
    previous_hash: bytes


class SegmentEnd(msgspec.Struct, array_like=True, frozen=True):
    """The last frame's body: how many batches the segment holds."""

    batches: int


Change = tuple[int, bytes, bytes | None]
"""(table, key, value or None when the record goes)."""


def encode_head(head: FrameHead) -> bytes:
    """16 bytes of plaintext."""
    return _HEAD.pack(head.kind, head.body_bytes, head.number)


def decode_head(plain: bytes) -> FrameHead:
    """Raises DamageError for a kind that is not known or a length that no honest writer makes."""
    if len(plain) != HEAD_PLAIN_BYTES:
        raise DamageError("journal frame: its head has the wrong length")
    kind, body_bytes, number = _HEAD.unpack(plain)
    if kind not in FrameKind.__members__.values() or not SEAL_OVERHEAD_BYTES < body_bytes <= limits.JOURNAL_FRAME_MAX_BYTES:
        raise DamageError(f"journal frame: kind {kind}, {body_bytes} bytes")
    return FrameHead(FrameKind(kind), body_bytes, number)


def encode_body(offset: int, stored: bytes | memoryview, plain_bytes: int, pad_segment: bool) -> bytes:
    """A body's plaintext for a frame at `offset`: lengths, `stored` (compressed iff shorter than `plain_bytes`), zeros.

    The zeros make the frame end at a multiple of 4 KiB, or with `pad_segment` the whole segment have a padded size.
    """
    if plain_bytes > limits.JOURNAL_FRAME_MAX_BYTES:
        raise UsageError(f"a journal frame of {plain_bytes} bytes could not be read back")
    end = offset + HEAD_BYTES + _BODY.size + len(stored) + SEAL_OVERHEAD_BYTES
    padded = padme(end) if pad_segment else end
    padded += -padded % limits.JOURNAL_FRAME_BYTES
    return b"".join((_BODY.pack(len(stored), plain_bytes), stored, bytes(padded - end)))


def decode_body(plain: bytes) -> tuple[bytes, int]:
    """The stored bytes and their plain length. Raises DamageError."""
    if len(plain) < _BODY.size:
        raise DamageError("journal frame: its body is cut off")
    stored_bytes, plain_bytes = _BODY.unpack_from(plain)
    if _BODY.size + stored_bytes > len(plain) or stored_bytes > plain_bytes or plain_bytes > limits.JOURNAL_FRAME_MAX_BYTES:
        raise DamageError("journal frame: lengths do not fit")
    return plain[_BODY.size : _BODY.size + stored_bytes], plain_bytes


@dataclass(frozen=True, slots=True)
class Carried:
    """A blob that its pack may not have yet: what is to stand at an offset of the pack with this object id."""

    object_id: bytes
    offset: int
    sealed: bytes


def encode_batch(changes: Iterable[Change], carried: Iterable[Carried] = ()) -> bytes:
    """The records of a batch, one after another, and behind them the blobs that it carries."""
    parts: list[bytes] = []
    for table, key, value in changes:
        parts.append(_RECORD.pack(table, len(key), _DELETED if value is None else len(value)))
        parts.append(key)
        if value is not None:
            parts.append(value)
    for blob in carried:
        parts.append(_RECORD.pack(_CARRIED, _CARRIED_KEY.size, len(blob.sealed)))
        parts.append(_CARRIED_KEY.pack(blob.object_id, blob.offset))
        parts.append(blob.sealed)
    return b"".join(parts)


def decode_batch(payload: bytes) -> Iterator[Change]:
    """The records in order, without the blobs that the batch carries. Raises DamageError where they overrun the payload."""
    return (change for change in _decode(payload) if change[0] != _CARRIED)


def decode_carried(payload: bytes) -> Iterator[Carried]:
    """The blobs that a batch carries. Raises DamageError."""
    for table, key, sealed in _decode(payload):
        if table == _CARRIED:
            if len(key) != _CARRIED_KEY.size or not sealed:
                raise DamageError("journal batch: a blob that it carries has no place")
            object_id, offset = _CARRIED_KEY.unpack(key)
            yield Carried(object_id, offset, sealed)


def _decode(payload: bytes) -> Iterator[Change]:
    at, end = 0, len(payload)
    while at < end:
        if at + _RECORD.size > end:
            raise DamageError("journal batch: a record is cut off")
        table, key_bytes, value_bytes = _RECORD.unpack_from(payload, at)
        at += _RECORD.size
        key = payload[at : at + key_bytes]
        at += key_bytes
        value = None
        if value_bytes != _DELETED:
            value = payload[at : at + value_bytes]
            at += value_bytes
        if at > end:
            raise DamageError("journal batch: a record overruns the batch")
        yield table, key, value
