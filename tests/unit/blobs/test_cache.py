"""Decoded chunks within a bound."""

import random
import tracemalloc

import pytest

from backupfs import limits
from backupfs.blobs.cache import KEEPING_BYTES, ChunkCache

ROOM = 3 * (10 + KEEPING_BYTES)
"""For three chunks of ten bytes."""


def test_the_least_recently_used_goes_first() -> None:
    cache = ChunkCache(ROOM)
    for number in (1, 2, 3):
        cache.put(number, bytes([number]) * 10)
    assert cache.get(1) == b"\1" * 10
    cache.put(4, b"4" * 10)
    assert cache.get(2) is None
    assert [cache.get(number) is not None for number in (1, 3, 4)] == [True, True, True]


def test_what_is_there_is_not_counted_twice() -> None:
    cache = ChunkCache(ROOM)
    cache.put(1, b"1" * 10)
    cache.put(1, b"1" * 10)
    assert cache.used_bytes == 10 + KEEPING_BYTES


def test_a_chunk_beyond_the_bound_is_not_kept() -> None:
    cache = ChunkCache(ROOM)
    cache.put(1, b"1" * 10)
    cache.put(2, b"2" * ROOM)
    assert cache.get(2) is None
    assert cache.used_bytes == 0


def test_never_more_than_the_bound(seed: int) -> None:
    draw = random.Random(seed)
    cache = ChunkCache(9000)
    for _ in range(2000):
        number = draw.randrange(50)
        cache.put(number, bytes(number * 7))
        assert cache.used_bytes <= 9000
        found = cache.get(draw.randrange(50))
        assert found is None or len(found) % 7 == 0


@pytest.mark.parametrize("chunk_bytes", [16, 100, 4096])
def test_the_bound_holds_for_what_is_really_taken(chunk_bytes: int) -> None:
    """Of small chunks most is what it costs to keep one."""
    capacity_bytes = 4 * limits.MIB
    cache = ChunkCache(capacity_bytes)
    tracemalloc.start()
    try:
        for number in range(1_000, 1_000 + 2 * capacity_bytes // (chunk_bytes + KEEPING_BYTES)):
            cache.put(number, number.to_bytes(8, "big").rjust(chunk_bytes, b"-")[-chunk_bytes:])
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.8 * capacity_bytes < taken_bytes < 1.1 * capacity_bytes
