"""Writing packs.

Worker threads and the loop append, the committer syncs; one lock guards the book-keeping, never the writing. Rules:

* An offset handed out is spent, whatever becomes of the write: it is the nonce.
* Bytes not yet synced stay in memory. When a sync or a write fails, the pack is given up and they are sealed anew elsewhere.
* What is small is sealed on the loop and kept back: it is written when its pack is synced. Until then batches of the journal carry it.
* A pack is closed (trailer, footer, header) only by a process that opened it; what a dead process left is finished as a copy.
"""

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import msgspec

from backupfs import limits
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import StoreError, StoreFullError
from backupfs.format import objects
from backupfs.format import pack as pack_format
from backupfs.format.catalog import Counters
from backupfs.format.journal import Carried
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, Sealed
from backupfs.format.objects import HEADER_BYTES, PACK_MAGIC
from backupfs.format.pack import PackEntry, PackFooter
from backupfs.randomness import Randomness
from backupfs.stores.files import Files, Handle
from backupfs.stores.port import Store


class Location(msgspec.Struct, frozen=True):
    """Where a blob's sealed bytes stand."""

    pack: int
    offset: int
    stored_bytes: int


class Moved(msgspec.Struct, frozen=True):
    """A blob that had to be sealed anew: the pack that it left, and its new place."""

    left: int
    place: Location


class NewBlob(msgspec.Struct, frozen=True):
    """A chunk on its way into a pack."""

    number: int
    blob_id: bytes
    plain: bytes | memoryview


@dataclass(slots=True)
class _Frame:
    number: int
    entry: PackEntry
    sealed: bytes
    carried: bool = False
    """Whether a durable batch of the journal has it."""


@dataclass(slots=True, eq=False)
class OpenPack:
    """A pack being appended to, or full and waiting to be closed."""

    number: int
    object_id: bytes
    header: bytes
    sealer: Sealer
    handle: Handle
    path: Path
    end: int = HEADER_BYTES
    first_blob: int = 0
    entries: list[PackEntry] = field(default_factory=list)
    unsynced: list[_Frame] = field(default_factory=list)
    unsynced_bytes: int = 0
    sync_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held by whoever syncs the pack: what another took out of `unsynced` is durable, or back in it, once this can be had."""
    is_syncing: bool = False
    """Whether something taken out of `unsynced` is not durable yet."""
    writers: int = 0
    unclaimed: set[int] = field(default_factory=set)
    """Blobs appended whose places nobody has taken note of yet."""
    full: bool = False
    failed: bool = False


def pack_name(object_id: bytes) -> str:
    """Name of a closed pack in the store."""
    name = object_id.hex()
    return f"packs/{name[:2]}/{name}"


class PackWriter:
    """Appends blobs to open packs. What blocks is called from worker threads; the rest says so."""

    def __init__(
        self,
        open_directory: Path,
        files: Files,
        store: Store,
        keys: Keys,
        compressor: Compressor,
        randomness: Randomness,
        counters: Counters,
    ) -> None:
        """`counters.pack` is counted up under this object's lock."""
        self._directory = open_directory
        self._files = files
        self._store = store
        self._keys = keys
        self._compressor = compressor
        self._randomness = randomness
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._open: list[OpenPack] = []
        self._favourite = 0
        self._moved: dict[int, Location] = {}
        self._untold: dict[int, Moved] = {}
        self._kept_back: dict[tuple[int, int], tuple[OpenPack, _Frame]] = {}
        """Blobs appended that no file has yet, by pack number and offset."""
        self._carrying: list[_Frame] = []
        self._counters = counters

    def append(self, blobs: Sequence[NewBlob]) -> list[Location]:
        """Compress, seal and write; the bytes are in the file, not durable. Raises StoreError with nothing of it counted as written."""
        packed = [(blob, self._compressor.compress(blob.plain)) for blob in blobs]
        scatter = sum(len(stored) for _, stored in packed) >= limits.FLUSH_SMALL_BYTES
        groups: dict[int, list[tuple[NewBlob, bytes | memoryview]]] = {}
        for item in packed:
            choice = self._randomness.draw(1)[0] % limits.OPEN_PACKS if scatter else self._favourite
            groups.setdefault(choice, []).append(item)
        locations: dict[int, Location] = {}
        for choice, items in groups.items():
            try:
                self._append_group(choice, items, locations, {blob.number for blob, _ in items})
            except StoreError:
                self.disclaim(locations)
                raise
        return [locations[blob.number] for blob in blobs]

    def append_small(self, blobs: Sequence[NewBlob]) -> list[Location] | None:
        """Compress, seal and keep in memory; the next sync writes them. None when that needs a thread: there is no pack yet, or much is to be synced.
        Does not block.
        """
        packed = [(blob, self._compressor.compress(blob.plain)) for blob in blobs]
        with self._lock:
            usable = [pack for pack in self._open if not pack.full]
            pack = usable[self._favourite] if self._favourite < len(usable) else None
            if pack is None or pack.unsynced_bytes > limits.PACK_UNSYNCED_BYTES:
                return None
            frames = _sealed(pack, self._take_place(pack, packed), packed)
            self._note(pack, frames, {blob.number for blob in blobs})
            self._kept_back.update(((pack.number, frame.entry.offset), (pack, frame)) for frame in frames)
            return [Location(pack.number, frame.entry.offset, frame.entry.stored_bytes) for frame in frames]

    def kept_back(self, pack: int, offset: int) -> tuple[Sealer, bytes] | None:
        """The sealed bytes of a blob that its pack's file does not have yet, and what opens them. Does not block."""
        with self._lock:
            found = self._kept_back.get((pack, offset))
            return None if found is None else (found[0].sealer, found[1].sealed)

    def carry(self, bytes_max: int) -> list[Carried] | None:
        """What is not durable and stands in no batch yet, so that the next batch carries it; `carried` when that is durable. None when there is more,
        or it must be durable in the packs: `sync`. Does not block.
        """
        with self._lock:
            found: list[Carried] = []
            self._carrying = []
            for pack in self._open:
                if pack.is_syncing or (pack.failed and pack.unsynced):
                    return None
                # What batches have is followed by what none has yet: there may be thousands of the former.
                for frame in reversed(list(takewhile(lambda frame: not frame.carried, reversed(pack.unsynced)))):
                    bytes_max -= len(frame.sealed)
                    if bytes_max < 0:
                        return None
                    found.append(Carried(pack.object_id, frame.entry.offset, frame.sealed))
                    self._carrying.append(frame)
            return found

    def carried(self) -> None:
        """The batch that carries what `carry` gave is durable."""
        for frame in self._carrying:
            frame.carried = True
        self._carrying = []

    def sync(self) -> dict[int, Moved]:
        """Make everything appended so far durable. Returns the blobs that had to move to another pack.

        Raises StoreError when even that failed: nothing appended since the last sync may then be believed.
        """
        trouble: StoreError | None = None
        for attempt in range(3):
            failed = [pack for pack in self._packs_to_sync() if not self._sync_pack(pack)]
            if not failed:
                with self._lock:
                    self._favourite = self._randomness.draw(1)[0] % limits.OPEN_PACKS
                    moved, self._untold = self._untold, {}
                return moved
            if attempt == 2:
                break
            try:
                for pack in failed:
                    self._move(pack)
            except StoreFullError:
                raise
            except StoreError as error:
                trouble = error
        raise StoreError("what was written could not be made durable, in three different packs; the disk may be failing") from trouble

    def much_unsynced(self) -> bool:
        """Whether it is time for `sync_much`. Does not wait."""
        with self._lock:
            return any(map(_holds_much, self._open))

    def sync_much(self) -> None:
        """Bounds what stays in memory: packs with much that is unsynced are synced, and full ones, several of which come between two batches. A
        failure is dealt with where durability is asked for.
        """
        with self._lock:
            packs = [pack for pack in self._open if _holds_much(pack)]
        for pack in packs:
            self._sync_pack(pack)

    def disclaim(self, numbers: Collection[int]) -> None:
        """Nobody will take note of these appended blobs: they need not become durable, and no pack lists them."""
        with self._lock:
            for pack in self._open:
                gone = [frame for frame in pack.unsynced if frame.number in numbers]
                if gone:
                    pack.unsynced = [frame for frame in pack.unsynced if frame.number not in numbers]
                    pack.unsynced_bytes -= sum(frame.entry.stored_bytes for frame in gone)
                    listed = {frame.entry for frame in gone}
                    pack.entries = [entry for entry in pack.entries if entry not in listed]
                    self._are_written(pack, gone)
                pack.unclaimed.difference_update(numbers)
            for number in numbers:
                self._moved.pop(number, None)
                self._untold.pop(number, None)

    def claim(self, appended: Sequence[tuple[int, Location]]) -> list[Location]:
        """Take note of appended blobs' places: where they stand now, in case their pack was given up since."""
        with self._lock:
            for pack in self._open:
                pack.unclaimed.difference_update(number for number, _ in appended)
            return [self._claimed(number, location) for number, location in appended]

    def _claimed(self, number: int, location: Location) -> Location:
        """Where a blob stands now. It is told once: the same blob may be appended again, when it is damaged or collected. Under the lock."""
        moved = self._moved.pop(number, None)
        if moved is None:
            return location
        # Nobody knows the pack that it has left: if it moves once more, it leaves this one.
        self._untold.pop(number, None)
        return moved

    def facts(self, number: int) -> tuple[bytes, int] | None:
        """(object id, lowest blob number) of an open pack."""
        with self._lock:
            return next(((pack.object_id, pack.first_blob) for pack in self._open if pack.number == number), None)

    def full_packs(self) -> list[OpenPack]:
        """Packs that can be closed: full, nobody writing, everything synced."""
        with self._lock:
            return [p for p in self._open if p.full and not (p.failed or p.writers or p.unsynced or p.is_syncing or p.unclaimed)]

    def is_open(self, pack: OpenPack) -> bool:
        """Whether the pack is still this object's business."""
        with self._lock:
            return any(pack is other for other in self._open)

    def close(self, pack: OpenPack) -> None:
        """Give a pack its end and hand it to the store."""
        trailer_at = pack.end
        parts = _ending(pack.entries, trailer_at, pack.sealer, pack.header)
        self._write(pack, pack.unsynced)
        self._files.write_at(pack.handle, trailer_at, parts)
        self._files.sync(pack.handle)
        self._store.put_file(pack_name(pack.object_id), pack.path)
        with self._lock:
            self._open.remove(pack)
        self._files.close(pack.handle)

    def finish(self) -> list[OpenPack]:
        """At the end of a mount: mark all packs full, and give those that are to be closed. Failed ones are left to recovery."""
        with self._lock:
            packs = list(self._open)
            for pack in packs:
                pack.full = True
        for pack in packs:
            if pack.failed:
                self.give_up(pack)
        return [pack for pack in packs if not pack.failed]

    def give_up(self, pack: OpenPack) -> None:
        """Leave a pack as it lies; recovery finishes it."""
        with self._lock:
            self._let_go_of(pack)
        self._files.close(pack.handle)

    def discard(self, pack: OpenPack) -> None:
        """Remove an open pack that nothing refers to."""
        with self._lock:
            self._let_go_of(pack)
        self._files.close(pack.handle)
        self._files.unlink(pack.path)

    def _let_go_of(self, pack: OpenPack) -> None:
        """Under the lock."""
        self._open.remove(pack)
        for place in [place for place in self._kept_back if place[0] == pack.number]:
            del self._kept_back[place]

    def _append_group(
        self, choice: int, items: list[tuple[NewBlob, bytes | memoryview]], locations: dict[int, Location], unclaimed: set[int]
    ) -> None:
        pack = self._writable(choice, min(blob.number for blob, _ in items))
        try:
            with self._lock:
                start = self._take_place(pack, items)
            frames = _sealed(pack, start, items)
            try:
                self._files.write_at(pack.handle, start, [frame.sealed for frame in frames])
            except StoreError:
                with self._lock:
                    pack.failed = pack.full = True
                raise
            with self._lock:
                self._note(pack, frames, unclaimed)
                for frame in frames:
                    locations[frame.number] = Location(pack.number, frame.entry.offset, frame.entry.stored_bytes)
        finally:
            with self._lock:
                pack.writers -= 1

    def _take_place(self, pack: OpenPack, items: Sequence[tuple[NewBlob, bytes | memoryview]]) -> int:
        """Hand out the next offset, for all of these. Under the lock."""
        start = pack.end
        pack.end += sum(len(stored) + SEAL_OVERHEAD_BYTES for _, stored in items)
        pack.first_blob = min(pack.first_blob, *(blob.number for blob, _ in items))
        if pack.end >= limits.PACK_TARGET_BYTES or len(pack.entries) + len(items) >= limits.PACK_BLOBS_MAX:
            pack.full = True
        return start

    def _note(self, pack: OpenPack, frames: Sequence[_Frame], unclaimed: set[int]) -> None:
        """These are appended. Under the lock."""
        pack.unclaimed |= unclaimed
        pack.entries.extend(frame.entry for frame in frames)
        pack.unsynced.extend(frames)
        pack.unsynced_bytes += sum(frame.entry.stored_bytes for frame in frames)

    def _writable(self, choice: int, first_blob: int) -> OpenPack:
        with self._making:
            with self._lock:
                usable = [pack for pack in self._open if not pack.full]
                if choice < len(usable):
                    usable[choice].writers += 1
                    return usable[choice]
                number = self._counters.pack
                self._counters.pack += 1
            pack = self._make(number)
            pack.first_blob = first_blob
            with self._lock:
                pack.writers += 1
                self._open.append(pack)
            return pack

    def _make(self, number: int) -> OpenPack:
        object_id = self._randomness.draw(16)
        header, sealer = self._keys.new_object(PACK_MAGIC, object_id, self._randomness)
        header_bytes = objects.encode(header)
        path = self._directory / object_id.hex()
        handle = self._files.create(path)
        try:
            self._files.write_at(handle, 0, [header_bytes])
            # What the journal carries for a pack can be put there only if the pack is there.
            self._files.sync(handle)
            self._files.sync_directory(self._directory)
        except StoreError:
            self._files.close(handle)
            self._files.unlink(path)
            raise
        return OpenPack(number, object_id, header_bytes, sealer, handle, path)

    def _packs_to_sync(self) -> list[OpenPack]:
        """All of them: also of one that has failed a thread may be syncing what was appended before."""
        with self._lock:
            return list(self._open)

    def _sync_pack(self, pack: OpenPack) -> bool:
        """Sync a pack; false when it has been given up and blobs of it are to be moved."""
        with pack.sync_lock:
            with self._lock:
                if pack.failed:
                    return not pack.unsynced
                frames, pack.unsynced = pack.unsynced, []
                pack.unsynced_bytes = 0
                pack.is_syncing = bool(frames)
            if not frames:
                return True
            try:
                self._write(pack, frames)
                self._files.sync(pack.handle)
            except StoreError:
                with self._lock:
                    pack.failed = pack.full = True
                    pack.unsynced = frames + pack.unsynced
                return False
            finally:
                pack.is_syncing = False
            return True

    def _write(self, pack: OpenPack, frames: Sequence[_Frame]) -> None:
        """Write those of these that were kept back."""
        with self._lock:
            late = [frame for frame in frames if (pack.number, frame.entry.offset) in self._kept_back]
        for start, parts in _runs(late):
            self._files.write_at(pack.handle, start, parts)
        with self._lock:
            self._are_written(pack, late)

    def _are_written(self, pack: OpenPack, frames: Sequence[_Frame]) -> None:
        """These are not kept back any more: the file has them, or they do not count. Under the lock."""
        for frame in frames:
            self._kept_back.pop((pack.number, frame.entry.offset), None)

    def _move(self, pack: OpenPack) -> None:
        """Seal a failed pack's unsynced blobs anew into another. What was synced stays where it is: the pack is finished at recovery."""
        with self._lock:
            frames, pack.unsynced = pack.unsynced, []
            unclaimed = pack.unclaimed & {frame.number for frame in frames}
        again: list[tuple[NewBlob, bytes | memoryview]] = []
        for frame in frames:
            stored = pack.sealer.open(Sealed.BLOB, frame.entry.offset, frame.sealed, frame.entry.plain_bytes)
            again.append((NewBlob(frame.number, frame.entry.blob_id, bytes(frame.entry.plain_bytes)), stored))
        moved: dict[int, Location] = {}
        if again:
            try:
                self._append_group(self._favourite, again, moved, unclaimed)
            except StoreError:
                with self._lock:
                    pack.unsynced = frames + pack.unsynced
                raise
        with self._lock:
            # What was kept back still is: until everybody has been told, these are looked for where they stood.
            claimed_meanwhile = unclaimed - pack.unclaimed
            for other in self._open:
                other.unclaimed -= claimed_meanwhile
            pack.unclaimed -= unclaimed
            self._moved.update((number, moved[number]) for number in unclaimed - claimed_meanwhile)
            for number, place in moved.items():
                # Whoever is told knows the first of several packs only.
                before = self._untold.get(number)
                self._untold[number] = Moved(pack.number if before is None else before.left, place)


def _holds_much(pack: OpenPack) -> bool:
    """Not one that has failed: its blobs have to move."""
    return pack.unsynced_bytes > (0 if pack.full else limits.PACK_UNSYNCED_BYTES) and not pack.failed


def _sealed(pack: OpenPack, start: int, items: Sequence[tuple[NewBlob, bytes | memoryview]]) -> list[_Frame]:
    frames = []
    at = start
    for blob, stored in items:
        plain_bytes = len(blob.plain)
        sealed = pack.sealer.seal(Sealed.BLOB, at, stored, plain_bytes)
        frames.append(_Frame(blob.number, PackEntry(blob.blob_id, at, len(sealed), plain_bytes), sealed))
        at += len(sealed)
    return frames


def _runs(frames: Sequence[_Frame]) -> Iterator[tuple[int, list[bytes]]]:
    """(offset, what stands there without a gap), for frames in the order of their offsets."""
    start, end, parts = 0, 0, list[bytes]()
    for frame in frames:
        if parts and frame.entry.offset != end:
            yield start, parts
            parts = []
        if not parts:
            start = end = frame.entry.offset
        parts.append(frame.sealed)
        end += len(frame.sealed)
    if parts:
        yield start, parts


def finish_abandoned(source: bytes, entries: Sequence[PackEntry], object_id: bytes, keys: Keys, randomness: Randomness) -> list[bytes]:
    """The parts of a whole pack made from what a dead process left of one: its bytes up to the last entry, and an end under a fresh key."""
    end = max((entry.offset + entry.stored_bytes for entry in entries), default=HEADER_BYTES)
    header, sealer = keys.new_object(PACK_MAGIC, object_id, randomness)
    return [source[:end].ljust(end, b"\0"), *_ending(entries, end, sealer, objects.encode(header))]


def _ending(entries: Sequence[PackEntry], trailer_at: int, sealer: Sealer, header: bytes) -> list[bytes]:
    plain = pack_format.encode_trailer(entries, trailer_at)
    footer_at = trailer_at + len(plain) + SEAL_OVERHEAD_BYTES
    footer = PackFooter(trailer_at, len(plain) + SEAL_OVERHEAD_BYTES, len(entries))
    return [
        sealer.seal(Sealed.PACK_TRAILER, trailer_at, plain),
        sealer.seal(Sealed.PACK_FOOTER, footer_at, pack_format.encode_footer(footer)),
        header,
    ]
