"""The catalog: records taken from batches, and read. Sections 9 and 10 of docs/format.md."""

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.decoder import messagepack
from tests.decoder.damage import Damage

INODES: Final = 1
LINKS: Final = 2
DENTRIES: Final = 3
REGIONS: Final = 4
XATTRS: Final = 5
CHANGES: Final = 6
BLOB_IDS: Final = 7
BLOBS: Final = 8
PACKS: Final = 9
SNAPSHOTS: Final = 10
ORPHANS: Final = 11
META: Final = 12
CARRIED: Final = 13

VERSIONED: Final = range(INODES, XATTRS + 1)
_KEY_BYTES: Final = {INODES: 16, LINKS: 40, DENTRIES: 32, REGIONS: 20, XATTRS: 16, BLOB_IDS: 32, BLOBS: 8, PACKS: 8, SNAPSHOTS: 8, ORPHANS: 9}
_REMOVED: Final = 0xFFFFFFFF
_NEWEST: Final = 2**64 - 1

KEPT: Final = 1
DELETED: Final = 2
PURGING: Final = 3

ORPHAN_INODE: Final = 1
ORPHAN_DATA: Final = 2

REGION_BYTES: Final = 16 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    offset: int
    length: int
    blob: int
    blob_offset: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Inode:
    mode: int
    uid: int
    gid: int
    size: int
    links: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    birth_ns: int
    rdev: int
    target: bytes
    data: int
    extents: tuple[Extent, ...]
    names: tuple[tuple[int, bytes], ...]
    allocated: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Dentry:
    inode: int
    type: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Blob:
    blob_id: bytes
    pack: int
    offset: int
    stored_bytes: int
    plain_bytes: int
    references: int


@dataclass(frozen=True, slots=True)
class Pack:
    object_id: bytes
    live_bytes: int
    state: int
    lowest_blob: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    epoch: int
    time_ns: int
    name: str
    state: int
    why: str
    message: str
    tags: tuple[str, ...]
    changes: int


@dataclass(frozen=True, slots=True)
class Orphan:
    epoch: int
    first: int
    owner: int


@dataclass(frozen=True, slots=True)
class Counters:
    epoch: int
    next_inode: int
    next_data: int
    next_blob: int
    next_pack: int
    next_snapshot: int


@dataclass(frozen=True, slots=True)
class Version:
    """One state of an object; `value` is empty for a tombstone."""

    epoch: int
    value: bytes


@dataclass(slots=True)
class Catalog:
    """Everything that the records say. `objects` has each object's versions, oldest first, by table and key without V."""

    batch: int = 0
    objects: dict[int, dict[bytes, list[Version]]] = field(default_factory=dict)
    blob_numbers: dict[bytes, int] = field(default_factory=dict)
    blobs: dict[int, Blob] = field(default_factory=dict)
    packs: dict[int, Pack] = field(default_factory=dict)
    snapshots: dict[int, Snapshot] = field(default_factory=dict)
    orphans: dict[tuple[int, int], Orphan] = field(default_factory=dict)
    counters: Counters | None = None
    last_name: str | None = None
    """The last name that was made from a time."""
    given_names: set[bytes] = field(default_factory=set)
    """PRF of each name that a person gave to a snapshot."""
    policy: bytes = b""
    idle: tuple[int, ...] = ()
    """Blobs on record that nothing refers to."""


Rows = dict[tuple[int, bytes], bytes]
"""Table and key -> value: every record as it stands."""
Carried = dict[tuple[bytes, int], bytes]
"""Object id of a pack and offset -> the sealed bytes that a batch has for that place."""


def carried(batch: int, content: bytes) -> Carried:
    """The blobs that a batch carries; they stand behind its records."""
    found: Carried = {}
    for table, key, value in records(content):
        if table != CARRIED:
            if found:
                raise Damage(f"batch {batch}: a record behind the blobs that it carries")
        elif len(key) != 24 or not value:
            raise Damage(f"batch {batch}: carries a blob to no place")
        else:
            found[key[:16], int.from_bytes(key[16:], "big")] = value
    return found


def apply(rows: Rows, batch: int, content: bytes) -> None:
    """The records of a batch, one after another."""
    for table, key, value in records(content):
        if table == CARRIED:
            continue
        check_key(table, key, f"batch {batch}")
        if value is None:
            rows.pop((table, key), None)
        else:
            rows[table, key] = value


def check_key(table: int, key: bytes, where: str) -> None:
    """Damage unless a record may stand there."""
    if table not in _KEY_BYTES and table != META:
        raise Damage(f"{where}: table {table}")
    if table != META and len(key) != _KEY_BYTES[table]:
        raise Damage(f"{where}: a key of {len(key)} bytes in table {table}")


def records(content: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """(table, key, value or None when removed) of a batch."""
    at = 0
    while at < len(content):
        if at + 7 > len(content):
            raise Damage("a record's head is cut off")
        table, key_bytes, value_bytes = struct.unpack_from(">BHI", content, at)
        at += 7
        key = content[at : at + key_bytes]
        at += key_bytes
        value = None
        if value_bytes != _REMOVED:
            value = content[at : at + value_bytes]
            at += value_bytes
        if at > len(content):
            raise Damage("a record is cut off")
        yield table, key, value


def read(rows: Rows, batch: int) -> Catalog:
    """What the records say; `batch`: the last that counts."""
    catalog = Catalog(batch, {table: {} for table in VERSIONED})
    for table, key in sorted(rows, reverse=True):  # within an object the oldest version first
        value = rows[table, key]
        try:
            if table in VERSIONED:
                version = Version(_NEWEST - _u64(key[-8:]), value)
                catalog.objects[table].setdefault(key[:-8], []).append(version)
            else:
                _read_plain(catalog, table, key, value)
        except (TypeError, ValueError) as error:
            raise Damage(f"table {table}, key {key.hex()}: the record does not hold") from error
    return catalog


def _read_plain(catalog: Catalog, table: int, key: bytes, value: bytes) -> None:
    if table == META:
        _read_meta(catalog, key, value)
        return
    if table == BLOB_IDS:
        catalog.blob_numbers[key] = _int(messagepack.decode(value))
        return
    fields = _list(messagepack.decode(value))
    if table == BLOBS:
        catalog.blobs[_u64(key)] = Blob(_bytes(fields[0]), *_ints(fields[1:6], 5))
    elif table == PACKS:
        catalog.packs[_u64(key)] = Pack(_bytes(fields[0]), *_ints(fields[1:4], 3))
    elif table == SNAPSHOTS:
        epoch, time_ns, name, state, why, message, tags, changes = fields[:8]
        catalog.snapshots[_u64(key)] = Snapshot(
            epoch=_int(epoch),
            time_ns=_int(time_ns),
            name=_str(name),
            state=_int(state),
            why=_str(why),
            message=_str(message),
            tags=tuple(map(_str, _list(tags))),
            changes=_int(changes),
        )
    else:
        catalog.orphans[key[0], _u64(key[1:])] = Orphan(*_ints(fields[:3], 3))


def _read_meta(catalog: Catalog, key: bytes, value: bytes) -> None:
    if key == b"counters":
        catalog.counters = Counters(*_ints(_list(messagepack.decode(value))[:6], 6))
    elif key == b"last-name":
        catalog.last_name = value.decode()
    elif key.startswith(b"name/"):
        catalog.given_names.add(key.removeprefix(b"name/"))
    elif key == b"idle":
        catalog.idle = tuple(map(_int, _list(messagepack.decode(value))))
    elif key == b"policy":
        catalog.policy = value


def read_inode(value: bytes) -> Inode:
    fields = _list(messagepack.decode(value))
    if len(fields) < 15:
        raise Damage("an inode has too few fields")
    names = []
    for name in _list(fields[13]):
        parent, prf = _list(name)
        names.append((_int(parent), _bytes(prf)))
    mode, uid, gid, size, links, atime_ns, mtime_ns, ctime_ns, birth_ns, rdev = _ints(fields[:10], 10)
    return Inode(
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        links=links,
        atime_ns=atime_ns,
        mtime_ns=mtime_ns,
        ctime_ns=ctime_ns,
        birth_ns=birth_ns,
        rdev=rdev,
        target=_bytes(fields[10]),
        data=_int(fields[11]),
        extents=_extents(fields[12]),
        names=tuple(names),
        allocated=_int(fields[14]),
    )


def read_dentry(value: bytes) -> Dentry:
    inode, kind, name = _list(messagepack.decode(value))[:3]
    return Dentry(_int(inode), _int(kind), _bytes(name))


def read_region(value: bytes) -> tuple[Extent, ...]:
    return _extents(messagepack.decode(value))


def read_xattrs(value: bytes) -> dict[bytes, bytes]:
    decoded = messagepack.decode(value)
    if not isinstance(decoded, dict):
        raise Damage("xattrs are no map")
    return {_bytes(name): _bytes(content) for name, content in decoded.items()}


def _extents(value: messagepack.Value) -> tuple[Extent, ...]:
    return tuple(Extent(*_ints(_list(fields)[:4], 4)) for fields in _list(value))


def _u64(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


def _int(value: messagepack.Value) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Damage(f"{value!r} is no integer")
    return value


def _ints(values: list[messagepack.Value], count: int) -> list[int]:
    if len(values) != count:
        raise Damage(f"{len(values)} fields where {count} belong")
    return [_int(value) for value in values]


def _bytes(value: messagepack.Value) -> bytes:
    if not isinstance(value, bytes):
        raise Damage(f"{value!r} is no byte string")
    return value


def _str(value: messagepack.Value) -> str:
    if not isinstance(value, str):
        raise Damage(f"{value!r} is no text")
    return value


def _list(value: messagepack.Value) -> list[messagepack.Value]:
    if not isinstance(value, list):
        raise Damage(f"{value!r} is no array")
    return value
