"""Mounting, the end of a mount, and what is said when it cannot be."""

import errno
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from backupfs.errors import UnsupportedError, UsageError
from backupfs.fuse import handshake, mount_table
from backupfs.fuse.handshake import HandshakeError, InitFlag
from backupfs.fuse.holders import holders
from backupfs.fuse.mount import PAGES_OF_MEMORY, READ_AHEAD_BYTES, Mount, MountOptions
from backupfs.fuse.unmounting import MountBusyError, answers, clear_stale, unmount
from tests.conftest import LogRule
from tests.fuse_floor.fake import FakeFileSystem
from tests.fuse_floor.floor import Floor, serving
from tests.fuse_floor.processes import FOR_EVERYBODY, NOBODY, server, started
from tests.mounted import unmounting

BOTH = InitFlag.DONT_MASK | InitFlag.HANDLE_KILLPRIV_V2
OTHER = 65533


def as_user(user: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, user=user, group=user, extra_groups=[], capture_output=True, text=True, check=False)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_the_mount_is_what_it_says(floor: Floor) -> None:
    entry = mount_table.find(floor.directory, mount_table.read())
    assert entry is not None
    assert entry.ours
    assert entry.options >= {b"rw", b"nosuid", b"nodev"}
    assert floor.mount.flags == BOTH
    assert mount_table.is_mounted(floor.directory)
    assert not mount_table.is_mounted(floor.directory.parent)


async def test_a_directory_with_an_odd_name(base: Path) -> None:
    before = open_descriptors()
    for name in ("with space", "tab\tnew\nline", "back\\slash", "\udcff\udcfe", "-o", "a,b", "#x"):
        async with serving(base / name) as floor:
            assert mount_table.is_mounted(floor.directory)
            await floor.do((floor.directory / "f").write_bytes, b"x")
        assert not mount_table.is_mounted(base / name)
        assert os.listdir(base / name) == []
    assert open_descriptors() == before


async def test_a_directory_reached_by_a_symlink(base: Path) -> None:
    (base / "mnt").mkdir()
    (base / "link").symlink_to("mnt")
    async with serving(base / "link") as floor:
        assert mount_table.is_mounted(base / "mnt")
        assert mount_table.is_mounted(base / "link")
        await floor.do((base / "mnt" / "f").write_bytes, b"x")
        await floor.do(floor.mount.write_back, b"f", 2)
        await floor.mount.unmount()


async def test_the_end_comes_from_outside(base: Path) -> None:
    (base / "mnt").mkdir()
    mount = Mount(FakeFileSystem(), base / "mnt", MountOptions())
    async with trio.open_nursery() as nursery:
        await nursery.start(mount.serve)
        await trio.run_process(unmounting(base / "mnt"))
    await mount.unmount()  # there is nothing left to do
    await mount.detach()


async def test_writes_of_a_process_that_is_done_are_there_after_unmounting(base: Path) -> None:
    async with serving(base / "mnt") as floor:
        path = floor.directory / "f"
        await floor.do(subprocess.run, ["sh", "-c", f"head -c 3000000 /dev/zero > {path}"], check=True)
        await floor.mount.unmount()
    assert bytes(floor.fs.node(b"f").data) == bytes(3_000_000)


class _SlowRelease(FakeFileSystem):
    """Answers no RELEASE before it may."""

    def __init__(self) -> None:
        super().__init__(os.geteuid(), os.getegid())
        self.is_asked, self.may_answer = trio.Event(), trio.Event()

    async def release(self, fh: int) -> None:
        self.is_asked.set()
        await self.may_answer.wait()
        await super().release(fh)


async def test_an_answer_that_nobody_waits_for_any_more_is_no_trouble(base: Path) -> None:
    fs = _SlowRelease()
    async with serving(base / "mnt", fs=fs) as floor:
        await floor.do((floor.directory / "f").write_bytes, b"x")
        await fs.is_asked.wait()
        await floor.mount.unmount()
        fs.may_answer.set()
    assert fs.requests["release"] == 1


async def test_who_holds_the_mount_is_named(floor: Floor) -> None:
    path = floor.directory / "held \n file"
    await floor.do(path.write_bytes, b"#!/bin/true\n")
    await floor.do(os.mkdir, floor.directory / "d")
    holding = "import sys; held = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    with (
        started("-c", holding, path) as process,
        started("-c", "import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read()", floor.directory / "d") as other,
    ):
        await floor.do(process.told)
        await floor.do(other.told)
        with pytest.raises(MountBusyError) as busy:
            await floor.mount.unmount()
        assert busy.value.errno == errno.EBUSY
        found = holders(floor.directory)
        assert {(pid, what.split()[0]) for pid, _, what in found} == {(process.process.pid, "open"), (other.process.pid, "cwd")}
        assert str(process.process.pid) in str(busy.value)
        assert await floor.do(process.end) == 0
        assert await floor.do(other.end) == 0
    assert holders(floor.directory) == []
    await floor.mount.unmount()


@pytest.mark.root
async def test_mounts_and_mappings_hold_too(floor: Floor) -> None:
    await floor.do(os.mkdir, floor.directory / "below")
    await floor.do((floor.directory / "f").write_bytes, b"x" * 100)
    await floor.do(subprocess.run, ["mount", "-t", "tmpfs", "none", floor.directory / "below"], check=True)
    try:
        with pytest.raises(MountBusyError, match="tmpfs on"):
            await floor.mount.unmount()
    finally:
        await floor.do(subprocess.run, ["umount", floor.directory / "below"], check=True)
    mapping = "import mmap, sys\nwith open(sys.argv[1]) as f: m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nprint(flush=True); sys.stdin.read()"
    with started("-c", mapping, floor.directory / "f") as process:
        await floor.do(process.told)
        assert (process.process.pid, "python") in {(pid, command[:6]) for pid, command, what in holders(floor.directory) if what.startswith("mapped")}
        assert await floor.do(process.end) == 0


async def test_detaching_takes_the_mount_from_its_users(base: Path) -> None:
    async with serving(base / "mnt") as floor:
        held = await floor.do(os.open, floor.directory / "f", os.O_RDWR | os.O_CREAT)
        await floor.mount.detach()
        assert not mount_table.is_mounted(floor.directory)
    with pytest.raises(OSError) as gone:
        os.fsync(held)
    assert gone.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(OSError):  # FLUSH finds nobody either
        os.close(held)


def test_a_dead_mount_fails_loudly_and_is_cleared(base: Path) -> None:
    directory = base / "mnt"
    directory.mkdir()
    with server(directory) as process:
        (directory / "f").write_bytes(b"x")
        os.stat(directory)
        held = os.open(directory / "f", os.O_RDONLY)
        process.process.kill()
        process.process.wait()
        assert mount_table.is_mounted(directory)
        assert not answers(directory)
        with pytest.raises(OSError) as dead:
            os.listdir(directory)
        assert dead.value.errno == errno.ENOTCONN
        assert clear_stale(directory)  # although somebody stands in it
        with pytest.raises(OSError):
            os.close(held)
    assert not mount_table.is_mounted(directory)
    assert not clear_stale(directory)


async def test_a_dead_mount_is_mounted_over_after_clearing(base: Path, log_rule: LogRule) -> None:
    directory = base / "mnt"
    directory.mkdir()
    with server(directory) as process:
        process.process.kill()
        process.process.wait()
        log_rule.expect("a process that is gone")
        async with serving(directory) as floor:
            await floor.do((directory / "f").write_bytes, b"x")
    assert os.listdir(directory) == []


async def test_a_living_mount_is_not_cleared(floor: Floor) -> None:
    assert not await floor.do(clear_stale, floor.directory)
    again = Mount(FakeFileSystem(), floor.directory, MountOptions())
    with pytest.raises(UsageError, match="already"):
        await again.serve()
    assert (await floor.do(os.statvfs, floor.directory)).f_bsize == 4096


@pytest.mark.root
async def test_what_else_is_mounted_there_stays(base: Path) -> None:
    directory = base / "mnt"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    try:
        async with serving(directory) as floor:
            await floor.mount.unmount()
        unmount(directory)
        unmount(directory, lazy=True)
        entry = mount_table.find(directory, mount_table.read())
        assert entry is not None
        assert entry.type == b"tmpfs"
    finally:
        subprocess.run(["umount", directory], check=True)


async def test_read_only(base: Path) -> None:
    async with serving(base / "mnt", MountOptions(read_only=True)) as floor:
        with pytest.raises(OSError) as refused:
            await floor.do((floor.directory / "f").write_bytes, b"")
        assert refused.value.errno == errno.EROFS


def bounds(floor: Floor) -> tuple[int, int, int]:
    """What the kernel says of the mount: bytes it reads ahead, bytes of unwritten pages it holds (0: before Linux 6.3 it does not say), whether
    strictly.
    """
    entry = mount_table.find(floor.directory, mount_table.read())
    assert entry is not None
    bdi = Path("/sys/class/bdi") / "{}:{}".format(*entry.device)
    settings = [bdi / name for name in ("read_ahead_kb", "max_bytes", "strict_limit")]
    ahead, pages, strict = (int(setting.read_text()) if setting.exists() else 0 for setting in settings)
    return ahead * 1024, pages, strict


@pytest.mark.root
async def test_reading_ahead_and_unwritten_pages_are_raised(base: Path) -> None:
    async with serving(base / "mnt", MountOptions(tuned=False)) as floor:
        untouched_ahead, untouched_pages, _ = bounds(floor)
        assert floor.fs.kept_bytes == 0
    async with serving(base / "mnt") as floor:
        ahead, pages, strict = bounds(floor)
        assert ahead == READ_AHEAD_BYTES > untouched_ahead
        if not untouched_pages:
            assert floor.fs.kept_bytes == 0
            return
        assert strict == 1
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert floor.fs.kept_bytes == min(floor.fs.room_bytes, memory_bytes // PAGES_OF_MEMORY) > untouched_pages
        # The kernel keeps a ratio of what may be dirty in all, which changes from moment to moment, and gives bytes made of that.
        assert abs(pages - floor.fs.kept_bytes) < 0.01 * floor.fs.kept_bytes


@pytest.mark.root
@pytest.mark.parametrize("option", ["little room", "read-only"])
async def test_where_unwritten_pages_stay_as_they_are_no_room_is_kept_for_them(base: Path, option: str) -> None:
    fs = FakeFileSystem()
    if option == "little room":
        fs.room_bytes = 1 << 20
    async with serving(base / "mnt", MountOptions(read_only=option == "read-only"), fs) as floor:
        ahead, pages, _ = bounds(floor)
        assert ahead == READ_AHEAD_BYTES
        assert not pages or pages > 1 << 20
        assert floor.fs.kept_bytes == 0


# --- the plain mount, and failures ----------------------------------------------------------------------------------


async def test_a_failed_handshake_falls_back_to_a_plain_mount(base: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    def strange(answer: bytes, wanted: int) -> bytes:
        raise HandshakeError("a strange answer")

    before = open_descriptors()
    monkeypatch.setattr(handshake, "with_flags", strange)
    log_rule.expect("a strange answer")
    async with serving(base / "mnt") as floor:
        assert floor.mount.flags == InitFlag(0)
        assert floor.fs.umask_applied
        await floor.do((floor.directory / "f").write_bytes, b"x")
        assert [entry.point for entry in mount_table.read()].count(os.fsencode(floor.directory)) == 1
        await floor.mount.unmount()
    assert open_descriptors() == before


async def test_an_answer_that_the_kernel_refuses_falls_back(base: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    monkeypatch.setattr(handshake, "with_flags", lambda answer, wanted: answer[:20])
    log_rule.expect("Invalid argument")
    async with serving(base / "mnt") as floor:
        await floor.do((floor.directory / "f").write_bytes, b"x")


@pytest.mark.root
async def test_without_fusermount_root_mounts_plainly(base: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    monkeypatch.setenv("PATH", os.fspath(base))
    log_rule.expect("fusermount3 is missing")
    async with serving(base / "mnt") as floor:
        await floor.do((floor.directory / "f").write_bytes, b"x")
        await floor.mount.unmount()


async def test_what_fusermount_says_is_passed_on(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (base / "mnt").mkdir()
    monkeypatch.setattr(MountOptions, "names", lambda self: ["no_such_option"])
    with pytest.raises(UnsupportedError, match="fusermount3"):
        await Mount(FakeFileSystem(), base / "mnt", MountOptions()).serve()
    with pytest.raises(UnsupportedError, match="cannot be mounted"):
        await Mount(FakeFileSystem(), base / "mnt", MountOptions(handshake=False)).serve()
    assert not mount_table.is_mounted(base / "mnt")


@pytest.mark.parametrize("step", ["negotiate", "greet"])
async def test_cancelled_before_it_answers_nothing_stays(base: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    (base / "mnt").mkdir()
    before = open_descriptors()
    fs = FakeFileSystem()
    mount = Mount(fs, base / "mnt", MountOptions())
    with trio.CancelScope() as scope:
        if step == "greet":

            async def never() -> None:
                scope.cancel()
                await trio.sleep_forever()

            monkeypatch.setattr(fs, "statfs", never)
        else:
            main = pyfuse3.main

            async def cancelled() -> None:
                scope.cancel()
                await main()

            monkeypatch.setattr(pyfuse3, "main", cancelled)
        await mount.serve()
    assert scope.cancelled_caught
    assert not mount_table.is_mounted(base / "mnt")
    await trio.testing.wait_all_tasks_blocked()
    assert open_descriptors() <= before + 2  # a thread that was given up may not have ended yet


@pytest.mark.root
@pytest.mark.skipif(not FOR_EVERYBODY, reason="ordinary users may not open /dev/fuse here")
def test_an_ordinary_user_mounts_for_himself(base: Path) -> None:
    directory = base / "mnt"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    with server(directory, "--user", str(NOBODY)):
        said = as_user(NOBODY, "sh", "-c", f"echo x > {directory}/f && cat {directory}/f")
        assert said.stdout == "x\n"
        for user in (0, OTHER):  # not even root, without allow_other
            assert as_user(user, "ls", os.fspath(directory)).returncode != 0
        assert as_user(NOBODY, *unmounting(directory)).returncode == 0


@pytest.mark.root
@pytest.mark.skipif(not FOR_EVERYBODY, reason="ordinary users may not open /dev/fuse here")
def test_an_ordinary_user_is_told_what_is_in_the_way(base: Path) -> None:
    (base / "theirs").mkdir()
    for options, directory, said in (
        ((), base / "theirs", "UsageError: you may not write"),
        ((), base / "missing", "UsageError: .* does not exist"),
        (("--allow-other",), base, "UsageError: --allow-other needs"),
    ):
        with started(Path(__file__).parent / "server.py", directory, "--user", str(NOBODY), *options) as process:
            told = process.told()
            assert re.match(said, told), told


@pytest.mark.root
async def test_allow_other_lets_others_in_by_mode(base: Path) -> None:
    async with serving(base / "mnt", MountOptions(allow_other=True)) as floor:
        await floor.do((floor.directory / "open").write_bytes, b"x")
        await floor.do((floor.directory / "closed").write_bytes, b"x")
        await floor.do(os.chmod, floor.directory / "closed", 0o600)
        for name, code in (("open", 0), ("closed", 1)):
            done = await floor.do(as_user, NOBODY, "cat", os.fspath(floor.directory / name))
            assert done.returncode == code


@pytest.mark.root
async def test_set_id_bits_mean_nothing_below(base: Path) -> None:
    async with serving(base / "mnt", MountOptions(allow_other=True)) as floor:
        path = floor.directory / "id"
        await floor.do(shutil.copy, shutil.which("id"), path)
        await floor.do(os.chmod, path, 0o4755)
        done = await floor.do(as_user, NOBODY, os.fspath(path), "-u")
        assert done.stdout == f"{NOBODY}\n"


def test_a_stopped_server_is_not_taken_for_a_dead_one(base: Path) -> None:
    directory = base / "mnt"
    directory.mkdir()
    with server(directory) as process:
        process.process.send_signal(signal.SIGSTOP)
        assert mount_table.is_mounted(directory)  # nothing that looks at the table waits for it
        assert holders(directory) == []
        process.process.send_signal(signal.SIGCONT)
        assert answers(directory)
