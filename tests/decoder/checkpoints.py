"""Checkpoints: manifests, parts, and the records in them. Section 11 of docs/format.md."""

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.decoder import catalog, messagepack
from tests.decoder.catalog import Rows
from tests.decoder.damage import Damage
from tests.decoder.journal import Position
from tests.decoder.sealing import (
    CHECKPOINT_MAGIC,
    CHECKPOINT_MANIFEST,
    CHECKPOINT_PART,
    HEADER_BYTES,
    TAG_BYTES,
    Keys,
    frame_body,
    keyed_hash,
    padded_to_blocks,
)
from tests.decoder.store import Store


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One whose manifest and parts all hold."""

    number: int
    position: Position
    parts: tuple[bytes, ...]
    """Object ids, in order."""
    rows: Rows


@dataclass(frozen=True, slots=True)
class Part:
    """What a manifest says of a part."""

    object_id: bytes
    hash: bytes
    records: int


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """What there is in a repository, by number."""

    held: list[Checkpoint]
    named: list[Position]
    """Where those stand whose manifest holds and whose parts do not: a journal that ends before has lost something."""
    faults: list[str]
    """Why the others do not hold."""


def read(store: Store, keys: Keys) -> Checkpoints:
    """All of them. Parts that no manifest names are not looked at."""
    parts = store.parts()
    found = Checkpoints([], [], [])
    for number, path in store.manifests().items():
        position = None
        try:
            position, listed = _manifest(number, path.read_bytes(), keys)
            found.held.append(Checkpoint(number, position, tuple(part.object_id for part in listed), _rows(number, listed, parts, keys)))
        except Damage as damage:
            found.faults.append(f"checkpoint {number}: {damage}")
            if position is not None:
                found.named.append(position)
    for older, newer in itertools.pairwise(found.held):
        if older.position.segment > newer.position.segment:
            raise Damage(f"checkpoint {newer.number}: at segment {newer.position.segment}, before that of checkpoint {older.number}")
    return found


def _rows(number: int, listed: list[Part], parts: Mapping[tuple[int, bytes], Path], keys: Keys) -> Rows:
    """The records of all parts; Damage unless each is the one that its manifest lists, and they rise."""
    rows: Rows = {}
    last: tuple[int, bytes] | None = None
    for part in listed:
        where = f"part {part.object_id.hex()}"
        file = parts.get((number, part.object_id))
        if file is None:
            raise Damage(f"{where}: missing")
        content = _plain(file.read_bytes(), part.object_id, CHECKPOINT_PART, keys)
        if keyed_hash(keys.journal_hash, content) != part.hash:
            raise Damage(f"{where}: not the one that the manifest names")
        before = len(rows)
        for place, value in _records(content, where):
            if last is not None and place <= last:
                raise Damage(f"{where}: key {place[1].hex()} of table {place[0]} is out of order")
            rows[place] = value
            last = place
        if len(rows) - before != part.records:
            raise Damage(f"{where}: {len(rows) - before} records where the manifest has {part.records}")
    return rows


def _plain(content: bytes, object_id: bytes, kind: int, keys: Keys) -> bytes:
    """The plain bytes of a part or a manifest."""
    sealer = keys.sealer(content[:HEADER_BYTES], CHECKPOINT_MAGIC, object_id)
    plain, used = frame_body(sealer.open(kind, HEADER_BYTES, content[HEADER_BYTES:]))
    size = padded_to_blocks(HEADER_BYTES + used + TAG_BYTES)
    if len(content) != size:
        raise Damage(f"object {object_id.hex()}: {len(content)} bytes where {size} is its padded size")
    return plain


def _records(content: bytes, where: str) -> Iterator[tuple[tuple[int, bytes], bytes]]:
    for table, key, value in catalog.records(content):
        catalog.check_key(table, key, where)
        if value is None:
            raise Damage(f"{where}: key {key.hex()} of table {table} is removed")
        yield (table, key), value


def _manifest(number: int, content: bytes, keys: Keys) -> tuple[Position, list[Part]]:
    plain = _plain(content, bytes(8) + struct.pack(">Q", number), CHECKPOINT_MANIFEST, keys)
    match messagepack.decode(plain):
        case [int(segment), int(size), bytes(digest), int(batch), list(parts)] if segment > 0:
            return Position(segment, size, digest, batch), [_part(part) for part in parts]
    raise Damage("its manifest does not hold")


def _part(value: messagepack.Value) -> Part:
    match value:
        case [bytes(object_id), bytes(digest), int(count)] if len(object_id) == 16:
            return Part(object_id, digest, count)
    raise Damage("a part in its manifest does not hold")
