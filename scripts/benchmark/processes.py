"""Programs that are run, and what they cost in processor time and memory, whatever becomes of them.

A process that leaves its parent to serve a mount becomes a child of this one (it is the subreaper), so what it used up is known to the last when it
has ended.
"""

import ctypes
import json
import os
import resource
import select
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

SAMPLE_S: Final = 0.05
END_TIMEOUT_S: Final = 60.0
_PR_SET_CHILD_SUBREAPER: Final = 36
_CPUCLOCK_SCHED: Final = 2

Command = Sequence[str | Path]


class CommandFailedError(Exception):
    """A program that ended with something else than 0. The message has what it said."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What an action took. `cpu_s` is the user and system time of this process and all below it; `peak_bytes` the most memory that one of the
    programs that count had resident at any time meanwhile.
    """

    elapsed_s: float
    cpu_s: float
    peak_bytes: int


class Processes:
    """All processes below this one. For one thread, but for `resident`."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._in_foreground: set[int] = set()
        """Children that somebody waits for: not to be reaped by anybody else."""
        self._peak_bytes = 0
        self._sampled = Sampled()

    def run(self, command: Command, environment: Mapping[str, str] | None = None, cwd: Path | None = None, *, counts: bool = True) -> str:
        """Run a program to its end; what it said. CommandFailedError unless it ended with 0. Unless it `counts`, its memory is nobody's concern."""
        with tempfile.TemporaryFile() as output:
            pid = self._spawn(command, environment, cwd, output.fileno())
            _, status, usage = os.wait4(pid, 0)
            self._in_foreground.discard(pid)
            if counts:
                self._peak_bytes = max(self._peak_bytes, usage.ru_maxrss << 10)
            output.seek(0)
            said = output.read().decode(errors="replace")
        if code := os.waitstatus_to_exitcode(status):
            raise CommandFailedError(f"{' '.join(map(str, command))} ended with {code}: {said}")
        return said

    def start(self, command: Command) -> int:
        """Start a program that goes on by itself, as a daemon does; its number."""
        with tempfile.TemporaryFile() as output:
            pid = self._spawn(command, None, None, output.fileno())
        self._in_foreground.discard(pid)
        return pid

    @contextmanager
    def beside(self, command: Command) -> Iterator[None]:
        """A program that runs, with all that it starts, until the context ends."""
        with tempfile.TemporaryFile() as output:
            pid = self._spawn(command, None, None, output.fileno())
        try:
            yield
        finally:
            os.killpg(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            self._in_foreground.discard(pid)

    def together(self, count: int, work: Callable[[int], Sequence[float]]) -> list[list[float]]:
        """Have so many processes of their own do the work at the same time, each with its number from 0 on; what each returned."""
        go_read, go_write = os.pipe()
        pids, results = [], []
        for number in range(count):
            result_read, result_write = os.pipe()
            if (pid := os.fork()) == 0:
                _do_and_exit(go_read, go_write, result_write, lambda number=number: work(number))  # type: ignore[misc]
            os.close(result_write)
            self._in_foreground.add(pid)
            pids.append(pid)
            results.append(result_read)
        os.close(go_read)
        os.close(go_write)
        found = []
        for pid, result in zip(pids, results, strict=True):
            with open(result, "rb") as file:
                told = file.read()
            _, status = os.waitpid(pid, 0)
            self._in_foreground.discard(pid)
            if status:
                raise CommandFailedError(f"one of {count} processes ended with {os.waitstatus_to_exitcode(status)}")
            found.append(json.loads(told))
        return found

    def _spawn(self, command: Command, environment: Mapping[str, str] | None, cwd: Path | None, output: int) -> int:
        words = [str(word) for word in ([*(("env", f"--chdir={cwd}") if cwd else ()), *command])]
        null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        actions = [null, (os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
        pid = os.posix_spawnp(words[0], words, {**os.environ, **(environment or {})}, file_actions=actions, setpgroup=0)
        self._in_foreground.add(pid)
        return pid

    def kill(self, pid: int) -> None:
        """Without any chance to do something about it; returns when it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.wait_for_daemons()

    def wait_for_daemons(self) -> None:
        """Until none is left of those that nobody waits for."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while pids := self._reap():
            descriptor = os.pidfd_open(pids[0])
            try:
                if not select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))[0]:
                    raise RuntimeError(f"processes {pids} do not end")
            finally:
                os.close(descriptor)

    def is_running(self, pid: int) -> bool:
        """Whether a program that was started has not ended yet."""
        return pid in self._reap()

    def measure(self, action: Callable[[], object]) -> Cost:
        """Do it. Most memory counts from now on, also of programs that run already (where that may be reset)."""
        daemons = self._reap()
        for pid in (os.getpid(), *daemons):
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
        self._peak_bytes = 0
        with sampling(daemons, "VmHWM") as self._sampled:
            below_s = self._cpu_below_s()
            own_s = time.process_time() - self._sampled.cpu_s
            began = time.perf_counter()
            action()
            elapsed_s = time.perf_counter() - began
            cpu_s = time.process_time() - self._sampled.cpu_s - own_s
            cpu_s += self._cpu_below_s() - below_s
        living = [resident(pid, "VmHWM") for pid in self._reap()]
        return Cost(elapsed_s, cpu_s, max(self._peak_bytes, *living, 0))

    def _reap(self) -> list[int]:
        """Take note of daemons that have ended; those that have not."""
        living = []
        for pid in _children_of_all().get(os.getpid(), []):
            if pid in self._in_foreground:
                continue
            ended, _, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                # what wait4 says of a daemon is also what it had long before, when it started a program itself
                self._peak_bytes = max(self._peak_bytes, self._sampled.greatest.get(pid, usage.ru_maxrss << 10))
            else:
                living.append(pid)
        return living

    def _cpu_below_s(self) -> float:
        """Of all that are or were below this process. Two of these tell what was used between them."""
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = usage.ru_utime + usage.ru_stime
        children = _children_of_all()
        below = list(children.get(os.getpid(), []))
        while below:
            pid = below.pop()
            with suppress(OSError):  # it has ended since
                total += time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
            below += children.get(pid, [])
        return total


def resident(pid: int, field: str) -> int:
    """A field of /proc/PID/status that is in kB, as bytes: VmHWM, VmRSS, RssAnon. 0 of a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) << 10
    return 0


@dataclass(slots=True)
class Sampled:
    """What was seen so far."""

    greatest: dict[int, int] = field(default_factory=dict)
    """Process -> bytes."""
    cpu_s: float = 0.0
    """What looking has taken."""


@contextmanager
def sampling(pids: Sequence[int], name: str) -> Iterator[Sampled]:
    """Look at a field of `resident` again and again until the context ends."""
    sampled = Sampled({pid: resident(pid, name) for pid in pids})
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            for pid in pids:
                sampled.greatest[pid] = max(sampled.greatest[pid], resident(pid, name))
            sampled.cpu_s = time.thread_time()

    thread = threading.Thread(target=sample)
    if pids:
        thread.start()
    try:
        yield sampled
    finally:
        ended.set()
        if pids:
            thread.join()


def _do_and_exit(go_read: int, go_write: int, result_write: int, work: Callable[[], Sequence[float]]) -> NoReturn:
    """In a child process: wait until all are there, do the work, tell the result."""
    code = 1
    try:
        os.close(go_write)
        os.read(go_read, 1)
        told = json.dumps(list(work())).encode()
        with open(result_write, "wb") as file:
            file.write(told)
        code = 0
    except Exception:  # noqa: BLE001 nothing of the parent's code may run in here
        traceback.print_exc()
    finally:
        os._exit(code)


def _children_of_all() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                # the name of a program may have anything in it, but for what comes after its last parenthesis
                parent = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
                found.setdefault(parent, []).append(int(name))
    return found
