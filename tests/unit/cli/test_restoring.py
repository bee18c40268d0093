"""What a restore shows and answers. Against a real mount: `tests/fuse/test_restore.py`."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import UsageError
from backupfs.service.client import Client
from backupfs.service.copying import Copying
from backupfs.service.messages import RestoreRequest, SnapshotListRequest, UndoRequest
from backupfs.service.restoring import RestoreTold, StepTold
from tests.unit.cli.scripted import ScriptedDaemon

Command = Callable[..., int]


@pytest.fixture
def past(scripted: ScriptedDaemon) -> ScriptedDaemon:
    """A scripted that has one snapshot, which its directory shows."""
    scripted.items[SnapshotListRequest] = [SnapshotInfo(7, "s7", 0, "manual", "", [], 0, "kept")]
    then = scripted.directory / ".snapshots" / "s7" / "d"
    then.mkdir(parents=True)
    (then / "f").write_bytes(b"x" * 2048)
    (then / "link").symlink_to("f")
    return scripted


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_what_is_done_in_the_mount(command: Command, past: ScriptedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    past.items[RestoreRequest] = [
        StepTold("planned", "remove", "d/new", "file", 10),
        StepTold("planned", "add", "d/\n", "file", 2048),
        StepTold("planned", "attributes", "", "directory", 4096),
        StepTold("skipped", "replace", "d/other", "symlink", 3, option="--overwrite"),
        StepTold("failed", "add", "d/\n", "file", 2048, trouble="No space left on device"),
    ]
    past.results[RestoreRequest] = RestoreTold("d", 3, 2, 1, 1, "s8", 4)
    past.progress = [(1, 3)]
    assert command("restore", past.directory / "d", "--at", "latest") == 3
    assert past.asked[-1] == RestoreRequest(b"d", 7)
    assert capsys.readouterr().out.splitlines() == [
        "remove            10 B  d/new",
        "add            2.0 KiB  d/\\n",
        "attributes   directory  /",
        "replace        symlink  d/other  (only with --overwrite)",
        "add            2.0 KiB  d/\\n: NOT DONE: No space left on device",
        "1 removed, 1 given its attributes; 1 left alone; 1 NOT DONE",
        f"`backupfs restore --undo {past.directory}` takes this back: what was there before is in the snapshot s8",
        "4 names show only when a process that holds their directory lets go of it",
    ]
    assert command("restore", past.directory / "d", "--at", "7", "--overwrite", "--delete", "--to", past.directory / "e", "--json") == 2
    assert command("restore", past.directory / "d", "--at", "7", "--to", past.directory / "e" / "f", "--json") == 3
    assert past.asked[-1] == RestoreRequest(b"d", 7, b"e/f")
    shown = told(capsys)
    assert (shown["snapshot"], shown["path"], shown["target"], shown["before"], shown["interrupted"]) == ("s7", "d", "d", "s8", False)
    assert [len(shown[stage]) for stage in ("planned", "skipped", "failed")] == [3, 1, 1]
    assert shown["planned"][0] == {"action": "remove", "path": "d/new", "type": "file", "size": 10}
    assert shown["skipped"][0]["option"] == "--overwrite"
    assert shown["failed"][0]["trouble"] == "No space left on device"


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (RestoreTold("d", 0, 0, 0, 0, None, 0), ["there is nothing to do"]),
        (RestoreTold("d", 0, 0, 2, 0, None, 0), ["there is nothing to do; 2 left alone"]),
        (RestoreTold("d", 5, 0, 0, 0, None, 0), ["5 would be done; nothing was changed"]),
    ],
)
def test_what_is_not_done(command: Command, past: ScriptedDaemon, capsys: pytest.CaptureFixture[str], result: RestoreTold, lines: list[str]) -> None:
    past.results[RestoreRequest] = result
    options = ["--dry-run"] if result.steps else []
    assert command("restore", past.directory / "d", "--at", "s7", "--overwrite", "--delete", *options) == 0
    assert past.asked[-1] == RestoreRequest(b"d", 7, None, overwrite=True, delete=True, dry_run=bool(options))
    assert capsys.readouterr().out.splitlines() == lines


def test_undo(command: Command, past: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    past.items[UndoRequest] = [StepTold("planned", "add", "d", "file", 10), StepTold("failed", "add", "d", "file", 10, trouble="Stale")]
    past.results[UndoRequest] = RestoreTold("d", 1, 0, 0, 1, "s8", 0)
    assert command("restore", "--undo", past.directory) == 3
    assert past.asked[-1] == UndoRequest()
    assert "nothing could be done; 1 NOT DONE" in capsys.readouterr().out
    monkeypatch.chdir(past.directory)
    past.results[UndoRequest] = UsageError("nothing has been restored")
    assert command("restore", "--undo", "--dry-run") == 2
    assert past.asked[-1] == UndoRequest(dry_run=True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--undo", "--at", "1"],
        ["--undo", "--overwrite"],
        [],
        ["d"],
        ["d", "--at", "7", "--to", "x", "--overwrite"],
        ["d", "--at", "7", "--to", ".snapshots/s7/x"],
        ["d", "--at", "9"],
        [".snapshots/s9/d"],
    ],
)
def test_usage(command: Command, past: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.chdir(past.directory)
    assert command("restore", *arguments) == 2
    assert all(isinstance(asked, SnapshotListRequest) for asked in past.asked)


def test_a_path_in_a_snapshot_says_the_time(command: Command, past: ScriptedDaemon) -> None:
    past.results[RestoreRequest] = RestoreTold("d", 0, 0, 0, 0, None, 0)
    assert command("restore", past.directory / "x" / ".snapshots" / "s7" / "d") == 0
    assert past.asked[-1] == RestoreRequest(b"x/d", 7)


def test_an_interrupted_restore_says_how_far_it_was(
    command: Command, past: ScriptedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Client.ask

    def interrupted(client: Client, request: Any, on_item: Any = None, on_progress: Any = None) -> Any:
        answer = real(client, request, on_item, on_progress)
        if isinstance(request, RestoreRequest):
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(Client, "ask", interrupted)
    past.items[RestoreRequest] = [StepTold("planned", "add", f"{number}", "file", 10) for number in range(3)]
    past.progress = [(2, 3)]
    assert command("restore", past.directory / "d", "--at", "7") == 130
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown == f"interrupted after 2 of 3 steps, at least; `backupfs restore --undo {past.directory}` takes back what was done"
    assert command("restore", past.directory / "d", "--at", "7", "--json") == 130
    assert told(capsys)["interrupted"] is True


# --- to another place -----------------------------------------------------------------------------------------------


def test_a_copy_elsewhere(command: Command, past: ScriptedDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command("restore", past.directory / "d", "--at", "7", "--to", out, "--dry-run") == 0
    plan = [f"add          directory  {out}", f"add            2.0 KiB  {out}/f", f"add            symlink  {out}/link"]
    assert capsys.readouterr().out.splitlines() == [*plan, "3 entries with 2.0 KiB would be copied; nothing was changed"]
    assert not out.exists()
    assert command("restore", past.directory / "d", "--at", "7", "--to", out) == 0
    assert capsys.readouterr().out.splitlines() == [*plan, f"3 of 3 entries are in {out}"]
    assert (out / "f").read_bytes() == b"x" * 2048
    assert command("restore", past.directory / "d", "--at", "7", "--to", out) == 2
    assert "exists; choose a place" in capsys.readouterr().err
    assert command("restore", past.directory / "d" / "f", "--at", "7", "--to", tmp_path / "f", "--json") == 0
    assert told(capsys) == {
        "schema": 1, "snapshot": "s7", "path": "d/f", "to": str(tmp_path / "f"), "total_bytes": 2048, "dry_run": False,
        "planned": [{"action": "add", "path": "", "type": "file", "size": 2048}],
        "done": 1, "failed": [], "not_kept": {}, "interrupted": False,
    }  # fmt: skip
    shutil.rmtree(past.directory / ".snapshots")
    assert command("restore", past.directory / "d", "--at", "7", "--to", tmp_path / "again") == 2
    assert "does not show .snapshots" in capsys.readouterr().err


def test_what_could_not_be_copied_is_named(
    command: Command, past: ScriptedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = os.listdir

    def listdir(directory: Any) -> list[str]:
        if isinstance(directory, int) and os.readlink(f"/proc/self/fd/{directory}").endswith("/closed"):
            raise PermissionError(13, "Permission denied")
        return real(directory)

    (past.directory / ".snapshots" / "s7" / "d" / "closed").mkdir()
    os.setxattr(past.directory / ".snapshots" / "s7" / "d" / "f", "user.x", b"")
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os, "setxattr", _unsupported)
    arguments = ["restore", past.directory / "d", "--at", "7", "--to", tmp_path / "out"]
    assert command(*arguments, "--dry-run") == 3
    assert f"cannot be read: {tmp_path}/out/closed: Permission denied" in capsys.readouterr().out
    assert command(*arguments) == 3
    assert capsys.readouterr().out.splitlines()[3:] == [
        f"NOT DONE: {tmp_path}/out/closed: Permission denied",
        f"3 of 4 entries are in {tmp_path}/out; 1 NOT DONE",
        "could not be kept there: user.x attributes (1)",
    ]
    arguments[-1] = tmp_path / "again"
    assert command(*arguments, "--json") == 3
    shown = told(capsys)
    assert (shown["failed"], shown["not_kept"]) == ([{"path": "closed", "trouble": "Permission denied"}], {"user.x attributes": 1})


def _unsupported(*_: object, **__: object) -> None:
    raise OSError(95, "Operation not supported")


def test_an_interrupted_copy_says_what_is_there(
    command: Command, past: ScriptedDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = Copying.run

    def run(copying: Copying) -> Iterator[tuple[bytes, str]]:
        for step in real(copying):
            if step[0] == b"link":
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(Copying, "run", run)
    assert command("restore", past.directory / "d", "--at", "7", "--to", tmp_path / "out") == 130
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"interrupted: 1 of 3 entries are in {tmp_path}/out; directories that were begun are not finished"
    )
    assert command("restore", past.directory / "d", "--at", "7", "--to", tmp_path / "again", "--json") == 130
    assert (told(capsys)["interrupted"], sorted(os.listdir(tmp_path / "again"))) == (True, ["f", "link"])
