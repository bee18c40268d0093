"""Waiting for requests: none is missed, and none that vanishes holds up the process."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from backupfs.fuse import waiting
from backupfs.fuse.mount import MountOptions
from backupfs.fuse.wakeful import DRIVER, PROCESSORS_MAX, Wakeful, this_machine
from tests.conftest import LogRule
from tests.fuse_floor.floor import Floor, serving


@pytest.mark.parametrize("handshake", [True, False])
async def test_a_request_whose_caller_is_killed_before_it_is_read(base: Path, monkeypatch: pytest.MonkeyPatch, handshake: bool) -> None:
    real = trio.lowlevel.wait_readable
    victims: list[subprocess.Popen[bytes]] = []

    async def wait_readable(descriptor: int) -> None:
        await real(descriptor)
        while victims:
            victim = victims.pop()
            victim.kill()
            victim.wait()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
    async with serving(base / "mnt", MountOptions(handshake=handshake, eager=False)) as floor:
        for number in range(5):
            asked = floor.fs.requests["lookup"]
            await trio.testing.wait_all_tasks_blocked()
            victim = subprocess.Popen(["stat", floor.directory / f"{number}"])
            victims.append(victim)
            await floor.do(victim.wait)
            assert not victims
            assert floor.fs.requests["lookup"] == asked  # it was never read
            await floor.do(os.statvfs, floor.directory)


@pytest.mark.parametrize("trouble", [None, errno.ENOMEM])
async def test_a_read_that_finds_nothing_or_no_memory(floor: Floor, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule, trouble: int | None) -> None:
    """Stands in for the kernel: when a caller dies between a look and the read, and when memory runs out, is not for a test to choose."""
    real = waiting._LowLevel.wait_readable
    lies = [1] * 5
    if trouble is not None:
        log_rule.expect("no memory for a request")

    async def wait_readable(self: waiting._LowLevel, number: int) -> None:
        if not lies:
            await real(self, number)
            return
        lies.pop()
        if trouble is not None:
            raise OSError(trouble, os.strerror(trouble))

    monkeypatch.setattr(waiting._LowLevel, "wait_readable", wait_readable)
    for number in range(20):
        await floor.do(os.mkdir, floor.directory / f"{number}")
    assert not lies
    await floor.mount.unmount()


@pytest.mark.parametrize("eager", [True, False])
async def test_many_at_once(base: Path, eager: bool) -> None:
    program = "import os, sys\nfor n in range(100): os.mkdir(f'{sys.argv[1]}/{os.getpid()}-{n}')\nprint(len(os.listdir(sys.argv[1])))"
    async with serving(base / "mnt", MountOptions(eager=eager)) as floor:
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(trio.run_process, [sys.executable, "-c", program, os.fspath(floor.directory)])
        assert floor.fs.requests["mkdir"] == 800
        assert len(await floor.do(os.listdir, floor.directory)) == 800


async def test_others_have_their_turn_while_requests_come_densely(floor: Floor) -> None:
    turns = 0
    ended = False

    async def other() -> None:
        nonlocal turns
        while not ended:
            await trio.lowlevel.checkpoint()
            turns += 1

    def many() -> None:
        for _ in range(1000):
            os.statvfs(floor.directory)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        assert await floor.requests("statfs", many) == 1000
        ended = True
    assert turns >= 1000 // waiting.REQUESTS_PER_TURN


@pytest.mark.root
@pytest.mark.parametrize("keep_awake", [True, False])
async def test_processors_are_kept_awake_where_that_is_of_use(base: Path, keep_awake: bool) -> None:
    """And nowhere else: on a machine where it is of no use, nothing is asked for either way."""
    machine = this_machine()
    driver = machine.driver.read_text().strip() if machine.driver.exists() else ""
    asks_here = keep_awake and machine.device.exists() and driver == DRIVER and 1 < machine.processors <= PROCESSORS_MAX

    def asks() -> bool:
        return any(os.path.realpath(link) == os.fspath(machine.device) for link in Path("/proc/self/fd").iterdir())

    def until_awake() -> int:
        with machine.device.open("rb", buffering=0) as target:
            for asked in range(100_000):
                os.statvfs(floor.directory)
                if os.pread(target.fileno(), 4, 0) == bytes(4):
                    return asked
        return -1

    async with serving(base / "mnt", MountOptions(keep_awake=keep_awake)) as floor:
        assert asks() == asks_here
        if asks_here:
            assert await floor.do(until_awake) >= 0
    assert not asks()


async def test_requests_that_wait_let_others_through(floor: Floor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are threads wait inside the engine; the next is served all the same."""
    held = trio.Event()
    arrived: list[bytes] = []
    real = floor.fs.mkdir

    async def slow(parent: int, name: bytes, mode: int, who: pyfuse3.RequestContext) -> object:
        arrived.append(name)
        await held.wait()
        return await real(parent, name, mode, who)

    monkeypatch.setattr(floor.fs, "mkdir", slow)
    await floor.do((floor.directory / "f").write_bytes, b"x")
    tops = [floor.directory / f"top{number}" for number in range(30)]
    for top in tops:
        held.set()
        await floor.do(os.mkdir, top)
    held = trio.Event()
    arrived.clear()
    async with trio.open_nursery() as nursery:
        for top in tops:
            nursery.start_soon(floor.do, os.mkdir, top / "below")
        await floor.until(lambda: len(arrived) == 30)
        assert await floor.do((floor.directory / "f").read_bytes) == b"x"
        held.set()


@pytest.mark.parametrize("handshake", [True, False])
async def test_no_request_waits_for_a_lock_of_trio(base: Path, monkeypatch: pytest.MonkeyPatch, handshake: bool) -> None:
    """pyfuse3 makes its lock at the first request, INIT, and keeps it: trio's own costs two scheduler passes a request."""

    async def taken(self: trio.Lock) -> None:
        raise AssertionError("trio's lock was taken")

    monkeypatch.setattr(trio.Lock, "acquire", taken)
    async with serving(base / "mnt", MountOptions(handshake=handshake)) as floor:
        await floor.do(os.mkdir, floor.directory / "made")
        await floor.mount.unmount()


async def test_pyfuse3_is_as_it_was_behind_a_mount(base: Path) -> None:
    async with serving(base / "mnt"):
        assert vars(pyfuse3)["trio"] is not trio
    assert vars(pyfuse3)["trio"] is trio


async def test_closing_is_heard_at_any_time(base: Path) -> None:
    """Also by who does not wait at that moment."""
    low_level = waiting._LowLevel(0, Wakeful(None))
    reader, writer = os.pipe()
    low_level.notify_closing(reader)
    with pytest.raises(trio.ClosedResourceError):
        await low_level.wait_readable(reader)
    os.write(writer, b"x")
    await low_level.wait_readable(reader)
    os.close(reader)
    os.close(writer)
