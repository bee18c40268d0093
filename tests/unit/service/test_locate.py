"""From a directory or a repository to its state, whoever still lives or not."""

import os
from pathlib import Path

import pytest

from backupfs.clock import SystemClock
from backupfs.engine.repository import create_repository
from backupfs.errors import RepositoryMissingError
from backupfs.format.keyslot import KdfParameters
from backupfs.randomness import SystemRandomness
from backupfs.service.control import Replies, listening
from backupfs.service.locate import at_directory, at_either, at_repository, daemon_of
from backupfs.service.messages import MountRecord, NotRunningError, Request
from backupfs.stores.files import SystemFiles

FILES = SystemFiles()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repositories") / "repository"
    create_repository(root, b"secret", files=FILES, clock=SystemClock(), randomness=SystemRandomness(), kdf=KdfParameters(1, 1, 8))
    return root


def note(repository: Path, home: Path, directory: Path, since_ns: int = 0) -> None:
    """As a daemon does when its mount answers."""
    place = at_repository(repository, home, FILES)
    place.state.make()
    place.state.note(MountRecord(str(repository), place.state.repository_id, str(directory), 4711, since_ns, read_only=False))


def test_a_repository_by_its_path_and_through_a_link(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(repository)
    place = at_repository(tmp_path / "link", tmp_path / "home", FILES)
    assert place.repository == repository
    assert place.state.path.parent == tmp_path / "home"
    assert at_either(repository, tmp_path / "home", FILES).state.path == place.state.path


def test_a_mounted_directory_by_its_path_and_through_a_link(repository: Path, tmp_path: Path) -> None:
    mount, other = tmp_path / "mount", tmp_path / "other"
    mount.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(mount)
    note(repository, tmp_path / "home", mount)
    (tmp_path / "home" / "stray").mkdir()
    for path in (mount, tmp_path / "link", tmp_path / "other" / ".." / "mount"):
        place = at_directory(path, tmp_path / "home")
        assert place is not None
        assert place.repository == repository
        assert at_either(path, tmp_path / "home", FILES).state.path == place.state.path
    assert at_directory(other, tmp_path / "home") is None


async def test_a_directory_that_several_were_mounted_on(tmp_path: Path) -> None:
    """Of those whose processes died the notes stay: the one that answers counts, or else the last."""

    async def answer(request: Request, replies: Replies) -> object:
        return None

    home, mount = tmp_path / "home", tmp_path / "mount"
    mount.mkdir()
    roots = [tmp_path / f"repository{number}" for number in range(3)]
    for number, root in enumerate(roots):
        create_repository(root, b"secret", files=FILES, clock=SystemClock(), randomness=SystemRandomness(), kdf=KdfParameters(1, 1, 8))
        note(root, home, mount, since_ns=number)
    for alive in roots:
        async with listening(at_repository(alive, home, FILES).state.socket, answer):
            found = at_directory(mount, home)
            assert found is not None
            assert found.repository == alive
    last = at_directory(mount, home)
    assert last is not None
    assert last.repository == roots[-1]


def test_neither(tmp_path: Path) -> None:
    with pytest.raises(RepositoryMissingError, match="no repository, and no mount"):
        at_either(tmp_path, tmp_path / "home", FILES)


def test_nobody_serves_it(repository: Path, tmp_path: Path) -> None:
    note(repository, tmp_path / "home", tmp_path)
    with pytest.raises(NotRunningError, match="backupfs mount"), daemon_of(at_repository(repository, tmp_path / "home", FILES)):
        pass


async def test_the_daemon_that_serves_it(repository: Path, tmp_path: Path) -> None:
    async def answer(request: Request, replies: Replies) -> object:
        return None

    place = at_repository(repository, tmp_path / "home", FILES)
    place.state.make()
    async with listening(place.state.socket, answer):
        with daemon_of(place) as daemon:
            assert daemon.pid == os.getpid()
        with pytest.raises(NotRunningError, match="its own words"), daemon_of(place):
            raise NotRunningError("its own words")
