"""From a directory or a repository to its state, whoever still lives or not."""

import os
from pathlib import Path

import pytest

from backupfs.clock import SystemClock
from backupfs.engine.repository import create_repository
from backupfs.errors import RepositoryMissingError, UsageError
from backupfs.format.keyslot import KdfParameters
from backupfs.randomness import SystemRandomness
from backupfs.service.control import Replies, listening
from backupfs.service.locate import at_directory, at_either, at_path, at_repository, daemon_of
from backupfs.service.messages import MountRecord, NotRunningError, Request
from backupfs.service.state import StateDirectory
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


@pytest.fixture
def mount(repository: Path, tmp_path: Path) -> Path:
    """A directory of which it is noted that the repository is mounted there."""
    made = tmp_path / "mount"
    made.mkdir()
    note(repository, tmp_path / "home", made)
    return made


def where(path: str | Path | bytes, tmp_path: Path) -> tuple[Path, bytes, str | None] | None:
    found = at_path(os.fsencode(path), tmp_path / "home")
    return None if found is None else (found.directory, found.path, found.snapshot)


def test_a_path_in_a_mount_is_found_whether_it_exists_or_not(mount: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link").symlink_to("../mount")
    (tmp_path / "absolute").symlink_to(mount)
    (tmp_path / "loop").symlink_to("loop")
    (mount / "d").mkdir()
    (mount / "inner").symlink_to("d")
    gone = (mount, b"d/gone", None)
    for path in ("mount/d/gone", "./mount//d/./gone/", "far/link/d/gone", "absolute/d/gone", "far/../mount/d/gone", "mount/d/e/../gone"):
        assert where(tmp_path / path, tmp_path) == gone
        assert where(str(tmp_path) + "/" + path, tmp_path) == gone
    assert where(mount, tmp_path) == (mount, b"", None)
    assert where(mount / "inner" / "x", tmp_path) == (mount, b"inner/x", None), "what lies inside is taken as it is written"
    assert where(os.fsencode(mount) + b"/\xff\n", tmp_path) == (mount, b"\xff\n", None)
    for path in ("", "mountain/d", "mount/../other", "mount/d/../../other", "loop/x", "/"):
        assert where(os.path.join(tmp_path, path), tmp_path) is None
    monkeypatch.chdir(tmp_path / "far")
    assert where("link/d/gone", tmp_path) == gone
    monkeypatch.chdir(mount / "d")
    assert where("gone", tmp_path) == gone
    assert where("..", tmp_path) == (mount, b"", None)
    found = at_path(b"gone", tmp_path / "home")
    assert found is not None
    assert found.place.state.path.parent == tmp_path / "home"


def test_a_path_through_snapshots(mount: Path, tmp_path: Path) -> None:
    assert where(mount / ".snapshots" / "T" / "d" / "file", tmp_path) == (mount, b"d/file", "T")
    assert where(mount / ".snapshots" / "T", tmp_path) == (mount, b"", "T")
    assert where(mount / "d" / ".snapshots" / "latest" / "file", tmp_path) == (mount, b"d/file", "latest")
    for path in (".snapshots", "d/.snapshots"):
        with pytest.raises(UsageError, match="name something in a snapshot"):
            where(mount / path, tmp_path)


def test_a_mount_within_a_mount(mount: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    create_repository(other, b"secret", files=FILES, clock=SystemClock(), randomness=SystemRandomness(), kdf=KdfParameters(1, 1, 8))
    inner = mount / "d" / "inner"
    inner.mkdir(parents=True)
    note(other, tmp_path / "home", inner)
    assert where(inner / "x", tmp_path) == (inner, b"x", None)
    assert where(inner / "x" / ".." / ".." / "y", tmp_path) == (mount, b"d/y", None)
    assert where(mount / "d" / "innermost", tmp_path) == (mount, b"d/innermost", None)


def test_the_mount_of_one_snapshot_leads_to_the_state_that_knows_them_all(repository: Path, tmp_path: Path) -> None:
    home, past = tmp_path / "home", tmp_path / "past"
    past.mkdir()
    main = at_repository(repository, home, FILES).state
    beside = StateDirectory(home, f"{main.repository_id}.at-0123")
    beside.make()
    beside.note(MountRecord(str(repository), main.repository_id, str(past), 4711, 0, read_only=True))
    found = at_path(bytes(past / "x"), home)
    assert found is not None
    assert found.place.state.path == main.path
