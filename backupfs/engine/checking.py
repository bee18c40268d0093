"""Checking a repository from what the store holds, caches bypassed: the journal is replayed into a scratch index, and everything is held
against that.

Each kind of object is looked at on its own, so one finding does not hide another. Damaged blobs are named by the paths that contain them,
in the present and in snapshots.
"""

import os
import shutil
import tempfile
from bisect import bisect_left
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from backupfs.blobs.packs import pack_name
from backupfs.blobs.trailers import PackEnd
from backupfs.catalog.catalog import Catalog
from backupfs.catalog.index import Index
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys, Sealer
from backupfs.engine.recovery import SoundCheckpoint, in_pieces
from backupfs.engine.seams import Progress, Seams
from backupfs.engine.view import View
from backupfs.errors import DamageError, MissingObjectError, StoreError
from backupfs.format import catalog as records
from backupfs.format import config as config_format
from backupfs.format import keyslot, objects
from backupfs.format.catalog import TOMBSTONE, Blob, SnapshotState, Table, number_key, split_version
from backupfs.format.checkpoint import checkpoint_name
from backupfs.format.journal import SegmentOpen, decode_batch, decode_carried
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, Sealed
from backupfs.format.objects import HEADER_BYTES, PACK_MAGIC
from backupfs.format.pack import PackEntry
from backupfs.journal.checkpoints import Checkpoints
from backupfs.journal.segments import JournalReader, Position, Segment
from backupfs.stores.local import LocalStore

_SCRATCH = "check-"


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it should be: where, what, and which files it touches."""

    kind: str
    object: str
    detail: str
    paths: list[str]


@dataclass(slots=True)
class Checker:
    """One check. Its steps block and run in a thread, one after another; `upto` is where the journal of a running mount ends."""

    root: Path
    keys: Keys
    seams: Seams
    scratch: Path
    read_data: bool
    progress: Progress
    upto: Position | None = None
    _store: LocalStore = field(init=False)
    _index: Index = field(init=False)
    _catalog: Catalog = field(init=False)
    _compressor: Compressor = field(init=False)
    _checkpoints: Checkpoints = field(init=False)
    _blobs_of: dict[int, list[Blob]] = field(default_factory=dict)
    _carried: dict[tuple[bytes, int], bytes] = field(default_factory=dict)
    """Blobs that the journal has for packs that are open, by (object id, offset): the next mount puts them there."""
    _bad_blobs: dict[bytes, str] = field(default_factory=dict)
    _done_bytes: int = 0
    _total_bytes: int = 0

    def __post_init__(self) -> None:
        self._store = LocalStore(self.root, self.seams.files)
        config = self.keys.config
        self._compressor = Compressor(config.compression, config.compression_level)
        self._checkpoints = Checkpoints(self._store, self.keys, self._compressor, self.seams.randomness)
        self._index = Index(self.scratch, self.keys, self.seams.randomness)

    def close(self) -> None:
        """Let go of the scratch index."""
        self._index.close()
        shutil.rmtree(self.scratch)

    def check_config(self) -> list[Finding]:
        """The configuration and the key slots, each and its copy."""
        found: list[Finding] = []
        names = ["config", "config.copy"]
        slots = sorted({name.removesuffix(".copy") for name in self._store.list("keys")})
        for name in [*names, *(copy for slot in slots for copy in (slot, slot + ".copy"))]:
            try:
                data = self._store.get(name)
                if name in names:
                    config, _ = config_format.decode(data)
                    if config != self.keys.config:
                        raise DamageError("it differs from the one that the password opened")
                elif keyslot.decode(data).slot_id.hex() != name.removesuffix(".copy").removeprefix("keys/"):
                    raise DamageError("it is another slot's")
            except (DamageError, StoreError) as error:
                found.append(Finding(error.kind, name, f"{error}; its other copy serves", []))
        return found

    def check_journal(self) -> list[Finding]:
        """Every checkpoint and every segment; what can be replayed goes into the scratch index."""
        reader = JournalReader(self.root / "open", self.seams.files, self._store, self.keys, self._compressor)
        found: list[Finding] = []
        images = self._check_checkpoints(found)
        start = self._start(reader, images)
        batch = 0 if start is None else start.manifest.batch
        left_open = set(self.seams.files.list(self.root / "open"))
        whole = True
        for segment, closed_at, known in self._segments(reader, start):
            damage = known or _frames_damage(reader, segment, closed_at)
            if damage is not None:
                found.append(Finding(damage.kind, f"journal/{segment.sequence:016x}", str(damage), []))
                whole = False
                continue
            if not whole:
                continue
            changes = []
            for item in reader.batches(segment, 0):
                if item.position.batch != batch + 1:
                    found.append(Finding("damage", f"journal/{segment.sequence:016x}", f"batch {batch + 1} is missing", []))
                    whole = False
                    break
                batch += 1
                place = (segment.sequence, item.position.segment_bytes, batch)
                changes.append((place, list(decode_batch(item.payload))))
                self._carried.update(((c.object_id, c.offset), c.sealed) for c in decode_carried(item.payload) if c.object_id.hex() in left_open)
            self._index.apply(changes)
            if whole and segment.sequence in images:
                found.extend(self._differing(images[segment.sequence]))
        if batch == 0 and not found and any(self._store.list("packs")):
            found.append(Finding("damage", "journal", "there is no journal", []))
        self._index.renew()
        value = self._index.get(Table.META, records.META_COUNTERS)
        epoch = 1 if value is None else records.decode_counters(value).epoch
        self._catalog = Catalog(self._index, epoch, 0)
        return found

    def _check_checkpoints(self, found: list[Finding]) -> dict[int, SoundCheckpoint]:
        """Read every checkpoint; those that hold, by the segment that they end with."""
        sound: dict[int, SoundCheckpoint] = {}
        for number in self._checkpoints.sequences():
            try:
                manifest = self._checkpoints.manifest(number)
                for _ in self._checkpoints.records(number, manifest):
                    continue
            except (DamageError, StoreError) as error:
                found.append(Finding(error.kind, checkpoint_name(number), f"{error}; the other checkpoint serves, or the index", []))
                continue
            if self.upto is None or manifest.batch <= self.upto.batch:
                # A newer one was made while this check went on.
                sound[manifest.segment] = SoundCheckpoint(number, manifest)
        return sound

    def _start(self, reader: JournalReader, images: dict[int, SoundCheckpoint]) -> SoundCheckpoint | None:
        """The oldest checkpoint that holds, loaded, when the journal's beginning is gone."""
        oldest = next((sequence for sequence, _ in reader.sequences()), None)
        if not images or (oldest is not None and self._begins_there(reader, oldest)):
            return None
        start = images[min(images)]
        for piece in in_pieces(self._checkpoints.records(start.number, start.manifest)):
            self._index.apply([((0, 0, 0), piece)])
        return start

    def _begins_there(self, reader: JournalReader, sequence: int) -> bool:
        """Whether this segment is the first that there ever was. One that cannot be read is not the reason to start from elsewhere."""
        try:
            opening = _load(reader, sequence, in_store=True).opening
        except (DamageError, StoreError):
            return sequence == 1
        return opening is None or not opening.previous_sequence

    def _differing(self, image: SoundCheckpoint) -> Iterator[Finding]:
        """Whether a checkpoint is the catalog as the journal has it up to the same place."""
        self._index.renew()
        name = checkpoint_name(image.number)
        count = 0
        for table, key, value in self._checkpoints.records(image.number, image.manifest):
            count += 1
            if self._index.get(Table(table), key) != value:
                yield Finding("damage", name, "a record differs from what the journal has; rebuilding from it would give something else", [])
                return
        there = sum(1 for table in Table if table is not Table.CHANGES for _ in self._index.scan(table, b""))
        if there != count:
            yield Finding("damage", name, f"{count} records instead of the {there} that the journal gives", [])

    def pack_names(self) -> list[tuple[int, records.Pack]]:
        """Number and record of every pack that the catalog names, to be given to `check_pack` one by one."""
        packs = [(records.number_of(key), records.decode_pack(value)) for key, value in self._catalog.rows(Table.PACKS)]
        self._total_bytes = sum(pack.live_bytes for _, pack in packs)
        for key, sealed in self._index.scan(Table.BLOBS, b""):
            blob = records.decode_blob(self._index.open_record(Table.BLOBS, key, sealed))
            self._blobs_of.setdefault(blob.pack, []).append(blob)
        return packs

    def check_pack(self, number: int, pack: records.Pack) -> list[Finding]:
        """One pack: its ends and what they say, and with `read_data` every blob."""
        name = pack_name(pack.object_id)
        blobs = self._blobs_of.get(number, [])
        found: list[Finding] = []
        live = sum(blob.stored_bytes for blob in blobs)
        if live != pack.live_bytes:
            found.append(Finding("count", name, f"{pack.live_bytes} live bytes on record, {live} counted", []))
        try:
            head, closed = self._read_pack(pack.object_id, 0, HEADER_BYTES)
        except StoreError as error:
            return [*found, *self._unreadable(name, blobs, error)]
        sealers: list[Sealer] = []
        entries: set[PackEntry] | None = None
        try:
            sealers.append(self._pack_sealer(pack, head, f"pack {pack.object_id.hex()}"))
        except DamageError as error:
            found.append(Finding(error.kind, name, str(error), []))
        if closed:
            try:
                end = PackEnd(self._store, self.keys, name, pack.object_id)
                sealers.append(end.sealer)
                entries = set(end.entries())
            except (DamageError, StoreError) as error:
                found.append(Finding(error.kind, name, str(error), []))
        if not sealers:
            return [*found, *self._unreadable(name, blobs, None)]
        for blob in blobs:
            recorded = PackEntry(blob.id, blob.offset, blob.stored_bytes, blob.plain_bytes)
            if entries is not None and recorded not in entries:
                found.append(Finding("damage", name, f"its trailer does not list blob {blob.id.hex()} as the catalog does", []))
        if self.read_data:
            found.extend(self._read_blobs(pack, name, sealers[0], blobs))
        self._done_bytes += live
        self.progress(self._done_bytes, self._total_bytes)
        return found

    def check_catalog(self) -> list[Finding]:
        """References counted anew from every version of every record, and names that lead nowhere."""
        found: list[Finding] = []
        counted: dict[int, int] = {}
        for table in (Table.INODES, Table.REGIONS):
            for _, _, value in self._versions(table):
                for _, _, blob, _ in records.extents_of(table, value):
                    counted[blob] = counted.get(blob, 0) + 1
        for key, sealed in self._index.scan(Table.BLOBS, b""):
            number = records.number_of(key)
            blob_record = records.decode_blob(self._index.open_record(Table.BLOBS, key, sealed))
            references = counted.pop(number, 0)
            if references != blob_record.references:
                detail = f"{blob_record.references} references on record, {references} counted"
                found.append(Finding("count", f"blob {number}", detail, []))
        found.extend(Finding("damage", f"blob {number}", "it is referred to and has no record", []) for number in counted)
        found.extend(self._dangling_names())
        return found

    def _dangling_names(self) -> Iterator[Finding]:
        """Names that lead to no inode in a view that sees them: a snapshot's, or the present."""
        kept = [records.decode_snapshot(value) for _, value in self._catalog.rows(Table.SNAPSHOTS)]
        views = sorted(s.epoch for s in kept if s.state != SnapshotState.PURGING)
        views.append(records.EPOCH_MAX)
        newer: tuple[bytes, int] = (b"", 0)
        for key, sealed in self._index.scan(Table.DENTRIES, b""):
            object_key, epoch = split_version(key)
            until = newer[1] if newer[0] == object_key else records.EPOCH_MAX + 1
            newer = object_key, epoch
            value = self._index.open_record(Table.DENTRIES, key, sealed)
            if value == TOMBSTONE:
                continue
            entry = records.decode_dentry(value)
            for view in views[bisect_left(views, epoch) : bisect_left(views, until)]:
                if self._catalog.value(Table.INODES, number_key(entry.ino), view) is None:
                    where = f"directory {records.number_of(object_key)}"
                    yield Finding("damage", where, f"{_shown(entry.name)} leads to no inode", [])
                    break

    def name_paths(self) -> list[Finding]:
        """For each pack with damaged blobs, the paths of the files that contain them."""
        if not self._bad_blobs:
            return []
        bad = {number: pack for blob_id, pack in self._bad_blobs.items() if (number := self._catalog.known_blob(blob_id)) is not None}
        owners: dict[int, tuple[int, ...]] = {}
        touched: dict[str, set[int]] = {}
        for object_key, _, value in self._versions(Table.INODES):
            inode = records.decode_inode(value)
            ino = records.number_of(object_key)
            if inode.data:
                owners[inode.data] = (*owners.get(inode.data, ()), ino)
            for extent in inode.extents:
                if extent[2] in bad:
                    touched.setdefault(bad[extent[2]], set()).add(ino)
        for object_key, _, value in self._versions(Table.REGIONS):
            data, _ = records.region_of(object_key)
            for extent in records.decode_region(value):
                if extent[2] in bad:
                    touched.setdefault(bad[extent[2]], set()).update(owners.get(data, ()))
        found: list[Finding] = []
        for pack, inos in sorted(touched.items()):
            paths = sorted({path for ino in inos for path in self._paths(ino, bad)})
            found.append(Finding("damaged-files", pack, f"{len(inos)} files contain damaged blobs", paths))
        return found

    def _segments(
        self, reader: JournalReader, start: SoundCheckpoint | None
    ) -> Iterator[tuple[Segment, int | None, DamageError | StoreError | None]]:
        """Each segment behind `start` with where it was closed (None: the last), or with what is wrong with it."""
        loaded: Segment | None = None
        hold: DamageError | StoreError | None = None
        for sequence, in_store in reader.sequences():
            if self.upto is not None and sequence > self.upto.segment:
                break
            if start is not None and sequence <= start.manifest.segment:
                continue
            try:
                segment = _load(reader, sequence, in_store)
            except (DamageError, StoreError) as error:
                if loaded is not None:
                    yield loaded, None, hold
                loaded, hold = Segment(sequence, in_store, b""), error
                continue
            if segment.opening is None:
                continue
            opening = segment.opening
            if loaded is not None and hold is None and reader.is_skipped(loaded, opening):
                loaded = segment
                continue
            if loaded is not None:
                yield loaded, opening.previous_bytes, hold or _link_damage(reader, loaded, opening)
            elif opening.previous_sequence and (start is None or opening != start.journal):
                yield Segment(opening.previous_sequence, True, b""), None, DamageError("the segment is missing")
            loaded, hold = segment, None
        if loaded is not None:
            upto = self.upto
            closed_at = upto.segment_bytes if upto is not None and upto.segment == loaded.sequence else None
            if closed_at is None and loaded.in_store:
                # Nobody follows it, so it was closed in order: to its last byte it is what was written.
                closed_at = len(loaded.data)
            yield loaded, closed_at, hold

    def _unreadable(self, name: str, blobs: list[Blob], error: StoreError | None) -> list[Finding]:
        """No blob of this pack can be read, because of `error` or of something that is told already."""
        for blob in blobs:
            self._bad_blobs[blob.id] = name
        return [] if error is None else [Finding(error.kind, name, str(error), [])]

    def _pack_sealer(self, pack: records.Pack, header: bytes, what: str) -> Sealer:
        return self.keys.object_sealer(objects.decode(header, PACK_MAGIC, what), pack.object_id)

    def _read_blobs(self, pack: records.Pack, name: str, sealer: Sealer, blobs: list[Blob]) -> Iterator[Finding]:
        for blob in blobs:
            try:
                sealed, _ = self._read_pack(pack.object_id, blob.offset, blob.stored_bytes)
                if len(sealed) != blob.stored_bytes or blob.stored_bytes > blob.plain_bytes + SEAL_OVERHEAD_BYTES:
                    raise DamageError(f"blob {blob.id.hex()} is cut off")
                stored = sealer.open(Sealed.BLOB, blob.offset, sealed, blob.plain_bytes)
                if self.keys.blob_id(self._compressor.expand(stored, blob.plain_bytes)) != blob.id:
                    raise DamageError(f"blob {blob.id.hex()} holds other content")
            except (DamageError, StoreError) as error:
                self._bad_blobs[blob.id] = name
                yield Finding(error.kind, name, str(error), [])

    def _read_pack(self, object_id: bytes, offset: int, size_bytes: int) -> tuple[bytes, bool]:
        """Bytes of a pack, and whether it is closed. A pack may be closed between two looks, so the store is asked twice."""
        try:
            return self._store.get(pack_name(object_id), offset, size_bytes), True
        except MissingObjectError:
            pass
        carried = self._carried.get((object_id, offset))
        if carried is not None and len(carried) == size_bytes:
            return carried, False
        files = self.seams.files
        try:
            handle = files.open(self.root / "open" / object_id.hex())
        except MissingObjectError:
            return self._store.get(pack_name(object_id), offset, size_bytes), True
        try:
            return files.read_at(handle, offset, size_bytes), False
        finally:
            files.close(handle)

    def _versions(self, table: Table) -> Iterator[tuple[bytes, int, bytes]]:
        """(object key, epoch, value) of every version in a table but tombstones."""
        for key, sealed in self._index.scan(table, b""):
            value = self._index.open_record(table, key, sealed)
            if value != TOMBSTONE:
                object_key, epoch = split_version(key)
                yield object_key, epoch, value

    def _paths(self, ino: int, bad: dict[int, str]) -> Iterator[str]:
        """Where an inode is to be found whose content at that time has a bad blob."""
        views = [("", records.EPOCH_MAX)]
        for _, value in self._catalog.rows(Table.SNAPSHOTS):
            snapshot = records.decode_snapshot(value)
            views.append((f".snapshots/{snapshot.name}/", snapshot.epoch))
        for prefix, epoch in views:
            view = View(self._catalog, self.keys, epoch)
            inode = view.inode(ino)
            path = None if inode is None else view.path_of(ino)
            if inode is None or path is None:
                continue
            extents = list(inode.extents)
            if inode.data:
                for _, value in self._catalog.scan(Table.REGIONS, number_key(inode.data), number_key(inode.data), epoch):
                    extents.extend(records.decode_region(value))
            if any(extent[2] in bad for extent in extents):
                yield prefix + _shown(path)


async def check(checker: Checker) -> AsyncGenerator[Finding]:
    """All findings, as they are made. The checker is closed at the end."""
    disk = checker.seams.offload.disk
    try:
        for finding in await disk(checker.check_config):
            yield finding
        for finding in await disk(checker.check_journal):
            yield finding
        for number, pack in await disk(checker.pack_names):
            for finding in await disk(checker.check_pack, number, pack):
                yield finding
        for finding in await disk(checker.check_catalog):
            yield finding
        for finding in await disk(checker.name_paths):
            yield finding
    finally:
        with trio.CancelScope(shield=True):
            await disk(checker.close)


def _load(reader: JournalReader, sequence: int, in_store: bool) -> Segment:
    try:
        return reader.load(sequence, in_store)
    except MissingObjectError:
        if in_store:
            raise
        # It was closed since the list was made.
        return reader.load(sequence, True)


def _frames_damage(reader: JournalReader, segment: Segment, closed_at: int | None) -> DamageError | StoreError | None:
    try:
        reader.read_frames(segment, closed_at)
    except (DamageError, StoreError) as error:
        return error
    return None


def _link_damage(reader: JournalReader, segment: Segment, successor: SegmentOpen) -> DamageError | StoreError | None:
    """What is wrong between a segment and the one that names it; a bad frame is left to be found where it stands."""
    if successor.previous_sequence != segment.sequence:
        return DamageError(f"journal segment {successor.previous_sequence} is missing")
    if successor.previous_bytes <= len(segment.data) and reader.hash(segment, successor.previous_bytes) != successor.previous_hash:
        damage = _frames_damage(reader, segment, successor.previous_bytes)
        return damage or DamageError(f"journal segment {segment.sequence} is not the one that its successor names")
    return None


def remove_scratch(state: Path) -> None:
    """Remove what a check left that did not come to its end."""
    for left in state.glob(_SCRATCH + "*"):
        shutil.rmtree(left)


def scratch_directory(state: Path) -> Path:
    """A place for a scratch index, on the host's own disk."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=state))


def _shown(path: bytes) -> str:
    return os.fsdecode(path).encode("utf-8", "backslashreplace").decode()
