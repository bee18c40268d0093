import contextlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs import limits
from backupfs.errors import BackupfsError, DamageError
from backupfs.format import keyslot, layout
from backupfs.format.keyslot import KdfParameters, KeySlot


def of(size_bytes: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size_bytes, max_size=size_bytes)


SLOT = KeySlot(
    repository_id=bytes(range(16)),
    slot_id=bytes(range(16, 32)),
    created_ns=1_700_000_000_000_000_000,
    kdf=KdfParameters(3, 4, 65536),
    salt=b"s" * 32,
    commitment=b"c" * 32,
    sealed_master=b"m" * 48,
    sealed_label=b"l" * 80,
)


@given(
    st.builds(
        KeySlot,
        repository_id=of(16),
        slot_id=of(16),
        created_ns=st.integers(0, 2**64 - 1),
        kdf=st.builds(
            KdfParameters,
            time=st.integers(1, limits.KDF_TIME_MAX),
            lanes=st.integers(1, limits.KDF_LANES_MAX),
            memory_kib=st.integers(8 * limits.KDF_LANES_MAX, limits.KDF_MEMORY_MAX_KIB),
        ),
        salt=of(32),
        commitment=of(32),
        sealed_master=of(48),
        sealed_label=of(80),
    )
)
def test_what_is_encoded_is_decoded(slot: KeySlot) -> None:
    data = keyslot.encode(slot)
    assert len(data) == keyslot.SIZE_BYTES
    assert keyslot.decode(data) == slot


@pytest.mark.parametrize(
    "kdf",
    [
        KdfParameters(0, 4, 65536),
        KdfParameters(limits.KDF_TIME_MAX + 1, 4, 65536),
        KdfParameters(3, 0, 65536),
        KdfParameters(3, limits.KDF_LANES_MAX + 1, 65536),
        KdfParameters(3, 4, 31),
        KdfParameters(3, 4, limits.KDF_MEMORY_MAX_KIB + 1),
        KdfParameters(2**32 - 1, 2**32 - 1, 2**32 - 1),
    ],
)
def test_parameters_that_take_too_much_are_refused(kdf: KdfParameters) -> None:
    with pytest.raises(DamageError, match="out of range"):
        keyslot.decode(keyslot.encode(replace(SLOT, kdf=kdf)))


@given(st.integers(0, keyslot.SIZE_BYTES - 1), st.integers(1, 255))
def test_no_byte_changes_unnoticed(at: int, mask: int) -> None:
    data = bytearray(keyslot.encode(SLOT))
    data[at] ^= mask
    with pytest.raises(DamageError):
        keyslot.decode(bytes(data))


@given(st.binary(min_size=keyslot.SIZE_BYTES - 4, max_size=keyslot.SIZE_BYTES - 4))
def test_whatever_the_checksum_covers_only_typed_errors_come_out(noise: bytes) -> None:
    with contextlib.suppress(BackupfsError):
        keyslot.decode(layout.with_checksum(keyslot.MAGIC + b"\0\1" + noise[10:], keyslot.SIZE_BYTES))
