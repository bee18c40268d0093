"""Durations, sizes, counts and shares read back as they are shown, and everything else is refused in words."""

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.policy import SECOND_NS, Duration
from backupfs.rules.quantities import (
    parse_duration,
    parse_interval,
    parse_keep,
    parse_share,
    parse_size,
    show_duration,
    show_interval,
    show_keep,
    show_share,
    show_size,
)

YEAR_S = 366 * 86_400


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2),
        ("15m", 900),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1d", 86400),
        ("2w", 14 * 86400),
        ("1w2d", 9 * 86400),
        ("90m", 5400),
        ("1d1s", 86401),
    ],
)
def test_intervals_and_durations_are_read(text: str, seconds: int) -> None:
    assert parse_interval(text) == parse_duration(text) == seconds * SECOND_NS
    assert parse_keep(text) == Duration(seconds * SECOND_NS)


def test_off_is_no_interval() -> None:
    assert parse_interval("off") is None


NO_DURATION = ["", "0s", "0d0h", "m", "1m1h", "-1h", "1.5h", "1 h", "1H", "\u0661m", "1y", "3mo", "99999999999w", "1h\n"]


@pytest.mark.parametrize("text", [*NO_DURATION, "0", "15", "11y", "99999w", "3661d"])
def test_what_is_no_interval_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is no interval"):
        parse_interval(text)


@pytest.mark.parametrize("text", [*NO_DURATION, "0", "15", "off", "36601d"])
def test_what_is_no_duration_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration: write it as 90s"):
        parse_duration(text)


@pytest.mark.parametrize("text", [*NO_DURATION, "off", "-1", "1.5", "1e3", "1234567890", "36601d", " 24"])
def test_what_is_nothing_to_keep_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="neither how many nor how long"):
        parse_keep(text)


def test_counts_are_read() -> None:
    assert (parse_keep("24"), parse_keep("0")) == (24, 0)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1048576", 1048576),
        ("12B", 12),
        ("5GiB", 5 * 2**30),
        ("5 GiB", 5 * 2**30),
        ("5gib", 5 * 2**30),
        ("500 MB", 500_000_000),
        ("2kB", 2000),
        ("1.5TiB", 3 * 2**39),
        ("0.0015 kB", 1),
        ("7.999999999EiB", int(Fraction(7_999_999_999 * 2**60, 10**9))),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0GiB", "0.0001kB", "-1", "GiB", "5 apples", "5XB", "1,5GiB", "1e3", "8EiB", "5  GiB", "5GiB\n", "\u0665"])
def test_what_is_no_size_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is no size: write it as 5GiB"):
        parse_size(text)


def test_a_unit_of_two_meanings_is_asked_about() -> None:
    with pytest.raises(UsageError, match=r"'5g' is no size: write 5giB for powers of 1024, or 5gB for powers of 1000"):
        parse_size("5g")


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("2.5 %", 0.025), ("99.999999999%", 0.99999999999), ("0.000000001%", 1e-11)])
def test_shares_are_read(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "0%", "0.0%", "100%", "10", "0.1", "-5%", "ten%", "5%%", "1e1%"])
def test_what_is_no_share_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="is no share: write it as 10%"):
        parse_share(text)


@given(st.integers(1, 10 * YEAR_S))
def test_a_shown_interval_reads_back(seconds: int) -> None:
    assert parse_interval(show_interval(seconds * SECOND_NS)) == seconds * SECOND_NS


@given(st.integers(1, 100 * YEAR_S))
def test_a_shown_duration_reads_back(seconds: int) -> None:
    assert parse_duration(show_duration(seconds * SECOND_NS)) == seconds * SECOND_NS


@given(st.one_of(st.integers(0, 10**9 - 1), st.builds(lambda s: Duration(s * SECOND_NS), st.integers(1, 100 * YEAR_S))))
def test_what_is_kept_reads_back(keep: int | Duration) -> None:
    assert parse_keep(show_keep(keep)) == keep


@given(st.one_of(st.integers(1, 2**63 - 1), st.builds(lambda n, e: n << e, st.integers(1, 999), st.integers(0, 53))))
@example(1023)
@example(10**18)
def test_a_shown_size_reads_back(size: int) -> None:
    assert parse_size(show_size(size)) == size


def test_a_size_is_shown_in_the_unit_that_needs_the_fewest_digits() -> None:
    assert [show_size(size) for size in (5 * 2**30, 500_000_000, 1025, 0)] == ["5GiB", "500MB", "1025B", "0B"]


@given(st.integers(1, 10**11 - 1))
def test_a_shown_share_reads_back(billionths_of_percent: int) -> None:
    text = f"{billionths_of_percent // 10**9}.{billionths_of_percent % 10**9:09}%"
    share = parse_share(text)
    assert parse_share(show_share(share)) == share
    assert show_share(share).rstrip("%") == text.rstrip("%").rstrip("0").rstrip(".")


@pytest.mark.parametrize("parse", [parse_interval, parse_duration, parse_keep, parse_size, parse_share])
@given(text=st.one_of(st.text(max_size=8), st.text("0123456789.wdhmsKMGTiB% ")))
def test_whatever_is_written_is_read_or_refused(parse: Callable[[str], object], text: str) -> None:
    with suppress(UsageError):
        assert parse(text) or text == "off" or int(text) == 0
