"""The time of day, handed in. Waiting uses trio's clock, which tests replace with a mock one."""

import os
from typing import Protocol


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
        self._descriptor = -1
        os.register_at_fork(after_in_child=self._let_go)

    def now_ns(self) -> int:
        """See `Clock`. Not before a stamp that any file was given earlier, not after one that any is given later, but for the clock being set."""
        if self._descriptor < 0:
            self._descriptor = os.memfd_create("backupfs-clock", os.MFD_CLOEXEC)
        os.utime(self._descriptor)
        return os.fstat(self._descriptor).st_mtime_ns

    def _let_go(self) -> None:
        self._descriptor = -1  # a daemon closes what its parent had open
