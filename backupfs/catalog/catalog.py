"""The catalog: the index with the newest changes above it, and the rules by which versions come and go.

Lives on the event loop; every function is atomic. What changed since the last batch stands in the active layer. `freeze` makes that layer a
batch; it stays readable until the index has applied it and `drop_layer` is called, in the step that renews the loop's transaction.

Versions: writing replaces the newest version when no kept snapshot lies between that one's epoch and now; otherwise it adds one. Blob
references are counted here, for every version put or dropped, so they cannot go astray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from backupfs.catalog.index import Index
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import (
    TOMBSTONE,
    VERSIONED,
    Blob,
    Extent,
    Pack,
    PackState,
    Table,
    epoch_suffix,
    number_key,
    split_version,
)
from backupfs.format.journal import Change

_GROUP_BYTES = 8
_EPOCH_BYTES = 8
_NAMES_REMEMBERED = 4096
"""A program that makes, renames or removes names asks for each of them several times in a row."""

_REFERRING = frozenset({Table.INODES, Table.REGIONS})
"""Tables whose records have extents."""

Referring = tuple[Sequence[Extent], Sequence[Extent]]
"""The extents in a version, and in the one that takes its place."""

Versions = dict[int, bytes | None]
"""Value by epoch; None says that this version is gone, whatever lies below."""


@dataclass(slots=True, eq=False)
class Layer:
    """Changes above the index. `versions` and `groups` hold the versioned tables by object and by the first eight bytes of it."""

    plain: dict[Table, dict[bytes, bytes | None]] = field(default_factory=lambda: {t: {} for t in Table if t not in VERSIONED})
    versions: dict[Table, dict[bytes, Versions]] = field(default_factory=lambda: {t: {} for t in VERSIONED})
    groups: dict[Table, dict[bytes, list[bytes]]] = field(default_factory=lambda: {t: {} for t in VERSIONED})
    records: int = 0
    value_bytes: int = 0
    references: dict[int, int] = field(default_factory=dict)
    """By how much the number of a blob's references has changed, where it has."""
    let_go: set[int] = field(default_factory=set)
    """Blobs that only pins kept, and no pin does any more: they are looked at again."""
    new_blobs: dict[int, Blob] = field(default_factory=dict)
    replaced_blobs: dict[int, Blob] = field(default_factory=dict)
    """Blobs on record that were appended anew, because they could not be read where they stand: at their new places."""
    new_packs: dict[int, tuple[bytes, int]] = field(default_factory=dict)
    left_packs: set[int] = field(default_factory=set)
    """Packs that something was appended to which has been appended elsewhere since: nothing may live in them."""

    def put_version(self, table: Table, object_key: bytes, epoch: int, value: bytes | None) -> None:
        """Set one version, or say that it is gone."""
        versions = self.versions[table].get(object_key)
        if versions is None:
            versions = self.versions[table][object_key] = {}
            self.groups[table].setdefault(object_key[:_GROUP_BYTES], []).append(object_key)
        if epoch not in versions:
            self.records += 1
        self.value_bytes += len(value or b"") - len(versions.get(epoch) or b"")
        versions[epoch] = value

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Set a record of a table without versions, or say that it is gone."""
        rows = self.plain[table]
        if key not in rows:
            self.records += 1
        self.value_bytes += len(value or b"") - len(rows.get(key) or b"")
        rows[key] = value

    def take_over(self, newer: "Layer") -> None:
        """Have the records of the layer above too, as that has them."""
        for table, objects in newer.versions.items():
            for object_key, versions in objects.items():
                for epoch, value in versions.items():
                    self.put_version(table, object_key, epoch, value)
        for plain_table, rows in newer.plain.items():
            for key, value in rows.items():
                self.put(plain_table, key, value)

    def changes(self) -> Iterator[Change]:
        """The layer's records as the journal has them."""
        for table, objects in self.versions.items():
            for object_key, versions in objects.items():
                for epoch, value in versions.items():
                    yield table, object_key + epoch_suffix(epoch), value
        for table, rows in self.plain.items():
            for key, value in rows.items():
                yield table, key, value


class Catalog:
    """All records, present and past. `epoch` is the current one, `newest_kept` the highest epoch of a snapshot that counts as kept."""

    def __init__(self, index: Index, epoch: int, newest_kept: int, latest: int = records.EPOCH_MAX) -> None:
        """`latest` is the epoch that a view of the present sees: an earlier one for a catalog that is only to show the past."""
        self._index = index
        self._latest = latest
        self.epoch = epoch
        self.newest_kept = newest_kept
        self.active = Layer()
        self._frozen: list[Layer] = []
        self._pins: dict[int, int] = {}
        self._idle: set[int] = set()
        self._noted_idle: list[int] = []
        self._sealed_early: set[int] = set()
        self._names: dict[bytes, tuple[int, bytes] | None] = {}
        """What `newest` has found of names in the present. Followers keep none: the index changes below them."""
        left = self.get(Table.META, records.META_IDLE)
        if left is not None:
            self._noted_idle = records.decode_numbers(left)
            self.active.let_go.update(self._noted_idle)
        self.died_bytes = 0
        """Stored bytes of blobs that have lost their place in a pack since the catalog was opened."""
        self.changed_in_epoch = 0
        """Versions written in this epoch so far; what a snapshot taken now would have as its count of changes."""

    # reading

    def get(self, table: Table, key: bytes) -> bytes | None:
        """A record of a table without versions."""
        for layer in self._layers():
            rows = layer.plain[table]
            if key in rows:
                return rows[key]
        return self._index.get(table, key)

    def newest(self, table: Table, object_key: bytes, epoch: int) -> tuple[int, bytes] | None:
        """(epoch, value) of the version that a view at `epoch` sees, tombstones included; None when there never was one by then."""
        if table != Table.DENTRIES or epoch != records.EPOCH_MAX or self._latest != records.EPOCH_MAX:
            return self._look_up(table, object_key, min(epoch, self._latest))
        names = self._names
        if object_key in names:
            return names[object_key]
        found = self._look_up(table, object_key, epoch)
        if len(names) >= _NAMES_REMEMBERED:
            names.clear()
        names[object_key] = found
        return found

    def _look_up(self, table: Table, object_key: bytes, epoch: int) -> tuple[int, bytes] | None:
        gone: set[int] | None = None
        best: tuple[int, bytes] | None = None
        for layer in (self.active, *self._frozen):
            versions = layer.versions[table].get(object_key)
            if versions is None:
                continue
            for at, value in versions.items():
                if at > epoch or (gone is not None and at in gone):
                    continue
                if value is not None and (best is None or at > best[0]):
                    best = at, value
            gone = set(versions) if gone is None else gone | versions.keys()
        if best is not None and best[0] >= min(epoch, self.epoch):
            return best  # nothing below can be newer
        size = len(object_key)
        start = object_key + epoch_suffix(epoch)
        found = self._index.seek(table, start)
        while found is not None and len(found[0]) == size + _EPOCH_BYTES and found[0][:size] == object_key:
            at = split_version(found[0])[1]
            if best is not None and at <= best[0]:
                break
            if gone is None or at not in gone:
                return at, self._index.open_record(table, *found)
            if at == 0:
                break
            found = self._index.seek(table, object_key + epoch_suffix(at - 1))
        return best

    def value(self, table: Table, object_key: bytes, epoch: int) -> bytes | None:
        """What a view at `epoch` sees of an object; None when it is not there."""
        found = self.newest(table, object_key, epoch)
        return None if found is None or found[1] == TOMBSTONE else found[1]

    def versions(self, table: Table, object_key: bytes) -> list[tuple[int, bytes]]:
        """All versions of an object, newest first, tombstones included."""
        return self.versions_down_to(table, object_key, records.EPOCH_MAX, 0)

    def versions_down_to(self, table: Table, object_key: bytes, newest: int, oldest: int) -> list[tuple[int, bytes]]:
        """Versions of an object from the one that a view at `newest` sees down to the first of epoch `oldest` or before, newest first."""
        found: list[tuple[int, bytes]] = []
        version = self.newest(table, object_key, newest)
        while version is not None:
            found.append(version)
            if version[0] <= oldest or not version[0]:
                break
            version = self.newest(table, object_key, version[0] - 1)
        return found

    def scan(self, table: Table, group: bytes, after: bytes, epoch: int) -> Iterator[tuple[bytes, bytes]]:
        """(object key, value) of what a view at `epoch` sees of a group (the first eight bytes), in order, behind the key `after`.

        To be used up in one synchronous step.
        """
        epoch = min(epoch, self._latest)
        touched: set[bytes] = set()
        for layer in self._layers():
            touched.update(layer.groups[table].get(group, ()))
        above = sorted(key for key in touched if key > after)
        below = self._scan_index(table, group, after, epoch, touched)
        next_above = 0
        for key, value in below:
            while next_above < len(above) and above[next_above] < key:
                seen = self.value(table, above[next_above], epoch)
                if seen is not None:
                    yield above[next_above], seen
                next_above += 1
            yield key, value
        for key in above[next_above:]:
            seen = self.value(table, key, epoch)
            if seen is not None:
                yield key, seen

    def rows(self, table: Table) -> list[tuple[bytes, bytes]]:
        """All records of a small table without versions, in order."""
        found = {key: self._index.open_record(table, key, sealed) for key, sealed in self._index.scan(table, b"")}
        for layer in reversed(list(self._layers())):
            for key, value in layer.plain[table].items():
                if value is None:
                    found.pop(key, None)
                else:
                    found[key] = value
        return sorted(found.items())

    def applied_changes(self, start: bytes, end_epoch: int, limit: int) -> list[bytes]:
        """Up to `limit` keys of `CHANGES` rows that the index has applied, from `start` on, up to and with `end_epoch`."""
        found: list[bytes] = []
        for key, _ in self._index.scan(Table.CHANGES, start):
            if len(found) == limit or records.split_change(key)[0] > end_epoch:
                break
            found.append(key)
        return found

    def applied_rows(self, table: Table, start: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` (key, value) of a table as the index has applied it, versions and tombstones included, from `start` on."""
        found: list[tuple[bytes, bytes]] = []
        for key, sealed in self._index.scan(table, start):
            if len(found) == limit:
                break
            found.append((key, self._index.open_record(table, key, sealed)))
        return found

    # writing

    def put(self, table: Table, key: bytes, value: bytes | None) -> None:
        """Set or remove a record of a table without versions."""
        self.active.put(table, key, value)

    def write(self, table: Table, object_key: bytes, value: bytes, epoch: int | None = None, refers: Referring | None = None) -> None:
        """Give an object a new value (`TOMBSTONE`: it ends) as of `epoch`, by default the current one. `refers`, from who has them at hand: the
        extents in the newest version and in `value`.

        Versions behind that epoch go: they were never seen by a view that is left.
        """
        now = self.epoch if epoch is None else epoch
        newest = self.newest(table, object_key, records.EPOCH_MAX)
        while newest is not None and newest[0] > now:
            self._drop(table, object_key, *newest)
            newest = self.newest(table, object_key, records.EPOCH_MAX)
        if newest is not None and newest[0] == now and value != TOMBSTONE:
            self._exchange(table, object_key, now, value, refers or (_extents(table, newest[1]), _extents(table, value)))
            return
        if newest is not None and (newest[0] == now or not self.kept_between(newest[0], now)):
            self._drop(table, object_key, *newest)
            if value == TOMBSTONE:
                newest = self.newest(table, object_key, records.EPOCH_MAX)
        if value == TOMBSTONE and (newest is None or newest[1] == TOMBSTONE):
            return
        self._put(table, object_key, now, value)

    def write_over(self, table: Table, object_key: bytes, value: bytes, over: int, refers: Referring, epoch: int | None = None) -> int | None:
        """`write` without a look into the index, for an object whose only version is known to be of epoch `over` (0: it has none).

        `refers` are the extents in that version and in `value`. The epoch of the only version afterwards, 0 when there is none, None when there are
        several.
        """
        now = self.epoch if epoch is None else epoch
        is_replaced = bool(over) and (over >= now or not self.kept_between(over, now))
        if is_replaced:
            self._refer(refers[0], -1)
        if is_replaced and (over != now or value == TOMBSTONE):
            self.active.put_version(table, object_key, over, None)
        if value == TOMBSTONE and (is_replaced or not over):
            self._names.pop(object_key, None)
            return 0
        self.changed_in_epoch += 1
        self.active.put_version(table, object_key, now, value)
        self._names.pop(object_key, None)
        self._refer(refers[1], 1)
        return now if is_replaced or not over else None

    def rewrite(self, table: Table, object_key: bytes, epoch: int, value: bytes) -> None:
        """Exchange a version for one of the same meaning in its own epoch."""
        old = self.newest(table, object_key, epoch)
        if old is None or old[0] != epoch:
            raise DamageError("a version to be rewritten is not there")
        self._drop(table, object_key, *old)
        self._put(table, object_key, epoch, value)

    def drop_version(self, table: Table, object_key: bytes, epoch: int, value: bytes, next_newer: int) -> None:
        """Remove one version, of which `next_newer` is the epoch of the next one; tombstones that then have nothing older go too."""
        self._drop(table, object_key, epoch, value)
        if epoch and self.newest(table, object_key, epoch - 1) is not None:
            return
        oldest = self.newest(table, object_key, next_newer)
        if oldest is None or oldest[1] != TOMBSTONE:
            return
        versions = self.versions(table, object_key)
        while versions and versions[-1][1] == TOMBSTONE:
            self._drop(table, object_key, *versions.pop())

    def kept_between(self, epoch: int, now: int) -> bool:
        """Whether a kept snapshot sees a version of `epoch` that is replaced at `now`. `kept_epochs` decides when now is not current."""
        if now >= self.epoch:
            return self.newest_kept >= epoch
        return any(epoch <= kept < now for kept in self.kept_epochs)

    kept_epochs: tuple[int, ...] = ()
    """Epochs of all snapshots that count as kept, rising. Set together with `newest_kept`."""

    # blobs

    def blob(self, number: int) -> Blob:
        """A blob's record, whether or not it has been in a batch. Raises DamageError when there is none."""
        for layer in self._layers():
            found = layer.new_blobs.get(number) or layer.replaced_blobs.get(number)
            if found is not None:
                return found
        value = self.get(Table.BLOBS, number_key(number))
        if value is None:
            raise DamageError(f"blob {number} is referred to but has no record", blob=number)
        return records.decode_blob(value)

    def pack_object_id(self, number: int) -> bytes:
        """Object id of a pack. Raises DamageError when there is none."""
        if number in self.active.new_packs:
            return self.active.new_packs[number][0]
        value = self.get(Table.PACKS, number_key(number))
        if value is None:
            raise DamageError(f"pack {number} is referred to but has no record", pack=number)
        return records.decode_pack(value).object_id

    def known_blob(self, blob_id: bytes) -> int | None:
        """Number of the blob with this id, if a record has it or will have it."""
        value = self.get(Table.BLOB_IDS, blob_id)
        return None if value is None else records.decode_number(value)

    def add_blob(self, number: int, blob: Blob) -> None:
        """A blob that has been appended; it is recorded if the next batch still refers to it or it is pinned."""
        self.active.new_blobs[number] = blob
        self.active.put(Table.BLOB_IDS, blob.id, records.encode(number))

    def replace_blob(self, number: int, pack: int, offset: int, stored_bytes: int) -> None:
        """A known blob that could not be read has been appended anew: whoever refers to it finds it there."""
        layer = self.active
        blobs = layer.new_blobs if number in layer.new_blobs else layer.replaced_blobs
        if number in blobs:
            layer.left_packs.add(blobs[number].pack)
        blobs[number] = _elsewhere(self.blob(number), pack, offset, stored_bytes)

    def add_pack(self, number: int, object_id: bytes, first_blob: int) -> None:
        """A pack that blobs have been appended to."""
        self.active.new_packs[number] = object_id, first_blob

    def names_pack(self, number: int) -> bool:
        """Whether anything stands in this pack that is, or may yet be, referred to."""
        if any(blob.pack == number for layer in self._layers() for blob in _appended(layer)):
            return True
        return self.get(Table.PACKS, number_key(number)) is not None

    def pack_sealed(self, number: int) -> Pack | None:
        """A pack has been closed. Gives its record when no blob lives in it: its row is gone then, and the object may follow."""
        key = number_key(number)
        value = self.get(Table.PACKS, key)
        if value is None:
            self._sealed_early.add(number)
            return None
        old = records.decode_pack(value)
        pack = Pack(old.object_id, old.live_bytes, PackState.SEALED, old.first_blob)
        is_dead = not pack.live_bytes and not any(blob.pack == number for blob in _appended(self.active))
        self.put(Table.PACKS, key, None if is_dead else records.encode(pack))
        return pack if is_dead else None

    def pin(self, number: int) -> None:
        """Keep a blob although nothing refers to it yet."""
        self._pins[number] = self._pins.get(number, 0) + 1

    def unpin(self, number: int) -> None:
        """Take a pin back. A blob that only pins kept is looked at again when the next batch is frozen."""
        left = self._pins[number] - 1
        if left:
            self._pins[number] = left
            return
        del self._pins[number]
        if number in self._idle:
            self._idle.remove(number)
            self.active.let_go.add(number)

    def move_blob(self, layer: Layer, number: int, left: int, pack: int, offset: int, stored_bytes: int, facts: tuple[bytes, int]) -> None:
        """Correct the place of a blob that had to be sealed anew before `layer`, the oldest that may name that place, was written.

        `left` is the pack that it stood in, `facts` are the new pack's object id and lowest blob number. Where a layer has the blob in another pack,
        still (it is being copied) or again, that stays.
        """
        key = number_key(number)
        layers = [self.active, *self._frozen]
        is_counted = False
        for depth in range(self._depth(layer), -1, -1):
            place = layers[depth]
            for blobs in (place.new_blobs, place.replaced_blobs):
                if number in blobs and blobs[number].pack == left:
                    blobs[number] = _elsewhere(blobs[number], pack, offset, stored_bytes)
                    place.new_packs[pack] = facts
            rows = place.plain[Table.BLOBS]
            if key in rows:
                value = rows[key]
                row = None if value is None else records.decode_blob(value)
                if row is None or row.pack != left:
                    if is_counted and number_key(pack) not in place.plain[Table.PACKS]:
                        # Its old pack's count is right again here; the new one's is not, unless this layer has it anyway.
                        self._shift_live(layers[depth:], pack, -stored_bytes, facts)
                    if row is None or is_counted:
                        return
                    continue
                rows[key] = records.encode(_elsewhere(row, pack, offset, stored_bytes))
                if not is_counted:
                    # The oldest layer that has the blob there: here it is counted in its pack.
                    is_counted = True
                    self._shift_live(layers[depth:], left, -stored_bytes, None)
                    self._shift_live(layers[depth:], pack, stored_bytes, facts)
                    continue
            if is_counted:
                for other, step, those in ((left, -stored_bytes, None), (pack, stored_bytes, facts)):
                    if number_key(other) in place.plain[Table.PACKS]:
                        self._shift_live(layers[depth:], other, step, those)

    def repeat_blob(self, layer: Layer, number: int) -> None:
        """Have `layer` say again where a blob stands that older layers name, so that `move_blob` corrects it from there on."""
        key = number_key(number)
        layers = [self.active, *self._frozen][self._depth(layer) :]
        if key not in layer.plain[Table.BLOBS]:
            value = next((rows[key] for rows in (below.plain[Table.BLOBS] for below in layers) if key in rows), None)
            if value is not None:
                layer.put(Table.BLOBS, key, value)

    def pack_taken(self, layer: Layer, number: int) -> None:
        """`layer` and those frozen after it were given their counters before this pack got its number: nobody may get it again."""
        layers = [self.active, *self._frozen]
        for depth in range(self._depth(layer), -1, -1):
            value = layers[depth].plain[Table.META].get(records.META_COUNTERS)
            if value is None and layers[depth] is layer:
                below = (older.plain[Table.META].get(records.META_COUNTERS) for older in layers[depth + 1 :])
                value = next((v for v in below if v is not None), None) or self._index.get(Table.META, records.META_COUNTERS)
            if value is not None:
                counters = records.decode_counters(value)
                counters.pack = max(counters.pack, number + 1)
                layers[depth].put(Table.META, records.META_COUNTERS, records.encode_counters(counters))

    def _depth(self, layer: Layer) -> int:
        return 0 if layer is self.active else 1 + self._frozen.index(layer)

    def _shift_live(self, layers: list[Layer], number: int, step: int, facts: tuple[bytes, int] | None) -> None:
        """Change a pack's live bytes in the first of these layers, as the others below it have them. `facts` as in `move_blob`."""
        key = number_key(number)
        value = next((rows[key] for rows in (layer.plain[Table.PACKS] for layer in layers) if key in rows), None)
        value = value or self._index.get(Table.PACKS, key)
        if value is not None:
            old = records.decode_pack(value)
            first_blob = old.first_blob if facts is None else min(old.first_blob, facts[1])
            pack = Pack(old.object_id, old.live_bytes + step, old.state, first_blob)
        else:
            assert facts is not None, "a pack that a blob leaves has a row"
            pack = Pack(facts[0], step, PackState.OPEN, facts[1])
        layers[0].put(Table.PACKS, key, records.encode(pack))

    # layers

    def has_changes(self) -> bool:
        """Whether a batch frozen now would hold anything."""
        return self.active.records > 0 or bool(self.active.references or self.active.let_go or self.active.replaced_blobs)

    def freeze(self) -> tuple[Layer, list[Pack]]:
        """Make the active layer a batch: settle references, and start a new layer. Also gives the packs that no blob lives in any more."""
        dead = self._settle()
        layer = self.active
        self.active = Layer()
        for number, blob in list(layer.new_blobs.items()):
            if number in self._pins and number_key(number) not in layer.plain[Table.BLOBS]:
                self.active.new_blobs[number] = blob
                self.active.put(Table.BLOB_IDS, blob.id, layer.plain[Table.BLOB_IDS].pop(blob.id))
                if blob.pack in layer.new_packs and blob.pack not in self.active.new_packs:
                    self.active.new_packs[blob.pack] = layer.new_packs[blob.pack]
            layer.new_blobs.pop(number)
        self._frozen.insert(0, layer)
        return layer, dead

    def join_layers(self, older: Layer, newer: Layer) -> None:
        """Make two frozen layers one: `older`, with `newer` directly above it. Both are durable, and nobody reads them in a thread."""
        above = self._frozen.index(newer)
        assert self._frozen[above + 1] is older, "layers that are no neighbours were to be joined"
        older.take_over(newer)
        del self._frozen[above]

    def drop_layer(self, layer: Layer) -> None:
        """The index has applied this layer: see it there."""
        self._index.renew()
        self._frozen.remove(layer)

    @property
    def frozen_layers(self) -> int:
        """How many layers wait for the index."""
        return len(self._frozen)

    # inside

    def _layers(self) -> Iterator[Layer]:
        yield self.active
        yield from self._frozen

    def _scan_index(self, table: Table, group: bytes, after: bytes, epoch: int, touched: set[bytes]) -> Iterator[tuple[bytes, bytes]]:
        done: bytes | None = after
        key_bytes = 0
        start = after + b"\xff" * _EPOCH_BYTES if len(after) > len(group) else group
        found = self._index.seek(table, start)
        while found is not None:
            key, sealed = found
            if key[:_GROUP_BYTES] != group:
                return
            object_key, at = split_version(key)
            key_bytes = len(object_key)
            if object_key == done or object_key in touched:
                found = self._index.seek(table, object_key + b"\xff" * (_EPOCH_BYTES + 1))
                continue
            if at > epoch:
                found = self._index.seek(table, object_key + epoch_suffix(epoch))
                if found is not None and found[0][:key_bytes] == object_key:
                    done = object_key
                    value = self._index.open_record(table, *found)
                    if value != TOMBSTONE:
                        yield object_key, value
                        found = self._index.seek(table, object_key + b"\xff" * (_EPOCH_BYTES + 1))
                continue
            done = object_key
            value = self._index.open_record(table, key, sealed)
            if value != TOMBSTONE:
                yield object_key, value
            found = self._index.seek(table, object_key + b"\xff" * (_EPOCH_BYTES + 1))

    def _put(self, table: Table, object_key: bytes, epoch: int, value: bytes) -> None:
        self.active.put_version(table, object_key, epoch, value)
        self.changed_in_epoch += 1
        self._names.pop(object_key, None)
        self._refer(_extents(table, value), 1)

    def _drop(self, table: Table, object_key: bytes, epoch: int, value: bytes) -> None:
        self.active.put_version(table, object_key, epoch, None)
        self._names.pop(object_key, None)
        self._refer(_extents(table, value), -1)

    def _exchange(self, table: Table, object_key: bytes, epoch: int, value: bytes, refers: Referring) -> None:
        """`_drop` and `_put` of one version."""
        self.active.put_version(table, object_key, epoch, value)
        self.changed_in_epoch += 1
        self._names.pop(object_key, None)
        self._refer_instead(*refers)

    def _refer_instead(self, before: Sequence[Extent], after: Sequence[Extent]) -> None:
        """Of most of what both refer to nothing is counted: as a rule a file has grown at its end."""
        shorter = same = min(len(before), len(after))
        back = 1
        while same > 0 and before[:same] != after[:same]:
            same, back = max(shorter - back, 0), back * 2
        self._refer(before[same:], -1)
        self._refer(after[same:], 1)

    def _refer(self, extents: Sequence[Extent], step: int) -> None:
        references = self.active.references
        for _, _, blob, _ in extents:
            changed = references.get(blob, 0) + step
            if changed:
                references[blob] = changed
            else:
                del references[blob]

    def _settle(self) -> list[Pack]:
        """Turn reference counts of the active layer into rows of blobs and packs."""
        layer = self.active
        live: dict[int, int] = dict.fromkeys(layer.left_packs, 0)
        layer.left_packs.clear()
        self._settle_replaced(live)
        for number in layer.references.keys() | layer.new_blobs.keys() | layer.let_go:
            step = layer.references.get(number, 0)
            key = number_key(number)
            new = layer.new_blobs.get(number)
            old_value = None if new is not None else self.get(Table.BLOBS, key)
            if new is None and old_value is None:
                if step:
                    raise DamageError(f"blob {number} is referred to but has no record", blob=number)
                continue
            blob = new if new is not None else records.decode_blob(old_value or b"")
            references = blob.references + step
            if references < 0:
                raise DamageError(f"blob {number} would have {references} references", blob=number)
            if references == 0 and number in self._pins:
                if new is None:
                    self._idle.add(number)
                if new is None and step:
                    self._put_blob(key, blob, 0)
                continue
            if references == 0:
                if new is None:
                    layer.put(Table.BLOBS, key, None)
                    live[blob.pack] = live.get(blob.pack, 0) - blob.stored_bytes
                    layer.put(Table.BLOB_IDS, blob.id, None)
                else:
                    self._forget_new(blob)
                    live.setdefault(blob.pack, 0)
                continue
            self._idle.discard(number)
            if new is not None or step:
                self._put_blob(key, blob, references)
            if new is not None:
                live[blob.pack] = live.get(blob.pack, 0) + blob.stored_bytes
        layer.references.clear()
        layer.let_go.clear()
        self._note_idle()
        return self._settle_packs(live)

    def _settle_replaced(self, live: dict[int, int]) -> None:
        for number, new in self.active.replaced_blobs.items():
            key = number_key(number)
            value = self.get(Table.BLOBS, key)
            if value is None:
                raise DamageError(f"blob {number} was appended anew but has no record", blob=number)
            old = records.decode_blob(value)
            self._put_blob(key, new, old.references)
            live[old.pack] = live.get(old.pack, 0) - old.stored_bytes
            live[new.pack] = live.get(new.pack, 0) + new.stored_bytes
        self.active.replaced_blobs.clear()

    def _note_idle(self) -> None:
        """Blobs that only pins keep are on record, so that they go at the next mount if the process dies before they are let go."""
        idle = sorted(self._idle)
        if idle != self._noted_idle:
            self.put(Table.META, records.META_IDLE, records.encode(idle) if idle else None)
            self._noted_idle = idle

    def _put_blob(self, key: bytes, blob: Blob, references: int) -> None:
        row = Blob(blob.id, blob.pack, blob.offset, blob.stored_bytes, blob.plain_bytes, references)
        self.active.put(Table.BLOBS, key, records.encode(row))

    def _forget_new(self, blob: Blob) -> None:
        rows = self.active.plain[Table.BLOB_IDS]
        del rows[blob.id]
        self.active.records -= 1
        if self.get(Table.BLOB_IDS, blob.id) is not None:
            self.active.put(Table.BLOB_IDS, blob.id, None)

    def _settle_packs(self, live: dict[int, int]) -> list[Pack]:
        dead: list[Pack] = []
        layer = self.active
        waiting = {blob.pack for n, blob in layer.new_blobs.items() if n in self._pins and number_key(n) not in layer.plain[Table.BLOBS]}
        for number, step in live.items():
            self.died_bytes += max(-step, 0)
            key = number_key(number)
            value = self.get(Table.PACKS, key)
            object_id, first_blob = layer.new_packs.get(number, (b"", records.EPOCH_MAX))
            if value is not None:
                old = records.decode_pack(value)
            else:
                old = Pack(object_id, 0, PackState.SEALED if number in self._sealed_early else PackState.OPEN, first_blob)
            pack = Pack(old.object_id, old.live_bytes + step, old.state, min(old.first_blob, first_blob))
            if pack.live_bytes < 0:
                raise DamageError(f"pack {number} would have {pack.live_bytes} live bytes", pack=number)
            if pack.live_bytes == 0 and pack.state == PackState.SEALED and number not in waiting:
                layer.put(Table.PACKS, key, None)
                self._sealed_early.discard(number)
                dead.append(pack)
            elif value is not None or step:
                layer.put(Table.PACKS, key, records.encode(pack))
        return dead


def _extents(table: Table, value: bytes) -> Sequence[Extent]:
    return () if value == TOMBSTONE or table not in _REFERRING else records.extents_of(table, value)


def _appended(layer: Layer) -> Iterator[Blob]:
    """Blobs of a layer that stand in packs and are in no row yet."""
    yield from layer.new_blobs.values()
    yield from layer.replaced_blobs.values()


def _elsewhere(blob: Blob, pack: int, offset: int, stored_bytes: int) -> Blob:
    return Blob(blob.id, pack, offset, stored_bytes, blob.plain_bytes, blob.references)
