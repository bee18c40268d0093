"""The simulated disk follows its fault model: what may be lost can be, what may not never is."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.errors import MissingObjectError, StoreError, StoreFullError
from tests.crash.disk import Image, SimulatedDisk
from tests.crash.faults import FaultyFiles
from tests.crash.power_cut import SECTOR_BYTES, Fate, Mode, PowerCut, crash_states, sync_sites

TRIES = 400


def contents(image: Image) -> dict[str, bytes]:
    disk = SimulatedDisk(image)
    found = {}
    for path in image.listing():
        handle = disk.open(Path(path))
        found[path] = disk.read_at(handle, 0, 1 << 30)
    return found


def images(disk: SimulatedDisk, mode: Mode, position: int | None = None) -> list[dict[str, bytes]]:
    """What may be on the disk at the end of its log, or at a position: all fates, many draws."""
    cut = PowerCut(disk.base, disk.log, 0)
    cut.advance(len(disk.log) if position is None else position)
    found = [contents(cut.cut(random.Random(n), mode, Fate.DRAWN)) for n in range(TRIES)]
    return [*found, *(contents(cut.cut(random.Random(0), mode, fate)) for fate in (Fate.LOST, Fate.KEPT))]


def write(disk: SimulatedDisk, path: str, data: bytes, *, sync: bool = False, offset: int = 0) -> None:
    handle = disk.create(Path(path))
    disk.write_at(handle, offset, [data])
    if sync:
        disk.sync(handle)
    disk.close(handle)


@pytest.mark.parametrize("mode", Mode)
def test_what_was_synced_is_there(mode: Mode) -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"kept", sync=True)
    disk.sync_directory(Path("/"))
    write(disk, "/b", b"perhaps")
    assert all(image["/a"] == b"kept" for image in images(disk, mode))


@pytest.mark.parametrize("mode", Mode)
def test_an_unsynced_name_may_be_lost_although_its_file_was_synced(mode: Mode) -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"x", sync=True)
    assert {tuple(image) for image in images(disk, mode)} == {(), ("/a",)}
    assert all(image.get("/a", b"x") == b"x" for image in images(disk, mode))


def test_unsynced_contents_tear_at_sectors() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"o" * 4 * SECTOR_BYTES, sync=True)
    disk.sync_directory(Path("/"))
    later = SimulatedDisk(disk.image())
    handle = later.lock(Path("/a"))
    later.write_at(handle, 0, [b"n" * 4 * SECTOR_BYTES])
    found = {image["/a"] for image in images(later, Mode.UNORDERED)}
    sectors = {tuple(data[at : at + SECTOR_BYTES] for at in range(0, len(data), SECTOR_BYTES)) for data in found}
    assert len(sectors) == 16
    assert {sector for state in sectors for sector in state} == {b"o" * SECTOR_BYTES, b"n" * SECTOR_BYTES}


def test_a_sector_written_twice_may_hold_either_write() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"0" * 600, sync=True)
    disk.sync_directory(Path("/"))
    later = SimulatedDisk(disk.image())
    handle = later.lock(Path("/a"))
    later.write_at(handle, 100, [b"1"])
    later.write_at(handle, 200, [b"2"])
    found = {(image["/a"][100:101], image["/a"][200:201]) for image in images(later, Mode.ORDERED)}
    assert found == {(b"0", b"0"), (b"1", b"0"), (b"1", b"2")}


def test_lengths() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"k" * 100, sync=True)
    disk.sync_directory(Path("/"))
    later = SimulatedDisk(disk.image())
    handle = later.lock(Path("/a"))
    later.write_at(handle, 100, [b"m" * 1000])
    later.write_at(handle, 1100, [b"n" * 1000])
    ordered = {image["/a"] for image in images(later, Mode.ORDERED)}
    whole = b"k" * 100 + b"m" * 1000 + b"n" * 1000
    assert {len(data) for data in ordered} == {100, 512, 1024, 1100, 1536, 2048, 2100}
    assert all(whole.startswith(data) for data in ordered)
    unordered = {image["/a"] for image in images(later, Mode.UNORDERED)}
    assert all(100 <= len(data) <= 2100 and data.startswith(b"k" * 100) for data in unordered)
    assert any(data[512:1024] == bytes(512) for data in unordered)
    assert any(set(data[512:1024]) - set(b"\0mn") for data in unordered)


@pytest.mark.parametrize("mode", Mode)
def test_a_replacing_rename_is_old_or_new(mode: Mode) -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"old", sync=True)
    write(disk, "/b", b"new", sync=True)
    disk.sync_directory(Path("/"))
    disk.rename(Path("/b"), Path("/a"))
    found = {tuple(sorted(image.items())) for image in images(disk, mode)}
    assert found == {(("/a", b"old"), ("/b", b"new")), (("/a", b"new"),)}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("synced", ["/d", "/e"])
def test_a_rename_between_directories_is_made_durable_by_either(mode: Mode, synced: str) -> None:
    disk = SimulatedDisk()
    for directory in ("/d", "/e"):
        disk.make_directory(Path(directory))
    disk.sync_directory(Path("/"))
    write(disk, "/d/a", b"x", sync=True)
    disk.sync_directory(Path("/d"))
    disk.rename(Path("/d/a"), Path("/e/b"))
    assert {tuple(image) for image in images(disk, mode)} == {("/d/a",), ("/e/b",)}
    disk.sync_directory(Path(synced))
    assert {tuple(image) for image in images(disk, mode)} == {("/e/b",)}


def test_ordered_names_arrive_in_order_and_unordered_ones_do_not() -> None:
    disk = SimulatedDisk()
    for name in ("/1", "/2", "/3"):
        write(disk, name, b"")
    assert {tuple(image) for image in images(disk, Mode.ORDERED)} == {(), ("/1",), ("/1", "/2"), ("/1", "/2", "/3")}
    assert len({tuple(image) for image in images(disk, Mode.UNORDERED)}) == 8


def test_a_directory_that_was_not_synced_takes_all_below_it_along() -> None:
    disk = SimulatedDisk()
    disk.make_directory(Path("/d"))
    write(disk, "/d/a", b"x", sync=True)
    disk.sync_directory(Path("/d"))
    assert {tuple(image) for image in images(disk, Mode.UNORDERED)} == {(), ("/d/a",)}
    disk.sync_directory(Path("/"))
    assert {tuple(image) for image in images(disk, Mode.UNORDERED)} == {("/d/a",)}


@pytest.mark.parametrize("mode", Mode)
def test_an_unlink_may_be_undone_and_a_synced_one_may_not(mode: Mode) -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"x", sync=True)
    disk.sync_directory(Path("/"))
    disk.unlink(Path("/a"))
    assert {tuple(image) for image in images(disk, mode)} == {(), ("/a",)}
    disk.sync_directory(Path("/"))
    assert {tuple(image) for image in images(disk, mode)} == {()}


def test_positions_look_back() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"x", sync=True)
    before = len(disk.log)
    disk.sync_directory(Path("/"))
    assert len({tuple(image) for image in images(disk, Mode.UNORDERED, before)}) == 2
    assert len({tuple(image) for image in images(disk, Mode.UNORDERED, before + 1)}) == 1


def test_a_failed_sync_loses_what_a_later_one_does_not_bring_back() -> None:
    disk = SimulatedDisk()
    handle = disk.create(Path("/a"))
    disk.sync_directory(Path("/"))
    disk.write_at(handle, 0, [b"x" * 40 * SECTOR_BYTES])
    with pytest.raises(StoreError):
        disk.fail_sync(handle)
    disk.sync(handle)
    assert disk.read_at(handle, 0, 40 * SECTOR_BYTES) == b"x" * 40 * SECTOR_BYTES
    disk.write_at(handle, 3 * SECTOR_BYTES, [b"y"])
    disk.sync(handle)
    results = set()
    for seed in range(40):
        cut = PowerCut(disk.base, disk.log, seed)
        cut.advance(len(disk.log))
        results.add(contents(cut.cut(random.Random(0), Mode.UNORDERED, Fate.KEPT))["/a"])
    assert all(result[3 * SECTOR_BYTES : 4 * SECTOR_BYTES] == b"y" + b"x" * 511 for result in results)
    assert any(bytes(SECTOR_BYTES) in result for result in results)


def test_the_next_process_sees_what_the_image_holds_and_does_not_change_it() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"x", sync=True)
    disk.sync_directory(Path("/"))
    image = disk.image()
    again = SimulatedDisk(image)
    handle = again.lock(Path("/a"))
    again.write_at(handle, 0, [b"changed"])
    again.unlink(Path("/a"))
    assert contents(image) == {"/a": b"x"}
    assert again.image().listing() == {}


def test_an_ignored_site_takes_its_syncs_out() -> None:
    disk = SimulatedDisk()
    write(disk, "/a", b"x", sync=True)
    disk.sync_directory(Path("/"))
    (site,) = sync_sites(disk.log)
    assert site == "tests"
    assert sync_sites(disk.log)[site] == [3, 4]
    positions = [len(disk.log)]
    assert [contents(s.image) for s in crash_states(disk, 0, positions, 9)] == [{"/a": b"x"}]
    ignored = [contents(s.image) for s in crash_states(disk, 0, positions, 99, ignored_site=site)]
    assert {} in ignored
    assert {"/a": b""} in ignored


def test_states_are_the_same_for_the_same_seed_and_differ_among_themselves() -> None:
    disk = SimulatedDisk()
    for n in range(4):
        write(disk, f"/{n}", b"x" * 1500, sync=n % 2 == 0)
    positions = range(len(disk.log) + 1)
    first = [(s.name, s.image.fingerprint()) for s in crash_states(disk, 5, positions, 20)]
    assert first == [(s.name, s.image.fingerprint()) for s in crash_states(disk, 5, positions, 20)]
    assert first != [(s.name, s.image.fingerprint()) for s in crash_states(disk, 6, positions, 20)]
    everything = [s.image.fingerprint() for s in crash_states(disk, 5, positions, 20, same=lambda _: None)]
    assert len(everything) == len(set(everything)) > 30


def test_a_full_disk_takes_what_fits_and_gives_it_back() -> None:
    disk = SimulatedDisk(capacity_bytes=1000)
    handle = disk.create(Path("/a"))
    disk.write_at(handle, 0, [b"x" * 900])
    with pytest.raises(StoreFullError):
        disk.write_at(handle, 900, [b"y" * 200])
    assert disk.size(handle) == 1000
    disk.write_at(handle, 0, [b"z" * 1000])
    disk.close(handle)
    disk.unlink(Path("/a"))
    assert disk.free_bytes(Path("/")) == (1000, 1000)


@pytest.mark.parametrize(
    ("operation", "ask"),
    [
        ("create", lambda files, handle: files.create(Path("/new"))),
        ("open", lambda files, handle: files.open(Path("/a"))),
        ("write_at", lambda files, handle: files.write_at(handle, 0, [b"12345678"])),
        ("read_at", lambda files, handle: files.read_at(handle, 0, 1)),
        ("size", lambda files, handle: files.size(handle)),
        ("sync", lambda files, handle: files.sync(handle)),
        ("sync_directory", lambda files, handle: files.sync_directory(Path("/"))),
        ("rename", lambda files, handle: files.rename(Path("/a"), Path("/b"))),
        ("unlink", lambda files, handle: files.unlink(Path("/a"))),
        ("make_directory", lambda files, handle: files.make_directory(Path("/d"))),
        ("list", lambda files, handle: files.list(Path("/"))),
        ("exists", lambda files, handle: files.exists(Path("/a"))),
        ("lock", lambda files, handle: files.lock(Path("/lock"))),
        ("allocate", lambda files, handle: files.allocate(Path("/ballast"), 10)),
    ],
)
def test_every_operation_can_fail(operation: str, ask: Callable[[FaultyFiles, int], object]) -> None:
    disk = SimulatedDisk()
    handle = disk.create(Path("/a"))
    files = FaultyFiles(disk, lambda name, number: errno.EIO if (name, number) == (operation, 1) else None)
    with pytest.raises(StoreError) as caught:
        ask(files, handle)
    assert not isinstance(caught.value, StoreFullError | MissingObjectError)
    assert disk.list(Path("/")) == ["a"]
    assert disk.size(handle) == (4 if operation == "write_at" else 0)
    assert files.calls == [operation]
    ask(files, handle)
