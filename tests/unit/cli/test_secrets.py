"""Where a password comes from, in which order, and what is refused."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from backupfs.cli import secrets
from backupfs.cli.secrets import PASSWORD_BYTES_MAX, password
from backupfs.errors import BackupfsError, UsageError


def never(prompt: str) -> str:
    raise AssertionError(f"asked for {prompt}")


def piped(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """Every source in the environment, each with a password of its own."""
    file = tmp_path / "file"
    file.write_bytes(b"from file\n")
    file.chmod(0o600)
    (tmp_path / "backupfs.password").write_bytes(b"from credential\n")
    return {
        "BACKUPFS_PASSWORD_FILE": str(file),
        "BACKUPFS_PASSWORD_COMMAND": "printf 'from %s\\n' command",
        "BACKUPFS_PASSWORD": "from variable",
        "CREDENTIALS_DIRECTORY": str(tmp_path),
    }


def test_the_first_that_is_given_counts(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "has_terminal", lambda: True)
    assert password(sources, piped(b"from descriptor\n"), ask=never) == b"from descriptor"
    for name, expected in zip(list(sources), (b"from file", b"from command", b"from variable", b"from credential"), strict=True):
        assert password(sources, None, ask=never) == expected
        del sources[name]
    assert password(sources, None, ask=lambda _: "from terminal") == b"from terminal"


def test_a_new_password_has_its_own_variables_and_no_credential(sources: dict[str, str]) -> None:
    given = {**sources, "BACKUPFS_NEW_PASSWORD": "new"}
    assert password(given, None, variable="BACKUPFS_NEW_PASSWORD", ask=never) == b"new"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\n", b"a"),
        (b"a\r\n", b"a"),
        (b"a", b"a"),
        (b" a \n\n", b" a \n"),
        (b"\xff\x00\n", b"\xff\x00"),
        (b"x" * PASSWORD_BYTES_MAX, b"x" * PASSWORD_BYTES_MAX),
    ],
)
def test_one_line_end_does_not_belong_to_it(tmp_path: Path, data: bytes, expected: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    file.chmod(0o600)
    assert password({"BACKUPFS_PASSWORD_FILE": str(file)}, None, ask=never) == expected


def test_bytes_of_a_variable_that_are_no_text_stay_what_they_are() -> None:
    assert password({"BACKUPFS_PASSWORD": os.fsdecode(b"\xff\xfe")}, None, ask=never) == b"\xff\xfe"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"secret")
    file.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        password({"BACKUPFS_PASSWORD_FILE": str(file)}, None, ask=never)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"BACKUPFS_PASSWORD_FILE": "/nowhere/file"}, "/nowhere/file: No such file"),
        ({"BACKUPFS_PASSWORD_COMMAND": "false"}, "non-zero exit status 1"),
        ({"BACKUPFS_PASSWORD_COMMAND": "/nowhere/program"}, "No such file"),
        ({"BACKUPFS_PASSWORD_COMMAND": "unclosed '"}, "No closing quotation"),
        ({"BACKUPFS_PASSWORD_COMMAND": "true"}, "the password is empty"),
    ],
)
def test_a_source_that_fails_is_told_in_words(environ: Mapping[str, str], words: str) -> None:
    with pytest.raises(BackupfsError, match=words):
        password(environ, None, ask=never)


def test_a_descriptor_that_is_not_open_and_one_without_end() -> None:
    with pytest.raises(UsageError, match="descriptor 999"):
        password({}, 999, ask=never)
    with open("/dev/zero", "rb") as endless, pytest.raises(UsageError, match="at most"):
        password({}, os.dup(endless.fileno()), ask=never)


def test_a_new_one_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "has_terminal", lambda: True)
    prompts: list[str] = []
    answers = iter(["one", "one", "one", "two", "", "pässwörd\udcff", "pässwörd\udcff"])

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        return next(answers)

    assert password({}, None, twice=True, ask=ask) == b"one"
    assert prompts == ["Password: ", "Password again: "]
    with pytest.raises(UsageError, match="differ"):
        password({}, None, twice=True, ask=ask)
    with pytest.raises(UsageError, match="empty"):
        password({}, None, twice=True, ask=ask)
    assert password({}, None, twice=True, ask=ask) == "pässwörd".encode() + b"\xff"


def test_without_a_terminal_the_other_ways_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "has_terminal", lambda: False)
    with pytest.raises(UsageError, match="BACKUPFS_PASSWORD_COMMAND"):
        password({}, None, ask=never)
