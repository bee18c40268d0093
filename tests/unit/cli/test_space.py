"""The verbs about space and about what a mount is doing, as words and as data."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backupfs.cli.status import deleted_line, retention_lines, upkeep_lines
from backupfs.engine.attributes import UpkeepStatus, Usage
from backupfs.rules.policy import Retention
from backupfs.service.messages import DeletedTold, RetentionStatus
from tests.unit.cli.daemon import FakeDaemon
from tests.unit.service.shelf import DAY_NS, FakeShelf

Command = Callable[..., int]
AT = "1970-01-01T00:00:00.000000Z"


@pytest.fixture
def shelf(daemon: FakeDaemon) -> FakeShelf:
    shelf = daemon.shelf
    shelf.used = Usage(4096, 1024, 512, 256, 2048, 2048)
    for days, holds in ((3, "ab"), (2, "bc"), (1, "d")):
        shelf.add(days * DAY_NS, holds=holds)
    return shelf


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [re.sub(r"20[0-9-]+T[0-9:.]+Z", "TIME", line) for line in capsys.readouterr().out.splitlines()]


def test_prune(command: Command, daemon: FakeDaemon, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("prune", repository, "--dry-run") == 0
    table = [
        "NAME  TIME                         FATE    WHY",
        "s1    TIME  delete  no rule keeps it",
        "s2    TIME  keep    last 2 of 2",
        "s3    TIME  keep    newest, last 1 of 2",
    ]
    assert said(capsys) == [*table, "2 would stay, 1 would be deleted; that would free 1 B. Nothing was deleted."]
    assert len(shelf.kept) == 3
    assert command("prune", repository, "--json", "--dry-run") == 0
    shown = told(capsys)
    assert [(one["name"], one["keep"]) for one in shown["snapshots"]] == [("s1", False), ("s2", True), ("s3", True)]
    assert (shown["kept"], shown["deleted"], shown["frees_bytes"], shown["excess_bytes"], shown["dry_run"]) == (2, 1, 1, 0, True)
    assert command("prune", repository) == 0
    assert said(capsys) == [*table, "2 stay, 1 deleted; that frees 1 B."]
    assert shelf.names() == ["s2", "s3"]
    daemon.retention = Retention(space_limit_bytes=1024)
    assert command("prune", repository, "--dry-run") == 0
    assert said(capsys)[-1] == "by the space limits, 4.8 KiB are too many"


def test_gc(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    command("snapshot", "delete", repository, "s1", "s2")
    shelf.upkeep.dead_bytes = 1024
    capsys.readouterr()
    lines = ["dead in packs: 1.0 KiB", "packs to rewrite: 1, which copies 2.0 KiB and frees 1.0 KiB"]
    waiting = "deleted snapshots that can still be brought back: 2; --now purges them"
    assert command("gc", repository, "--dry-run") == 0
    assert said(capsys) == [*lines, waiting, "nothing was changed"]
    assert command("gc", repository, "--dry-run", "--now", "--json") == 0
    shown = told(capsys)
    assert (shown["purged"], shown["purge_frees_bytes"], shown["freed_bytes"], shown["dry_run"]) == (2, 7, 0, True)
    assert shelf.upkeep.collected == []
    assert command("gc", repository) == 0
    assert said(capsys) == [*lines, waiting, "1.0 KiB freed; the repository takes 4.8 KiB"]
    assert command("gc", repository, "--now") == 0
    assert said(capsys)[2:] == ["deleted snapshots to purge: 2, which frees 7 B more", "0 B freed; the repository takes 4.8 KiB"]
    assert shelf.upkeep.collected == [(False, True), (True, True)]


def test_stats(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    command("snapshot", "delete", repository, "s1")
    shelf.upkeep.dead_bytes = 1024
    shelf.free_bytes = 100
    capsys.readouterr()
    assert command("stats", repository) == 0
    assert said(capsys) == [
        f"{repository} takes 5.8 KiB, and 4.0 KiB of reserve and of what recoveries set aside;",
        "100 B of 1000 B are free on its disk.",
        "",
        "packs              4.0 KiB",
        "what lives         0 B in 0 packs, those that are being written included",
        "what is dead       1.0 KiB; `backupfs gc` gets 1.0 KiB of it back",
        "journal            1.0 KiB, 0 batches since the beginning",
        "checkpoints        512 B",
        "being written      256 B",
        "snapshots          2",
        "deleted snapshots  1; purging them frees 1 B",
        "index              0 B, outside of the repository",
        "made so far        0 inodes, 0 blobs",
    ]
    assert command("stats", repository, "--json") == 0
    shown = told(capsys)
    assert (shown["snapshots"], shown["space"]["used_bytes"], shown["space"]["packs_bytes"]) == (2, 5888, 4096)


# --- status -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (None, []),
        (RetentionStatus(None, 0, 0, 0), [f"retention: has not run yet; next {AT}, or after a scheduled snapshot"]),
        (
            RetentionStatus(0, None, 41, 2, "no disk"),
            [f"retention: 41 kept, 2 deleted at {AT}", "retention has failed: no disk"],
        ),
    ],
)
def test_status_tells_of_retention(status: RetentionStatus | None, lines: list[str]) -> None:
    assert retention_lines(msgspec.to_builtins(status)) == lines


def test_status_tells_of_deleted_snapshots_and_of_what_waits() -> None:
    waiting, purging = DeletedTold("a", 0, 0, is_purging=False), DeletedTold("b", 0, None, is_purging=True)
    assert [deleted_line(msgspec.to_builtins(one)) for one in (waiting, purging)] == [
        f"deleted snapshot a: can be brought back until {AT} at least",
        "deleted snapshot b: is being purged",
    ]
    upkeep = UpkeepStatus(0, 0, 0, 3, 2048, 1024, 512, 0, stopped=True)
    assert upkeep_lines({"upkeep": msgspec.to_builtins(upkeep), "journal_since_checkpoint_bytes": 4096}) == [
        "collection: 3 packs of 2.0 KiB wait to be rewritten; 1.0 KiB copied, 512 B freed since the mount",
        "journal: 4.0 KiB since the last checkpoint",
        "background work has stopped after a failure: unmount, mend the cause, mount again",
    ]
    assert upkeep_lines({}) == []
