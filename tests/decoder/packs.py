"""Packs: blobs by their place, and what a closed pack says of itself. Section 7 of docs/format.md."""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from tests.decoder.damage import Damage
from tests.decoder.sealing import (
    BLOB,
    HEADER_BYTES,
    PACK_FOOTER,
    PACK_MAGIC,
    PACK_TRAILER,
    TAG_BYTES,
    Keys,
    Sealer,
    decompressed,
    keyed_hash,
    padded,
)

_FOOTER_BYTES: Final = 24 + TAG_BYTES
_ENTRY: Final = struct.Struct(">32sQII")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a blob stands in its pack."""

    blob_id: bytes
    offset: int
    stored_bytes: int
    plain_bytes: int


def sealer_of(file: BinaryIO, object_id: bytes, keys: Keys) -> Sealer:
    """For the blobs of a pack."""
    file.seek(0)
    return keys.sealer(file.read(HEADER_BYTES), PACK_MAGIC, object_id)


def chunk(file: BinaryIO, sealer: Sealer, place: Place, keys: Keys) -> bytes:
    """The plain bytes of a blob."""
    file.seek(place.offset)
    sealed = file.read(place.stored_bytes)
    plain = sealer.open(BLOB, place.offset, sealed, place.plain_bytes)
    if place.stored_bytes < place.plain_bytes + TAG_BYTES:
        plain = decompressed(plain, place.plain_bytes)
    if len(plain) != place.plain_bytes or keyed_hash(keys.blob_ids, plain) != place.blob_id:
        raise Damage(f"object {sealer.object_id.hex()}: the blob at {place.offset} is another")
    return plain


def trailer(path: Path, object_id: bytes, keys: Keys) -> list[Place]:
    """The entries of a closed pack; Damage when its end does not hold."""
    return _end(path, object_id, keys)[1]


def held_bytes(path: Path, object_id: bytes, keys: Keys) -> int:
    """What a closed pack takes for blobs, those that no record names and bytes that are no blob included; Damage when its end does not hold."""
    return _end(path, object_id, keys)[0] - HEADER_BYTES


def _end(path: Path, object_id: bytes, keys: Keys) -> tuple[int, list[Place]]:
    """Where the trailer stands, and its entries."""
    where = f"pack {object_id.hex()}"
    size = path.stat().st_size
    with path.open("rb") as file:
        sealer_of(file, object_id, keys)
        footer_at = size - HEADER_BYTES - _FOOTER_BYTES
        if footer_at < HEADER_BYTES:
            raise Damage(f"{where}: too short")
        file.seek(footer_at)
        sealed_footer = file.read(_FOOTER_BYTES)
        sealer = keys.sealer(file.read(HEADER_BYTES), PACK_MAGIC, object_id)
        trailer_at, sealed_bytes, entries = struct.unpack(">QQQ", sealer.open(PACK_FOOTER, footer_at, sealed_footer))
        if trailer_at < HEADER_BYTES or trailer_at + sealed_bytes != footer_at:
            raise Damage(f"{where}: its footer does not hold")
        file.seek(trailer_at)
        plain = sealer.open(PACK_TRAILER, trailer_at, file.read(sealed_bytes))
    used = entries * _ENTRY.size
    if used > len(plain) or any(plain[used:]):
        raise Damage(f"{where}: its trailer does not hold {entries} entries and zeros")
    least = trailer_at + used + TAG_BYTES + _FOOTER_BYTES + HEADER_BYTES
    if size != padded(least):
        raise Damage(f"{where}: {size} bytes where {padded(least)} is its padded size")
    return trailer_at, [Place(*fields) for fields in _ENTRY.iter_unpack(plain[:used])]
