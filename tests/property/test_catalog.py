"""The rules by which versions come and go, against a model that keeps a whole copy of the tree for every snapshot.

Steps come in any order: writes, ends, writes as of an older epoch, snapshots taken, marked and purged in steps; batches frozen and applied to
a real index later; chunks stored, shared, pinned and moved to other packs before their batch is written. After each step every kept view is
compared, and reference counts, packs and leaks at the end.
"""

import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.catalog.catalog import Catalog, Layer
from backupfs.catalog.index import Index
from backupfs.engine.snapshots import Snapshots
from backupfs.errors import DamageError, FileSystemError
from backupfs.format import catalog as records
from backupfs.format.catalog import EPOCH_MAX, TOMBSTONE, Blob, Extent, PackState, Table, dentry_key, number_key, region_key
from backupfs.format.journal import Change
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

Object = tuple[Table, bytes]
State = dict[Object, bytes]

NAMES: list[Object] = [(Table.DENTRIES, dentry_key(parent, bytes([prf] * 16))) for parent in (1, 2) for prf in (0, 7, 0xFF)]
REGIONS: list[Object] = [(Table.REGIONS, region_key(data, region)) for data in (1, 2) for region in (0, 3)]
OBJECTS = NAMES + REGIONS
STORED = 10

KEYS = make_keys()


class VersionRules:
    """The catalog and the model, side by side. Every step draws what it does from `draw`."""

    def __init__(self, index: Index, draw: random.Random) -> None:
        self.index = index
        self.draw = draw
        self.catalog = Catalog(self.index, 1, 0)
        self.snapshots = Snapshots(self.catalog)
        self.present: State = {}
        self.kept: dict[int, tuple[int, State]] = {}
        self.next_serial = 1
        self.frozen: list[tuple[Layer, list[Change]]] = []
        self.purging: tuple[int, bytes] | None = None
        self.next_value = 0
        self.next_blob = 1
        self.held: list[int] = []
        self.reserved: list[int] = []
        self.lowest: dict[int, int] = {}
        self.places: dict[int, tuple[int, int]] = {}
        self.unsynced: set[int] = set()
        self.journal: dict[tuple[int, bytes], bytes] = {}
        """What all durable batches together say."""
        self.correcting: Layer | None = None
        """The index may not have what is durable before this layer is: it says where blobs stand now that durable batches have elsewhere."""
        self.open = [1, 2]
        self.packs: dict[int, bytes] = {1: b"pack 1", 2: b"pack 2"}
        self.sealed: set[int] = set()
        self.dead: Counter[bytes] = Counter()
        self.content: dict[int, bytes] = {}
        self.sizes: dict[int, int] = {}
        """Of those that were stored in another length than all others."""

    def step(self) -> None:
        """Something, and a look at everything."""
        act = self.draw.choice(ACTIONS)
        act(self)
        self.every_view_is_exact()
        self.listings_are_exact()

    # --- versions ---------------------------------------------------------------------------------------------------

    def write(self) -> None:
        self.put(self.draw.choice(NAMES), self.fresh())

    def end(self) -> None:
        self.put(self.draw.choice(OBJECTS), TOMBSTONE)

    def write_as_of_an_older_epoch(self) -> None:
        what = self.draw.choice(OBJECTS)
        value = self.fresh() if what in NAMES and self.draw.random() < 0.5 else TOMBSTONE
        self.put(what, value, max(self.catalog.epoch - self.draw.randint(0, 3), 1))

    def rewrite(self) -> None:
        """The same meaning in the version's own epoch."""
        what = self.draw.choice(OBJECTS)
        versions = self.catalog.versions(*what)
        if versions:
            self.catalog.rewrite(*what, *self.draw.choice(versions))

    def put(self, what: Object, value: bytes, epoch: int | None = None) -> None:
        versions = self.catalog.versions(*what)
        if len(versions) <= 1 and self.draw.random() < 0.5:
            self.put_over(what, value, epoch, versions)
        else:
            self.catalog.write(*what, value, epoch)
        set_in(self.present, what, value)
        for at, state in self.kept.values():
            if epoch is not None and at >= epoch:
                set_in(state, what, value)

    def put_over(self, what: Object, value: bytes, epoch: int | None, versions: list[tuple[int, bytes]]) -> None:
        """The same by somebody who knows all versions."""
        over, old = versions[0] if versions else (0, TOMBSTONE)
        refers = [records.extents_of(what[0], each) if each else [] for each in (old, value)]
        only = self.catalog.write_over(*what, value, over, (refers[0], refers[1]), epoch)
        left = [at for at, _ in self.catalog.versions(*what)]
        assert only == (None if len(left) > 1 else left[0] if left else 0)

    def fresh(self) -> bytes:
        self.next_value += 1
        return b"value %d" % self.next_value

    # --- snapshots --------------------------------------------------------------------------------------------------

    def take_snapshot(self) -> None:
        if len(self.kept) == 5:
            return
        serial = self.next_serial
        self.next_serial += 1
        self.kept[serial] = self.catalog.epoch, dict(self.present)
        self.snapshots.take(serial, serial, f"name {serial}", "test", "", [])

    def mark_deleted(self) -> None:
        name = f"name {self.draw.choice(sorted(self.kept))}" if self.kept else ""
        if self.snapshots.serial_of(name) is not None:
            self.snapshots.delete([name], 0)
            assert self.snapshots.serial_of(name) is None

    def begin_purge(self) -> None:
        if self.purging is not None or not self.snapshots.to_purge(0):
            return
        serial = self.snapshots.to_purge(0)[0]
        self.snapshots.begin_purge(serial)
        del self.kept[serial]
        with pytest.raises(FileSystemError):
            self.snapshots.epoch_of(serial)
        self.freeze()
        self.apply_all()
        self.purging = serial, b""

    def purge_step(self) -> None:
        if self.purging is None:
            return
        serial, start = self.purging
        _, following = self.snapshots.purge_step(serial, start)
        self.purging = None if following is None else (serial, following)
        if following is None:
            self.snapshots.end_purge(serial)

    # --- chunks -----------------------------------------------------------------------------------------------------

    def reserve_number(self) -> None:
        """Another thread has begun with a chunk; it may be done after those that began later."""
        self.reserved.append(self.next_blob)
        self.next_blob += 1

    def hold_chunk(self) -> None:
        """Store a chunk, new or seen before; it is pinned until something refers to it."""
        again, which = self.draw.randrange(6), self.draw.randrange(2)
        blob_id = b"chunk %d" % (again if again < 3 else 100 + self.next_blob)
        number = self.catalog.known_blob(blob_id)
        if number is None:
            if self.reserved and again % 2:
                number = self.reserved.pop()
            else:
                number = self.next_blob
                self.next_blob += 1
            self.content[number] = blob_id
            self.unsynced.add(number)
            pack = self.open[which]
            self.append(number, pack)
            self.catalog.add_pack(pack, *self.facts(pack))
            self.catalog.add_blob(number, Blob(blob_id, *self.places[number], STORED, 50, 0))
        assert self.content[number] == blob_id
        assert self.catalog.blob(number).id == blob_id
        assert self.catalog.pack_object_id(self.catalog.blob(number).pack) == self.packs[self.places[number][0]]
        self.catalog.pin(number)
        self.held.append(number)

    def refer(self) -> None:
        """Let a region consist of what is held and some more, and maybe of what it consisted of."""
        for _ in range(self.draw.randrange(3)):
            self.hold_chunk()
        what = self.draw.choice(REGIONS)
        old = self.present.get(what)
        extents = records.decode_region(old) if old is not None and self.draw.random() < 0.5 else []
        at = extents[-1][0] + 1 if extents else 0
        new: list[Extent] = [(at + i, 1, number, 0) for i, number in enumerate(self.held)]
        self.put(what, records.encode(extents + new) if extents + new else TOMBSTONE)
        self.let_go()

    def copy_elsewhere(self) -> None:
        """Append a known blob of a closed pack anew, as collection does it. It may have another length there."""
        closed = [blob for blob, (pack, _) in self.places.items() if pack in self.sealed and self.catalog.known_blob(self.content[blob]) == blob]
        if not closed:
            return
        number, pack = self.draw.choice(closed), self.open[self.draw.randrange(2)]
        self.catalog.pin(number)
        self.append(number, pack)
        self.unsynced.add(number)
        self.sizes[number] = self.draw.choice([STORED, STORED + 1])
        self.catalog.add_pack(pack, *self.facts(pack))
        self.catalog.replace_blob(number, *self.places[number], self.sizes[number])
        self.catalog.unpin(number)

    def let_go(self) -> None:
        for number in self.held:
            self.catalog.unpin(number)
        self.held.clear()

    def seal_pack(self) -> None:
        """A pack is full, everything in it synced: it is closed, another one is begun."""
        which = self.draw.randrange(2)
        number = self.open[which]
        if number not in self.lowest or any(self.places[blob][0] == number for blob in self.unsynced):
            return
        if self.catalog.names_pack(number):
            dead = self.catalog.pack_sealed(number)
            if dead is not None:
                self.dead[dead.object_id] += 1
            self.sealed.add(number)
        self.begin_pack(which)

    def begin_pack(self, which: int) -> None:
        number = max(self.packs) + 1
        self.packs[number] = b"pack %d" % number
        self.open[which] = number

    def append(self, blob: int, pack: int) -> None:
        self.lowest[pack] = min(self.lowest.get(pack, blob), blob)
        self.places[blob] = pack, 1000 * pack + blob

    def facts(self, pack: int) -> tuple[bytes, int]:
        return self.packs[pack], self.lowest[pack]

    # --- batches ----------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        layer, dead = self.catalog.freeze()
        for pack in dead:
            self.dead[pack.object_id] += 1
        self.frozen.append((layer, []))

    def make_durable(self) -> None:
        """Write the oldest batch that is not, with what is not synced or after it was; then one of its packs may fail, and that goes to the other."""
        position = next((i for i, (_, changes) in enumerate(self.frozen) if not changes), None)
        if position is None:
            return
        layer = self.frozen[position][0]
        if self.draw.random() < 0.5:
            self.sync(layer)
        changes = list(layer.changes())
        for table, key, value in changes:
            if value is None:
                self.journal.pop((table, key), None)
            else:
                self.journal[table, key] = value
        self.frozen[position] = layer, [*changes, (Table.META, b"mark", b"")]
        if self.correcting is layer:
            self.correcting = None

    def sync(self, layer: Layer) -> bool:
        """Whether it went well. If not, blobs have moved, and `layer` and those after it say so."""
        fails = self.draw.choice([None, None, 0, 1])
        lost: list[int] = []
        if fails is not None:
            left = self.open[fails]
            lost = [blob for blob in sorted(self.unsynced) if self.places[blob][0] == left]
            self.begin_pack(fails)
            for blob in lost:
                self.append(blob, self.open[1 - fails])
                self.catalog.repeat_blob(layer, blob)
            for blob in lost:
                pack, offset = self.places[blob]
                self.catalog.move_blob(layer, blob, left, pack, offset, self.sizes.get(blob, STORED), self.facts(pack))
        self.unsynced.clear()
        return not lost

    def join(self) -> None:
        """Two durable batches that the index does not have yet become one."""
        durable = [i for i, (_, changes) in enumerate(self.frozen) if changes]
        if len(durable) > 1:
            at = self.draw.choice(durable[:-1])
            older, newer = self.frozen[at][0], self.frozen.pop(at + 1)[0]
            self.catalog.join_layers(older, newer)
            self.frozen[at] = older, [*older.changes(), (Table.META, b"mark", b"")]

    def apply(self) -> None:
        if not self.frozen or not self.frozen[0][1] or self.correcting is not None:
            return
        if self.unsynced:
            layer = next((layer for layer, changes in self.frozen if not changes), self.catalog.active)
            if not self.sync(layer):
                self.correcting = layer
                return
        layer, changes = self.frozen.pop(0)
        self.index.apply([((1, 1, 1), changes)])
        self.catalog.drop_layer(layer)

    def apply_all(self) -> None:
        while self.frozen:
            if self.correcting is self.catalog.active:
                self.freeze()
            self.make_durable()
            self.apply()

    # --- what holds -------------------------------------------------------------------------------------------------

    def every_view_is_exact(self) -> None:
        for epoch, state in [(EPOCH_MAX, self.present), *self.kept.values()]:
            for what in OBJECTS:
                assert self.catalog.value(*what, epoch) == state.get(what)

    def listings_are_exact(self) -> None:
        for epoch, state in [(EPOCH_MAX, self.present), *self.kept.values()]:
            for table, group, after in [(Table.DENTRIES, 1, NAMES[0][1]), (Table.DENTRIES, 2, b""), (Table.REGIONS, 1, b"")]:
                start = after or number_key(group)
                listed = list(self.catalog.scan(table, number_key(group), start, epoch))
                expected = [(k, v) for (t, k), v in state.items() if t is table and k.startswith(number_key(group)) and k > start]
                assert listed == sorted(expected)

    def end_everything(self) -> None:
        """Nobody holds anything, no snapshot is left; then every object is written once more, outside any purge's way."""
        self.let_go()
        self.freeze()
        self.apply_all()
        self.counts_are_right()
        for info in self.snapshots.kept():
            self.snapshots.delete([info.name], 0)
        while self.purging or self.snapshots.to_purge(0):
            self.begin_purge()
            self.purge_step()
        self.nothing_is_left_over()
        for what in NAMES:
            self.put(what, self.fresh())
        for what in REGIONS:
            self.put(what, TOMBSTONE)
        self.nothing_is_left_over()

    def nothing_is_left_over(self) -> None:
        self.freeze()
        self.apply_all()
        self.counts_are_right()
        self.every_view_is_exact()
        left = {what: self.catalog.versions(*what) for what in OBJECTS}
        assert {what: [value for _, value in versions] for what, versions in left.items() if versions} == {
            what: [value] for what, value in self.present.items()
        }, "versions are left that nobody sees"

    def counts_are_right(self) -> None:
        """Everything counted anew from the rows of the index, which are the journal's. No batch is waiting."""
        assert self.journal == {(t, k): v for t in Table if t is not Table.CHANGES for k, v in self.rows(t) if (t, k) != (Table.META, b"mark")}
        versions = [(table, key, value) for table in (Table.DENTRIES, Table.REGIONS) for key, value in self.rows(table)]
        rows = {records.split_change(key) for key, _ in self.index.scan(Table.CHANGES, b"")}
        assert rows == {(records.split_version(key)[1], table, records.split_version(key)[0]) for table, key, _ in versions}
        counted = Counter(extent[2] for table, _, value in versions if table is Table.REGIONS and value for extent in records.decode_region(value))
        blobs = {records.number_of(key): records.decode_blob(value) for key, value in self.rows(Table.BLOBS)}
        assert {number: blob.references for number, blob in blobs.items()} == dict(counted)
        assert {number: (blob.pack, blob.offset) for number, blob in blobs.items()} == {n: self.places[n] for n in blobs}
        ids = {key: records.decode_number(value) for key, value in self.rows(Table.BLOB_IDS)}
        assert ids == {self.content[number]: number for number in blobs}
        live = Counter[int]()
        for blob in blobs.values():
            live[blob.pack] += blob.stored_bytes
        packs = {records.number_of(key): records.decode_pack(value) for key, value in self.rows(Table.PACKS)}
        assert {number: pack.live_bytes for number, pack in packs.items() if pack.live_bytes} == dict(live)
        for number, pack in packs.items():
            assert pack.object_id == self.packs[number]
            assert (pack.state == PackState.SEALED) == (number in self.sealed)
            assert pack.live_bytes or number not in self.sealed, "a closed pack that nothing lives in is dropped"
            assert all(n >= pack.first_blob for n, blob in blobs.items() if blob.pack == number)
        assert {self.packs[number] for number in self.sealed if number not in packs} == set(self.dead)
        assert max(self.dead.values(), default=1) == 1

    def rows(self, table: Table) -> list[tuple[bytes, bytes]]:
        return [(key, self.index.open_record(table, key, sealed)) for key, sealed in self.index.scan(table, b"")]


def set_in(state: State, what: Object, value: bytes) -> None:
    if value == TOMBSTONE:
        state.pop(what, None)
    else:
        state[what] = value


WEIGHTS = {
    VersionRules.write: 10,
    VersionRules.end: 4,
    VersionRules.write_as_of_an_older_epoch: 3,
    VersionRules.rewrite: 1,
    VersionRules.take_snapshot: 5,
    VersionRules.mark_deleted: 3,
    VersionRules.begin_purge: 3,
    VersionRules.purge_step: 6,
    VersionRules.reserve_number: 2,
    VersionRules.hold_chunk: 4,
    VersionRules.refer: 8,
    VersionRules.let_go: 1,
    VersionRules.seal_pack: 3,
    VersionRules.copy_elsewhere: 3,
    VersionRules.freeze: 3,
    VersionRules.make_durable: 4,
    VersionRules.apply: 4,
    VersionRules.join: 2,
    VersionRules.end_everything: 1,
}
ACTIONS = [action for action, weight in WEIGHTS.items() for _ in range(weight)]
RUNS = 25
STEPS = 200


@pytest.mark.slow
def test_views_counts_and_leaks_against_whole_copies(tmp_path: Path, seed: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PURGE_RECORDS_PER_STEP", 2)
    for number in range(int(RUNS * scale)):
        name = f"{seed}/{number}"
        index = Index(tmp_path / str(number), KEYS, SeededRandomness(name))
        rules = VersionRules(index, random.Random(name))
        try:
            for _ in range(STEPS):
                rules.step()
            rules.end_everything()
        except BaseException as error:
            error.add_note(f"run {name}")
            raise
        finally:
            index.close()
            shutil.rmtree(tmp_path / str(number))


def test_rewriting_what_is_not_there(tmp_path: Path) -> None:
    index = Index(tmp_path, KEYS, SeededRandomness(0))
    catalog = Catalog(index, 3, 0)
    catalog.write(*NAMES[0], b"value", 2)
    for what, epoch in [(NAMES[0], 3), (NAMES[1], 2)]:
        with pytest.raises(DamageError, match="not there"):
            catalog.rewrite(*what, epoch, b"other")
    index.close()
