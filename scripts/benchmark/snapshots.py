"""Snapshots: taking them, what that does to writers, and what is asked about them afterwards."""

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final

from scripts.benchmark.archivers import Archiver, Restic
from scripts.benchmark.figures import Figure
from scripts.benchmark.setting import Figures, Setting, both, milliseconds, valued, warm
from scripts.benchmark.sources import make_many
from scripts.benchmark.systems import BackupFs, Btrfs

TAKEN: Final = 20
TAKEN_UNDER_LOAD: Final = 20
TAKEN_BEFORE_CHANGES: Final = 10
FEW_FILES: Final = 1000
CHANGED_FILES: Final = 1000
DIRTY_BLOCK: Final = bytes(range(256)) * 4096


def of_few(system: BackupFs, setting: Setting) -> Figures:
    """Of a thousand files."""
    with system.running():
        make_many(system.tree, setting.count(FEW_FILES))
        figure = taking(system)
        system.stop()
    return {"snapshot-few": figure}


def taking(system: BackupFs) -> Figure:
    """Milliseconds of one snapshot, a file changed before each: the median of several. What it costs is that of all."""
    system.snapshot()
    system.settle()
    times: list[float] = []

    def take() -> None:
        for n in range(TAKEN):
            (system.tree / "changed").write_bytes(b"%d" % n)
            times.append(_seconds(system.snapshot))

    cost = system.measure(take)
    return valued(statistics.median(times) * 1000, cost)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def taking_btrfs(system: Btrfs) -> Figure:
    """The same."""
    times: list[float] = []

    def take() -> None:
        for n in range(TAKEN):
            (system.tree / "changed").write_bytes(b"%d" % n)
            times.append(_seconds(lambda n=n: system.snapshot(f"taken-{n}")))  # type: ignore[misc]

    cost = system.measure(take)
    return valued(statistics.median(times) * 1000, cost)


# --- writers meanwhile --------------------------------------------------------------------------------------------


def under_load(system: BackupFs, setting: Setting) -> Figures:
    """How long a snapshot keeps another writer waiting while 64 MiB are dirty and a copy runs, and what it costs after."""
    with system.running():
        warm(setting.sources.large)
        make_many(system.tree, setting.count(FEW_FILES, 10))
        script = 'while cp -r "$1" "$2/copy"; do rm -r "$2/copy"; done'
        with setting.processes.beside(["sh", "-c", script, "sh", setting.sources.large, system.tree]):
            held, usual = holding(system, setting)
        paths = [os.path.join(here, name) for here, _, names in os.walk(system.tree / "0") for name in names]
        after, later = [], []
        for _ in range(TAKEN_BEFORE_CHANGES):
            system.snapshot()
            after.append(_seconds(lambda: _touch(paths)))
            later.append(_seconds(lambda: _touch(paths)))
        system.stop()
    ratio = Figure(statistics.median(after) / statistics.median(later))
    return {"snapshot-hold": held, "snapshot-no-hold": usual, "snapshot-after": ratio}


def _touch(paths: list[str]) -> None:
    for path in paths:
        os.utime(path)


def holding(system: BackupFs, setting: Setting) -> tuple[Figure, Figure]:
    """The longest that a writer waited during a snapshot before which 64 MiB were written, and for as long without one: medians of several, in
    milliseconds.
    """
    dirty = DIRTY_BLOCK * setting.count(64)
    held, usual = [], []

    def take() -> None:
        with _probing(system.tree) as probe:
            for n in range(TAKEN_UNDER_LOAD):
                path = system.tree / f"dirty-{n}"
                with open(path, "wb", buffering=0) as file:
                    file.write(dirty)
                    began = time.perf_counter()
                    system.snapshot()
                    ended = time.perf_counter()
                    held.append(probe.longest_wait(began, ended))
                    time.sleep(ended - began)  # as long as the snapshot took: the time it is compared with
                    usual.append(probe.longest_wait(ended, time.perf_counter()))
                os.unlink(path)

    cost = system.measure(take)
    return valued(statistics.median(held) * 1000, cost), valued(statistics.median(usual) * 1000, cost)


class _Probe:
    """A writer that creates and removes a file without end and notes how long each took."""

    def __init__(self, place: Path) -> None:
        self._path = str(place / "probe")
        self._waits: list[tuple[float, float]] = []
        self._stop = False

    def run(self) -> None:
        while not self._stop:
            began = time.perf_counter()
            os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o644))
            os.unlink(self._path)
            self._waits.append((began, time.perf_counter()))

    def stop(self) -> None:
        self._stop = True

    def longest_wait(self, began: float, ended: float) -> float:
        """Of the operations that overlap with that time."""
        return max((until - since for since, until in list(self._waits) if until >= began and since <= ended), default=0)


@contextmanager
def _probing(place: Path) -> Iterator[_Probe]:
    probe = _Probe(place)
    thread = threading.Thread(target=probe.run)
    thread.start()
    try:
        yield probe
    finally:
        probe.stop()
        thread.join()


# --- the past -----------------------------------------------------------------------------------------------------


def change(place: Path, paths: Sequence[str]) -> None:
    """Append a line to each of these files."""
    for path in paths:
        with open(place / path, "ab", buffering=0) as file:
            file.write(b"one more line\n")


def spread_out(place: Path, files: int) -> list[str]:
    """So many files below a place: the first of each directory, then the second, and so on."""
    listings = [[os.path.relpath(os.path.join(here, name), place) for name in sorted(names)] for here, _, names in sorted(os.walk(place)) if names]
    in_turn = (listing[n] for n in range(max(map(len, listings))) for listing in listings if n < len(listing))
    return list(islice(in_turn, files))


def asking(system: BackupFs, prefix: str, older: int, newer: int, path: str) -> Figures:
    """About two snapshots, and a file that is not the same in them; then the older one is deleted."""
    figures = {
        f"{prefix}-diff": milliseconds(system.measure(lambda: system.diff(older, newer))),
        f"{prefix}-versions": milliseconds(system.measure(lambda: system.versions(path))),
    }
    deleted = system.measure(lambda: system.delete(older))
    collected = system.measure(system.collect)
    return {**figures, f"{prefix}-delete": milliseconds(deleted), f"{prefix}-collect": milliseconds(both(deleted, collected))}


def history_backupfs(system: BackupFs, setting: Setting) -> Figures:
    """A tree of 20,000 files, of which 1,000 change between two snapshots."""
    source = setting.sources.tree
    with system.running():
        system.tool("cp", "-a", source, system.tree)
        taken = taking(system)
        older = system.snapshot()
        paths = spread_out(source, setting.count(CHANGED_FILES, 10))
        change(system.tree / source.name, paths)
        newer = system.snapshot()
        system.settle()
        figures = asking(system, "history", older, newer, f"{source.name}/{paths[0]}")
        system.stop()
    return {"snapshot-tree": taken, **figures}


def history_btrfs(system: Btrfs, setting: Setting) -> Figures:
    """The same."""
    source = setting.sources.tree
    with system.running():
        system.tool("cp", "-a", source, system.tree)
        os.sync()
        taken = taking_btrfs(system)
        older = system.snapshot("older")
        change(system.tree / source.name, spread_out(source, setting.count(CHANGED_FILES, 10)))
        newer = system.snapshot("newer")
        figures = {"history-diff": milliseconds(system.measure(lambda: system.diff(older, newer)))}
        deleted = system.measure(lambda: system.delete(older))
        collected = system.measure(system.collect)
        system.stop()
    figures |= {"history-delete": milliseconds(deleted), "history-collect": milliseconds(both(deleted, collected))}
    return {"snapshot-tree": taken, **figures}


def history_archiver(system: Archiver, setting: Setting) -> Figures:
    """The same, by the commands for it."""
    source = setting.place / "tree"
    try:
        system.tool("cp", "-a", setting.sources.tree, source)
        system.init()
        system.create("first", source)
        (source / "changed").write_bytes(b"0")
        taken = system.measure(lambda: system.create("older", source))
        paths = spread_out(source, setting.count(CHANGED_FILES, 10))
        change(source, paths)
        system.create("newer", source)
        figures = {"history-diff": milliseconds(system.measure(lambda: system.diff("older", "newer")))}
        if isinstance(system, Restic):
            figures["history-versions"] = milliseconds(system.measure(lambda: system.call("restic", "find", f"*/{paths[0]}")))
        deleted = system.measure(lambda: system.delete("older"))
        collected = system.measure(system.collect)
    finally:
        system.discard()
        system.tool("rm", "-rf", source)
    figures |= {"history-delete": milliseconds(deleted), "history-collect": milliseconds(both(deleted, collected))}
    return {"snapshot-tree": milliseconds(taken), **figures}
