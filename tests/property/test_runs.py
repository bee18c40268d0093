"""Unstored bytes against a dictionary of single bytes."""

from hypothesis import example, given
from hypothesis import strategies as st

from backupfs.rules.runs import Run, Runs

SIZE = 60
Model = dict[int, int]

offsets = st.integers(0, SIZE)
content = st.binary(max_size=20)
writes = st.tuples(st.just("write"), offsets, content)
appends = st.tuples(st.just("append"), st.just(0), content)
below = st.tuples(st.just("put_below"), offsets, content)
removes = st.tuples(st.just("remove"), offsets, st.integers(0, 30))
takes = st.tuples(st.just("take"), offsets, st.integers(0, 30))
all_taken = st.tuples(st.just("take_all"), st.just(0), st.just(0))
actions = st.lists(st.one_of(writes, appends, below, removes, takes, all_taken), max_size=30)


def check(runs: Runs, model: Model) -> None:
    found: Model = {}
    end = -1
    for run in runs.runs:
        assert run.start > end, "runs are sorted and never touch"
        data = run.bytes()
        assert len(data) == run.length > 0
        found.update({run.start + i: byte for i, byte in enumerate(data)})
        end = run.end
    assert found == model
    assert runs.total_bytes == len(model)
    assert bool(runs) == bool(model)


@given(actions, offsets, offsets)
@example([("append", 0, bytes(2)), ("remove", 1, 0)], 0, 0)
def test_as_a_dictionary_of_bytes(steps: list[tuple[str, int, bytes | int]], low: int, high: int) -> None:
    runs, model = Runs(), Model()
    for kind, where, what in steps:
        at = where
        if isinstance(what, bytes):
            if kind == "append" and model:
                at = runs.runs[-1].end
            data = {at + i: byte for i, byte in enumerate(what)}
            if kind == "put_below":
                runs.put_below(Run(at, len(what), [what[:5], memoryview(what)[5:]]))
                model = data | model
            else:
                length = runs.write(at, what)
                model |= data
                assert length == (sum(run.length for run in runs.runs if run.start <= at < run.end) if what else 0)
        elif kind == "remove":
            runs.remove(at, at + what)
            model = {i: byte for i, byte in model.items() if not at <= i < at + what}
        elif kind == "take_all":
            taken_all = {run.start + i: byte for run in runs.take_all() for i, byte in enumerate(run.bytes())}
            assert taken_all == model
            model = {}
        else:
            begins = at in model and at - 1 not in model
            taken = runs.take(at, at + what)
            assert (taken is not None) == begins
            if taken is not None:
                part = {taken.start + i: byte for i, byte in enumerate(taken.bytes())}
                stretch = {i: model[i] for i in range(at, at + what) if all(j in model for j in range(at, i + 1))}
                assert part == stretch
                model = {i: byte for i, byte in model.items() if i not in part}
        check(runs, model)
    low, high = min(low, high), max(low, high)
    into = bytearray(b"\xee" * (high - low))
    runs.overlay(low, high, into)
    assert into == bytes(model.get(i, 0xEE) for i in range(low, high))
    shown = [(part.start + i, byte) for part in runs.parts(low, high) for i, byte in enumerate(part.bytes())]
    assert shown == sorted((i, byte) for i, byte in model.items() if low <= i < high)
    check(runs, model)


@given(st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=6), offsets, offsets)
def test_a_slice_shares_memory_and_content(pieces: list[bytes], low: int, high: int) -> None:
    whole = b"".join(pieces)
    run = Run(10, len(whole), list(pieces))
    part = run.slice(low, high)
    first = max(low, 10)
    assert part.start == first
    assert part.bytes() == whole[first - 10 : max(high - 10, first - 10)]
    assert part.length == len(part.bytes())
