"""kill -9 while checkpoints are written and the journal is cut behind them: mounted again, with the index or without, everything is there.

The process goes by limits so small that checkpoints come several times a second. The test watches the directory from outside and stops the process
(SIGSTOP) as soon as the files are in the state that is wanted; if they still are when it stands still, it is killed like that, and otherwise it goes
on. A stopped process that is killed never runs again, so what it leaves is what the same kill at that moment leaves.

`--scale 7.5` kills 30 times.
"""

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from backupfs.limits import KIB
from tests.decoder import checkpoints
from tests.decoder.audit import audit
from tests.decoder.sealing import Keys
from tests.decoder.store import Store, open_store
from tests.fuse.promises import Promises, Writer
from tests.mounted import HANG_S, SNAPSHOTS, Repository, until
from tests.oracle.manifest import Manifest, assert_same, manifest

pytestmark = pytest.mark.crash

LIMITS: Final = {
    "CHECKPOINT_MIN_BYTES": 64 * KIB,
    "CHECKPOINT_LOOK_S": 0.02,
    "CHECKPOINT_PART_BYTES": 4 * KIB,
    "JOURNAL_SEGMENT_TARGET_BYTES": 8 * KIB,
    "RESERVE_BYTES": KIB * KIB,
}
"""A checkpoint has several parts and lets go of several segments."""
PARTS_MAX: Final = 4
LIVES_KEPT: Final = 2
_PART: Final = "[0-9a-f]{16}-[0-9a-f]{32}"


class Place(StrEnum):
    """Where in the making of a checkpoint a kill comes, told from what it leaves."""

    PARTS = "parts of a new checkpoint are there, one more is being written, its manifest is not there"
    MANIFEST = "its manifest is there, and nothing has gone yet"
    OLD_PARTS = "the manifest of the oldest has gone, parts of it have not"
    JOURNAL = "some of the journal that nobody needs any more has gone, some has not"


@dataclass(frozen=True, slots=True)
class Seen:
    """The names in a repository, as two looks into directories have them. `parts` and `partial`: numbers and names of parts, and of those that
    are being written.
    """

    manifests: tuple[int, ...]
    parts: frozenset[tuple[int, str]]
    partial: frozenset[tuple[int, str]]
    segments: tuple[int, ...]

    @property
    def newest(self) -> int:
        return self.manifests[-1] if self.manifests else 0


def look(root: Path) -> Seen:
    names = _names(root / "checkpoints")
    parts, partial = (frozenset((int(name[:16], 16), name) for name in names if re.fullmatch(_PART + end, name)) for end in ("", "[.]partial"))
    manifests = sorted(int(name, 16) for name in names if re.fullmatch("[0-9a-f]{16}", name))
    return Seen(tuple(manifests), parts, partial, tuple(sorted(int(name, 16) for name in _names(root / "journal") if "." not in name)))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


class Watch:
    """Looks at the files of a repository while a process changes them. What lay there at the beginning is no sign of what this process does."""

    def __init__(self, root: Path, keys: Keys, *, parts_wanted: int) -> None:
        self._root = root
        self._keys = keys
        self._before = self._last = look(root)
        self._uncut = 0
        """The first segment when the newest manifest came: from there on it is cut."""
        self._parts_wanted = parts_wanted

    def place(self, seen: Seen) -> Place | None:
        """Where a kill comes that leaves this, as far as names tell it."""
        if len(seen.manifests) < 2:
            return None
        new = [(number, name) for number, name in seen.parts - self._before.parts if number > seen.newest]
        if len(new) >= self._parts_wanted and any(number > seen.newest for number, _ in seen.partial - self._before.partial):
            return Place.PARTS
        if seen.newest == self._before.newest:
            return None
        if any(number < seen.manifests[0] for number, _ in seen.parts):
            return Place.OLD_PARTS
        if len(seen.manifests) > 2:
            return Place.MANIFEST
        if not new and seen.segments and 0 < self._uncut < seen.segments[0]:
            return Place.JOURNAL
        return None

    def place_at_rest(self) -> Place | None:
        """The same of files that nobody changes. Then it can be said whether there is more to cut."""
        seen = look(self._root)
        place = self.place(seen)
        if place is Place.JOURNAL:
            older = checkpoints.read(Store(self._root), self._keys).held[0]
            assert older.number == seen.manifests[0]
            return place if seen.segments[0] <= older.position.segment else None
        return place

    def arrivals(self) -> Iterator[Place | None]:
        """A look for ever: the place where the process has come to, if that has changed since the last look."""
        while True:
            seen = look(self._root)
            if seen.newest != self._last.newest and seen.segments:
                self._uncut = seen.segments[0]
            has_changed = replace(seen, segments=seen.segments[:1]) != replace(self._last, segments=self._last.segments[:1])
            self._last = seen
            yield self.place(seen) if has_changed else None


def stop(pid: int) -> None:
    """Returns when every thread stands still."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + HANG_S
    while not all(state == "T" for state in _states(pid)):
        assert time.monotonic() < deadline, "the process does not stop"


def _states(pid: int) -> list[str]:
    """Of the threads that there are; one may end meanwhile."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            states.append(stat.read_text().rpartition(") ")[2][0])
    return states


def kill_at(place: Place, made: Repository, watch: Watch, meanwhile: Callable[[], None]) -> int:
    """Kill the process at this place; how often it was stopped for that."""
    pid, stops = made.pid(), 0
    deadline = time.monotonic() + HANG_S
    for number, arrival in enumerate(watch.arrivals()):
        if arrival is place:
            stop(pid)
            stops += 1
            if watch.place_at_rest() is place:
                made.kill()
                return stops
            os.kill(pid, signal.SIGCONT)
        if number % 64 == 0:
            meanwhile()
            assert time.monotonic() < deadline, f"in vain after {stops} stops: {place}"
    raise AssertionError


@dataclass(slots=True)
class Life:
    """What one process was told to change, below a directory of this name, and the snapshot that was taken when it had been killed."""

    name: str
    promises: Promises
    snapshot: str = ""

    def hold_in(self, mount: Path) -> None:
        self.promises.hold_in(mount / self.name)
        if self.snapshot:
            self.promises.hold_in(mount / SNAPSHOTS / self.snapshot / self.name)


@contextmanager
def copy_without_index(made: Repository, base: Path) -> Iterator[Repository]:
    """What another machine would have of it."""
    copy = Repository(base)
    copy.limit(**LIMITS)
    shutil.copytree(made.path, copy.path, ignore=shutil.ignore_patterns("reserve", "lock"))
    try:
        yield copy
    finally:
        copy.close()
        shutil.rmtree(base)


def present(made: Repository) -> Manifest:
    return manifest(made.directory, leave_out=[SNAPSHOTS.encode()])


def _is_checkpoint_newer(made: Repository, than: int) -> bool:
    """The journal grows by something each time, so that one is made."""
    with open(made.directory / "growing", "wb") as file:
        os.setxattr(file.fileno(), "user.noise", os.urandom(4 * KIB))
        os.fsync(file.fileno())
    return look(made.path).newest > than


def test_killed_while_checkpoints_are_made(make_repository: Callable[..., Repository], base: Path, seed: int, scale: float) -> None:
    rng = random.Random(f"checkpoints/{seed}")
    made = make_repository(mounted=False)
    made.limit(**LIMITS)
    made.mount("--every", "off")
    keys = open_store(Store(made.path), made.password.encode())
    lives: list[Life] = []
    for number in range(max(len(Place), round(len(Place) * scale))):
        place = list(Place)[number % len(Place)]
        life = f"life-{number}"
        (made.directory / life).mkdir()
        writer = Writer(made.directory / life, rng.randrange(1 << 30))
        try:
            writer.listen_for(rng.randrange(1, 60))
            watch = Watch(made.path, keys, parts_wanted=rng.randint(1, PARTS_MAX))
            stops = kill_at(place, made, watch, writer.hear)
            writer.rest()
        finally:
            writer.stop()
        assert watch.place_at_rest() is place
        print(f"kill {number}, after {stops} stops: {place}")
        lives.append(Life(life, writer.promises))
        with copy_without_index(made, base / f"copy-{number}") as without:
            for each in (made, without):
                each.mount("--every", "off")
                for told in lives:
                    told.hold_in(each.directory)
            recovered = present(made)
            assert_same(recovered, present(without))
            checked = rng.choice((made, without))
            checked.command("check", "--read-data", checked.directory)
            assert without.trouble() == []
        lives[-1].snapshot = f"after {life}"
        snapshots = made.directory / SNAPSHOTS
        (snapshots / lives[-1].snapshot).mkdir()
        assert_same(recovered, manifest(snapshots / lives[-1].snapshot))
        if len(lives) > LIVES_KEPT:
            gone = lives.pop(0)
            shutil.rmtree(made.directory / gone.name)
            (snapshots / gone.snapshot).rmdir()
    logged = b"".join(path.read_bytes() for path in made.state.glob("log*"))
    assert b"is made: " in logged
    assert b"built anew" not in logged, "each time it went on with the index"
    made.command("gc", "--now", made.directory)
    until(partial(_is_checkpoint_newer, made, look(made.path).newest), "a checkpoint that removes what the kills have left")
    made.unmount()
    assert audit(made.path, made.password.encode()) == []
