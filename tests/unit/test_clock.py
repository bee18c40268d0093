"""The clock for files keeps step with the kernel's time stamps."""

import os
import time
from pathlib import Path
from typing import Final

from backupfs.clock import TickClock

COARSE: Final = 5  # CLOCK_REALTIME_COARSE


def test_it_is_never_ahead_of_what_the_kernel_stamps_next(tmp_path: Path) -> None:
    clock = TickClock()
    for n in range(50):
        before = clock.now_ns()
        path = tmp_path / f"{n}"
        path.touch()
        stamped = os.stat(path).st_mtime_ns
        assert before <= stamped


def test_it_is_the_last_tick() -> None:
    clock = TickClock()
    for _ in range(1000):
        assert time.clock_gettime_ns(COARSE) <= clock.now_ns() <= time.time_ns()
