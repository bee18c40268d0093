"""The bytes of a live tree one by one: in each half hour of the day others are replaced, day by day in the same order.

Each version of them is followed from its birth to its end. What is held is counted: versions that have ended and that a snapshot has seen.
"""

from bisect import bisect_left
from collections.abc import Iterable

from backupfs.rules.policy import DAY_NS, HOUR_NS

SLOT_NS = HOUR_NS // 2
SLOTS_A_DAY = 48


def held_bytes(taken_ns: Iterable[int], opened_ns: int, now_ns: int, before_bytes: int, since_bytes: int) -> int:
    """What snapshots hold together. Times are whole half hours from `opened_ns`; bytes are replaced in the middle of one.

    In each half hour before `opened_ns` so many bytes are replaced, in each since then so many others, which nobody has touched before.
    """
    taken = sorted(taken_ns)
    first_ns = min([opened_ns, *taken])
    held = 0
    for start_ns in range(first_ns, now_ns, SLOT_NS):
        end_ns = start_ns + SLOT_NS // 2
        birth_ns = first_ns if opened_ns <= start_ns < opened_ns + DAY_NS else end_ns - DAY_NS
        place = bisect_left(taken, birth_ns)
        if place < len(taken) and taken[place] < end_ns:
            held += since_bytes if start_ns >= opened_ns else before_bytes
    return held
