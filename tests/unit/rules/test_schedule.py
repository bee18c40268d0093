"""The schedule's decisions: properties over any course of the clock, and intervals that read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.schedule import SECOND_NS, Action, decide, parse_interval, show_interval

TIMES = st.integers(0, 2**63)
INTERVALS = st.integers(1, 2**55)


@given(now=TIMES, anchor=TIMES, every=INTERVALS, changed=st.booleans())
def test_it_runs_exactly_when_an_interval_has_passed_and_something_changed(now: int, anchor: int, every: int, changed: bool) -> None:
    due = now >= anchor + every
    expected = (Action.RUN if changed else Action.SKIP) if due else Action.WAIT
    assert decide(now, anchor, every, changed).action is expected


@given(now=TIMES, anchor=TIMES, every=INTERVALS, changed=st.booleans())
def test_the_next_run_is_never_more_than_an_interval_away(now: int, anchor: int, every: int, changed: bool) -> None:
    decision = decide(now, anchor, every, changed)
    assert 0 < decision.wait_ns <= every
    later = decide(now + decision.wait_ns, decision.anchor_ns, every, changed=True)
    assert later.action is Action.RUN


@given(now=TIMES, missed=st.integers(1, 1000), every=INTERVALS)
def test_one_run_makes_up_for_all_that_were_missed(now: int, missed: int, every: int) -> None:
    first = decide(now + missed * every, now, every, changed=True)
    assert first.action is Action.RUN
    assert decide(now + missed * every, first.anchor_ns, every, changed=True).action is Action.WAIT


@given(start=TIMES, steps=st.lists(st.tuples(st.integers(-(2**40), 2**40), st.booleans())), every=st.integers(1, 2**38))
def test_however_the_clock_is_set_runs_keep_their_distance(start: int, steps: list[tuple[int, bool]], every: int) -> None:
    """Between two runs the clock went forward by at least one interval, summed over its forward steps."""
    now = anchor = start
    forward: int | None = None
    for step, changed in steps:
        now += step
        if forward is not None:
            forward += max(step, 0)
        decision = decide(now, anchor, every, changed)
        anchor = decision.anchor_ns
        if decision.action is Action.RUN:
            assert forward is None or forward >= every
            forward = 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2),
        ("15m", 900),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("2w", 14 * 86400),
        ("90m", 5400),
        ("1d1s", 86401),
    ],
)
def test_intervals_are_read(text: str, seconds: int) -> None:
    assert parse_interval(text) == seconds * SECOND_NS


def test_off_is_no_interval() -> None:
    assert parse_interval("off") is None


@pytest.mark.parametrize("text", ["", "0s", "0", "15", "m", "1m1h", "-1h", "1.5h", "1 h", "1H", "\u0661m", "11y", "99999w", "1h\n"])
def test_what_is_no_interval_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is no interval"):
        parse_interval(text)


@given(st.integers(1, 10 * 366 * 86_400))
def test_a_shown_interval_reads_back(seconds: int) -> None:
    assert parse_interval(show_interval(seconds * SECOND_NS)) == seconds * SECOND_NS
