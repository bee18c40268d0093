import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import DamageError
from backupfs.format import objects
from backupfs.format.objects import ObjectHeader

MAGICS = [objects.PACK_MAGIC, objects.JOURNAL_MAGIC, objects.CHECKPOINT_MAGIC]
HEADER = ObjectHeader(objects.PACK_MAGIC, b"r" * 16, b"o" * 16, b"s" * 32, b"c" * 32)


@given(
    st.builds(
        ObjectHeader,
        magic=st.sampled_from(MAGICS),
        repository_id=st.binary(min_size=16, max_size=16),
        object_id=st.binary(min_size=16, max_size=16),
        salt=st.binary(min_size=32, max_size=32),
        commitment=st.binary(min_size=32, max_size=32),
    )
)
def test_what_is_encoded_is_decoded(header: ObjectHeader) -> None:
    data = objects.encode(header)
    assert len(data) == objects.HEADER_BYTES
    assert objects.decode(data, header.magic, "object") == header


def test_one_kind_is_not_taken_for_another() -> None:
    for magic in MAGICS[1:]:
        with pytest.raises(DamageError, match="something else"):
            objects.decode(objects.encode(HEADER), magic, "object")


@given(st.integers(0, objects.HEADER_BYTES - 1), st.integers(1, 255))
def test_no_byte_changes_unnoticed(at: int, mask: int) -> None:
    data = bytearray(objects.encode(HEADER))
    data[at] ^= mask
    with pytest.raises(DamageError):
        objects.decode(bytes(data), objects.PACK_MAGIC, "pack")


def test_journal_segments_are_named_by_number() -> None:
    assert objects.journal_object_id(0) == bytes(16)
    assert objects.journal_object_id(258) == bytes(14) + b"\1\2"
    assert len({objects.journal_object_id(n) for n in range(1000)}) == 1000
