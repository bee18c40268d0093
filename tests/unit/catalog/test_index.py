"""The index as a file that may be damaged, cut off or lost, and as a host's secret-keeping cache."""

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from backupfs import limits
from backupfs.catalog.index import DISTRUSTED, Index
from backupfs.codec.keys import Keys
from backupfs.errors import DamageError, StoreError, StoreFullError
from backupfs.format.catalog import Table, change_key, epoch_suffix, number_key
from backupfs.format.journal import Change
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

PAGE = 4096
CHANGES: list[Change] = [(Table.META, b"name %03d" % i, b"value %03d " % i * 20) for i in range(100)]


def opened(directory: Path, seed: object = 0, keys: Keys | None = None) -> Index:
    return Index(directory, keys or make_keys(), SeededRandomness(seed))


def filled(directory: Path) -> None:
    """A closed index with some pages of records."""
    index = opened(directory)
    index.apply([((1, 4096, 1), CHANGES)])
    index.close()


def rows(index: Index, table: Table) -> list[tuple[bytes, bytes]]:
    return [(key, index.open_record(table, key, sealed)) for key, sealed in index.scan(table, b"")]


def test_what_is_applied_is_seen_after_renewing(tmp_path: Path) -> None:
    index = opened(tmp_path)
    assert index.position == (0, 0, 0)
    index.apply([((1, 4096, 1), [(Table.META, b"a", b"1")]), ((2, 8192, 7), [(Table.META, b"a", b"2"), (Table.META, b"b", b"")])])
    assert index.position == (0, 0, 0)
    assert index.get(Table.META, b"a") is None
    index.renew()
    assert index.position == (2, 8192, 7)
    assert rows(index, Table.META) == [(b"a", b"2"), (b"b", b"")]
    index.apply([((2, 12288, 8), [(Table.META, b"a", None), (Table.META, b"missing", None)])])
    index.renew()
    assert rows(index, Table.META) == [(b"b", b"")]
    assert index.seek(Table.META, b"c") is None
    assert index.seek(Table.DENTRIES, b"") is None
    index.close()


def test_an_index_that_somebody_removes_serves_as_long_as_it_is_open(tmp_path: Path) -> None:
    index = opened(tmp_path / "index")
    index.apply([((1, 4096, 1), CHANGES)])
    shutil.rmtree(tmp_path / "index")
    index.apply([((1, 8192, 2), [(Table.META, b"another", b"2")])])
    index.renew()
    assert index.position == (1, 8192, 2)
    assert len(rows(index, Table.META)) == len(CHANGES) + 1
    index.distrust()
    index.close()
    assert rows(opened(tmp_path / "index"), Table.META) == []


def test_nothing_to_apply_moves_nothing(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.apply([])
    index.renew()
    assert index.position == (0, 0, 0)
    index.close()


def test_a_table_ends_where_the_next_begins(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.apply([((1, 1, 1), [(Table.PACKS, b"p", b"1"), (Table.SNAPSHOTS, b"s", b"2")])])
    index.renew()
    assert [key for key, _ in index.scan(Table.PACKS, b"")] == [b"p"]
    assert index.seek(Table.PACKS, b"q") is None
    assert index.seek(Table.PACKS, b"a") is not None
    index.close()


def test_every_version_has_a_row_of_changes(tmp_path: Path) -> None:
    index = opened(tmp_path)
    key = number_key(17)
    index.apply([((1, 1, 1), [(Table.INODES, key + epoch_suffix(3), b"old"), (Table.INODES, key + epoch_suffix(5), b"new")])])
    index.renew()
    assert [key for key, _ in index.scan(Table.CHANGES, b"")] == [change_key(e, Table.INODES, key) for e in (3, 5)]
    index.apply([((1, 2, 2), [(Table.INODES, key + epoch_suffix(3), None)])])
    index.renew()
    assert [key for key, _ in index.scan(Table.CHANGES, b"")] == [change_key(5, Table.INODES, key)]
    index.close()


def test_values_are_sealed_and_never_twice_the_same(tmp_path: Path) -> None:
    secret = b"what nobody is to read without a key"
    for number in range(3):
        index = opened(tmp_path, number)
        index.apply([((1, 1, 1), [(Table.META, b"same", secret)])])
        index.renew()
        assert index.get(Table.META, b"same") == secret
        index.close()
    assert secret not in (tmp_path / "data.mdb").read_bytes()
    with lmdb.open(str(tmp_path), lib_version=0) as environment, environment.begin() as txn:
        salts = [value for key, value in txn.cursor() if key.startswith(b"\xffkey/")]
    assert len(set(salts)) == 3, "a fresh key at each opening"


def test_a_value_in_another_place_is_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    with lmdb.open(str(tmp_path), lib_version=0, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
        one, other = bytes([Table.META]) + b"name 001", bytes([Table.META]) + b"name 002"
        value = txn.get(one)
        assert value is not None
        txn.put(other, value)
        txn.put(bytes([Table.META]) + b"name 003", b"short")
        txn.put(bytes([Table.META]) + b"name 004", struct.pack(">IQ", 99, 1) + bytes(20))
    index = opened(tmp_path)
    assert index.get(Table.META, b"name 001") == CHANGES[1][2]
    for name in (b"name 002", b"name 003", b"name 004"):
        with pytest.raises(DamageError):
            index.get(Table.META, name)
    index.close()


def test_another_repositorys_index_does_not_open(tmp_path: Path) -> None:
    filled(tmp_path)
    index = opened(tmp_path, keys=make_keys(bytes([1]) * 32))
    with pytest.raises(DamageError):
        _ = index.position
    index.close()


def test_a_flipped_value_is_damage_and_the_index_is_distrusted(tmp_path: Path) -> None:
    filled(tmp_path)
    key = bytes([Table.META]) + b"name 050"
    with lmdb.open(str(tmp_path), lib_version=0, map_size=1 << 24) as environment, environment.begin(write=True) as txn:
        value = txn.get(key)
        assert value is not None
        txn.put(key, value[:20] + bytes([value[20] ^ 1]) + value[21:])
    index = opened(tmp_path)
    with pytest.raises(DamageError):
        index.get(Table.META, b"name 050")
    with pytest.raises(DamageError):
        rows(index, Table.META)
    assert index.get(Table.META, b"name 049") == CHANGES[49][2]
    index.close()
    assert (tmp_path / DISTRUSTED).exists()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: data[:100], id="cut in the first page"),
        pytest.param(lambda data: data[:PAGE], id="one page left"),
        pytest.param(lambda data: data[:-PAGE], id="one page gone"),
        pytest.param(lambda data: bytes(len(data)), id="zeros"),
        pytest.param(lambda data: data[:40] + b"\1" + data[41:], id="page size"),
        pytest.param(lambda data: data[:PAGE] + bytes(PAGE) + data[2 * PAGE :], id="second meta page"),
        pytest.param(lambda data: data[: PAGE + 20], id="second meta page cut off"),
    ],
)
def test_a_file_that_is_not_whole_is_never_given_to_lmdb(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    filled(tmp_path)
    path = tmp_path / "data.mdb"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamageError, match=r"cut off|not an LMDB file|meta page"):
        opened(tmp_path)


def test_cut_at_any_page(tmp_path: Path) -> None:
    filled(tmp_path)
    content = (tmp_path / "data.mdb").read_bytes()
    assert len(content) > 6 * PAGE
    for size in range(1, len(content), PAGE // 2):
        (tmp_path / "data.mdb").write_bytes(content[:size])
        with pytest.raises(DamageError):
            opened(tmp_path)


def test_a_file_that_grows_while_it_is_looked_at_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    path.write_bytes(content[:-PAGE])
    look = Path.open

    def grown(at: Path, mode: str) -> object:
        monkeypatch.undo()
        path.write_bytes(content)
        return look(at, mode)

    monkeypatch.setattr(Path, "open", grown)
    index = opened(tmp_path)
    assert index.position == (1, 4096, 1)
    index.close()


def test_an_empty_file_is_a_new_index(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    index = opened(tmp_path)
    assert index.position == (0, 0, 0)
    assert index.data_bytes() > 0
    index.close()


def test_what_lmdb_refuses_is_damage(tmp_path: Path) -> None:
    filled(tmp_path)
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    version = struct.pack("<I", 77)
    path.write_bytes(content[:20] + version + content[24 : PAGE + 20] + version + content[PAGE + 24 :])
    with pytest.raises(DamageError, match="does not open"):
        opened(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be made"):
        opened(tmp_path / "file" / "index")


class FailingWrites:
    """An environment whose write transactions fail."""

    def __init__(self, error: lmdb.Error) -> None:
        self._error = error

    def begin(self, write: bool = False) -> None:
        raise self._error


@pytest.mark.parametrize(("error", "expected"), [(lmdb.MapFullError("full"), StoreFullError), (lmdb.DiskError("EIO"), StoreError)])
def test_a_failed_commit_is_told(tmp_path: Path, error: lmdb.Error, expected: type[StoreError], monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "_env", FailingWrites(error))
        with pytest.raises(expected) as raised:
            index.apply([((1, 1, 1), CHANGES)])
        assert type(raised.value) is expected
    index.renew()
    assert index.position == (0, 0, 0)
    index.close()


def test_an_address_space_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "INDEX_MAP_BYTES", 64 * 1024)
    index = opened(tmp_path)
    with pytest.raises(StoreFullError):
        index.apply([((1, 1, 1), [(Table.META, b"%d" % i, bytes(1000)) for i in range(200)])])
    index.renew()
    assert index.position == (0, 0, 0), "all of a transaction or nothing"
    assert rows(index, Table.META) == []
    index.close()


class FailingReads:
    """A transaction or cursor of a damaged environment."""

    def get(self, _key: bytes) -> bytes:
        raise lmdb.CorruptedError("page")

    set_range = get

    def cursor(self) -> "FailingReads":
        return self


@pytest.mark.parametrize(
    "use",
    [
        lambda index: index.get(Table.META, b"a"),
        lambda index: index.seek(Table.META, b"a"),
        lambda index: list(index.scan(Table.META, b"a")),
        lambda index: index.position,
    ],
    ids=["get", "seek", "scan", "position"],
)
def test_damage_that_lmdb_itself_meets(tmp_path: Path, use: Callable[[Index], object], monkeypatch: pytest.MonkeyPatch) -> None:
    index = opened(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(index, "_read", FailingReads())
        patch.setattr(index, "_cursor", FailingReads())
        with pytest.raises(DamageError):
            use(index)
    assert (tmp_path / DISTRUSTED).exists()
    index.close()


def test_programs_that_are_started_get_no_descriptor_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def inheritable() -> list[str]:
        """Files below the directory that a child would be handed."""
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{name}").startswith(str(tmp_path)) and os.get_inheritable(int(name)):
                    found.append(name)
            except OSError:
                continue  # the listing's own
        return found

    with monkeypatch.context() as patch:
        patch.setattr("backupfs.catalog.index._keep_from_children", lambda _: None)
        index = opened(tmp_path / "as LMDB has it")
        assert inheritable(), "there is something to be kept from them"
        index.close()
    index = opened(tmp_path / "index")
    assert inheritable() == []
    index.close()
