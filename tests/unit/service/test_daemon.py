"""Starting a process of its own: what it inherits, what it reports, what becomes of one that fails. Forks the test's
process.
"""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.errors import BackupfsError, LockedError
from backupfs.service import daemon
from backupfs.service.messages import Ready, failure

PR_GET_DUMPABLE = 3
ROOT = Path(__file__).parents[3]


def test_a_ready_process_lives_on_by_itself(tmp_path: Path) -> None:
    go_on_reader, go_on = os.pipe()
    facts = tmp_path / "facts"
    os.set_inheritable(go_on_reader, True)  # the process is to let go of it all the same

    def work(report: daemon.Report) -> int:
        seen = {
            "pid": os.getpid(),
            "session": os.getsid(0),
            "directory": os.getcwd(),
            "umask": os.umask(0),
            "open": sorted(int(name) for name in os.listdir("/proc/self/fd")),
            "streams": [os.readlink(f"/proc/self/fd/{stream}") for stream in range(3)],
        }
        facts.write_text(json.dumps(seen))
        report(Ready(os.getpid()))
        signal.pause()
        return 0

    ready = daemon.start(work)
    os.close(go_on)
    os.close(go_on_reader)
    seen = json.loads(facts.read_text())
    assert seen["pid"] == ready.pid != os.getpid()
    assert seen["session"] == ready.pid
    assert seen["directory"] == "/"
    assert seen["umask"] == 0o077
    assert seen["streams"] == ["/dev/null"] * 3
    assert len(seen["open"]) <= 5, "standard streams, the readiness pipe, and the listing itself"
    os.kill(ready.pid, signal.SIGKILL)
    os.waitpid(ready.pid, 0)


@pytest.mark.parametrize("code", [0, 3])
def test_the_process_ends_with_the_code_of_its_work(code: int) -> None:
    def work(report: daemon.Report) -> int:
        report(Ready(os.getpid()))
        report(Ready(-1))  # only the first report counts
        return code

    ready = daemon.start(work)
    assert os.waitstatus_to_exitcode(os.waitpid(ready.pid, 0)[1]) == code


def test_a_reported_error_comes_out() -> None:
    def work(report: daemon.Report) -> int:
        report(failure(LockedError("held by another", pid=5)))
        return 11

    with pytest.raises(LockedError, match="held by another") as caught:
        daemon.start(work)
    assert caught.value.fields == {"pid": 5}


def raising(report: daemon.Report) -> int:
    raise ZeroDivisionError("a fault")


def leaving(report: daemon.Report) -> int:
    raise SystemExit(4)


def dying(report: daemon.Report) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def silent(report: daemon.Report) -> int:
    return 7


@pytest.mark.parametrize(
    ("work", "words"),
    [
        (raising, "internal error: ZeroDivisionError: a fault"),
        (leaving, "internal error: SystemExit"),
        (dying, r"before it was ready \(exit code -9\)"),
        (silent, r"before it was ready \(exit code 7\)"),
    ],
)
def test_a_process_that_ends_before_it_is_ready_is_an_error(work: Callable[[daemon.Report], int], words: str) -> None:
    with pytest.raises(BackupfsError, match=words):
        daemon.start(work)


def test_an_interrupted_command_ends_what_it_started(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\n"
        "from backupfs.service import daemon\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it\n"
        "def work(report):\n"
        "    pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "try:\n"
        "    daemon.start(work)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "pid"], cwd=ROOT, check=False)
    assert done.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_command_that_died_does_not_keep_the_process_from_its_work(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys\n"
        "from backupfs.service import daemon\n"
        "from backupfs.service.messages import Ready\n"
        "def work(report):\n"
        "    os.kill(os.getppid(), signal.SIGKILL)\n"
        "    while os.getppid() == int(sys.argv[2]):\n"
        "        pass\n"
        "    report(Ready(os.getpid()))\n"
        "    with open(sys.argv[1], 'w') as fifo:\n"
        "        fifo.write('went on')\n"
        "    return 0\n"
        "sys.argv.append(str(os.getpid()))\n"
        "daemon.start(work)\n"
    )
    os.mkfifo(tmp_path / "fifo")
    with subprocess.Popen([sys.executable, "-c", script, tmp_path / "fifo"], cwd=ROOT) as command:
        assert (tmp_path / "fifo").read_text() == "went on"
        assert command.wait() == -signal.SIGKILL


def test_no_core_dump_and_no_look_from_outside() -> None:
    def work(report: daemon.Report) -> int:
        daemon.keep_memory_private()
        report(Ready(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
        return int(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))

    ready = daemon.start(work)
    os.waitpid(ready.pid, os.WUNTRACED)
    assert resource.prlimit(ready.pid, resource.RLIMIT_CORE) == (0, 0)
    os.kill(ready.pid, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(ready.pid, 0)[1]) == 0


def test_what_is_free_in_the_heap_goes_back_when_it_is_asked_for() -> None:
    """It is kept until then. Every other buffer stays, so that nothing is free at the heap's end."""
    script = (
        "from pathlib import Path\n"
        "from backupfs.service import daemon\n"
        "def resident():\n"
        "    return int(Path('/proc/self/statm').read_text().split()[1]) * 4096\n"
        "daemon.keep_memory_together()\n"
        "buffers = [bytes([1]) * 100_000 for _ in range(1000)]\n"
        "buffers[::2] = [None] * 500\n"
        "before = resident()\n"
        "daemon.give_memory_back()\n"
        "print(before - resident())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout) > 500 * 90_000
