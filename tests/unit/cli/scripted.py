"""A process that answers at a repository's socket as it was told to."""

import os
import threading
from pathlib import Path

import trio

from backupfs.service.control import Replies, listening
from backupfs.service.locate import at_repository
from backupfs.service.messages import MountRecord, Request
from backupfs.stores.files import SystemFiles


class ScriptedDaemon:
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
