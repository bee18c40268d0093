"""From what a command names, a repository or a mounted directory, to the local state that belongs to it. Needs no
password.
"""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backupfs.engine.identity import repository_id
from backupfs.errors import RepositoryMissingError, UsageError
from backupfs.service.client import Client, connected
from backupfs.service.messages import MountRecord, NotRunningError
from backupfs.service.state import StateDirectory, known_states
from backupfs.stores.files import Files

_LINKS_MAX: Final = 40
_SNAPSHOTS: Final = b".snapshots"


@dataclass(frozen=True, slots=True)
class Place:
    """A repository and where its local state lies."""

    repository: Path
    state: StateDirectory


@dataclass(frozen=True, slots=True)
class Inside:
    """A path within a mounted directory: `path` from its root, without slashes around it, and `snapshot`, the name that it had behind
    `.snapshots`, if it led through there.
    """

    place: Place
    directory: Path
    path: bytes
    snapshot: str | None = None


def at_repository(repository: Path, home: Path, files: Files) -> Place:
    """The repository at this path. RepositoryMissingError when there is none."""
    real = Path(os.path.realpath(repository))
    return Place(real, StateDirectory(home, repository_id(real, files).hex()))


def at_directory(directory: Path, home: Path) -> Place | None:
    """The repository that is mounted on this directory, as far as was noted; when no process answers, the one that was last.

    A process that died leaves its note behind, and another repository may have been mounted there since.
    """
    real = os.path.realpath(directory)
    noted = [(record.since_ns, state.path, Place(Path(record.repository), state)) for state, record in _records(home) if record.directory == real]
    places = [place for _, _, place in sorted(noted, reverse=True)]
    if len(places) > 1:
        places.sort(key=_is_dead)
    return places[0] if places else None


def at_path(path: bytes, home: Path) -> Inside | None:
    """Which mount a path belongs to and what it is there, whether it exists or not; None when it lies in no mounted directory.

    Symlinks above the mount are followed, what lies inside is taken as it is written: it may be gone. No mount is asked for anything.
    """
    points = {os.fsencode(record.directory) for _, record in _records(home)}
    directory, inside = _split(path, points)
    place = None if directory is None else at_directory(Path(os.fsdecode(directory)), home)
    if directory is None or place is None:
        return None
    # The mount of one snapshot has a state of its own beside the one that knows them all.
    place = Place(place.repository, StateDirectory(home, place.state.repository_id.partition(".")[0]))
    snapshot = None
    if _SNAPSHOTS in inside:
        at = inside.index(_SNAPSHOTS)
        if at + 1 == len(inside):
            raise UsageError(f"{os.fsdecode(path)!r} is no place of its own: name something in a snapshot below it, or in the present")
        snapshot = os.fsdecode(inside[at + 1])
        inside = inside[:at] + inside[at + 2 :]
    return Inside(place, Path(os.fsdecode(directory)), b"/".join(inside), snapshot)


def _split(path: bytes, points: Collection[bytes]) -> tuple[bytes | None, list[bytes]]:
    """(mounted directory, names inside of it) of a path."""
    left = _steps(path if path.startswith(b"/") else os.getcwdb() + b"/" + path)
    at: list[bytes] = []
    mounted = 0
    """So many names of `at` lead to the mounted directory; 0 outside of any."""
    links = 0
    while left:
        part = left.pop(0)
        if part == b"..":
            del at[-1:]
        else:
            at.append(part)
        here = b"/" + b"/".join(at)
        if here in points:
            mounted = len(at)
        elif len(at) < mounted:
            mounted = next((depth for depth in range(len(at), 0, -1) if b"/" + b"/".join(at[:depth]) in points), 0)
        elif not mounted and part != b".." and links < _LINKS_MAX and os.path.islink(here):
            links += 1
            target = os.readlink(here)
            at = [] if target.startswith(b"/") else at[:-1]
            left = _steps(target) + left
    return (b"/" + b"/".join(at[:mounted]) if mounted else None), at[mounted:]


def _steps(path: bytes) -> list[bytes]:
    return [step for step in path.split(b"/") if step not in (b"", b".")]


def at_either(target: Path, home: Path, files: Files) -> Place:
    """The repository at this path, or mounted on it. RepositoryMissingError when it is neither."""
    mounted = at_directory(target, home)
    if mounted is not None:
        return mounted
    try:
        return at_repository(target, home, files)
    except RepositoryMissingError as error:
        raise RepositoryMissingError(f"{target} is no repository, and no mount of this user", path=str(target)) from error


def _records(home: Path) -> Iterator[tuple[StateDirectory, MountRecord]]:
    for state in known_states(home):
        record = state.record()
        if record is not None:
            yield state, record


def _is_dead(place: Place) -> bool:
    try:
        with connected(place.state.socket):
            return False
    except NotRunningError:
        return True


@contextmanager
def daemon_of(place: Place) -> Iterator[Client]:
    """A connection to the process that serves the repository. NotRunningError when it is not mounted."""
    try:
        with connected(place.state.socket) as client:
            yield client
    except NotRunningError as error:
        if error.__cause__ is None:
            raise  # the daemon itself said so
        raise NotRunningError(f"the repository {place.repository} is not mounted; `backupfs mount {place.repository} DIR` does that") from error
