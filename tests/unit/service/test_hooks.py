"""Hooks around a snapshot, as real scripts that write down what they were told."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import StoreError
from backupfs.rules.policy import SECOND_NS
from backupfs.service.hooks import Hooks, Mounted
from backupfs.service.messages import HookFailedError
from backupfs.service.settings import HookCommands
from tests.conftest import LogRule

TAKEN = SnapshotInfo(1, "2026-10-04T120000Z", 0, "manual", "", [], 0, "kept")
NOT_SO_SOON_NS = 10**9 * SECOND_NS


class House:
    """A place where each hook leaves a line."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.diary = base / "diary"
        self.diary.touch()
        self.environ = {"PATH": os.environ["PATH"], "DIARY": str(self.diary)}
        self.commands: dict[str, Any] = {"timeout_ns": NOT_SO_SOON_NS}
        for event in ("before_snapshot", "after_snapshot", "on_failure"):
            self.hook(event)

    def hook(self, event: str, then: str = "") -> None:
        said = "$BACKUPFS_EVENT|$BACKUPFS_STATUS|$BACKUPFS_SNAPSHOT|$BACKUPFS_ERROR"
        self.commands[event] = ("sh", "-c", f'echo "{said}" >>"$DIARY"; {then}')

    def hooks(self) -> Hooks:
        return Hooks(HookCommands(**self.commands), Mounted("/mnt", "/repo", "ab12"), self.environ, grace_s=0)

    async def take(self) -> SnapshotInfo:
        self.note("(taken)")
        return TAKEN

    async def fail(self) -> SnapshotInfo:
        self.note("(fails)")
        raise StoreError("no space")

    def note(self, line: str) -> None:
        with self.diary.open("a") as diary:
            diary.write(line + "\n")

    def lines(self) -> list[str]:
        return self.diary.read_text().splitlines()


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


NAME = TAKEN.name


async def test_before_and_after(house: House) -> None:
    assert await house.hooks().around(house.take, "manual", []) is TAKEN
    assert house.lines() == ["before-snapshot|||", "(taken)", f"after-snapshot|ok|{NAME}|"]


async def test_without_hooks_nothing_is_started(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("subprocess.Popen")
    hooks = Hooks(HookCommands(), Mounted("/mnt", "/repo", "ab12"), {})
    assert await hooks.around(house.take, "manual", []) is TAKEN
    with pytest.raises(StoreError):
        await hooks.around(house.fail, "manual", [])


async def test_a_failing_before_hook_keeps_the_snapshot_from_being_taken(house: House, log_rule: LogRule) -> None:
    log_rule.expect("the hook before-snapshot ended with exit code 3$")
    house.hook("before_snapshot", "exit 3")
    with pytest.raises(HookFailedError, match="the hook before-snapshot ended with exit code 3; the log has what it said"):
        await house.hooks().around(house.take, "manual", [])
    said = "the hook before-snapshot ended with exit code 3; the log has what it said"
    assert house.lines() == ["before-snapshot|||", f"on-failure|failed||{said}"]


async def test_a_failing_snapshot_is_told_to_the_after_hook_first(house: House) -> None:
    with pytest.raises(StoreError):
        await house.hooks().around(house.fail, "manual", [])
    assert house.lines() == ["before-snapshot|||", "(fails)", "after-snapshot|failed||no space", "on-failure|failed||no space"]


async def test_a_fault_is_told_as_well(house: House) -> None:
    async def fault() -> SnapshotInfo:
        raise ExceptionGroup("x", [ValueError("odd")])

    with pytest.RaisesGroup(ValueError):
        await house.hooks().around(fault, "manual", [])
    assert house.lines()[1:] == ["after-snapshot|failed||ValueError: odd", "on-failure|failed||ValueError: odd"]


async def test_a_failing_after_hook_does_not_undo_the_snapshot(house: House, log_rule: LogRule) -> None:
    log_rule.expect("the hook after-snapshot was ended by signal 9$")
    house.hook("after_snapshot", "kill -KILL $$")
    assert await house.hooks().around(house.take, "manual", []) is TAKEN
    said = "the hook after-snapshot was ended by signal 9; the log has what it said"
    assert house.lines() == ["before-snapshot|||", "(taken)", f"after-snapshot|ok|{NAME}|", f"on-failure|failed|{NAME}|{said}"]


async def test_a_failing_on_failure_is_logged_and_hides_nothing(house: House, log_rule: LogRule) -> None:
    log_rule.expect("the hook on-failure ended with exit code 1$")
    house.hook("on_failure", "exit 1")
    with pytest.raises(StoreError):
        await house.hooks().around(house.fail, "manual", [])


async def test_a_hook_that_does_not_end_in_time_has_failed(house: House, log_rule: LogRule) -> None:
    log_rule.expect("the hook before-snapshot had not ended after 1e-09 s$")
    os.mkfifo(house.base / "never")
    house.commands["before_snapshot"] = ("sh", "-c", f"read never <{house.base}/never")
    house.commands["timeout_ns"] = 1
    house.commands["on_failure"] = ()
    with pytest.raises(HookFailedError, match="had not ended after"):
        await house.hooks().around(house.take, "manual", [])
    assert house.lines() == []


async def test_a_hook_that_cannot_be_started_has_failed(house: House, log_rule: LogRule) -> None:
    log_rule.expect("the hook before-snapshot cannot be started: Argument list too long")
    house.commands["before_snapshot"] = ("true", "x" * 1_000_000)
    with pytest.raises(HookFailedError, match="cannot be started: Argument list too long"):
        await house.hooks().around(house.take, "manual", [])
    assert house.lines() == ["on-failure|failed||the hook before-snapshot cannot be started: Argument list too long"]


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """Waits until a script has said that it has begun."""
    path = tmp_path / "ready"
    os.mkfifo(path)
    os.mkfifo(tmp_path / "never")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def wait() -> None:
        await trio.lowlevel.wait_readable(reader)

    yield wait
    os.close(reader)


async def test_the_end_of_the_mount_during_a_before_hook(house: House, ready: Callable[[], Any], tmp_path: Path) -> None:
    house.hook("before_snapshot", f"exec 3>{tmp_path}/ready; echo >&3; read never <{tmp_path}/never")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.hooks().around, house.take, "manual", [])
        await ready()
        nursery.cancel_scope.cancel()
    assert house.lines() == ["before-snapshot|||", "on-failure|failed||the mount was ended"]


async def test_the_end_of_the_mount_during_the_snapshot_releases_what_was_held(house: House) -> None:
    async def stopped() -> SnapshotInfo:
        nursery.cancel_scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.hooks().around, stopped, "manual", [])
    assert house.lines()[1:] == ["after-snapshot|failed||the mount was ended", "on-failure|failed||the mount was ended"]


async def test_the_end_of_the_mount_does_not_stop_the_after_hook(house: House, ready: Callable[[], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    house.hook("after_snapshot", f"echo >{tmp_path}/ready; read word <{tmp_path}/go; echo $word >>$DIARY")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.hooks().around, house.take, "manual", [])
        await ready()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync((tmp_path / "go").write_text, "released\n")
    assert house.lines()[-1] == "released"


async def test_what_a_hook_is_told_and_what_is_kept_from_it(house: House) -> None:
    house.environ |= {
        "BACKUPFS_PASSWORD": "s",
        "BACKUPFS_PASSWORD_FILE": "s",
        "BACKUPFS_PASSWORD_COMMAND": "s",
        "BACKUPFS_NEW_PASSWORD": "s",
        "BACKUPFS_NEW_PASSWORD_FILE": "s",
        "CREDENTIALS_DIRECTORY": "s",
        "BACKUPFS_STATE_HOME": "/state",
        "OTHER": "kept",
    }
    house.commands["before_snapshot"] = ("sh", "-c", 'env -0 >"$DIARY.env"')
    await house.hooks().around(house.take, "schedule", ["a", "b\0c"])
    told = dict(line.split("=", 1) for line in Path(f"{house.diary}.env").read_text().split("\0") if line)
    told.pop("PWD", None)
    assert told == {
        "PATH": os.environ["PATH"],
        "DIARY": str(house.diary),
        "BACKUPFS_STATE_HOME": "/state",
        "OTHER": "kept",
        "BACKUPFS_EVENT": "before-snapshot",
        "BACKUPFS_DIRECTORY": "/mnt",
        "BACKUPFS_REPOSITORY": "/repo",
        "BACKUPFS_REPOSITORY_ID": "ab12",
        "BACKUPFS_WHY": "schedule",
        "BACKUPFS_TAGS": "a,b?c",
        "BACKUPFS_SNAPSHOT": "",
        "BACKUPFS_STATUS": "",
        "BACKUPFS_ERROR": "",
    }


async def test_output_goes_to_the_log_and_cannot_pass_for_a_record(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    house.commands["before_snapshot"] = ("printf", "%b", r"one\n2026-01-01 ERROR two\033[1m\xff\n\n")
    house.commands["after_snapshot"] = ("true",)
    await house.hooks().around(house.take, "manual", [])
    assert caplog.messages == [
        "the hook before-snapshot has said:\n  | one\n  | 2026-01-01 ERROR two\\x1b[1m\\xff",
        "the hook before-snapshot is done",
        "the hook after-snapshot is done",
    ]


async def test_new_commands_count_from_the_next_snapshot_on(house: House) -> None:
    hooks = house.hooks()

    async def take() -> SnapshotInfo:
        hooks.commands = HookCommands()
        return TAKEN

    await hooks.around(take, "manual", [])
    assert [line.partition("|")[0] for line in house.lines()] == ["before-snapshot", "after-snapshot"]
    await hooks.around(take, "manual", [])
    assert len(house.lines()) == 2
