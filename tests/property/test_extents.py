"""Extents against a plain list: for every byte of the file, which byte of which blob it is, or None."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs import limits
from backupfs.format.catalog import Extent
from backupfs.rules import extents as rules

SIZE = 200
Bytes = list[tuple[int, int] | None]


@st.composite
def extents(draw: st.DrawFn, top: int = SIZE, first_blob: int = 1) -> list[Extent]:
    """Sorted, apart or touching; some continue each other in the same blob."""
    found: list[Extent] = []
    at = 0
    blob = first_blob
    while True:
        at += draw(st.sampled_from([0, 0, 1, 3, 20]))
        length = draw(st.integers(1, 40))
        if at + length > top or draw(st.integers(0, 9)) == 0:
            return found
        inner = draw(st.integers(0, 5))
        if found and found[-1][0] + found[-1][1] == at and draw(st.booleans()):
            before = found[-1]
            found.append((at, length, before[2], before[3] + before[1]))
        else:
            blob += 1
            found.append((at, length, blob, inner))
        at += length


def spread(found: list[Extent], size: int = SIZE) -> Bytes:
    every: Bytes = [None] * size
    for at, length, blob, inner in found:
        for i in range(length):
            assert every[at + i] is None, "extents overlap"
            every[at + i] = blob, inner + i
    return every


def is_sorted(found: list[Extent]) -> bool:
    return all(a[0] + a[1] <= b[0] for a, b in pairwise(found)) and all(e[1] > 0 for e in found)


def is_joined(found: list[Extent]) -> bool:
    return not any(a[0] + a[1] == b[0] and a[2] == b[2] and a[3] + a[1] == b[3] for a, b in pairwise(found))


bounds = st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)).map(sorted)


@given(extents(), bounds)
def test_clip_keeps_what_lies_between(found: list[Extent], bound: list[int]) -> None:
    low, high = bound
    every = spread(found)
    clipped = rules.clip(found, low, high)
    assert is_sorted(clipped)
    assert spread(clipped) == [every[i] if low <= i < high else None for i in range(SIZE)]


@given(extents(), bounds, st.data())
def test_replace_changes_that_stretch_only(found: list[Extent], bound: list[int], data: st.DataObject) -> None:
    low, high = bound
    new = [(at + low, length, blob, inner) for at, length, blob, inner in data.draw(extents(high - low, 100))]
    before = list(found)
    result = rules.replace(found, low, high, new)
    assert found == before
    assert is_sorted(result)
    assert is_joined(result) or not is_joined(found)
    old, put = spread(found), spread(new)
    assert spread(result) == [put[i] if low <= i < high else old[i] for i in range(SIZE)]


@st.composite
def changes(draw: st.DrawFn) -> list[rules.Change]:
    """In the order of the file and apart, or in any order and over each other."""
    edges = draw(st.lists(st.integers(0, SIZE), max_size=8))
    if draw(st.booleans()):
        edges.sort()
    stretches = [sorted(edges[i : i + 2]) for i in range(0, len(edges) - 1, 2)]
    made: list[rules.Change] = []
    for number, (low, high) in enumerate(stretches):
        new = [(at + low, length, blob, inner) for at, length, blob, inner in draw(extents(high - low, 100 * (number + 1)))]
        if low < high:
            made.append((low, high, new))
    return made


@given(extents(), changes())
def test_changes_together_do_what_they_do_one_by_one(found: list[Extent], made: list[rules.Change]) -> None:
    before = list(found)
    result = rules.replace_all(found, made)
    assert found == before
    assert is_sorted(result)
    assert is_joined(result) or not made or not is_joined(found)
    every = spread(found)
    for low, high, new in made:
        every[low:high] = spread(list(new))[low:high]
    assert spread(result) == every


def bounds_of(region: int, region_bytes: int, last: int) -> tuple[int, float]:
    return region * region_bytes, math.inf if region == last else (region + 1) * region_bytes


@given(extents(), changes(), st.integers(1, 70), st.sampled_from([0, 2, 2**32 - 1]))
def test_changes_by_region_are_the_same_changes(found: list[Extent], made: list[rules.Change], region_bytes: int, last: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "REGION_LAST", last)
        regions = rules.split_at_regions(found, region_bytes)
        by_region = rules.changes_of_regions(made, region_bytes)
    for region, those in by_region.items():
        low, high = bounds_of(region, region_bytes, last)
        assert all(low <= start < end <= high for start, end, _ in those)
        regions[region] = rules.replace_all(regions.get(region, []), those)
    assert spread([extent for _, part in sorted(regions.items()) for extent in part]) == spread(rules.replace_all(found, made))


@given(extents())
def test_join_means_the_same_in_fewer(found: list[Extent]) -> None:
    joined = rules.join(found)
    assert is_joined(joined)
    assert len(joined) <= len(found)
    assert spread(joined) == spread(found)
    assert rules.covered_bytes(joined) == rules.covered_bytes(found) == sum(byte is not None for byte in spread(found))


@given(extents(), bounds)
def test_pieces_cover_a_stretch_once(found: list[Extent], bound: list[int]) -> None:
    low, high = bound
    every = spread(found)
    at = low
    for first, last, extent in rules.pieces(found, low, high):
        assert first == at < last
        if extent is None:
            assert every[first:last] == [None] * (last - first)
        else:
            assert extent[:2] == (first, last - first)
            assert every[first:last] == [(extent[2], extent[3] + i) for i in range(last - first)]
        at = last
    assert at == high


@given(extents(), st.integers(1, 70), st.sampled_from([0, 2, 2**32 - 1]))
def test_regions_hold_what_lies_in_them(found: list[Extent], region_bytes: int, last: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "REGION_LAST", last)
        regions = rules.split_at_regions(found, region_bytes)
        assert {region for e in found for region in rules.regions_of(e[0], e[0] + e[1], region_bytes)} == set(regions)
    every = spread(found)
    for region, part in regions.items():
        low, high = bounds_of(region, region_bytes, last)
        assert part
        assert is_sorted(part)
        assert all(low <= e[0] and e[0] + e[1] <= high for e in part)
    assert spread([extent for part in regions.values() for extent in part]) == every


@given(extents(), st.integers(1, 70), st.data())
def test_the_fullest_window_that_can_be_read(found: list[Extent], window: int, data: st.DataObject) -> None:
    unreadable = data.draw(st.sets(st.sampled_from([extent[2] for extent in found]))) if found else set()
    parts = {start: rules.clip(found, start, start + window) for start in range(0, SIZE + window, window)}
    readable = {start: part for start, part in parts.items() if not any(extent[2] in unreadable for extent in part)}
    counts = {start: len(part) for start, part in readable.items() if len(part) > 1}
    chosen = rules.rechunk_window(found, window, unreadable)
    if not counts:
        assert chosen is None
        return
    assert chosen is not None
    low, high = chosen
    assert high == low + window
    assert counts[low] == max(counts.values())
    assert all(counts.get(start, 0) < counts[low] for start in range(0, low, window)), "the first of several"


@given(extents(), st.integers(0, SIZE), st.integers(1, 30), st.integers(30, 90))
def test_an_unfinished_tail_is_whole_blobs_up_to_the_end(found: list[Extent], end: int, low: int, high: int) -> None:
    start = rules.tail_start(found, end, low, high)
    assert 0 <= start <= end
    tail = rules.clip(found, start, end)
    assert rules.covered_bytes(tail) == end - start, "nothing but extents in it"
    assert all(extent[3] == 0 for extent in tail), "each begins with its blob"
    assert all(extent[1] < low for extent in tail[:-1]), "a whole chunk before the last ends in a boundary"
    assert all(end - extent[0] < high for extent in tail)
    before = rules.clip(found, 0, start)
    if before and sum(before[-1][:2]) == start:
        reaches_further = before[-1][3] == 0 and end - before[-1][0] < high and (start == end or before[-1][1] < low)
        assert not reaches_further, "it is the longest such tail"
