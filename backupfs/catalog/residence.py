"""How much of the index's file is in this process at a time.

LMDB maps its file and reads what it needs of it there, and what was read once stays part of the process for as long as the kernel has memory: with a
million files some 400 MiB. Given back, such pages stay in the page cache; reading one again costs a fault of the kernel's, not a look at the disk.
"""

import ctypes
import logging
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backupfs import limits

LOOKS_BETWEEN: Final = 64
"""Looks into the index after which it pays to ask how much there is. The kernel brings 16 pages at a time, and a look goes through two or three
places that may not be there: these bring 4 MiB, and 12 at most.
"""

log = logging.getLogger(__name__)


class Residence:
    """Bounds what is resident of one mapped file. Where that cannot be done, which the log says, there is no bound."""

    def __init__(self, file: Path, mapped_bytes: int) -> None:
        """The file is mapped whole, at that length."""
        self._start = _start_of(file, mapped_bytes)
        if self._start is None:
            log.warning("%s is not found among what is mapped: what is read of it stays in memory", file)
        self._length = mapped_bytes
        self._counts = os.open("/proc/self/statm", os.O_RDONLY)
        self._madvise: Callable[[int, int, int], int] = ctypes.CDLL(None, use_errno=True).madvise
        self._madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._before_bytes = self._resident_bytes()

    def bound(self) -> None:
        """Give back what is resident if it is more than the limit. May be called from any thread, also while others read."""
        if self._start is None or self._resident_bytes() - self._before_bytes <= limits.INDEX_RESIDENT_BYTES:
            return
        if self._madvise(self._start, self._length, mmap.MADV_DONTNEED) != 0:
            # As when somebody has locked the process in memory. It is no reason to answer no requests.
            log.warning("what was read of the index cannot be given back (madvise: %s) and stays in memory", os.strerror(ctypes.get_errno()))
            self._start = None

    def close(self) -> None:
        """No more of it."""
        os.close(self._counts)

    def _resident_bytes(self) -> int:
        """Of all files that are mapped into this process."""
        return int(os.pread(self._counts, 256, 0).split()[2]) * mmap.PAGESIZE


def _start_of(file: Path, mapped_bytes: int) -> int | None:
    """Where the file is mapped, if that can be seen. Device numbers are not compared: of some file systems the kernel tells others here."""
    inode = file.stat().st_ino
    for line in Path("/proc/self/maps").read_bytes().splitlines():
        span, _, offset, _, found, *_ = line.split(maxsplit=5)
        start, end = (int(edge, 16) for edge in span.split(b"-"))
        if int(found) == inode and int(offset, 16) == 0 and end - start == mapped_bytes:
            return start
    return None
