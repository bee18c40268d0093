"""Turning a command into a process of its own, and telling the command when it is ready or why it is not.

The process is forked before a loop, an index or a FUSE session exists, and by a command that has no threads. It
inherits the password in memory, so that no secret passes through arguments, environment or a file.
"""

import ctypes
import gc
import logging
import os
import resource
import signal
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from backupfs.errors import BackupfsError
from backupfs.service.messages import Failure, Ready, error, failure

_PR_SET_DUMPABLE: Final = 4
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_KEPT_FREE_BYTES: Final = 128 << 20
_HEAP_BLOCK_BYTES_MAX: Final = 32 << 20
"""glibc takes no more."""
_GC_THRESHOLDS: Final = (50_000, 20, 50)
_ANSWER_BYTES_MAX: Final = 1 << 20
_log = logging.getLogger(__name__)

Report = Callable[[Ready | Failure], None]
"""Tells the command, once; later calls do nothing."""


def start(work: Callable[[Report], int]) -> Ready:
    """Run `work` in a new process and wait until it reports: what it reported, or the error it ended with.

    The process lives on in its own session with nothing open but what it opens itself; its standard streams lead
    nowhere until `work` sends them somewhere. It ends with the exit code that `work` returns. An interrupt while
    waiting stops it cleanly first.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _become_daemon(work, writer)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read(_ANSWER_BYTES_MAX)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    if not answer:
        _, status = os.waitpid(pid, 0)
        raise BackupfsError(f"the mount's process ended before it was ready (exit code {os.waitstatus_to_exitcode(status)})")
    told = msgspec.json.decode(answer, type=Ready | Failure)
    if isinstance(told, Failure):
        os.waitpid(pid, 0)
        raise error(told)
    return told


def _become_daemon(work: Callable[[Report], int], writer: int) -> NoReturn:
    code = 1
    try:
        _let_go(writer)
        report = _reporter(writer)
        try:
            code = work(report)
        except BaseException as reason:  # noqa: BLE001 the process ends here, and whoever waits for it is told why
            _log.exception("the mount's process failed")
            report(failure(reason))
    finally:
        logging.shutdown()
        os._exit(code)


def _let_go(keep: int) -> None:
    """A session of its own, no directory held, no terminal, no open file of the command."""
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))


def _reporter(writer: int) -> Report:
    left = [writer]

    def report(answer: Ready | Failure) -> None:
        while left:
            pipe = left.pop()
            try:
                os.write(pipe, msgspec.json.encode(answer))
            except BrokenPipeError:
                _log.warning("the command that started this process went away before it was ready")
            finally:
                os.close(pipe)

    return report


def keep_memory_private() -> None:
    """Keys and file contents in this process get into no core dump, and other processes of the user cannot read them."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_DUMPABLE): {os.strerror(code)}")


def keep_memory_together() -> None:
    """One heap for all threads. With one each, as glibc has it, buffers freed by one thread do not serve another: storing a gigabyte held 370
    instead of 270 MiB. And what was freed is used again before the kernel gets it back: memory that is touched for the first time costs more than
    what is written to it, and without this every other buffer was such. Called before threads are started; other libcs have no such call.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _HEAP_BLOCK_BYTES_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


def give_memory_back() -> None:
    """Give the kernel what is free in the heap. What goes on meanwhile waits for some milliseconds where it needs memory, and for new pages later:
    for when much was freed that is not needed again soon. Other libcs than glibc have no such call.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def look_for_cycles_rarely() -> None:
    """What a request leaves behind goes by its reference count. The interpreter's search for cycles, which by default follows every 700 new
    objects that stay, looked at the same inodes and records again and again: it was a sixth of the time of copying a tree of small files.
    Called when everything is imported.
    """
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
