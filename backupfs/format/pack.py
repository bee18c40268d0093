"""A pack: sealed blobs, one after another, and at its end a sealed list of them.

    header · blob · blob · … · trailer (sealed, padded) · footer (sealed, 40 bytes) · header

The end header names the key of trailer and footer. It is the start's when the pack was closed by the process that
opened it; a pack that was found unfinished is closed under a fresh salt, so that no nonce is used twice. A blob is
sealed at its offset, which is its nonce.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from backupfs.errors import DamageError
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, padme
from backupfs.format.objects import HEADER_BYTES

_ENTRY = struct.Struct(">32sQII")
_FOOTER = struct.Struct(">QQQ")
FOOTER_BYTES: Final = _FOOTER.size + SEAL_OVERHEAD_BYTES
END_BYTES: Final = FOOTER_BYTES + HEADER_BYTES


@dataclass(frozen=True, slots=True)
class PackEntry:
    """One blob: its id, where it stands, and its lengths. It is compressed iff `stored_bytes` < `plain_bytes` + 16."""

    blob_id: bytes
    offset: int
    stored_bytes: int
    plain_bytes: int


@dataclass(frozen=True, slots=True)
class PackFooter:
    """Where the trailer stands and how many entries it has."""

    trailer_offset: int
    trailer_bytes: int
    entries: int


def encode_trailer(entries: Iterable[PackEntry], offset: int) -> bytes:
    """The trailer's plaintext for a trailer at `offset`, with zeros so that the whole pack has a padded size."""
    packed = b"".join(_ENTRY.pack(e.blob_id, e.offset, e.stored_bytes, e.plain_bytes) for e in entries)
    least = offset + len(packed) + SEAL_OVERHEAD_BYTES + END_BYTES
    return packed + bytes(padme(least) - least)


def decode_trailer(plain: bytes, footer: PackFooter) -> list[PackEntry]:
    """The entries. Raises DamageError when they do not fit the pack."""
    if footer.entries * _ENTRY.size > len(plain):
        raise DamageError("pack trailer: shorter than its entries")
    entries = [PackEntry(*_ENTRY.unpack_from(plain, i * _ENTRY.size)) for i in range(footer.entries)]
    if any(e.offset < HEADER_BYTES or e.offset + e.stored_bytes > footer.trailer_offset for e in entries):
        raise DamageError("pack trailer: an entry lies outside the pack")
    return entries


def encode_footer(footer: PackFooter) -> bytes:
    """The footer's plaintext: 24 bytes."""
    return _FOOTER.pack(footer.trailer_offset, footer.trailer_bytes, footer.entries)


def decode_footer(plain: bytes, pack_bytes: int) -> PackFooter:
    """The footer of a pack of `pack_bytes`. Raises DamageError when it contradicts that size."""
    if len(plain) != _FOOTER.size:
        raise DamageError("pack footer: has the wrong length")
    footer = PackFooter(*_FOOTER.unpack(plain))
    if footer.trailer_offset < HEADER_BYTES or footer.trailer_offset + footer.trailer_bytes + END_BYTES != pack_bytes:
        raise DamageError("pack footer: does not fit the size of the pack")
    return footer
