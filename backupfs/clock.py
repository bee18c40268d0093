"""The time of day, handed in. Waiting uses trio's clock, which tests replace with a mock one."""

import time
from typing import Protocol


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
