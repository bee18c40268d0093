"""Random operations on one file: after each, the file is what the same done to bytes in memory has made of those.

`--seed` replays a history, `--scale 10` makes it a million operations (`-o faulthandler_timeout=3600` then, on a machine with other things to do).
"""

import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final, Protocol

import pytest

from backupfs import limits
from backupfs.limits import KIB, MIB
from tests import mounted
from tests.fuse.conftest import NATIVE
from tests.mounted import SNAPSHOTS, Repository, workspace
from tests.posix.fsx import PAGE, DifferenceError, Exercise, World

pytestmark = [pytest.mark.fuse, pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse cannot be opened here")]

OPERATIONS: Final = 50_000
"""Of each of the two, in CI."""
GC_EVERY: Final = 20
"""Snapshots that are deleted until what only they hold is purged and collected at once, beside the operations."""

SMALL: Final = {
    "REGION_BYTES": 256 * KIB, "REGION_EXTENTS_MAX": 24, "FLUSH_RUN_BYTES": 128 * KIB, "FLUSH_JOB_BYTES": 256 * KIB, "DIRTY_BYTES_MAX": 3 * MIB,
    "TAIL_BLOBS_MAX": 3, "DIRTY_AGE_S": 0.05, "COMMIT_DELAY_S": 0.2, "CHUNK_CACHE_BYTES": 1 * MIB, "PACK_TARGET_BYTES": 2 * MIB,
    "PACK_UNSYNCED_BYTES": 512 * KIB, "READ_AHEAD_BYTES": 512 * KIB, "BATCH_RECORDS": 64, "CHECKPOINT_MIN_BYTES": 256 * KIB,
    "CHECKPOINT_LOOK_S": 0.5,
}  # fmt: skip
"""Limits that a file of a few MiB crosses all the time."""
PAGES: Final = (4 * KIB, 64 * KIB, 128 * KIB)
SIZES: Final = {
    "limits-as-they-are": (
        {},
        limits.REGION_BYTES + 2 * MIB,
        (*PAGES, limits.CHUNK_AVG_BYTES, limits.CHUNK_MAX_BYTES, 2 * MIB, limits.FLUSH_RUN_BYTES, limits.REGION_BYTES),
    ),
    "small-limits": (SMALL, 3 * MIB, (*PAGES, 256 * KIB, 512 * KIB, 768 * KIB, MIB, 2 * MIB)),
}


class Ending(World, Protocol):
    """A file system that is looked at once more at the end."""

    def end(self) -> None: ...


class Disk:
    """A directory on the disk: no snapshots, nothing to mount."""

    def end(self) -> None:
        return

    def snapshot(self) -> Path | None:
        return None

    def delete(self, snapshot: Path) -> None:
        raise AssertionError("there are no snapshots")

    def remount(self) -> None:
        return

    def forget(self) -> None:
        drop_caches()


class Mount:
    """The root of a mount of its own."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._names = (f"s{n}" for n in count())
        self._deleted = 0

    def snapshot(self) -> Path | None:
        made = self._repository.directory / SNAPSHOTS / next(self._names)
        made.mkdir()
        return made

    def delete(self, snapshot: Path) -> None:
        snapshot.rmdir()
        self._deleted += 1
        if self._deleted % GC_EVERY == 0:
            self._repository.command("gc", self._repository.directory, "--now")

    def remount(self) -> None:
        self._repository.remount("--every", "off")

    def forget(self) -> None:
        drop_caches()

    def end(self) -> None:
        """Without its index, too, everything is as it was."""
        self._repository.end_without_index()


def drop_caches() -> None:
    """Everything clean that the kernel holds of any file; only root may."""
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")


@contextmanager
def world(small: dict[str, float]) -> Iterator[tuple[Ending, Path]]:
    """A file system, and the directory on it that its snapshots show."""
    with workspace() as place:
        if NATIVE:
            yield Disk(), place
            return
        with mounted.repository(place / "r", mounted=False) as repository:
            repository.limit(**small)
            repository.mount("--every", "off")
            yield Mount(repository), repository.directory


@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
def test_a_file_is_what_was_done_to_it(sizes: str, seed: int, scale: float) -> None:
    small, size_max_bytes, borders = SIZES[sizes]
    with world(small) as (around, directory):
        exercise = Exercise(directory / "file", seed, around, size_max_bytes=size_max_bytes, borders=borders)
        try:
            exercise.run(int(OPERATIONS * scale))
            exercise.remount()
        finally:
            exercise.close()
        around.end()


def test_what_has_gone_wrong_is_shown(tmp_path: Path, seed: int) -> None:
    """An exercise that would not see a changed byte would be worth nothing."""
    exercise = Exercise(tmp_path / "file", seed, Disk(), size_max_bytes=MIB, borders=PAGES)
    try:
        exercise.run(300)
        exercise.write_much()
        with open(tmp_path / "file", "r+b", buffering=0) as file:
            at = len(exercise.model) // 2
            os.pwrite(file.fileno(), bytes([exercise.model[at] ^ 0x5A]), at)
        with pytest.raises(DifferenceError, match=rf"they differ in \[{at}, {at + 1}\)") as shown:
            exercise.compare()
        assert " write much " in str(shown.value)
        os.truncate(tmp_path / "file", at)
        with pytest.raises(DifferenceError, match=f"stat says {at} bytes"):
            exercise.look()
    finally:
        exercise.close()


def test_a_seed_is_a_history(tmp_path: Path, seed: int) -> None:
    models = []
    for name in ("one", "two"):
        exercise = Exercise(tmp_path / name, seed, Disk(), size_max_bytes=MIB, borders=PAGES)
        exercise.run(300)
        exercise.close()
        models.append(exercise.model)
    assert models[0] == models[1]


def polluted(directory: Path, grow: Callable[[int], object]) -> tuple[bytes, bytes]:
    """Bytes that were written through a mapping behind the end of a file, after the file has grown over them: at once, and once more from what
    is stored.
    """
    path = directory / "polluted"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * 2 * PAGE)
        with mmap.mmap(file.fileno(), 2 * PAGE) as pages:
            file.truncate(PAGE + 100)
            pages[PAGE + 200 : PAGE + 210] = b"polluting!"
            grow(file.fileno())
            at_once = os.pread(file.fileno(), 10, PAGE + 200)
            os.fsync(file.fileno())
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return at_once, os.pread(file.fileno(), 10, PAGE + 200)


def synced_and_grown(descriptor: int) -> None:
    os.fsync(descriptor)
    os.ftruncate(descriptor, 2 * PAGE)


def test_unlike_ext4_bytes_mapped_behind_the_end_stay() -> None:
    """What a mapping writes behind the end of the file, in its last page, is nobody's and must be gone when the file grows. The kernel does not
    clear that part of the page for a FUSE file, and no request tells of it: it goes only with the page. Growing after an fsync is right.
    """
    with world({}) as (_, directory):
        gone = (bytes(10), bytes(10))
        assert polluted(directory, synced_and_grown) == gone
        may_stay = {gone} if NATIVE else {gone, (b"polluting!", b"polluting!")}
        assert polluted(directory, lambda fd: os.ftruncate(fd, 2 * PAGE)) in may_stay
        assert polluted(directory, lambda fd: os.pwrite(fd, b"far", 5 * PAGE)) in may_stay
