"""The journal: which segments and frames count, and the batches in them. Section 8 of docs/format.md, and the end of section 11."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.decoder import messagepack
from tests.decoder.damage import Damage
from tests.decoder.sealing import (
    BLOCK_BYTES,
    FRAME_BODY,
    FRAME_HEAD,
    HEADER_BYTES,
    JOURNAL_MAGIC,
    TAG_BYTES,
    Keys,
    Sealer,
    frame_body,
    keyed_hash,
    padded_to_blocks,
)

OPENING: Final = 1
BATCH: Final = 2
END: Final = 3

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
class Position:
    """The end of a segment: how many of its bytes count, their hash, and the last batch up to there."""

    segment: int
    size: int
    hash: bytes
    batch: int


START: Final = Position(0, 0, b"", 0)
"""Before the first segment."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One that counts."""

    sequence: int
    before: Position
    batches: tuple[tuple[int, bytes], ...]
    """(number, records)."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Segments that count, in order, each behind the one before. `faults`: what does not hold up to the position that was known."""

    segments: list[Segment]
    begins: Position
    """Before the first of them; where the catalog stands when there are none."""
    faults: list[str]


def chain(paths: Mapping[int, Path], keys: Keys, known: Position, named: Iterable[Position]) -> Chain:
    """From the last segment back as far as there are any.

    Behind `known`, where the newest checkpoint that holds stands, or START, everything has to hold: Damage otherwise. The
    segments up to it may be gone. The chain goes back through those that hold. `named`: positions that it must come by,
    if they are behind `known`.
    """
    openings = {}
    for sequence in (sequence for sequence in paths if sequence > known.segment):
        before = _opening(paths[sequence], sequence, keys)
        if before is not None:
            openings[sequence] = before
    if not openings and paths and known == START:
        raise Damage("no segment has an opening")
    found = _back_to(known, openings, paths, keys)
    outside = openings.keys() - {segment.sequence for segment in found}
    outside = {sequence for sequence in outside if not _is_skipped(openings[sequence], found, paths[sequence], sequence, keys)}
    if outside:
        raise Damage(f"segments {sorted(outside)}: no other names them")
    for position in named:
        if position.segment > known.segment:
            _require(position, found, paths, keys)
    faults = []
    position = known
    if not openings and known.segment in paths:
        _refuse_more(paths[known.segment], known, keys)
    while position.segment in paths:
        try:
            found.append(_ending_at(position, paths, keys))
        except Damage as damage:
            faults.append(str(damage))
            break
        position = found[-1].before
    faults += _unnamed({s for s in paths if s <= known.segment} - {segment.sequence for segment in found}, found, position, paths, keys)
    return Chain(found[::-1], position, faults)


def _back_to(known: Position, openings: Mapping[int, Position], paths: Mapping[int, Path], keys: Keys) -> list[Segment]:
    """The segments behind a position, the last one first."""
    if not openings:
        return []
    sequence = max(openings)
    content = paths[sequence].read_bytes()
    found = [_segment(content, sequence, keys, whole=False)]
    while found[-1].before.segment > known.segment:
        before = found[-1].before
        if before.segment not in openings:
            raise Damage(f"segment {before.segment}: missing, and named by {found[-1].sequence}")
        found.append(_ending_at(before, paths, keys))
    if found[-1].before != known:
        raise Damage(f"segment {found[-1].sequence}: does not begin at the end of segment {known.segment} that is known")
    return found


def _require(position: Position, found: list[Segment], paths: Mapping[int, Path], keys: Keys) -> None:
    """Damage unless the chain, the last segment first, comes by a position."""
    if found and found[0].sequence == position.segment:
        _ending_at(position, paths, keys)
        _refuse_more(paths[position.segment], position, keys)
    elif position not in [segment.before for segment in found]:
        raise Damage(f"segment {position.segment}: missing, and named by a checkpoint")


def _unnamed(sequences: set[int], found: list[Segment], position: Position, paths: Mapping[int, Path], keys: Keys) -> Iterator[str]:
    """What is wrong with segments that the chain, which goes back to a position, passes over or does not reach."""
    for sequence in sorted(sequences - {position.segment}):
        try:
            before = _opening(paths[sequence], sequence, keys)
        except Damage as damage:
            yield f"segment {sequence}: {damage}"
        else:
            if before is not None and sequence > position.segment and not _is_skipped(before, found, paths[sequence], sequence, keys):
                yield f"segment {sequence}: no other names it"


def _ending_at(position: Position, paths: Mapping[int, Path], keys: Keys) -> Segment:
    """The segment that ends at a position; Damage when it is not the one that was meant."""
    where = f"segment {position.segment}"
    content = paths[position.segment].read_bytes()[: position.size]
    if len(content) != position.size or keyed_hash(keys.journal_hash, content) != position.hash:
        raise Damage(f"{where}: not the bytes that the next segment or a checkpoint names")
    segment = _segment(content, position.segment, keys, whole=True)
    last = segment.batches[-1][0] if segment.batches else segment.before.batch
    if last != position.batch:
        raise Damage(f"{where}: ends with batch {last}, and what comes after it says {position.batch}")
    return segment


def _segment(content: bytes, sequence: int, keys: Keys, *, whole: bool) -> Segment:
    """`whole`: every byte counts; otherwise a torn end is left out."""
    where = f"segment {sequence}"
    found = list(frames(content, _sealer(content, sequence, keys), whole=whole))
    if not found:
        raise Damage(f"{where}: no opening")
    before = _position_in(found[0], sequence)
    batches: list[tuple[int, bytes]] = []
    for frame in found[1:]:
        if frame.kind == BATCH:
            expected = before.batch + len(batches) + 1
            if frame.number != expected:
                raise Damage(f"{where}: batch {frame.number} where {expected} belongs")
            batches.append((frame.number, frame.content))
        elif frame.kind == END:
            _check_end(frame, len(batches), found[-1], where)
        else:
            raise Damage(f"{where}: frame of kind {frame.kind} at {frame.offset}")
    return Segment(sequence, before, tuple(batches))


def _check_end(frame: Frame, in_segment: int, last: Frame, where: str) -> None:
    if frame is not last:
        raise Damage(f"{where}: something follows its end")
    if messagepack.decode(frame.content) != [in_segment]:
        raise Damage(f"{where}: its end counts other batches than {in_segment}")
    size = padded_to_blocks(frame.least_end)
    if frame.end != size:
        raise Damage(f"{where}: ends at {frame.end} where {size} is its padded size")


def _is_skipped(before: Position, found: list[Segment], path: Path, sequence: int, keys: Keys) -> bool:
    """Whether one of the chain stands in its place, and nothing but its opening opens."""
    content = path.read_bytes()
    return before in [segment.before for segment in found] and len(list(frames(content, _sealer(content, sequence, keys)))) == 1


def _opening(path: Path, sequence: int, keys: Keys) -> Position | None:
    """What the segment is behind; None for one that was never begun."""
    content = path.read_bytes()
    try:
        frame = _frame(content, HEADER_BYTES, _sealer(content, sequence, keys))
        if frame.kind != OPENING:
            raise Damage(f"segment {sequence}: begins with a frame of kind {frame.kind}")
    except Damage:
        if len(content) <= BLOCK_BYTES:
            return None
        raise
    return _position_in(frame, sequence)


def _position_in(opening: Frame, sequence: int) -> Position:
    """What an opening names."""
    match messagepack.decode(opening.content):
        case [int(previous), int(size), bytes(digest), *_] if opening.kind == OPENING:
            before = Position(previous, size, digest, opening.number)
            if previous >= sequence or (previous == 0 and before != START):
                raise Damage(f"segment {sequence}: names {previous} with {size} bytes and batch {opening.number} as what is before it")
            return before
    raise Damage(f"segment {sequence}: its opening does not hold")


def _refuse_more(path: Path, end: Position, keys: Keys) -> None:
    """Damage when frames open behind the end of the last segment, which a checkpoint names."""
    content = path.read_bytes()
    try:
        sealer = _sealer(content, end.segment, keys)
    except Damage:
        return  # the segment itself is looked at later
    for offset in range(end.size, len(content), BLOCK_BYTES):
        if _head_opens(content, offset, sealer):
            raise Damage(f"segment {end.segment}: goes on at {offset}, where a checkpoint has its end")


def _sealer(content: bytes, sequence: int, keys: Keys) -> Sealer:
    return keys.sealer(content[:HEADER_BYTES], JOURNAL_MAGIC, bytes(8) + struct.pack(">Q", sequence))


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
        if _head_opens(content, offset, sealer):
            raise Damage(f"object {sealer.object_id.hex()}: the frame at {torn_at} does not open, but one at {offset} does")


def _head_opens(content: bytes, offset: int, sealer: Sealer) -> bool:
    try:
        sealer.open(FRAME_HEAD, offset, content[offset : offset + _HEAD_BYTES])
    except Damage:
        return False
    return True


def _frame(content: bytes, offset: int, sealer: Sealer) -> Frame:
    head = sealer.open(FRAME_HEAD, offset, content[offset : offset + _HEAD_BYTES])
    kind, zeros, body_bytes, number = struct.unpack(">B3sIQ", head)
    start = offset + _HEAD_BYTES
    end = start + body_bytes
    if any(zeros) or end % BLOCK_BYTES or end > len(content):
        raise Damage(f"object {sealer.object_id.hex()}: the frame head at {offset} does not hold")
    plain, used = frame_body(sealer.open(FRAME_BODY, start, content[start:end]))
    return Frame(offset, end, start + used + TAG_BYTES, kind, number, plain)
