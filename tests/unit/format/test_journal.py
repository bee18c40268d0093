import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs import limits
from backupfs.errors import DamageError
from backupfs.format import journal
from backupfs.format.journal import Carried, Change, FrameHead, FrameKind
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, padme
from backupfs.format.objects import HEADER_BYTES

TABLES = st.integers(1, 255).filter(lambda table: table != 13)
CARRIED = st.lists(st.builds(Carried, st.binary(min_size=16, max_size=16), st.integers(0, 2**64 - 1), st.binary(min_size=1, max_size=60)), max_size=9)
CHANGES = st.lists(st.tuples(TABLES, st.binary(max_size=60), st.none() | st.binary(max_size=300)), max_size=60)


@given(st.sampled_from(FrameKind), st.integers(17, limits.JOURNAL_FRAME_MAX_BYTES), st.integers(0, 2**64 - 1))
def test_heads(kind: FrameKind, body_bytes: int, number: int) -> None:
    plain = journal.encode_head(FrameHead(kind, body_bytes, number))
    assert len(plain) == journal.HEAD_PLAIN_BYTES == journal.HEAD_BYTES - SEAL_OVERHEAD_BYTES
    assert journal.decode_head(plain) == FrameHead(kind, body_bytes, number)


@pytest.mark.parametrize("plain", [b"\0" * 16, b"\4" + b"\0" * 6 + b"\x20" + b"\0" * 8, b"\1\0\0\0\xff\xff\xff\xff" + b"\0" * 8])
def test_heads_that_no_writer_makes(plain: bytes) -> None:
    with pytest.raises(DamageError):
        journal.decode_head(plain)


@given(st.integers(0, 1000), st.binary(max_size=9000), st.integers(0, 1000), st.booleans())
def test_a_frame_ends_on_a_boundary(start: int, stored: bytes, saved: int, pad_segment: bool) -> None:
    offset = HEADER_BYTES if start == 0 else start * limits.JOURNAL_FRAME_BYTES
    plain = journal.encode_body(offset, stored, len(stored) + saved, pad_segment)
    end = offset + journal.HEAD_BYTES + len(plain) + SEAL_OVERHEAD_BYTES
    assert end % limits.JOURNAL_FRAME_BYTES == 0
    least = offset + journal.HEAD_BYTES + 8 + len(stored) + SEAL_OVERHEAD_BYTES
    assert end - (padme(least) if pad_segment else least) < limits.JOURNAL_FRAME_BYTES
    assert journal.decode_body(plain) == (stored, len(stored) + saved)


@given(CHANGES)
def test_batches(changes: list[Change]) -> None:
    assert list(journal.decode_batch(journal.encode_batch(changes))) == changes


@given(CHANGES, CARRIED)
def test_blobs_that_a_batch_carries_are_no_records(changes: list[Change], carried: list[Carried]) -> None:
    payload = journal.encode_batch(changes, carried)
    assert list(journal.decode_batch(payload)) == changes
    assert list(journal.decode_carried(payload)) == carried


@pytest.mark.parametrize(("key", "value"), [(bytes(23), b"sealed"), (bytes(24), b""), (bytes(24), None)])
def test_a_blob_carried_to_no_place_is_damage(key: bytes, value: bytes | None) -> None:
    with pytest.raises(DamageError):
        list(journal.decode_carried(journal.encode_batch([(13, key, value)])))


@given(CHANGES.filter(bool), st.data())
def test_a_batch_that_is_cut_off_is_damage_or_a_shorter_batch(changes: list[Change], data: st.DataObject) -> None:
    payload = journal.encode_batch(changes)
    cut = payload[: data.draw(st.integers(0, len(payload) - 1))]
    found: list[Change] = []
    try:
        found.extend(journal.decode_batch(cut))
    except DamageError:
        return
    assert found == changes[: len(found)]
    assert journal.encode_batch(found) == cut


@given(st.binary(max_size=300))
def test_noise_ends_in_damage_only(noise: bytes) -> None:
    for decode in (
        journal.decode_head,
        journal.decode_body,
        lambda data: list(journal.decode_batch(data)),
        lambda data: list(journal.decode_carried(data)),
    ):
        with contextlib.suppress(DamageError):
            decode(noise)


def test_a_length_too_large_for_a_frame_takes_no_memory() -> None:
    with pytest.raises(DamageError):
        journal.decode_body(b"\0\0\0\x01\xff\xff\xff\xff" + b"x")


def test_the_bound_is_one_no_honest_batch_meets() -> None:
    """A batch has at most so many records, each of some 4 KiB, and one may be a file's xattrs."""
    assert limits.LAYER_RECORDS_MAX * 1024 + limits.XATTRS_MAX_BYTES < limits.JOURNAL_FRAME_MAX_BYTES
