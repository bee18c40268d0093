"""What every `Store` does. Each implementation is one parameter of the fixture `store`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.errors import MissingObjectError, StoreError
from backupfs.stores.files import Files, SystemFiles
from backupfs.stores.local import LocalStore
from backupfs.stores.port import Store
from tests.crash.disk import SimulatedDisk
from tests.crash.faults import FaultyFiles

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


@pytest.mark.parametrize("folder", ["packs", "packs/ab", "journal", "checkpoints", "keys"])
def test_what_is_no_object_is_not_listed_and_not_touched(store: Store, files: Files, tmp_path: Path, folder: str) -> None:
    objects = [
        PACK,
        "journal/0000000000000001",
        f"checkpoints/{7:016x}",
        f"checkpoints/{7:016x}-{'c' * 32}",
        "keys/" + 32 * "a",
        f"keys/{32 * 'a'}.copy",
    ]
    for name in objects:
        store.put(name, b"")
    strays = [tmp_path / "repository" / folder / name for name in (".DS_Store", "desktop.ini", "ab", "0000000000000002 (copy)", f"{32 * 'a'}.bak")]
    for stray in strays:
        if not files.exists(stray):
            files.close(files.create(stray))
    for prefix in ("packs", "journal", "checkpoints", "keys"):
        assert list(store.list(prefix)) == [name for name in sorted(objects) if name.startswith(f"{prefix}/")]
        store.sweep(prefix)
    assert all(files.exists(stray) for stray in strays)


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


def test_what_a_put_left_unfinished_is_neither_listed_nor_in_the_way(store: Store, files: Files, tmp_path: Path) -> None:
    store.put("journal/0000000000000001", b"")
    files.close(files.create(tmp_path / "repository" / "journal" / "0000000000000002.partial"))
    assert list(store.list("journal")) == ["journal/0000000000000001"]
    store.put("journal/0000000000000002", b"whole")
    assert store.get("journal/0000000000000002") == b"whole"


def test_a_sweep_removes_what_is_unfinished_and_nothing_else(store: Store, files: Files, tmp_path: Path) -> None:
    store.sweep("journal")
    store.put("journal/0000000000000001", b"")
    left = tmp_path / "repository" / "journal" / "0000000000000002.partial"
    files.close(files.create(left))
    store.sweep("journal")
    assert not files.exists(left)
    assert list(store.list("journal")) == ["journal/0000000000000001"]


@pytest.mark.parametrize("failing", ["write_at", "sync", "rename"])
def test_a_put_that_fails_gives_its_room_back(failing: str) -> None:
    disk = SimulatedDisk()
    disk.make_directory(Path("/repository"))
    faulty = FaultyFiles(disk, lambda operation, _number: 28 if operation == failing else None)
    with pytest.raises(StoreError):
        LocalStore(Path("/repository"), faulty).put("config", b"data")
    assert disk.list(Path("/repository")) == []
