"""The journal's end, when all goes well and when it does not; what a reader makes of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys
from backupfs.engine.recovery import chain
from backupfs.errors import DamageError, MissingObjectError, StoreError
from backupfs.format.journal import FrameKind, SegmentOpen
from backupfs.journal.segments import JournalReader, Position, Segment, open_segment_path, segment_name
from backupfs.journal.writer import JournalWriter
from backupfs.stores.local import LocalStore
from tests.crash.disk import SimulatedDisk
from tests.crash.faults import FaultyFiles
from tests.crash.simulation import SeededRandomness
from tests.unit.catalog.material import make_keys

ROOT = Path("/r")
OPEN = ROOT / "open"
FRAME = 4096
FIRST = SegmentOpen(0, 0, b"")
START = Position()


class Log:
    """A journal on a disk that may be told to fail."""

    def __init__(self) -> None:
        self.disk = SimulatedDisk()
        for directory in (ROOT, OPEN, ROOT / "journal"):
            self.disk.make_directory(directory)
        self.failing: Callable[[str, int], int | None] = lambda _operation, _number: None
        self.files = FaultyFiles(self.disk, self._verdict)
        self.keys = make_keys()
        self.compressor = Compressor(1, 1)
        self.store = LocalStore(ROOT, self.files)

    def _verdict(self, operation: str, number: int) -> int | None:
        return self.failing(operation, number)

    def writer(self, previous: SegmentOpen = FIRST, batch: int = 0, seed: object = 0) -> JournalWriter:
        return JournalWriter(OPEN, self.files, self.store, self.keys, self.compressor, SeededRandomness(seed), previous, batch)

    def reader(self, keys: Keys | None = None) -> JournalReader:
        return JournalReader(OPEN, self.disk, LocalStore(ROOT, self.disk), keys or self.keys, self.compressor)

    def fail_next(self, operation: str, code: int = 5) -> None:
        """The next call of this kind fails, once."""
        due = [True]

        def verdict(asked: str, _number: int) -> int | None:
            if asked == operation and due:
                due.clear()
                return code
            return None

        self.failing = verdict

    def read(self, start: Position = START) -> list[tuple[int, bytes]]:
        """(number, payload) of every batch that counts, as recovery finds them."""
        return [found for segment in self.chain(start) for found in batches(self.reader(), segment)]

    def chain(self, start: Position = START, torn: list[int] | None = None) -> list[Segment]:
        return list(chain(self.reader(), start, None, None, [] if torn is None else torn))

    def next_writer(self) -> JournalWriter:
        """What the next process starts with."""
        last = self.chain()[-1]
        number = max((number for number, _ in self.read()), default=0)
        opening = SegmentOpen(last.sequence, last.valid_bytes, self.reader().hash(last, last.valid_bytes))
        return self.writer(opening, number, f"after {last.sequence}")

    def put(self, sequence: int, content: bytes) -> None:
        """Give a segment in the store other bytes."""
        path = ROOT / segment_name(sequence)
        self.disk.unlink(path)
        handle = self.disk.create(path)
        self.disk.write_at(handle, 0, [content])
        self.disk.close(handle)

    def content(self, path: Path) -> bytes:
        handle = self.disk.open(path)
        data = self.disk.read_at(handle, 0, self.disk.size(handle))
        self.disk.close(handle)
        return data


def batches(reader: JournalReader, segment: Segment) -> list[tuple[int, bytes]]:
    return [(batch.position.batch, batch.payload) for batch in reader.batches(segment, 0)]


def payload(number: int) -> bytes:
    return b"batch %d " % number * (number * 40 % 700 + 1)


def test_batches_come_back_in_order() -> None:
    log = Log()
    writer = log.writer()
    assert writer.position == Position(0, 0, 0)
    for number in range(1, 6):
        position = writer.append(payload(number))
        assert position == writer.position
        assert position.segment == 1
        assert position.batch == number
        assert position.segment_bytes % FRAME == 0
        assert log.read() == [(n, payload(n)) for n in range(1, number + 1)]
    last = log.chain()[-1]
    assert log.reader().hash(last, writer.position.segment_bytes) == writer.last_hash()
    assert log.reader().sequences() == [(1, False)]


def test_closing_hands_the_segment_over() -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    writer.close()
    assert log.reader().sequences() == [(1, True)]
    assert log.chain()[0].frames[-1][1].kind == FrameKind.END
    assert log.reader().hash(log.chain()[0], writer.position.segment_bytes) == writer.last_hash()
    writer.close()
    assert log.reader().sequences() == [(1, True)]
    writer.append(payload(2))
    assert log.read() == [(1, payload(1)), (2, payload(2))]
    assert log.reader().sequences() == [(1, True), (2, False)]


def test_a_full_segment_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "JOURNAL_SEGMENT_TARGET_BYTES", 3 * FRAME)
    log = Log()
    writer = log.writer()
    for number in range(1, 8):
        writer.append(payload(number))
    assert [sequence for sequence, _ in log.reader().sequences()] == [1, 2, 3, 4]
    assert log.read() == [(n, payload(n)) for n in range(1, 8)]


def test_the_next_process_begins_a_segment_of_its_own() -> None:
    log = Log()
    first = log.writer()
    first.append(payload(1))
    second = log.next_writer()
    second.open(above=6)
    second.append(payload(2))
    assert log.reader().sequences() == [(1, False), (7, False)]
    assert log.read() == [(1, payload(1)), (2, payload(2))]


@pytest.mark.parametrize("operation", ["write_at", "sync"])
def test_after_a_failed_append_comes_a_new_segment(operation: str) -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    end = writer.position
    log.fail_next(operation)
    with pytest.raises(StoreError):
        writer.append(payload(2))
    assert writer.position == end
    calls = len(log.files.calls)
    writer.append(payload(2))
    assert log.files.calls[calls] == "create", "the failed file is not written to again"
    assert log.read() == [(1, payload(1)), (2, payload(2))]
    assert log.chain()[0].valid_bytes == end.segment_bytes


@pytest.mark.parametrize("operation", ["write_at", "sync"])
def test_closing_after_a_failed_append(operation: str) -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    log.fail_next(operation)
    with pytest.raises(StoreError):
        writer.append(payload(2))
    writer.close()
    assert log.next_writer().append(payload(2)).batch in (2, 3), "what failed may have become durable all the same"


def test_a_failed_end_is_passed_over() -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    log.fail_next("sync")
    with pytest.raises(StoreError):
        writer.close()
    writer.append(payload(2))
    assert log.read() == [(1, payload(1)), (2, payload(2))]


def test_a_segment_that_cannot_be_handed_over_stays_readable() -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    log.fail_next("rename")
    with pytest.raises(StoreError):
        writer.close()
    writer.append(payload(2))
    assert log.reader().sequences() == [(1, False), (2, False)]
    assert log.read() == [(1, payload(1)), (2, payload(2))]


@pytest.mark.parametrize("operation", ["create", "write_at", "sync", "sync_directory"])
def test_a_segment_that_cannot_be_begun_leaves_nothing(operation: str) -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    writer.close()
    log.fail_next(operation)
    with pytest.raises(StoreError):
        writer.append(payload(2))
    assert log.reader().sequences() == [(1, True)]
    assert writer.append(payload(2)).batch == 2
    assert log.read() == [(1, payload(1)), (2, payload(2))]


def test_where_a_journal_ends_is_known_although_a_segment_could_not_be_begun() -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    writer.close()
    end, digest = writer.position, writer.last_hash()
    log.fail_next("sync")
    with pytest.raises(StoreError):
        writer.append(payload(2))
    assert writer.position == end
    assert writer.last_hash() == digest


# --- what a reader finds ------------------------------------------------------------------------------------------------


def two_segments() -> tuple[Log, list[tuple[int, bytes]]]:
    """Two closed segments of three batches each."""
    log = Log()
    for number in (1, 4):
        writer = log.writer() if number == 1 else log.next_writer()
        for n in range(number, number + 3):
            writer.append(payload(n))
        writer.close()
    return log, [(n, payload(n)) for n in range(1, 7)]


def test_every_flipped_byte_is_found_or_costs_nothing() -> None:
    """In the last segment an end that does not hold is one that was never acknowledged; anything else is damage."""
    log, expected = two_segments()
    for sequence in (1, 2):
        whole = log.content(ROOT / segment_name(sequence))
        frames = [at for at, _ in log.chain()[sequence - 1].frames]
        closes_at = frames[-1]
        for place in [*range(0, len(whole), 61), *(at + k for at in frames for k in range(40)), len(whole) - 1]:
            log.put(sequence, whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
            if sequence == 2 and place >= closes_at:
                assert log.read() == expected, "only the end frame is lost, no batch"
            else:
                with pytest.raises(DamageError):
                    log.read()
        log.put(sequence, whole)
    assert log.read() == expected


def test_every_cut_of_the_last_segment_is_a_torn_tail_or_damage() -> None:
    log, expected = two_segments()
    whole = log.content(ROOT / segment_name(2))
    ends = [at for at, _ in log.chain()[1].frames[1:]]
    for size in range(0, len(whole), 97):
        log.put(2, whole[:size])
        kept = 3 + sum(end <= size for end in ends[1:])
        assert log.read() == expected[:kept]


def test_a_cut_in_a_segment_that_was_followed_is_damage() -> None:
    log, _ = two_segments()
    whole = log.content(ROOT / segment_name(1))
    for size in range(0, len(whole), FRAME // 2):
        log.put(1, whole[:size])
        with pytest.raises(DamageError):
            log.read()


def test_a_torn_tail_of_zeros_or_noise_counts_for_nothing() -> None:
    log, expected = two_segments()
    whole = log.content(ROOT / segment_name(2))
    for tail in (bytes(3 * FRAME), bytes(100), SeededRandomness(1).draw(2 * FRAME)):
        log.put(2, whole + tail)
        assert log.read() == expected


@pytest.mark.parametrize("missing", [1, 2])
def test_a_missing_segment_is_told(missing: int) -> None:
    log, expected = two_segments()
    writer = log.next_writer()
    writer.append(payload(7))
    writer.close()
    log.disk.unlink(ROOT / segment_name(missing))
    with pytest.raises(DamageError, match=f"segment {missing} is missing"):
        log.read()
    assert len(expected) == 6


def test_segments_cannot_change_places() -> None:
    log, _ = two_segments()
    first, second = (log.content(ROOT / segment_name(n)) for n in (1, 2))
    log.put(1, second)
    log.put(2, first)
    with pytest.raises(DamageError):
        log.read()


def test_another_end_of_the_same_length_is_not_taken() -> None:
    """A segment that holds by itself, but is not the one that its successor was written after."""
    log, other = Log(), Log()
    for here, text in ((log, b"one"), (other, b"two")):
        writer = here.writer()
        writer.append(text)
        writer.close()
    log.next_writer().append(b"further")
    log.put(1, other.content(ROOT / segment_name(1)))
    with pytest.raises(DamageError, match="successor"):
        log.read()


def test_a_segment_that_never_became_whole_is_passed_over() -> None:
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    for sequence, content in ((2, b""), (3, b"noise" * 100)):
        handle = log.disk.create(open_segment_path(OPEN, sequence))
        log.disk.write_at(handle, 0, [content])
        log.disk.close(handle)
    torn: list[int] = []
    assert [s.sequence for s in log.chain(torn=torn)] == [1]
    assert torn == [2, 3]


def test_replay_from_a_position_reads_what_is_behind_it() -> None:
    log, expected = two_segments()
    first = log.chain()[0]
    position = list(log.reader().batches(first, 0))[1].position
    found = [b for s in log.chain(position) for b in log.reader().batches(s, position.segment_bytes if s.sequence == 1 else 0)]
    assert [(b.position.batch, b.payload) for b in found] == expected[2:]
    assert log.read(Position(2, 8192, 4)) == expected[4:]


def test_a_position_in_a_segment_that_is_gone() -> None:
    log, _ = two_segments()
    log.disk.unlink(ROOT / segment_name(2))
    with pytest.raises(DamageError):
        log.chain(Position(2, 8192, 4))


def test_another_key_opens_nothing() -> None:
    log, _ = two_segments()
    with pytest.raises(DamageError):
        list(chain(log.reader(make_keys(bytes([9]) * 32)), START, None, None, []))


def test_a_segment_with_batches_is_not_passed_over_for_one_that_names_the_same_predecessor() -> None:
    """Two histories: which of them counts is for nobody to guess, wherever one reads on from."""
    log = Log()
    writer = log.writer()
    writer.append(payload(1))
    writer.close()
    closed = writer.closed
    assert closed is not None
    one = log.writer(closed, 1, "one")
    where = one.append(payload(2))
    other = log.writer(closed, 1, "other")
    other.open(above=2)
    for start in (START, where):
        with pytest.raises(DamageError, match="segment 1 is missing"):
            log.chain(start)
    log.disk.unlink(open_segment_path(OPEN, 2))
    begun = log.writer(closed, 1, "begun")
    begun.open()
    torn: list[int] = []
    assert [segment.sequence for segment in log.chain(torn=torn)] == [1, 3]
    assert torn == [2]


def test_what_lies_there_and_is_no_segment_is_left_alone() -> None:
    log, _ = two_segments()
    read = log.read()
    strays = [ROOT / "journal" / "xyz", ROOT / "journal" / ".DS_Store", OPEN / "journal-xyz", OPEN / "journal-0000000000000001 (copy)"]
    for stray in strays:
        log.disk.close(log.disk.create(stray))
    assert log.read() == read
    log.reader().make_open_durable()
    assert all(log.disk.exists(stray) for stray in strays)


def test_an_open_segment_that_vanishes() -> None:
    log, _ = two_segments()
    with pytest.raises(MissingObjectError):
        log.reader().load(3, in_store=False)


def test_a_first_frame_of_another_kind_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, body in ((FrameKind.BATCH, b"\x93\0\0\xc4\0"), (FrameKind.OPEN, b"\xc1 no MessagePack")):
        log = Log()
        writer = log.writer()
        real = JournalWriter._frame
        with monkeypatch.context() as patch:
            patch.setattr(
                JournalWriter, "_frame", lambda self, at, _kind, number, _payload, kind=kind, body=body, real=real: real(self, at, kind, number, body)
            )
            writer.open()
        writer.append(payload(1))
        with pytest.raises(DamageError, match="opening"):
            log.read()
