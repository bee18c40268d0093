"""A file `keys/<id>`: the master key, wrapped under a password. Each stands twice, as `<id>` and `<id>.copy`."""

import struct
from dataclasses import dataclass
from typing import Final

from backupfs import limits
from backupfs.errors import DamageError
from backupfs.format.layout import FORMAT_VERSION, SEAL_OVERHEAD_BYTES, checked, with_checksum

MAGIC: Final = b"BFSSLOT\0"
SIZE_BYTES: Final = 512
MASTER_KEY_BYTES: Final = 32
LABEL_BYTES: Final = 64
"""A label is UTF-8, filled up with zeros to this length before it is sealed."""
_LAYOUT = struct.Struct(f">8sHH4x16s16sQIII4x32s32s{MASTER_KEY_BYTES + SEAL_OVERHEAD_BYTES}s{LABEL_BYTES + SEAL_OVERHEAD_BYTES}s")


@dataclass(frozen=True, slots=True)
class KdfParameters:
    """Argon2id (RFC 9106): passes, lanes, memory."""

    time: int
    lanes: int
    memory_kib: int


@dataclass(frozen=True, slots=True)
class KeySlot:
    """Parsed, not verified: only a password shows whether it opens."""

    repository_id: bytes
    slot_id: bytes
    created_ns: int
    kdf: KdfParameters
    salt: bytes
    commitment: bytes
    sealed_master: bytes
    sealed_label: bytes


def encode(slot: KeySlot) -> bytes:
    """The whole file."""
    packed = _LAYOUT.pack(
        MAGIC,
        FORMAT_VERSION,
        SIZE_BYTES,
        slot.repository_id,
        slot.slot_id,
        slot.created_ns,
        slot.kdf.time,
        slot.kdf.lanes,
        slot.kdf.memory_kib,
        slot.salt,
        slot.commitment,
        slot.sealed_master,
        slot.sealed_label,
    )
    return with_checksum(packed, SIZE_BYTES)


def decode(data: bytes) -> KeySlot:
    """Parse a slot; parameters beyond the limits are refused before anyone takes memory for it. Raises DamageError."""
    body = checked(data, SIZE_BYTES, MAGIC, "key slot")
    (_, _, size, repository_id, slot_id, created_ns, time, lanes, memory, *rest) = _LAYOUT.unpack_from(body)
    if size != SIZE_BYTES or body[_LAYOUT.size :].strip(b"\0"):
        raise DamageError("key slot: bytes that must be zero are not")
    if not (1 <= time <= limits.KDF_TIME_MAX and 1 <= lanes <= limits.KDF_LANES_MAX and 8 * lanes <= memory <= limits.KDF_MEMORY_MAX_KIB):
        raise DamageError(f"key slot: Argon2id parameters {time}, {lanes}, {memory} are out of range")
    return KeySlot(repository_id, slot_id, created_ns, KdfParameters(time, lanes, memory), *rest)
