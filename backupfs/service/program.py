"""One program, run beside the mount to its end or the end of its time. Nothing here keeps the loop, or a lock of the interpreter, waiting.

The daemon is itself what its children may wait for. Between fork and exec the interpreter stands still, so nothing may happen there that needs
the own mount: descriptors are left for exec to close, since closing one that leads into the mount sends a request to this very process; and what
is executed first is the system's shell, which then executes the program, since that may lie in the mount.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from backupfs.limits import HOOK_OUTPUT_BYTES_MAX

KILLED_S: Final = 5.0
"""Longest wait for a process that was killed. One that hangs in the kernel, on a dead network file system, must not keep the mount from ending."""
_FIRST: Final = ("/bin/sh", "-c", 'exec "$0" "$@"')
_PIPE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Ended:
    """`code` is the exit code, negative the signal that ended it, None when its time was up. `output` is the end of what it printed."""

    code: int | None
    output: bytes


class _Running:
    """A process that leads a session and a group of its own, and the pipe that both its streams go to. Not reaped before `close`: until then
    its number means nothing else.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Blocks until the shell has begun. OSError when that is not possible."""
        self.output = b""
        self._reader, writer = os.pipe()
        with ExitStack() as undo:
            undo.callback(os.close, self._reader)
            with os.fdopen(writer, "wb") as streams:
                self._process = subprocess.Popen(
                    [*_FIRST, *command],
                    stdin=subprocess.DEVNULL,
                    stdout=streams,
                    stderr=streams,
                    env=dict(environ),
                    cwd="/",
                    close_fds=False,
                    start_new_session=True,
                )
            undo.callback(self._process.wait)
            undo.callback(self.signal_group, signal.SIGKILL)
            self._pidfd = os.pidfd_open(self._process.pid)
            os.set_blocking(self._reader, False)
            undo.pop_all()

    def code(self) -> int | None:
        """As `Ended.code`; None while it runs."""
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status

    def signal_group(self, number: signal.Signals) -> None:
        """To it and all that it has started, as far as they have not begun a session of their own."""
        os.killpg(self._process.pid, number)

    async def exit(self) -> None:
        """Until the process has ended."""
        await trio.lowlevel.wait_readable(self._pidfd)

    async def collect(self) -> None:
        """Read what is printed, until nobody can print any more."""
        while True:
            await trio.lowlevel.wait_readable(self._reader)
            if not self._read():
                return

    def close(self) -> None:
        """Take what is in the pipe, let go of everything."""
        with suppress(BlockingIOError):  # it is empty, and somebody in the background could still print
            self._read()
        trio.lowlevel.notify_closing(self._reader)
        os.close(self._reader)
        os.close(self._pidfd)
        if self.code() is not None:
            self._process.wait()
        else:
            self._process.returncode = 0  # it hangs in the kernel: nobody waits for it any more

    def _read(self) -> bytes:
        data = os.read(self._reader, _PIPE_BYTES)
        self.output = (self.output + data)[-HOOK_OUTPUT_BYTES_MAX:]
        return data


async def run(command: Sequence[str], environ: Mapping[str, str], *, timeout_s: float, grace_s: float, threads: trio.CapacityLimiter) -> Ended:
    """Run it. When it fails, when its time is up, or when this is cancelled, its group is asked to end and, `grace_s` later at the latest, killed.

    What a program that has succeeded leaves in the background stays. OSError when it cannot be started.
    """
    running = await trio.to_thread.run_sync(partial(_Running, command, environ), limiter=threads)
    code = None
    try:
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.collect)
                await running.exit()
                nursery.cancel_scope.cancel()
    finally:
        code = running.code()
        if code != 0:
            with trio.CancelScope(shield=True):
                await _end(running, grace_s)
        running.close()
    return Ended(code, running.output)


async def _end(running: _Running, grace_s: float) -> None:
    running.signal_group(signal.SIGTERM)
    with trio.move_on_after(grace_s):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.collect)
            await running.exit()
    running.signal_group(signal.SIGKILL)
    with trio.move_on_after(KILLED_S):
        await running.exit()
