"""Packs as they are written: full ones make way, failed ones are given up and what they held goes elsewhere."""

import errno
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.blobs.packs import Location, NewBlob, OpenPack, PackWriter, finish_abandoned, pack_name
from backupfs.blobs.reader import BlobReader
from backupfs.codec.compression import Compressor
from backupfs.errors import StoreError
from backupfs.format import objects
from backupfs.format import pack as pack_format
from backupfs.format.catalog import Blob, Counters
from backupfs.format.layout import Sealed
from backupfs.format.objects import HEADER_BYTES, PACK_MAGIC
from backupfs.format.pack import END_BYTES, FOOTER_BYTES, PackEntry
from backupfs.stores.files import Handle
from backupfs.stores.local import LocalStore
from tests.crash.disk import Op, SimulatedDisk
from tests.crash.faults import FaultyFiles
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

ROOT = Path("/r")
OPEN = ROOT / "open"


class Packs:
    """A writer, a reader, and what each blob was."""

    def __init__(self, seed: object = 0) -> None:
        self.disk = SimulatedDisk()
        for directory in (ROOT, OPEN):
            self.disk.make_directory(directory)
        self.failing: Callable[[str, int], int | None] = lambda _operation, _number: None
        self.files = FaultyFiles(self.disk, self._verdict)
        self.keys = make_keys()
        self.compressor = Compressor(1, 1)
        self.randomness = SeededRandomness(seed)
        self.store = LocalStore(ROOT, self.files)
        self.counters = Counters(1, 1, 1, 1, 1, 1)
        self.writer = PackWriter(OPEN, self.files, self.store, self.keys, self.compressor, self.randomness, self.counters)
        self.reader = BlobReader(OPEN, self.disk, LocalStore(ROOT, self.disk), self.keys, self.compressor)
        self.plain: dict[int, bytes] = {}
        self.places: dict[int, Location] = {}
        self.names: dict[int, bytes] = {}

    def _verdict(self, operation: str, number: int) -> int | None:
        return self.failing(operation, number)

    def append(self, *plains: bytes) -> list[int]:
        numbers = list(range(self.counters.blob, self.counters.blob + len(plains)))
        self.counters.blob += len(plains)
        blobs = [NewBlob(n, self.keys.blob_id(p), p) for n, p in zip(numbers, plains, strict=True)]
        for number, place in zip(numbers, self.writer.append(blobs), strict=True):
            self.places[number] = self.writer.claim([(number, place)])[0]
            self.plain[number] = plains[number - numbers[0]]
            facts = self.writer.facts(place.pack)
            if facts is not None:
                self.names[place.pack] = facts[0]
        return numbers

    def sync(self) -> dict[int, Location]:
        told = self.writer.sync()
        moved = {number: move.place for number, move in told.items()}
        for number, place in moved.items():
            assert number not in self.places or self.places[number].pack == told[number].left, "it left the pack that its owner knows"
            self.places[number] = place
            facts = self.writer.facts(place.pack)
            assert facts is not None
            self.names[place.pack] = facts[0]
            assert facts[1] <= number
        return moved

    def read(self, number: int) -> bytes:
        place, plain = self.places[number], self.plain[number]
        blob = Blob(self.keys.blob_id(plain), place.pack, place.offset, place.stored_bytes, len(plain), 1)
        return self.reader.read(blob, self.names[place.pack])

    def check(self) -> None:
        for number, plain in self.plain.items():
            assert self.read(number) == plain

    def close_full(self) -> list[OpenPack]:
        full = self.writer.full_packs()
        for pack in full:
            self.writer.close(pack)
            self.reader.forget(pack.object_id)
        return full

    def fail(self, *kinds: str, times: int = 1, after: int = 0) -> None:
        """The next `times` calls of these kinds fail, after so many that do not."""
        left = [after, times]

        def verdict(operation: str, _number: int) -> int | None:
            if operation not in kinds:
                return None
            if left[0]:
                left[0] -= 1
                return None
            if left[1]:
                left[1] -= 1
                return errno.EIO
            return None

        self.failing = verdict

    def entries(self, object_id: bytes) -> list[PackEntry]:
        """What the end of a closed pack lists."""
        name = pack_name(object_id)
        whole = self.store.get(name)
        header = objects.decode(whole[-HEADER_BYTES:], PACK_MAGIC, "end")
        sealer = self.keys.object_sealer(header, object_id)
        at = len(whole) - END_BYTES
        footer = pack_format.decode_footer(sealer.open(Sealed.PACK_FOOTER, at, whole[at : at + FOOTER_BYTES]), len(whole))
        sealed = whole[footer.trailer_offset : footer.trailer_offset + footer.trailer_bytes]
        return pack_format.decode_trailer(sealer.open(Sealed.PACK_TRAILER, footer.trailer_offset, sealed), footer)


@pytest.fixture
def packs() -> Packs:
    return Packs()


def noise(seed: int, size: int = 1000) -> bytes:
    return random.Random(seed).randbytes(size)


def test_blobs_come_back_from_open_and_closed_packs(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 5000)
    for number in range(40):
        packs.append(noise(number, 300 + 90 * number), b"text " * number + b"!")
        packs.check()
        if number % 3 == 0:
            assert packs.sync() == {}
            packs.close_full()
    assert packs.counters.pack > 8
    packs.sync()
    for pack in packs.writer.finish():
        packs.writer.close(pack)
        packs.reader.forget(pack.object_id)
    packs.check()
    assert packs.disk.list(OPEN) == []
    listed = {entry.blob_id for object_id in packs.names.values() for entry in packs.entries(object_id)}
    assert listed == {packs.keys.blob_id(plain) for plain in packs.plain.values()}
    packs.reader.close()


def test_small_appends_of_a_commit_share_a_pack_and_large_ones_are_spread(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        packs.append(noise(number))
    assert len(packs.writer.full_packs()) == 0
    assert {place.pack for place in packs.places.values()} == {1}
    monkeypatch.setattr(limits, "FLUSH_SMALL_BYTES", 20_000)
    packs.append(*(noise(100 + n, 2000) for n in range(20)))
    assert {place.pack for place in packs.places.values()} == {1, 2}
    packs.check()


def test_a_full_pack_waits_until_it_is_synced_and_claimed(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 500)
    blob = NewBlob(1, packs.keys.blob_id(b"x" * 40), noise(1))
    [place] = packs.writer.append([blob])
    assert packs.writer.full_packs() == []
    packs.writer.sync()
    assert packs.writer.full_packs() == []
    packs.writer.claim([(1, place)])
    [pack] = packs.writer.full_packs()
    assert packs.writer.is_open(pack)
    packs.writer.close(pack)
    assert not packs.writer.is_open(pack)
    assert packs.writer.facts(pack.number) is None


def test_a_pack_is_full_with_so_many_blobs_however_small(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each its entry is held until the pack is closed. The bound is a small one, so that it is met several times."""
    monkeypatch.setattr(limits, "PACK_BLOBS_MAX", 20)
    closed: list[OpenPack] = []
    for number in range(0, 100, 5):
        packs.append(*(b"%d" % blob for blob in range(number, number + 5)))
        packs.sync()
        closed += packs.close_full()
    assert [len(packs.entries(pack.object_id)) for pack in closed] == [20] * len(closed)
    assert len(closed) >= 100 // 20 - limits.OPEN_PACKS + 1, "of the others each is still open"
    packs.check()


def test_much_unsynced_is_known_and_can_be_synced_by_itself(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PACK_UNSYNCED_BYTES", 3000)
    for number in range(10):
        packs.append(noise(number))
        assert packs.writer.much_unsynced() == (number % 3 == 2)
        if packs.writer.much_unsynced():
            packs.writer.sync_much()
        assert not packs.writer.much_unsynced()
    assert sum(event.op is Op.SYNC for event in packs.disk.log) == 1 + 3  # a new pack is synced once
    for number in range(10, 14):
        packs.append(noise(number))
    packs.fail("sync")
    packs.writer.sync_much()
    assert not packs.writer.much_unsynced(), "it has failed: its blobs have to move"
    assert packs.sync() != {}
    packs.check()


def test_a_pack_that_fills_up_need_not_wait_for_a_batch(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the next batch there may be many of them, and what is unsynced stays in memory."""
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 5000)
    for number in range(40):
        packs.append(noise(number))
    assert packs.writer.full_packs() == []
    assert packs.writer.much_unsynced()
    packs.writer.sync_much()
    assert not packs.writer.much_unsynced()
    full = packs.writer.full_packs()
    assert len(full) > 5
    assert sum(event.op is Op.SYNC for event in packs.disk.log) == len(packs.names) + len(full)  # a new pack is synced once
    packs.check()


@pytest.mark.parametrize("kind", ["write_at", "create"])
def test_a_failed_append_counts_for_nothing(packs: Packs, kind: str) -> None:
    packs.append(noise(1))
    packs.sync()
    if kind == "create":
        for pack in packs.writer.finish():
            packs.writer.close(pack)
            packs.reader.forget(pack.object_id)
    packs.fail(kind)
    with pytest.raises(StoreError):
        packs.append(noise(2))
    packs.append(noise(3))
    packs.sync()
    packs.check()
    assert all(entry.blob_id != packs.keys.blob_id(noise(2)) for pack in packs.writer.finish() for entry in pack.entries)


def test_a_header_that_cannot_be_written_leaves_no_file(packs: Packs) -> None:
    packs.fail("write_at")
    with pytest.raises(StoreError):
        packs.append(noise(1))
    assert packs.disk.list(OPEN) == []
    packs.append(noise(1))
    packs.check()


def test_part_of_an_append_failing_leaves_no_claim_open(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FLUSH_SMALL_BYTES", 5000)
    packs.append(*(noise(n) for n in range(12)))
    packs.fail("write_at", after=1)
    with pytest.raises(StoreError):
        packs.append(*(noise(n) for n in range(50, 62)))
    packs.sync()
    for pack in packs.writer.finish():
        assert not pack.unclaimed


def test_what_moves_before_it_is_noted_keeps_its_new_pack_open(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another's commit moves a blob that was just appended; the pack it gets to is full, and waits for it to be noted."""
    blob = NewBlob(1, packs.keys.blob_id(noise(1)), noise(1))
    [place] = packs.writer.append([blob])
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 500)
    packs.fail("sync")
    moved = packs.sync()
    assert packs.writer.full_packs() == []
    assert packs.writer.claim([(1, place)])[0] == moved[1]
    assert packs.writer.claim([(1, place)])[0] == place, "it is told once: the blob may be appended again"
    assert [pack.number for pack in packs.writer.full_packs()] == [moved[1].pack]


def test_what_nobody_will_note_is_dropped(packs: Packs) -> None:
    blobs = [NewBlob(n, packs.keys.blob_id(noise(n)), noise(n)) for n in (1, 2)]
    places = packs.writer.append(blobs)
    packs.fail("sync")
    packs.writer.sync()
    packs.writer.disclaim({1})
    assert packs.writer.claim([(1, places[0])])[0] == places[0]
    packs.fail("sync")
    assert set(packs.writer.sync()) <= {2}
    packs.counters.blob = 10
    packs.append(noise(3))
    packs.fail("sync")
    assert 1 not in packs.writer.sync()


@pytest.mark.parametrize("kind", ["sync", "sync_directory"])
def test_a_pack_that_is_not_there_for_good_takes_nothing(packs: Packs, kind: str) -> None:
    packs.fail(kind)
    with pytest.raises(StoreError):
        packs.append(noise(1))
    assert packs.disk.list(OPEN) == []
    packs.counters.blob = 1
    assert packs.append(noise(1)) == [1]
    mark = len(packs.disk.log)
    packs.sync()
    assert [event.op for event in packs.disk.log[mark:]] == [Op.SYNC]


@pytest.mark.parametrize("times", [1, 2])
def test_what_could_not_be_synced_moves(packs: Packs, times: int) -> None:
    """The second time it is the new pack that cannot be made."""
    numbers = packs.append(noise(1), b"text " * 100)
    before = dict(packs.places)
    packs.fail("sync", times=times)
    moved = packs.sync()
    assert set(moved) == set(numbers)
    assert all(moved[n].pack != before[n].pack for n in numbers)
    packs.check()
    given_up = [pack for pack in packs.writer._open if pack.failed]
    assert len(given_up) == 1
    assert packs.sync() == {}, "told once"


def test_a_failed_pack_is_never_used_again(packs: Packs) -> None:
    packs.append(noise(1))
    packs.fail("sync", after=1)
    packs.sync()
    packs.writer._favourite = 0
    packs.append(noise(2))
    packs.sync()
    [failed] = [pack for pack in packs.writer._open if pack.failed]
    mark = len(packs.disk.log)
    packs.append(noise(3))
    packs.sync()
    packs.close_full()
    assert failed not in packs.writer.finish()
    assert not packs.writer.is_open(failed)
    for pack in packs.writer._open:
        packs.writer.close(pack)
    node = next(event.node for event in packs.disk.log if event.op is Op.SYNC_FAILED)
    assert all(event.node != node for event in packs.disk.log[mark:] if event.op in (Op.WRITE, Op.SYNC))
    assert packs.read(1) == noise(1), "what it held before stays there"


def test_three_failures_in_a_row_are_told_and_nothing_is_forgotten(packs: Packs) -> None:
    packs.append(noise(1))
    packs.fail("sync", times=3)
    with pytest.raises(StoreError, match="three different packs"):
        packs.sync()
    moved = packs.sync()
    assert set(moved) == {1}
    packs.check()


@pytest.mark.parametrize("number", range(30))
def test_after_any_faults_everything_is_where_the_last_sync_said(seed: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random appends, syncs and closings under random failures of writes and syncs; then a power cut takes what was not synced."""
    monkeypatch.setattr(limits, "PACK_TARGET_BYTES", 6000)
    monkeypatch.setattr(limits, "FLUSH_SMALL_BYTES", 3000)
    monkeypatch.setattr(limits, "PACK_UNSYNCED_BYTES", 5000)
    draw = random.Random(f"{seed}/{number}")
    packs = Packs(f"{seed}/{number}")
    rate = draw.choice([0.05, 0.2, 0.5])
    packs.failing = lambda operation, _number: (
        errno.EIO if operation in ("sync", "sync_directory", "write_at", "rename") and draw.random() < rate else None
    )
    durable: set[int] = set()
    for step in range(60):
        try:
            if draw.random() < 0.7:
                packs.append(*(noise(step * 100 + n, draw.choice([1, 500, 2500])) for n in range(draw.randint(1, 4))))
            else:
                packs.sync()
                durable = set(packs.plain)
                for pack in packs.writer.full_packs():
                    try:
                        packs.writer.close(pack)
                    except StoreError:
                        packs.writer.give_up(pack)
                    packs.reader.forget(pack.object_id)
        except StoreError:
            continue
        for blob in durable:
            assert packs.read(blob) == packs.plain[blob]
        packs.check()
    packs.failing = lambda _operation, _number: None
    packs.sync()
    lost = synced_only(packs.disk)
    packs.reader.close()
    packs.reader = BlobReader(OPEN, lost, LocalStore(ROOT, lost), packs.keys, packs.compressor)
    packs.check()


def synced_only(disk: SimulatedDisk) -> SimulatedDisk:
    """The disk after a power cut that takes everything unsynced, and with it what was written around a failed sync."""
    files = dict.fromkeys(disk.image().files, b"")
    pending: dict[int, list[tuple[int, bytes]]] = {}
    for event in disk.log:
        if event.op is Op.WRITE:
            pending.setdefault(event.node, []).append((event.offset, event.data))
        elif event.op is Op.SYNC:
            for offset, data in pending.pop(event.node, []):
                old = files.get(event.node, b"").ljust(offset, b"\0")
                files[event.node] = old[:offset] + data + old[offset + len(data) :]
        elif event.op is Op.SYNC_FAILED:
            pending.pop(event.node, None)
    image = disk.image()
    return SimulatedDisk(type(image)({node: files[node] for node in image.files}, image.directories))


def test_an_open_pack_can_be_discarded_or_left(packs: Packs) -> None:
    packs.append(noise(1))
    packs.sync()
    [pack] = packs.writer.finish()
    packs.writer.discard(pack)
    assert packs.disk.list(OPEN) == []
    packs.append(noise(2))
    [pack] = packs.writer.finish()
    packs.writer.give_up(pack)
    assert packs.disk.list(OPEN) == [pack.object_id.hex()]


def test_what_a_dead_process_left_is_finished_under_a_fresh_key(packs: Packs) -> None:
    packs.append(noise(1), noise(2), noise(3))
    packs.sync()
    [pack] = packs.writer.finish()
    handle = packs.disk.open(pack.path)
    source = packs.disk.read_at(handle, 0, 1 << 20)
    packs.disk.close(handle)
    kept = pack.entries[:2]
    parts = finish_abandoned(source + b"torn", kept, pack.object_id, packs.keys, packs.randomness)
    packs.store.put(pack_name(pack.object_id), b"".join(parts))
    assert packs.entries(pack.object_id) == kept
    whole = packs.store.get(pack_name(pack.object_id))
    assert whole[:HEADER_BYTES] == source[:HEADER_BYTES] != whole[-HEADER_BYTES:]
    packs.disk.unlink(pack.path)
    packs.reader.forget(pack.object_id)
    assert [packs.read(n) for n in (1, 2)] == [noise(1), noise(2)]
    empty = finish_abandoned(source, [], pack.object_id, packs.keys, packs.randomness)
    assert len(empty[0]) == HEADER_BYTES


def handles_left(disk: SimulatedDisk) -> list[Handle]:
    return list(disk._open)


def test_no_handle_is_left_open(packs: Packs) -> None:
    packs.append(noise(1))
    packs.sync()
    packs.check()
    for pack in packs.writer.finish():
        packs.writer.close(pack)
        packs.reader.forget(pack.object_id)
    packs.check()
    packs.reader.close()
    assert handles_left(packs.disk) == []


def small(packs: Packs, *plains: bytes) -> list[int]:
    """Append without a file being written."""
    numbers = list(range(packs.counters.blob, packs.counters.blob + len(plains)))
    packs.counters.blob += len(plains)
    blobs = [NewBlob(n, packs.keys.blob_id(p), p) for n, p in zip(numbers, plains, strict=True)]
    mark = len(packs.disk.log)
    places = packs.writer.append_small(blobs)
    assert places is not None
    assert len(packs.disk.log) == mark
    places = packs.writer.claim(list(zip(numbers, places, strict=True)))
    for number, place, plain in zip(numbers, places, plains, strict=True):
        packs.places[number] = place
        packs.plain[number] = plain
        packs.names[place.pack] = packs.writer.facts(place.pack)[0]  # type: ignore[index]
    return numbers


def packs_with_both_open(seed: object = 0) -> Packs:
    packs = Packs(seed)
    while len(packs.names) < limits.OPEN_PACKS:
        packs.append(b"begin")
        packs.sync()
    return packs


def test_without_a_pack_small_blobs_need_a_thread() -> None:
    packs = Packs()
    assert packs.writer.append_small([NewBlob(1, packs.keys.blob_id(b"x"), b"x")]) is None


def test_much_to_be_synced_needs_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    packs = packs_with_both_open()
    small(packs, b"x" * 100)
    monkeypatch.setattr(limits, "PACK_UNSYNCED_BYTES", 10)
    assert packs.writer.append_small([NewBlob(99, packs.keys.blob_id(b"y"), b"y")]) is None


def test_small_blobs_are_kept_back_carried_once_and_written_together() -> None:
    packs = packs_with_both_open()
    numbers = small(packs, b"one", b"two" * 50)
    place = packs.places[numbers[0]]
    kept = packs.writer.kept_back(place.pack, place.offset)
    assert kept is not None
    sealer, sealed = kept
    assert sealer.open(Sealed.BLOB, place.offset, sealed, 3) == b"one"
    first = packs.writer.carry(1000)
    assert first is not None
    assert [(c.object_id, c.offset) for c in first] == [(packs.names[packs.places[n].pack], packs.places[n].offset) for n in numbers]
    assert packs.writer.carry(1000) == first, "the batch was not written"
    packs.writer.carried()
    numbers += small(packs, b"three")
    assert [c.offset for c in packs.writer.carry(1000) or ()] == [packs.places[numbers[2]].offset]
    mark = len(packs.disk.log)
    assert packs.sync() == {}
    assert [event.op for event in packs.disk.log[mark:]] == [Op.WRITE, Op.SYNC]
    assert packs.writer.kept_back(place.pack, place.offset) is None
    assert packs.writer.carry(0) == []
    packs.check()


def test_gaps_between_small_blobs_are_left_to_who_writes_there() -> None:
    packs = packs_with_both_open()
    numbers = small(packs, b"one")
    packs.append(b"between" * 10)
    numbers += small(packs, b"two")
    packs.sync()
    packs.check()


def test_more_than_may_be_carried_is_not() -> None:
    packs = packs_with_both_open()
    small(packs, b"x" * 30)
    assert packs.writer.carry(30) is None
    assert packs.writer.carry(46) is not None


def test_what_a_failed_pack_keeps_is_not_carried_but_moved() -> None:
    packs = packs_with_both_open()
    (number,) = small(packs, b"small")
    left = packs.places[number].pack
    packs.fail("write_at", times=1)
    moved = packs.sync()
    assert list(moved) == [number]
    assert packs.places[number].pack != left
    packs.check()


def test_a_pack_that_a_sync_and_a_move_have_failed_for_is_carried_by_nobody() -> None:
    packs = packs_with_both_open()
    small(packs, b"small")
    packs.fail("write_at", times=3)
    with pytest.raises(StoreError):
        packs.sync()
    assert packs.writer.carry(1000) is None
    packs.sync()
    packs.check()


def test_nobody_needs_small_blobs_that_were_disclaimed() -> None:
    packs = packs_with_both_open()
    (number,) = small(packs, b"small")
    place = packs.places.pop(number)
    packs.writer.disclaim([number])
    assert packs.writer.kept_back(place.pack, place.offset) is None
    assert packs.writer.carry(0) == []


def test_a_pack_is_closed_with_what_it_keeps_back() -> None:
    packs = packs_with_both_open()
    small(packs, b"small")
    for pack in packs.writer.finish():
        packs.writer.close(pack)
    packs.check()


def test_a_pack_that_is_let_go_of_keeps_nothing_back() -> None:
    packs = packs_with_both_open()
    (number,) = small(packs, b"small")
    place = packs.places[number]
    for pack, end in zip(packs.writer.finish(), (packs.writer.give_up, packs.writer.discard), strict=True):
        end(pack)
    assert packs.writer.kept_back(place.pack, place.offset) is None
