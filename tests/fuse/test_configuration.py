"""Configuration, policy and hooks of a real mount."""

import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path

from tests.mounted import Repository, until


def configured(repository: Repository, text: str) -> Path:
    """A file that says this."""
    file = repository.base / "f.toml"
    file.write_text(text)
    file.chmod(0o600)
    return file


def triggers(repository: Repository) -> list[str]:
    return [schedule["trigger"] for schedule in repository.status()["schedules"]]


def test_the_schedules_of_a_file_run_with_their_tags_and_are_read_anew(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    file = configured(repository, "[[schedule]]\nevery = '1s'\ntags = ['a']\n[[schedule]]\nevery = '1s'\ntags = ['b']\nalways = true\n")
    (told,) = repository.json("mount", repository.path, repository.directory, "--config", file)
    assert (told["every"], told["schedules"], told["configuration"]) == ("1s", ["every 1s", "every 1s"], str(file))
    until(repository.snapshot_names, "a snapshot")
    (taken,) = repository.json("snapshot", "list", repository.directory)
    assert taken["snapshots"][0]["tags"] == ["a", "b"]
    file.write_text("[[schedule]]\ncron = '0 3 * * *'\ntime-zone = 'Europe/Berlin'\n")
    repository.send(signal.SIGHUP)
    until(lambda: triggers(repository) == ["cron 0 3 * * * (Europe/Berlin)"], "the new schedule")
    repository.expect_trouble("the configuration stays as it was: .*there is no key 'cronn'; the nearest is 'cron'")
    file.write_text("[[schedule]]\ncronn = '0 3 * * *'\n")
    repository.send(signal.SIGHUP)
    until(lambda: repository.status()["errors"], "that it is said in the status")
    assert triggers(repository) == ["cron 0 3 * * * (Europe/Berlin)"]


def test_a_hook_may_lie_in_the_mount_and_write_to_it(make_repository: Callable[..., Repository]) -> None:
    """Whatever is asked of the mount while a hook is started and runs is answered; what it has written is in the snapshot."""
    repository = make_repository(mounted=False)
    root = repository.directory
    log = repository.base / "told"
    file = configured(
        repository,
        f"""
        schedule = []
        [hooks]
        before-snapshot = ["{root}/hook", "a b"]
        after-snapshot = "sh -c 'echo $BACKUPFS_STATUS $BACKUPFS_SNAPSHOT >>{log}'"
        on-failure = "sh -c 'echo $BACKUPFS_ERROR >>{log}'"
        """,
    )
    repository.mount("--config", str(file))
    hook = root / "hook"
    hook.write_text(
        '#!/bin/sh\necho "$1" >"$BACKUPFS_DIRECTORY/quiesced"\nls -l /proc/self/fd >"$BACKUPFS_DIRECTORY/open"\nenv >>"$BACKUPFS_DIRECTORY/env"\n'
    )
    hook.chmod(0o755)
    with open(root / "still open", "w") as writing:  # the process has it open as well while it brings it in
        writing.write("content")
        writing.flush()
        taken = repository.snapshot()
    assert (taken / "quiesced").read_text() == "a b\n"
    assert (taken / "still open").read_text() == "content"
    assert log.read_text() == f"ok {taken.name}\n"
    assert "BACKUPFS_PASSWORD" not in (taken / "env").read_text()
    assert repository.base.name not in "".join(line for line in (taken / "open").read_text().splitlines() if "/open" not in line)
    repository.expect_trouble("the hook before-snapshot ended with exit code 5")
    hook.write_text("#!/bin/sh\nexit 5\n")
    done = repository.command("snapshot", "create", root, expect=1)
    assert "the hook before-snapshot ended with exit code 5" in done.stderr
    assert repository.snapshot_names() == [taken.name]
    assert log.read_text().splitlines()[1:] == ["the hook before-snapshot ended with exit code 5; the log has what it said"]
    assert any("before-snapshot" in trouble["message"] for trouble in repository.status()["errors"])
    hook.unlink()


def test_a_policy_goes_with_the_repository(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository("--snapdir", "hidden")
    root = repository.directory
    assert os.listdir(root) == []
    assert os.listdir(root / ".snapshots") == []
    shown = repository.command("policy", "set", root, "every=20m", "keep-daily=60").stdout
    assert tomllib.loads(shown) == {"schedule": [{"every": "20m"}], "retention": {"keep-daily": 60}}
    file = configured(repository, "[[schedule]]\nevery = '2h'\n[[schedule]]\non-idle = '5m'\n")
    (told,) = repository.json("config", "show", root, "--config", file)
    assert told["policy_known"]
    assert told["settings"]["schedule"]["origin"] == str(file)
    assert told["settings"]["retention"]["keep-daily"]["origin"] == "policy of the repository"
    repository.command("policy", "set", root, "--file", file)
    assert triggers(repository) == ["every 2h", "on idle for 5m"], "it is in force at once"
    repository.remount()
    (told,) = repository.json("config", "show", root, "--effective")
    assert told["settings"]["schedule"] == {"value": [{"every": "2h"}, {"on-idle": "5m"}], "origin": "policy of the repository"}
    assert told["settings"]["mount"]["snapdir"] == {"value": "visible", "origin": "default"}
    assert repository.json("policy", "set", root, "schedule=") == [{"schema": 1, "policy": {}}]
    assert repository.command("policy", "show", root).stdout == "# The repository keeps no policy.\n"
