"""Commands in this process, and a repository for them."""

import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from backupfs.cli.main import main
from backupfs.clock import SystemClock
from backupfs.engine.seams import Seams
from backupfs.offload import ThreadOffload
from backupfs.randomness import SystemRandomness
from backupfs.service import locate, offline
from backupfs.service.control import Replies, listening
from backupfs.service.locate import at_repository
from backupfs.service.messages import MountRecord, Request
from backupfs.stores.files import SystemFiles
from tests.unit.cli.shelf_daemon import ShelfDaemon

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


class FakeDaemon:
    """Serves the repository as if it were mounted on `directory`: gives for each kind of request what `answers` has for it, items first."""

    def __init__(self, repository: Path, home: Path, directory: Path) -> None:
        self.directory = directory
        self.state = at_repository(repository, home, SystemFiles()).state
        self.asked: list[Request] = []
        self.items: dict[type, list[object]] = {}
        self.results: dict[type, object] = {}
        self.progress: list[tuple[int, int]] = []
        self._stop = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._ready = threading.Event()

    def start(self) -> None:
        self.directory.mkdir()
        self.state.make()
        self.state.note(MountRecord("/repository", self.state.repository_id, str(self.directory), os.getpid(), 0, read_only=False))
        self._thread.start()
        self._ready.wait()

    def end(self) -> None:
        assert self._token is not None
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with listening(self.state.socket, self._handle):
            self._ready.set()
            await self._stop.wait()

    async def _handle(self, request: Request, replies: Replies) -> object:
        self.asked.append(request)
        for item in self.items.get(type(request), ()):
            await replies.item(item)
        for done, total in self.progress:
            await replies.progress(done, total)
        result = self.results.get(type(request))
        if isinstance(result, Exception):
            raise result
        return result


@pytest.fixture
def daemon(repository: Path, tmp_path: Path) -> Iterator[FakeDaemon]:
    made = FakeDaemon(repository, tmp_path / "state", tmp_path / "mount")
    made.start()
    yield made
    made.end()


@pytest.fixture
def shelf_daemon(monkeypatch: pytest.MonkeyPatch) -> ShelfDaemon:
    """What answers for every repository, in this process."""
    made = ShelfDaemon()
    monkeypatch.setattr(locate, "daemon_of", made.of)
    return made
