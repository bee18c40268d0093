"""Checkpoints: sorted images of the catalog, from which replay may start, so that the journal before them may go.

Checkpoint n is checkpoint n - 1 merged with the journal since, all of it read from the store: damage in the index never gets into one. The parts come
first and the manifest last; parts without a manifest are what an interruption left. The two newest are kept, and the journal from the older
one on, so that damage in one of them costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import msgspec

from backupfs import limits
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys
from backupfs.errors import DamageError, MissingObjectError, StoreError
from backupfs.format import checkpoint as checkpoint_format
from backupfs.format import objects
from backupfs.format.catalog import Table
from backupfs.format.checkpoint import Manifest, Part, checkpoint_name, decode_name, part_name
from backupfs.format.journal import HEAD_BYTES, Change, SegmentOpen, decode_batch, decode_body, encode_body
from backupfs.format.layout import Sealed
from backupfs.format.objects import CHECKPOINT_MAGIC, HEADER_BYTES, journal_object_id
from backupfs.journal.sorting import encoded_parts
from backupfs.randomness import Randomness
from backupfs.stores.port import Store

_FOLDER = "checkpoints"
_TABLES = frozenset(Table) - {Table.CHANGES}


class Checkpoints:
    """The checkpoints of a repository. All functions block; errors are DamageError and StoreError."""

    def __init__(self, store: Store, keys: Keys, compressor: Compressor, randomness: Randomness) -> None:
        self._store = store
        self._keys = keys
        self._compressor = compressor
        self._randomness = randomness

    def sequences(self) -> list[int]:
        """Numbers of the checkpoints that have a manifest, rising."""
        return sorted(sequence for sequence, part in self._names() if part is None)

    def size_bytes(self, sequence: int) -> int:
        """What a checkpoint takes in the store."""
        names = [name for name in self._store.list(_FOLDER) if decode_name(name)[0] == sequence]
        return sum(self._store.size(name) for name in names)

    def manifest(self, sequence: int) -> Manifest:
        """What a checkpoint stands for, verified."""
        body = self._open(checkpoint_name(sequence), journal_object_id(sequence), Sealed.CHECKPOINT_MANIFEST)
        try:
            return checkpoint_format.decode_manifest(body)
        except msgspec.DecodeError as error:
            raise DamageError(f"{checkpoint_name(sequence)} does not decode") from error

    def records(self, sequence: int, manifest: Manifest, breathe: Callable[[], None] = lambda: None) -> Iterator[Change]:
        """The records, in order, each verified; a part that lacks some is found at its end. `breathe` is called every few hundred."""
        before: tuple[int, bytes] = (0, b"")
        for part in manifest.parts:
            name = part_name(sequence, part.object_id)
            payload = self._open(name, part.object_id, Sealed.CHECKPOINT_PART)
            if self._keys.journal_hasher().update(payload).digest() != part.hash:
                raise DamageError(f"{name} is not the part that its manifest names", object=name)
            count = 0
            for change in decode_batch(payload):
                table, key, value = change
                if value is None or table not in _TABLES or (table, key) <= before:
                    raise DamageError(f"{name} has a record that cannot stand there", object=name)
                before = table, key
                count += 1
                if not count % limits.BREATHE_RECORDS:
                    breathe()
                yield change
            if count != part.records:
                raise DamageError(f"{name} has {count} records instead of {part.records}", object=name)

    def write(
        self,
        sequence: int,
        journal: SegmentOpen,
        batch: int,
        records: Iterable[Change],
        breathe: Callable[[], None],
        require_room: Callable[[int], None],
    ) -> None:
        """Make a checkpoint, durably: `records` are the whole catalog, sorted, as of the end of `journal` and `batch`. `require_room` is asked before
        so many bytes are put, and may raise. When it is not made to its end nothing is left of it, unless that cannot be removed either.
        """
        try:
            self._write(sequence, journal, batch, encoded_parts(records, limits.CHECKPOINT_PART_BYTES, breathe), require_room)
        except BaseException:
            with suppress(StoreError):
                self.remove(sequence)
            raise

    def _write(
        self, sequence: int, journal: SegmentOpen, batch: int, payloads: Iterable[tuple[bytes, int]], require_room: Callable[[int], None]
    ) -> None:
        parts: list[Part] = []
        for payload, count in payloads:
            object_id = self._randomness.draw(16)
            sealed = self._seal(object_id, Sealed.CHECKPOINT_PART, payload)
            require_room(len(sealed))
            self._store.put(part_name(sequence, object_id), sealed)
            parts.append(Part(object_id, self._keys.journal_hasher().update(payload).digest(), count))
        manifest = Manifest(journal.previous_sequence, journal.previous_bytes, journal.previous_hash, batch, parts)
        plain = msgspec.msgpack.encode(manifest)
        self._store.put(checkpoint_name(sequence), self._seal(journal_object_id(sequence), Sealed.CHECKPOINT_MANIFEST, plain))

    def remove(self, sequence: int) -> None:
        """Remove a checkpoint, its manifest first; what an interruption left of one as well."""
        parts = [part for found, part in self._names() if found == sequence and part is not None]
        for name in (checkpoint_name(sequence), *(part_name(sequence, part) for part in parts)):
            try:
                self._store.delete(name)
            except MissingObjectError:
                # Its removal was interrupted before, or its making.
                continue

    def sweep(self) -> None:
        """Remove what an interruption left: objects half written, and checkpoints of which there are parts and no manifest."""
        self._store.sweep(_FOLDER)
        names = self._names()
        for sequence in {sequence for sequence, _ in names} - {sequence for sequence, part in names if part is None}:
            self.remove(sequence)

    def _names(self) -> list[tuple[int, bytes | None]]:
        return [decode_name(name) for name in self._store.list(_FOLDER)]

    def _seal(self, object_id: bytes, what: Sealed, plain: bytes) -> bytes:
        header, sealer = self._keys.new_object(CHECKPOINT_MAGIC, object_id, self._randomness)
        # A frame would have its head before the body; here the body follows the header at once.
        body = encode_body(HEADER_BYTES - HEAD_BYTES, self._compressor.compress(plain), len(plain), pad_segment=True)
        return objects.encode(header) + sealer.seal(what, HEADER_BYTES, body)

    def _open(self, name: str, object_id: bytes, what: Sealed) -> bytes:
        data = self._store.get(name)
        sealer = self._keys.object_sealer(objects.decode(data[:HEADER_BYTES], CHECKPOINT_MAGIC, name), object_id)
        stored, plain_bytes = decode_body(sealer.open(what, HEADER_BYTES, data[HEADER_BYTES:]))
        return self._compressor.expand(stored, plain_bytes)
