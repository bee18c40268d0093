import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import DamageError
from backupfs.format import pack
from backupfs.format.layout import SEAL_OVERHEAD_BYTES, padme
from backupfs.format.objects import HEADER_BYTES
from backupfs.format.pack import PackEntry, PackFooter


@st.composite
def blobs(draw: st.DrawFn) -> tuple[list[PackEntry], int]:
    """Entries of a pack, and where its trailer goes."""
    offset = HEADER_BYTES
    entries = []
    for stored in draw(st.lists(st.integers(17, 1 << 20), max_size=50)):
        plain = stored - SEAL_OVERHEAD_BYTES + draw(st.integers(0, 100))
        entries.append(PackEntry(draw(st.binary(min_size=32, max_size=32)), offset, stored, plain))
        offset += stored
    return entries, offset


@given(blobs())
def test_the_end_of_a_pack(made: tuple[list[PackEntry], int]) -> None:
    entries, offset = made
    trailer = pack.encode_trailer(entries, offset)
    sealed_bytes = len(trailer) + SEAL_OVERHEAD_BYTES
    footer = PackFooter(offset, sealed_bytes, len(entries))
    size = offset + sealed_bytes + pack.FOOTER_BYTES + HEADER_BYTES
    assert padme(size) == size, "a pack's size says little"
    plain = pack.encode_footer(footer)
    assert len(plain) + SEAL_OVERHEAD_BYTES == pack.FOOTER_BYTES
    assert pack.decode_footer(plain, size) == footer
    assert pack.decode_trailer(trailer, footer) == entries


def test_a_footer_of_another_size_is_refused() -> None:
    plain = pack.encode_footer(PackFooter(1000, 100, 1))
    size = 1000 + 100 + pack.END_BYTES
    pack.decode_footer(plain, size)
    for wrong in (size - 1, size + 1, 0):
        with pytest.raises(DamageError):
            pack.decode_footer(plain, wrong)
    with pytest.raises(DamageError):
        pack.decode_footer(pack.encode_footer(PackFooter(HEADER_BYTES - 1, 100, 1)), HEADER_BYTES - 1 + 100 + pack.END_BYTES)


@pytest.mark.parametrize(
    "entry",
    [
        PackEntry(bytes(32), HEADER_BYTES - 1, 20, 4),
        PackEntry(bytes(32), 990, 20, 4),
        PackEntry(bytes(32), 2**64 - 1, 2**32 - 1, 4),
    ],
)
def test_an_entry_outside_the_pack_is_refused(entry: PackEntry) -> None:
    with pytest.raises(DamageError, match="outside"):
        pack.decode_trailer(pack.encode_trailer([entry], 1000), PackFooter(1000, 100, 1))


@given(st.binary(max_size=200), st.integers(0, 2**64 - 1))
def test_noise_ends_in_damage_only(noise: bytes, number: int) -> None:
    with contextlib.suppress(DamageError):
        footer = pack.decode_footer(noise, number)
        pack.decode_trailer(noise, footer)
    with contextlib.suppress(DamageError):
        pack.decode_trailer(noise, PackFooter(number, len(noise), number))
