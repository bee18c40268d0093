"""Fixed layouts, padding, nonces and associated data, against an independent reading of the document's rules."""

import math
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import DamageError, UnsupportedError
from backupfs.format import layout
from backupfs.format.layout import Sealed, binding, checked, nonce, padme, with_checksum

MAGIC = b"BFSTEST\0"


def padme_of_the_paper(length: int) -> int:
    """Algorithm 1 of the paper, in its own words."""
    exponent = math.floor(math.log2(length))
    significand = math.floor(math.log2(exponent)) + 1
    last = exponent - significand
    mask = 2**last - 1
    return int((length + mask) & ~mask)


@given(st.integers(2, 2**45))
def test_padme_is_the_papers(length: int) -> None:
    assert padme(length) == padme_of_the_paper(length)


@given(st.integers(0, 2**60))
def test_padme_pads_little_and_to_few_sizes(length: int) -> None:
    padded = padme(length)
    assert length <= padded <= length + length * 0.12
    assert padme(padded) == padded
    assert padme(length + 1) >= padded


def body() -> bytes:
    return MAGIC + struct.pack(">H", layout.FORMAT_VERSION) + b"fields"


def test_a_checked_layout_comes_back_padded() -> None:
    data = with_checksum(body(), 64)
    assert len(data) == 64
    assert checked(data, 64, MAGIC, "test") == body().ljust(60, b"\0")
    assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "big")


@given(st.integers(0, 63), st.integers(1, 255))
def test_no_byte_changes_unnoticed(at: int, mask: int) -> None:
    data = bytearray(with_checksum(body(), 64))
    data[at] ^= mask
    with pytest.raises(DamageError):
        checked(bytes(data), 64, MAGIC, "test")


@given(st.binary(max_size=70))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(DamageError):
        checked(data, 64, MAGIC, "test")


def test_another_magic_or_version_is_told() -> None:
    with pytest.raises(DamageError, match="something else"):
        checked(with_checksum(b"BFSOTHR\0" + body()[8:], 64), 64, MAGIC, "test")
    with pytest.raises(UnsupportedError, match="version 9") as caught:
        checked(with_checksum(MAGIC + struct.pack(">H", 9), 64), 64, MAGIC, "test")
    assert caught.value.fields["version"] == 9


def test_nonces_differ_by_position_and_are_twelve_bytes() -> None:
    assert nonce(0) == bytes(12)
    assert nonce(128) == bytes(11) + b"\x80"
    assert nonce(2**64 - 1) == bytes(4) + b"\xff" * 8


PLACES = st.tuples(
    st.binary(min_size=16, max_size=16),
    st.sampled_from(Sealed),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
)


@given(PLACES, PLACES)
def test_no_two_places_have_the_same_associated_data(
    one: tuple[bytes, Sealed, bytes, int, int], other: tuple[bytes, Sealed, bytes, int, int]
) -> None:
    assert len(binding(*one)) == 49
    assert (binding(*one) == binding(*other)) == (one == other)


def test_kinds_of_sealed_things_have_one_number_each() -> None:
    assert len({kind.value for kind in Sealed}) == len(Sealed.__members__)
    assert all(0 < kind < 256 for kind in Sealed)
