"""From what a command names, a repository or a mounted directory, to the local state that belongs to it. Needs no
password.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from backupfs.engine.repository import repository_id
from backupfs.errors import RepositoryMissingError
from backupfs.service.control import Client, connected
from backupfs.service.messages import MountRecord, NotRunningError
from backupfs.service.state import StateDirectory, known_states
from backupfs.stores.files import Files


@dataclass(frozen=True, slots=True)
class Place:
    """A repository and where its local state lies."""

    repository: Path
    state: StateDirectory


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
