"""The ledger of space on paper against bytes that are followed one by one."""

from hypothesis import given
from hypothesis import strategies as st

from backupfs.rules.ledger import Disk, Ledger, Opening, daily_bytes
from backupfs.rules.policy import DAY_NS, SECOND_NS, Retention
from backupfs.rules.retention import Candidate
from tests.property.slots import SLOT_NS, SLOTS_A_DAY, held_bytes

NOW_NS = 1_790_000_000 * SECOND_NS
LIVE_BYTES = 10**12


def moments(first: int, last: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(first, last).map(lambda slot: NOW_NS + slot * SLOT_NS), max_size=8)


@given(
    past=moments(-300, -1),
    future=moments(0, 300).map(sorted),
    before=st.integers(0, 5),
    since=st.integers(0, 5),
    wait=st.integers(0, 100),
    data=st.data(),
)
def test_what_is_used_and_freed_adds_up_to_the_byte(
    past: list[int], future: list[int], before: int, since: int, wait: int, data: st.DataObject
) -> None:
    opening = Opening(LIVE_BYTES, held_bytes(past, NOW_NS, NOW_NS, before, since), SLOTS_A_DAY * since, Disk(10**6, 10**7))
    present = [Candidate(serial, time_ns) for serial, time_ns in enumerate(past, 1)]
    ledger = Ledger(opening, Retention(space_limit_bytes=LIVE_BYTES + 100, free_limit_bytes=10**6 - 50), present, NOW_NS)
    assert ledger.used_bytes(NOW_NS) == LIVE_BYTES + opening.held_bytes
    for serial, time_ns in enumerate(future, 1 + len(past)):
        ledger.add(serial, time_ns)
    now_ns = max([NOW_NS, *future]) + wait * SLOT_NS
    standing = dict(enumerate([*past, *future], 1))
    for _ in range(3):
        held = held_bytes(standing.values(), NOW_NS, now_ns, before, since)
        assert ledger.used_bytes(now_ns) == LIVE_BYTES + held
        assert ledger.excess_bytes(now_ns) == max(held - 100, held - opening.held_bytes - 50, 0)
        gone = data.draw(st.frozensets(st.sampled_from(sorted(standing)))) if standing else frozenset()
        staying = [time_ns for serial, time_ns in standing.items() if serial not in gone]
        assert ledger.frees_bytes(gone, now_ns) == held - held_bytes(staying, NOW_NS, now_ns, before, since)
        ledger.remove(gone)
        standing = {serial: time_ns for serial, time_ns in standing.items() if serial not in gone}


@given(past=moments(-300, -1), before=st.integers(0, 5))
def test_the_rate_is_that_at_which_what_is_held_has_come(past: list[int], before: int) -> None:
    held = held_bytes(past, NOW_NS, NOW_NS, before, 0)
    rate = daily_bytes(held, [Candidate(serial, time_ns) for serial, time_ns in enumerate(past)], NOW_NS)
    assert rate == (SLOTS_A_DAY * before if past and min(past) <= NOW_NS - DAY_NS else held)


def test_without_a_disk_only_its_own_size_is_limited() -> None:
    free = Retention(free_limit_bytes=10**9, free_limit_share=0.5)
    assert not Ledger(Opening(), free, [], NOW_NS).is_limited
    assert Ledger(Opening(disk=Disk(1, 1)), free, [], NOW_NS).is_limited
    assert Ledger(Opening(), Retention(space_limit_bytes=1), [], NOW_NS).is_limited
    assert Ledger(Opening(5), Retention(space_limit_bytes=1, free_limit_bytes=10**9), [], NOW_NS).excess_bytes(NOW_NS) == 4


def test_what_was_taken_in_the_future_was_taken_just_now() -> None:
    late = [Candidate(1, NOW_NS + 9 * DAY_NS), Candidate(2, NOW_NS - DAY_NS), Candidate(3, NOW_NS)]
    ledger = Ledger(Opening(held_bytes=DAY_NS, daily_bytes=48), Retention(), late, NOW_NS)
    ledger.add(4, NOW_NS + DAY_NS)
    assert ledger.frees_bytes(frozenset({2}), NOW_NS + DAY_NS) == DAY_NS - 1
    assert ledger.frees_bytes(frozenset({1, 3}), NOW_NS + DAY_NS) == 0
    assert ledger.used_bytes(NOW_NS + DAY_NS) == DAY_NS + 48
    assert daily_bytes(7, late, NOW_NS) == 7
