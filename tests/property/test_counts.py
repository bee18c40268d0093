"""Small counts by number against a dictionary, and what they take."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from backupfs.engine.counts import Counts

numbers = st.integers(1, 5) | st.integers(60, 68) | st.sampled_from([1 << 20, (1 << 40) - 1])
steps = st.lists(st.tuples(st.sampled_from(["add", "take"]), numbers, st.integers(1, 600)), max_size=60)


@given(steps)
def test_as_a_dictionary_of_counts(actions: list[tuple[str, int, int]]) -> None:
    counts, model = Counts(), dict[int, int]()
    for kind, number, count in actions:
        if kind == "add":
            counts.add([number] * count)
            model[number] = model.get(number, 0) + count
        else:
            left = max(model.get(number, 0) - count, 0)
            assert counts.take_back([(number, count)]) == [number] * (left == 0)
            model[number] = left
        assert (number in counts) is (model[number] > 0)
    there = {number: count for number, count in model.items() if count}
    assert dict(counts.items()) == there
    assert counts.groups == len({number >> 6 for number in there})
    assert counts.take_back([(number, max(count, 1)) for number, count in model.items()]) == list(model)
    assert not counts.groups, "nothing is kept of what is not there"
    assert not counts._beyond


def test_many_numbers_take_a_few_bytes_each() -> None:
    counts = Counts()
    tracemalloc.start()
    try:
        counts.add(range(16, 100_016))
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken_bytes < 5 * 100_000
