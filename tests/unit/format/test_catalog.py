"""Keys sort as reading needs it; records keep what is put into them."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs import limits
from backupfs.format import catalog, checkpoint
from backupfs.format.catalog import Blob, Counters, Dentry, Extent, Inode, Orphan, Pack, Snapshot, Table

U64 = st.integers(0, 2**64 - 1)
EPOCH = st.integers(1, 2**64 - 2)
PRF = st.binary(min_size=16, max_size=16)
NS = st.integers(-(2**63), 2**63 - 1)
SIZE = st.integers(0, 2**63 - 1)
EXTENTS: st.SearchStrategy[list[Extent]] = st.lists(st.tuples(SIZE, SIZE, SIZE, SIZE), max_size=5)


@given(st.binary(max_size=40), EPOCH, EPOCH)
def test_the_newest_version_comes_first(key: bytes, one: int, other: int) -> None:
    older, newer = sorted((one, other))
    keys = [key + catalog.epoch_suffix(newer), key + catalog.epoch_suffix(older)]
    assert keys == sorted(keys)
    assert catalog.split_version(keys[0]) == (key, newer)


@given(st.binary(max_size=8), EPOCH, EPOCH)
def test_reading_at_an_epoch_is_a_seek(key: bytes, written: int, at: int) -> None:
    """The first key at or after (object, ~S) is a version written at S or before."""
    assert (key + catalog.epoch_suffix(written) >= key + catalog.epoch_suffix(at)) == (written <= at)


@given(U64, U64, PRF, PRF)
def test_a_directorys_names_stand_together_in_the_order_of_their_prf(one: int, other: int, a: bytes, b: bytes) -> None:
    keys = [catalog.dentry_key(one, a), catalog.dentry_key(one, b), catalog.dentry_key(other, a)]
    assert [key for _, key in sorted(((one, a), keys[0]) for _ in "x")] == [keys[0]]
    assert (keys[0] < keys[1]) == (a < b)
    assert (keys[0] < keys[2]) == (one < other)
    assert catalog.number_of(keys[0]) == one
    assert len(keys[0]) == 24


@given(U64, U64, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_files_regions_stand_in_order(one: int, other: int, a: int, b: int) -> None:
    assert (catalog.region_key(one, a) < catalog.region_key(other, b)) == ((one, a) < (other, b))
    assert catalog.region_of(catalog.region_key(one, a) + catalog.epoch_suffix(5)) == (one, a)


@given(U64, U64, PRF)
def test_links_stand_with_their_inode(ino: int, parent: int, prf: bytes) -> None:
    key = catalog.link_key(ino, parent, prf)
    assert key.startswith(catalog.number_key(ino))
    assert key[8:] == catalog.dentry_key(parent, prf)


@given(EPOCH, st.sampled_from(Table), st.binary(max_size=40), EPOCH)
def test_changes_stand_in_the_order_of_their_epochs(epoch: int, table: Table, key: bytes, later: int) -> None:
    row = catalog.change_key(epoch, table, key)
    assert catalog.split_change(row) == (epoch, table, key)
    if epoch < later:
        assert row < catalog.change_key(later, Table.INODES, b"")


@given(st.sampled_from([catalog.ORPHAN_INODE, catalog.ORPHAN_DATA]), U64)
def test_orphans_are_told_apart(kind: int, number: int) -> None:
    assert catalog.split_orphan(catalog.orphan_key(kind, number)) == (kind, number)


def test_numbers_of_tables_are_the_formats() -> None:
    names = ("inodes", "links", "dentries", "regions", "xattrs", "changes")
    more_names = ("blob_ids", "blobs", "packs", "snapshots", "orphans", "meta")
    assert {table.name.lower(): int(table) for table in Table} == dict(zip(names + more_names, range(1, 13), strict=True))
    assert Table.CHANGES not in catalog.VERSIONED


INODES = st.builds(
    Inode,
    mode=st.integers(0, 0o177777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    size=SIZE,
    nlink=st.integers(0, 65000),
    atime_ns=NS,
    mtime_ns=NS,
    ctime_ns=NS,
    birth_ns=NS,
    rdev=U64,
    target=st.binary(max_size=60),
    data=SIZE,
    extents=EXTENTS,
    links=st.lists(st.tuples(SIZE, PRF), max_size=8),
)


@given(INODES)
def test_inodes(inode: Inode) -> None:
    assert catalog.decode_inode(catalog.encode(inode)) == inode


@given(EXTENTS)
def test_regions(extents: list[Extent]) -> None:
    assert catalog.decode_region(catalog.encode(extents)) == extents


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=50), max_size=5))
def test_xattrs(xattrs: dict[bytes, bytes]) -> None:
    assert catalog.decode_xattrs(catalog.encode(xattrs)) == xattrs


@given(
    st.builds(Dentry, ino=SIZE, type=st.integers(0, 15), name=st.binary(max_size=255)),
    st.builds(Blob, id=PRF, pack=SIZE, offset=SIZE, stored_bytes=SIZE, plain_bytes=SIZE, references=SIZE),
    st.builds(Pack, object_id=PRF, live_bytes=SIZE, state=st.sampled_from([1, 2]), first_blob=SIZE),
    st.builds(
        Snapshot,
        epoch=SIZE,
        time_ns=NS,
        name=st.text(max_size=30),
        state=st.sampled_from([1, 2, 3]),
        why=st.text(max_size=10),
        message=st.text(max_size=30),
        tags=st.lists(st.text(max_size=10), max_size=3),
        changes=SIZE,
    ),
    st.builds(Counters, epoch=SIZE, ino=SIZE, data=SIZE, blob=SIZE, pack=SIZE, serial=SIZE, changed_records=SIZE, written_bytes=SIZE),
)
def test_the_other_records(dentry: Dentry, blob: Blob, pack: Pack, snapshot: Snapshot, counters: Counters) -> None:
    assert catalog.decode_dentry(catalog.encode(dentry)) == dentry
    assert catalog.decode_blob(catalog.encode(blob)) == blob
    assert catalog.decode_pack(catalog.encode(pack)) == pack
    assert catalog.decode_snapshot(catalog.encode(snapshot)) == snapshot
    assert catalog.decode_counters(catalog.encode_counters(counters)) == counters
    orphan = Orphan(dentry.ino, counters.data, blob.references)
    assert catalog.decode_orphan(catalog.encode(orphan)) == orphan


def test_counters_end_with_the_last_that_is_not_zero() -> None:
    six = catalog.encode([1, 2, 3, 4, 5, 6])
    assert catalog.encode_counters(Counters(1, 2, 3, 4, 5, 6)) == six
    assert catalog.decode_counters(six) == Counters(1, 2, 3, 4, 5, 6)
    assert catalog.encode_counters(Counters(1, 2, 3, 4, 5, 6, 0, 9)) == catalog.encode([1, 2, 3, 4, 5, 6, 0, 9])


def test_no_record_is_a_tombstone() -> None:
    no_extents: list[Extent] = []
    no_xattrs: dict[bytes, bytes] = {}
    assert catalog.TOMBSTONE not in (catalog.encode(no_extents), catalog.encode(no_xattrs), catalog.encode(0))


def test_a_record_of_a_later_format_with_more_fields_is_still_read() -> None:
    longer = msgspec.msgpack.encode([7, 8, b"name", "a field of the future"])
    assert catalog.decode_dentry(longer) == Dentry(7, 8, b"name")


@given(st.binary(max_size=60))
def test_noise_is_refused_as_such(noise: bytes) -> None:
    for decode in (catalog.decode_inode, catalog.decode_blob, catalog.decode_snapshot, checkpoint.decode_manifest):
        with pytest.raises(msgspec.DecodeError):
            decode(noise)


def test_manifests() -> None:
    manifest = checkpoint.Manifest(1, 4096, b"h" * 32, 7, [checkpoint.Part(b"o" * 16, b"p" * 32, 1000)])
    assert checkpoint.decode_manifest(catalog.encode(manifest)) == manifest


def test_a_regions_record_is_bounded() -> None:
    worst = [((1 << 40) + n * 4096, 65536, (1 << 40) + n, (1 << 20) - 1) for n in range(limits.REGION_EXTENTS_MAX)]
    assert len(catalog.encode(worst)) <= 32 * limits.KIB
