"""Storing chunks and reading blobs: deduplication is decided on the loop, the work is done in threads.

Whether a chunk is known is decided in one synchronous step that reserves its id: of two tasks with the same chunk one stores it, the other
waits for it. A blob is pinned from that step until an extent refers to it, so no batch can drop it in between.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import trio

from backupfs import limits
from backupfs.blobs.packs import Location, NewBlob
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, DamageError, MissingObjectError, StoreError, StoreFullError, again
from backupfs.format.catalog import Blob


@dataclass(slots=True)
class Chunk:
    """A chunk to be stored. `blob_id` is None for one of nothing but zeros: it becomes a hole."""

    plain: bytes | memoryview
    blob_id: bytes | None


@dataclass(slots=True)
class _Pending:
    number: int
    done: trio.Event = field(default_factory=trio.Event)
    error: BackupfsError | None = None


_ZEROS = bytes(limits.CHUNK_MAX_BYTES)


class BlobStore:
    """Chunks in, blob numbers out, and back."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._pending: dict[bytes, _Pending] = {}
        self._reading: dict[int, trio.Event] = {}
        self._appending = 0
        """How many threads are appending: what comes while one is does not take two."""
        self.damaged: set[int] = set()
        """Blobs that could not be read. When the same content is written again it is stored in their place."""

    def identify(self, pieces: Sequence[bytes | memoryview]) -> list[Chunk]:
        """Chunks with their ids. Computes; called from a thread when there is much."""
        blob_id = self._volume.keys.blob_id
        return [Chunk(p, None if _is_zero(p) else blob_id(p)) for p in pieces]

    async def store(self, chunks: Sequence[Chunk]) -> list[int | None]:
        """A pinned blob for each chunk, None for a hole. The caller unpins them once extents refer to them.

        Raises StoreError with nothing pinned.
        """
        catalog = self._volume.catalog
        numbers: list[int | None] = []
        new: list[NewBlob] = []
        mine: list[tuple[bytes, _Pending]] = []
        waits: list[_Pending] = []
        for chunk in chunks:
            if chunk.blob_id is None:
                numbers.append(None)
                continue
            pending = self._pending.get(chunk.blob_id)
            number = pending.number if pending is not None else catalog.known_blob(chunk.blob_id)
            if pending is not None:
                waits.append(pending)
            elif number is None or number in self.damaged:
                number = self._volume.next_blob() if number is None else number
                pending = self._pending[chunk.blob_id] = _Pending(number)
                mine.append((chunk.blob_id, pending))
                new.append(NewBlob(number, chunk.blob_id, chunk.plain))
            assert number is not None
            catalog.pin(number)
            numbers.append(number)
        error: BackupfsError | None = None
        try:
            if new:
                with trio.CancelScope(shield=True):
                    self._register(new, await self._append(new))
        except BackupfsError as failure:
            error = again(failure)
        finally:
            for blob_id, pending in mine:
                del self._pending[blob_id]
                pending.error = error
                pending.done.set()
        for pending in waits:
            await pending.done.wait()
            error = error or pending.error
        if error is not None:
            self.unpin(numbers)
            raise again(error)
        return numbers

    def unpin(self, numbers: Sequence[int | None]) -> None:
        """Extents refer to these blobs now, or nobody will."""
        for number in numbers:
            if number is not None:
                self._volume.catalog.unpin(number)

    async def move(self, numbers: Sequence[int]) -> int:
        """Append known blobs anew, so that nothing is left of them where they stand; their stored bytes. Raises DamageError, StoreError."""
        volume = self._volume
        catalog = volume.catalog
        for number in numbers:
            catalog.pin(number)
        try:
            found = [(number, catalog.blob(number)) for number in numbers]
            places = [(blob, catalog.pack_object_id(blob.pack)) for _, blob in found]
            plains = await volume.seams.offload.cpu(lambda: [volume.reader.read(blob, pack) for blob, pack in places])
            new = [NewBlob(number, blob.id, plain) for (number, blob), plain in zip(found, plains, strict=True)]
            with trio.CancelScope(shield=True):
                for blob, place in self._placed(new, await self._append(new) if new else []):
                    catalog.replace_blob(blob.number, place.pack, place.offset, place.stored_bytes)
            return sum(blob.stored_bytes for _, blob in found)
        finally:
            self.unpin(numbers)

    async def read(self, numbers: Sequence[int]) -> dict[int, bytes]:
        """Blobs' plaintexts, through the cache: each is fetched once, whoever else wants it, and all that are missing in one visit to a thread.

        Raises DamageError or StoreError when one of them cannot be read.
        """
        cache = self._volume.cache
        found: dict[int, bytes] = {}
        while True:
            missing: dict[int, None] = {}
            busy: trio.Event | None = None
            for number in numbers:
                if number in found:
                    continue
                chunk = cache.get(number)
                if chunk is not None:
                    found[number] = chunk
                elif number in self._reading:
                    busy = self._reading[number]
                else:
                    missing[number] = None
            if missing:
                found.update(await self._fetch(list(missing)))
            elif busy is not None:
                await busy.wait()
            else:
                return found

    def is_at_hand(self, number: int) -> bool:
        """Whether a blob's plaintext is in the cache or on its way there."""
        return number in self._reading or self._volume.cache.get(number) is not None

    async def _fetch(self, numbers: list[int]) -> dict[int, bytes]:
        """Blobs that nobody else is reading. All that can be read are in the cache afterwards, also when one cannot."""
        event = trio.Event()
        self._reading.update(dict.fromkeys(numbers, event))
        chunks: dict[int, bytes] = {}
        trouble: BackupfsError | None = None
        try:
            for number, chunk in (await self._read(numbers)).items():
                if isinstance(chunk, BackupfsError):
                    trouble = trouble or chunk
                    if isinstance(chunk, DamageError):
                        self.damaged.add(number)
                else:
                    chunks[number] = chunk
                    self._volume.cache.put(number, chunk)
        finally:
            for number in numbers:
                del self._reading[number]
            event.set()
        if trouble is not None:
            raise again(trouble)
        return chunks

    async def _read(self, numbers: list[int]) -> dict[int, bytes | BackupfsError]:
        volume = self._volume
        found = await self._read_once(numbers)
        gone = [number for number, chunk in found.items() if isinstance(chunk, MissingObjectError)]
        if gone:
            # The pack may have been closed, or the blob moved, while the read was on its way; a second miss is damage.
            for number in gone:
                volume.reader.forget(volume.catalog.pack_object_id(volume.catalog.blob(number).pack))
            if volume.follows:
                volume.index.renew()
            found.update(await self._read_once(gone))
        return found

    async def _read_once(self, numbers: list[int]) -> dict[int, bytes | BackupfsError]:
        volume = self._volume
        found: dict[int, bytes | BackupfsError] = {}
        wanted: dict[int, tuple[Blob, bytes]] = {}
        for number in numbers:
            try:
                blob = volume.catalog.blob(number)
                pack = volume.catalog.pack_object_id(blob.pack)
                kept_back = volume.packs.kept_back(blob.pack, blob.offset)
                if kept_back is None:
                    wanted[number] = (blob, pack)
                else:
                    found[number] = volume.reader.opened(blob, pack, *kept_back)
            except DamageError as error:
                found[number] = again(error)
        if wanted:
            chunks = await volume.seams.offload.disk(volume.reader.read_all, list(wanted.values()))
            found.update(zip(wanted, chunks, strict=True))
        return found

    async def _append(self, new: list[NewBlob]) -> list[Location]:
        total = sum(len(blob.plain) for blob in new)
        if total < limits.INLINE_WORK_BYTES and not self._volume.space.is_short():
            kept_back = self._volume.packs.append_small(new)
            if kept_back is not None:
                # The end of a file that is synced again and again is soon read, to be stored as one.
                for blob in new:
                    self._volume.cache.put(blob.number, bytes(blob.plain))
                return kept_back
        if total < limits.FLUSH_SMALL_BYTES or len(new) < 2 or self._appending:
            return await self._append_part(new)
        halves: list[list[Location]] = [[], []]
        middle = len(new) // 2

        async def part(index: int, blobs: list[NewBlob]) -> None:
            try:
                halves[index] = await self._append_part(blobs)
            except BackupfsError as error:
                errors.append(again(error))

        errors: list[BackupfsError] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part, 0, new[:middle])
            nursery.start_soon(part, 1, new[middle:])
        if errors:
            self._volume.packs.disclaim({blob.number for blob in new})
            raise again(errors[0])
        return halves[0] + halves[1]

    async def _append_part(self, new: list[NewBlob]) -> list[Location]:
        packs = self._volume.packs
        self._appending += 1
        try:
            places = await self._appended(new)
        finally:
            self._appending -= 1
        if packs.much_unsynced():
            await self._volume.seams.offload.disk(packs.sync_much)
        return places

    async def _appended(self, new: list[NewBlob]) -> list[Location]:
        volume = self._volume
        offload = volume.seams.offload
        try:
            return await offload.cpu(self.append, new)
        except StoreFullError:
            if not await offload.disk(volume.space.release):
                raise
        except StoreError as error:
            volume.errors.append(f"a pack could not be written and was given up: {error}")
        return await offload.cpu(self.append, new)

    def append(self, new: list[NewBlob]) -> list[Location]:
        """Append blobs if there is room for them. In a thread."""
        self._volume.space.require_room(sum(len(blob.plain) for blob in new))
        return self._volume.packs.append(new)

    def _register(self, new: list[NewBlob], locations: list[Location]) -> None:
        catalog = self._volume.catalog
        for blob, place in self._placed(new, locations):
            if blob.number in self.damaged:
                catalog.replace_blob(blob.number, place.pack, place.offset, place.stored_bytes)
                self.damaged.remove(blob.number)
                continue
            catalog.add_blob(blob.number, Blob(blob.blob_id, place.pack, place.offset, place.stored_bytes, len(blob.plain), 0))

    def _placed(self, new: list[NewBlob], locations: list[Location]) -> Iterator[tuple[NewBlob, Location]]:
        """Where appended blobs stand now; the catalog knows their packs."""
        volume = self._volume
        places = volume.packs.claim([(blob.number, asked) for blob, asked in zip(new, locations, strict=True)])
        for pack in {place.pack for place in places}:
            facts = volume.packs.facts(pack)
            assert facts is not None, "a pack was closed before its blobs were taken note of"
            volume.catalog.add_pack(pack, *facts)
        yield from zip(new, places, strict=True)


def _is_zero(piece: bytes | memoryview) -> bool:
    if piece[0] or piece[-1] or piece[len(piece) // 2]:
        return False
    return bytes(piece) == _ZEROS[: len(piece)]
