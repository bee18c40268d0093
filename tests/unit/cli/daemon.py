"""A mounted repository without a mount: commands are answered by the real service on an engine of snapshots and blobs, through JSON."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import trio

from backupfs.rules.policy import Retention
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.locate import Place
from backupfs.service.messages import (
    CollectRequest,
    ConfigurationRequest,
    OutlookRequest,
    PruneRequest,
    Request,
    SnapshotDeleteRequest,
    SnapshotListRequest,
    SnapshotShowRequest,
    Stage,
    StatsRequest,
)
from backupfs.service.retaining import Retainer
from backupfs.service.settings import HookCommands
from backupfs.service.snapshot_requests import SnapshotRequests
from backupfs.service.snapshots import SnapshotTaker
from backupfs.service.space_requests import SpaceRequests
from tests.unit.service.shelf import FakeShelf, Wall
from tests.unit.service.test_snapshot_requests import FakeReplies
from tests.unit.service.test_snapshots import FakeEngine


class FakeDaemon:
    """`shelf` is what it keeps, `layers` its configuration; `requests` is what it was asked."""

    def __init__(self) -> None:
        self.shelf = FakeShelf(Wall(time.time, 0))
        self.retention = Retention(keep_last=2)
        self.layers: list[dict[str, Any]] = []
        self.requests: list[Request] = []

    @contextmanager
    def of(self, _: Place) -> Iterator["FakeDaemon"]:
        """See `locate.daemon_of`. A connection carries one request."""
        asked = len(self.requests)
        yield self
        assert len(self.requests) <= asked + 1

    def ask(
        self, request: Request, on_item: Callable[[Any], None] | None = None, on_progress: Callable[[int, int, Stage], None] | None = None
    ) -> Any:
        """See `Client.ask`."""
        self.requests.append(request)
        replies = FakeReplies()
        result = trio.run(self._answer, request, replies)
        for item in replies.items:
            if on_item is not None:
                on_item(_through_json(item))
        if on_progress is not None:
            on_progress(1, 2, "reckoning")
        return _through_json(result)

    async def _answer(self, request: Any, replies: FakeReplies) -> object:
        shelf = self.shelf
        retainer = Retainer(shelf, shelf.upkeep, shelf.clock, self.retention)
        taker = SnapshotTaker(FakeEngine(), lambda _path, _ino: None, Hooks(HookCommands(), Mounted("/m", "/r", "id"), {}))
        snapshots = SnapshotRequests(shelf, shelf.upkeep, taker, retainer, shelf.clock)
        space = SpaceRequests(shelf, shelf.upkeep, retainer)
        match request:
            case ConfigurationRequest():
                return {"layers": self.layers}
            case SnapshotListRequest():
                return await snapshots.tell_all(request, replies)
            case SnapshotDeleteRequest():
                return await snapshots.delete(request, replies)
            case SnapshotShowRequest():
                return await snapshots.show(request)
            case StatsRequest():
                return await space.stats(replies)
            case OutlookRequest():
                return await space.outlook(replies)
            case PruneRequest():
                return await space.prune(request, replies)
            case CollectRequest():
                return await space.collect(request, replies)
            case _:
                return await snapshots.change(request)


def _through_json(value: object) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))
