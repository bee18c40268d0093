"""Keys, sealing, object headers, padding and frame bodies: sections 3 and 6 of docs/format.md, and what 8 and 11 share."""

import hmac
import struct
import zlib
from dataclasses import dataclass
from typing import Final

import blake3
import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.decoder.damage import Damage

BLOB: Final = 1
PACK_TRAILER: Final = 2
PACK_FOOTER: Final = 3
FRAME_HEAD: Final = 4
FRAME_BODY: Final = 5
MASTER_KEY: Final = 6
SLOT_LABEL: Final = 7
CHECKPOINT_PART: Final = 10
CHECKPOINT_MANIFEST: Final = 11

TAG_BYTES: Final = 16
HEADER_BYTES: Final = 128
PACK_MAGIC: Final = b"BFSPACK\0"
JOURNAL_MAGIC: Final = b"BFSJRNL\0"
CHECKPOINT_MAGIC: Final = b"BFSCHKP\0"
BLOCK_BYTES: Final = 4096
"""Frames end at multiples of it, checkpoint parts and manifests also."""

_AEADS: Final[dict[int, type[AESGCM] | type[ChaCha20Poly1305]]] = {1: AESGCM, 2: ChaCha20Poly1305}


def derive(secret: bytes, purpose: bytes, context: bytes, salt: bytes, length: int) -> bytes:
    info = b"backupfs/1/" + purpose + b"\0" + context
    return HKDF(SHA256(), length=length, salt=salt or None, info=info).derive(secret)


def keyed_hash(key: bytes, content: bytes) -> bytes:
    return blake3.blake3(content, key=key).digest()


@dataclass(frozen=True, slots=True)
class Sealer:
    """Opens what was sealed for one object (or slot) under one key."""

    cipher: int
    key: bytes
    repository: bytes
    object_id: bytes

    def open(self, kind: int, position: int, sealed: bytes, detail: int = 0) -> bytes:
        bound = self.repository + bytes([kind]) + self.object_id + struct.pack(">QQ", position, detail)
        nonce = struct.pack(">IQ", 0, position)
        try:
            return _AEADS[self.cipher](self.key).decrypt(nonce, sealed, bound)
        except (InvalidTag, ValueError) as error:
            raise Damage(f"object {self.object_id.hex()}: type {kind} at {position} does not open") from error


@dataclass(frozen=True, slots=True)
class Keys:
    """Everything that follows from the master key and `config`."""

    master: bytes
    repository: bytes
    cipher: int

    def _derived(self, purpose: bytes) -> bytes:
        return derive(self.master, purpose, self.repository, b"", 32)

    @property
    def config_mac(self) -> bytes:
        return self._derived(b"config")

    @property
    def blob_ids(self) -> bytes:
        return self._derived(b"blob ids")

    @property
    def names(self) -> bytes:
        return self._derived(b"names")

    @property
    def journal_hash(self) -> bytes:
        return self._derived(b"journal hash")

    def sealer(self, header: bytes, magic: bytes, object_id: bytes) -> Sealer:
        """For the object that `header` begins; Damage unless it is the one that was asked for."""
        if len(header) != HEADER_BYTES:
            raise Damage(f"object {object_id.hex()}: no whole header")
        found, version, size, zero, repository, found_id, salt, commitment, zeros, crc = struct.unpack(">8sHHI16s16s32s32s12sI", header)
        holds = (
            crc == zlib.crc32(header[:124])
            and (found, version, size, zero) == (magic, 1, HEADER_BYTES, 0)
            and zeros == bytes(12)
            and (repository, found_id) == (self.repository, object_id)
        )
        if not holds:
            raise Damage(f"object {object_id.hex()}: its header does not hold")
        both = derive(self.master, b"object/" + magic, self.repository + object_id, salt, 64)
        if not hmac.compare_digest(both[32:], commitment):
            raise Damage(f"object {object_id.hex()}: its commitment is another")
        return Sealer(self.cipher, both[:32], self.repository, object_id)


def padded(size: int) -> int:
    """P(n) of section 7."""
    if size < 2:
        return size
    exponent = size.bit_length() - 1
    mask = (1 << max(exponent - exponent.bit_length(), 0)) - 1
    return (size + mask) & ~mask


def padded_to_blocks(size: int) -> int:
    """P(n) rounded up to a multiple of 4096."""
    return -(-padded(size) // BLOCK_BYTES) * BLOCK_BYTES


def decompressed(frame: bytes, plain_bytes: int) -> bytes:
    """Of one zstd frame that states its content size."""
    try:
        if zstandard.get_frame_parameters(frame).content_size != plain_bytes:
            raise Damage("a zstd frame states another size")
        plain = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Damage("a zstd frame does not decompress") from error
    if len(plain) != plain_bytes:
        raise Damage("a zstd frame holds another size")
    return plain


def frame_body(plain: bytes) -> tuple[bytes, int]:
    """What the plaintext of a frame's body holds, and how many of its bytes are no padding."""
    if len(plain) < 8:
        raise Damage("a body of less than 8 bytes")
    stored_bytes, plain_bytes = struct.unpack_from(">II", plain)
    used = 8 + stored_bytes
    if used > len(plain) or stored_bytes > plain_bytes or any(plain[used:]):
        raise Damage("the lengths of a body do not hold")
    stored = plain[8:used]
    return (decompressed(stored, plain_bytes) if stored_bytes < plain_bytes else stored), used
