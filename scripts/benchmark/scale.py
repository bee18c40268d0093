"""As many files as are asked for: a million, unless told otherwise. And a mount that has nothing to do."""

import os
import time
from itertools import cycle, islice
from typing import Final

from scripts.benchmark.archivers import Archiver
from scripts.benchmark.figures import Figure
from scripts.benchmark.processes import sampling
from scripts.benchmark.setting import MIB, Figures, Setting, drop_caches, milliseconds, rate, seconds, valued, warm
from scripts.benchmark.snapshots import CHANGED_FILES, asking, change, holding, taking, taking_btrfs
from scripts.benchmark.sources import make_many
from scripts.benchmark.systems import BackupFs, Btrfs, FuseSystem

JOURNAL_BYTES: Final = 64 * MIB
PASSES_MAX: Final = 3
"""Over all files, to make the journal so long: with few of them a checkpoint comes before."""
TOUCHED_AT_ONCE: Final = 5000
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
        figures["many-index"] = Figure(sum(file.stat().st_blocks << 9 for file in system.index.iterdir()) / setting.files)
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
    time.sleep(setting.count(6))  # past the commit that follows what was written
    cost = system.measure(lambda: time.sleep(setting.count(IDLE_S)))  # doing nothing is what is measured
    return {"idle": valued(100 * cost.cpu_s / cost.elapsed_s, cost)}
