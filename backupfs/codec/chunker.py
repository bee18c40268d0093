"""Content-defined chunk boundaries: FastCDC (Xia et al., 2020) with the gear table seeded per repository.

A boundary depends on the bytes since the one before and on nothing else, so a stream may be cut piece by piece: all
cuts but one that falls on the end of what is there are final.
"""

from pyfastcdc import FastCDC

from backupfs.errors import UnsupportedError
from backupfs.format.config import Config


class Chunker:
    """Cuts for one repository. One thread at a time."""

    def __init__(self, config: Config, seed: int) -> None:
        if not FastCDC.__module__.startswith("pyfastcdc.cy"):
            raise UnsupportedError("pyfastcdc is installed without its compiled part; reinstall it with a C compiler present")
        self.max_bytes = config.chunk_max_bytes
        self.min_bytes = config.chunk_min_bytes
        self._cutter = FastCDC(config.chunk_avg_bytes, min_size=config.chunk_min_bytes, max_size=config.chunk_max_bytes, seed=seed)

    def cut(self, data: bytes | memoryview, is_end: bool) -> list[int]:
        """Lengths of the chunks at the front of `data`, which starts at a boundary.

        With `is_end` they cover `data`; without, the last is left out unless it is final, so they may cover less.
        """
        if len(data) <= self.min_bytes:
            return [len(data)] if is_end and data else []
        lengths = [chunk.length for chunk in self._cutter.cut_buf(data)]
        if not is_end and lengths and lengths[-1] < self.max_bytes:
            lengths.pop()
        return lengths
