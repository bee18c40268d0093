"""What is timed, and how: one function per group of rows, which measures one system once."""

import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.benchmark.sources import Sources
from scripts.benchmark.systems import BackupFs, Borg, Disk, EmptyFs, MountedSystem, run

Figures = dict[str, float]
"""Row key -> what was measured."""

METADATA_FILES: Final = 4000
METADATA_DIRECTORIES: Final = 10
FSYNC_WRITES: Final = 300
SNAPSHOTS_TAKEN: Final = 10
SNAPSHOTS_UNDER_LOAD: Final = 20
DIRTY_BLOCK: Final = bytes(range(256)) * 4096
SNAPSHOT_TREES: Final = (1_000, 100_000)
BLOCK: Final = b"\xa5" * 4096


@dataclass(frozen=True)
class Target:
    """The project's figure, divided by the peer's, is at most (or for rates at least) this."""

    peer: str
    ratio: float


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    unit: str
    lower_is_better: bool = True
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a group is given: the data, a directory of its own, and how much of everything."""

    sources: Sources
    place: Path
    scale: float

    def count(self, full: int, least: int = 1) -> int:
        """So many at full scale."""
        return max(least, round(full * self.scale))


@dataclass(frozen=True)
class Group:
    """Rows that are measured together."""

    key: str
    rows: tuple[Row, ...]
    systems: Mapping[str, Callable[[Setting], Figures]]
    needs: frozenset[str] = frozenset()
    """Sources: "large", "tree"."""


def may_drop_caches() -> bool:
    """Only root may; without it "cold" is not."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def drop_caches() -> None:
    """Nothing dirty, nothing cached, of any file system."""
    os.sync()
    if may_drop_caches():
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def _warm(source: Path) -> None:
    """The source is read from memory, and no other run's dirty pages are written meanwhile."""
    buffer = bytearray(1 << 20)
    for here, _, names in os.walk(source):
        for name in names:
            with open(os.path.join(here, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    os.sync()


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def _running(system: MountedSystem) -> Iterator[None]:
    """Mounted inside; whatever happens, nothing is left of it."""
    try:
        system.start()
        yield
    finally:
        system.discard()


# --- a large copy, in and back ------------------------------------------------------------------------------------


def _copy_backupfs(setting: Setting) -> Figures:
    system = BackupFs(setting.place / "backupfs")
    with _running(system):
        _warm(setting.sources.large)
        figures = {"copy-in": _seconds(lambda: _copy_in_and_stop(system, setting.sources.large))}
        system.mount()
        system.snapshot()
        system.stop()
        drop_caches()
        system.mount()
        past = system.tree / ".snapshots" / "latest" / setting.sources.large.name
        figures["copy-back"] = _copy_back(past, setting.place)
        system.stop()
    return figures


def _copy_empty(setting: Setting) -> Figures:
    system = EmptyFs(setting.place / "emptyfs")
    with _running(system):
        _warm(setting.sources.large)
        figures = {"copy-in": _seconds(lambda: _copy_in_and_stop(system, setting.sources.large))}
        system.start()
        run(["cp", "-r", setting.sources.large, system.tree])
        drop_caches()
        figures["copy-back"] = _copy_back(system.tree / setting.sources.large.name, setting.place)
        system.stop()
    return figures


def _copy_in_and_stop(system: MountedSystem, source: Path) -> None:
    run(["cp", "-r", source, system.tree])
    system.stop()


def _copy_back(source: Path, place: Path) -> float:
    target = place / "back"
    target.mkdir()
    try:
        return _seconds(lambda: run(["cp", "-r", source, target]))
    finally:
        run(["rm", "-rf", target])


def _copy_borg(setting: Setting) -> Figures:
    borg = Borg(setting.place / "borg")
    target = setting.place / "back"
    target.mkdir()
    try:
        _warm(setting.sources.large)
        figures = {"copy-in": _seconds(borg.init) + _seconds(lambda: borg.create(setting.sources.large))}
        drop_caches()
        figures["copy-back"] = _seconds(lambda: borg.extract(target))
    finally:
        run(["rm", "-rf", target])
        borg.discard()
    return figures


# --- a tree of small files ----------------------------------------------------------------------------------------


def _tree_mounted(system: MountedSystem, source: Path) -> Figures:
    with _running(system):
        _warm(source)
        copied = _seconds(lambda: run(["cp", "-a", source, system.tree]))
        return {"tree": copied, "tree-durable": copied + _seconds(system.stop)}


def _tree_borg(setting: Setting) -> Figures:
    borg = Borg(setting.place / "borg")
    try:
        _warm(setting.sources.tree)
        return {"tree-durable": _seconds(borg.init) + _seconds(lambda: borg.create(setting.sources.tree))}
    finally:
        borg.discard()


# --- metadata -----------------------------------------------------------------------------------------------------


def _metadata(system: MountedSystem, files: int) -> Figures:
    """Operations a second, each kind over all files, one after the other."""
    with _running(system):
        directories = [f"{system.tree}/{n}" for n in range(METADATA_DIRECTORIES)]
        for directory in directories:
            os.mkdir(directory)
        paths = [f"{directories[n % METADATA_DIRECTORIES]}/file-{n}" for n in range(files)]
        kinds: tuple[tuple[str, Callable[[list[str]], None], list[str]], ...] = (
            ("create", _create_all, paths),
            ("stat-cold", _stat_all, paths),
            ("scandir", _scan_all, directories),
            ("rename", _rename_all, paths),
            ("unlink", _unlink_all, [path + ".renamed" for path in paths]),
            ("create-4k", _write_all, paths),
        )
        figures = {}
        for key, action, subjects in kinds:
            drop_caches()
            os.listdir(system.tree)  # the first request after a pause is another thing
            began = time.perf_counter()
            action(subjects)
            figures[key] = files / (time.perf_counter() - began)
        return figures


def _create_all(paths: list[str]) -> None:
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _write_all(paths: list[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, BLOCK)
        os.close(descriptor)


def _stat_all(paths: list[str]) -> None:
    for path in paths:
        os.stat(path)


def _scan_all(directories: list[str]) -> None:
    for directory in directories:
        with os.scandir(directory) as entries:
            for _ in entries:
                pass


def _rename_all(paths: list[str]) -> None:
    for path in paths:
        os.rename(path, path + ".renamed")


def _unlink_all(paths: list[str]) -> None:
    for path in paths:
        os.unlink(path)


# --- snapshots ----------------------------------------------------------------------------------------------------


def _snapshots(setting: Setting) -> Figures:
    """Milliseconds of one snapshot over the control socket, a file changed before each: the median of several."""
    figures = {}
    for files in SNAPSHOT_TREES:
        system = BackupFs(setting.place / f"snapshots-{files}")
        with _running(system):
            _many_files(system.tree, setting.count(files))
            system.snapshot()
            system.settle()
            times = []
            for n in range(2 * SNAPSHOTS_TAKEN):
                (system.tree / "changed").write_bytes(b"%d" % n)
                times.append(_seconds(system.snapshot))
            figures[f"snapshot-{files}"] = statistics.median(times) * 1000
            system.stop()
    return figures


def _many_files(place: Path, files: int) -> None:
    for n in range(files):
        directory = f"{place}/{n // 1000}"
        if n % 1000 == 0:
            os.mkdir(directory)
        os.close(os.open(f"{directory}/{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _snapshots_under_load(setting: Setting) -> Figures:
    """How long a snapshot keeps another writer waiting while 64 MiB are dirty and a copy runs, and what it costs after."""
    system = BackupFs(setting.place / "snapshots-load")
    dirty = DIRTY_BLOCK * setting.count(64)
    with _running(system):
        _warm(setting.sources.large)
        _many_files(system.tree, setting.count(1000, 10))
        held, usual = [], []
        with _copying(setting.sources.large, system.tree), _probing(system.tree) as probe:
            for n in range(SNAPSHOTS_UNDER_LOAD):
                with open(system.tree / f"dirty-{n}", "wb", buffering=0) as file:
                    file.write(dirty)
                    began = time.perf_counter()
                    system.snapshot()
                    ended = time.perf_counter()
                    held.append(probe.longest_wait(began, ended))
                    time.sleep(ended - began)
                    usual.append(probe.longest_wait(ended, time.perf_counter()))
                os.unlink(system.tree / f"dirty-{n}")
        figures = {
            "snapshot-hold": statistics.median(held) * 1000,
            "snapshot-no-hold": statistics.median(usual) * 1000,
        }
        paths = [os.path.join(here, name) for here, _, names in os.walk(system.tree / "0") for name in names]
        after, later = [], []
        for _ in range(SNAPSHOTS_TAKEN):
            system.snapshot()
            after.append(_seconds(lambda: _touch_all(paths)))
            later.append(_seconds(lambda: _touch_all(paths)))
        figures["snapshot-after"] = statistics.median(after) / statistics.median(later)
        system.stop()
    return figures


def _touch_all(paths: list[str]) -> None:
    for path in paths:
        os.utime(path)


@contextmanager
def _copying(source: Path, target: Path) -> Iterator[None]:
    """Copies `source` again and again, until the context ends."""
    script = 'while cp -r "$1" "$2/copy"; do rm -r "$2/copy"; done'
    with subprocess.Popen(["sh", "-c", script, "sh", source, target], start_new_session=True) as copier:
        try:
            yield
        finally:
            os.killpg(copier.pid, signal.SIGTERM)


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


# --- fsync --------------------------------------------------------------------------------------------------------


def _fsync(system: MountedSystem, writes: int) -> Figures:
    """Milliseconds of one append of 4 KiB with its fsync: the median of many."""
    with _running(system):
        os.sync()
        times = []
        descriptor = os.open(system.tree / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        try:
            for _ in range(writes):
                began = time.perf_counter()
                os.write(descriptor, BLOCK)
                os.fsync(descriptor)
                times.append(time.perf_counter() - began)
        finally:
            os.close(descriptor)
        return {"fsync": statistics.median(times) * 1000}


def _per_second(key: str, title: str, *targets: Target) -> Row:
    return Row(key, title, "/s", lower_is_better=False, targets=targets)


GROUPS: Final = (
    Group(
        "copy",
        (
            Row("copy-in", "copy 1 GiB in, until durable", "s", targets=(Target("borg", 1.0),)),
            Row("copy-back", "copy it back from a snapshot, caches cold", "s", targets=(Target("borg", 1.0),)),
        ),
        {"backupfs": _copy_backupfs, "empty fs": _copy_empty, "borg": _copy_borg},
        frozenset({"large"}),
    ),
    Group(
        "tree",
        (
            Row("tree", "`cp -a` of 20,000 files in 400 directories", "s", targets=(Target("empty fs", 2.0),)),
            Row("tree-durable", "the same, until durable", "s"),
        ),
        {
            "backupfs": lambda s: _tree_mounted(BackupFs(s.place / "backupfs"), s.sources.tree),
            "empty fs": lambda s: _tree_mounted(EmptyFs(s.place / "emptyfs"), s.sources.tree),
            "borg": _tree_borg,
        },
        frozenset({"tree"}),
    ),
    Group(
        "metadata",
        (
            _per_second("create", "create", Target("empty fs", 0.6)),
            _per_second("create-4k", "create and write 4 KiB"),
            _per_second("stat-cold", "stat, caches cold", Target("empty fs", 0.6)),
            _per_second("rename", "rename"),
            _per_second("unlink", "unlink"),
            _per_second("scandir", "scandir, entries"),
        ),
        {
            "backupfs": lambda s: _metadata(BackupFs(s.place / "backupfs"), s.count(METADATA_FILES, 20)),
            "empty fs": lambda s: _metadata(EmptyFs(s.place / "emptyfs"), s.count(METADATA_FILES, 20)),
        },
    ),
    Group(
        "snapshot",
        tuple(Row(f"snapshot-{files}", f"take a snapshot of {files:,} files", "ms") for files in SNAPSHOT_TREES),
        {"backupfs": _snapshots},
    ),
    Group(
        "snapshot-load",
        (
            Row("snapshot-hold", "longest wait of a writer during a snapshot, 64 MiB dirty, a copy running", "ms"),
            Row("snapshot-no-hold", "the same for as long without a snapshot", "ms"),
            Row("snapshot-after", "1,000 changes right after a snapshot, to 1,000 later", "x"),
        ),
        {"backupfs": _snapshots_under_load},
        frozenset({"large"}),
    ),
    Group(
        "fsync",
        (Row("fsync", "append 4 KiB and fsync", "ms", targets=(Target("disk", 3.0),)),),
        {
            "backupfs": lambda s: _fsync(BackupFs(s.place / "backupfs"), s.count(FSYNC_WRITES, 5)),
            "empty fs": lambda s: _fsync(EmptyFs(s.place / "emptyfs"), s.count(FSYNC_WRITES, 5)),
            "disk": lambda s: _fsync(Disk(s.place / "disk"), s.count(FSYNC_WRITES, 5)),
        },
    ),
)
