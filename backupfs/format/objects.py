"""The header that every pack, journal segment and checkpoint begins with."""

import struct
from dataclasses import dataclass
from typing import Final

from backupfs.errors import DamageError
from backupfs.format.layout import FORMAT_VERSION, checked, with_checksum

PACK_MAGIC: Final = b"BFSPACK\0"
JOURNAL_MAGIC: Final = b"BFSJRNL\0"
CHECKPOINT_MAGIC: Final = b"BFSCHKP\0"
HEADER_BYTES: Final = 128
_LAYOUT = struct.Struct(">8sHH4x16s16s32s32s")


@dataclass(frozen=True, slots=True)
class ObjectHeader:
    """`salt` gives the object its own key; `commitment` tells whether the key derived from it is the right one."""

    magic: bytes
    repository_id: bytes
    object_id: bytes
    salt: bytes
    commitment: bytes


def encode(header: ObjectHeader) -> bytes:
    """128 bytes."""
    packed = _LAYOUT.pack(
        header.magic,
        FORMAT_VERSION,
        HEADER_BYTES,
        header.repository_id,
        header.object_id,
        header.salt,
        header.commitment,
    )
    return with_checksum(packed, HEADER_BYTES)


def decode(data: bytes, magic: bytes, what: str) -> ObjectHeader:
    """Parsed, not verified. Raises DamageError."""
    body = checked(data, HEADER_BYTES, magic, what)
    (_, _, size, repository_id, object_id, salt, commitment) = _LAYOUT.unpack_from(body)
    if size != HEADER_BYTES or body[_LAYOUT.size :].strip(b"\0"):
        raise DamageError(f"{what}: bytes that must be zero are not")
    return ObjectHeader(magic, repository_id, object_id, salt, commitment)


def journal_object_id(sequence: int) -> bytes:
    """The object id of a journal segment or checkpoint: its number."""
    return bytes(8) + sequence.to_bytes(8, "big")
