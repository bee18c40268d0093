"""zstd, as far as it helps. One compressor a thread: the library's objects are not to be shared."""

import threading

import zstandard

from backupfs.errors import DamageError
from backupfs.format.config import COMPRESSION_NONE

Buffer = bytes | memoryview

_SAVED_SHARE = 32
"""Compressed bytes are kept when they save at least a 32nd: less is not worth the time to expand them."""
_HASH_LOG = 16
"""Level 1 with a table of hashes four times as large as its own: that saves 4 % more of text and programs, for a tenth more of its time."""


class Compressor:
    """Compresses and expands for one repository; may be used by several threads."""

    def __init__(self, compression: int, level: int) -> None:
        self._off = compression == COMPRESSION_NONE
        self._level = level
        self._threads = threading.local()

    def compress(self, plain: Buffer) -> Buffer:
        """A zstd frame shorter than `plain`, or `plain` itself."""
        if self._off or len(plain) < 64:
            return plain
        compressor = getattr(self._threads, "compressor", None)
        if compressor is None:
            parameters = zstandard.ZstdCompressionParameters(compression_level=self._level, hash_log=_HASH_LOG if self._level == 1 else 0)
            compressor = self._threads.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        packed: bytes = compressor.compress(plain)
        return packed if len(packed) <= len(plain) - len(plain) // _SAVED_SHARE - 1 else plain

    def expand(self, stored: bytes, plain_bytes: int) -> bytes:
        """The plaintext of `plain_bytes`. Raises DamageError, and takes no more memory whatever the frame says."""
        if len(stored) == plain_bytes:
            return stored
        try:
            if zstandard.frame_content_size(stored) != plain_bytes:
                raise DamageError("compressed data declares another length than its record")
            decompressor = getattr(self._threads, "decompressor", None)
            if decompressor is None:
                decompressor = self._threads.decompressor = zstandard.ZstdDecompressor()
            plain: bytes = decompressor.decompress(stored, max_output_size=plain_bytes)
        except zstandard.ZstdError as error:
            raise DamageError(f"compressed data does not expand: {error}") from error
        if len(plain) != plain_bytes:
            raise DamageError("compressed data expands to another length than its record says")
        return plain
