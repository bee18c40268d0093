"""Which snapshot a time means, held against an oracle that goes through the snapshots one by one and through the seconds of the clock."""

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.when import Known, reads_as_time, resolve

SECOND = 10**9
BERLIN = ZoneInfo("Europe/Berlin")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
START = datetime(2026, 10, 24, tzinfo=UTC)
"""The day before Berlin's clock is set back."""


def ns(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def shown(time_ns: int, zone: tzinfo) -> datetime:
    """What a clock in the zone shows, without saying which of two it is."""
    return (EPOCH + timedelta(microseconds=time_ns // 1000)).astimezone(zone).replace(tzinfo=None)


zones = st.sampled_from([UTC, BERLIN, ZoneInfo("Asia/Kathmandu"), ZoneInfo("America/Sao_Paulo"), timezone(timedelta(hours=-11))])
instants = st.integers(0, 4 * 86_400 * 1000).map(lambda ms: ns(START) + ms * 1_000_000)
many = st.lists(instants, min_size=1, max_size=8).map(lambda times: [Known(n, f"s-{n}", time_ns) for n, time_ns in enumerate(times, 1)])


def newest(fitting: list[Known]) -> int | None:
    best: Known | None = None
    for known in fitting:
        if best is None or known.time_ns > best.time_ns or (known.time_ns == best.time_ns and known.serial > best.serial):
            best = known
    return best.serial if best else None


def answer(text: str, snapshots: list[Known], now_ns: int, zone: tzinfo) -> int | None:
    """None: there is none at or before, and it is said which is the first."""
    try:
        return resolve(text, snapshots, now_ns, zone)
    except UsageError as error:
        refused = str(error)
    first = min(snapshots, key=lambda known: (known.time_ns, known.serial))
    assert refused.endswith(f"the first is {first.name}")
    return None


@given(many, instants, zones, st.sampled_from(["T", " ", "  "]), st.sampled_from(["offset", "Z", "zone"]), st.booleans())
def test_a_time_means_the_newest_at_or_before_its_second(
    snapshots: list[Known], at_ns: int, zone: tzinfo, between: str, how: str, with_seconds: bool
) -> None:
    second = at_ns // SECOND if with_seconds else at_ns // SECOND // 60 * 60
    moment = (EPOCH + timedelta(seconds=second)).astimezone(UTC if how == "Z" else zone)
    if how == "zone" and moment.fold:
        return  # the second of two: it can only be written with its offset
    text = between.join((moment.date().isoformat(), moment.time().isoformat("seconds" if with_seconds else "minutes")))
    offset = moment.utcoffset()
    assert offset is not None
    minutes = int(offset.total_seconds()) // 60
    text += {"Z": "Z", "zone": "", "offset": f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"}[how]
    assert answer(text, snapshots, 0, zone) == newest([known for known in snapshots if known.time_ns // SECOND <= second])


@given(many, instants, st.integers(1, 9))
def test_a_fraction_stands_for_the_whole_of_its_last_digit(snapshots: list[Known], at_ns: int, digits: int) -> None:
    at_ns += 123_456_789 - at_ns % SECOND
    text = f"{EPOCH + timedelta(seconds=at_ns // SECOND):%Y-%m-%dT%H:%M:%S}.{str(at_ns % SECOND).rjust(9, '0')[:digits]}Z"
    unit = 10 ** (9 - digits)
    snapshots = [*snapshots, Known(100, "itself", at_ns), Known(101, "after", at_ns // unit * unit + unit)]
    assert answer(text, snapshots, 0, UTC) == newest([known for known in snapshots if known.time_ns // unit <= at_ns // unit])


@given(many, instants, zones, st.sampled_from(["today", "yesterday", "date"]))
def test_a_day_means_its_last_or_else_the_newest_before(snapshots: list[Known], now_ns: int, zone: tzinfo, how: str) -> None:
    today = shown(now_ns, zone).date()
    day = today - timedelta(days=1) if how == "yesterday" else today
    of_the_day = [known for known in snapshots if shown(known.time_ns, zone).date() == day]
    before = [known for known in snapshots if shown(known.time_ns, zone).date() < day]
    text = day.isoformat() if how == "date" else how
    assert answer(text, snapshots, now_ns, zone) == newest(of_the_day or before)


@given(many, instants, zones, st.integers(0, 23), st.integers(0, 59), st.sampled_from(["", "today ", "yesterday "]))
def test_a_clock_time_is_of_the_persons_day(snapshots: list[Known], now_ns: int, zone: tzinfo, hour: int, minute: int, day: str) -> None:
    date = shown(now_ns, zone).date() - timedelta(days="yesterday" in day)
    text = f"{day}{hour}:{minute:02d}"
    assert answer(text, snapshots, now_ns, zone) == answer(f"{date} {hour:02d}:{minute:02d}:00", snapshots, 0, zone)


@given(many, instants, st.integers(0, 90), st.integers(1, 59))
def test_back_from_now(snapshots: list[Known], now_ns: int, hours: int, minutes: int) -> None:
    limit = now_ns - (hours * 60 + minutes) * 60 * SECOND
    text = f"-{hours}h{minutes}m" if hours else f"-{minutes}m"
    assert answer(text, snapshots, now_ns, BERLIN) == newest([known for known in snapshots if known.time_ns <= limit])


@given(many, st.integers(0, 9))
def test_back_from_the_latest(snapshots: list[Known], back: int) -> None:
    """The latest is the one taken last, whatever the clock said."""
    serials = sorted(known.serial for known in snapshots)
    if back < len(serials):
        assert resolve(f"latest~{back}", snapshots[::-1], 0, UTC) == serials[len(serials) - 1 - back]
    else:
        with pytest.raises(UsageError, match=rf"there are {len(serials)} snapshots, the first is latest~{len(serials) - 1}$"):
            resolve(f"latest~{back}", snapshots, 0, UTC)
    assert resolve(" latest ", snapshots, 0, UTC) == serials[-1]


@given(many, st.integers(0, 20))
def test_numbers_and_names(snapshots: list[Known], serial: int) -> None:
    named = [*snapshots, Known(77, "3", 0), Known(78, "yesterday", 0), Known(79, "before the flood", 0)]
    assert [resolve(name, named, 0, UTC) for name in ("3", "yesterday", "before the flood")] == [77, 78, 79]
    if serial in {known.serial for known in snapshots}:
        assert resolve(str(serial), snapshots, 0, UTC) == serial
    else:
        with pytest.raises(UsageError, match=f"no snapshot number {serial};"):
            resolve(str(serial), snapshots, 0, UTC)


def test_an_hour_that_the_clock_shows_twice_is_the_first_of_them() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    snapshots = [Known(1, "a", ns(first)), Known(2, "b", ns(first + timedelta(hours=1)))]
    assert resolve("2026-10-25 02:30", snapshots, 0, BERLIN) == 1
    assert resolve("2026-10-25 02:30+01:00", snapshots, 0, BERLIN) == 2
    assert resolve("2026-10-25", snapshots, 0, BERLIN) == 2


def test_today_is_that_of_the_zone_that_is_named() -> None:
    snapshots = [Known(1, "a", ns(START)), Known(2, "b", ns(START + timedelta(hours=23)))]
    now_ns = ns(START + timedelta(hours=23, minutes=30))  # tomorrow in Berlin
    assert resolve("23:15Z", snapshots, now_ns, BERLIN) == 2
    assert resolve("0:30 +0200", snapshots, now_ns, UTC) == 1


@example("2026-10-4")
@example("2026-02-30")
@example("25:00")
@example("12:60")
@example("latest~")
@example("latest~-1")
@example("-3")
@example("-3x")
@example("3h")
@example("+3h")
@example("")
@example("tomorrow")
@example("0000-01-01")
@example("2026-10-04T")
@example("2026-10-04 +02:00")
@example("2026-10-04T12:00+25:00")
@example("2026-10-04T120000Z")
@example("\u0661\u0662:00")
@given(
    st.text(max_size=12).filter(lambda text: not text.strip().isdecimal() and ":" not in text and not text.startswith("-") and "latest" not in text)
)
def test_what_is_not_understood_is_said_with_what_would_be(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        resolve(text, [Known(1, "s", 0)], 0, UTC)
    assert "is neither a snapshot nor a time: write " in str(refused.value)


@pytest.mark.parametrize(
    "text", ["1", "latest", "latest~3", "-3h", "18:00", "yesterday", "today 9:30", "2026-10-04", "0001-01-01T00:00+14:00", " -2d"]
)
def test_without_any_snapshot_that_is_said(text: str) -> None:
    assert reads_as_time(text)
    with pytest.raises(UsageError, match="no snapshot yet"):
        resolve(text, [], 0, UTC)


def test_the_ends_of_the_calendar() -> None:
    snapshots = [Known(1, "bogus", -(10**21)), Known(2, "s", 0), Known(3, "far", 10**21)]
    assert resolve("0001-01-01T00:00:00+14:00", snapshots, 0, UTC) == 1
    assert resolve("9999-12-31T23:59:59-14:00", snapshots, 0, UTC) == 2
    assert resolve("1970-01-01", snapshots, 0, UTC) == 2
