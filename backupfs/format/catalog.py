"""Keys and records of the catalog.

A versioned key is what it describes, followed by the complement of the epoch it was written in: the newest version
comes first. The empty value is a tombstone. Records are MessagePack arrays; fields are only ever appended, with
defaults.
"""

import enum
import struct
from functools import cache
from typing import Final

import msgspec

EPOCH_MAX: Final = 0xFFFF_FFFF_FFFF_FFFF
_U64 = struct.Struct(">Q")
_INO_PARENT_PRF = struct.Struct(">QQ16s")
_PARENT_PRF = struct.Struct(">Q16s")
_REGION = struct.Struct(">QI")
_ORPHAN = struct.Struct(">BQ")
_CHANGE_PREFIX = struct.Struct(">QB")
PRF_BYTES: Final = 16
TOMBSTONE: Final = b""


class Table(enum.IntEnum):
    """Table numbers, as the journal writes them."""

    INODES = 1
    LINKS = 2
    DENTRIES = 3
    REGIONS = 4
    XATTRS = 5
    CHANGES = 6
    BLOB_IDS = 7
    BLOBS = 8
    PACKS = 9
    SNAPSHOTS = 10
    ORPHANS = 11
    META = 12


VERSIONED: Final = frozenset({Table.INODES, Table.LINKS, Table.DENTRIES, Table.REGIONS, Table.XATTRS})
"""Tables whose keys end in an epoch, and whose versions each have a row in `CHANGES`. Those rows are derived, never
journalled.
"""

Extent = tuple[int, int, int, int]
"""(file offset, length, blob number, offset in the blob's plaintext), all in bytes but the third; sorted, never
overlapping.
"""


class Inode(msgspec.Struct, array_like=True):
    """`data` is 0 while all extents stand in `extents`; otherwise it names the regions and `extents` is empty.

    `allocated` is the sum of all extents' lengths. `links` are up to eight names: (parent, PRF); the rest stand in `LINKS`.
    """

    mode: int
    uid: int
    gid: int
    size: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    rdev: int
    target: bytes
    data: int
    extents: list[Extent]
    links: list[tuple[int, bytes]]
    allocated: int = 0


class Dentry(msgspec.Struct, array_like=True, frozen=True):
    """`type` is the file type bits of the mode, shifted right by 12."""

    ino: int
    type: int
    name: bytes


class Blob(msgspec.Struct, array_like=True, frozen=True):
    """`references` counts extents in all versions of all records."""

    id: bytes
    pack: int
    offset: int
    stored_bytes: int
    plain_bytes: int
    references: int


class PackState(enum.IntEnum):
    """`OPEN` packs lie in `open/` and have no end yet."""

    OPEN = 1
    SEALED = 2


class Pack(msgspec.Struct, array_like=True, frozen=True):
    """`live_bytes` are the stored bytes of blobs that have a row; a sealed pack of none goes. No blob in it has a lower number than `first_blob`."""

    object_id: bytes
    live_bytes: int
    state: int
    first_blob: int


class SnapshotState(enum.IntEnum):
    """Deleted, but not yet purging, still counts as kept."""

    KEPT = 1
    DELETED = 2
    PURGING = 3


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """`changes` counts versions written since the snapshot before; `why` is who asked for it ("manual", "schedule").

    `hold_until_ns` is 0 when nobody holds it, `deleted_ns` is when it was marked deleted. `made`, `altered` and `removed` count inodes since the
    snapshot before, once they have been counted (`counted`).
    """

    epoch: int
    time_ns: int
    name: str
    state: int
    why: str
    message: str
    tags: list[str]
    changes: int
    pinned: bool = False
    hold_until_ns: int = 0
    deleted_ns: int = 0
    counted: bool = False
    made: int = 0
    altered: int = 0
    removed: int = 0
    before_restore: bytes = b""
    """The path that was about to be restored when this was taken, from the root; empty for all others."""


class Orphan(msgspec.Struct, array_like=True, frozen=True):
    """Something that has ended as of `epoch` and whose records are still to be ended: of an inode all, of data the regions from `first` on.

    `owner` is the inode that goes on with the regions before `first`, 0 when there is none.
    """

    epoch: int
    first: int
    owner: int = 0


ORPHAN_INODE: Final = 1
ORPHAN_DATA: Final = 2


class Counters(msgspec.Struct, array_like=True):
    """Next numbers to hand out, the current epoch, and what has changed since the last snapshot (records; bytes that were
    written): the record `META` / `counters`.
    """

    epoch: int
    ino: int
    data: int
    blob: int
    pack: int
    serial: int
    changed_records: int = 0
    written_bytes: int = 0


META_COUNTERS: Final = b"counters"
META_LAST_NAME: Final = b"last-name"
"""UTF-8: the name that was given to a snapshot last, whatever became of it."""
META_NAME_PREFIX: Final = b"name/"
"""Followed by a PRF: a name that a person gave to a snapshot, or that a snapshot had which is gone. It is never given again."""
META_IDLE: Final = b"idle"
"""Numbers of blobs that have a row and no reference: what was using them had not let go of them yet."""
META_POLICY: Final = b"policy"
"""What the repository's owner has decided about schedule and retention, as the service writes it."""


def epoch_suffix(epoch: int) -> bytes:
    """The last eight bytes of a versioned key."""
    return _U64.pack(EPOCH_MAX - epoch)


def split_version(key: bytes) -> tuple[bytes, int]:
    """A versioned key's object and epoch."""
    return key[:-8], EPOCH_MAX - _U64.unpack_from(key, len(key) - 8)[0]


def number_key(number: int) -> bytes:
    """Key of an inode, xattrs, blob, pack or snapshot (for the first two: without the epoch)."""
    return _U64.pack(number)


def number_of(key: bytes) -> int:
    """The number that a key begins with."""
    number: int = _U64.unpack_from(key)[0]
    return number


def orphan_key(kind: int, number: int) -> bytes:
    """Key of an orphan: `ORPHAN_INODE` or `ORPHAN_DATA` and its number."""
    return _ORPHAN.pack(kind, number)


def split_orphan(key: bytes) -> tuple[int, int]:
    """(kind, number) of an orphan's key."""
    kind, number = _ORPHAN.unpack(key)
    return kind, number


def dentry_key(parent: int, prf: bytes) -> bytes:
    """Object key of a name in a directory; `prf` is the 16-byte PRF of the name."""
    return _PARENT_PRF.pack(parent, prf)


def link_key(ino: int, parent: int, prf: bytes) -> bytes:
    """Object key of a link beyond those in the inode's record."""
    return _INO_PARENT_PRF.pack(ino, parent, prf)


def link_of(key: bytes) -> tuple[int, bytes]:
    """(parent, PRF) of a link's object key."""
    _, parent, prf = _INO_PARENT_PRF.unpack(key)
    return parent, prf


def region_key(data: int, region: int) -> bytes:
    """Object key of a region of a file."""
    return _REGION.pack(data, region)


def region_of(key: bytes) -> tuple[int, int]:
    """(data number, region number) of a region's object key."""
    data, region = _REGION.unpack_from(key)
    return data, region


def change_key(epoch: int, table: int, object_key: bytes) -> bytes:
    """Key of the row that says that this object has a version of this epoch."""
    return _CHANGE_PREFIX.pack(epoch, table) + object_key


def split_change(key: bytes) -> tuple[int, int, bytes]:
    """(epoch, table, object key) of a row in `CHANGES`."""
    epoch, table = _CHANGE_PREFIX.unpack_from(key)
    return epoch, table, key[_CHANGE_PREFIX.size :]


_encode = msgspec.msgpack.Encoder().encode


def encode(record: msgspec.Struct | list[Extent] | list[int] | dict[bytes, bytes] | int) -> bytes:
    """Any record."""
    return _encode(record)


def encode_snapshot(record: Snapshot) -> bytes:
    """A snapshot's record, without the fields at its end that say nothing."""
    return _encode_trimmed(record)


def encode_counters(record: Counters) -> bytes:
    """The counters' record, without the fields at its end that are 0."""
    return _encode_trimmed(record)


def _encode_trimmed(record: msgspec.Struct) -> bytes:
    values = list(msgspec.structs.astuple(record))
    defaults = _defaults(type(record))
    while values[-1] == defaults[len(values) - 1]:
        values.pop()
    return _encode(values)


@cache
def _defaults(kind: type[msgspec.Struct]) -> list[object]:
    return [field.default for field in msgspec.structs.fields(kind)]


decode_inode = msgspec.msgpack.Decoder(Inode).decode
decode_dentry = msgspec.msgpack.Decoder(Dentry).decode
decode_region = msgspec.msgpack.Decoder(list[Extent]).decode
decode_xattrs = msgspec.msgpack.Decoder(dict[bytes, bytes]).decode
decode_blob = msgspec.msgpack.Decoder(Blob).decode
decode_pack = msgspec.msgpack.Decoder(Pack).decode
decode_snapshot = msgspec.msgpack.Decoder(Snapshot).decode
decode_orphan = msgspec.msgpack.Decoder(Orphan).decode
decode_counters = msgspec.msgpack.Decoder(Counters).decode
decode_numbers = msgspec.msgpack.Decoder(list[int]).decode
decode_number = msgspec.msgpack.Decoder(int).decode


def extents_of(table: int, value: bytes) -> list[Extent]:
    """The extents that a record which is no tombstone holds: a region's or an inode's; of other tables none."""
    if table == Table.REGIONS:
        return decode_region(value)
    return decode_inode(value).extents if table == Table.INODES else []
