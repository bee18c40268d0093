import concurrent.futures
import random

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from backupfs.codec.compression import Compressor
from backupfs.errors import DamageError
from backupfs.format.config import COMPRESSION_NONE, COMPRESSION_ZSTD


@pytest.fixture(scope="module")
def zstd() -> Compressor:
    return Compressor(COMPRESSION_ZSTD, 1)


@given(st.one_of(st.binary(max_size=3000), st.builds(lambda b, n: b * n, st.binary(max_size=20), st.integers(0, 500))))
def test_what_is_compressed_is_expanded(zstd: Compressor, plain: bytes) -> None:
    stored = zstd.compress(plain)
    assert len(stored) < len(plain) or stored == plain
    assert zstd.expand(bytes(stored), len(plain)) == plain


def test_what_does_not_shrink_is_kept_as_it_is(zstd: Compressor) -> None:
    noise = random.Random(1).randbytes(100_000)
    assert zstd.compress(noise) is noise
    assert len(zstd.compress(bytes(100_000))) < 100


def test_off_is_off() -> None:
    plain = bytes(100_000)
    assert Compressor(COMPRESSION_NONE, 1).compress(plain) is plain


def test_a_frame_that_declares_another_length_is_refused_before_memory_is_taken(zstd: Compressor) -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(1 << 28))
    assert len(bomb) < 30_000
    for claimed in (1 << 20, (1 << 28) - 1, (1 << 28) + 1):
        with pytest.raises(DamageError, match="another length"):
            zstd.expand(bomb, claimed)


def test_a_frame_that_declares_no_length_is_refused(zstd: Compressor) -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000))
    with pytest.raises(DamageError):
        zstd.expand(frame, 10_000)


def test_a_frame_that_lies_about_its_length_is_refused(zstd: Compressor) -> None:
    honest = bytearray(zstandard.ZstdCompressor(write_checksum=False).compress(bytes(300)))
    at = honest.index((300 - 256).to_bytes(2, "little"))
    honest[at : at + 2] = (100_000 % 65536 - 256).to_bytes(2, "little")
    with pytest.raises(DamageError):
        zstd.expand(bytes(honest), 100_000 % 65536)


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_noise_is_damage(zstd: Compressor, noise: bytes, plain_bytes: int) -> None:
    try:
        assert len(zstd.expand(noise, plain_bytes)) == plain_bytes
    except DamageError:
        assert len(noise) != plain_bytes


def test_threads_do_not_disturb_each_other(zstd: Compressor) -> None:
    plains = [bytes([n]) * 50_000 + random.Random(n).randbytes(50_000) for n in range(64)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(zstd.compress, plains))
        assert list(pool.map(zstd.expand, stored, [len(plain) for plain in plains])) == plains
