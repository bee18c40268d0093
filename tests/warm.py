"""Commands without the cost of a new interpreter: a process that has loaded backupfs forks one for each.

Each runs as it does otherwise, in a process, environment and directory of its own; what is saved is the start of an interpreter and the loading of
modules, which take longer than most commands do. `python -m tests.warm FD [NAME=VALUE...]` is the process that forks; it takes requests from the
socket FD until that is closed, and its processes go by other limits if there are any.
"""

import array
import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

ROOT: Final = Path(__file__).resolve().parent.parent
REQUEST_BYTES_MAX: Final = 1 << 17
MEASURED: Final = "COVERAGE_PROCESS_CONFIG"
"""With this in their environment processes are measured, from their first line on."""
_OF_THE_INTERPRETER: Final = ("LC_", "LANG", "PYTHON", "TZ", "LD_", "COVERAGE")
"""Variables that are looked at when an interpreter starts, or before."""
_MODULE: Final = "tests.warm"


def serves(pid: int) -> bool:
    """Whether a process was forked for a command. ProcessLookupError or FileNotFoundError when there is none."""
    return os.fsencode(_MODULE) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")


def may_run(environment: Mapping[str, str]) -> bool:
    """Whether an interpreter that was started in that environment would be the same."""
    ours = _environment()
    return all(environment.get(name) == ours.get(name) for name in environment.keys() | ours.keys() if name.startswith(_OF_THE_INTERPRETER))


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


class Runner:
    """The process that forks, from outside."""

    def __init__(self, limits: Mapping[str, float]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [f"{name}={value}" for name, value in limits.items()]
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, str(theirs.fileno()), *words],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                env=_environment(),
            )

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], directory: Path, timeout_s: float) -> subprocess.CompletedProcess[str]:
        """Run `backupfs ARGUMENTS` to its end, without input. Raises TimeoutExpired like `subprocess.run`."""
        request = json.dumps({"arguments": list(arguments), "environment": dict(environment), "directory": os.fspath(directory)}).encode()
        assert len(request) < REQUEST_BYTES_MAX, "too long for a request"
        with contextlib.ExitStack() as stack:
            out, err = (stack.enter_context(open(os.memfd_create(name), "r+b")) for name in ("stdout", "stderr"))
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(ours)
            with theirs:
                socket.send_fds(self._socket, [request], [theirs.fileno(), out.fileno(), err.fileno()])
            pid = int(ours.recv(64) or b"0")
            assert pid, "the process that runs the commands has ended"
            ours.settimeout(timeout_s)
            try:
                code = ours.recv(64)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(arguments), timeout_s) from None
            assert code, "the process that runs the commands has ended"
            told = [os.pread(stream.fileno(), os.fstat(stream.fileno()).st_size, 0).decode(errors="surrogateescape") for stream in (out, err)]
        return subprocess.CompletedProcess(list(arguments), int(code), *told)

    def close(self) -> None:
        """What it has forked stays."""
        self._socket.close()
        self._process.wait()


@functools.cache
def _runner(limits: tuple[tuple[str, float], ...], measured: str | None) -> Runner:  # measured is part of the key
    made = Runner(dict(limits))
    atexit.register(made.close)
    return made


def runner(limits: Mapping[str, float]) -> Runner:
    """The one for these limits, measured if what is started now is to be measured."""
    return _runner(tuple(limits.items()), os.environ.get(MEASURED))


# --- the process that forks ---


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Forks for each request. Comes back in each child, with what it is to do, and at the end with None."""
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of the process
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready != requests.fileno():
                poll.unregister(ready)
                pid, reply = running.pop(ready)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                os.close(ready)
                with reply, contextlib.suppress(BrokenPipeError):  # nobody waits any more
                    reply.send(str(code).encode())
                continue
            message, descriptors = _receive(requests)
            if not message:
                return None
            pid = os.fork()
            if not pid:
                requests.close()
                for descriptor, (_, reply) in running.items():
                    os.close(descriptor)
                    reply.close()
                os.close(descriptors[0])
                return {**json.loads(message), "streams": descriptors[1:]}
            reply = socket.socket(fileno=descriptors[0])
            reply.send(str(pid).encode())
            for stream in descriptors[1:]:
                os.close(stream)
            descriptor = os.pidfd_open(pid)
            running[descriptor] = pid, reply
            poll.register(descriptor, select.POLLIN)


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    message, ancillary, _, _ = requests.recvmsg(REQUEST_BYTES_MAX, socket.CMSG_SPACE(3 * array.array("i").itemsize), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return message, list(descriptors)


def _become(request: dict[str, Any]) -> NoReturn:
    """Be the command that is asked for, to its end: at once, for taking down an interpreter that has loaded so much costs more than the command."""
    nowhere = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((nowhere, *request["streams"])):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["backupfs", *request["arguments"]]
    code: object = 1
    try:
        runpy.run_module("backupfs", run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:  # noqa: BLE001  # as the interpreter does
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    assert code is None or isinstance(code, int)
    os._exit(code or 0)


def _load(limits: Sequence[str]) -> None:
    """Set the limits before anything that could have taken note of them is loaded, and load everything."""
    ours = importlib.import_module("backupfs.limits")
    for word in limits:
        name, _, value = word.partition("=")
        setattr(ours, name, type(getattr(ours, name))(value))
    for module in pkgutil.walk_packages(importlib.import_module("backupfs").__path__, "backupfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()


def main(words: list[str]) -> None:
    """The command line of the module's docstring."""
    requests = socket.socket(fileno=int(words[0]))
    requests.set_inheritable(False)
    _load(words[1:])
    request = _serve(requests)
    if request is not None:
        _become(request)


if __name__ == "__main__":
    main(sys.argv[1:])
