"""The way to the past from any directory, and one snapshot mounted on its own, on real mounts."""

import errno
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted import Repository, run, until
from tests.oracle.manifest import assert_same, manifest


def make_tree(top: Path) -> None:
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_bytes(b"then")
    (top / "a/b/link").symlink_to("file")
    os.link(top / "a/b/file", top / "a/second name")
    os.setxattr(top / "a/b/file", "user.note", b"of then")


def test_every_directory_leads_to_its_past_and_does_not_show_it(mounted_repository: Repository) -> None:
    live = mounted_repository.directory
    make_tree(live)
    past = mounted_repository.snapshot().name
    (live / "a").rename(live / "renamed")
    (live / "renamed/b/file").write_bytes(b"now")
    below = live / "renamed/b"
    assert os.listdir(below) == sorted(["file", "link"], key=os.listdir(below).index)
    assert (below / ".snapshots" / past / "file").read_bytes() == b"then"
    assert os.readlink(below / ".snapshots" / past) == f"../../../.snapshots/{past}/a/b"
    assert sorted(os.listdir(below / ".snapshots")) == sorted([past, "latest"])
    assert os.path.samefile(below / ".snapshots/latest", live / ".snapshots" / past / "a/b")
    os.chdir(below / ".snapshots")
    try:
        assert Path("..").resolve() == below
        assert (Path(past) / "file").read_bytes() == b"then"
    finally:
        os.chdir("/")
    moment = time.strptime(past[:17], "%Y-%m-%dT%H%M%S")
    gmt = time.strftime("@GMT-%Y.%m.%d-%H.%M.%S", moment)
    assert (below / gmt / "file").read_bytes() == b"then"
    assert (live / gmt / "a/b/file").read_bytes() == b"then"
    (live / "new").mkdir()
    with pytest.raises(FileNotFoundError):
        os.stat(live / "new/.snapshots" / past)
    with pytest.raises(FileExistsError):
        os.mkdir(below / ".snapshots")
    assert run(["cp", "-a", below / ".snapshots" / past / "file", below / "file"]).returncode == 0
    assert (below / "file").read_bytes() == b"then"


@pytest.mark.root
def test_only_the_owner_takes_snapshots_by_mkdir(make_repository: Callable[..., Repository]) -> None:
    shared = make_repository("--allow-other")
    os.chmod(shared.directory, 0o777)
    for command in (["mkdir"], ["rmdir"]):
        done = run([*command, shared.directory / ".snapshots/mine"], user=12345, expect=None)
        assert done.returncode == 1
        assert "denied" in done.stderr or "No such" in done.stderr


@pytest.mark.root
def test_what_lends_rights_lends_none_from_the_past(make_repository: Callable[..., Repository]) -> None:
    lending, plain = make_repository("--suid", "--dev"), make_repository()
    for each in (lending, plain):
        program, device = each.directory / "program", each.directory / "null"
        program.write_bytes(b"#!/bin/true\n")
        os.mkdir(each.directory / "shared")
        os.chmod(each.directory / "shared", 0o2775)
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        program.chmod(0o6755)
        past = each.directory / ".snapshots" / each.snapshot().name
        assert stat.S_IMODE(os.stat(past / "shared").st_mode) == 0o2775, "there it lends nothing"
        told = os.stat(past / "program").st_mode & 0o7777, os.stat(past / "null").st_rdev
        assert told == ((0o755, 0) if each is lending else (0o6755, os.makedev(1, 3)))
        with pytest.raises(OSError) as refused:
            os.open(past / "null", os.O_RDONLY)
        assert refused.value.errno == (errno.ENXIO if each is lending else errno.EACCES)
        program.unlink()
        each.command("restore", program, "--at", "latest")
        assert os.stat(program).st_mode & 0o7777 == 0o6755


def test_one_snapshot_is_mounted_beside_the_running_mount(mounted_repository: Repository, base: Path) -> None:
    live = mounted_repository.directory
    make_tree(live)
    past = mounted_repository.snapshot().name
    then = manifest(live / ".snapshots" / past)
    (live / "a/b/file").write_bytes(b"now")
    (live / "a/second name").unlink()
    beside = base / "beside"
    beside.mkdir()
    mounted_repository.mount("--at", "latest", directory=beside)
    assert_same(then, manifest(beside))
    assert os.listdir(beside) == ["a"]
    for action in (lambda: (beside / "new").write_bytes(b""), lambda: os.unlink(beside / "a/b/file"), lambda: os.mkdir(beside / "d")):
        with pytest.raises(OSError) as refused:
            action()
        assert refused.value.errno == errno.EROFS
    mounted_repository.command("snapshot", "delete", live, past)
    for number in range(30):
        (live / f"n{number}").write_bytes(os.urandom(200_000))
    os.sync()
    assert_same(then, manifest(beside))  # lent, it is not purged
    (told,) = mounted_repository.json("status", beside)
    assert (told["mounted"], told["read_only"]) == (True, True)
    mounted_repository.unmount(beside)
    assert not os.path.ismount(beside)
    mounted_repository.expect_trouble("there is no snapshot yet")
    done = mounted_repository.command("mount", mounted_repository.path, beside, "--at", "latest", expect=2)
    assert "no snapshot" in done.stderr


def test_the_mount_beside_ends_with_the_one_that_lends_it(mounted_repository: Repository, base: Path) -> None:
    (mounted_repository.directory / "file").write_bytes(b"x")
    name = mounted_repository.snapshot().name
    beside = base / "beside"
    beside.mkdir()
    mounted_repository.mount("--snapshot", name, directory=beside)
    assert (beside / "file").read_bytes() == b"x"
    mounted_repository.unmount()
    until(lambda: not os.path.ismount(beside), "the mount beside is gone")
    mounted_repository.mount()


def test_one_snapshot_is_mounted_alone_and_after_a_kill(mounted_repository: Repository, base: Path) -> None:
    live = mounted_repository.directory
    make_tree(live)
    past = mounted_repository.snapshot().name
    then = manifest(live / ".snapshots" / past)
    (live / "later").write_bytes(b"x")
    os.kill(mounted_repository.status()["pid"], signal.SIGKILL)
    until(lambda: mounted_repository.command("status", mounted_repository.path).stdout.find("not mounted") >= 0, "the process is gone")
    beside = base / "beside"
    beside.mkdir()
    mounted_repository.mount("--at", past, directory=beside)
    assert_same(then, manifest(beside))
    done = mounted_repository.command("mount", mounted_repository.path, live, expect=11)
    assert "mounted on" in done.stderr
    mounted_repository.unmount(beside)
    mounted_repository.mount()
    assert (live / ".snapshots" / past / "a/b/file").read_bytes() == b"then"


def test_mkdir_takes_a_snapshot_with_everything_written_and_rmdir_marks_it_deleted(mounted_repository: Repository) -> None:
    live = mounted_repository.directory
    mounted_repository.expect_trouble("mkdir .snapshots/NAME")
    with (live / "open").open("wb") as file:
        file.write(b"still in the page cache")
        file.flush()
        os.mkdir(live / ".snapshots/before the upgrade")
    assert (live / ".snapshots/before the upgrade/open").read_bytes() == b"still in the page cache"
    assert "before the upgrade" in os.listdir(live / ".snapshots")
    for name, code in (("before the upgrade", errno.EEXIST), ("latest", errno.EEXIST), ("2026-10-04T120000Z", errno.EINVAL)):
        with pytest.raises(OSError) as refused:
            os.mkdir(live / ".snapshots" / name)
        assert refused.value.errno == code, name
    os.rmdir(live / ".snapshots/before the upgrade")
    assert os.listdir(live / ".snapshots") == []
    with pytest.raises(FileExistsError):
        os.mkdir(live / ".snapshots/before the upgrade")
