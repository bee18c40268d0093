"""Reading blobs back: every byte is verified (seal, length, keyed hash) before anyone sees it."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from backupfs.blobs.packs import pack_name
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import BackupfsError, DamageError, MissingObjectError, again
from backupfs.format import objects
from backupfs.format.catalog import Blob
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, Sealed
from backupfs.format.objects import HEADER_BYTES, PACK_MAGIC
from backupfs.stores.files import Files, Handle
from backupfs.stores.port import Store

_OPEN_MAX: Final = 64


@dataclass(slots=True)
class _Source:
    """A pack being read: by handle while it lies in `open/`, by name when it is the store's."""

    sealer: Sealer
    handle: Handle | None
    users: int = 0
    dropped: bool = field(default=False)


class BlobReader:
    """Reads blobs from open and closed packs. Blocks; called from worker threads.

    `lacking` are sealed bytes that open packs lack, by object id and offset.
    """

    def __init__(
        self,
        open_directory: Path,
        files: Files,
        store: Store,
        keys: Keys,
        compressor: Compressor,
        lacking: Mapping[bytes, Mapping[int, bytes]] = MappingProxyType({}),
    ) -> None:
        self._directory = open_directory
        self._files = files
        self._store = store
        self._keys = keys
        self._compressor = compressor
        self._lacking = lacking
        self._lock = threading.Lock()
        self._sources: OrderedDict[bytes, _Source] = OrderedDict()

    def read(self, blob: Blob, pack_object_id: bytes) -> bytes:
        """The verified plaintext of a blob. Raises DamageError (also when its pack is gone) or StoreError."""
        [plain] = self.read_all([(blob, pack_object_id)])
        if isinstance(plain, BackupfsError):
            raise plain
        return plain

    def read_all(self, wanted: Sequence[tuple[Blob, bytes]]) -> list[bytes | BackupfsError]:
        """Verified plaintexts, or what `read` would raise, in the order asked for. What stands side by side in a pack is read in one go."""
        found: list[bytes | BackupfsError] = [b""] * len(wanted)
        for stretch in _side_by_side(wanted):
            (first, pack), (last, _) = wanted[stretch[0]], wanted[stretch[-1]]
            try:
                if not _is_possible(first):
                    raise DamageError(f"blob {first.id.hex()}: its record has impossible lengths")
                source, data = self._sealed(pack, first.offset, last.offset + last.stored_bytes - first.offset)
            except BackupfsError as error:
                found = [again(error) if i in stretch else plain for i, plain in enumerate(found)]
                continue
            whole = memoryview(data)
            for index in stretch:
                blob = wanted[index][0]
                at = blob.offset - first.offset
                try:
                    found[index] = self._opened(source, blob, whole[at : at + blob.stored_bytes], pack)
                except BackupfsError as error:
                    found[index] = again(error)
        return found

    def _sealed(self, pack_object_id: bytes, offset: int, size_bytes: int) -> tuple[_Source, bytes]:
        source = self._acquire(pack_object_id)
        try:
            if source.handle is None:
                return source, self._store.get(pack_name(pack_object_id), offset, size_bytes)
            data = self._files.read_at(source.handle, offset, size_bytes)
            lacking = self._lacking.get(pack_object_id)
            return source, data if lacking is None else _completed(data, offset, size_bytes, lacking)
        finally:
            self._release(source)

    def _opened(self, source: _Source, blob: Blob, sealed: memoryview, pack_object_id: bytes) -> bytes:
        if len(sealed) != blob.stored_bytes:
            raise DamageError(f"pack {pack_object_id.hex()} ends before blob {blob.id.hex()}", object_id=pack_object_id.hex())
        return self.opened(blob, pack_object_id, source.sealer, sealed)

    def opened(self, blob: Blob, pack_object_id: bytes, sealer: Sealer, sealed: bytes | memoryview) -> bytes:
        """The verified plaintext of a blob's sealed bytes. Raises DamageError. Does not block."""
        stored = sealer.open(Sealed.BLOB, blob.offset, sealed, blob.plain_bytes)
        plain = self._compressor.expand(stored, blob.plain_bytes)
        if self._keys.blob_id(plain) != blob.id:
            raise DamageError(f"blob {blob.id.hex()} in pack {pack_object_id.hex()} holds other content", blob_id=blob.id.hex())
        return plain

    def forget(self, pack_object_id: bytes) -> None:
        """Let go of a pack that is about to be removed or has moved into the store."""
        with self._lock:
            source = self._sources.pop(pack_object_id, None)
            if source is not None:
                self._drop(source)

    def close(self) -> None:
        """Let go of all packs."""
        with self._lock:
            for source in self._sources.values():
                self._drop(source)
            self._sources.clear()

    def _acquire(self, object_id: bytes) -> _Source:
        with self._lock:
            source = self._sources.get(object_id)
            if source is not None:
                self._sources.move_to_end(object_id)
                source.users += 1
                return source
        source = self._open(object_id)
        with self._lock:
            known = self._sources.setdefault(object_id, source)
            if known is not source:
                self._drop(source)
            known.users += 1
            while len(self._sources) > _OPEN_MAX:
                _, oldest = self._sources.popitem(last=False)
                self._drop(oldest)
            return known

    def _open(self, object_id: bytes) -> _Source:
        try:
            handle = self._files.open(self._directory / object_id.hex())
        except MissingObjectError:
            return _Source(self._closed_sealer(pack_name(object_id), object_id), None)
        try:
            return _Source(self._sealer(object_id, self._files.read_at(handle, 0, HEADER_BYTES)), handle)
        except BaseException:
            self._files.close(handle)
            raise

    def _closed_sealer(self, name: str, object_id: bytes) -> Sealer:
        head = self._store.get(name, 0, HEADER_BYTES)
        try:
            return self._sealer(object_id, head)
        except DamageError:
            # It stands at the end once more (of a pack that recovery has finished another one does, which opens no blob).
            return self._sealer(object_id, self._store.get(name, max(self._store.size(name) - HEADER_BYTES, 0), HEADER_BYTES))

    def _sealer(self, object_id: bytes, head: bytes) -> Sealer:
        return self._keys.object_sealer(objects.decode(head, PACK_MAGIC, f"pack {object_id.hex()}"), object_id)

    def _release(self, source: _Source) -> None:
        with self._lock:
            source.users -= 1
            if source.dropped:
                self._drop(source)

    def _drop(self, source: _Source) -> None:
        source.dropped = True
        if not source.users and source.handle is not None:
            self._files.close(source.handle)
            source.handle = None


def _completed(data: bytes, offset: int, size_bytes: int, lacking: Mapping[int, bytes]) -> bytes:
    """`size_bytes` of a pack from `offset` on, of which its file has `data`."""
    whole = bytearray(data.ljust(size_bytes, b"\0"))
    for at, sealed in lacking.items():
        if offset <= at and at + len(sealed) <= offset + size_bytes:
            whole[at - offset : at - offset + len(sealed)] = sealed
    return bytes(whole)


def _side_by_side(wanted: Sequence[tuple[Blob, bytes]]) -> list[list[int]]:
    """The places in `wanted` of blobs that stand one right after the other in a pack, together. One whose record is impossible stays by itself."""
    stretches: list[list[int]] = []
    end: tuple[bytes, int] | None = None
    for index in sorted(range(len(wanted)), key=lambda i: (wanted[i][1], wanted[i][0].offset)):
        blob, pack = wanted[index]
        if end == (pack, blob.offset) and _is_possible(blob):
            stretches[-1].append(index)
        else:
            stretches.append([index])
        end = (pack, blob.offset + blob.stored_bytes) if _is_possible(blob) else None
    return stretches


def _is_possible(blob: Blob) -> bool:
    """So much can stand in a pack; whoever believes more takes memory for it."""
    return blob.stored_bytes <= blob.plain_bytes + SEAL_OVERHEAD_BYTES
