"""Checkpoints: sorted images of the catalog, from which replay may start, so that the journal before them may go.

Checkpoint n is checkpoint n - 1 merged with the journal since, all of it read from the store: damage in the index never gets into one. The parts come
first and the manifest last; parts without a manifest are what an interruption left. The two newest are kept, and the journal from the older
one on, so that damage in one of them costs nothing.
"""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys
from backupfs.errors import DamageError, MissingObjectError
from backupfs.format import checkpoint as checkpoint_format
from backupfs.format import objects
from backupfs.format.catalog import Table
from backupfs.format.checkpoint import Manifest, Part, checkpoint_name, decode_name, part_name
from backupfs.format.journal import HEAD_BYTES, Change, SegmentOpen, decode_batch, decode_body, encode_batch, encode_body
from backupfs.format.layout import Sealed
from backupfs.format.objects import CHECKPOINT_MAGIC, HEADER_BYTES, journal_object_id
from backupfs.journal.sorting import in_parts
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

    def parts(self, sequence: int, manifest: Manifest) -> Iterator[list[Change]]:
        """The records, a part at a time: verified one by one, and in order."""
        before: tuple[int, bytes] = (0, b"")
        for part in manifest.parts:
            name = part_name(sequence, part.object_id)
            payload = self._open(name, part.object_id, Sealed.CHECKPOINT_PART)
            if self._keys.journal_hasher().update(payload).digest() != part.hash:
                raise DamageError(f"{name} is not the part that its manifest names", object=name)
            changes = list(decode_batch(payload))
            if len(changes) != part.records:
                raise DamageError(f"{name} has {len(changes)} records instead of {part.records}", object=name)
            for table, key, value in changes:
                if value is None or table not in _TABLES or (table, key) <= before:
                    raise DamageError(f"{name} has a record that cannot stand there", object=name)
                before = table, key
            yield changes

    def write(self, sequence: int, journal: SegmentOpen, batch: int, records: Iterable[Change], breathe: Callable[[], None]) -> None:
        """Make a checkpoint, durably: `records` are the whole catalog, sorted, as of the end of `journal` and `batch`."""
        parts: list[Part] = []
        for changes in in_parts(records, breathe):
            payload = encode_batch(changes)
            object_id = self._randomness.draw(16)
            self._store.put(part_name(sequence, object_id), self._seal(object_id, Sealed.CHECKPOINT_PART, payload))
            parts.append(Part(object_id, self._keys.journal_hasher().update(payload).digest(), len(changes)))
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
        """Remove what an interruption left: parts without a manifest, and files that were being written. Nobody may be making a checkpoint."""
        names = self._names()
        for unfinished in sorted({sequence for sequence, _ in names} - {sequence for sequence, part in names if part is None}):
            self.remove(unfinished)
        self._store.sweep(_FOLDER)

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
