"""The process behind a mount: exit codes, passwords, locks, the ends it can come to."""

import errno
import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import PASSWORD, Repository, run, unmounting, until
from tests.oracle.manifest import assert_same, manifest, tree_hash

NO_REPOSITORY: Final = 10
LOCKED: Final = 11
WRONG_PASSWORD: Final = 12
USAGE: Final = 2


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_wrong_password_is_told_in_words(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    repository.expect_trouble("password")
    wrong = repository.environment(BACKUPFS_PASSWORD="wrong")
    attempts: list[list[str | Path]] = [
        ["mount", repository.path, repository.directory],
        ["check", repository.path],
        ["rebuild-index", repository.path],
    ]
    for arguments in attempts:
        done = repository.command(*arguments, expect=WRONG_PASSWORD, env=wrong)
        assert "password" in done.stderr
        assert "Traceback" not in done.stderr
    assert not repository.is_mounted()


def test_no_repository(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    empty = repository.base / "empty"
    empty.mkdir()
    for place in (empty, repository.base / "missing"):
        done = repository.command("mount", place, repository.directory, expect=NO_REPOSITORY)
        assert str(place) in done.stderr
        repository.command("check", place, expect=NO_REPOSITORY)


def test_a_second_writer_is_locked_out(mounted_repository: Repository) -> None:
    second = mounted_repository.base / "second"
    second.mkdir()
    done = mounted_repository.command("mount", mounted_repository.path, second, expect=LOCKED)
    assert str(mounted_repository.directory) in done.stderr, "it says who has it"
    elsewhere = mounted_repository.environment(BACKUPFS_STATE_HOME=str(mounted_repository.base / "other state"))
    mounted_repository.command("mount", mounted_repository.path, second, expect=LOCKED, env=elsewhere)
    assert not mounted_repository.is_mounted(second)
    (mounted_repository.directory / "file").write_bytes(b"the first goes on")


def test_a_mount_point_inside_the_repository_or_the_reverse_is_refused(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    inside = repository.path / "inside"
    inside.mkdir()
    around = repository.base
    link = repository.base.parent / "link"
    link.symlink_to(repository.path)
    for directory in (inside, around, repository.path, link / "inside"):
        done = repository.command("mount", repository.path, directory, expect=None)
        assert done.returncode in {1, USAGE}, done.stderr
        assert not repository.is_mounted(directory)
    inside.rmdir()
    repository.command("check", repository.path)


def test_a_taken_place_is_no_place_for_a_new_repository(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    before = manifest(repository.path)
    assert repository.command("init", repository.path, expect=None).returncode in {1, USAGE}
    assert_same(before, manifest(repository.path))
    full = repository.base / "full"
    full.mkdir()
    (full / "something").touch()
    assert repository.command("init", full, expect=None).returncode in {1, USAGE}
    assert os.listdir(full) == ["something"]


def test_usage_errors(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    for arguments in (["frobnicate"], ["mount"], ["mount", repository.path, repository.directory, "--every", "soon"]):
        done = repository.command(*arguments, expect=USAGE)
        assert "Traceback" not in done.stderr


def test_what_is_not_mounted_cannot_be_unmounted(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    done = repository.command("umount", repository.directory, expect=1)
    assert str(repository.directory) in done.stderr


# --- passwords ----------------------------------------------------------------------------------------------------


def test_a_password_from_a_descriptor_a_file_a_command(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    file = repository.base / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    credentials = repository.base / "credentials"
    credentials.mkdir()
    shutil.copy(file, credentials / "backupfs.password")
    bare = repository.environment()
    del bare["BACKUPFS_PASSWORD"]
    for more in (
        {"BACKUPFS_PASSWORD_FILE": str(file)},
        {"BACKUPFS_PASSWORD_COMMAND": f"cat {file}"},
        {"CREDENTIALS_DIRECTORY": str(credentials)},
    ):
        repository.command("check", repository.path, env=bare | more)
    reader, writer = os.pipe()
    os.write(writer, PASSWORD.encode())
    os.close(writer)
    repository.command("check", repository.path, "--password-fd", str(reader), env=bare, pass_fds=[reader])
    os.close(reader)
    file.chmod(0o644)
    done = repository.command("check", repository.path, env=bare | {"BACKUPFS_PASSWORD_FILE": str(file)}, expect=None)
    assert done.returncode in {1, USAGE}, "a file that others can read is refused"
    assert str(file) in done.stderr


def test_a_new_repository_has_nothing_wrong(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    repository.command("check", repository.path, "--read-data")


def test_changing_the_password(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository()
    repository.expect_trouble("password")
    (repository.directory / "file").write_bytes(b"content")
    repository.unmount()
    repository.command("key", "passwd", repository.path, env=repository.environment(BACKUPFS_NEW_PASSWORD="another one"))
    repository.mount(expect=WRONG_PASSWORD)
    repository.password = "another one"
    repository.mount()
    assert (repository.directory / "file").read_bytes() == b"content"


def test_keys_while_it_is_mounted(make_repository: Callable[..., Repository]) -> None:
    """By its directory as by its repository; the mount goes on, and the next one knows what was changed."""
    repository = make_repository()
    (repository.directory / "file").write_bytes(b"content")
    words = json.loads(repository.command("key", "add", repository.directory, "--recovery", "--json").stdout)["recovery_key"]
    repository.password = f"  {words.title()}"
    repository.command("key", "remove", repository.directory, "password")
    (repository.directory / "file").write_bytes(b"more content")
    repository.unmount()
    repository.mount()
    assert (repository.directory / "file").read_bytes() == b"more content"


# --- ends ---------------------------------------------------------------------------------------------------------


def test_after_umount_the_process_is_gone_and_the_lock_free(mounted_repository: Repository) -> None:
    for n in range(3):
        process = os.pidfd_open(mounted_repository.pid())
        (mounted_repository.directory / f"file-{n}").write_bytes(b"%d" % n)
        mounted_repository.unmount()
        assert select.select([process], [], [], 0)[0], "the process is gone"
        os.close(process)
        assert not mounted_repository.is_mounted()
        mounted_repository.mount()
        assert len(os.listdir(mounted_repository.directory)) == n + 2


def test_a_busy_mount_is_not_taken_away(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    mounted_repository.expect_trouble("busy|in use|holds|held")
    (root / "directory").mkdir()
    with subprocess.Popen(["/bin/cat"], cwd=root / "directory", stdin=subprocess.PIPE) as holder:
        (root / "file").write_bytes(b"content")
        done = mounted_repository.command("umount", root, expect=1)
        assert str(holder.pid) in done.stderr, "it says who holds it"
        assert (root / "file").read_bytes() == b"content"
        holder.communicate()
    mounted_repository.unmount()
    mounted_repository.mount()
    assert (root / "file").read_bytes() == b"content"


def test_unmounting_from_outside_is_a_clean_end(mounted_repository: Repository) -> None:
    process = os.pidfd_open(mounted_repository.pid())
    (mounted_repository.directory / "file").write_bytes(b"content")
    run(unmounting(mounted_repository.directory))
    assert select.select([process], [], [], 60)[0]
    os.close(process)
    mounted_repository.mount()
    assert (mounted_repository.directory / "file").read_bytes() == b"content"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_foreground_mount_cleanly(make_repository: Callable[..., Repository], number: signal.Signals) -> None:
    repository = make_repository(mounted=False)
    repository.expect_trouble("in use")
    process = repository.start_foreground()
    until(lambda: repository.is_mounted() or process.poll() is not None, "the mount")
    (repository.directory / "file").write_bytes(b"content" * 1000)
    descriptor = os.open(repository.directory / "open", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(descriptor, b"still open, not synced")
    process.send_signal(number)
    assert process.wait() == 0
    assert not repository.is_mounted()
    with pytest.raises(OSError):  # the mount was taken away from us
        os.close(descriptor)
    repository.mount()
    assert (repository.directory / "file").read_bytes() == b"content" * 1000
    assert (repository.directory / "open").read_bytes() == b"still open, not synced"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_detached_mount_cleanly(mounted_repository: Repository, number: signal.Signals) -> None:
    (mounted_repository.directory / "file").write_bytes(b"content")
    mounted_repository.stop_with(number)
    assert not mounted_repository.is_mounted()
    mounted_repository.mount()
    assert (mounted_repository.directory / "file").read_bytes() == b"content"


def test_a_dead_mount_fails_loudly_and_is_cleared_by_the_next_mount(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    (root / "file").write_bytes(b"content")
    with open(root / "file", "r+b") as file:
        os.fsync(file.fileno())
    mounted_repository.kill()
    with pytest.raises(OSError) as caught:
        os.listdir(root)
    assert caught.value.errno == errno.ENOTCONN
    (told,) = mounted_repository.json("status", root)
    assert (told["mounted"], told["died_on"]) == (False, str(root))
    assert f"backupfs mount {mounted_repository.path} {root}" in mounted_repository.command("status", root).stdout
    mounted_repository.mount()
    assert (root / "file").read_bytes() == b"content"


def test_umount_clears_a_dead_mount(mounted_repository: Repository) -> None:
    mounted_repository.kill()
    mounted_repository.unmount()
    assert not mounted_repository.is_mounted()
    mounted_repository.mount()


def test_deleting_the_index_changes_nothing(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    for n in range(50):
        (root / f"d{n % 5}").mkdir(exist_ok=True)
        (root / f"d{n % 5}" / f"{n}").write_bytes(os.urandom(n * 1000))
    mounted_repository.snapshot()
    (root / "later").write_bytes(b"later")
    before = tree_hash(manifest(root))
    mounted_repository.unmount()
    for way in ("deleted", "truncated", "rebuilt", "scrambled"):
        data = mounted_repository.index / "data.mdb"
        if way == "deleted":
            shutil.rmtree(mounted_repository.index)
        elif way == "truncated":
            os.truncate(data, 12288)
        elif way == "rebuilt":
            mounted_repository.command("rebuild-index", mounted_repository.path)
        else:
            data.write_bytes(os.urandom(data.stat().st_size))
        mounted_repository.expect_trouble("index")
        mounted_repository.mount()
        assert tree_hash(manifest(root)) == before, way
        mounted_repository.unmount()
    mounted_repository.mount()


# --- the rest of the command line ---------------------------------------------------------------------------------


def test_a_read_only_mount(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository()
    root = repository.directory
    (root / "file").write_bytes(b"content")
    past = repository.snapshot()
    repository.unmount()
    before = manifest(repository.path)
    repository.mount("--read-only")
    assert (root / "file").read_bytes() == b"content"
    assert (past / "file").read_bytes() == b"content"
    for attempt in (
        lambda: os.open(root / "file", os.O_WRONLY),
        lambda: os.mkdir(root / "new"),
        lambda: os.unlink(root / "file"),
        lambda: os.chmod(root / "file", 0o600),
        lambda: os.utime(root / "file"),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS
    repository.command("snapshot", "create", root, expect=1)
    repository.unmount()
    found = manifest(repository.path)
    packs_before = {path: entry for path, entry in before.items() if path.startswith(b"packs/")}
    assert packs_before.items() <= found.items(), "what was stored is not touched"
    repository.mount()


def test_status_stats_and_version(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    (root / "file").write_bytes(os.urandom(300_000))
    status = mounted_repository.status()
    assert status["mounted"] is True
    assert status["directory"] == str(root)
    assert status["pid"] == mounted_repository.pid()
    assert status["errors"] == []
    (by_repository,) = mounted_repository.json("status", mounted_repository.path)
    assert by_repository["pid"] == status["pid"]
    (stats,) = mounted_repository.json("stats", root)
    assert stats["schema_version"] >= 1 if "schema_version" in stats else stats
    mounted_repository.json("version")
    for verb in ("status", "stats"):
        assert mounted_repository.command(verb, root).stdout
    mounted_repository.unmount()
    (status,) = mounted_repository.json("status", mounted_repository.path)
    assert (status["mounted"], status["died_on"]) == (False, None)
    mounted_repository.mount()


def test_json_is_one_object_a_line_for_every_verb(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    for arguments in (
        ["mount", repository.path, repository.directory],
        ["snapshot", "create", repository.directory],
        ["snapshot", "list", repository.directory],
        ["check", repository.directory],
        ["status", repository.directory],
        ["stats", repository.directory],
        ["umount", repository.directory],
        ["check", repository.path, "--read-data"],
        ["rebuild-index", repository.path],
        ["version"],
    ):
        assert all(isinstance(line, dict) for line in repository.json(*arguments)), arguments
    failed = repository.command("umount", repository.directory, "--json", expect=1)
    assert json.loads(failed.stdout or failed.stderr.splitlines()[-1])


def test_the_password_is_in_no_arguments_and_no_log(mounted_repository: Repository) -> None:
    pid = mounted_repository.pid()
    assert PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    mounted_repository.snapshot()
    mounted_repository.unmount()
    for path in mounted_repository.state.rglob("*"):
        if path.is_file():
            assert PASSWORD.encode() not in path.read_bytes()
    mounted_repository.mount()
