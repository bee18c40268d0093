"""The machine's clock and the stamps of files tell one order."""

import os
import time
from pathlib import Path

from backupfs.clock import SystemClock


def test_stamps_of_files_and_the_clock_are_in_order(tmp_path: Path) -> None:
    clock = SystemClock()
    stamps = []
    for n in range(300):
        path = tmp_path / str(n)
        path.touch()
        stamps += [path.stat().st_mtime_ns, clock.now_ns()]
    assert stamps == sorted(stamps)
    assert stamps[-1] <= time.time_ns()


def test_a_child_reads_the_clock_through_a_file_of_its_own() -> None:
    clock = SystemClock()
    before = clock.now_ns()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.closerange(3, writing)
        os.write(writing, b"%d" % clock.now_ns())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as told:
        assert before <= int(told.read()) <= clock.now_ns()
    assert os.waitpid(child, 0)[1] == 0
