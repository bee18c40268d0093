"""What all layouts share: how a fixed layout is checked, where sealed things say they stand, how sizes are padded.

Integers are big-endian. A fixed layout ends in a CRC-32 of everything before it: that finds accidents before a key is
known. Malice is found by commitments, MACs and seals.
"""

import enum
import re
import struct
import zlib
from typing import Final

from backupfs.errors import DamageError, UnsupportedError

FORMAT_VERSION: Final = 1
CHECKSUM: Final = struct.Struct(">I")
SEAL_OVERHEAD_BYTES: Final = 16
"""Both AEADs used append a tag of 16 bytes."""
_OBJECT_NAME: Final = re.compile(
    r"config(\.copy)?|keys/[0-9a-f]{32}(\.copy)?|packs/([0-9a-f]{2})/\3[0-9a-f]{30}|journal/[0-9a-f]{16}|checkpoints/[0-9a-f]{16}(-[0-9a-f]{32})?",
    re.ASCII,
)
_BINDING = struct.Struct(">16sB16sQQ")
_NONCE = struct.Struct(">IQ")


class Sealed(enum.IntEnum):
    """What a sealed thing is: part of its associated data, so that none can stand in another's place."""

    BLOB = 1
    PACK_TRAILER = 2
    PACK_FOOTER = 3
    FRAME_HEAD = 4
    FRAME_BODY = 5
    SLOT_MASTER = 6
    SLOT_LABEL = 7
    INDEX_VALUE = 8
    CHECKPOINT_PART = 10
    CHECKPOINT_MANIFEST = 11
    HEAD = 12
    SORTED_RUN = 13


def is_object_name(name: str) -> bool:
    """Whether an object of a repository can have this name. What else lies in its folders (a desktop's file, a synchroniser's) is no part of it."""
    return _OBJECT_NAME.fullmatch(name) is not None


def binding(repository_id: bytes, what: Sealed, object_id: bytes, position: int, detail: int = 0) -> bytes:
    """Associated data of a sealed thing: 49 bytes. `detail` is the plain length of a blob and zero elsewhere."""
    return _BINDING.pack(repository_id, what, object_id, position, detail)


def nonce(position: int) -> bytes:
    """The 12-byte nonce of the thing sealed at `position` under a key that no other object shares."""
    return _NONCE.pack(0, position)


def with_checksum(body: bytes, size_bytes: int) -> bytes:
    """`body`, zeros up to the last four bytes of `size_bytes`, and the CRC-32 of all that."""
    padded = body.ljust(size_bytes - CHECKSUM.size, b"\0")
    return padded + CHECKSUM.pack(zlib.crc32(padded))


def checked(data: bytes, size_bytes: int, magic: bytes, what: str) -> bytes:
    """The bytes of a fixed layout without its checksum, once length, checksum, magic and version hold.

    Raises DamageError otherwise, UnsupportedError for another version. `magic` is followed by a 16-bit version in every layout.
    """
    if len(data) != size_bytes:
        raise DamageError(f"{what}: {len(data)} bytes instead of {size_bytes}", what=what)
    body = data[: -CHECKSUM.size]
    if CHECKSUM.unpack(data[-CHECKSUM.size :])[0] != zlib.crc32(body):
        raise DamageError(f"{what}: the checksum does not match", what=what)
    if body[: len(magic)] != magic:
        raise DamageError(f"{what}: this is something else (magic {body[: len(magic)]!r})", what=what)
    (version,) = struct.unpack_from(">H", body, len(magic))
    if version != FORMAT_VERSION:
        raise UnsupportedError(f"{what}: format version {version} is not known to this backupfs; a newer one reads it", version=version)
    return body


def padme(size_bytes: int) -> int:
    """The smallest padded size not below `size_bytes`: at most 12 % larger, few distinct values.

    Padmé, Nikitin et al., "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs", 2019, section
    4.
    """
    if size_bytes < 2:
        return size_bytes
    exponent = size_bytes.bit_length() - 1
    significand_bits = exponent.bit_length()
    low_bits = max(exponent - significand_bits, 0)
    mask = (1 << low_bits) - 1
    return (size_bytes + mask) & ~mask
