"""Cron lines against a calendar that is gone through minute by minute."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.cron import check_cron, next_ns
from backupfs.rules.policy import SECOND_NS

BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
"""Its clocks are set back by half an hour."""
BEIRUT = ZoneInfo("Asia/Beirut")
"""Its clocks are set forward at midnight."""
MINUTE = timedelta(minutes=1)
MINUTE_NS = 60 * SECOND_NS


def ns(moment: datetime) -> int:
    return round(moment.timestamp()) * SECOND_NS


# --- the same rule, slowly --------------------------------------------------------------------------------------------

Line = tuple[frozenset[int] | None, frozenset[int] | None, frozenset[int] | None, frozenset[int] | None, frozenset[int] | None]
"""Minute, hour, day, month, day of the week (0: Sunday); None is `*`."""


def written(line: Line) -> str:
    return " ".join("*" if field is None else ",".join(map(str, sorted(field))) for field in line)


def names(line: Line, at: datetime) -> bool:
    minute, hour, day, month, weekday = line
    fits = [field is None or value in field for field, value in ((minute, at.minute), (hour, at.hour), (month, at.month))]
    by_day = day is None or at.day in day
    by_weekday = weekday is None or at.isoweekday() % 7 in weekday
    return all(fits) and ((by_day and by_weekday) if day is None or weekday is None else (by_day or by_weekday))


def occurrences(line: Line, zone: ZoneInfo, start: datetime, end: datetime) -> Iterator[int]:
    """All times from `start` to `end`, in UTC. Lines with `*` for minute or hour go by what the clock shows; of others each
    reading counts once, and one that is left out counts when the clock has been set forward.
    """
    if line[0] is None or line[1] is None:
        at = start
        while at < end:
            if names(line, at.astimezone(zone)):
                yield ns(at)
            at += MINUTE
        return
    reading = start.astimezone(zone).replace(tzinfo=None) - timedelta(days=1)
    while reading < end.astimezone(zone).replace(tzinfo=None):
        if names(line, reading):
            at = reading.replace(tzinfo=zone)
            shown = at.astimezone(UTC).astimezone(zone).replace(tzinfo=None)
            while shown != at.replace(tzinfo=None):
                at += MINUTE
                shown = at.astimezone(UTC).astimezone(zone).replace(tzinfo=None)
            if start <= at < end:
                yield ns(at)
        reading += MINUTE


def some(low: int, high: int) -> st.SearchStrategy[frozenset[int] | None]:
    return st.one_of(st.none(), st.frozensets(st.integers(low, high), min_size=1, max_size=4))


lines = st.tuples(some(0, 59), some(0, 23), some(1, 31), st.none(), some(0, 6))
around_changes = st.one_of(
    st.tuples(st.just(BERLIN), st.sampled_from([datetime(2026, 3, 28, 23, tzinfo=UTC), datetime(2026, 10, 24, 23, tzinfo=UTC)])),
    st.tuples(st.just(LORD_HOWE), st.sampled_from([datetime(2026, 4, 4, 13, tzinfo=UTC), datetime(2026, 10, 3, 13, tzinfo=UTC)])),
    st.tuples(st.just(BEIRUT), st.just(datetime(2026, 3, 28, 20, tzinfo=UTC))),
    st.tuples(st.just(ZoneInfo("UTC")), st.just(datetime(2028, 2, 28, 22, tzinfo=UTC))),
)
hours = st.one_of(st.none(), st.frozensets(st.integers(0, 4), min_size=1))
near = st.tuples(some(0, 59), hours, st.none(), st.none(), st.none())


@given(line=st.one_of(lines, near), place=around_changes, ago_s=st.integers(0, 5 * 3600))
def test_the_next_time_is_the_first_after_the_anchor_in_days_when_clocks_are_set(line: Line, place: tuple[ZoneInfo, datetime], ago_s: int) -> None:
    zone, start = place
    anchor = start + timedelta(seconds=ago_s)
    end = start + timedelta(hours=36)
    expected = min((at for at in occurrences(line, zone, start, end) if at > ns(anchor)), default=None)
    found = next_ns(check_cron(written(line)), zone, ns(anchor) + 5)
    if expected is None:
        assert found is None or found >= ns(end)
    else:
        assert found == expected


def test_a_time_is_not_named_again_in_the_hour_that_comes_twice() -> None:
    first = ns(datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN))
    assert next_ns("30 2 * * *", BERLIN, first - 1) == first
    for after in (first, first + 50 * MINUTE_NS):
        assert next_ns("30 2 * * *", BERLIN, after) == ns(datetime(2026, 10, 26, 2, 30, tzinfo=BERLIN))


def test_a_time_that_is_left_out_comes_when_the_clock_has_been_set() -> None:
    assert next_ns("30 2 * * *", BERLIN, ns(datetime(2026, 3, 29, 1, tzinfo=BERLIN))) == ns(datetime(2026, 3, 29, 3, tzinfo=BERLIN))


@pytest.mark.parametrize(
    ("line", "after", "following"),
    [
        # In Lord Howe 2:00 became 1:30, and half a year later 2:00 became 2:30.
        ("*/15 2 * * *", datetime(2026, 4, 5, 0, tzinfo=LORD_HOWE), datetime(2026, 4, 5, 2, tzinfo=LORD_HOWE)),
        ("*/15 1 * * *", datetime(2026, 4, 5, 1, 50, tzinfo=LORD_HOWE), datetime(2026, 4, 5, 1, 30, fold=1, tzinfo=LORD_HOWE)),
        ("* 3 * * *", datetime(2026, 10, 4, 0, tzinfo=LORD_HOWE), datetime(2026, 10, 4, 3, tzinfo=LORD_HOWE)),
        ("*/30 2 * * *", datetime(2026, 10, 4, 0, tzinfo=LORD_HOWE), datetime(2026, 10, 4, 2, 30, tzinfo=LORD_HOWE)),
        # In Beirut 0:00 became 1:00.
        ("*/30 0,2 * * *", datetime(2026, 3, 28, 12, tzinfo=BEIRUT), datetime(2026, 3, 29, 2, tzinfo=BEIRUT)),
        ("*/30 * 29 * *", datetime(2026, 3, 28, 12, tzinfo=BEIRUT), datetime(2026, 3, 29, 1, tzinfo=BEIRUT)),
        ("0 0 29 3 *", datetime(2026, 3, 28, 12, tzinfo=BEIRUT), datetime(2026, 3, 29, 1, tzinfo=BEIRUT)),
        # Behind two changes of the clock, and behind eight.
        ("0 */12 1 1 *", datetime(2026, 1, 2, tzinfo=BERLIN), datetime(2027, 1, 1, tzinfo=BERLIN)),
        ("0 */12 29 2 *", datetime(2024, 3, 2, tzinfo=BERLIN), datetime(2028, 2, 29, tzinfo=BERLIN)),
    ],
)
def test_a_line_that_goes_by_what_the_clock_shows(line: str, after: datetime, following: datetime) -> None:
    assert next_ns(line, ZoneInfo(str(after.tzinfo)), ns(after)) == ns(following)


@pytest.mark.parametrize("zone", [UTC, BERLIN])
@pytest.mark.parametrize("minute", ["0", "*"])
def test_a_line_that_is_not_checked_and_never_comes_ends(zone: ZoneInfo, minute: str) -> None:
    assert next_ns(f"{minute} 0 */31 * MON#2", zone, 0) is None


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_good_line_is_given_back_with_single_spaces() -> None:
    assert check_cron("  */15\t8-18 *  * mon-fri ") == "*/15 8-18 * * mon-fri"
    for line in ("0 0 29 2 *", "0 0 L * *", "0 0 * * SUN#1", "0 0 29 2 */8", "0 12 31 2 MON"):
        assert check_cron(line) == line


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "has 0 fields instead of 5"),
        ("* * * *", "has 4 fields instead of 5"),
        ("0 * * * * *", "has 6 fields instead of 5"),
        ("@daily", "has 1 fields instead of 5"),
        ("60 * * * *", "'60' is no minute"),
        ("0 24 * * *", "'24' is no hour"),
        ("0 0 0 * *", "'0' is no day-of-month"),
        ("0 0 * FOO *", "'FOO' is no month"),
        ("0 0 1 1 MON-", "'MON-' is no day-of-week"),
        ("*/0 * * * *", r"'\*/0' is no minute"),
        ("0 0 31 2 *", "'0 0 31 2 \\*' never comes: no month that it names has such a day"),
        ("0 0 31 4,6,9,11 */2", "never comes: no month"),
        ("0 0 */31 * MON#2", "never comes: no day is all that it names"),
        ("0 0 * * " + "1," * 1000 + "1", "is longer than 1000 characters"),
        ("0 0 1 * " + "9" * 5000, "is longer than 1000 characters"),
    ],
)
def test_other_lines_are_refused_in_words(line: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_cron(line)


@given(st.lists(st.text("0123456789*/-,#LWMONSU\u00b2", min_size=1, max_size=6), min_size=5, max_size=5))
def test_whatever_is_written_is_a_line_that_comes_or_is_refused(fields: list[str]) -> None:
    with suppress(UsageError):
        assert next_ns(check_cron(" ".join(fields)), UTC, 0) is not None
