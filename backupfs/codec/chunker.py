"""Content-defined chunk boundaries: FastCDC (Xia et al., 2020) with the gear table seeded per repository.

A boundary depends on the bytes since the one before and on nothing else, so a stream may be cut piece by piece: all
cuts but one that falls on the end of what is there are final.
"""

import threading

from pyfastcdc import FastCDC

from backupfs.errors import UnsupportedError
from backupfs.format.config import Config


class Chunker:
    """Cuts for one repository; may be used by several threads."""

    def __init__(self, config: Config, seed: int) -> None:
        if not FastCDC.__module__.startswith("pyfastcdc.cy"):
            raise UnsupportedError("pyfastcdc is installed without its compiled part; reinstall it with a C compiler present")
        self.max_bytes = config.chunk_max_bytes
        self.min_bytes = config.chunk_min_bytes
        self._avg_bytes = config.chunk_avg_bytes
        self._seed = seed
        self._threads = threading.local()

    def cut(self, data: bytes | memoryview, is_end: bool) -> list[int]:
        """Lengths of the chunks at the front of `data`, which starts at a boundary.

        With `is_end` they cover `data`; without, the last is left out unless it is final, so they may cover less.
        """
        if len(data) <= self.min_bytes:
            return [len(data)] if is_end and data else []
        cutter = getattr(self._threads, "cutter", None)
        if cutter is None:
            # Making its table of random numbers takes longer than cutting a small file.
            cutter = self._threads.cutter = FastCDC(self._avg_bytes, min_size=self.min_bytes, max_size=self.max_bytes, seed=self._seed)
        lengths = [chunk.length for chunk in cutter.cut_buf(data)]
        if not is_end and lengths and lengths[-1] < self.max_bytes:
            lengths.pop()
        return lengths
