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
from backupfs.service.messages import NotRunningError
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
    """The repository that is noted as mounted on this directory. Whether its process still lives is not asked."""
    real = os.path.realpath(directory)
    for state in known_states(home):
        record = state.record()
        if record is not None and record.directory == real:
            return Place(Path(record.repository), state)
    return None


def at_either(target: Path, home: Path, files: Files) -> Place:
    """The repository at this path, or mounted on it. RepositoryMissingError when it is neither."""
    mounted = at_directory(target, home)
    if mounted is not None:
        return mounted
    try:
        return at_repository(target, home, files)
    except RepositoryMissingError as error:
        raise RepositoryMissingError(f"{target} is no repository, and no mount of this user", path=str(target)) from error


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
