"""Reads a repository from its objects and a password: the present tree, and each snapshot's.

Written from docs/format.md alone. It imports nothing of backupfs and opens no index, so what it reads is what the text
says; a difference from what the program reads is a fault of the one or the other.
"""

import hashlib
import os
import stat
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, Self

from tests.decoder import catalog, history, packs
from tests.decoder.catalog import Blob, Catalog, Dentry, Extent, Inode, Snapshot, Version
from tests.decoder.damage import Damage
from tests.decoder.sealing import Sealer, keyed_hash
from tests.decoder.store import Store, open_store
from tests.oracle.manifest import Entry, Manifest

ROOT: Final = 1

_CHUNKS_KEPT: Final = 32
_PACKS_KEPT_OPEN: Final = 64
_ZEROS: Final = bytes(1 << 20)
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Repository:
    """A repository as its store has it at the moment of opening. A context manager: it keeps pack files open."""

    def __init__(self, root: Path, password: bytes) -> None:
        self.store = Store(root)
        self.keys = open_store(self.store, password)
        self.history = history.read(self.store, self.keys)
        self.catalog: Catalog = self.history.catalog
        self.closed_packs = self.store.packs()
        self._open_packs = self.store.open_packs()
        self._files: OrderedDict[int, tuple[BinaryIO, Sealer, ExitStack]] = OrderedDict()
        self._chunks: OrderedDict[int, bytes] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._files:
            self._files.popitem()[1][2].close()

    def present(self) -> "View":
        return View(self, None)

    def snapshots(self) -> list[Snapshot]:
        """Those that are whole and not deleted, oldest first."""
        return [snapshot for _, snapshot in sorted(self.catalog.snapshots.items()) if snapshot.state == catalog.KEPT]

    def snapshot(self, name: str) -> "View":
        for snapshot in self.snapshots():
            if snapshot.name == name:
                return View(self, snapshot.epoch)
        raise KeyError(name)

    def chunk(self, number: int) -> bytes:
        """The plain bytes of a blob, checked against its id."""
        if number in self._chunks:
            self._chunks.move_to_end(number)
            return self._chunks[number]
        blob = self.catalog.blobs.get(number)
        if blob is None:
            raise Damage(f"blob {number}: no record")
        file, sealer = self._pack(blob.pack)
        plain = packs.chunk(file, sealer, place_of(blob), self.keys)
        self._chunks[number] = plain
        if len(self._chunks) > _CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return plain

    def name_key(self, parent: int, name: bytes) -> bytes:
        """PRF(parent, name)."""
        return keyed_hash(self.keys.names, struct.pack(">Q", parent) + name)[:16]

    def _pack(self, number: int) -> tuple[BinaryIO, Sealer]:
        if number not in self._files:
            record = self.catalog.packs.get(number)
            if record is None:
                raise Damage(f"pack {number}: no record")
            path = self.closed_packs.get(record.object_id) or self._open_packs.get(record.object_id)
            if path is None:
                raise Damage(f"pack {number}: object {record.object_id.hex()} is missing")
            with ExitStack() as stack:
                file: BinaryIO = stack.enter_context(path.open("rb") if record.object_id in self.closed_packs else self._open_pack(record.object_id))
                sealer = packs.sealer_of(file, record.object_id, self.keys)
                self._files[number] = file, sealer, stack.pop_all()
            if len(self._files) > _PACKS_KEPT_OPEN:
                self._files.popitem(last=False)[1][2].close()
        return self._files[number][:2]

    def _open_pack(self, object_id: bytes) -> BinaryIO:
        """A pack without an end, with what the journal carries for it in its places."""
        file = BytesIO(self._open_packs[object_id].read_bytes())
        for (pack, offset), sealed in self.history.carried.items():
            if pack == object_id:
                file.seek(offset)
                file.write(sealed)
        return file

    @cached_property
    def names_below(self) -> dict[int, list[bytes]]:
        """Directory -> the keys of every dentry that it has or had."""
        return _by_first_number(self.catalog.objects[catalog.DENTRIES])

    @cached_property
    def regions_of(self) -> dict[int, list[bytes]]:
        """Data number -> the keys of every region that it has or had, in order."""
        return _by_first_number(self.catalog.objects[catalog.REGIONS])

    @cached_property
    def links_of(self) -> dict[int, list[bytes]]:
        """Inode -> the keys of every row that it has or had in `links`."""
        return _by_first_number(self.catalog.objects[catalog.LINKS])


class View:
    """The tree at an epoch; the present when that is None."""

    def __init__(self, repository: Repository, epoch: int | None) -> None:
        self.repository = repository
        self.epoch = epoch

    def version(self, table: int, key: bytes) -> Version | None:
        """The version of an object that this view sees, a tombstone also."""
        for version in reversed(self.repository.catalog.objects[table].get(key, [])):
            if self.epoch is None or version.epoch <= self.epoch:
                return version
        return None

    def record(self, table: int, key: bytes) -> bytes | None:
        version = self.version(table, key)
        return version.value if version is not None and version.value else None

    def inode(self, number: int) -> Inode | None:
        value = self.record(catalog.INODES, struct.pack(">Q", number))
        return None if value is None else catalog.read_inode(value)

    def dentries(self, parent: int) -> list[Dentry]:
        """By name."""
        values = (self.record(catalog.DENTRIES, key) for key in self.repository.names_below.get(parent, []))
        return sorted((catalog.read_dentry(value) for value in values if value), key=lambda dentry: dentry.name)

    def xattrs(self, number: int) -> dict[bytes, bytes]:
        value = self.record(catalog.XATTRS, struct.pack(">Q", number))
        return {} if value is None else catalog.read_xattrs(value)

    def names(self, number: int, inode: Inode) -> list[tuple[int, bytes]]:
        """(parent, PRF) of every name that the inode's records tell of."""
        keys = (key for key in self.repository.links_of.get(number, []) if self.record(catalog.LINKS, key) is not None)
        return [*inode.names, *((int.from_bytes(key[8:16], "big"), key[16:]) for key in keys)]

    def regions(self, data: int) -> dict[int, tuple[Extent, ...]]:
        """Region number -> extents."""
        ended = self.repository.catalog.orphans.get((catalog.ORPHAN_DATA, data))
        found = {}
        for key in self.repository.regions_of.get(data, []):
            region = int.from_bytes(key[8:], "big")
            version = self.version(catalog.REGIONS, key)
            if version is None or not version.value:
                continue
            if ended is not None and region >= ended.first and (self.epoch is None or self.epoch >= ended.epoch):
                continue
            found[region] = catalog.read_region(version.value)
        return dict(sorted(found.items()))

    def extents(self, inode: Inode) -> list[Extent]:
        """All of a file, also those beyond its size."""
        if not inode.data:
            return list(inode.extents)
        return [extent for extents in self.regions(inode.data).values() for extent in extents]

    def content(self, inode: Inode) -> Iterator[bytes]:
        """The bytes of a regular file, in pieces."""
        at = 0
        for extent in self.extents(inode):
            if extent.offset >= inode.size:
                break
            yield from _zeros(extent.offset - at)
            plain = self.repository.chunk(extent.blob)
            piece = plain[extent.blob_offset : extent.blob_offset + min(extent.end, inode.size) - extent.offset]
            yield piece
            at = extent.offset + len(piece)
        yield from _zeros(inode.size - at)

    def walk(self) -> Iterator[tuple[bytes, int, Inode]]:
        """(path, inode number, inode) of the root, b".", and everything below it; depth first, by name."""
        yield b".", ROOT, self._existing(ROOT, b".")
        waiting = [(b"", ROOT, iter(self.dentries(ROOT)))]
        above = {ROOT}
        while waiting:
            prefix, directory, dentries = waiting[-1]
            dentry = next(dentries, None)
            if dentry is None:
                waiting.pop()
                above.discard(directory)
                continue
            path = prefix + dentry.name
            inode = self._existing(dentry.inode, path)
            if dentry.type != inode.mode >> 12:
                raise Damage(f"{path!r}: of type {dentry.type} in its directory, {inode.mode >> 12} in its inode")
            yield path, dentry.inode, inode
            if inode.is_directory:
                if dentry.inode in above:
                    raise Damage(f"{path!r}: inside itself")
                above.add(dentry.inode)
                waiting.append((path + b"/", dentry.inode, iter(self.dentries(dentry.inode))))

    def manifest(self) -> Manifest:
        """As tests.oracle.manifest makes it of a directory."""
        names_of = defaultdict(list)
        inodes = {}
        for path, number, inode in self.walk():
            names_of[number].append(path)
            inodes[number] = inode
        entries = {}
        for number, inode in inodes.items():
            paths = names_of[number]
            for entry in self._entries(paths, number, inode):
                entries[entry.path] = entry
        return dict(sorted(entries.items()))

    def _entries(self, paths: list[bytes], number: int, inode: Inode) -> Iterator[Entry]:
        kind = stat.S_IFMT(inode.mode)
        is_device = kind in {stat.S_IFCHR, stat.S_IFBLK}
        digest = None
        if kind == stat.S_IFREG:
            sha = hashlib.sha256()
            for piece in self.content(inode):
                sha.update(piece)
            digest = sha.hexdigest()
        for path in paths:
            yield Entry(
                path=path,
                type=_TYPES[kind],
                mode=stat.S_IMODE(inode.mode),
                uid=inode.uid,
                gid=inode.gid,
                size=None if kind == stat.S_IFDIR else inode.size,
                mtime_ns=inode.mtime_ns,
                target=inode.target if kind == stat.S_IFLNK else None,
                same_file_as=min(paths) if len(paths) > 1 else None,
                xattrs=tuple(sorted(self.xattrs(number).items())),
                rdev=(os.major(inode.rdev), os.minor(inode.rdev)) if is_device else None,
                sha256=digest,
            )

    def _existing(self, number: int, path: bytes) -> Inode:
        inode = self.inode(number)
        if inode is None:
            raise Damage(f"{path!r}: inode {number} is not there")
        return inode


def place_of(blob: Blob) -> packs.Place:
    return packs.Place(blob.blob_id, blob.offset, blob.stored_bytes, blob.plain_bytes)


def _by_first_number(keys: Iterable[bytes]) -> dict[int, list[bytes]]:
    groups = defaultdict(list)
    for key in sorted(keys):
        groups[int.from_bytes(key[:8], "big")].append(key)
    return dict(groups)


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        piece = _ZEROS[:count]
        yield piece
        count -= len(piece)
