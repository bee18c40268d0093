"""What a file's bytes are made of: sorted extents that never overlap. All functions return new lists and leave their arguments alone.

An extent is (file offset, length, blob number, offset in the blob's plaintext). What no extent covers is a hole and reads as zeros.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Container, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter

from backupfs import limits
from backupfs.format.catalog import Extent

Change = tuple[int, int, Sequence[Extent]]
"""[start, end) is to be made of these extents, which lie within it."""
_start = itemgetter(0)
_length = itemgetter(1)


def clip(extents: Sequence[Extent], start: int, end: int) -> list[Extent]:
    """The parts that lie in [start, end)."""
    kept = []
    for at, length, blob, inner in extents[_first_touching(extents, start) :]:
        if at >= end:
            break
        low, high = max(at, start), min(at + length, end)
        if low < high:
            kept.append((low, high - low, blob, inner + low - at))
    return kept


def replace(extents: Sequence[Extent], start: int, end: int, new: Sequence[Extent]) -> list[Extent]:
    """`extents` with [start, end) made of `new`, which must lie within it. Neighbours that continue each other become one."""
    if not extents:
        return join(new)
    first = bisect_left(extents, start, key=_start)
    last = bisect_left(extents, end, lo=first, key=_start)
    # Neighbours of what is exchanged, and what those lap over into it or out of it.
    low = max(first - 1, 0)
    high = min(last + 1, len(extents))
    before = clip(extents[low:first], 0, start)
    after = clip(extents[max(last - 1, 0) : high], end, max(end, _end(extents)))
    return [*extents[:low], *join([*before, *new, *after]), *extents[high:]]


def replace_all(extents: Sequence[Extent], changes: Sequence[Change]) -> list[Extent]:
    """`replace` with each change in turn: a later one counts where two overlap. In one go when they come in the order of the file."""
    if len(changes) == 1 or any(after[0] < before[1] for before, after in pairwise(changes)):
        for change in changes:
            extents = replace(extents, *change)
        return list(extents)
    changed: list[Extent] = []
    at = 0
    for start, end, new in changes:
        changed += clip(extents, at, start)
        changed += new
        at = end
    changed += clip(extents, at, max(at, _end(extents)))
    return join(changed)


def join(extents: Sequence[Extent]) -> list[Extent]:
    """Extents that continue each other in file and blob, as one."""
    joined: list[Extent] = []
    for extent in extents:
        if joined:
            at, length, blob, inner = joined[-1]
            if blob == extent[2] and at + length == extent[0] and inner + length == extent[3]:
                joined[-1] = (at, length + extent[1], blob, inner)
                continue
        joined.append(extent)
    return joined


def pieces(extents: Sequence[Extent], start: int, end: int) -> Iterator[tuple[int, int, Extent | None]]:
    """[start, end) from left to right as (low, high, the clipped extent or None for a hole)."""
    at = start
    for extent in clip(extents, start, end):
        if extent[0] > at:
            yield at, extent[0], None
        yield extent[0], extent[0] + extent[1], extent
        at = extent[0] + extent[1]
    if at < end:
        yield at, end, None


def regions_of(start: int, end: int, region_bytes: int) -> range:
    """The regions that the bytes [start, end) lie in. The last one there is takes all that is behind."""
    return range(min(start // region_bytes, limits.REGION_LAST), min((end - 1) // region_bytes, limits.REGION_LAST) + 1)


def _within(region: int, start: int, end: int, region_bytes: int) -> tuple[int, int]:
    """The part of [start, end) that lies in a region."""
    return max(start, region * region_bytes), end if region == limits.REGION_LAST else min(end, (region + 1) * region_bytes)


def split_at_regions(extents: Sequence[Extent], region_bytes: int) -> dict[int, list[Extent]]:
    """The extents by the region that they lie in; one that crosses an edge is cut there."""
    regions: dict[int, list[Extent]] = {}
    for start, length, blob, inner in extents:
        for region in regions_of(start, start + length, region_bytes):
            low, high = _within(region, start, start + length, region_bytes)
            regions.setdefault(region, []).append((low, high - low, blob, inner + low - start))
    return regions


def changes_of_regions(changes: Sequence[Change], region_bytes: int) -> dict[int, list[Change]]:
    """The changes by the region that they lie in; one that crosses an edge is cut there."""
    regions: dict[int, list[Change]] = {}
    for start, end, new in changes:
        parts = split_at_regions(new, region_bytes)
        for region in regions_of(start, end, region_bytes):
            low, high = _within(region, start, end, region_bytes)
            regions.setdefault(region, []).append((low, high, parts.get(region, [])))
    return regions


def covered_bytes(extents: Sequence[Extent]) -> int:
    """How many bytes of the file the extents make; the rest is holes."""
    return sum(map(_length, extents))


def rechunk_window(extents: Sequence[Extent], window_bytes: int, unreadable: Container[int] = ()) -> tuple[int, int] | None:
    """The aligned window of the file that holds the most extents: what to write anew when a record grows too long.

    None when no window has two extents and none of an `unreadable` blob.
    """
    counts: dict[int, int] = {}
    spoilt: set[int] = set()
    for at, length, blob, _ in extents:
        windows = range(at // window_bytes, (at + length - 1) // window_bytes + 1)
        for window in windows:
            counts[window] = counts.get(window, 0) + 1
        if blob in unreadable:
            spoilt.update(windows)
    possible = [window for window, count in counts.items() if count > 1 and window not in spoilt]
    if not possible:
        return None
    worst = max(possible, key=lambda window: (counts[window], -window))
    return worst * window_bytes, (worst + 1) * window_bytes


def tail_start(extents: Sequence[Extent], end: int, min_bytes: int, max_bytes: int) -> int:
    """Where the unfinished chunk that ends at `end` begins, as far as the extents tell; `end` itself when there is none.

    The last extent may have been cut short by the end of the file or a forced flush, and so may all shorter than a chunk before it. At most
    `max_bytes` are given: a longer stretch holds a real boundary.
    """
    start = end
    for at, length, _, inner in reversed(clip(extents, 0, end)):
        if at + length != start or inner != 0 or end - at >= max_bytes:
            break
        if start != end and length >= min_bytes:
            break
        start = at
    return start


def _first_touching(extents: Sequence[Extent], start: int) -> int:
    index = bisect_right(extents, start, key=_start)
    return max(index - 1, 0)


def _end(extents: Sequence[Extent]) -> int:
    return extents[-1][0] + extents[-1][1] if extents else 0
