"""The verbs in this process, as far as they need no mount: what they print and the code they end with."""

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backupfs import __version__
from backupfs.cli.main import commands
from backupfs.cli.status import schedule_line
from backupfs.errors import StoreError
from backupfs.service.messages import ScheduleView
from scripts.check_docs import verbs_of

Command = Callable[..., int]


@pytest.mark.parametrize(
    ("schedule", "line"),
    [
        (ScheduleView("every 1h", [], always=False, next_ns=0), "snapshot every 1h: next 1970-01-01T00:00:00.000000Z"),
        (
            ScheduleView("on change of 1GiB", ["a", "b"], always=True, next_ns=None),
            "snapshot on change of 1GiB, tagged a, b, changed or not: when enough has changed",
        ),
    ],
)
def test_status_tells_each_schedule_in_a_line(schedule: ScheduleView, line: str) -> None:
    assert schedule_line(msgspec.to_builtins(schedule)) == line


_LOADED = """
import sys
from backupfs.cli.main import VERBS, commands

for verb in {verbs}:
    commands.get_command(None, verb)
print(*sorted({heavy} & set(sys.modules)))
"""


def test_verbs_that_only_ask_load_no_engine() -> None:
    """Loading it takes three times as long as all the rest of them."""
    heavy = {"trio", "lmdb", "pyfuse3", "cryptography", "zstandard", "blake3", "pyfastcdc"}
    asking = ["umount", "status", "stats", "snapshot", "prune", "gc", "versions", "diff", "find", "restore", "config", "policy", "version"]

    def loaded(verbs: list[str]) -> set[str]:
        code = _LOADED.format(verbs=verbs, heavy=heavy)
        return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())

    assert loaded(asking) == set()
    assert loaded(["mount"]) == heavy


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_init_in_the_default_place(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", "--json", "--label", "mine", "--no-compression") == 0
    made = told(capsys)
    assert made["repository"] == str(tmp_path / "home/.local/share/backupfs/repository")
    assert len(bytes.fromhex(made["repository_id"])) == 16
    assert made["label"] == "mine"
    assert command("init") == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["check", "rebuild-index"])
def test_nothing_moves_on_the_terminal_while_the_password_is_asked_for(command: Command, tmp_path: Path, verb: str) -> None:
    assert command("init", tmp_path / "r") == 0
    environ = {name: value for name, value in os.environ.items() if name != "BACKUPFS_PASSWORD"}
    process, terminal = pty.fork()
    if not process:
        os.execve(sys.executable, [sys.executable, "-m", "backupfs", verb, str(tmp_path / "r")], environ)
    with open(terminal, "r+b", buffering=0) as screen:
        shown = b""
        while b"assword" not in shown:
            shown += screen.read(1000)
        assert b"checking" not in shown
        assert b"rebuilding" not in shown
        screen.write(b"secret\n")
        with suppress(OSError):  # the terminal's other end is closed
            while screen.read(1000):
                pass
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0


def test_a_named_repository_beats_the_variable(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPFS_REPOSITORY", str(tmp_path / "variable"))
    assert command("init", tmp_path / "named") == 0
    assert not (tmp_path / "variable").exists()
    assert command("init") == 0
    assert (tmp_path / "variable/config").exists()


@pytest.mark.parametrize("verb", ["check", "status", "stats", "rebuild-index"])
def test_no_repository(command: Command, tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(verb, tmp_path / "nothing", "--json") == 10
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["kind"] == "no-repository"
    assert str(tmp_path / "nothing") in shown.err


def test_check_and_rebuild_without_a_mount(command: Command, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("rebuild-index", repository) == 0
    assert "made anew" in capsys.readouterr().out
    (repository / "config").write_bytes(b"not what it was")
    assert command("check", repository, "--read-data") == 3
    assert "config" in capsys.readouterr().out
    assert command("check", repository, "--json") == 3
    findings = told(capsys)["findings"]
    assert [finding["object"] for finding in findings if finding["object"].startswith("config")] == ["config"]


def test_a_wrong_password(command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUPFS_PASSWORD", "wrong")
    assert command("check", repository) == 12
    assert command("key", "passwd", repository) == 12


def test_changing_the_password(command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BACKUPFS_NEW_PASSWORD", "other")
    assert command("key", "passwd", repository, "--json") == 0
    assert told(capsys)["repository"] == str(repository)
    assert command("rebuild-index", repository) == 12
    monkeypatch.setenv("BACKUPFS_PASSWORD", "other")
    assert command("rebuild-index", repository) == 0


def test_what_is_not_mounted(command: Command, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("status", repository, "--json") == 0
    assert told(capsys)["mounted"] is False
    assert command("status", repository) == 0
    assert capsys.readouterr().out == f"{repository} is not mounted\n"
    for arguments in (["stats", repository], ["snapshot", "list", repository], ["snapshot", "delete", repository, "x"], ["umount", repository]):
        assert command(*arguments) == 1
        assert "mounted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["mount"],
        ["mount", "a", "b", "c"],
        ["mount", "{repository}", "{directory}", "--every", "soon"],
        ["mount", "{repository}", "{directory}/missing"],
        ["mount", "{repository}", "{repository}/packs"],
        ["check", "--password-fd", "-1"],
        ["snapshot", "delete"],
        ["snapshot", "delete", "{repository}"],
    ],
)
def test_usage_errors(command: Command, repository: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mount").mkdir()
    filled = [argument.format(repository=repository, directory=tmp_path / "mount") for argument in arguments]
    assert command(*filled) == 2
    shown = capsys.readouterr()
    assert shown.err
    assert "Traceback" not in shown.err


def test_version(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("version", "--json") == 0
    assert told(capsys)["version"] == __version__
    assert command("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_every_verb_explains_itself(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(verbs_of(commands))
    assert command("--help") == 0
    listed = capsys.readouterr().out
    assert [name for name in names if f"  {name} " in listed] == names
    for name in names:
        assert command(name, "--help") == 0


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (StoreError("no"), 1)])
def test_ends_that_are_no_results(
    command: Command, repository: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(*_: object) -> None:
        raise error

    monkeypatch.setattr("backupfs.service.offline.check", end)
    assert command("check", repository) == code
    assert "Traceback" not in capsys.readouterr().err


def test_nobody_who_reads_is_no_reason_for_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "backupfs", "version"], stdout=writer, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3], check=False
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""


def test_ctrl_c_while_the_program_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt\n")
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    done = subprocess.run([sys.executable, "-m", "backupfs", "version"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
