"""Makes `vectors.json`: bytes that each layout has for fixed input. They change only together with the format version.

    python -m tests.compat.make_vectors

Everything random comes from SHA-256 over a counter, so that another implementation can make the same.
"""

import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Final

from backupfs.codec import keys
from backupfs.codec.chunker import Chunker
from backupfs.codec.keys import Keys
from backupfs.format import catalog, config, journal, keyslot, layout, objects, pack
from backupfs.format.catalog import Blob, Counters, Dentry, Inode, Orphan, Pack, Snapshot, Table
from backupfs.format.checkpoint import Manifest, Part
from backupfs.format.config import Config
from backupfs.format.journal import FrameHead, FrameKind, SegmentEnd, SegmentOpen
from backupfs.format.keyslot import KdfParameters
from backupfs.format.layout import Sealed
from backupfs.format.pack import PackEntry, PackFooter

PATH: Final = Path(__file__).with_name("vectors.json")

Vectors = dict[str, dict[str, str | int | list[int]]]

CONFIG: Final = Config(
    repository_id=bytes(range(16)),
    created_ns=1_700_000_000_123_456_789,
    chunk_min_bytes=65536,
    chunk_avg_bytes=262144,
    chunk_max_bytes=1048576,
    cipher=config.CIPHER_AES_256_GCM,
    compression=config.COMPRESSION_ZSTD,
    compression_level=1,
)
CHACHA: Final = Config(
    repository_id=bytes(range(16)),
    created_ns=1_700_000_000_123_456_789,
    chunk_min_bytes=64,
    chunk_avg_bytes=256,
    chunk_max_bytes=1024,
    cipher=config.CIPHER_CHACHA20_POLY1305,
    compression=config.COMPRESSION_NONE,
    compression_level=0,
)
MASTER: Final = bytes(range(0x40, 0x60))
PASSWORD: Final = b"correct horse battery staple"
OBJECT: Final = bytes(range(0xA0, 0xB0))


def stream(label: str, size_bytes: int) -> bytes:
    """SHA-256(label | counter as 8 bytes), one after another."""
    blocks = (hashlib.sha256(label.encode() + n.to_bytes(8, "big")).digest() for n in itertools.count())
    return b"".join(itertools.islice(blocks, -(-size_bytes // 32)))[:size_bytes]


class StreamRandomness:
    """`Randomness` out of `stream`."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._drawn = 0

    def draw(self, size_bytes: int) -> bytes:
        """See `Randomness`."""
        self._drawn += 1
        return stream(f"{self._label}/{self._drawn}/", size_bytes)


def vectors() -> Vectors:
    """Section, name, value; bytes in hex."""
    derived = keys.derive_keys(MASTER, CONFIG)
    return {
        "layout": _layout(),
        "config": {
            "file": config.encode(CONFIG, keys.config_mac(MASTER, CONFIG)).hex(),
            "mac": keys.config_mac(MASTER, CONFIG).hex(),
            "file with ChaCha20-Poly1305 and no compression": config.encode(CHACHA, keys.config_mac(MASTER, CHACHA)).hex(),
        },
        "keys": {
            "blob ids": derived.blob_ids.hex(),
            "names": derived.names.hex(),
            "journal hash": derived.journal_hash.hex(),
            "chunk seed": derived.chunk_seed,
            "blob id of 'chunk'": derived.blob_id(b"chunk").hex(),
            "blob id of nothing": derived.blob_id(b"").hex(),
            "PRF of 'name' in 1": derived.name_prf(1, b"name").hex(),
            "PRF of FF FE in 2**40 - 1": derived.name_prf(2**40 - 1, b"\xff\xfe").hex(),
        },
        "key slot": _key_slot(),
        "pack": _pack(derived),
        "journal": _journal(derived),
        "catalog keys": _catalog_keys(derived),
        "catalog records": _catalog_records(),
        "chunks": _chunks(),
    }


def _layout() -> dict[str, str | int | list[int]]:
    sizes = [0, 1, 2, 9, 100, 1000, 4097, 65_537, 1_000_000, 33_554_433, 2**40 + 1]
    return {
        "nonce of 128": layout.nonce(128).hex(),
        "binding of a blob": layout.binding(CONFIG.repository_id, Sealed.BLOB, OBJECT, 128, 5).hex(),
        "sizes": sizes,
        "padded sizes": [layout.padme(size) for size in sizes],
    }


def _key_slot() -> dict[str, str | int | list[int]]:
    kdf = KdfParameters(time=2, lanes=2, memory_kib=256)
    slot = keys.make_slot(MASTER, PASSWORD, "first \N{SNOWMAN}", kdf, CONFIG, 1_700_000_000_000_000_001, StreamRandomness("slot"))
    return {"password": PASSWORD.hex(), "master key": MASTER.hex(), "file": keyslot.encode(slot).hex()}


def _pack(derived: Keys) -> dict[str, str | int | list[int]]:
    header, sealer = derived.new_object(objects.PACK_MAGIC, OBJECT, StreamRandomness("pack"))
    body = objects.encode(header)
    entries = []
    for plain in (b"first chunk", b"", b"third chunk"):
        sealed = sealer.seal(Sealed.BLOB, len(body), plain, len(plain))
        entries.append(PackEntry(derived.blob_id(plain), len(body), len(sealed), len(plain)))
        body += sealed
    trailer = pack.encode_trailer(entries, len(body))
    footer = PackFooter(len(body), len(trailer) + layout.SEAL_OVERHEAD_BYTES, len(entries))
    whole = body + sealer.seal(Sealed.PACK_TRAILER, footer.trailer_offset, trailer)
    whole += sealer.seal(Sealed.PACK_FOOTER, len(whole), pack.encode_footer(footer))
    return {
        "object id": OBJECT.hex(),
        "header": objects.encode(header).hex(),
        "trailer": trailer.hex(),
        "footer": pack.encode_footer(footer).hex(),
        "file": (whole + objects.encode(header)).hex(),
    }


def _journal(derived: Keys) -> dict[str, str | int | list[int]]:
    object_id = objects.journal_object_id(7)
    header, sealer = derived.new_object(objects.JOURNAL_MAGIC, object_id, StreamRandomness("journal"))
    file = objects.encode(header)
    opened = SegmentOpen(6, 8192, bytes(range(32)))
    batch = journal.encode_batch([(Table.INODES, b"key", b"value"), (Table.BLOBS, b"", b""), (Table.META, b"k", None)])
    bodies = [
        (FrameKind.OPEN, 41, catalog.encode(opened)),
        (FrameKind.BATCH, 42, batch),
        (FrameKind.END, 42, catalog.encode(SegmentEnd(1))),
    ]
    plains = {}
    for kind, number, stored in bodies:
        plain = journal.encode_body(len(file), stored, len(stored), kind is FrameKind.END)
        head = FrameHead(kind, len(plain) + layout.SEAL_OVERHEAD_BYTES, number)
        plains[kind] = stored
        file += sealer.seal(Sealed.FRAME_HEAD, len(file), journal.encode_head(head))
        file += sealer.seal(Sealed.FRAME_BODY, len(file), plain)
    hasher = derived.journal_hasher()
    hasher.update(file)
    return {
        "header": objects.encode(header).hex(),
        "opening": plains[FrameKind.OPEN].hex(),
        "batch": batch.hex(),
        "ending": plains[FrameKind.END].hex(),
        "file": file.hex(),
        "hash": hasher.digest().hex(),
    }


def _catalog_keys(derived: Keys) -> dict[str, str | int | list[int]]:
    prf = derived.name_prf(1, b"name")
    return {
        "inode 16 of epoch 3": (catalog.number_key(16) + catalog.epoch_suffix(3)).hex(),
        "dentry": (catalog.dentry_key(1, prf) + catalog.epoch_suffix(1)).hex(),
        "link": (catalog.link_key(16, 1, prf) + catalog.epoch_suffix(1)).hex(),
        "region": (catalog.region_key(5, 2) + catalog.epoch_suffix(2**64 - 2)).hex(),
        "change": catalog.change_key(3, Table.DENTRIES, catalog.dentry_key(1, prf)).hex(),
        "orphaned inode": catalog.orphan_key(catalog.ORPHAN_INODE, 17).hex(),
        "ended data": catalog.orphan_key(catalog.ORPHAN_DATA, 5).hex(),
        "snapshot 1": catalog.number_key(1).hex(),
        "counters": catalog.META_COUNTERS.hex(),
    }


def _catalog_records() -> dict[str, str | int | list[int]]:
    inode = Inode(
        mode=0o100644,
        uid=1000,
        gid=100,
        size=5000,
        nlink=2,
        atime_ns=1_700_000_000_000_000_001,
        mtime_ns=-1,
        ctime_ns=0,
        birth_ns=2**62,
        rdev=0,
        target=b"",
        data=0,
        extents=[(0, 4096, 7, 0), (4096, 904, 8, 100)],
        links=[(1, bytes(range(16))), (16, bytes(16))],
        allocated=5000,
    )
    part = Part(OBJECT, bytes(range(32)), 1000)
    return {
        "inode": catalog.encode(inode).hex(),
        "dentry": catalog.encode(Dentry(16, 8, b"name\xff")).hex(),
        "region": catalog.encode([(0, 65536, 1, 0), (65536, 2**20, 2**33, 17)]).hex(),
        "xattrs": catalog.encode({b"user.a": b"\0\1", b"security.capability": b""}).hex(),
        "blob": catalog.encode(Blob(bytes(range(32)), 3, 128, 27, 11, 2)).hex(),
        "pack": catalog.encode(Pack(OBJECT, 81, catalog.PackState.SEALED, 7)).hex(),
        "snapshot": catalog.encode_snapshot(
            Snapshot(3, 1_700_000_000_000_000_000, "2023-11-14T22:13:20Z", 1, "manual", "\N{SNOWMAN}", ["a", "b"], 9)
        ).hex(),
        "counters": catalog.encode_counters(Counters(4, 17, 6, 9, 4, 2)).hex(),
        "orphan": catalog.encode(Orphan(3, 2, 16)).hex(),
        "manifest": catalog.encode(Manifest(7, 8192, bytes(range(32)), 42, [part])).hex(),
    }


def _chunks() -> dict[str, str | int | list[int]]:
    """FastCDC's golden cuts: the lengths of the chunks of `stream("chunks", 8 MiB)`."""
    data = stream("chunks", 8 << 20)
    derived = keys.derive_keys(MASTER, CONFIG)
    small = Config(CONFIG.repository_id, 0, 1024, 4096, 16384, 1, 1, 1)
    return {
        "sha256 of the data": hashlib.sha256(data).hexdigest(),
        "seed": derived.chunk_seed,
        "lengths": Chunker(CONFIG, derived.chunk_seed).cut(data, is_end=True),
        "lengths with seed 1": Chunker(CONFIG, 1).cut(data, is_end=True),
        "lengths of the first 256 KiB at 1, 4 and 16 KiB with seed 1": Chunker(small, 1).cut(data[: 256 << 10], is_end=True),
        "lengths of a ramp": Chunker(small, 1).cut(struct.pack(">16384I", *range(16384)), is_end=True),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(vectors(), indent=1) + "\n")
