"""Programs run beside the mount, with real ones: shells that wait at pipes, so that nothing here waits for time to pass."""

import errno
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from backupfs.limits import HOOK_OUTPUT_BYTES_MAX
from backupfs.service import program
from backupfs.service.program import Ended

LONG_S = 1e6


class Gate:
    """A pipe by name that scripts write to, and another one, `.never`, at which they wait for ever."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        os.mkfifo(f"{path}.never")
        self._reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    async def line(self) -> bytes:
        """What the script has written."""
        await trio.lowlevel.wait_readable(self._reader)
        return os.read(self._reader, 1000)

    async def gone(self) -> None:
        """Nobody has it open for writing any more."""
        while await self.line():
            pass

    def close(self) -> None:
        os.close(self._reader)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "gate")
    yield made
    made.close()


async def run(*command: str, timeout_s: float = LONG_S, grace_s: float = LONG_S, **environ: str) -> Ended:
    return await program.run(command, {"PATH": os.environ["PATH"], **environ}, timeout_s=timeout_s, grace_s=grace_s, threads=trio.CapacityLimiter(1))


async def sh(script: str, *arguments: str, timeout_s: float = LONG_S, grace_s: float = LONG_S) -> Ended:
    return await run("sh", "-c", script, *arguments, timeout_s=timeout_s, grace_s=grace_s)


async def test_exit_code_and_output_of_both_streams() -> None:
    assert await sh("echo out; echo err >&2; exit 3") == Ended(3, b"out\nerr\n")
    assert await run("true") == Ended(0, b"")
    assert await sh("kill -KILL $$") == Ended(-signal.SIGKILL, b"")


async def test_words_are_handed_over_as_they_are_and_no_shell_reads_them() -> None:
    words = ("$(id)", "a b", "", "*", "'", "\udcff")
    ended = await run(sys.executable, "-c", "import os, sys; print([os.fsencode(a) for a in sys.argv[1:]])", *words)
    assert ended == Ended(0, f"{[os.fsencode(word) for word in words]}\n".encode())


async def test_the_environment_is_the_one_given_and_nothing_else_is_handed_down(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as kept:
        assert kept.fileno() > 2
        ended = await run("sh", "-c", "env; pwd; cat; ls -l /proc/self/fd", BACKUPFS_X="1")
    lines = ended.output.decode().splitlines()
    assert "BACKUPFS_X=1" in lines
    assert "/" in lines, "no directory is held"
    assert not [line for line in lines if line.startswith("HOME=") or kept.name in line]


async def test_a_program_that_is_not_there() -> None:
    ended = await run("/no/such/program")
    assert ended.code == 127
    assert b"/no/such/program" in ended.output


@pytest.mark.parametrize("what", ["subprocess.Popen", "os.pidfd_open"])
async def test_a_program_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    before = os.listdir("/proc/self/fd"), children()
    monkeypatch.setattr(what, fail)
    with pytest.raises(OSError, match="Too many"):
        await sh("read never")
    assert (os.listdir("/proc/self/fd"), children()) == before


def children() -> set[str]:
    """Numbers of this process's children, those that have ended and were not waited for among them."""
    return {number for task in Path("/proc/self/task").iterdir() for number in (task / "children").read_text().split()}


async def test_only_the_end_of_much_output_is_kept() -> None:
    ended = await sh("yes 0123456789 | head -n 100000; echo end")
    assert len(ended.output) == HOOK_OUTPUT_BYTES_MAX
    assert ended.output.endswith(b"0123456789\nend\n")


async def begun(gate: Gate, nursery: trio.Nursery, results: list[Ended], script: str, timeout_s: float, grace_s: float) -> None:
    """Returns when the script has said so."""

    async def into() -> None:
        results.append(await sh(script, str(gate.path), timeout_s=timeout_s, grace_s=grace_s))

    nursery.start_soon(into)
    assert await gate.line() == b"ready\n"


async def time_passes(clock: MockClock, results: list[Ended]) -> None:
    """Until it is over. (The script may have begun before its time is being measured, so one minute is not enough.)"""
    while not results:
        clock.jump(61)
        await trio.lowlevel.checkpoint()


async def test_time_is_up_and_the_whole_group_is_gone(gate: Gate, mock_clock: MockClock) -> None:
    """Also what takes no heed of being asked."""
    results: list[Ended] = []
    async with trio.open_nursery() as nursery:
        script = "echo said; sh -c 'trap \"\" TERM; exec 3>$0; echo ready >&3; read never <$0.never' $0 & read never <$0.never"
        await begun(gate, nursery, results, script, timeout_s=60, grace_s=0)
        await time_passes(mock_clock, results)
    assert results == [Ended(None, b"said\n")]
    await gate.gone()


async def test_who_is_asked_to_end_may_clean_up(gate: Gate, mock_clock: MockClock) -> None:
    """There is time for that as long as anybody of the group can still print."""
    results: list[Ended] = []
    async with trio.open_nursery() as nursery:
        script = "trap 'echo cleaned; exit 7' TERM; sh -c 'exec 3>$0; echo ready >&3; read never <$0.never' $0 & wait"
        await begun(gate, nursery, results, script, timeout_s=60, grace_s=math.inf)
        await time_passes(mock_clock, results)
    assert results == [Ended(None, b"cleaned\n")]
    await gate.gone()


async def test_what_a_cancelled_program_has_started_is_gone(gate: Gate) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            sh, "(trap '' TERM; exec 3>$0; echo ready >&3; read never <$0.never) >/dev/null 2>&1 & read never <$0.never", str(gate.path)
        )
        await gate.line()
        nursery.cancel_scope.cancel()
    await gate.gone()


async def test_a_program_that_failed_leaves_nothing_in_the_background(gate: Gate) -> None:
    ended = await sh("(trap '' TERM; exec 3>$0; read never <$0.never) & echo 1 >$0; exit 1", str(gate.path), grace_s=0)
    assert ended.code == 1
    await gate.gone()


async def test_what_a_program_that_succeeded_left_in_the_background_stays(gate: Gate, tmp_path: Path) -> None:
    """As a session with a database that must last from before the snapshot until after it. That it still could print keeps nobody waiting."""
    hold = tmp_path / "hold"
    os.mkfifo(hold)
    ended = await sh('(exec 3>$0; read word <$1; echo "$word" >&3) 2>/dev/null & echo begun', str(gate.path), str(hold))
    assert ended == Ended(0, b"begun\n")
    await trio.to_thread.run_sync(hold.write_text, "still here\n")
    assert await gate.line() == b"still here\n"
    await gate.gone()


async def test_a_process_that_does_not_die_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    """As one that hangs in the kernel."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(program, "KILLED_S", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("os.killpg", lambda group, number: killed.append((group, number)))
        ended = await sh("read never <$0.never", str(gate.path), timeout_s=0, grace_s=0)
    assert ended == Ended(None, b"")
    (pid, first), (_, second) = killed
    assert (first, second) == (signal.SIGTERM, signal.SIGKILL)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
