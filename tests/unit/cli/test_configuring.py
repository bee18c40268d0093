"""What is configured, shown without a mount; and what is refused. With a mount: `tests/fuse/test_configuration.py`."""

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backupfs.service import places
from backupfs.service.settings import DEFAULTS
from backupfs.service.vocabulary import KEYS, parse

Command = Callable[..., int]


@pytest.fixture
def file(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(places, "SYSTEM_CONFIGURATION", tmp_path / "etc")
    made = tmp_path / "home/.config/backupfs/default.toml"
    made.parent.mkdir(parents=True)
    made.write_text("[retention]\nkeep-daily = 7\n")
    return made


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_what_is_given_and_where(command: Command, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BACKUPFS_EVERY", "15m")
    assert command("config", "show") == 0
    shown = capsys.readouterr().out
    assert shown.splitlines() == [
        "# Without the policy that a repository may keep: none is mounted here.",
        "[[schedule]]  # BACKUPFS_EVERY",
        'every = "15m"',
        "",
        "[retention]",
        f"keep-daily = 7  # {file}",
    ]
    assert tomllib.loads(shown) == {"schedule": [{"every": "15m"}], "retention": {"keep-daily": 7}}
    assert command("config", "show", "--json") == 0
    assert told(capsys) == {
        "schema": 1,
        "policy_known": False,
        "settings": {
            "schedule": {"value": [{"every": "15m"}], "origin": "BACKUPFS_EVERY"},
            "retention": {"keep-daily": {"value": 7, "origin": str(file)}},
        },
    }


def test_everything_that_is_in_force(command: Command, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.unlink()
    assert command("config", "show", "--effective") == 0
    shown = capsys.readouterr().out
    assert parse(shown, "shown") == DEFAULTS.settings
    assert shown.count("# default") == len(KEYS)
    assert command("config", "show", "--effective", "--json") == 0
    settings = told(capsys)["settings"]
    assert settings["retention"]["keep-yearly"] == {"value": 10, "origin": "default"}
    assert settings["mount"]["snapdir"] == {"value": "visible", "origin": "default"}


def test_of_a_repository_that_is_not_mounted(
    command: Command, file: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "other.toml"
    named.write_text("[mount]\nsnapdir = 'hidden'\n")
    assert command("config", "show", repository, "--config", named, "--json") == 0
    shown = told(capsys)
    assert (shown["policy_known"], shown["settings"]) == (False, {"mount": {"snapdir": {"value": "hidden", "origin": str(named)}}})
    assert command("config", "show", tmp_path / "nothing") == 10
    for arguments in (["show", repository], ["set", repository, "keep-daily=3"]):
        assert command("policy", *arguments) == 1
        assert "is not mounted" in capsys.readouterr().err


def test_what_is_wrong_is_said_before_anything_is_done(
    command: Command, file: Path, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mount").mkdir()
    file.write_text("[retention]\nkeep-dayly = 7\n")
    for arguments in (["config", "show"], ["mount", repository, tmp_path / "mount"]):
        assert command(*arguments) == 2
        assert f"{file}: [retention]: there is no key 'keep-dayly'; the nearest is 'keep-daily'" in capsys.readouterr().err
    file.unlink()
    assert command("mount", repository, tmp_path / "mount", "--config", "work") == 2
    assert "there is no configuration file" in capsys.readouterr().err
    for option in (["--every", "soon"], ["--snapdir", "gone"]):
        assert command("mount", repository, tmp_path / "mount", *option) == 2
        assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["keep-daily=1", "--file", "x"], ["{repository}"]])
def test_setting_nothing_or_twice(command: Command, file: Path, repository: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("policy", "set", *(argument.format(repository=repository) for argument in arguments)) == 2
    assert "give KEY=VALUE, or --file" in capsys.readouterr().err


def test_a_repository_takes_no_hooks_and_no_options(
    command: Command, file: Path, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("[hooks]\nbefore-snapshot = 'rm'\n")
    assert command("policy", "set", repository, "--file", file) == 2
    assert f"{file}: a repository keeps only [[schedule]] and [retention]" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("[mount]\nread-only = true\n"))
    assert command("policy", "set", repository, "--file", "-") == 2
    assert "-: a repository keeps only" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("?"))
    assert command("policy", "set", repository, "--file", "-") == 2
    assert "standard input: this is no TOML" in capsys.readouterr().err
