"""The time of day, handed in. Waiting uses trio's clock, which tests replace with a mock one."""

import time
from typing import Final, Protocol

_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE, for which `time` has no name."""


class Clock(Protocol):
    """Where time stamps come from."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """See `Clock`."""
        return time.time_ns()


class TickClock:
    """The machine's clock as it stood at the last tick, 1 to 10 ms ago, for time stamps of files: the kernel stamps with that what it writes down
    itself, the times of a file that is written to. Stamped by a finer clock here, a file made first would look younger than one written after it.
    """

    def now_ns(self) -> int:
        """See `Clock`."""
        return time.clock_gettime_ns(_COARSE)
