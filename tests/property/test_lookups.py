"""Counts of lookups against a dictionary, and what they take."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from backupfs.engine.lookups import Lookups

inos = st.integers(1, 5) | st.integers(60, 68) | st.sampled_from([1 << 20, (1 << 40) - 1])
steps = st.lists(st.tuples(st.sampled_from(["add", "take"]), inos, st.integers(1, 600)), max_size=60)


@given(steps)
def test_as_a_dictionary_of_counts(actions: list[tuple[str, int, int]]) -> None:
    lookups, model = Lookups(), dict[int, int]()
    for kind, ino, count in actions:
        if kind == "add":
            lookups.add([ino] * count)
            model[ino] = model.get(ino, 0) + count
        else:
            left = max(model.get(ino, 0) - count, 0)
            assert lookups.take_back([(ino, count)]) == [ino] * (left == 0)
            model[ino] = left
        assert (ino in lookups) is (model[ino] > 0)
    assert lookups.take_back([(ino, max(count, 1)) for ino, count in model.items()]) == list(model)
    assert not lookups._groups, "nothing is kept of what is not there"
    assert not lookups._beyond


def test_a_million_inodes_take_a_few_bytes_each() -> None:
    lookups = Lookups()
    tracemalloc.start()
    try:
        lookups.add(range(16, 100_016))
        taken_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken_bytes < 5 * 100_000
