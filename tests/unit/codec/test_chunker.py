"""Chunk boundaries follow the content alone."""

import random
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.codec.chunker import Chunker
from backupfs.format import config
from backupfs.format.config import Config

SMALL = Config(
    repository_id=bytes(16),
    created_ns=0,
    chunk_min_bytes=256,
    chunk_avg_bytes=1024,
    chunk_max_bytes=4096,
    cipher=config.CIPHER_AES_256_GCM,
    compression=config.COMPRESSION_NONE,
    compression_level=1,
)


def noise(seed: int, size_bytes: int) -> bytes:
    return random.Random(seed).randbytes(size_bytes)


def boundaries(data: bytes, seed: int = 7, chunks: Config = SMALL) -> set[int]:
    return set(accumulate(Chunker(chunks, seed).cut(data, is_end=True)))


@given(st.integers(0, 1000), st.integers(0, 60_000))
def test_chunks_cover_the_data_and_keep_their_sizes(seed: int, size_bytes: int) -> None:
    lengths = Chunker(SMALL, 7).cut(noise(seed, size_bytes), is_end=True)
    assert sum(lengths) == size_bytes
    assert all(256 <= length <= 4096 for length in lengths[:-1])
    assert all(0 < length <= 4096 for length in lengths[-1:])


@given(st.integers(0, 1000), st.lists(st.integers(1, 9000), min_size=1, max_size=20))
def test_a_stream_is_cut_alike_however_it_arrives(seed: int, pieces: list[int]) -> None:
    data = noise(seed, sum(pieces))
    chunker = Chunker(SMALL, 7)
    cuts: list[int] = []
    held = b""
    at = 0
    for number, piece in enumerate(pieces):
        held += data[at : at + piece]
        at += piece
        found = chunker.cut(memoryview(held), is_end=number == len(pieces) - 1)
        cuts += found
        held = held[sum(found) :]
    assert held == b""
    assert cuts == Chunker(SMALL, 7).cut(data, is_end=True)


@given(st.integers(0, 5000), st.integers(0, 30))
def test_data_without_features_is_cut_at_the_maximum(size_bytes: int, value: int) -> None:
    lengths = Chunker(SMALL, 7).cut(bytes([value]) * size_bytes, is_end=True)
    assert sum(lengths) == size_bytes


def test_an_insertion_leaves_the_boundaries_behind_it_alone(seed: int) -> None:
    data = noise(seed, 400_000)
    before = boundaries(data)
    after = {at - 1024 for at in boundaries(noise(seed + 1, 1024) + data)}
    assert len(before - after) <= 12
    assert len(before) > 200


def test_another_seed_gives_other_boundaries(seed: int) -> None:
    data = noise(seed, 400_000)
    one, other = boundaries(data, 1), boundaries(data, 2)
    assert len(one & other) < len(one) / 10


def test_the_average_is_about_what_was_asked_for(seed: int) -> None:
    count = len(boundaries(noise(seed, 2_000_000)))
    assert 1024 * 0.8 < 2_000_000 / count < 1024 * 1.5


def test_nothing_is_cut_before_it_is_final() -> None:
    chunker = Chunker(SMALL, 7)
    assert chunker.cut(b"", is_end=False) == []
    assert chunker.cut(b"", is_end=True) == []
    assert chunker.cut(b"x" * 256, is_end=False) == []
    assert chunker.cut(b"x" * 256, is_end=True) == [256]


@pytest.mark.parametrize(
    "chunks",
    [
        replace(SMALL, chunk_min_bytes=64, chunk_avg_bytes=256, chunk_max_bytes=1024),
        replace(SMALL, chunk_min_bytes=1 << 20, chunk_avg_bytes=4 << 20, chunk_max_bytes=16 << 20),
        replace(SMALL, chunk_min_bytes=1000, chunk_avg_bytes=1000, chunk_max_bytes=1024),
        replace(SMALL, chunk_min_bytes=65536, chunk_avg_bytes=262144, chunk_max_bytes=1 << 20),
    ],
)
def test_every_configuration_that_decodes_can_be_used(chunks: Config) -> None:
    assert config.decode(config.encode(chunks, bytes(32)))[0] == chunks
    data = noise(3, 100_000)
    assert sum(Chunker(chunks, 2**63 - 1).cut(data, is_end=True)) == len(data)
