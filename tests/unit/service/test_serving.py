"""The task tree with a fake engine and a fake mount: every way in, every way out, in which order, and who is told what."""

import errno
import os
import signal
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from backupfs.clock import SystemClock
from backupfs.engine.attributes import EngineStatus, SnapshotInfo, Stats
from backupfs.errors import BackupfsError, FileSystemError, LockedError, ReadOnlyError, StoreError, UsageError
from backupfs.fuse.unmounting import MountBusyError
from backupfs.rules.names import SnapDir, name_fault
from backupfs.rules.policy import Schedule
from backupfs.rules.schedule import Activity
from backupfs.service.client import connected
from backupfs.service.configuration import Configuration
from backupfs.service.log import RecentTrouble
from backupfs.service.messages import (
    CheckRequest,
    CollectRequest,
    LendRequest,
    NotRunningError,
    OutlookRequest,
    PruneRequest,
    Ready,
    Request,
    RestoreRequest,
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotListRequest,
    SnapshotPinRequest,
    SnapshotShowRequest,
    StatsRequest,
    StatusRequest,
    UndoRequest,
    UnmountRequest,
    VersionsRequest,
)
from backupfs.service.serving import LENT_MAX, MountJob, Serving
from backupfs.service.settings import NOTHING, Layer, Settings
from backupfs.service.state import StateDirectory
from tests.conftest import LogRule
from tests.unit.service.fake_past import FakeHistory, FakeRestorer, step
from tests.unit.service.shelf import FakeShelf, Wall

REPOSITORY_ID = "ab" * 16
T = TypeVar("T", bound=msgspec.Struct)
DAY_NS = 86_400 * 1_000_000_000


def blank(what: type[T]) -> T:
    """A struct with nothing in it."""
    return msgspec.convert({info.name: _nothing(info.type) for info in msgspec.structs.fields(what)}, what)


def _nothing(kind: Any) -> object:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {info.name: _nothing(info.type) for info in msgspec.structs.fields(kind)}
    return {bool: False, int: 0, str: ""}.get(kind, [])


@dataclass
class FakeEngine(FakeShelf):
    """Writes down what is asked of it, in one list with what the mount is asked."""

    events: list[str] = field(default_factory=list)
    own_threads: set[int] = field(default_factory=set)
    changes: int = 0
    opens_at_once: bool = True
    open_failure: Exception | None = None
    commit_failure: Exception | None = None
    has_stopped: bool = False
    begun: dict[str, trio.Event] = field(default_factory=lambda: defaultdict(trio.Event))
    snapshot_may_end: trio.Event = field(default_factory=trio.Event)
    findings: int = 0
    kept_policy: bytes = b""
    had_names: set[str] = field(default_factory=set)
    cut_failure: Exception | None = None
    check_may_go_on: trio.Event = field(default_factory=trio.Event)
    history: FakeHistory = field(default_factory=FakeHistory)
    restorer: FakeRestorer = field(default_factory=FakeRestorer)

    @asynccontextmanager
    async def lending(self, name: str) -> AsyncIterator[SnapshotInfo]:
        self.events.append(f"lends {name}")
        yield next(info for info in self.taken if info.name == name)
        self.events.append(f"has {name} back")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["FakeEngine"]:
        if self.open_failure is not None:
            raise self.open_failure
        self.begun["open"].set()
        if not self.opens_at_once:
            await trio.sleep_forever()
        self.events.append("open")
        try:
            yield self
        finally:
            self.events.append("close")

    def writable_paths(self) -> Sequence[tuple[int, bytes | None]]:
        return [(7, b"path")]

    def written_at(self, ino: int) -> float:
        return 0.0

    @property
    def taken(self) -> list[SnapshotInfo]:
        return self.kept

    def check_name(self, name: str) -> None:
        if fault := name_fault(name):
            raise UsageError(fault)
        if name in self.had_names:
            raise FileSystemError(errno.EEXIST)

    def take_named_with(self, take: Callable[[str], Awaitable[object]]) -> None:
        self.take_named = take

    async def create_snapshot(
        self, why: str, message: str = "", tags: Sequence[str] = (), name: str = "", before_restore: bytes = b""
    ) -> SnapshotInfo:
        self.events.append(f"snapshot {why}")
        self.begun[why].set()
        if message == "wait":
            await self.snapshot_may_end.wait()
        if self.cut_failure is not None:
            raise self.cut_failure
        serial = len(self.taken) + 1
        self.had_names.add(name or f"s{serial}")
        self.taken.append(SnapshotInfo(serial, name or f"s{serial}", serial * DAY_NS, why, message, list(tags), self.changes, "kept"))
        self.holds[serial] = set()
        self.changes = 0
        return self.taken[-1]

    async def commit(self) -> None:
        self.events.append("commit")
        if self.commit_failure is not None:
            raise self.commit_failure

    def activity(self) -> Activity:
        return Activity(self.changes, 0, None, len(self.taken))

    async def check(self, read_data: bool, progress: Callable[[int, int], None]) -> AsyncGenerator[object]:
        self.begun["check"].set()
        for number in range(self.findings):
            progress(number, self.findings)
            yield {"number": number, "read_data": read_data}
        if not self.findings:
            progress(1, 2)
            await self.check_may_go_on.wait()

    def policy(self) -> bytes:
        return self.kept_policy

    async def set_policy(self, data: bytes) -> None:
        self.events.append("policy")
        self.kept_policy = data

    def status(self) -> EngineStatus:
        status = blank(EngineStatus)
        return msgspec.structs.replace(status, failure="writing has stopped") if self.has_stopped else status


@dataclass
class FakeMount:
    """A mount that is unmounted by setting an event."""

    events: list[str]
    engine: FakeEngine
    busy: bool = False
    failure: Exception | None = None
    answers: trio.Event = field(default_factory=trio.Event)
    unmounted: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.answers.set()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self.answers.wait()
        if self.failure is not None:
            raise self.failure
        self.events.append("mount")
        task_status.started()
        await self.unmounted.wait()
        self.events.append("unmounted")

    async def unmount(self) -> None:
        if self.busy:
            raise MountBusyError("in use by cat (12: open /mount/a-name)", holders=["12 cat: open /mount/a-name", "12 cat: cwd /mount"])
        self.unmounted.set()

    async def detach(self) -> None:
        self.events.append("detach")
        self.unmounted.set()

    def write_back(self, path: bytes | None, ino: int) -> None:
        assert len(self.engine.own_threads) == 1, "the engine knows the thread that asks"
        self.events.append(f"write back {ino} {path!r}")

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        self.events.extend(f"forget {name.decode()}" for _, name in names)


SETTLED = ["write back 7 b'path'", "commit"]
ENDED = ["unmounted", "commit", "close"]


class House:
    """A serving process's parts, and commands that talk to it."""

    def __init__(self, base: Path) -> None:
        self.events: list[str] = []
        self.state = StateDirectory(base, REPOSITORY_ID)
        self.state.make()
        self.engine = FakeEngine(Wall(time.time), events=self.events)
        self.mount = FakeMount(self.events, self.engine)
        self.recent = RecentTrouble()
        self.schedules: tuple[Schedule, ...] | None = ()
        self.files: tuple[Path, ...] = ()
        self.read_only = False
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.error: BackupfsError | None = None

    def serving(self) -> Serving[FakeEngine]:
        given = Settings(schedules=self.schedules, read_only=self.read_only or None)
        layers = (Layer("test", given),) if given != NOTHING else ()
        self.configuration = Configuration(layers, self.files, named=bool(self.files)).reread()
        job = MountJob(
            Path("/repository"), REPOSITORY_ID, Path("/mount"), self.read_only, False, False, False, True, SnapDir.VISIBLE, self.configuration, (0, 0)
        )
        return Serving(job, self.state, self.engine.opened, lambda _: self.mount, SystemClock(), self.recent, os.environ)

    def note_ready(self, told: Ready) -> None:
        self.told = told
        self.ready.set()

    async def run(self) -> None:
        try:
            await self.serving().run(self.note_ready)
        except BackupfsError as error:
            self.error = error
        self.ended.set()

    async def ask(self, request: Request, items: list[Any] | None = None, progress: list[tuple[int, int]] | None = None) -> Any:
        def ask() -> Any:
            with connected(self.state.socket) as client:
                return client.ask(
                    request,
                    None if items is None else items.append,
                    None if progress is None else (lambda done, total, _: progress.append((done, total))),
                )

        return await trio.to_thread.run_sync(ask, abandon_on_cancel=True)

    async def asking(self, request: Request, answers: list[object]) -> None:
        try:
            answers.append(await self.ask(request))
        except BackupfsError as error:
            answers.append(error)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


async def started(house: House, nursery: trio.Nursery) -> House:
    nursery.start_soon(house.run)
    await house.ready.wait()
    return house


# --- ends -------------------------------------------------------------------------------------------------------------


async def test_umount_makes_everything_durable_and_answers_at_the_very_end(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    assert house.state.record() is not None
    told = await house.ask(UnmountRequest())
    assert told == {"directory": "/mount", "repository": "/repository", "pid": os.getpid()}
    assert house.events == ["open", "mount", *SETTLED, *ENDED]
    await house.ended.wait()
    assert house.error is None
    assert house.state.record() is None
    assert not house.state.socket.exists()


async def test_a_busy_mount_stays_with_everything_durable(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    house.mount.busy = True
    with pytest.raises(MountBusyError, match=r"cat \(12"):
        await house.ask(UnmountRequest())
    assert house.events == ["open", "mount", *SETTLED]
    house.mount.busy = False
    await house.ask(UnmountRequest())
    await house.ended.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_is_a_clean_end(house: House, nursery: trio.Nursery, number: signal.Signals) -> None:
    await started(house, nursery)
    os.kill(os.getpid(), number)
    await house.ended.wait()
    assert house.error is None
    assert house.events == ["open", "mount", *SETTLED, *ENDED]


async def test_a_second_signal_changes_nothing(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    await house.ended.wait()
    assert house.events == ["open", "mount", *SETTLED, *ENDED]


async def test_several_ends_at_once_are_one(house: House, nursery: trio.Nursery) -> None:
    """Whoever comes second must not use an engine that is closing; who comes when it has closed is told so."""
    await started(house, nursery)

    async def ask() -> None:
        with suppress(BackupfsError):  # whose connection was not taken any more hears only that
            await house.ask(UnmountRequest())

    async with trio.open_nursery() as asking:
        for _ in range(3):
            asking.start_soon(ask)
        os.kill(os.getpid(), signal.SIGTERM)
    await house.ended.wait()
    assert house.error is None
    assert house.events == ["open", "mount", *SETTLED, *ENDED]


async def test_a_signal_takes_a_busy_mount_away_and_the_log_names_processes_not_files(
    house: House, nursery: trio.Nursery, log_rule: LogRule, caplog: pytest.LogCaptureFixture
) -> None:
    log_rule.expect("in use by 12 cat; it is taken away")
    await started(house, nursery)
    house.mount.busy = True
    os.kill(os.getpid(), signal.SIGTERM)
    await house.ended.wait()
    assert house.events == ["open", "mount", *SETTLED, "detach", *ENDED]
    assert "a-name" not in caplog.text


async def test_an_unmount_from_outside_is_a_clean_end(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    house.mount.unmounted.set()
    await house.ended.wait()
    assert house.error is None
    assert house.events == ["open", "mount", *ENDED]


async def test_a_signal_before_the_mount_answers_waits_for_it_and_ends_it(house: House, nursery: trio.Nursery) -> None:
    house.mount.answers = trio.Event()
    nursery.start_soon(house.run)
    await wait_all_tasks_blocked()
    os.kill(os.getpid(), signal.SIGTERM)
    await wait_all_tasks_blocked(0.01)
    house.mount.answers.set()
    await house.ended.wait()
    assert house.error is None
    assert house.events == ["open", "mount", *SETTLED, *ENDED]


async def test_a_signal_while_the_engine_opens_ends_without_a_mount(house: House, nursery: trio.Nursery) -> None:
    house.engine.opens_at_once = False
    nursery.start_soon(house.run)
    await house.engine.begun["open"].wait()
    with pytest.raises(NotRunningError, match="is starting"):
        await house.ask(UnmountRequest())
    status = await house.ask(StatusRequest())
    assert (status["mounted"], status["phase"], status["engine"]) == (False, "starting", None)
    os.kill(os.getpid(), signal.SIGTERM)
    await house.ended.wait()
    assert house.error is None
    assert house.events == []


# --- what goes wrong -------------------------------------------------------------------------------------------------


async def test_an_engine_that_does_not_open(house: House) -> None:
    house.engine.open_failure = LockedError("held")
    await house.run()
    assert isinstance(house.error, LockedError)
    assert not house.ready.is_set()


async def test_a_mount_that_fails_closes_the_engine(house: House) -> None:
    house.mount.failure = UsageError("not empty")
    with pytest.RaisesGroup(UsageError):
        await house.serving().run(house.note_ready)
    assert house.events == ["open", "close"]
    assert not house.ready.is_set()


async def test_umount_is_refused_while_the_store_is_full(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    house.engine.commit_failure = StoreError("no space")
    with pytest.raises(StoreError, match="no space"):
        await house.ask(UnmountRequest())
    assert "unmounted" not in house.events
    house.engine.commit_failure = None
    await house.ask(UnmountRequest())
    await house.ended.wait()


async def test_umount_of_a_mount_that_stopped_writing_for_good_ends_it_and_says_so(house: House, nursery: trio.Nursery, log_rule: LogRule) -> None:
    log_rule.expect("not everything could be made durable")
    await started(house, nursery)
    house.engine.commit_failure = ReadOnlyError("writing has stopped")
    house.engine.has_stopped = True
    with pytest.raises(BackupfsError, match=r"is unmounted, but its end failed: writing has stopped; see .*/log"):
        await house.ask(UnmountRequest())
    await house.ended.wait()
    assert house.error is house.engine.commit_failure
    assert house.events[-1] == "close"


async def test_a_signal_ends_the_process_also_when_not_everything_can_be_saved(house: House, nursery: trio.Nursery, log_rule: LogRule) -> None:
    log_rule.expect("not everything could be made durable")
    await started(house, nursery)
    house.engine.commit_failure = StoreError("no space")
    os.kill(os.getpid(), signal.SIGTERM)
    await house.ended.wait()
    assert house.error is house.engine.commit_failure


async def test_requests_in_work_are_ended_before_the_engine_closes(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    answers: list[object] = []
    async with trio.open_nursery() as commands:
        commands.start_soon(house.asking, SnapshotCreateRequest("wait"), answers)
        commands.start_soon(house.asking, CheckRequest(), answers)
        await house.engine.begun["manual"].wait()
        await house.engine.begun["check"].wait()
        house.mount.unmounted.set()
        await house.ended.wait()
    assert [type(answer) for answer in answers] == [NotRunningError, NotRunningError]
    assert house.engine.taken == []
    assert house.events[-3:] == ENDED


# --- requests --------------------------------------------------------------------------------------------------------


async def test_snapshots_are_taken_listed_and_deleted(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    for tag in ("a,b", "", "a\nb"):
        with pytest.raises(UsageError, match="no tag"):
            await house.ask(SnapshotCreateRequest("first", ["a", tag]))
    made = await house.ask(SnapshotCreateRequest("first", ["a", "b", "a"]))
    assert (made["name"], made["why"], made["message"], made["tags"]) == ("s1", "manual", "first", ["a", "b"])
    assert house.events[-2:] == ["write back 7 b'path'", "snapshot manual"]
    await house.ask(SnapshotCreateRequest())
    items: list[Any] = []
    assert await house.ask(SnapshotListRequest(), items) == {"count": 2}
    assert [item["name"] for item in items] == ["s1", "s2"]
    assert (await house.ask(SnapshotDeleteRequest("s1")))["names"] == ["s1"]
    with pytest.raises(UsageError, match="there is no snapshot s1; nothing was deleted"):
        await house.ask(SnapshotDeleteRequest("s1"))
    assert (await house.ask(SnapshotShowRequest("s2")))["snapshot"]["name"] == "s2"
    assert [deleted["name"] for deleted in (await house.ask(StatusRequest()))["deleted"]] == ["s1"]
    house.mount.unmounted.set()


async def test_a_read_only_mount_takes_none(house: House, nursery: trio.Nursery) -> None:
    house.read_only = True
    house.schedules = (Schedule(every_ns=1),)
    house.engine.changes = 1
    await started(house, nursery)
    made = await house.engine.create_snapshot("before")
    for request in (
        SnapshotCreateRequest(),
        SnapshotDeleteRequest(made.name),
        SnapshotPinRequest([made.name], pinned=True),
        PruneRequest(),
        CollectRequest(),
    ):
        with pytest.raises(BackupfsError, match="read-only"):
            await house.ask(request)
    assert (await house.ask(SnapshotDeleteRequest(made.name, dry_run=True)))["names"] == [made.name]
    assert (await house.ask(PruneRequest(dry_run=True)))["kept"] == 1
    assert (await house.ask(CollectRequest(dry_run=True)))["dry_run"]
    assert set(await house.ask(OutlookRequest())) == {"held_bytes", "live_bytes", "free_bytes", "total_bytes"}
    assert house.engine.taken == [made]
    status = await house.ask(StatusRequest())
    assert (status["schedule"], status["schedules"], status["retention"]) == (None, [], None)
    await house.ask(UnmountRequest())
    await house.ended.wait()


async def test_a_schedule_begins_at_the_newest_snapshot_that_one_took(house: House, nursery: trio.Nursery) -> None:
    house.schedules = (Schedule(every_ns=DAY_NS, tags=("daily",)), Schedule(on_change_bytes=2**30), Schedule(every_ns=2 * DAY_NS, tags=("other",)))
    await house.engine.create_snapshot("schedule", tags=["daily"])
    house.engine.begun.clear()
    house.engine.changes = 1
    await started(house, nursery)
    await house.engine.begun["schedule"].wait()  # at once: the newest one is of 1970
    status = await house.ask(StatusRequest())
    assert status["schedule"]["every_s"] == 86_400
    assert status["schedule"]["next_ns"] > SystemClock().now_ns()
    assert [(one["trigger"], one["tags"], one["always"]) for one in status["schedules"]] == [
        ("every 1d", ["daily"], False),
        ("on change of 1GiB", [], False),
        ("every 2d", ["other"], False),
    ]
    assert status["schedules"][0]["next_ns"] == status["schedule"]["next_ns"] < status["schedules"][2]["next_ns"]
    assert status["schedules"][1]["next_ns"] is None
    assert (house.engine.taken[1].why, house.engine.taken[1].tags) == ("schedule", ["daily"])
    house.mount.unmounted.set()


async def test_the_past_is_asked_and_comes_back(house: House, nursery: trio.Nursery) -> None:
    house.engine.restorer = FakeRestorer(house.events, [step("add", b"f")])
    await started(house, nursery)
    assert await house.ask(VersionsRequest(b"\xff")) == {"versions": 0}
    assert house.engine.history.asked == [(b"\xff",)]
    told = await house.ask(RestoreRequest(b"d", 3))
    assert (told["done"], told["before"]) == (1, "s1")
    assert house.events[2:] == [*SETTLED, "plan", SETTLED[0], "snapshot restore", "add f", "forget f", *SETTLED]
    house.mount.unmounted.set()


async def test_a_read_only_mount_only_shows_what_a_restore_would_do(house: House, nursery: trio.Nursery) -> None:
    house.read_only = True
    house.engine.restorer = FakeRestorer(house.events, [step("add", b"f")])
    await started(house, nursery)
    for request in (RestoreRequest(b"d", 3), UndoRequest()):
        with pytest.raises(BackupfsError, match="read-only"):
            await house.ask(request)
    for request in (RestoreRequest(b"d", 3, dry_run=True), UndoRequest(dry_run=True)):
        assert (await house.ask(request))["steps"] == 1
    assert "add f" not in house.events
    house.mount.unmounted.set()


async def test_a_restore_that_is_under_way_ends_with_the_mount(house: House, nursery: trio.Nursery) -> None:
    house.engine.restorer = FakeRestorer(house.events, [step("add", b"f"), step("add", b"g")], wait_at=b"g")
    await started(house, nursery)
    answers: list[object] = []
    async with trio.open_nursery() as asking:
        asking.start_soon(house.asking, RestoreRequest(b"d", 3), answers)
        await house.engine.restorer.waiting.wait()
        house.mount.unmounted.set()
    assert [type(answer) for answer in answers] == [NotRunningError]
    assert house.events.index("add f") < house.events.index("unmounted") < house.events.index("close")
    await house.ended.wait()


async def test_status_and_stats(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    status = await house.ask(StatusRequest())
    assert (status["mounted"], status["phase"], status["pid"]) == (True, "serving", os.getpid())
    assert (status["repository"], status["repository_id"], status["directory"]) == ("/repository", REPOSITORY_ID, "/mount")
    assert status["log"] == str(house.state.log)
    assert set(status["engine"]) == set(EngineStatus.__struct_fields__)
    assert set(await house.ask(StatsRequest())) == {*Stats.__struct_fields__, "space"}
    house.mount.unmounted.set()


async def test_a_check_gives_its_findings(house: House, nursery: trio.Nursery) -> None:
    house.engine.findings = 3
    await started(house, nursery)
    items: list[Any] = []
    assert await house.ask(CheckRequest(read_data=True), items) == {"findings": 3}
    assert items == [{"number": number, "read_data": True} for number in range(3)]
    house.mount.unmounted.set()


async def test_a_check_tells_how_far_it_is(house: House, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backupfs.service.serving.PROGRESS_S", 0.001)
    await started(house, nursery)
    progress: list[tuple[int, int]] = []

    class Told(list[tuple[int, int]]):
        def append(self, value: tuple[int, int]) -> None:
            progress.append(value)
            trio.from_thread.run_sync(house.engine.check_may_go_on.set)

    assert await house.ask(CheckRequest(), None, Told()) == {"findings": 0}
    assert progress == [(1, 2)]
    house.mount.unmounted.set()


async def test_a_snapshot_is_lent_until_it_is_given_back_or_the_mount_ends(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    name = (await house.ask(SnapshotCreateRequest()))["name"]
    with connected(house.state.socket) as client:
        borrowed = await trio.to_thread.run_sync(client.borrow, LendRequest(name))
        assert borrowed["name"] == name
        assert f"has {name} back" not in house.engine.events
    while f"has {name} back" not in house.engine.events:
        await trio.lowlevel.checkpoint()
    with ExitStack() as many:
        for _ in range(LENT_MAX):
            await trio.to_thread.run_sync(many.enter_context(connected(house.state.socket)).borrow, LendRequest(name))
        assert (await house.ask(StatusRequest()))["mounted"], "others are answered"
        with connected(house.state.socket) as client, pytest.raises(LockedError):
            await trio.to_thread.run_sync(client.borrow, LendRequest(name))
    while house.engine.events.count(f"has {name} back") <= LENT_MAX:
        await trio.lowlevel.checkpoint()
    with connected(house.state.socket) as client:
        await trio.to_thread.run_sync(client.borrow, LendRequest(name))
        await house.ask(UnmountRequest())
        await trio.lowlevel.wait_readable(client)
