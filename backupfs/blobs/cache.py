"""Decoded chunks, least recently used first to go. Lives on the event loop."""

from collections import OrderedDict
from typing import Final

KEEPING_BYTES: Final = 220
"""What it takes to keep a chunk, besides its bytes: its number, its place in the order, the head of an object."""


class ChunkCache:
    """Plaintext by blob number, bounded in the bytes of memory that all of it takes."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self.used_bytes = 0

    def get(self, number: int) -> bytes | None:
        """The chunk, now the most recently used one."""
        chunk = self._chunks.get(number)
        if chunk is not None:
            self._chunks.move_to_end(number)
        return chunk

    def put(self, number: int, chunk: bytes) -> None:
        """Keep a chunk; others go when there is no room."""
        if number in self._chunks:
            return
        self._chunks[number] = chunk
        self.used_bytes += len(chunk) + KEEPING_BYTES
        while self.used_bytes > self._capacity:
            _, oldest = self._chunks.popitem(last=False)
            self.used_bytes -= len(oldest) + KEEPING_BYTES
