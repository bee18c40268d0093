"""The machine's clock and the stamps of files tell one order."""

import os
import sys
import threading
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


def test_reading_the_clock_lets_no_other_thread_in() -> None:
    """It is read for most requests: where it let go of the interpreter's lock, each of them would wait for threads that have work to do."""
    clock, held, ran = SystemClock(), threading.Lock(), threading.Event()

    def come_in() -> None:
        with held:
            ran.set()

    clock.now_ns()  # the first time it makes its file
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(3600)  # nobody is made to give way, from before there is somebody who could want it
    held.acquire()
    other = threading.Thread(target=come_in)
    try:
        other.start()
        held.release()
        for _ in range(50_000):
            clock.now_ns()
        has_run = ran.is_set()
    finally:
        sys.setswitchinterval(interval_s)
    other.join()
    assert ran.is_set()
    assert not has_run
