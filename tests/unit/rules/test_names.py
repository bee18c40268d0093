"""Snapshot names: against the standard library's calendar, unique, in the order of cutting."""

import calendar
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.rules.names import name_fault, snapshot_name, utc_second

SECOND_NS = 1_000_000_000
TIMES = st.integers(-(10**18), 10**19)


def test_the_example_of_the_product() -> None:
    noon = calendar.timegm((2026, 10, 4, 12, 0, 0)) * SECOND_NS
    assert snapshot_name(noon + 999_999_999, 7, "") == "2026-10-04T120000Z"


@given(TIMES)
def test_a_name_is_the_second_as_gmtime_has_it(time_ns: int) -> None:
    second = time_ns // SECOND_NS
    if second <= calendar.timegm((9999, 12, 31, 23, 59, 59)):
        moment = time.gmtime(second)
        assert utc_second(time_ns) == f"{moment.tm_year:04d}-" + time.strftime("%m-%dT%H%M%SZ", moment)


@given(st.integers())
def test_no_time_is_too_strange_for_a_name(time_ns: int) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d{6}Z", utc_second(time_ns))


def names_of(times: list[int], first: int) -> list[str]:
    names: list[str] = []
    for serial, time_ns in enumerate(times, first):
        names.append(snapshot_name(time_ns, serial, max(names, default="")))
    return names


@given(st.lists(st.integers(0, 5 * SECOND_NS), max_size=50), st.integers(1, 900))
def test_names_sort_as_they_were_taken_while_the_clock_runs_forward(times: list[int], first: int) -> None:
    names = names_of(sorted(times), first)
    assert names == sorted(set(names))


@given(st.lists(st.integers(0, 5 * SECOND_NS), max_size=50), st.integers(1, 1200))
def test_no_name_is_given_twice_wherever_the_clock_jumps(times: list[int], first: int) -> None:
    names = names_of(times, first)
    assert len(set(names)) == len(names)
    assert [name[:18] for name in names] == [utc_second(time_ns) for time_ns in times]


@pytest.mark.parametrize(
    "name",
    ["yesterday", "today 18:00", "18:00", "2026-10-04", "-3h", "-x", "12", "2026", "latest~2", "latest", ".x", "@GMT-1", "a/b", "a\n", ""],
)
def test_what_means_something_else_is_no_name(name: str) -> None:
    assert name_fault(name)


@pytest.mark.parametrize("name", ["before the upgrade", "v1", "12a", "yesterday's", "3h", "naïve"])
def test_a_person_may_give_other_names(name: str) -> None:
    assert name_fault(name) is None
