"""As many files as are asked for: a million, unless told otherwise. Very many snapshots, bytes and calls. And a mount that has nothing to do."""

import os
import random
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Final

from scripts.benchmark.archivers import Archiver
from scripts.benchmark.figures import Figure
from scripts.benchmark.processes import resident, sampling
from scripts.benchmark.setting import MIB, Figures, Setting, drop_caches, milliseconds, rate, seconds, valued, warm
from scripts.benchmark.snapshots import CHANGED_FILES, asking, change, holding, taking, taking_btrfs
from scripts.benchmark.sources import make_many
from scripts.benchmark.systems import BackupFs, Btrfs, FuseSystem
from scripts.benchmark.writes import append

JOURNAL_BYTES: Final = 64 * MIB
PASSES_MAX: Final = 3
"""Over all files, to make the journal so long: with few of them a checkpoint comes before."""
TOUCHED_AT_ONCE: Final = 5000
SNAPSHOTS: Final = 1000
CHANGED_BETWEEN: Final = 10
"""Files, from one snapshot to the next. One of them is the same each time."""
APPENDED: Final = 100
COPIES: Final = 100
HOLES: Final = 100
HOLE_BYTES: Final = 1 << 30
CALLS: Final = 10_000_000
PERIODS: Final = 40
"""Of a day: after each of them a snapshot is taken, and memory looked at."""
KEPT: Final = 10
"""Snapshots, of those of a day."""
IDLE_S: Final = 60


def many_backupfs(system: BackupFs, setting: Setting) -> Figures:
    """Everything that is asked of a tree of so many files, one after the other."""
    place = system.tree / "many"
    with system.running():
        place.mkdir()
        made = system.measure(lambda: make_many(place, setting.files))
        system.settle()
        figures = {"many-create": rate(setting.files, made), "many-snapshot": taking(system)}
        figures["many-hold"], _ = holding(system, setting)
        older = system.snapshot()
        paths = _spread_out(setting)
        change(place, paths)
        newer = system.snapshot()
        system.settle()
        figures |= asking(system, "many", older, newer, f"many/{paths[0]}")
        system.stop()
        figures["many-repository"] = Figure(system.stored_bytes() / setting.files)
        system.mount()
        figures |= _memory(system, setting)
        system.stop()
        figures["many-index"] = Figure(_index_bytes(system) / setting.files)
        system.mount()
        figures |= _past(system, setting, paths)
        system.stop()
        figures["past-index"] = Figure(_index_bytes(system) / setting.files)
        figures |= _mounting(system, setting)
        figures["many-peak"] = Figure(max(figure.peak_bytes for figure in figures.values()) / MIB)
    return figures


def _spread_out(setting: Setting) -> list[str]:
    """The files that are changed, as many in each directory."""
    directories = (setting.files + 999) // 1000
    numbers = (1000 * (n % directories) + n // directories for n in range(min(setting.count(CHANGED_FILES, 10), setting.files)))
    return [f"{number // 1000}/{number}" for number in numbers if number < setting.files]


def _memory(system: BackupFs, setting: Setting) -> Figures:
    """Listing everything, with attributes, then a large copy."""
    warm(setting.sources.large)
    drop_caches()
    listed = system.measure(lambda: system.tool("find", system.tree / "many", "-printf", "%s"))
    with sampling([system.pid], "RssAnon") as anonymous:
        copied = system.measure(lambda: system.tool("cp", "-r", setting.sources.large, system.tree))
    return {
        "many-list": rate(setting.files, listed),
        "many-resident": valued(copied.peak_bytes / MIB, copied),
        "many-anonymous": valued(max(anonymous.greatest.values()) / MIB, copied),
    }


def _index_bytes(system: BackupFs) -> int:
    return sum(file.stat().st_blocks << 9 for file in system.index.iterdir())


def _past(system: BackupFs, setting: Setting, paths: list[str]) -> Figures:
    """A thousand snapshots, a few files changed before each; then what is asked of so many, and how long a change takes that is made durable."""
    place = system.tree / "many"
    others = cycle(paths[1:] or paths)
    for _ in range(setting.count(SNAPSHOTS, 10)):
        change(place, [paths[0], *islice(others, CHANGED_BETWEEN - 1)])
        system.snapshot()
    listed = system.measure(lambda: system.tool("ls", "-l", system.tree / ".snapshots"))
    figures = {"past-list": milliseconds(listed), "past-snapshot": taking(system)}
    older = system.snapshot()
    change(place, paths)
    newer = system.snapshot()
    system.settle()
    figures |= asking(system, "past", older, newer, f"many/{paths[0]}")
    times: list[float] = []
    appended = system.measure(lambda: times.extend(append(str(system.tree / "log"), setting.count(APPENDED, 10))))
    return {**figures, "past-fsync": valued(statistics.median(times) * 1000, appended)}


def _mounting(system: BackupFs, setting: Setting) -> Figures:
    """After a clean end, after a kill with a long journal, and without an index; and `rebuild-index`. The password's half a second is in each."""
    drop_caches()
    figures = {"many-mount": seconds(system.measure(system.mount))}
    figures["many-journal"] = Figure(_lengthen_journal(system, setting) / MIB)
    system.kill()
    drop_caches()
    figures["many-mount-killed"] = seconds(system.measure(system.mount))
    system.kill()
    system.lose_index()
    drop_caches()
    figures["many-mount-lost"] = seconds(system.measure(system.mount))
    system.stop()
    drop_caches()
    figures["many-rebuild"] = seconds(system.measure(system.rebuild_index))
    return figures


def _lengthen_journal(system: BackupFs, setting: Setting) -> int:
    """Change files until the journal since the last checkpoint is long enough, or was as long as it gets; its length."""
    paths = (f"{system.tree}/many/{n // 1000}/{n}" for n in islice(cycle(range(setting.files)), PASSES_MAX * setting.files))
    length = 0
    while length < JOURNAL_BYTES and (some := list(islice(paths, TOUCHED_AT_ONCE))):
        for path in some:
            os.utime(path)
        length = system.journal_bytes
    os.sync()
    return system.journal_bytes


def many_btrfs(system: Btrfs, setting: Setting) -> Figures:
    """Making them, and snapshots."""
    with system.running():
        made = system.measure(lambda: make_many(system.tree, setting.files))
        os.sync()
        taken = taking_btrfs(system)
        older = system.snapshot("older")
        change(system.tree, _spread_out(setting))
        newer = system.snapshot("newer")
        diff = system.measure(lambda: system.diff(older, newer))
        deleted = system.measure(lambda: system.delete(older))
        system.stop()
    return {
        "many-create": rate(setting.files, made),
        "many-snapshot": taken,
        "many-diff": milliseconds(diff),
        "many-delete": milliseconds(deleted),
    }


def many_archiver(system: Archiver, setting: Setting) -> Figures:
    """Another archive of them, when there is one, and what differs then."""
    place, changed = setting.sources.many, _spread_out(setting)
    try:
        system.init()
        system.create("older", setting.sources.many)
        change(place, changed)
        taken = system.measure(lambda: system.create("newer", setting.sources.many))
        diff = system.measure(lambda: system.diff("older", "newer"))
        deleted = system.measure(lambda: system.delete("older"))
    finally:
        for path in changed:
            os.truncate(place / path, 0)
        system.discard()
    return {"many-snapshot": milliseconds(taken), "many-diff": milliseconds(diff), "many-delete": milliseconds(deleted)}


def nominal(system: BackupFs, setting: Setting) -> Figures:
    """A file that is mostly holes, and the same gigabyte again and again, until all is durable."""

    def fill() -> None:
        with open(system.tree / "holes", "wb", buffering=0) as file:
            for n in range(setting.count(HOLES)):
                file.seek((n + 1) * HOLE_BYTES - MIB)
                file.write(random.Random(n).randbytes(MIB))
        for n in range(setting.count(COPIES)):
            system.tool("cp", "-r", setting.sources.large, system.tree / str(n))
        system.stop()

    with system.running():
        warm(setting.sources.large)
        filled = system.measure(fill)
        stored_bytes = system.stored_bytes()
    resident_mib = valued(filled.peak_bytes / MIB, filled)
    return {"nominal": seconds(filled), "nominal-repository": valued(stored_bytes / MIB, filled), "nominal-resident": resident_mib}


def day(system: BackupFs, setting: Setting) -> Figures:
    """So many calls on so many files, as programs make them all day, a snapshot now and then; how memory grows meanwhile."""
    calls = setting.count(CALLS, 100 * PERIODS)
    samples: list[tuple[float, float, float]] = []
    with system.running():
        make_many(system.tree, setting.files)
        user = _User(system.tree, setting.files)

        def work() -> None:
            kept: list[int] = []
            for period in range(1, PERIODS + 1):
                user.go_on_to(calls * period // PERIODS)
                kept.append(system.snapshot())
                if len(kept) > KEPT:
                    system.delete(kept.pop(0))
                samples.append((user.calls / 1e6, resident(system.pid, "VmRSS") / MIB, resident(system.pid, "RssAnon") / MIB))

        cost = system.measure(work)
        system.stop()
    of_last_half = samples[PERIODS // 2 :]
    millions, whole, anonymous = ([sample[n] for sample in of_last_half] for n in range(3))
    return {
        "day-rate": rate(user.calls, cost),
        "day-resident": valued(cost.peak_bytes / MIB, cost),
        "day-growth": Figure(statistics.linear_regression(millions, whole).slope),
        "day-growth-anonymous": Figure(statistics.linear_regression(millions, anonymous).slope),
    }


class _User:
    """Makes calls on files at random: writes them anew, appends, reads, looks, changes times and names, removes some and makes them again."""

    def __init__(self, place: Path, files: int) -> None:
        self.calls = 0
        self._rng = random.Random(6)
        self._place = place
        self._is_renamed = bytearray(files)
        self._kinds: tuple[Callable[[str], int], ...] = (self._write, self._append, self._read, self._look, self._touch, self._make_anew)

    def go_on_to(self, calls: int) -> None:
        """Until so many were made."""
        while self.calls < calls:
            number = self._rng.randrange(len(self._is_renamed))
            path = self._path(number)
            kind = self._rng.randrange(len(self._kinds) + 1)
            if kind < len(self._kinds):
                self.calls += self._kinds[kind](path)
            else:
                self._is_renamed[number] ^= 1
                os.rename(path, self._path(number))
                self.calls += 1

    def _path(self, number: int) -> str:
        return f"{self._place}/{number // 1000}/{number}{'-renamed' if self._is_renamed[number] else ''}"

    def _write(self, path: str) -> int:
        return self._open(path, os.O_WRONLY, lambda file: os.pwrite(file, self._rng.randbytes(100), 0))

    def _append(self, path: str) -> int:
        return self._open(path, os.O_WRONLY | os.O_APPEND, lambda file: os.write(file, b"one more line\n"))

    def _read(self, path: str) -> int:
        return self._open(path, os.O_RDONLY, lambda file: os.read(file, 4096))

    @staticmethod
    def _open(path: str, flags: int, use: Callable[[int], object]) -> int:
        file = os.open(path, flags)
        use(file)
        os.close(file)
        return 3

    @staticmethod
    def _look(path: str) -> int:
        os.stat(path)
        return 1

    @staticmethod
    def _touch(path: str) -> int:
        os.utime(path)
        return 1

    @staticmethod
    def _make_anew(path: str) -> int:
        os.unlink(path)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        return 3


def idle_backupfs(system: BackupFs, setting: Setting) -> Figures:
    """With the schedule that a user has, some files in it."""
    with system.running():
        make_many(system.tree, setting.count(1000, 10))
        system.stop()
        system.mount_with_defaults()
        figure = _idle(system, setting)
        system.stop()
    return figure


def idle_fuse(system: FuseSystem, setting: Setting) -> Figures:
    """The same."""
    with system.running():
        make_many(system.tree, setting.count(1000, 10))
        figure = _idle(system, setting)
        system.stop()
    return figure


def _idle(system: BackupFs | FuseSystem, setting: Setting) -> Figures:
    os.sync()
    # Past what follows what was written: the commit, the index, the look for a checkpoint. Not every system can be asked whether it is at rest.
    time.sleep(setting.count(20))
    cost = system.measure(lambda: time.sleep(setting.count(IDLE_S)))  # doing nothing is what is measured
    return {"idle": valued(100 * cost.cpu_s / cost.elapsed_s, cost)}
