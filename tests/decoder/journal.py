"""The journal: which segments and frames count, and the batches in them. Section 8 of docs/format.md."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.decoder import messagepack
from tests.decoder.damage import Damage
from tests.decoder.sealing import (
    FRAME_BODY,
    FRAME_HEAD,
    HEADER_BYTES,
    JOURNAL_MAGIC,
    TAG_BYTES,
    Keys,
    Sealer,
    frame_body,
    keyed_hash,
    padded,
)

OPENING: Final = 1
BATCH: Final = 2
END: Final = 3

BLOCK_BYTES: Final = 4096
_HEAD_BYTES: Final = 16 + TAG_BYTES


@dataclass(frozen=True, slots=True)
class Frame:
    offset: int
    end: int
    least_end: int
    """Where it would end without padding."""
    kind: int
    number: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Opening:
    previous: int
    previous_bytes: int
    previous_hash: bytes
    last_batch: int


def batches(segments: Mapping[int, Path], keys: Keys) -> Iterator[tuple[int, bytes]]:
    """(number, records) of every batch that counts, in order; Damage when the chain does not hold."""
    expected = 1
    for sequence, limit in _chain(segments, keys):
        found = list(_frames(segments[sequence], sequence, keys, limit))
        where = f"segment {sequence}"
        if found[0].kind != OPENING or found[0].number != expected - 1:
            raise Damage(f"{where}: its opening says batch {found[0].number}, not {expected - 1}")
        in_segment = 0
        for frame in found[1:]:
            if frame.kind == BATCH:
                if frame.number != expected:
                    raise Damage(f"{where}: batch {frame.number} where {expected} belongs")
                yield frame.number, frame.content
                expected += 1
                in_segment += 1
            elif frame.kind == END:
                _check_end(frame, in_segment, found[-1], where)
            else:
                raise Damage(f"{where}: frame of kind {frame.kind} at {frame.offset}")


def _check_end(frame: Frame, in_segment: int, last: Frame, where: str) -> None:
    if frame is not last:
        raise Damage(f"{where}: something follows its end")
    if messagepack.decode(frame.content) != [in_segment]:
        raise Damage(f"{where}: its end counts other batches than {in_segment}")
    size = -(-padded(frame.least_end) // BLOCK_BYTES) * BLOCK_BYTES
    if frame.end != size:
        raise Damage(f"{where}: ends at {frame.end} where {size} is its padded size")


def _chain(segments: Mapping[int, Path], keys: Keys) -> list[tuple[int, int | None]]:
    """(sequence, how many of its bytes count or None) in order."""
    openings = {}
    for sequence, path in segments.items():
        opening = _opening(path, sequence, keys)
        if opening is not None:
            openings[sequence] = opening
    if not openings:
        if segments:
            raise Damage("no segment has an opening")
        return []
    sequence = max(openings)
    chain: list[tuple[int, int | None]] = [(sequence, None)]
    while openings[sequence].previous:
        opening = openings[sequence]
        if opening.previous >= sequence:
            raise Damage(f"segment {sequence}: names {opening.previous} as the one before")
        if opening.previous not in openings:
            raise Damage(f"segment {opening.previous}: missing, and named by {sequence}")
        content = segments[opening.previous].read_bytes()[: opening.previous_bytes]
        if len(content) != opening.previous_bytes or keyed_hash(keys.journal_hash, content) != opening.previous_hash:
            raise Damage(f"segment {opening.previous}: not the bytes that {sequence} names")
        chain.append((opening.previous, opening.previous_bytes))
        sequence = opening.previous
    first = openings[sequence]
    if (first.previous_bytes, first.previous_hash) != (0, b""):
        raise Damage(f"segment {sequence}: names no segment before it, but bytes of one")
    outside = openings.keys() - {link for link, _ in chain}
    if outside:
        raise Damage(f"segments {sorted(outside)}: no other names them")
    return chain[::-1]


def _opening(path: Path, sequence: int, keys: Keys) -> Opening | None:
    """None for a segment that was never begun."""
    content = path.read_bytes()
    try:
        sealer = _sealer(content, sequence, keys)
        frame = _frame(content, HEADER_BYTES, sealer)
        if frame.kind != OPENING:
            raise Damage(f"segment {sequence}: begins with a frame of kind {frame.kind}")
    except Damage:
        if len(content) <= BLOCK_BYTES:
            return None
        raise
    match messagepack.decode(frame.content):
        case [int(previous), int(previous_bytes), bytes(previous_hash), *_]:
            return Opening(previous, previous_bytes, previous_hash, frame.number)
    raise Damage(f"segment {sequence}: its opening does not hold")


def _sealer(content: bytes, sequence: int, keys: Keys) -> Sealer:
    return keys.sealer(content[:HEADER_BYTES], JOURNAL_MAGIC, bytes(8) + struct.pack(">Q", sequence))


def _frames(path: Path, sequence: int, keys: Keys, limit: int | None) -> Iterator[Frame]:
    """With a limit every byte up to it must open; without one a torn tail is left out."""
    content = path.read_bytes()[:limit]
    return frames(content, _sealer(content, sequence, keys), whole=limit is not None)


def frames(content: bytes, sealer: Sealer, *, whole: bool = False) -> Iterator[Frame]:
    """The frames of a segment; `whole`: it ends with one."""
    offset = HEADER_BYTES
    while offset < len(content):
        try:
            frame = _frame(content, offset, sealer)
        except Damage:
            if whole:
                raise
            _refuse_later_frames(content, offset, sealer)
            return
        yield frame
        offset = frame.end


def _refuse_later_frames(content: bytes, torn_at: int, sealer: Sealer) -> None:
    for offset in range((torn_at // BLOCK_BYTES + 1) * BLOCK_BYTES, len(content), BLOCK_BYTES):
        try:
            sealer.open(FRAME_HEAD, offset, content[offset : offset + _HEAD_BYTES])
        except Damage:
            continue
        raise Damage(f"object {sealer.object_id.hex()}: the frame at {torn_at} does not open, but one at {offset} does")


def _frame(content: bytes, offset: int, sealer: Sealer) -> Frame:
    head = sealer.open(FRAME_HEAD, offset, content[offset : offset + _HEAD_BYTES])
    kind, zeros, body_bytes, number = struct.unpack(">B3sIQ", head)
    start = offset + _HEAD_BYTES
    end = start + body_bytes
    if any(zeros) or end % BLOCK_BYTES or end > len(content):
        raise Damage(f"object {sealer.object_id.hex()}: the frame head at {offset} does not hold")
    plain, used = frame_body(sealer.open(FRAME_BODY, start, content[start:end]))
    return Frame(offset, end, start + used + TAG_BYTES, kind, number, plain)
