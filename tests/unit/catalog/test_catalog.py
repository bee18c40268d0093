"""Single rules of the catalog; how they work together is in tests/property/test_catalog.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backupfs.catalog.catalog import Catalog
from backupfs.catalog.index import Index
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import EPOCH_MAX, TOMBSTONE, Blob, PackState, Table, number_key, region_key
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

KEY = number_key(17)
REGION = region_key(1, 0)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    index = Index(tmp_path, make_keys(), SeededRandomness(0))
    yield index
    index.close()


@pytest.fixture
def catalog(index: Index) -> Catalog:
    return Catalog(index, 1, 0)


def settle(catalog: Catalog, index: Index) -> list[records.Pack]:
    """Freeze, apply and drop; gives the dead packs."""
    layer, dead = catalog.freeze()
    index.apply([((1, 1, 1), list(layer.changes()))])
    catalog.drop_layer(layer)
    return dead


def refer(catalog: Catalog, *numbers: int) -> None:
    catalog.write(Table.REGIONS, REGION, records.encode([(at, 1, number, 0) for at, number in enumerate(numbers)]) if numbers else TOMBSTONE)


def add(catalog: Catalog, number: int, blob_id: bytes = b"id", pack: int = 1) -> None:
    catalog.add_pack(pack, b"pack %d" % pack, number)
    catalog.add_blob(number, Blob(blob_id, pack, 128, 10, 20, 0))


def test_same_epoch_replaces_and_a_snapshot_adds(catalog: Catalog) -> None:
    catalog.write(Table.XATTRS, KEY, b"one")
    catalog.write(Table.XATTRS, KEY, b"two")
    assert catalog.versions(Table.XATTRS, KEY) == [(1, b"two")]
    catalog.newest_kept, catalog.kept_epochs, catalog.epoch = 1, (1,), 2
    catalog.write(Table.XATTRS, KEY, b"three")
    catalog.write(Table.XATTRS, KEY, TOMBSTONE)
    assert catalog.versions(Table.XATTRS, KEY) == [(2, TOMBSTONE), (1, b"two")]
    assert catalog.value(Table.XATTRS, KEY, EPOCH_MAX) is None
    assert catalog.value(Table.XATTRS, KEY, 1) == b"two"
    assert catalog.value(Table.XATTRS, KEY, 0) is None


def test_what_never_was_leaves_no_tombstone(catalog: Catalog) -> None:
    catalog.write(Table.XATTRS, KEY, TOMBSTONE)
    catalog.write(Table.XATTRS, KEY, b"one")
    catalog.write(Table.XATTRS, KEY, TOMBSTONE)
    assert catalog.versions(Table.XATTRS, KEY) == []


def test_an_empty_catalog_has_no_changes(catalog: Catalog, index: Index) -> None:
    assert not catalog.has_changes()
    catalog.put(Table.META, b"a", b"1")
    assert catalog.has_changes()
    assert catalog.rows(Table.META) == [(b"a", b"1")]
    settle(catalog, index)
    assert not catalog.has_changes()
    catalog.put(Table.META, b"a", None)
    assert catalog.rows(Table.META) == []


def test_a_blob_that_nobody_refers_to_is_never_recorded(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    assert catalog.known_blob(b"id") == 1
    assert settle(catalog, index) == []
    assert catalog.known_blob(b"id") is None
    assert index.get(Table.BLOBS, number_key(1)) is None
    assert index.get(Table.PACKS, number_key(1)) is None
    with pytest.raises(DamageError, match="no record"):
        catalog.blob(1)
    with pytest.raises(DamageError, match="no record"):
        catalog.pack_object_id(1)


def test_a_pinned_blob_outlives_batches_until_it_is_used(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    catalog.pin(1)
    catalog.pin(1)
    settle(catalog, index)
    assert index.get(Table.BLOBS, number_key(1)) is None
    assert catalog.blob(1).id == b"id"
    assert catalog.pack_object_id(1) == b"pack 1"
    refer(catalog, 1)
    catalog.unpin(1)
    catalog.unpin(1)
    settle(catalog, index)
    assert catalog.blob(1).references == 1
    assert records.decode_pack(index.get(Table.PACKS, number_key(1)) or b"").live_bytes == 10


def test_the_last_reader_of_a_blob_lets_it_go(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    catalog.pin(1)
    refer(catalog)
    settle(catalog, index)
    assert catalog.blob(1).references == 0
    assert catalog.known_blob(b"id") == 1, "it can be used again"
    assert not catalog.has_changes()
    catalog.unpin(1)
    assert catalog.has_changes()
    settle(catalog, index)
    assert catalog.known_blob(b"id") is None
    assert catalog.rows(Table.BLOBS) == []


def test_what_only_a_reader_kept_goes_after_a_kill(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    catalog.pin(1)
    refer(catalog)
    settle(catalog, index)
    after = Catalog(index, 1, 0)
    assert after.has_changes()
    settle(after, index)
    assert after.rows(Table.BLOBS) == after.rows(Table.BLOB_IDS) == []
    assert after.rows(Table.META) == []


def test_a_blob_is_revived_until_its_row_is_gone(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    refer(catalog)
    number = catalog.known_blob(b"id")
    assert number == 1
    refer(catalog, number, number)
    settle(catalog, index)
    assert catalog.blob(1).references == 2


def test_references_to_nothing_are_damage(catalog: Catalog) -> None:
    refer(catalog, 99)
    with pytest.raises(DamageError, match="no record"):
        catalog.freeze()


def test_references_below_zero_are_damage(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    catalog.put(Table.BLOBS, number_key(1), records.encode(Blob(b"id", 1, 128, 10, 20, 0)))
    refer(catalog)
    with pytest.raises(DamageError, match="-1 references"):
        catalog.freeze()


def test_live_bytes_below_zero_are_damage(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    catalog.put(Table.PACKS, number_key(1), records.encode(records.Pack(b"pack 1", 3, PackState.OPEN, 1)))
    refer(catalog)
    with pytest.raises(DamageError, match="-7 live bytes"):
        catalog.freeze()


def test_a_closed_pack_goes_with_its_last_blob(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    assert catalog.names_pack(1)
    assert catalog.pack_sealed(1) is None
    assert settle(catalog, index) == []
    refer(catalog)
    dead = settle(catalog, index)
    assert [pack.object_id for pack in dead] == [b"pack 1"]
    assert catalog.rows(Table.PACKS) == []
    assert not catalog.names_pack(1)


def test_a_pack_closed_without_a_living_blob_is_dead_at_once(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    refer(catalog, 1)
    settle(catalog, index)
    refer(catalog)
    assert settle(catalog, index) == []
    dead = catalog.pack_sealed(1)
    assert dead is not None
    assert dead.object_id == b"pack 1"


def test_a_pack_closed_before_its_first_batch(catalog: Catalog, index: Index) -> None:
    add(catalog, 1)
    assert catalog.names_pack(1)
    assert catalog.pack_sealed(1) is None
    refer(catalog, 1)
    settle(catalog, index)
    assert records.decode_pack(index.get(Table.PACKS, number_key(1)) or b"").state == PackState.SEALED


def test_a_scan_ends_with_its_group_and_begins_behind_a_key(catalog: Catalog, index: Index) -> None:
    keys = [region_key(data, region) for data in (1, 2) for region in range(4)]
    for key in keys[::2]:
        catalog.write(Table.REGIONS, key, records.encode([]))
    settle(catalog, index)
    for key in keys[1::2]:
        catalog.write(Table.REGIONS, key, records.encode([]))
    assert [key for key, _ in catalog.scan(Table.REGIONS, number_key(1), number_key(1), EPOCH_MAX)] == keys[:4]
    assert [key for key, _ in catalog.scan(Table.REGIONS, number_key(1), keys[1], EPOCH_MAX)] == keys[2:4]
    assert list(catalog.scan(Table.REGIONS, number_key(3), number_key(3), EPOCH_MAX)) == []
