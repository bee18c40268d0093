"""What every `Store` does. Each implementation is one parameter of the fixture `store`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.errors import MissingObjectError, StoreError
from backupfs.stores.files import Files, SystemFiles
from backupfs.stores.local import LocalStore
from backupfs.stores.port import Store
from tests.crash.disk import SimulatedDisk

PACK = "packs/ab/ab" + 30 * "0"

Finish = Callable[[str, bytes], Path]


@pytest.fixture(params=["local on the system's files", "local on the simulated disk"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if "system" in request.param:
        return SystemFiles()
    disk = SimulatedDisk()
    for parent in reversed([tmp_path, *tmp_path.parents]):
        disk.make_directory(parent)
    return disk


@pytest.fixture
def store(files: Files, tmp_path: Path) -> Store:
    files.make_directory(tmp_path / "repository")
    return LocalStore(tmp_path / "repository", files)


@pytest.fixture
def finish(files: Files, tmp_path: Path) -> Finish:
    """Makes a finished, synced local file."""

    def make(name: str, data: bytes) -> Path:
        handle = files.create(tmp_path / name)
        files.write_at(handle, 0, [data])
        files.sync(handle)
        files.close(handle)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", ["config", "keys/" + 32 * "a", PACK, "journal/0000000000000001", "checkpoints/1/manifest"])
@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 300])
def test_what_was_put_is_got(store: Store, name: str, data: bytes) -> None:
    store.put(name, data)
    assert store.get(name) == data
    assert store.size(name) == len(data)


def test_a_taken_name_is_refused_and_keeps_its_object(store: Store) -> None:
    store.put("config", b"first")
    with pytest.raises(StoreError):
        store.put("config", b"second")
    assert store.get("config") == b"first"


def test_ranges(store: Store) -> None:
    store.put(PACK, b"0123456789")
    assert store.get(PACK, 3, 4) == b"3456"
    assert store.get(PACK, 8, 10) == b"89"
    assert store.get(PACK, 4) == b"456789"
    assert store.get(PACK, 10, 5) == b""
    assert store.get(PACK, 20) == b""
    assert store.get(PACK, 0, 0) == b""


def test_what_is_missing_is_told(store: Store) -> None:
    for ask in (store.get, store.size, store.delete):
        with pytest.raises(MissingObjectError):
            ask(PACK)


def test_put_file_takes_the_file_over(store: Store, files: Files, finish: Finish) -> None:
    path = finish("spooled", b"pack")
    store.put_file(PACK, path)
    assert store.get(PACK) == b"pack"
    assert not files.exists(path)


def test_put_file_replaces(store: Store, finish: Finish) -> None:
    store.put_file(PACK, finish("spooled", b"first"))
    store.put_file(PACK, finish("spooled", b"second"))
    assert store.get(PACK) == b"second"


def test_put_file_of_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError):
        store.put_file(PACK, tmp_path / "nothing")


def test_lists_are_sorted_and_whole_names(store: Store) -> None:
    names = [f"packs/{n:02x}/{n:02x}{m:030x}" for n in (7, 255, 0) for m in (3, 1, 2)]
    for name in [*names, "journal/0000000000000002", "journal/0000000000000001", "config"]:
        store.put(name, b"")
    assert list(store.list("packs")) == sorted(names)
    assert list(store.list("journal")) == ["journal/0000000000000001", "journal/0000000000000002"]
    assert list(store.list("keys")) == []


def test_deleted_is_gone_and_its_name_is_free(store: Store) -> None:
    store.put(PACK, b"first")
    store.delete(PACK)
    assert list(store.list("packs")) == []
    with pytest.raises(MissingObjectError):
        store.get(PACK)
    store.put(PACK, b"second")
    assert store.get(PACK) == b"second"


@pytest.mark.parametrize("name", ["", "/config", "config/", "../config", "packs/../config", "packs//a", ".", "a/."])
def test_names_do_not_lead_out_of_the_store(store: Store, finish: Finish, name: str) -> None:
    path = finish("spooled", b"")
    for ask in (store.get, store.size, store.delete, lambda n: store.put(n, b""), lambda n: store.put_file(n, path)):
        with pytest.raises(StoreError):
            ask(name)


def test_what_a_put_left_unfinished_is_neither_listed_nor_in_the_way_and_can_be_swept_away(store: Store, files: Files, tmp_path: Path) -> None:
    store.put("journal/0000000000000001", b"")
    folder = tmp_path / "repository" / "journal"
    for number in (2, 3):
        files.close(files.create(folder / f"{number:016x}.partial"))
    assert list(store.list("journal")) == ["journal/0000000000000001"]
    store.put("journal/0000000000000002", b"whole")
    assert store.get("journal/0000000000000002") == b"whole"
    store.sweep("journal")
    assert files.list(folder) == [f"{1:016x}", f"{2:016x}"]
