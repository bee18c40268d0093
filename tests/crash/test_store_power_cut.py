"""The local store over power cuts: an object is whole or absent, and what was answered stays; each sync is needed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from backupfs.errors import MissingObjectError
from backupfs.stores.local import LocalStore
from tests.crash.disk import SimulatedDisk
from tests.crash.power_cut import crash_states, sync_sites

ROOT = Path("/repository")
OBJECTS = {
    "config": b"c" * 256,
    "keys/one": b"k" * 512,
    "packs/ab/ab01": b"p" * 5000,
    "packs/ab/ab02": b"q" * 100,
    "journal/1": b"j" * 4096,
}


@dataclass(frozen=True)
class Answered:
    """From `position` on the object is there, or is not."""

    position: int
    begun: int
    name: str
    is_there: bool


def history() -> tuple[SimulatedDisk, list[Answered]]:
    disk = SimulatedDisk()
    disk.make_directory(ROOT)
    disk.sync_directory(ROOT.parent)
    disk.make_directory(ROOT / "open")
    disk.sync_directory(ROOT)
    store = LocalStore(ROOT, disk)
    answered = []
    for name, data in OBJECTS.items():
        begun = len(disk.log)
        if name.startswith("packs/"):
            handle = disk.create(ROOT / "open" / "pack")
            disk.write_at(handle, 0, [data])
            disk.sync(handle)
            disk.sync_directory(ROOT / "open")
            disk.close(handle)
            begun = len(disk.log)
            store.put_file(name, ROOT / "open" / "pack")
        else:
            store.put(name, data)
        answered.append(Answered(len(disk.log), begun, name, is_there=True))
    for name in ("packs/ab/ab01", "keys/one"):
        begun = len(disk.log)
        store.delete(name)
        answered.append(Answered(len(disk.log), begun, name, is_there=False))
    return disk, answered


def faults(disk: SimulatedDisk, answered: list[Answered], seed: int, tries: int, ignored_site: str | None = None) -> Iterator[str]:
    for state in crash_states(disk, seed, range(4, len(disk.log) + 1), tries, ignored_site=ignored_site):
        store = LocalStore(ROOT, state.disk())
        for name, data in OBJECTS.items():
            past = [a.is_there for a in answered if a.name == name and a.position <= state.position]
            begun = [a.is_there for a in answered if a.name == name and a.begun < state.position < a.position]
            allowed = {*past[-1:], *begun} | ({False} if not past else set())
            try:
                found = store.get(name)
            except MissingObjectError:
                if False not in allowed:
                    yield f"{state.name}: {name} is gone"
                continue
            if True not in allowed:
                yield f"{state.name}: {name} is back"
            elif found != data:
                yield f"{state.name}: {name} is not whole"


def test_objects_survive(seed: int, scale: float) -> None:
    disk, answered = history()
    assert list(faults(disk, answered, seed, int(40 * scale))) == []


def test_every_sync_is_needed(seed: int) -> None:
    disk, answered = history()
    sites = [site for site in sync_sites(disk.log) if site.startswith("stores/")]
    assert len(sites) == 5
    for site in sites:
        assert next(faults(disk, answered, seed, 40, site), None), f"nothing is lost without the sync at {site}"


def test_a_put_cut_short_can_be_repeated(seed: int) -> None:
    disk, _ = history()
    for state in crash_states(disk, seed, range(4, len(disk.log) + 1), 10):
        store = LocalStore(ROOT, state.disk())
        for name, data in OBJECTS.items():
            try:
                store.size(name)
            except MissingObjectError:
                store.put(name, data)
            assert store.get(name) == data
