"""The verbs about the past: which mount and snapshot are meant, and how it is shown. Against a real mount: `tests/fuse/test_restore.py`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backupfs.cli.history import split_words
from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import UsageError
from backupfs.service.history import ChangeTold, DiffTold, FoundTold, VersionTold
from backupfs.service.messages import DiffRequest, FindRequest, SnapshotListRequest, VersionsRequest
from tests.unit.cli.scripted import ScriptedDaemon

Command = Callable[..., int]
HOUR_NS = 3600 * 10**9


@pytest.fixture
def past(scripted: ScriptedDaemon) -> ScriptedDaemon:
    """A scripted that has three snapshots, of 1970."""
    scripted.items[SnapshotListRequest] = [SnapshotInfo(serial, f"s{serial}", serial * HOUR_NS, "manual", "", [], 0, "kept") for serial in (1, 2, 3)]
    return scripted


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_versions(command: Command, past: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    versions = [
        VersionTold("d/f", "file", 2048, 5_000_000_000, "0644", 0, 0, None, None, 0, is_present=True),
        VersionTold("d/f", "file", 3, 4_000_000_000, "0644", 0, 0, "s1", "s2", 2, is_present=False),
    ]
    past.items[VersionsRequest] = list(versions)
    assert command("versions", past.directory / "d" / "f") == 0
    assert capsys.readouterr().out.splitlines() == [
        "MODIFIED                     SIZE     FIRST  LAST  SNAPSHOTS",
        "1970-01-01T00:00:05.000000Z  2.0 KiB  now    now   0",
        "1970-01-01T00:00:04.000000Z  3 B      s1     s2    2",
    ]
    past.items[VersionsRequest] = [*versions, VersionTold("old\\udcff\n", "directory", 3, 0, "0644", 0, 0, "s1", "s1", 1, is_present=False)]
    assert command("versions", os.fsdecode(bytes(past.directory) + b"/d/\xff")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1970-01-01T00:00:00.000000Z  directory  s1     s1    1          old\\udcff\\n"
    assert past.asked[-1] == VersionsRequest(b"d/\xff")
    assert command("versions", past.directory / "d" / "f", "--json") == 0
    shown = told(capsys)
    assert (shown["path"], len(shown["versions"])) == ("d/f", 3)
    assert shown["versions"][1] == {
        "path": "d/f", "type": "file", "size": 3, "mtime": "1970-01-01T00:00:04.000000Z", "mode": "0644", "uid": 0, "gid": 0,
        "first": "s1", "last": "s2", "snapshots": 2, "is_present": False,
    }  # fmt: skip
    past.results[VersionsRequest] = UsageError("'x' is in no snapshot")
    assert command("versions", past.directory / "x") == 2


def test_outside_of_any_mount(command: Command, past: ScriptedDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("versions", tmp_path / "f") == 10
    assert "lies in no directory that a backupfs of yours is mounted on" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["path", "cwd", "repository", "default"])
def test_differences(
    command: Command,
    past: ScriptedDaemon,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    where: str,
) -> None:
    past.items[DiffRequest] = [
        ChangeTold("+", "new", None, "file", None, 10),
        ChangeTold("M", "grown", None, "file", 3, 2048),
        ChangeTold("P", "same", None, "file", 3, 3),
        ChangeTold("R", "there", "here", "directory", 4096, 4096),
    ]
    past.results[DiffRequest] = DiffTold({"+": 1, "M": 1, "P": 1, "R": 1}, 2055, 0)
    given: list[str | Path] = []
    below = b""
    if where == "path":
        given, below = [past.directory / "d" / "gone"], b"d/gone"
    elif where == "repository":
        given = [repository]
    elif where == "default":
        monkeypatch.setenv("BACKUPFS_REPOSITORY", str(repository))
    else:
        monkeypatch.chdir(past.directory)
    assert command("diff", *given, "s1", "latest~1") == 0
    assert past.asked[-1] == DiffRequest(1, 2, below)
    assert capsys.readouterr().out.splitlines() == [
        "+           10 B  new",
        "M 3 B -> 2.0 KiB  grown",
        "P            3 B  same",
        "R      directory  here -> there",
    ]
    assert command("diff", *given, "-1h", "--json") == 0
    assert past.asked[-1] == DiffRequest(3, 0, below)
    shown = told(capsys)
    assert (shown["from"], shown["to"], shown["below"], shown["more_bytes"]) == ("s3", None, below.decode(), 2055)
    assert [change["kind"] for change in shown["changes"]] == ["+", "M", "P", "R"]


def test_a_sum_of_differences(command: Command, past: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    past.results[DiffRequest] = DiffTold({"+": 2, "-": 1, "T": 1}, 2048, 0)
    assert command("diff", past.directory, "1", "--stat") == 0
    assert past.asked[-1] == DiffRequest(1, 0, b"", each=False)
    assert capsys.readouterr().out.splitlines() == ["2 added, 1 removed, 1 of another type", "2.0 KiB more, 0 B less"]
    assert command("diff", past.directory, "1", "--stat", "--json") == 0
    assert "changes" not in told(capsys)
    past.results[DiffRequest] = DiffTold({}, 0, 0)
    assert command("diff", past.directory, "1") == 0
    assert capsys.readouterr().out == "nothing has changed\n"


@pytest.mark.parametrize("words", [["d/x"], ["a", "b", "c", "d"], ["--bogus", "1"], ["-x"], ["tomorrow"], ["1", "nowhen"]])
def test_differences_of_what_is_not_understood(command: Command, past: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.chdir(past.directory)
    (past.directory / "d").mkdir()
    assert command("diff", *words) == 2


def test_which_word_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("there", "latest", "12"):
        (tmp_path / name).touch()
    assert split_words(["there", "x"]) == ("there", ["x"])
    assert split_words(["elsewhere", "x"]) == (None, ["elsewhere", "x"])
    assert split_words(["latest", "12"]) == (None, ["latest", "12"])
    assert split_words(["./latest", "12"]) == ("./latest", ["12"])
    assert split_words(["a", "b", "c"]) == ("a", ["b", "c"])


def test_names(command: Command, past: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    past.items[FindRequest] = [
        FoundTold("z/x", "file", None, None, 0, is_present=True),
        FoundTold("a/x", "directory", "s1", "s3", 3, is_present=False),
    ]
    assert command("find", past.directory / "d", os.fsdecode(b"x\xff*")) == 0
    assert past.asked[-1] == FindRequest(b"x\xff*", b"d")
    assert capsys.readouterr().out.splitlines() == [
        "TYPE       FIRST  LAST  SNAPSHOTS  PATH",
        "directory  s1     s3    3          a/x",
        "file       now    now   0          z/x",
    ]
    assert command("find", past.directory, "x", "--json") == 0
    shown = told(capsys)
    assert (shown["pattern"], shown["below"], [found["path"] for found in shown["found"]]) == ("x", "", ["a/x", "z/x"])
    assert command("find", "a", "b", "c") == 2
