"""What counts as a difference of times: which a step changed, which it made equal, in which order they are, what a caller has set."""

import stat

import pytest

from tests.posix.comparing import Moment, seen_faults, time_faults
from tests.posix.side import Before, Facts, Seen

BEGIN_NS = 1_700_000_000_000_000_000
MOMENT = Moment(BEGIN_NS - 2_000_000, BEGIN_NS, BEGIN_NS + 5_000_000)
OLD = (BEGIN_NS - 10**9, BEGIN_NS - 10**9, BEGIN_NS - 10**9)
NOW = BEGIN_NS + 1_000_000
SET = 5


@pytest.mark.parametrize(
    ("expected", "found", "faults"),
    [
        ((OLD, OLD), (OLD, OLD), []),
        ((OLD, (OLD[0], NOW, NOW)), (OLD, (OLD[0], NOW + 7, NOW + 7)), []),
        ((OLD, (OLD[0], NOW, NOW)), (OLD, (OLD[0], NOW, NOW + 7)), ["mtime: is older than the ctime", "mtime and ctime"]),
        ((OLD, (OLD[0], NOW, NOW + 7)), (OLD, (OLD[0], NOW, NOW)), []),  # ext4 has taken the clock twice
        ((OLD, (OLD[0], NOW, NOW)), (OLD, (OLD[0], OLD[1], NOW)), ["mtime: was not changed"]),
        ((OLD, (OLD[0], OLD[1], NOW)), (OLD, (OLD[0], NOW, NOW)), ["mtime: was changed"]),
        ((OLD, (OLD[0], OLD[1], NOW)), (OLD, (OLD[0], OLD[1], NOW - 10**9 + 1)), ["ctime: 1699999999001000001 is not of this step"]),
        ((OLD, (OLD[0], SET, NOW)), (OLD, (OLD[0], SET, NOW)), []),
        ((OLD, (OLD[0], SET, NOW)), (OLD, (OLD[0], SET + 1, NOW)), ["mtime: set"]),
        ((OLD, (OLD[0], SET, NOW)), (OLD, (OLD[0], NOW, NOW)), ["mtime: set"]),
        ((None, (NOW, NOW, NOW)), (None, (NOW, NOW, NOW)), []),
        ((None, (NOW, NOW, NOW)), (None, (NOW, NOW, OLD[2])), ["ctime: was not changed"]),
        ((None, OLD), (None, OLD), []),  # it was there and was not looked at
        ((None, (BEGIN_NS - 1,) * 3), (None, (BEGIN_NS - 1,) * 3), []),
    ],
)
def test_times(
    expected: tuple[tuple[int, int, int] | None, tuple[int, int, int]],
    found: tuple[tuple[int, int, int] | None, tuple[int, int, int]],
    faults: list[str],
) -> None:
    told = time_faults(expected, found, MOMENT)
    assert len(told) == len(faults), told
    assert all(line.startswith(begin) for line, begin in zip(told, faults, strict=True)), told


def test_a_change_within_the_tick_of_the_last_one_cannot_be_told() -> None:
    just = (OLD[0], MOMENT.coarse_ns, MOMENT.coarse_ns)
    assert not time_faults((just, (OLD[0], NOW, NOW)), (just, just), MOMENT)


def test_no_time_goes_back() -> None:
    before = (OLD[0], OLD[1], MOMENT.coarse_ns + 9)
    (fault,) = time_faults((before, (OLD[0], OLD[1], NOW)), (before, (OLD[0], OLD[1], MOMENT.coarse_ns)), MOMENT)
    assert fault.startswith("ctime: went back")


def test_what_changed_last_is_the_newest() -> None:
    before = (OLD[0], MOMENT.coarse_ns + 9, OLD[2])
    (fault,) = time_faults((before, (*before[:2], NOW)), (before, (*before[:2], MOMENT.coarse_ns)), MOMENT)
    assert fault.startswith("ctime: is older than the mtime")


@pytest.mark.parametrize(
    ("call", "size_before", "kind", "is_known"),
    [
        ("truncate", 7, stat.S_IFREG, True),
        ("truncate", 8, stat.S_IFREG, False),
        ("truncate", 7, stat.S_IFDIR, False),
        ("chmod", 7, stat.S_IFREG, False),
        ("write", 7, stat.S_IFIFO, True),
        ("write", 7, stat.S_IFREG, False),
    ],
)
def test_what_is_known_is_known_of_that_call_and_that_kind_only(call: str, size_before: int, kind: int, is_known: bool) -> None:
    facts = Facts(kind | 0o644, 1, 0, 0, 7, None)
    seen = Seen(facts, (OLD[0], NOW, NOW), 1), Seen(facts, OLD, 2)
    before = {1: Before(OLD, size_before)}, {2: Before(OLD, size_before)}
    assert (not seen_faults("it", seen[0], seen[1], before, MOMENT, call=call)) is is_known
    assert seen_faults("it", seen[1], seen[0], (before[1], before[0]), MOMENT, call=call)
