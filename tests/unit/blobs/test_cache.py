"""Decoded chunks within a bound."""

import random

from backupfs.blobs.cache import ChunkCache


def test_the_least_recently_used_goes_first() -> None:
    cache = ChunkCache(30)
    for number in (1, 2, 3):
        cache.put(number, bytes([number]) * 10)
    assert cache.get(1) == b"\1" * 10
    cache.put(4, b"4" * 10)
    assert cache.get(2) is None
    assert [cache.get(number) is not None for number in (1, 3, 4)] == [True, True, True]


def test_what_is_there_is_not_counted_twice() -> None:
    cache = ChunkCache(30)
    cache.put(1, b"1" * 10)
    cache.put(1, b"1" * 10)
    assert cache.used_bytes == 10


def test_a_chunk_beyond_the_bound_is_not_kept() -> None:
    cache = ChunkCache(30)
    cache.put(1, b"1" * 10)
    cache.put(2, b"2" * 31)
    assert cache.get(2) is None
    assert cache.used_bytes == 0


def test_never_more_than_the_bound(seed: int) -> None:
    draw = random.Random(seed)
    cache = ChunkCache(1000)
    for _ in range(2000):
        number = draw.randrange(50)
        cache.put(number, bytes(number * 7))
        assert cache.used_bytes <= 1000
        found = cache.get(draw.randrange(50))
        assert found is None or len(found) % 7 == 0
