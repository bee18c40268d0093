"""Commands in this process, and a repository for them."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backupfs.cli.main import main
from backupfs.clock import SystemClock
from backupfs.engine.seams import Seams
from backupfs.offload import ThreadOffload
from backupfs.randomness import SystemRandomness
from backupfs.service import locate, offline
from backupfs.stores.files import SystemFiles
from tests.unit.cli.daemon import FakeDaemon
from tests.unit.cli.scripted import ScriptedDaemon

Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs `backupfs ARGUMENTS` here; its exit code."""
    for name in list(os.environ):
        if name.startswith(("BACKUPFS_", "XDG_", "CREDENTIALS_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BACKUPFS_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("BACKUPFS_KDF_SECONDS", "0")
    monkeypatch.setenv("BACKUPFS_PASSWORD", "secret")

    def run(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["backupfs", *map(str, arguments)])
        return main()

    return run


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new repository, to be copied: making one takes a while."""
    root = tmp_path_factory.mktemp("template") / "repository"
    seams = Seams(SystemFiles(), SystemClock(), SystemRandomness(), ThreadOffload())
    offline.create(offline.NewRepository(root, "password", compression=True, kdf_seconds=0), b"secret", seams)
    return root


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "repository"))


@pytest.fixture
def scripted(repository: Path, tmp_path: Path) -> Iterator[ScriptedDaemon]:
    made = ScriptedDaemon(repository, tmp_path / "state", tmp_path / "mount")
    made.start()
    yield made
    made.end()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> FakeDaemon:
    """What answers for every repository."""
    made = FakeDaemon()
    monkeypatch.setattr(locate, "daemon_of", made.of)
    return made
