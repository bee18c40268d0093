"""The verbs of `backupfs snapshot`: what they ask, print and end with. The same on a real mount: `tests/fuse/test_retention.py`."""

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from backupfs.cli import times
from backupfs.cli.output import rfc3339
from backupfs.errors import UsageError
from tests.unit.cli.daemon import FakeDaemon
from tests.unit.service.shelf import DAY_NS, HOUR_NS, FakeShelf

Command = Callable[..., int]
SECOND_NS = 10**9


@pytest.fixture
def shelf(daemon: FakeDaemon) -> FakeShelf:
    shelf = daemon.shelf
    for days, holds in ((3, "ab"), (2, "bc"), (1, "c")):
        shelf.add(days * DAY_NS, holds=holds, tags=["t", "u"] if days == 2 else [])
    shelf.change("s2", made=4, altered=5, removed=6, message="before")
    return shelf


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [re.sub(r"20[0-9-]+T[0-9:.]+Z", "TIME", line) for line in capsys.readouterr().out.splitlines()]


def columns(lines: list[str]) -> list[list[str]]:
    """Cells of a table, by where its headings begin."""
    starts = [match.start() for match in re.finditer(r"(?<=  )\S|^\S", lines[0])]
    return [[line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines]


def test_list(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    shelf.change("s1", pinned=True, hold_until_ns=time.time_ns() + DAY_NS)
    shelf.change("s3", hold_until_ns=1)
    assert command("snapshot", "list", repository) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [re.split("  +", line)[0] for line in shown] == ["NAME", "s1", "s2", "s3"]
    assert columns(shown)[0] == ["NAME", "TIME", "WHY", "CHANGES", "FREES", "KEPT BY", "TAGS", "MESSAGE"]
    held = rfc3339(shelf.kept[0].hold_until_ns or 0)
    assert [row[2:] for row in columns(shown)[1:]] == [
        ["manual", "-", "1 B", f"pin, hold until {held}", "", ""],
        ["manual", "+4 ~5 -6", "0 B", "", "t,u", "before"],
        ["manual", "-", "0 B", "", "", ""],
    ]
    assert command("snapshot", "list", repository, "--no-sizes") == 0
    assert "FREES" not in capsys.readouterr().out
    assert command("snapshot", "list", repository, "--json") == 0
    listed = told(capsys)["snapshots"]
    assert [(one["name"], one["frees_bytes"], one["pinned"], one["undelete_until"]) for one in listed] == [
        ("s1", 1, True, None),
        ("s2", 0, False, None),
        ("s3", 0, False, None),
    ]


def test_list_deleted(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("snapshot", "delete", repository, "1", "s2") == 0
    shown = said(capsys)
    assert shown[:2] == ["deleted snapshot s1", "deleted snapshot s2"]
    assert shown[2] == "that frees 3 B, not before TIME: until then `backupfs snapshot undelete` brings them back"
    assert command("snapshot", "list", repository, "--deleted", "--no-sizes") == 0
    rows = columns(capsys.readouterr().out.splitlines())
    assert rows[0] == ["NAME", "TIME", "WHY", "CHANGES", "UNTIL", "TAGS", "MESSAGE"]
    assert [(row[0], row[4]) for row in rows[1:]] == [(info.name, rfc3339((info.deleted_ns or 0) + HOUR_NS)) for info in shelf.deleted]
    shelf.upkeep.undelete_ns = 0
    shelf.deleted[1] = type(shelf.deleted[1])(2, "s2", 0, "manual", "", [], 0, "purging")
    assert command("snapshot", "list", repository, "--deleted") == 0
    assert [row[5] for row in columns(capsys.readouterr().out.splitlines())[1:]] == ["any moment", "being purged"]


def test_show(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("snapshot", "show", repository, "latest~1") == 0
    assert said(capsys) == [
        "name                     s2",
        "number                   2",
        "taken                    TIME",
        "why                      manual",
        "message                  before",
        "tags                     t, u",
        "changes                  +4 ~5 -6 (made, altered, removed; since the snapshot before)",
        "state                    it is kept",
        "kept by                  -",
        "deleting it alone frees  0 B",
        "retention now            keeps it: last 2 of 2",
    ]
    assert command("snapshot", "show", repository, "s1", "--json") == 0
    shown = told(capsys)
    assert (shown["snapshot"]["name"], shown["fate"]["keep"], shown["fate"]["reasons"]) == ("s1", False, ["no rule keeps it"])
    command("snapshot", "delete", repository, "s1")
    capsys.readouterr()
    assert command("snapshot", "show", repository, "s1") == 0
    shown = said(capsys)
    assert "state                      it is deleted" in shown
    assert "can be brought back until  TIME" in shown
    assert not any("retention" in line for line in shown)
    assert command("snapshot", "show", repository) == 2
    assert command("snapshot", "show", repository, "s1", "s2") == 2


def test_create_with_a_name(command: Command, daemon: FakeDaemon, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("snapshot", "create", repository, "--name", "before the flood", "-m", "why", "--tag", "a", "--tag", "b") == 0
    assert said(capsys) == ["snapshot before the flood"]
    assert command("snapshot", "create", repository, "--name", "latest") == 2
    assert "mean something else" in capsys.readouterr().err
    assert command("snapshot", "create", repository, "--json") == 0
    assert told(capsys)["name"] == "s1"


def test_delete_dry(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("snapshot", "delete", repository, "s1", "s2", "--dry-run") == 0
    assert said(capsys) == ["would delete snapshot s1", "would delete snapshot s2", "that would free 3 B; nothing was deleted"]
    assert command("snapshot", "delete", repository, "s1", "--dry-run", "--json") == 0
    shown = told(capsys)
    assert (shown["deleted"], shown["frees_bytes"], shown["dry_run"]) == (["s1"], 1, True)
    assert len(shelf.kept) == 3


def test_undelete_says_what_awaits_them(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    command("snapshot", "delete", repository, "s1", "s2", "s3")
    capsys.readouterr()
    assert command("snapshot", "undelete", repository, "s1", "s2", "s3") == 0
    assert said(capsys) == [
        "snapshot s1 is back",
        "snapshot s2 is back",
        "snapshot s3 is back",
        "retention will delete s1 again (no rule keeps it); `backupfs snapshot pin` keeps it",
    ]
    command("snapshot", "delete", repository, "s1")
    capsys.readouterr()
    assert command("snapshot", "undelete", repository, "s1", "--json") == 0
    shown = told(capsys)
    assert (shown["undeleted"], [fate["keep"] for fate in shown["fates"]]) == (["s1"], [False])


def test_pin_and_unpin(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("snapshot", "pin", repository, "1", "s2") == 0
    assert said(capsys) == ["snapshot s1 is pinned", "snapshot s2 is pinned"]
    assert [info.pinned for info in shelf.kept] == [True, True, False]
    assert command("snapshot", "unpin", repository, "s2", "--json") == 0
    assert told(capsys)["unpinned"] == ["s2"]
    assert [info.pinned for info in shelf.kept] == [True, False, False]
    assert command("snapshot", "delete", repository, "s1") == 2
    assert "s1 is pinned" in capsys.readouterr().err


def test_hold(command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str]) -> None:
    before_ns = time.time_ns()
    assert command("snapshot", "hold", repository, "s1", "--for", "30d", "--json") == 0
    until_ns = shelf.kept[0].hold_until_ns or 0
    assert 0 <= until_ns - before_ns - 30 * DAY_NS < 3600 * SECOND_NS
    assert told(capsys) == {"schema": 1, "held": ["s1"], "hold_until": rfc3339(until_ns)}
    assert command("snapshot", "hold", repository, "s1", "--until", "2999-01-31T18:00:00Z") == 0
    assert capsys.readouterr().out == "snapshot s1 is held until 2999-01-31T18:00:00.000000Z\n"
    assert command("snapshot", "hold", repository, "s1", "--release") == 0
    assert capsys.readouterr().out == "snapshot s1 is held no longer\n"
    assert shelf.kept[0].hold_until_ns is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["hold", "{}", "s1"], "one of --until, --for and --release"),
        (["hold", "{}", "s1", "--release", "--for", "1d"], "one of --until, --for and --release"),
        (["hold", "{}", "s1", "--until", "soon"], "is no time"),
        (["hold", "{}", "s1", "--until", "2001-01-01"], "has passed; nothing was changed"),
        (["hold", "{}", "s1", "--for", "month"], "is no duration"),
        (["hold", "{}", "s1", "nosuch", "--for", "1d"], "there is no snapshot nosuch; nothing was changed"),
        (["pin", "{}"], "name at least one snapshot"),
        (["undelete", "{}", "s1"], "there is no deleted snapshot s1"),
    ],
)
def test_what_is_wrong_is_said_and_changes_nothing(
    command: Command, repository: Path, shelf: FakeShelf, capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    before = list(shelf.kept)
    assert command("snapshot", *(argument.format(repository) for argument in arguments)) == 2
    assert reason in " ".join(capsys.readouterr().err.split())
    assert shelf.kept == before


# --- times ------------------------------------------------------------------------------------------------------------


def ns(moment: datetime) -> int:
    return round(moment.timestamp()) * SECOND_NS


def test_the_end_of_a_hold_is_a_time_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    zone = ZoneInfo("America/New_York")
    assert times.until("2027-07-31") == ns(datetime(2027, 8, 1, tzinfo=zone)), "to the end of that day"
    assert times.until("2027-07-31T18:30") == ns(datetime(2027, 7, 31, 18, 30, tzinfo=zone))
    assert times.until("2027-07-31T18:30:00+05:00") == ns(datetime(2027, 7, 31, 13, 30, tzinfo=UTC))
    monkeypatch.setattr(time, "time_ns", lambda: ns(datetime(2027, 7, 31, 23, tzinfo=zone)))
    assert times.until("9:05") == ns(datetime(2027, 7, 31, 9, 5, tzinfo=zone))
    assert times.until("23:30") - ns(datetime(2027, 7, 31, 23, tzinfo=zone)) == timedelta(minutes=30) // timedelta(microseconds=1) * 1000


@pytest.mark.parametrize("text", ["", "soon", "25:00", "2027-02-30", "9999-12-31", "2027-13-01T00:00"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time: write"):
        times.until(text)
