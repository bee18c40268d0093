"""`backupfs key` and `backupfs init --recovery` in this process: what they print, what they ask, the code they end with."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from backupfs import limits
from backupfs.cli.main import commands
from backupfs.cli.options import Verbs
from backupfs.engine import keyring
from backupfs.errors import StoreError, StoreFullError
from backupfs.service import keys
from backupfs.service.messages import MountRecord
from backupfs.service.places import state_home
from backupfs.service.state import StateDirectory
from backupfs.stores.files import Handle, SystemFiles
from scripts.check_docs import verbs_of

Command = Callable[..., int]


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KDF_TIME_MIN", 1)
    monkeypatch.setattr(limits, "KDF_MEMORY_MIN_KIB", 64)
    monkeypatch.setattr(limits, "KDF_LANES", 1)


@pytest.fixture
def repository(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert command("init", tmp_path / "repository") == 0
    capsys.readouterr()
    return tmp_path / "repository"


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Say what the password is from now on."""
    return lambda password: monkeypatch.setenv("BACKUPFS_PASSWORD", password)


@pytest.fixture
def give_new(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda password: monkeypatch.setenv("BACKUPFS_NEW_PASSWORD", password)


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    answer = json.loads(capsys.readouterr().out)
    assert answer.pop("schema") == 1
    return answer


def labels(command: Command, repository: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert command("key", "list", repository, "--json") == 0
    return [key["label"] for key in told(capsys)["keys"]]


def test_a_second_password(
    command: Command, repository: Path, give: Callable[[str], None], give_new: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    give_new("other")
    assert command("key", "add", repository, "--label", "laptop") == 0
    assert capsys.readouterr().out == f"{repository} has a new password, 'laptop'\n"
    give("other")
    assert command("key", "list", repository, "--json") == 0
    answer = told(capsys)
    assert answer["repository"] == str(repository)
    first, second = answer["keys"]
    assert (first["label"], first["kind"], first["opened"]) == ("password", "password", False)
    assert re.fullmatch(r"[0-9a-f]{32}", second.pop("id"))
    assert re.fullmatch(r"20\d\d-.*Z", second.pop("created"))
    kdf = {"time": 1, "lanes": 1, "memory_kib": 64}
    assert second == {"label": "laptop", "kind": "password", "kdf": kdf, "copies": 2, "opened": True, "trouble": ""}
    assert command("key", "list", repository) == 0
    rows = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", rows[0]) == ["ID", "LABEL", "KIND", "CREATED", "ARGON2ID", "GIVEN NOW"]
    assert re.split(r"  +", rows[2])[1:3] + rows[2].split()[-1:] == ["laptop", "password", "yes"]
    assert not rows[1].endswith("yes")


def test_a_recovery_key_opens_in_place_of_the_password(
    command: Command,
    repository: Path,
    give: Callable[[str], None],
    give_new: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command("key", "add", repository, "--recovery", "--json") == 0
    answer = told(capsys)
    words = answer["recovery_key"]
    assert len(words.split(" ")) == 24
    assert (answer["key"]["label"], answer["key"]["kind"]) == ("recovery", "recovery")
    give(words.upper().replace(" ", "\n"))
    assert labels(command, repository, capsys) == ["password", "recovery"]
    reader, writer = os.pipe()
    os.write(writer, f"  {words}\n\n".encode())
    os.close(writer)
    assert command("rebuild-index", repository, "--password-fd", reader) == 0
    mistyped = words.split(" ")
    mistyped[10] = "qqq"
    give(" ".join(mistyped))
    capsys.readouterr()
    assert command("check", repository, "--json") == 12
    shown = capsys.readouterr()
    assert "word 11 of this recovery key is not in the list" in shown.err
    assert json.loads(shown.out)["error"]["kind"] == "wrong-password"
    give(words)
    give_new("remembered")
    assert command("key", "passwd", repository) == 2
    assert "key add --label" in capsys.readouterr().err
    assert command("key", "add", repository, "--label", "new") == 0
    assert command("key", "remove", repository, "password") == 0
    give("remembered")
    capsys.readouterr()
    assert labels(command, repository, capsys) == ["recovery", "new"]


def test_a_recovery_key_is_shown_in_words(
    command: Command, repository: Path, give: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("key", "add", repository, "--recovery", "--label", "in the safe") == 0
    shown = capsys.readouterr().out
    assert "has a new recovery key, 'in the safe'." in shown
    rows = [line.strip() for line in shown.splitlines() if line.startswith("    ")]
    assert [len(row.split()) for row in rows] == [6] * 4
    give("\n".join(rows))
    assert labels(command, repository, capsys) == ["password", "in the safe"]


def test_init_with_a_recovery_key(command: Command, tmp_path: Path, give: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", tmp_path / "one", "--recovery", "--json") == 0
    give(told(capsys)["recovery_key"])
    assert labels(command, tmp_path / "one", capsys) == ["password", "recovery"]
    assert command("init", tmp_path / "two", "--recovery") == 0
    shown = capsys.readouterr().out
    assert "created repository" in shown
    assert len([line for line in shown.splitlines() if line.startswith("    ")]) == 4
    assert command("init", tmp_path / "three", "--recovery", "--label", "recovery") == 2
    assert not (tmp_path / "three").exists()
    assert command("init", tmp_path / "three", "--label", "recovery:x") == 2
    assert not (tmp_path / "three").exists()


def test_init_says_how_to_make_one_later(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("init", tmp_path / "one") == 0
    assert f"`backupfs key add {tmp_path}/one --recovery`" in capsys.readouterr().out


def test_removing(
    command: Command, repository: Path, give: Callable[[str], None], give_new: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("key", "remove", repository, "password", "--force") == 2
    assert "last key" in capsys.readouterr().err
    give_new("other")
    assert command("key", "add", repository, "--label", "laptop", "--json") == 0
    id_ = told(capsys)["key"]["id"]
    assert command("key", "remove", repository, "password") == 2
    assert "--force" in capsys.readouterr().err
    assert command("key", "remove", repository, "nothing") == 2
    assert command("key", "remove", repository, id_[:7]) == 2
    capsys.readouterr()
    assert command("key", "remove", repository, id_[:8], "--json") == 0
    assert told(capsys)["removed"]["label"] == "laptop"
    give("other")
    assert command("key", "list", repository) == 12
    give("secret")
    assert command("key", "add", repository, "--label", "laptop") == 0
    assert command("key", "remove", repository, "password", "--force") == 0
    assert capsys.readouterr().out.endswith(f"'password' opens {repository} no more\n")
    assert command("key", "list", repository) == 12


def test_the_default_repository(
    command: Command,
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    give_new: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BACKUPFS_REPOSITORY", str(repository))
    give_new("other")
    assert command("key", "add", "--label", "laptop") == 0
    give_new("third")
    assert command("key", "passwd") == 0
    assert command("key", "list") == 12
    monkeypatch.setenv("BACKUPFS_PASSWORD", "third")
    assert command("key", "list") == 0
    assert command("key", "remove", "laptop") == 0
    capsys.readouterr()
    assert command("key", "export") == 0
    (tmp_path / "keys.txt").write_text(capsys.readouterr().out)
    assert command("key", "import", tmp_path / "keys.txt") == 0


def test_each_key_has_a_password_of_its_own(
    command: Command, repository: Path, give: Callable[[str], None], give_new: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Or else one that was changed would go on opening."""
    give_new("secret")
    assert command("key", "add", repository, "--label", "laptop") == 2
    assert "is the one of the key 'password' already" in capsys.readouterr().err
    assert command("key", "passwd", repository) == 0, "a key's own may stay, with other costs"
    give_new("other")
    assert command("key", "add", repository, "--label", "laptop") == 0
    assert command("key", "passwd", repository) == 2
    give_new("secret")
    assert command("key", "passwd", repository) == 0
    capsys.readouterr()
    give("other")
    assert labels(command, repository, capsys) == ["laptop", "password"]


def test_what_is_wrong_with_a_slot_is_shown(
    command: Command, repository: Path, give_new: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    ids = []
    for label in ("half", "gone"):
        give_new(label)
        assert command("key", "add", repository, "--label", label, "--json") == 0
        ids.append(told(capsys)["key"]["id"])
    (repository / "keys" / ids[0]).unlink()
    for name in (ids[1], f"{ids[1]}.copy"):
        (repository / "keys" / name).write_bytes(b"nothing")
    assert command("key", "list", repository) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", lines[3]) == [ids[1][:8], "-", "-", "-", "-"]
    assert lines[4].startswith(f"{ids[0][:8]}: only one of its two files")
    assert lines[5].startswith(f"{ids[1][:8]}: it cannot be read: key slot: 7 bytes instead of 512")
    assert command("key", "remove", repository, ids[1]) == 0
    assert capsys.readouterr().out.startswith(ids[1][:8])


def test_the_new_password_is_asked_only_when_there_is_use_for_it(
    command: Command, repository: Path, give: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    monkeypatch.setenv("BACKUPFS_NEW_PASSWORD_COMMAND", f"tee {asked}")
    assert command("key", "add", repository, "--label", "password") == 2
    give("wrong")
    assert command("key", "add", repository, "--label", "x") == 12
    assert command("key", "passwd", repository) == 12
    assert not asked.exists()


def test_an_export_brings_back_what_is_lost(
    command: Command, repository: Path, tmp_path: Path, give: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("key", "export", repository, "--output", tmp_path / "keys.txt") == 0
    assert f"are in {tmp_path}/keys.txt" in capsys.readouterr().out
    assert (tmp_path / "keys.txt").stat().st_mode & 0o777 == 0o600
    assert command("key", "export", repository) == 0
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line[0] != "#"] == [
        line for line in (tmp_path / "keys.txt").read_text().splitlines() if line[0] != "#"
    ]
    assert command("key", "export", repository, "--json") == 0
    assert "backupfs keys 1" in told(capsys)["export"]
    assert command("key", "import", repository, tmp_path / "keys.txt") == 0
    assert capsys.readouterr().out == "nothing of this export was missing\n"
    for path in [*repository.glob("config*"), *repository.glob("keys/*")]:
        path.unlink()
    assert command("key", "list", repository) == 10
    give("wrong")
    assert command("key", "import", repository, tmp_path / "keys.txt") == 12
    give("secret")
    capsys.readouterr()
    assert command("key", "import", repository, tmp_path / "keys.txt") == 0
    assert capsys.readouterr().out == "the configuration is back\nthe key 'password' is back\n"
    (repository / "config").unlink()
    assert command("key", "import", repository, tmp_path / "keys.txt", "--json") == 0
    imported = told(capsys)["imported"]
    assert (imported["config"], imported["slots"]) == (True, [])
    assert command("check", repository) == 0


def test_where_an_export_does_not_go(command: Command, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mount").mkdir()
    state = StateDirectory(state_home(os.environ, os.getuid()), (repository / "config").read_bytes()[16:32].hex())
    state.make()
    state.note(MountRecord(str(repository), state.repository_id, str(tmp_path / "mount"), pid=1, since_ns=1, read_only=False))
    there = tmp_path / "there"
    there.write_text("mine")
    for path, why in {
        repository / "keys.txt": "would be lost together",
        tmp_path / "mount" / "keys.txt": "would be lost together",
        tmp_path / "missing" / "keys.txt": "no directory",
        there: "not overwritten",
    }.items():
        assert command("key", "export", repository, "--output", path) == 2
        assert why in capsys.readouterr().err
    assert there.read_text() == "mine"


def test_an_export_that_cannot_be_written_leaves_nothing_behind(
    command: Command, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(files: SystemFiles, handle: Handle) -> None:
        raise StoreFullError("sync: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(SystemFiles, "sync", refuse)
        assert command("key", "export", repository, "--output", tmp_path / "keys.txt") == StoreFullError.exit_code
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "keys.txt").exists()
    assert command("key", "export", repository, "--output", tmp_path / "keys.txt") == 0


@pytest.mark.parametrize(
    ("content", "code", "why"),
    [(b"\xff", 2, "no text"), (b"x" * 300_000, 2, "too large"), (b"x", 2, "begins with"), (None, 1, "No such")],
    ids=["bytes", "long", "other", "none"],
)
def test_what_is_no_export(
    command: Command, repository: Path, tmp_path: Path, content: bytes | None, code: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    assert command("key", "import", repository, tmp_path / "file") == code
    assert why in capsys.readouterr().err


def test_an_export_of_as_many_slots_as_there_can_be_can_be_read(command: Command, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("key", "export", repository) == 0
    one = len(capsys.readouterr().out)
    assert 2 * limits.KEY_SLOTS_MAX * one < keys.EXPORT_BYTES_MAX


@pytest.mark.parametrize(
    "arguments",
    [
        ["key", "add", "{repository}"],
        ["key", "add", "{repository}", "--label", ""],
        ["key", "add", "{repository}", "--recovery", "--new-password-fd", "0"],
        ["key", "add", "{repository}", "--recovery", "--label", ""],
        ["key", "remove"],
        ["key", "remove", "{repository}", "a", "b"],
        ["key", "import"],
        ["key", "import", "a", "b", "c"],
    ],
)
def test_usage_errors(command: Command, repository: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command(*(argument.format(repository=repository) for argument in arguments)) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["add", "list", "remove", "passwd", "export", "import"])
def test_no_repository(command: Command, tmp_path: Path, verb: str, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("key", "export", repository, "--output", tmp_path / "keys.txt") == 0
    more: dict[str, list[str | Path]] = {"add": ["--label", "x"], "remove": ["x"], "import": [tmp_path / "keys.txt"]}
    assert command("key", verb, tmp_path / "nothing", *more.get(verb, [])) == 10
    assert str(tmp_path / "nothing") in capsys.readouterr().err


def test_every_verb_of_keys_explains_itself(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    group = verbs_of(commands)["key"]
    assert isinstance(group, Verbs)
    assert list(group.commands) == ["add", "list", "remove", "passwd", "export", "import"]
    assert command("key", "--help") == 0
    listed = capsys.readouterr().out
    assert re.findall(r"^  (\w+)  ", listed, re.MULTILINE) == list(group.commands)


def test_a_recovery_key_that_could_not_be_stored_is_not_shown(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no space")

    put = keyring.put_slot
    calls = []

    def put_the_first(*arguments: Any) -> None:
        calls.append(arguments)
        (put if len(calls) == 1 else fail)(*arguments)

    monkeypatch.setattr(keyring, "put_slot", put_the_first)
    assert command("init", tmp_path / "one", "--recovery") == 1
    shown = capsys.readouterr()
    assert "created repository" in shown.out
    assert "    " not in shown.out
    assert "no space" in shown.err
    assert command("key", "list", tmp_path / "one") == 0


def test_what_is_shown_is_what_the_engine_says() -> None:
    """The fields of JSON are those of the struct; they are only ever added to."""
    assert [field.name for field in msgspec.structs.fields(keyring.SlotInfo)] == [
        "id", "label", "kind", "created_ns", "kdf", "copies", "opened", "trouble",
    ]  # fmt: skip
