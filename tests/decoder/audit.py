"""Everything that docs/format.md says of a repository, recounted from scratch: what does not hold, one line each.

The recount starts from the versions of tables 1-5 and shares nothing with what the program counted. Of a repository at
rest it also finds leaks: records, blobs, packs and objects that nothing needs any more. `settled` says that background
work is done and committed, `closed` that the process then ended in order.
"""

import stat
import struct
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tests.decoder import catalog, packs
from tests.decoder.catalog import Catalog, Extent, Inode, Version
from tests.decoder.damage import Damage
from tests.decoder.decoder import ROOT, Repository, View, place_of

_NAMES_IN_INODE = 8
_CHECKPOINTS = 2
_TABLE_NAMES = {
    catalog.INODES: "inode",
    catalog.LINKS: "link",
    catalog.DENTRIES: "dentry",
    catalog.REGIONS: "region",
    catalog.XATTRS: "xattrs",
}


def audit(
    root: Path,
    password: bytes,
    *,
    settled: bool = True,
    closed: bool = True,
    contents: bool = True,
    region_bytes: int = catalog.REGION_BYTES,
) -> list[str]:
    """What is wrong with the repository; nothing when it is whole. `contents`: every blob is opened too."""
    try:
        with Repository(root, password) as repository:
            return audit_opened(repository, settled=settled, closed=closed, contents=contents, region_bytes=region_bytes)
    except Damage as damage:
        return [str(damage)]


def audit_opened(
    repository: Repository,
    *,
    settled: bool = True,
    closed: bool = True,
    contents: bool = True,
    region_bytes: int = catalog.REGION_BYTES,
) -> list[str]:
    """The same of a repository that is open already."""
    records = repository.catalog
    if not records.batch:
        return ["there is no batch"]
    lines = [*repository.history.faults, *_journal(repository, settled=settled, closed=settled and closed)]
    lines += [*_counters(records), *_snapshots(repository), *_versions(records, settled=settled)]
    lines += _references(records, region_bytes, settled=settled)
    lines += _packs(repository, settled=settled, closed=settled and closed)
    epochs = {f"snapshot {s.name}": s.epoch for s in records.snapshots.values() if s.state != catalog.PURGING}
    for name, view in [("present", repository.present()), *((n, View(repository, e)) for n, e in epochs.items())]:
        lines += (f"{name}: {line}" for line in _tree(view, settled=settled))
    if contents:
        lines += _contents(repository)
    return lines


# --- the journal and its checkpoints ---------------------------------------------------------------------------------


def _journal(repository: Repository, *, settled: bool, closed: bool) -> Iterator[str]:
    """Two checkpoints at most, and of the journal no more than what leads from the older one to the present."""
    store, history = repository.store, repository.history
    manifests = store.manifests()
    if settled:
        if len(manifests) > _CHECKPOINTS:
            yield f"{len(manifests)} checkpoints"
        named = {(checkpoint.number, part) for checkpoint in history.checkpoints for part in checkpoint.parts}
        held = {checkpoint.number for checkpoint in history.checkpoints}
        for number, object_id in store.parts().keys() - named:
            if number not in manifests:
                yield f"part {object_id.hex()} of checkpoint {number}: without a manifest"
            elif number in held:
                yield f"part {object_id.hex()} of checkpoint {number}: its manifest does not name it"
        older = history.checkpoints[-_CHECKPOINTS].position.segment if len(history.checkpoints) >= _CHECKPOINTS else 0
        for sequence in store.segments():
            if sequence <= max(older, history.begins.segment):
                yield f"segment {sequence}: no longer needed"
    if closed:
        known = {*manifests.values(), *store.parts().values()}
        for path in sorted((store.root / "checkpoints").glob("*")):
            if path not in known:
                yield f"checkpoints/{path.name}: left"


# --- the records by themselves ---------------------------------------------------------------------------------------


def _counters(records: Catalog) -> Iterator[str]:
    """Every number that was handed out is below its counter."""
    counters = records.counters
    if counters is None:
        yield "there are no counters"
        return
    epochs = [v.epoch for objects in records.objects.values() for versions in objects.values() for v in versions]
    inodes = [int.from_bytes(key[:8], "big") for key in records.objects[catalog.INODES]]
    data = [int.from_bytes(key[:8], "big") for key in records.objects[catalog.REGIONS]]
    data += [inode.data for _, inode in _inode_versions(records)]
    used = [
        ("epoch", max(epochs, default=0), counters.epoch + 1),
        ("snapshot's epoch", max((s.epoch for s in records.snapshots.values()), default=0), counters.epoch),
        ("inode", max(inodes, default=0), counters.next_inode),
        ("data number", max(data, default=0), counters.next_data),
        ("blob", max(records.blobs, default=0), counters.next_blob),
        ("pack", max(records.packs, default=0), counters.next_pack),
        ("snapshot", max(records.snapshots, default=0), counters.next_snapshot),
    ]
    for name, highest, limit in used:
        if highest >= limit:
            yield f"{name} {highest} is in use, and the counter stands at {limit}"


def _snapshots(repository: Repository) -> Iterator[str]:
    records = repository.catalog
    in_order = [snapshot for _, snapshot in sorted(records.snapshots.items())]
    for older, newer in pairwise(in_order):
        if older.epoch >= newer.epoch:
            yield f"snapshots {older.name} and {newer.name}: epochs {older.epoch} and {newer.epoch}"
    for name, count in Counter(snapshot.name for snapshot in in_order).items():
        if count > 1:
            yield f"snapshot {name}: {count} of this name"
    serial = records.counters.next_snapshot - 1 if records.counters is not None else 0
    while serial in records.snapshots and repository.name_key(ROOT, records.snapshots[serial].name.encode()) in records.given_names:
        serial -= 1
    if serial in records.snapshots and records.snapshots[serial].name != records.last_name:
        yield f"snapshot {records.snapshots[serial].name}: the last that no person named, but the last name made is {records.last_name}"
    for snapshot in in_order:
        if snapshot.state not in {catalog.KEPT, catalog.DELETED, catalog.PURGING}:
            yield f"snapshot {snapshot.name}: state {snapshot.state}"


def _versions(records: Catalog, *, settled: bool) -> Iterator[str]:
    """Each version that no view sees, and each tombstone over nothing, is a leak."""
    if not settled:
        return
    for snapshot in records.snapshots.values():
        if snapshot.state != catalog.KEPT:
            yield f"snapshot {snapshot.name}: deleted, and still there"
    for (kind, number), orphan in records.orphans.items():
        yield f"orphan of kind {kind}, number {number}: left, {orphan}"
    epochs = sorted(snapshot.epoch for snapshot in records.snapshots.values())
    for table, objects in records.objects.items():
        for key, versions in objects.items():
            where = f"{_TABLE_NAMES[table]} {_shown_key(table, key)}"
            if not versions[0].value:
                yield f"{where}: a tombstone at epoch {versions[0].epoch} with nothing older"
            for version, newer in pairwise(versions):
                if not any(version.epoch <= epoch < newer.epoch for epoch in epochs):
                    yield f"{where}: nobody sees its version of epoch {version.epoch}, replaced at {newer.epoch}"


def _references(records: Catalog, region_bytes: int, *, settled: bool) -> Iterator[str]:
    """The reference count of a blob is the number of extents, in all versions, that name it; those with none are listed."""
    counted: Counter[int] = Counter()
    for where, extents, inside in _extent_versions(records, region_bytes):
        yield from _extent_lines(where, extents, inside, records)
        counted.update(extent.blob for extent in extents)
    for number, blob in records.blobs.items():
        if counted[number] != blob.references:
            yield f"blob {number}: {blob.references} references recorded, {counted[number]} counted"
        if not counted[number] and (settled or number not in records.idle):
            yield f"blob {number}: nothing refers to it"
        if records.blob_numbers.get(blob.blob_id) != number:
            yield f"blob {number}: its id leads to {records.blob_numbers.get(blob.blob_id)}"
        if blob.pack not in records.packs:
            yield f"blob {number}: in pack {blob.pack}, which has no record"
    for number in records.idle:
        if counted[number] or number not in records.blobs:
            yield f"blob {number}: listed as idle, with {counted[number]} references"
    for blob_id, number in records.blob_numbers.items():
        if number not in records.blobs:
            yield f"blob id {blob_id.hex()}: leads to {number}, which has no record"


def _extent_lines(where: str, extents: tuple[Extent, ...], inside: range, records: Catalog) -> Iterator[str]:
    at = inside.start
    for extent in extents:
        if extent.offset < at or extent.end > inside.stop or extent.length <= 0:
            yield f"{where}: {extent} is out of order or out of place"
        at = extent.end
        blob = records.blobs.get(extent.blob)
        if blob is None:
            yield f"{where}: {extent} names a blob without a record"
        elif extent.blob_offset + extent.length > blob.plain_bytes:
            yield f"{where}: {extent} reaches beyond a chunk of {blob.plain_bytes} bytes"


def _packs(repository: Repository, *, settled: bool, closed: bool) -> Iterator[str]:
    """Live bytes are the stored bytes of the blobs with a record; trailers name them all; nothing else is there."""
    records = repository.catalog
    blobs_of: defaultdict[int, dict[int, catalog.Blob]] = defaultdict(dict)
    for number, blob in records.blobs.items():
        blobs_of[blob.pack][number] = blob
    for number, pack in records.packs.items():
        where = f"pack {number}"
        live = sum(blob.stored_bytes for blob in blobs_of[number].values())
        if live != pack.live_bytes:
            yield f"{where}: {pack.live_bytes} live bytes recorded, {live} counted"
        if blobs_of[number] and min(blobs_of[number]) < pack.lowest_blob:
            yield f"{where}: lowest blob {pack.lowest_blob}, but it has {min(blobs_of[number])}"
        path = repository.closed_packs.get(pack.object_id)
        if path is not None:
            try:
                entries = set(packs.trailer(path, pack.object_id, repository.keys))
            except Damage as damage:
                yield str(damage)
                continue
            for blob_number, blob in blobs_of[number].items():
                if place_of(blob) not in entries:
                    yield f"{where}: its trailer does not name blob {blob_number}"
        if closed and path is None:
            yield f"{where}: not closed"
        if settled and not live and path is not None:
            yield f"{where}: nothing in it is needed"
    for object_id, count in Counter(pack.object_id for pack in records.packs.values()).items():
        if count > 1:
            yield f"pack {object_id.hex()}: {count} records"
    if settled:
        known = {pack.object_id for pack in records.packs.values()}
        for object_id in repository.closed_packs.keys() - known:
            yield f"pack {object_id.hex()}: no record"
    if closed:
        for path in sorted((repository.store.root / "open").glob("*")):
            if path.name != "reserve":
                yield f"open/{path.name}: left"


def _contents(repository: Repository) -> Iterator[str]:
    for number, blob in sorted(repository.catalog.blobs.items(), key=lambda item: (item[1].pack, item[1].offset)):
        try:
            repository.chunk(number)
        except Damage as damage:
            yield f"blob {number} in pack {blob.pack}: {damage}"


# --- the records together, as a view sees them -----------------------------------------------------------------------


def _tree(view: View, *, settled: bool) -> Iterator[str]:
    """Every name leads to an inode, every inode has its names, every region and xattr an owner."""
    records = view.repository.catalog
    inodes = {}
    for key in records.objects[catalog.INODES]:
        number = int.from_bytes(key, "big")
        inode = view.inode(number)
        orphan = records.orphans.get((catalog.ORPHAN_INODE, number))
        ended = orphan is not None and (view.epoch is None or view.epoch >= orphan.epoch)
        if inode is not None and not ended:
            inodes[number] = inode
    if ROOT not in inodes or not inodes[ROOT].is_directory:
        yield "there is no root"
        return
    names_of, subdirectories = defaultdict(list), Counter[int]()
    for key in records.objects[catalog.DENTRIES]:
        value = view.record(catalog.DENTRIES, key)
        if value is None:
            continue
        parent, prf = int.from_bytes(key[:8], "big"), key[8:]
        dentry = catalog.read_dentry(value)
        names_of[dentry.inode].append((parent, prf))
        where = f"name {dentry.name!r} in {parent}"
        if view.repository.name_key(parent, dentry.name) != prf:
            yield f"{where}: under another key"
        if dentry.inode not in inodes:
            yield f"{where}: leads to {dentry.inode}, which is not there"
        elif dentry.type != inodes[dentry.inode].mode >> 12:
            yield f"{where}: of type {dentry.type}, but its inode has mode {inodes[dentry.inode].mode:o}"
        elif inodes[dentry.inode].is_directory:
            subdirectories[parent] += 1
        if parent not in inodes or not inodes[parent].is_directory:
            yield f"{where}: in no directory"
    for number, inode in inodes.items():
        expected = 2 + subdirectories[number] if inode.is_directory else len(names_of[number])
        yield from _inode_lines(view, number, inode, names_of[number], expected, settled=settled)
    yield from _unreachable(view, inodes)
    for key in records.objects[catalog.LINKS]:
        if view.record(catalog.LINKS, key) is not None and int.from_bytes(key[:8], "big") not in inodes:
            yield f"link {_shown_key(catalog.LINKS, key)}: no inode has it"
    orphans = {number for kind, number in records.orphans if kind == catalog.ORPHAN_INODE}
    for key in records.objects[catalog.XATTRS]:
        number = int.from_bytes(key, "big")
        if view.record(catalog.XATTRS, key) is not None and number not in inodes and number not in orphans:
            yield f"xattrs of {number}: no inode has them"
    owned = Counter(inode.data for inode in inodes.values() if inode.data)
    yield from (f"data number {data}: {count} inodes have it" for data, count in owned.items() if count > 1)
    if settled:
        for data in view.repository.regions_of:
            if data not in owned and view.regions(data):
                yield f"regions of data number {data}: no inode has them"


def _inode_lines(view: View, number: int, inode: Inode, names: list[tuple[int, bytes]], links: int, *, settled: bool) -> Iterator[str]:
    where = f"inode {number}"
    if number != ROOT and sorted(view.names(number, inode)) != sorted(names):
        yield f"{where}: tells of names {view.names(number, inode)}, but has {names}"
    if len(inode.names) > _NAMES_IN_INODE:
        yield f"{where}: {len(inode.names)} names in its record"
    if inode.links != links:
        yield f"{where}: {inode.links} links recorded, {links} counted"
    if inode.is_directory and number != ROOT and len(names) != 1:
        yield f"{where}: a directory with {len(names)} names"
    if inode.data and inode.extents:
        yield f"{where}: extents in its record and under data number {inode.data}"
    extents = view.extents(inode)
    if inode.allocated != sum(extent.length for extent in extents):
        yield f"{where}: {inode.allocated} bytes allocated, {sum(extent.length for extent in extents)} counted"
    if not stat.S_ISREG(inode.mode) and (extents or inode.data):
        yield f"{where}: has extents, but mode {inode.mode:o}"
    if stat.S_ISLNK(inode.mode) and inode.size != len(inode.target):
        yield f"{where}: a link of size {inode.size} to {len(inode.target)} bytes"
    if settled and extents and extents[-1].offset >= inode.size:
        yield f"{where}: {extents[-1]} is beyond its size {inode.size}"


def _unreachable(view: View, inodes: dict[int, Inode]) -> Iterator[str]:
    reached = {ROOT}
    waiting = [ROOT]
    while waiting:
        for dentry in view.dentries(waiting.pop()):
            if dentry.inode not in reached:
                reached.add(dentry.inode)
                if dentry.inode in inodes and inodes[dentry.inode].is_directory:
                    waiting.append(dentry.inode)
    yield from (f"inode {number}: no path leads to it" for number in sorted(inodes.keys() - reached))


def _inode_versions(records: Catalog) -> Iterator[tuple[str, Inode]]:
    for where, version in _live_versions(records, catalog.INODES):
        yield where, catalog.read_inode(version.value)


def _extent_versions(records: Catalog, region_bytes: int) -> Iterator[tuple[str, tuple[Extent, ...], range]]:
    """(where, extents, the bytes of the file where they may lie) of each version that has extents."""
    for where, inode in _inode_versions(records):
        yield where, inode.extents, range(2**63)
    for key, versions in records.objects[catalog.REGIONS].items():
        region = struct.unpack(">QI", key)[1]
        inside = range(region * region_bytes, 2**63 if region == 2**32 - 1 else (region + 1) * region_bytes)
        for version in versions:
            if version.value:
                where = f"region {_shown_key(catalog.REGIONS, key)} of epoch {version.epoch}"
                yield where, catalog.read_region(version.value), inside


def _live_versions(records: Catalog, table: int) -> Iterator[tuple[str, Version]]:
    for key, versions in records.objects[table].items():
        for version in versions:
            if version.value:
                yield f"{_TABLE_NAMES[table]} {_shown_key(table, key)} of epoch {version.epoch}", version


def _shown_key(table: int, key: bytes) -> str:
    if table == catalog.REGIONS:
        return "{}/{}".format(*struct.unpack(">QI", key))
    if len(key) == 8:
        return str(int.from_bytes(key, "big"))
    return f"{int.from_bytes(key[:8], 'big')}/{key[8:].hex()}"
