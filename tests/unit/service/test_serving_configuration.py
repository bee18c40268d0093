"""Configuration and policy of a process that serves: what is in force from when on, with the fakes of the other tests of serving."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from backupfs.errors import BackupfsError, FileSystemError, StoreError, UsageError
from backupfs.rules.policy import SECOND_NS, Schedule
from backupfs.service.configuration import POLICY, Configuration
from backupfs.service.messages import (
    ConfigurationRequest,
    HookFailedError,
    PolicyRequest,
    PolicySetRequest,
    PruneRequest,
    SnapshotCreateRequest,
    StatusRequest,
    UnmountRequest,
)
from tests.conftest import LogRule
from tests.unit.service.test_serving import House, started

EVERY_2D = "[[schedule]]\nevery = '2d'\ntags = ['a']\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    made.schedules = None
    file = tmp_path / "f.toml"
    file.write_text(EVERY_2D)
    made.files = (file,)
    logging.getLogger().addHandler(made.recent)
    yield made
    logging.getLogger().removeHandler(made.recent)


def write(house: House, text: str) -> None:
    house.files[0].write_text(text)


async def end(house: House) -> None:
    house.mount.unmounted.set()
    await house.ended.wait()


async def schedules(house: House) -> list[tuple[str, list[str]]]:
    return [(one["trigger"], one["tags"]) for one in (await house.ask(StatusRequest()))["schedules"]]


async def reloaded(house: House, caplog: pytest.LogCaptureFixture, said: str) -> None:
    """Send the signal, return when the log says so."""
    before = len(caplog.messages)
    caplog.set_level("INFO")
    os.kill(os.getpid(), signal.SIGHUP)
    while not any(said in message for message in caplog.messages[before:]):
        await trio.lowlevel.checkpoint()


async def test_the_file_says_when_and_the_command_is_told(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    assert (house.told.pid, house.told.every_s, house.told.schedules) == (os.getpid(), 2 * 86_400, ["every 2d"])
    assert await schedules(house) == [("every 2d", ["a"])]
    assert (await house.ask(StatusRequest()))["configuration"] == str(house.files[0])
    await end(house)


async def test_without_a_file_the_policy_that_the_repository_keeps(house: House, nursery: trio.Nursery) -> None:
    house.files = ()
    house.engine.kept_policy = b'{"schedule": [{"on-idle": "5m"}]}'
    await started(house, nursery)
    assert (house.told.every_s, house.told.schedules) == (None, ["on idle for 5m"])
    assert (await house.ask(StatusRequest()))["configuration"] is None
    await end(house)


async def test_no_schedule_at_all(house: House, nursery: trio.Nursery) -> None:
    write(house, "schedule = []")
    await started(house, nursery)
    assert (house.told.every_s, house.told.schedules) == (None, [])
    assert (await house.ask(StatusRequest()))["schedule"] is None
    await end(house)


async def test_a_policy_of_another_version_does_not_keep_it_from_being_mounted(house: House, nursery: trio.Nursery, log_rule: LogRule) -> None:
    log_rule.expect("there is no key 'often'.*no snapshot is deleted")
    house.files = ()
    house.engine.kept_policy = b'{"schedule": [{"often": 1}]}'
    await started(house, nursery)
    assert await schedules(house) == [("every 1h", [])]
    await end(house)


# --- read anew --------------------------------------------------------------------------------------------------------


async def test_a_hang_up_reads_the_file_anew(house: House, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    house.engine.changes = 1
    await started(house, nursery)
    write(house, "[[schedule]]\non-change = 1\ntags = ['b']\n")
    await reloaded(house, caplog, f"the configuration was read anew, from {house.files[0]}")
    await house.engine.begun["schedule"].wait()
    assert [info.tags for info in house.engine.taken] == [["b"]]
    assert not house.ended.is_set()
    write(house, "schedule = []\n[hooks]\nbefore-snapshot = 'false'")
    await reloaded(house, caplog, "read anew")
    assert await schedules(house) == []
    await end(house)


async def test_a_bad_file_changes_nothing(house: House, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, log_rule: LogRule) -> None:
    log_rule.expect(f"the configuration stays as it was: {house.files[0]}: this is no TOML")
    log_rule.expect("the configuration stays as it was: there is no configuration file")
    await started(house, nursery)
    write(house, "?")
    await reloaded(house, caplog, "stays as it was")
    house.files[0].unlink()
    await reloaded(house, caplog, "there is no configuration file")
    assert await schedules(house) == [("every 2d", ["a"])]
    assert [trouble["message"].partition(":")[0] for trouble in (await house.ask(StatusRequest()))["errors"]] == [
        "the configuration stays as it was"
    ] * 2
    await end(house)


async def test_a_fault_while_reading_does_not_end_the_mount(
    house: House, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(_: Configuration) -> Configuration:
        raise RuntimeError("a fault")

    log_rule.expect("the configuration stays as it was$")
    await started(house, nursery)
    monkeypatch.setattr(Configuration, "reread", fault)
    await reloaded(house, caplog, "stays as it was")
    assert await schedules(house) == [("every 2d", ["a"])]
    await end(house)


async def test_options_of_the_mount_wait_for_the_next_one(
    house: House, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture, log_rule: LogRule
) -> None:
    log_rule.expect("they count from the next mount on")
    await started(house, nursery)
    write(house, "[mount]\nread-only = true")
    await reloaded(house, caplog, "read anew")
    assert await schedules(house) == [("every 1h", [])]
    await house.ask(SnapshotCreateRequest())
    await end(house)


async def test_a_hang_up_before_the_mount_answers_counts(house: House, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> None:
    house.mount.answers = trio.Event()
    nursery.start_soon(house.run)
    await house.engine.begun["open"].wait()
    write(house, "[[schedule]]\nevery = '3d'")
    await reloaded(house, caplog, "read anew")
    house.mount.answers.set()
    await house.ready.wait()
    assert await schedules(house) == [("every 3d", [])]
    await end(house)


# --- policy -----------------------------------------------------------------------------------------------------------


async def test_a_policy_is_kept_and_in_force_at_once(house: House, nursery: trio.Nursery) -> None:
    house.files = ()
    house.engine.changes = 1
    await started(house, nursery)
    assert await house.ask(PolicyRequest()) == {"policy": ""}
    wanted = '{"schedule": [{"on-change": 1, "tags": ["x"]}], "retention": {"keep-daily": 3}}'
    kept = await house.ask(PolicySetRequest(wanted))
    assert msgspec.json.decode(kept["policy"]) == msgspec.json.decode(wanted)
    assert await house.ask(PolicyRequest()) == kept
    assert house.engine.kept_policy == kept["policy"].encode()
    await house.engine.begun["schedule"].wait()
    assert [info.tags for info in house.engine.taken] == [["x"]]
    assert await house.ask(PolicySetRequest("")) == {"policy": ""}
    assert await schedules(house) == [("every 1h", [])]
    await end(house)


async def test_a_policy_that_is_not_understood_is_refused(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    for text in ("?", '{"hooks": {}}', '{"retention": {"keep-daily": "x"}}'):
        with pytest.raises(UsageError, match=r"^the policy: "):
            await house.ask(PolicySetRequest(text))
    assert house.engine.kept_policy == b""
    await end(house)


async def test_of_two_who_change_the_policy_the_second_is_told(house: House, nursery: trio.Nursery) -> None:
    await started(house, nursery)
    first = await house.ask(PolicySetRequest('{"retention":{"keep-daily":1}}', ""))
    with pytest.raises(BackupfsError, match="somebody else has set the policy meanwhile"):
        await house.ask(PolicySetRequest('{"retention":{"keep-daily":2}}', ""))
    assert await house.ask(PolicyRequest()) == first
    await house.ask(PolicySetRequest('{"retention":{"keep-daily":2}}', first["policy"]))
    await end(house)


async def test_a_read_only_mount_keeps_no_policy(house: House, nursery: trio.Nursery) -> None:
    house.read_only = True
    write(house, "[mount]\nread-only = true")
    await started(house, nursery)
    with pytest.raises(BackupfsError, match="read-only"):
        await house.ask(PolicySetRequest(""))
    assert await house.ask(PolicyRequest()) == {"policy": ""}
    assert house.told.schedules == []
    await end(house)


async def test_each_source_is_told(house: House, nursery: trio.Nursery) -> None:
    house.schedules = (Schedule(every_ns=SECOND_NS * 86_400),)
    house.engine.kept_policy = b'{"retention":{"keep-daily":1}}'
    await started(house, nursery)
    assert await house.ask(ConfigurationRequest()) == {
        "layers": [
            {"origin": "test", "settings": {"schedule": [{"every": "1d"}]}},
            {"origin": str(house.files[0]), "settings": {"schedule": [{"every": "2d", "tags": ["a"]}]}},
            {"origin": POLICY, "settings": {"retention": {"keep-daily": 1}}},
        ]
    }
    await end(house)


# --- hooks ------------------------------------------------------------------------------------------------------------


async def test_hooks_run_around_a_snapshot_by_hand_and_before_files_are_brought_in(
    house: House, nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = tmp_path / "diary"
    monkeypatch.setenv("BACKUPFS_PASSWORD", "secret")
    note = f"""sh -c 'echo "$BACKUPFS_EVENT $BACKUPFS_WHY $BACKUPFS_TAGS $BACKUPFS_SNAPSHOT $BACKUPFS_DIRECTORY $BACKUPFS_PASSWORD" >>{diary}'"""
    write(house, f'schedule = []\n[hooks]\nbefore-snapshot = """{note}"""\nafter-snapshot = """{note}"""\n')
    brought: list[str] = []

    def write_back(path: bytes | None, ino: int) -> None:
        brought.append(diary.read_text())

    monkeypatch.setattr(house.mount, "write_back", write_back)
    await started(house, nursery)
    await house.ask(SnapshotCreateRequest("", ["t", "u"]))
    before = "before-snapshot manual t,u  /mount \n"
    assert brought == [before]
    assert diary.read_text() == f"{before}after-snapshot manual t,u s1 /mount \n"
    await end(house)


async def test_a_hook_that_fails_is_told_to_whoever_asked_and_in_the_status(house: House, nursery: trio.Nursery, log_rule: LogRule) -> None:
    log_rule.expect("the hook before-snapshot ended with exit code 1")
    write(house, "schedule = []\n[hooks]\nbefore-snapshot = 'false'\n")
    await started(house, nursery)
    with pytest.raises(HookFailedError, match="the hook before-snapshot ended with exit code 1"):
        await house.ask(SnapshotCreateRequest())
    assert house.engine.taken == []
    assert [trouble["message"] for trouble in (await house.ask(StatusRequest()))["errors"]] == ["the hook before-snapshot ended with exit code 1"]
    await end(house)


async def test_an_unmount_does_not_wait_for_a_hook(house: House, nursery: trio.Nursery, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ready")
    os.mkfifo(tmp_path / "never")
    reader = os.open(tmp_path / "ready", os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 3>{tmp_path}/ready; echo >&3; read never <{tmp_path}/never"
    write(house, f'schedule = []\n[hooks]\nbefore-snapshot = ["sh", "-c", "{script}"]\n')
    await started(house, nursery)
    answers: list[Any] = []
    async with trio.open_nursery() as commands:
        commands.start_soon(house.asking, SnapshotCreateRequest(), answers)
        await trio.lowlevel.wait_readable(reader)
        await house.ask(UnmountRequest())
    os.close(reader)
    assert "was ended meanwhile" in str(answers[0])
    assert house.engine.taken == []


# --- retention --------------------------------------------------------------------------------------------------------


async def test_the_time_to_bring_back_and_retention_follow_the_policy_at_once(house: House, nursery: trio.Nursery) -> None:
    house.files = ()
    for _ in range(3):
        await house.engine.create_snapshot("before")
    house.engine.upkeep.undelete_ns = 10**18
    await started(house, nursery)
    assert (house.engine.upkeep.undelete_ns, house.engine.upkeep.woken) == (3600 * SECOND_NS, 1)
    assert (await house.ask(PruneRequest(dry_run=True)))["deleted"] == 0, "three days of 1970, each the newest of its day"
    none = ",".join(f'"keep-{name}":0' for name in ("hourly", "daily", "weekly", "monthly", "yearly"))
    await house.ask(PolicySetRequest('{"retention":{"undelete-time":"2d","keep-last":1,' + none + "}}"))
    assert house.engine.upkeep.undelete_ns == 2 * 86_400 * SECOND_NS
    assert house.engine.upkeep.woken == 2
    assert len(house.engine.kept) == 3, "setting a policy deletes nothing by itself"
    assert (await house.ask(PruneRequest()))["deleted"] == 2
    assert [info.name for info in house.engine.kept] == ["s3"]
    retention = (await house.ask(StatusRequest()))["retention"]
    assert (retention["kept"], retention["deleted"], retention["failure"]) == (1, 2, "")
    await end(house)


async def test_retention_runs_after_a_scheduled_snapshot(house: House, nursery: trio.Nursery) -> None:
    write(
        house,
        "[[schedule]]\non-change = 1\n[retention]\nkeep-last = 1\n"
        "keep-hourly = 0\nkeep-daily = 0\nkeep-weekly = 0\nkeep-monthly = 0\nkeep-yearly = 0\n",
    )
    await house.engine.create_snapshot("before")
    house.engine.changes = 1
    await started(house, nursery)
    await house.engine.begun["schedule"].wait()
    await wait_all_tasks_blocked()
    assert [info.name for info in house.engine.kept] == ["s2"]
    await end(house)


# --- mkdir ------------------------------------------------------------------------------------------------------------


async def test_mkdir_brings_in_and_runs_the_hooks_and_does_not_wait_for_the_one_after(house: House, nursery: trio.Nursery, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go on")
    diary = tmp_path / "diary"
    write(
        house,
        f"""
        schedule = []
        [hooks]
        before-snapshot = ["sh", "-c", "echo before $BACKUPFS_WHY >>{diary}"]
        after-snapshot = ["sh", "-c", "read word <'{tmp_path}/go on'; echo after $BACKUPFS_SNAPSHOT >>{diary}"]
        """,
    )
    await started(house, nursery)
    await house.engine.take_named("by name")
    assert house.events[-2:] == ["write back 7 b'path'", "snapshot mkdir"]
    assert [info.name for info in house.engine.kept] == ["by name"]
    assert diary.read_text() == "before mkdir\n", "the hook after it may look into .snapshots"
    await trio.to_thread.run_sync((tmp_path / "go on").write_text, "\n")
    await end(house)
    assert diary.read_text().splitlines() == ["before mkdir", "after by name"]


async def test_what_mkdir_may_not_do(house: House, nursery: trio.Nursery, tmp_path: Path, log_rule: LogRule) -> None:
    log_rule.expect("the hook before-snapshot ended with exit code 1")
    diary = tmp_path / "diary"
    write(
        house,
        f"""
        schedule = []
        [hooks]
        before-snapshot = ["sh", "-c", "echo before >>{diary}; test ! -e {diary}.no"]
        after-snapshot = ["sh", "-c", "echo after $BACKUPFS_STATUS >>{diary}"]
        """,
    )
    await started(house, nursery)
    with pytest.raises(UsageError, match="printable"):
        await house.engine.take_named("a\nb")
    await house.engine.take_named("a")
    with pytest.raises(FileSystemError):
        await house.engine.take_named("a")
    house.engine.cut_failure = StoreError("no disk")
    with pytest.raises(StoreError, match="no disk"):
        await house.engine.take_named("b")
    (tmp_path / "diary.no").touch()
    with pytest.raises(HookFailedError):
        await house.engine.take_named("c")
    assert [info.name for info in house.engine.kept] == ["a"]
    await end(house)
    assert diary.read_text().split("\n") == ["before", "after ok", "before", "after failed", "before", ""]
