"""Where the two sides stand: ext4 mounted noatime, and a mount that takes snapshots and is mounted anew in a tenth of a second."""

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from tests.mounted import SNAPSHOTS, Repository, run, until
from tests.oracle.manifest import Manifest, assert_same, manifest

IMAGE_BYTES: Final = 1 << 30
SMALL: Final[Mapping[str, float]] = {
    "CHUNK_MIN_BYTES": 1024,
    "CHUNK_AVG_BYTES": 4096,
    "CHUNK_MAX_BYTES": 16_384,
    "REGION_BYTES": 64 * 1024,
    "INLINE_EXTENTS_MAX": 2,
    "REGION_EXTENTS_MAX": 8,
    "FLUSH_RUN_BYTES": 32 * 1024,
    "DIRTY_AGE_S": 0.02,
    "COMMIT_DELAY_S": 0.1,
    "INODE_CACHE_ENTRIES": 20,
    "INODE_LINKS_INLINE": 2,
    "REAP_RECORDS_PER_STEP": 2,
    "CHUNK_CACHE_BYTES": 256 * 1024,
}
"""Everything fills up soon, and is stored and committed all the time."""
RECENT: Final = 20
"""As many snapshots are compared once more when the index has been lost."""
_OPTIONS: Final = ("--every", "off", "--allow-other")


class KeptSnapshot:
    """What a snapshot of a tree has to show, for ever."""

    def __init__(self, path: Path, expected: Manifest) -> None:
        self.path = path
        self._expected = expected

    def compare(self, live: Path | None = None) -> None:
        """AssertionError when it shows something else; if `live` still is what was kept, it says which bytes differ."""
        found = manifest(self.path)
        try:
            assert_same(self._expected, found)
        except AssertionError as error:
            pairs = ((name, found.get(name)) for name in self._expected if live is not None)
            for name, entry in pairs:
                if entry is not None and entry.sha256 != self._expected[name].sha256:
                    error.add_note(_difference(os.path.join(os.fsencode(live or ""), name), os.path.join(os.fsencode(self.path), name)))
            raise


def _difference(expected: bytes, found: bytes) -> str:
    """Where two files differ; once more when the kernel has let go of what it had read of the second, which tells whose fault it is."""
    told = []
    with open(expected, "rb") as kept, open(found, "rb") as shown:
        for what in ("as it was read", "read anew"):
            was, now = os.pread(kept.fileno(), 1 << 30, 0), os.pread(shown.fileno(), 1 << 30, 0)
            places = [at for at in range(min(len(was), len(now))) if was[at] != now[at]]
            first, last = (places[0], places[-1]) if places else (0, -1)
            part = now[first : last + 1]
            told.append(
                f"{found!r} {what}: {len(was)} bytes are {len(now)}, {len(places)} differ in [{first}, {last + 1}), "
                f"{'all zero' if not any(part) else part[:16].hex()} for {was[first : first + 16].hex()}"
            )
            os.posix_fadvise(shown.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "\n".join(told)


def compare_recent(recent: Iterable[KeptSnapshot]) -> int:
    """Compare each again; how many."""
    count = 0
    for kept in recent:
        kept.compare()
        count += 1
    return count


class Ground(Protocol):
    """What is held against ext4."""

    recent: deque[KeptSnapshot]
    """The last snapshots, to be compared again later."""

    @property
    def root(self) -> Path:
        """An empty directory at the beginning."""
        ...

    def snapshot(self) -> Path:
        """Take one; where the root stands in it."""
        ...

    def remount(self) -> None:
        """Nothing of it may be open."""
        ...


class MountGround:
    """A mounted repository."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.root = repository.directory
        self.recent: deque[KeptSnapshot] = deque(maxlen=RECENT)
        self._taken = 0

    def snapshot(self) -> Path:
        """With mkdir, as anybody may do it who owns the mount."""
        self._taken += 1
        path = self.root / SNAPSHOTS / f"s{self._taken}"
        path.mkdir()
        return path

    def remount(self) -> None:
        """Clean: what was not written back by then is written back by it."""
        self._unmount()
        self._repository.mount(*_OPTIONS)

    def _unmount(self) -> None:
        """Waits while other programs of the machine look at the mount, as some do at all there are. This one must have nothing open."""

        def unmounted() -> bool:
            done = self._repository.command("umount", self.root, expect=None)
            assert not done.returncode or ("in use by" in done.stderr and f"({os.getpid()}:" not in done.stderr), done.stderr
            return not done.returncode

        until(unmounted, "others use the mount")

    def losing_index(self) -> None:
        """Mounted anew from what the repository holds alone."""
        self._unmount()
        shutil.rmtree(self._repository.index)
        self._repository.mount(*_OPTIONS)

    def end(self) -> None:
        """It is unmounted, cleanly."""
        self._unmount()

    def trouble(self) -> list[str]:
        """What the log says and should not."""
        return self._repository.trouble()


class DirectoryGround:
    """A directory, whose snapshots are copies: two of them must never differ, or the comparison is wrong."""

    def __init__(self, root: Path, copies: Path) -> None:
        self.root = root
        self.recent: deque[KeptSnapshot] = deque(maxlen=RECENT)
        self.copies = copies
        self._taken = 0

    def snapshot(self) -> Path:
        """A copy, as cp makes it."""
        self._taken += 1
        copy = self.copies / str(self._taken)
        run(["cp", "-a", self.root, copy])
        return copy

    def remount(self) -> None:
        """There is nothing to mount anew."""


@contextmanager
def ext4(place: Path) -> Iterator[Path]:
    """A small ext4 of its own, mounted as the mount is and noatime; where that cannot be mounted, as in some containers, a directory on the disk."""
    directory = place / "ext4"
    directory.mkdir()
    image = place / "ext4.image"
    if not _mounted_loop(image, directory):
        yield directory
        return
    try:
        yield directory
    finally:
        run(["umount", directory])


def is_noatime(directory: Path) -> bool:
    """Whether atimes can be compared there: backupfs behaves as noatime."""
    return bool(os.statvfs(directory).f_flag & os.ST_NOATIME)


def _mounted_loop(image: Path, directory: Path) -> bool:
    with open(image, "wb") as file:
        file.truncate(IMAGE_BYTES)
    run(["mkfs.ext4", "-q", "-O", "^has_journal", "-m", "0", image])
    return subprocess.run(["mount", "-o", "loop,noatime,nosuid,nodev", image, directory], check=False, capture_output=True).returncode == 0


@contextmanager
def mount(place: Path, limits: Mapping[str, float]) -> Iterator[MountGround]:
    """A new repository, mounted, with these limits instead of the usual ones."""
    repository = Repository(place / "r")
    repository.limit(**limits)
    try:
        repository.init()
        repository.mount(*_OPTIONS)
        ground = MountGround(repository)
        yield ground
        trouble = ground.trouble()
        assert not trouble, "\n".join(trouble)
        ground.end()
    finally:
        repository.close()
