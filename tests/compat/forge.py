"""Writes journal segments and checkpoints by docs/format.md, with the keys of a repository: good ones, and ones that break a rule.

What an attacker cannot make and a faulty program could: everything here opens.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from tests.decoder.journal import BATCH, END, OPENING, Position
from tests.decoder.sealing import (
    BLOCK_BYTES,
    CHECKPOINT_MAGIC,
    CHECKPOINT_MANIFEST,
    CHECKPOINT_PART,
    FRAME_BODY,
    FRAME_HEAD,
    HEADER_BYTES,
    JOURNAL_MAGIC,
    TAG_BYTES,
    Keys,
    derive,
    keyed_hash,
    padded_to_blocks,
)

Record = tuple[int, bytes, bytes | None]
"""Table, key, value; None removes."""

_HEAD_BYTES: Final = 32


def encoded(records: Sequence[Record]) -> bytes:
    """As section 9 has them."""
    pieces = []
    for table, key, value in records:
        pieces += [struct.pack(">BHI", table, len(key), 0xFFFFFFFF if value is None else len(value)), key, value or b""]
    return b"".join(pieces)


@dataclass(slots=True)
class Draft:
    """A checkpoint before it is written; each field may be spoilt."""

    position: Position
    parts: list[list[Record]]
    counts: dict[int, int] = field(default_factory=dict)
    """Part -> a number of records that is not so."""
    hashes: dict[int, bytes] = field(default_factory=dict)
    object_ids: dict[int, bytes] = field(default_factory=dict)
    part_kind: int = CHECKPOINT_PART
    manifest_kind: int = CHECKPOINT_MANIFEST
    part_spare: bytes = b""
    """Stands behind the padding of each part."""
    manifest_spare: bytes = b""
    more: list[object] = field(default_factory=list)
    """Further fields of the manifest."""

    def split(self, size: int) -> "Draft":
        """The same records, so many in a part."""
        records = [record for part in self.parts for record in part]
        return replace(self, parts=[records[at : at + size] for at in range(0, len(records), size)])


class Forge:
    """Writes into a repository."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self.root = root
        self.keys = keys
        self._ids = count(1)

    def segment(self, sequence: int, before: Position, batches: Sequence[Sequence[Record]], *, ended: bool = True) -> Position:
        """Behind a position; its own end."""
        object_id = bytes(8) + struct.pack(">Q", sequence)
        seal = _Sealing(self.keys, JOURNAL_MAGIC, object_id)
        content = bytearray(seal.header)
        opening = msgspec.msgpack.encode([before.segment, before.size, before.hash])
        _add_frame(content, seal, OPENING, before.batch, opening)
        number = before.batch
        for number, records in enumerate(batches, before.batch + 1):
            _add_frame(content, seal, BATCH, number, encoded(records))
        if ended:
            _add_frame(content, seal, END, number, msgspec.msgpack.encode([len(batches)]))
        path = self.root / "journal" / f"{sequence:016x}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return Position(sequence, len(content), keyed_hash(self.keys.journal_hash, bytes(content)), number)

    def go_on(self, position: Position, records: Sequence[Record]) -> None:
        """One more batch at the end of a segment."""
        path = self.root / "journal" / f"{position.segment:016x}"
        content = bytearray(path.read_bytes())
        seal = _Sealing(self.keys, JOURNAL_MAGIC, bytes(8) + struct.pack(">Q", position.segment), bytes(content[48:80]))
        _add_frame(content, seal, BATCH, position.batch + 1, encoded(records))
        path.write_bytes(content)

    def checkpoint(self, number: int, draft: Draft) -> None:
        """In place of what there is of that number."""
        folder = self.root / "checkpoints"
        folder.mkdir(exist_ok=True)
        for path in folder.glob(f"{number:016x}*"):
            path.unlink()
        listed = []
        for at, records in enumerate(draft.parts):
            object_id = draft.object_ids.get(at, struct.pack(">QQ", 1 << 60, next(self._ids)))
            plain = encoded(records)
            sealed = self._object(object_id.ljust(16, b"\0"), draft.part_kind, plain, draft.part_spare)
            (folder / f"{number:016x}-{object_id.hex()}").write_bytes(sealed)
            listed.append([object_id, draft.hashes.get(at, keyed_hash(self.keys.journal_hash, plain)), draft.counts.get(at, len(records))])
        p = draft.position
        manifest = msgspec.msgpack.encode([p.segment, p.size, p.hash, p.batch, listed, *draft.more])
        sealed = self._object(bytes(8) + struct.pack(">Q", number), draft.manifest_kind, manifest, draft.manifest_spare)
        (folder / f"{number:016x}").write_bytes(sealed)

    def _object(self, object_id: bytes, kind: int, plain: bytes, spare: bytes) -> bytes:
        seal = _Sealing(self.keys, CHECKPOINT_MAGIC, object_id)
        size = padded_to_blocks(HEADER_BYTES + 8 + len(plain) + TAG_BYTES)
        return seal.header + seal.close(kind, HEADER_BYTES, _body(plain, size - HEADER_BYTES - TAG_BYTES) + spare)


class _Sealing:
    """Of one object."""

    def __init__(self, keys: Keys, magic: bytes, object_id: bytes, salt: bytes = bytes(range(32))) -> None:
        both = derive(keys.master, b"object/" + magic, keys.repository + object_id, salt, 64)
        self._aead = AESGCM(both[:32]) if keys.cipher == 1 else ChaCha20Poly1305(both[:32])
        self._repository = keys.repository
        self._object_id = object_id
        head = struct.pack(">8sHHI16s16s32s32s12x", magic, 1, HEADER_BYTES, 0, keys.repository, object_id, salt, both[32:])
        self.header = head + struct.pack(">I", zlib.crc32(head))

    def close(self, kind: int, position: int, plain: bytes) -> bytes:
        bound = self._repository + bytes([kind]) + self._object_id + struct.pack(">QQ", position, 0)
        return self._aead.encrypt(struct.pack(">IQ", 0, position), plain, bound)


def _add_frame(content: bytearray, seal: _Sealing, kind: int, number: int, plain: bytes) -> None:
    offset = len(content)
    least = offset + _HEAD_BYTES + 8 + len(plain) + TAG_BYTES
    end = padded_to_blocks(least) if kind == END else -(-least // BLOCK_BYTES) * BLOCK_BYTES
    body_bytes = end - offset - _HEAD_BYTES
    content += seal.close(FRAME_HEAD, offset, struct.pack(">B3xIQ", kind, body_bytes, number))
    content += seal.close(FRAME_BODY, offset + _HEAD_BYTES, _body(plain, body_bytes - TAG_BYTES))


def _body(plain: bytes, size: int) -> bytes:
    """Not compressed."""
    return (struct.pack(">II", len(plain), len(plain)) + plain).ljust(size, b"\0")
