"""The file `config`: what a repository is, before any key is known. It stands twice, as `config` and `config.copy`."""

import struct
from dataclasses import dataclass
from typing import Final

from backupfs.errors import DamageError, UnsupportedError
from backupfs.format.layout import FORMAT_VERSION, checked, with_checksum

MAGIC: Final = b"BFSCONF\0"
SIZE_BYTES: Final = 256
_LAYOUT = struct.Struct(">8sHH4x16sQQIIIBBBx32s")
_MAC_BYTES: Final = 32

CIPHER_AES_256_GCM: Final = 1
CIPHER_CHACHA20_POLY1305: Final = 2
COMPRESSION_NONE: Final = 0
COMPRESSION_ZSTD: Final = 1

FEATURE_CARRIED_BLOBS: Final = 1
"""Batches of the journal carry blobs that their packs may not have yet."""
FEATURES: Final = FEATURE_CARRIED_BLOBS
"""All that there are. A new repository has them; one that lacks some is treated as it always was."""


@dataclass(frozen=True, slots=True)
class Config:
    """`features` are bits that a reader must know all of."""

    repository_id: bytes
    created_ns: int
    chunk_min_bytes: int
    chunk_avg_bytes: int
    chunk_max_bytes: int
    cipher: int
    compression: int
    compression_level: int
    features: int = 0


def encode_body(config: Config) -> bytes:
    """The bytes that the MAC covers."""
    return _pack(config, bytes(_MAC_BYTES))[:-_MAC_BYTES]


def encode(config: Config, mac: bytes) -> bytes:
    """The whole file."""
    return with_checksum(_pack(config, mac), SIZE_BYTES)


def decode(data: bytes) -> tuple[Config, bytes]:
    """Parsed, not yet verified: the configuration and its MAC. Raises DamageError."""
    body = checked(data, SIZE_BYTES, MAGIC, "config")
    fields = _LAYOUT.unpack_from(body)
    (_, _, size, repository_id, features, created_ns, low, average, high, cipher, compression, level, mac) = fields
    if size != SIZE_BYTES or body[_LAYOUT.size :].strip(b"\0"):
        raise DamageError("config: bytes that must be zero are not")
    if features & ~FEATURES:
        raise UnsupportedError(f"config: needs features {features & ~FEATURES:#x} that this backupfs does not know; a newer one reads it")
    if cipher not in (CIPHER_AES_256_GCM, CIPHER_CHACHA20_POLY1305) or compression not in (
        COMPRESSION_NONE,
        COMPRESSION_ZSTD,
    ):
        raise UnsupportedError(f"config: unknown cipher {cipher} or compression {compression}")
    if not 64 <= low <= average <= high <= 16 << 20 or low > 1 << 20 or not 256 <= average <= 4 << 20 or high < 1024:
        raise DamageError(f"config: chunk sizes {low}, {average}, {high} are out of range")
    return Config(repository_id, created_ns, low, average, high, cipher, compression, level, features), mac


def _pack(config: Config, mac: bytes) -> bytes:
    return _LAYOUT.pack(
        MAGIC,
        FORMAT_VERSION,
        SIZE_BYTES,
        config.repository_id,
        config.features,
        config.created_ns,
        config.chunk_min_bytes,
        config.chunk_avg_bytes,
        config.chunk_max_bytes,
        config.cipher,
        config.compression,
        config.compression_level,
        mac,
    )
