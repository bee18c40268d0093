"""The time of day, handed in. Waiting uses trio's clock, which tests replace with a mock one."""

import ctypes
import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

_AT_EMPTY_PATH: Final = 0x1000
_STATX_MTIME: Final = 0x40
_STATX_BYTES: Final = 256
_STATX_MTIME_AT: Final = 112
_TIMESTAMP: Final = struct.Struct("=qI")
"""The beginning of a `struct statx_timestamp`: seconds and nanoseconds. The structure is the same on every machine: statx(2)."""


def until_next(now_s: float, period_s: float) -> float:
    """Seconds until the next look of whatever looks each `period_s`: all of them at the same moments, so that a process with nothing to do is woken
    once for all.
    """
    return period_s - now_s % period_s


class Clock(Protocol):
    """Where time stamps come from."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock, as the kernel reads it when it stamps a file.

    Files of a mount are stamped by both sides: by the kernel when they are written, here when they are made, renamed or given attributes. The
    kernel's stamps lag behind the precise time by up to a tick (10 ms), less where its multigrain time stamps (Linux 6.13) have handed out a newer
    one; with the precise time here, a file written after another one was made would often be the older of the two, and `make` would believe it. So
    the kernel is asked: it stamps a file in memory.
    """

    def __init__(self) -> None:
        self._read: Callable[[], int] | None = None
        os.register_at_fork(after_in_child=self._let_go)

    def now_ns(self) -> int:
        """See `Clock`. Not before a stamp that any file was given earlier, not after one that any is given later, but for the clock being set."""
        if self._read is None:
            self._read = _stamping(os.memfd_create("backupfs-clock", os.MFD_CLOEXEC))
        return self._read()

    def _let_go(self) -> None:
        self._read = None  # a daemon closes what its parent had open


def _stamping(descriptor: int) -> Callable[[], int]:
    """Reads the time off a file that is stamped for it.

    The two calls wait for nothing and keep the interpreter's lock, unlike `os.utime` and `os.fstat`: another thread that is at work would take it at
    each of them, and whoever serves a request would wait for it to come back.
    """
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.futimens.argtypes = (ctypes.c_int, ctypes.c_void_p)
    libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
    facts = ctypes.create_string_buffer(_STATX_BYTES)
    stamp = partial(libc.futimens, descriptor, None)
    look = partial(libc.statx, descriptor, b"", _AT_EMPTY_PATH, _STATX_MTIME, facts)

    def read() -> int:
        if stamp() or look():
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        seconds, ns = _TIMESTAMP.unpack_from(facts, _STATX_MTIME_AT)
        stamp_ns: int = seconds * 1_000_000_000 + ns
        return stamp_ns

    return read
