"""The floor of what backupfs does: the empty file system on the loop of backupfs, with the stages in C that contents go through.

    python -m scripts.floorfs MOUNTPOINT FILE

What is written is cut, hashed, compressed, sealed and appended to one file in threads, and `fsync` waits until it is on the disk, several at once for
the same. Nothing else is done: no name is kept, no content is known again, nothing can be read back. What backupfs takes beyond that is its own.
"""

# ruff: noqa: ARG002, D102 - pyfuse3 fixes the signatures of its handlers and documents them

import itertools
import os
import sys
from typing import Final

import pyfuse3
import trio
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pyfuse3 import FileHandleT

from backupfs import limits
from backupfs.codec.chunker import Chunker
from backupfs.codec.compression import Compressor
from backupfs.format.config import CIPHER_AES_256_GCM, COMPRESSION_ZSTD, Config
from backupfs.fuse.waiting import LOOK_NS, waiting_closely
from backupfs.fuse.wakeful import this_machine
from backupfs.offload import ThreadOffload
from scripts.emptyfs import EmptyFs

PART_BYTES: Final = 4 << 20
PARTS_AT_ONCE: Final = 4
KEY: Final = bytes(32)
CONFIG: Final = Config(
    bytes(16), 0, limits.CHUNK_MIN_BYTES, limits.CHUNK_AVG_BYTES, limits.CHUNK_MAX_BYTES, CIPHER_AES_256_GCM, COMPRESSION_ZSTD, compression_level=1
)


class FloorFs(EmptyFs):
    """Names in dictionaries, data through the stages into a file."""

    def __init__(self, target: int, nursery: trio.Nursery) -> None:
        super().__init__(pyfuse3.ENOATTR)
        self._target = target
        self._nursery = nursery
        self._offload = ThreadOffload()
        self._chunker = Chunker(CONFIG, seed=1)
        self._compressor = Compressor(CONFIG.compression, CONFIG.compression_level)
        self._aead = AESGCM(KEY)
        self._room = trio.Semaphore(PARTS_AT_ONCE)
        self._pieces: list[bytes] = []
        self._pending_bytes = 0
        self._numbers = itertools.count()
        self._turn = trio.Lock()
        self._written = 0
        self._synced = 0

    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        self._pieces.append(buf)
        self._pending_bytes += len(buf)
        self._written += 1
        if self._pending_bytes >= PART_BYTES:
            await self._room.acquire()
            self._nursery.start_soon(self._store_part, self._take())
        return await super().write(fh, off, buf)

    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        asked = self._written
        async with self._turn:
            if self._synced < asked:
                covered = self._written
                await self._offload.commit(self._store_and_sync, self._take())
                self._synced = covered

    async def finish(self) -> None:
        """What is left."""
        await self._offload.commit(self._store_and_sync, self._take())

    def _take(self) -> list[bytes]:
        pieces, self._pieces, self._pending_bytes = self._pieces, [], 0
        return pieces

    async def _store_part(self, pieces: list[bytes]) -> None:
        try:
            await self._offload.cpu(self._store, pieces)
            # Or else the disk would have everything to do at the end, when nobody else has.
            await self._offload.disk(os.fdatasync, self._target)
        finally:
            self._room.release()

    def _store_and_sync(self, pieces: list[bytes]) -> None:
        self._store(pieces)
        os.fdatasync(self._target)

    def _store(self, pieces: list[bytes]) -> None:
        data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        sealed, start = [], 0
        for length in self._chunker.cut(data, is_end=True):
            chunk = data[start : start + length]
            start += length
            blob_id = blake3(chunk, key=KEY).digest()
            sealed.append(self._aead.encrypt(next(self._numbers).to_bytes(12, "big"), self._compressor.compress(chunk), blob_id))
        os.writev(self._target, sealed)


async def serve(mountpoint: str, target: int) -> None:
    """Until it is unmounted."""
    async with trio.open_nursery() as nursery:
        operations = FloorFs(target, nursery)
        pyfuse3.init(operations, mountpoint, set(pyfuse3.default_options) | {"fsname=floorfs"})
        try:
            await pyfuse3.main()
        finally:
            pyfuse3.close()
    await operations.finish()


def main() -> None:
    mountpoint, path = sys.argv[1:]
    target = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    with waiting_closely(LOOK_NS, this_machine()):
        trio.run(serve, mountpoint, target)


if __name__ == "__main__":
    main()
