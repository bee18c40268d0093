"""What every `Files` does: the operating system's, and the simulated disk that stands in for it in crash tests."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupfs.errors import DamageError, LockedError, MissingObjectError, StoreError, StoreFullError
from backupfs.stores.files import Files, Handle, SystemFiles
from tests.crash.disk import SimulatedDisk
from tests.crash.faults import FaultyFiles


@pytest.fixture(params=["system", "simulated", "faultless"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    if request.param == "system":
        return SystemFiles()
    disk = SimulatedDisk()
    for parent in reversed([tmp_path, *tmp_path.parents]):
        disk.make_directory(parent)
    return disk if request.param == "simulated" else FaultyFiles(disk, lambda operation, number: None)


@pytest.fixture
def handle(files: Files, tmp_path: Path) -> Iterator[Handle]:
    handle = files.create(tmp_path / "file")
    yield handle
    files.close(handle)


def content(files: Files, path: Path) -> bytes:
    handle = files.open(path)
    try:
        return files.read_at(handle, 0, 1 << 20)
    finally:
        files.close(handle)


def make(files: Files, path: Path, data: bytes) -> None:
    handle = files.create(path)
    files.write_at(handle, 0, [data])
    files.close(handle)


def test_written_parts_are_read_back(files: Files, handle: Handle) -> None:
    files.write_at(handle, 0, [b"one", b"", b"two", b"three"])
    files.write_at(handle, 3, [b"TWO"])
    files.sync(handle)
    assert files.read_at(handle, 0, 100) == b"oneTWOthree"
    assert files.read_at(handle, 2, 3) == b"eTW"
    assert files.read_at(handle, 11, 5) == b""
    assert files.size(handle) == 11


def test_a_file_that_is_there_is_written_to_once_more(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "old", b"before")
    handle = files.reopen(tmp_path / "old")
    files.write_at(handle, 3, [b"!"])
    assert files.read_at(handle, 0, 10) == b"bef!re"
    files.close(handle)
    assert content(files, tmp_path / "old") == b"bef!re"
    with pytest.raises(MissingObjectError):
        files.reopen(tmp_path / "missing")


def test_many_parts_are_written_in_order(files: Files, handle: Handle, seed: int) -> None:
    draw = random.Random(seed)
    parts = [draw.randbytes(draw.choice([0, 1, 3, 700])) for _ in range(2000)]
    files.write_at(handle, 5, parts)
    assert files.read_at(handle, 0, 1 << 22) == bytes(5) + b"".join(parts)


def test_a_gap_reads_as_zeros(files: Files, handle: Handle) -> None:
    files.write_at(handle, 1000, [b"x"])
    assert files.read_at(handle, 0, 2000) == bytes(1000) + b"x"


def test_create_does_not_replace(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"kept")
    with pytest.raises(StoreError):
        files.create(tmp_path / "a")
    assert content(files, tmp_path / "a") == b"kept"


def test_what_is_missing_is_named(files: Files, tmp_path: Path) -> None:
    for ask in (files.open, files.unlink):
        with pytest.raises(MissingObjectError, match="nothing"):
            ask(tmp_path / "nothing")
    with pytest.raises(MissingObjectError):
        files.rename(tmp_path / "nothing", tmp_path / "b")
    with pytest.raises(MissingObjectError):
        files.create(tmp_path / "no directory" / "a")
    with pytest.raises(MissingObjectError):
        files.sync_directory(tmp_path / "no directory")
    with pytest.raises(MissingObjectError):
        files.make_directory(tmp_path / "no directory" / "below")
    assert files.list(tmp_path / "no directory") == []
    assert not files.exists(tmp_path / "no directory")
    assert not files.exists(tmp_path / "no directory" / "below")


def test_a_missing_object_is_damage_and_an_answer_of_the_store() -> None:
    assert issubclass(MissingObjectError, DamageError)
    assert issubclass(MissingObjectError, StoreError)


def test_rename_replaces(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"new")
    make(files, tmp_path / "b", b"old")
    reader = files.open(tmp_path / "b")
    files.rename(tmp_path / "a", tmp_path / "b")
    assert files.list(tmp_path) == ["b"]
    assert content(files, tmp_path / "b") == b"new"
    assert files.read_at(reader, 0, 10) == b"old"
    files.close(reader)


def test_rename_between_directories_and_onto_itself(files: Files, tmp_path: Path) -> None:
    files.make_directory(tmp_path / "d")
    make(files, tmp_path / "a", b"x")
    files.rename(tmp_path / "a", tmp_path / "d" / "b")
    files.rename(tmp_path / "d" / "b", tmp_path / "d" / "b")
    files.sync_directory(tmp_path / "d")
    assert files.list(tmp_path) == ["d"]
    assert files.list(tmp_path / "d") == ["b"]


def test_a_directory_keeps_its_content_over_a_rename(files: Files, tmp_path: Path) -> None:
    files.make_directory(tmp_path / "d")
    make(files, tmp_path / "d" / "a", b"x")
    files.rename(tmp_path / "d", tmp_path / "e")
    assert content(files, tmp_path / "e" / "a") == b"x"
    assert not files.exists(tmp_path / "d")


def test_an_unlinked_file_is_read_through_its_handle(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"still here")
    reader = files.open(tmp_path / "a")
    files.unlink(tmp_path / "a")
    assert not files.exists(tmp_path / "a")
    assert files.read_at(reader, 0, 100) == b"still here"
    files.close(reader)


def test_make_directory_twice_and_over_a_file(files: Files, tmp_path: Path) -> None:
    files.make_directory(tmp_path / "d")
    make(files, tmp_path / "d" / "a", b"x")
    files.make_directory(tmp_path / "d")
    assert files.list(tmp_path / "d") == ["a"]
    with pytest.raises(StoreError):
        files.make_directory(tmp_path / "d" / "a")


def test_a_file_is_no_directory_and_the_reverse(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"x")
    files.make_directory(tmp_path / "d")
    assert not files.exists(tmp_path / "a" / "b")
    with pytest.raises(StoreError):
        files.create(tmp_path / "a" / "b")
    with pytest.raises(StoreError):
        files.unlink(tmp_path / "d")


def test_list_is_sorted(files: Files, tmp_path: Path) -> None:
    for name in ("b", "a", "C", "10", "9"):
        make(files, tmp_path / name, b"")
    assert files.list(tmp_path) == ["10", "9", "C", "a", "b"]


def test_a_handle_opened_for_reading_does_not_write(files: Files, tmp_path: Path) -> None:
    make(files, tmp_path / "a", b"x")
    reader = files.open(tmp_path / "a")
    with pytest.raises(StoreError):
        files.write_at(reader, 0, [b"y"])
    files.close(reader)
    assert content(files, tmp_path / "a") == b"x"


def test_a_closed_handle_is_refused(files: Files, tmp_path: Path) -> None:
    handle = files.create(tmp_path / "a")
    files.close(handle)
    for ask in (files.close, files.size, files.sync):
        with pytest.raises(StoreError):
            ask(handle)


def test_the_lock_has_one_holder(files: Files, tmp_path: Path) -> None:
    held = files.lock(tmp_path / "lock")
    with pytest.raises(LockedError, match=r"in use|locked"):
        files.lock(tmp_path / "lock")
    files.close(held)
    again = files.lock(tmp_path / "lock")
    files.close(again)


def test_allocate_takes_the_space(files: Files, tmp_path: Path) -> None:
    files.allocate(tmp_path / "ballast", 1 << 20)
    handle = files.open(tmp_path / "ballast")
    assert files.size(handle) == 1 << 20
    files.close(handle)
    with pytest.raises(StoreError):
        files.allocate(tmp_path / "ballast", 10)
    handle = files.open(tmp_path / "ballast")
    assert files.size(handle) == 1 << 20
    files.close(handle)


def test_allocate_leaves_nothing_when_there_is_no_space(files: Files, tmp_path: Path) -> None:
    free, total = files.free_bytes(tmp_path)
    assert 0 < free <= total
    with pytest.raises(StoreError) as caught:
        files.allocate(tmp_path / "ballast", min(total * 2, (1 << 62)))
    assert isinstance(caught.value, StoreFullError)
    assert files.list(tmp_path) == []


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files = SystemFiles()
    for ask in (files.open, files.create, files.lock):
        with pytest.raises(StoreError):
            ask(tmp_path / "link")
    assert files.exists(tmp_path / "link")


def test_what_cannot_be_looked_at_is_not_taken_for_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        SystemFiles().exists(tmp_path / ("x" * 5000))


def test_files_are_private(tmp_path: Path) -> None:
    files = SystemFiles()
    files.close(files.create(tmp_path / "a"))
    files.close(files.lock(tmp_path / "lock"))
    files.make_directory(tmp_path / "d")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "lock", "d")]
    assert modes == [0o600, 0o600, 0o700]
