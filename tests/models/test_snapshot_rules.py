"""The model against examples worked out by hand, sentence by sentence of `docs/snapshots.md`.

Each part quotes its sentence. Dates and results are literal; nothing that the model computes is used to say what it should have computed.
1 January 2024 is a Monday. Central European Summer Time began on 31 March 2024 at 01:00 UTC and ended on 27 October 2024 at 01:00 UTC.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest

from tests.models.snapshot_rules import (
    SCHEDULES_OUT_OF_THE_BOX,
    SETTINGS_OUT_OF_THE_BOX,
    Cron,
    Duration,
    Schedule,
    ScheduleModel,
    Settings,
    Snapshot,
    excess_bytes,
    fates,
    next_run_ns,
    runs_at,
)

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
NOW = "2024-06-01 00:00"


def at(text: str) -> int:
    """Nanoseconds of a date in UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def taken(*times: str) -> list[Snapshot]:
    """Snapshots of these times, serial 1 first."""
    return [Snapshot(serial, at(time)) for serial, time in enumerate(times, 1)]


def frees_nothing(serials: set[int]) -> int:
    return 0


def frees_ten_each(serials: set[int]) -> int:
    return 10 * len(serials)


def kept(
    snapshots: list[Snapshot],
    settings: Settings,
    now: str = NOW,
    excess_bytes: int = 0,
    frees: Callable[[set[int]], int] = frees_nothing,
) -> list[int]:
    found = fates(snapshots, settings, at(now), excess_bytes, frees)
    assert sorted(found) == sorted(s.serial for s in snapshots), "each snapshot has its fate"
    return sorted(serial for serial, stays in found.items() if stays)


def days(text: str) -> Duration:
    return Duration.parse(text)


# --- Keeping them: the levels ---------------------------------------------------------------------------------------
# The text: "Never removed: pinned ones; held ones, while now is before the end of the hold; the newest, which is the one taken last (not the one of
# the latest time); and those whose time is after now."

LAST_ONE = Settings(keep_last=1)


def test_pinned_ones_are_never_removed() -> None:
    snapshots = [
        Snapshot(1, at("2024-01-01 00:00"), pinned=True),
        Snapshot(2, at("2024-01-02 00:00")),
        Snapshot(3, at("2024-01-03 00:00")),
    ]
    assert kept(snapshots, LAST_ONE) == [1, 3]
    assert kept(snapshots, LAST_ONE, excess_bytes=1000, frees=frees_ten_each) == [1, 3]


@pytest.mark.parametrize(
    ("now", "stay"),
    [("2024-02-01 00:00", [1, 3]), ("2024-02-09 23:59:59", [1, 3]), ("2024-02-10 00:00", [3]), ("2024-02-11 00:00", [3])],
)
def test_held_ones_are_not_removed_before_the_end_of_the_hold(now: str, stay: list[int]) -> None:
    snapshots = [
        Snapshot(1, at("2024-01-01 00:00"), hold_end_ns=at("2024-02-10 00:00")),
        Snapshot(2, at("2024-01-02 00:00")),
        Snapshot(3, at("2024-01-03 00:00")),
    ]
    assert kept(snapshots, LAST_ONE, now) == stay


def test_the_newest_is_the_one_taken_last_not_the_one_of_the_latest_time() -> None:
    snapshots = taken("2024-01-05 00:00", "2024-01-06 00:00", "2024-01-02 00:00")  # the clock was set back before the third
    assert kept(snapshots, LAST_ONE) == [2, 3], "2 by keep-last, 3 because it was taken last"
    assert kept(snapshots, LAST_ONE, excess_bytes=1000, frees=frees_ten_each) == [3]


def test_those_of_the_future_are_never_removed() -> None:
    snapshots = taken("2024-07-01 00:00", "2024-06-01 00:00", "2024-05-01 00:00", "2024-04-01 00:00")
    # 1 is of the future; 2 is of now, hence the first of the others, and kept by keep-last; 4 was taken last
    assert kept(snapshots, LAST_ONE) == [1, 2, 4]
    assert kept(snapshots, LAST_ONE, excess_bytes=1000, frees=frees_ten_each) == [1, 4]


# The text: "min-age: one whose time is after now - min-age stays."


def test_min_age() -> None:
    snapshots = taken("2024-05-29 23:59", "2024-05-30 00:00", "2024-05-30 00:01", "2024-05-31 12:00", "2024-05-31 13:00")
    two_days = Settings(keep_last=1, min_age=days("2d"))
    assert kept(snapshots, two_days) == [3, 4, 5], "2 is exactly two days old: not after"
    assert kept(snapshots, two_days, excess_bytes=1000, frees=frees_ten_each) == [3, 4, 5], "stronger than the limits"
    assert kept(snapshots, LAST_ONE) == [5]


# The text: "max-delete-fraction F (0 < F <= 1; default 1): of n snapshots that are looked at, at most max(1, floor(F n)) are deleted in one run.
# The oldest are deleted first (by time, then by serial number); the others wait for the next run."

TEN = taken(*(f"2024-01-{day:02} 00:00" for day in range(1, 11)))


@pytest.mark.parametrize(
    ("fraction", "stay"),
    [
        (Fraction(1), [10]),
        (Fraction(1, 2), [6, 7, 8, 9, 10]),
        (Fraction(39, 100), [4, 5, 6, 7, 8, 9, 10]),  # 3.9
        (Fraction(3, 10), [4, 5, 6, 7, 8, 9, 10]),
        (Fraction(1, 100), [2, 3, 4, 5, 6, 7, 8, 9, 10]),  # 0.1, so one
    ],
)
def test_at_most_a_fraction_is_deleted_the_oldest_first(fraction: Fraction, stay: list[int]) -> None:
    assert kept(TEN, Settings(keep_last=1, max_delete_fraction=fraction)) == stay


def test_all_that_are_looked_at_count_for_the_fraction_also_pinned_ones() -> None:
    snapshots = [Snapshot(serial, at(f"2024-01-{serial:02} 00:00"), pinned=serial <= 5) for serial in range(1, 11)]
    assert kept(snapshots, Settings(keep_last=1, max_delete_fraction=Fraction(3, 10))) == [1, 2, 3, 4, 5, 9, 10], "three of ten"


def test_the_oldest_is_the_one_of_the_lowest_time_then_of_the_lowest_serial() -> None:
    snapshots = taken("2024-01-03 00:00", "2024-01-01 00:00", "2024-01-01 00:00", "2024-01-02 00:00", "2024-01-09 00:00")
    one, two, three = (Settings(keep_last=1, max_delete_fraction=Fraction(part, 5)) for part in (1, 2, 3))
    assert kept(snapshots, one) == [1, 3, 4, 5]
    assert kept(snapshots, two) == [1, 4, 5]
    assert kept(snapshots, three) == [1, 5]


def test_the_others_wait_for_the_next_run() -> None:
    settings = Settings(keep_last=2, max_delete_fraction=Fraction(1, 4))
    first = kept(TEN, settings)
    assert first == [3, 4, 5, 6, 7, 8, 9, 10]
    second = kept([s for s in TEN if s.serial in first], settings)
    assert second == [5, 6, 7, 8, 9, 10]


# The text: "Keep rules: a snapshot stays when at least one rule keeps it. When no rule is given at all, every snapshot stays. With rules, one that
# none keeps is deleted." "A count of 0 is no rule."


def test_without_rules_every_snapshot_stays() -> None:
    assert kept(TEN, Settings()) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert kept(TEN, Settings(keep_last=0, keep_daily=0)) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert kept([], Settings()) == kept([], LAST_ONE) == []


def test_one_rule_is_enough_to_stay() -> None:
    snapshots = [Snapshot(1, at("2024-01-01 00:00"), ("a",)), *taken("2024-01-01 00:00", "2024-01-02 00:00", "2024-01-03 00:00")[1:]]
    assert kept(snapshots, Settings(keep_last=1, keep_tag=("a",))) == [1, 3]
    assert kept(snapshots, Settings(keep_last=0, keep_tag=("a",))) == [1, 3], "3 was taken last"


# --- Keeping them: the rules ----------------------------------------------------------------------------------------
# The text: "The keep rules look at the snapshots that do not lie in the future, pinned, held and young ones included, sorted by time and then by
# serial number, newest first. ref is the time of the first of them."


def test_pinned_held_and_young_ones_use_up_a_count() -> None:
    snapshots = [
        Snapshot(1, at("2024-05-26 00:00")),
        Snapshot(2, at("2024-05-27 00:00")),
        Snapshot(3, at("2024-05-28 00:00"), pinned=True),
        Snapshot(4, at("2024-05-29 00:00"), hold_end_ns=at("2024-07-01 00:00")),
        Snapshot(5, at("2024-05-31 12:00")),
        Snapshot(6, at("2024-05-31 13:00")),
    ]
    settings = Settings(keep_last=4, min_age=days("1d"))
    assert kept(snapshots, settings) == [3, 4, 5, 6]


def test_those_of_the_future_use_up_no_count() -> None:
    snapshots = taken("2024-05-01 00:00", "2024-05-02 00:00", "2024-06-02 00:00", "2024-06-03 00:00")
    assert kept(snapshots, LAST_ONE) == [2, 3, 4]


def test_of_the_same_time_the_higher_serial_is_the_newer() -> None:
    snapshots = taken("2024-05-02 00:00", "2024-05-02 00:00", "2024-05-02 00:00", "2024-05-01 00:00")
    assert kept(snapshots, Settings(keep_last=2)) == [2, 3, 4], "2 and 3 by the rule, 4 was taken last"
    assert kept(snapshots, Settings(keep_daily=1)) == [3, 4]


# The text: "keep-last = N: the first N"


def test_keep_last_a_count() -> None:
    assert kept(TEN, Settings(keep_last=3)) == [8, 9, 10]
    assert kept(TEN, Settings(keep_last=30)) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


# The text: "keep-last = D, keep-within = D: those whose time is after ref - D." "Durations count back from the newest snapshot."


def test_keep_last_and_keep_within_a_duration() -> None:
    assert kept(TEN, Settings(keep_last=days("3d"))) == [8, 9, 10], "7 January is three days before the 10th: not after"
    assert kept(TEN, Settings(keep_within=days("3d"))) == [8, 9, 10]
    assert kept(TEN, Settings(keep_within=days("72h1s"))) == [7, 8, 9, 10]


def test_ref_is_the_latest_time_not_the_future_and_not_the_one_taken_last() -> None:
    snapshots = taken("2024-05-01 00:00", "2024-05-03 00:00", "2024-05-04 00:00", "2024-06-02 00:00", "2024-05-02 00:00")
    assert kept(snapshots, Settings(keep_within=days("2d"))) == [2, 3, 4, 5], "ref is 4 May; 5 was taken last"


# The text: "the newest snapshot of each of the N newest periods that have any" and "the newest snapshot of each period, as long as its time is
# after ref - D"


def test_minutely() -> None:
    snapshots = taken("2024-05-01 10:00:00", "2024-05-01 10:00:59", "2024-05-01 10:01:00", "2024-05-01 10:05:30", "2024-05-01 10:05:40")
    assert kept(snapshots, Settings(keep_minutely=2)) == [3, 5]
    assert kept(snapshots, Settings(keep_minutely=3)) == [2, 3, 5]
    assert kept(snapshots, Settings(keep_minutely=days("4m41s"))) == [3, 5], "10:00:59 is exactly that before 10:05:40"
    assert kept(snapshots, Settings(keep_minutely=days("4m42s"))) == [2, 3, 5]


def test_hourly() -> None:
    snapshots = taken("2024-05-01 09:59", "2024-05-01 10:00", "2024-05-01 10:59", "2024-05-01 11:00", "2024-05-02 10:30")
    assert kept(snapshots, Settings(keep_hourly=3)) == [3, 4, 5]
    assert kept(snapshots, Settings(keep_hourly=9)) == [1, 3, 4, 5]
    assert kept(snapshots, Settings(keep_hourly=days("23h31m"))) == [4, 5], "10:59 is exactly that before"
    assert kept(snapshots, Settings(keep_hourly=days("23h32m"))) == [3, 4, 5]


def test_daily() -> None:
    snapshots = taken("2024-05-01 23:00", "2024-05-01 23:59:59", "2024-05-02 00:00", "2024-05-02 12:00", "2024-05-07 01:00")
    assert kept(snapshots, Settings(keep_daily=2)) == [4, 5]
    assert kept(snapshots, Settings(keep_daily=3)) == [2, 4, 5]
    assert kept(snapshots, Settings(keep_daily=days("5d"))) == [4, 5]


def test_with_a_duration_only_the_newest_of_a_period_stays() -> None:
    # Of 3 May 2 is the newest, 23 h before ref; 1 is 25 h before.
    snapshots = taken("2024-05-03 11:00", "2024-05-03 13:00", "2024-05-04 12:00")
    assert kept(snapshots, Settings(keep_daily=days("2d"))) == [2, 3]
    assert kept(snapshots, Settings(keep_daily=days("1d"))) == [2, 3]
    assert kept(snapshots, Settings(keep_daily=days("23h"))) == [3]


def test_weeks_begin_on_monday() -> None:
    # Sunday, Monday, Sunday, Monday
    snapshots = taken("2024-05-05 23:59", "2024-05-06 00:00", "2024-05-12 23:59", "2024-05-13 00:00")
    assert kept(snapshots, Settings(keep_weekly=1)) == [4]
    assert kept(snapshots, Settings(keep_weekly=2)) == [3, 4]
    assert kept(snapshots, Settings(keep_weekly=3)) == [1, 3, 4]


def test_a_week_may_belong_to_two_years() -> None:
    # Monday 30 December 2024 to Sunday 5 January 2025 is week 1 of 2025; 1 and 2 January 2023 are a Sunday and a Monday
    snapshots = taken("2023-01-01 12:00", "2023-01-02 12:00", "2024-12-29 12:00", "2024-12-30 12:00", "2025-01-05 12:00")
    assert kept(snapshots, Settings(keep_weekly=9), "2025-06-01 00:00") == [1, 2, 3, 5]


def test_monthly() -> None:
    snapshots = taken("2023-05-31 12:00", "2024-01-31 23:59", "2024-02-01 00:00", "2024-02-29 12:00", "2024-05-01 00:00", "2024-05-31 00:00")
    assert kept(snapshots, Settings(keep_monthly=2)) == [4, 6]
    assert kept(snapshots, Settings(keep_monthly=4)) == [1, 2, 4, 6]
    assert kept(snapshots, Settings(keep_monthly=days("91d12h"))) == [6], "the noon of 29 February is exactly that before 31 May"
    assert kept(snapshots, Settings(keep_monthly=days("92d"))) == [4, 6]


def test_quarters_begin_in_january_april_july_and_october() -> None:
    snapshots = taken(
        "2022-12-31 12:00",
        "2023-01-01 00:00",
        "2023-03-31 23:00",
        "2023-04-01 00:00",
        "2023-06-30 23:00",
        "2023-07-01 00:00",
        "2023-09-30 23:00",
        "2023-10-01 00:00",
        "2023-12-31 23:00",
        "2024-01-01 00:00",
    )
    assert kept(snapshots, Settings(keep_quarterly=9)) == [1, 3, 5, 7, 9, 10]
    assert kept(snapshots, Settings(keep_quarterly=3)) == [7, 9, 10]
    assert kept(snapshots, Settings(keep_quarterly=days("92d1h"))) == [9, 10], "30 September, 23:00, is exactly that before"
    assert kept(snapshots, Settings(keep_quarterly=days("93d"))) == [7, 9, 10]


def test_yearly() -> None:
    snapshots = taken("2020-12-31 23:59", "2021-01-01 00:00", "2021-12-31 23:59", "2023-03-03 00:00", "2024-01-01 00:00")
    assert kept(snapshots, Settings(keep_yearly=3)) == [3, 4, 5]
    assert kept(snapshots, Settings(keep_yearly=10)) == [1, 3, 4, 5]


# The text: "keep-tag = [T, ...]: those that have one of the tags"


def test_keep_tag() -> None:
    snapshots = [
        Snapshot(1, at("2024-01-01 00:00"), ("a", "b")),
        Snapshot(2, at("2024-01-02 00:00"), ("b", "c")),
        Snapshot(3, at("2024-01-03 00:00"), ("c",)),
        Snapshot(4, at("2024-01-04 00:00")),
        Snapshot(5, at("2024-01-05 00:00")),
    ]
    assert kept(snapshots, Settings(keep_tag=("a",))) == [1, 5]
    assert kept(snapshots, Settings(keep_tag=("b", "x"))) == [1, 2, 5]
    assert kept(snapshots, Settings(keep_tag=("a", "c"))) == [1, 2, 3, 5]


# The text: "Periods are those of the calendar in the policy's time zone (default UTC)"


def test_periods_are_those_of_the_time_zone() -> None:
    # In Berlin the first two are of 2 May (00:30, 23:30), the third of 3 May (00:30); in UTC of 1, 2 and 2 May
    snapshots = taken("2024-05-01 22:30", "2024-05-02 21:30", "2024-05-02 22:30")
    assert kept(snapshots, Settings(keep_daily=9, zone="Europe/Berlin")) == [2, 3]
    assert kept(snapshots, Settings(keep_daily=9)) == [1, 3]
    # Kathmandu is 5:45 ahead: 10:14 is 15:59, 10:15 and 10:59 are 16:00 and 16:44
    snapshots = taken("2024-05-01 10:14", "2024-05-01 10:15", "2024-05-01 10:59")
    assert kept(snapshots, Settings(keep_hourly=9, zone="Asia/Kathmandu")) == [1, 3]
    assert kept(snapshots, Settings(keep_hourly=9)) == [3]
    # New Year in New York is at 05:00 UTC
    snapshots = taken("2024-01-01 04:59", "2024-01-01 05:00", "2024-01-01 06:00")
    assert kept(snapshots, Settings(keep_yearly=9, zone="America/New_York")) == [1, 3]


def test_an_hour_that_daylight_saving_repeats_is_two() -> None:
    # 00:30 and 01:30 UTC are both 02:30 in Berlin
    snapshots = taken("2024-10-27 00:10", "2024-10-27 00:30", "2024-10-27 01:30", "2024-10-27 01:40")
    assert kept(snapshots, Settings(keep_hourly=9, zone="Europe/Berlin"), "2024-11-01 00:00") == [2, 4]
    assert kept(snapshots, Settings(keep_minutely=9, zone="Europe/Berlin"), "2024-11-01 00:00") == [1, 2, 3, 4]
    assert kept(snapshots, Settings(keep_daily=9, zone="Europe/Berlin"), "2024-11-01 00:00") == [4]


# The text: "Periods without a snapshot do not count: a machine that was off for a month loses nothing. Durations count back from the newest
# snapshot for the same reason."


def test_a_machine_that_was_off_loses_nothing() -> None:
    before = taken("2024-01-01 00:00", "2024-01-02 00:00", "2024-01-03 00:00")
    assert kept(before, Settings(keep_daily=3), "2029-01-01 00:00") == [1, 2, 3]
    assert kept(before, Settings(keep_within=days("3d")), "2029-01-01 00:00") == [1, 2, 3]
    after = [*before, Snapshot(4, at("2024-02-15 00:00"))]
    assert kept(after, Settings(keep_daily=3), "2024-02-15 00:00") == [2, 3, 4]


# The text: "A duration is written 90s, 15m, 36h, 30d, 2w, also 1w2d; a month is no duration."


def test_durations() -> None:
    assert Duration.parse("90s").ns == 90_000_000_000
    assert Duration.parse("15m").ns == 900_000_000_000
    assert Duration.parse("36h").ns == 129_600_000_000_000
    assert Duration.parse("30d").ns == 2_592_000_000_000_000
    assert Duration.parse("2w").ns == 1_209_600_000_000_000
    assert Duration.parse("1w2d").ns == 777_600_000_000_000
    for text in ("1mo", "1M", "1 month", "1", "", "d", "1.5h", "-1d"):
        with pytest.raises(ValueError, match="is no duration"):
            Duration.parse(text)


# The text: "Out of the box: a snapshot every hour; keep-hourly = 24, keep-daily = 30, keep-weekly = 12, keep-monthly = 24, keep-yearly = 10,
# and keep-within = 1d."


def test_out_of_the_box() -> None:
    (schedule,) = SCHEDULES_OUT_OF_THE_BOX
    assert schedule == Schedule(every=Duration(3_600_000_000_000))
    assert (
        Settings(keep_hourly=24, keep_daily=30, keep_weekly=12, keep_monthly=24, keep_yearly=10, keep_within=Duration.parse("1d"))
        == SETTINGS_OUT_OF_THE_BOX
    )
    # Noon and midnight of each day of May, June and July 2024: 184 snapshots; the last is of 31 July, a Wednesday, 12:00.
    months = {"05": 31, "06": 30, "07": 31}
    snapshots = taken(*(f"2024-{month}-{day:02} {hour}:00" for month, last in months.items() for day in range(1, last + 1) for hour in ("00", "12")))
    # 24 hours: 20 to 31 July, all. 30 days: noon of 2 to 31 July. 12 weeks: those that end on the Sundays 19 May, 26 May, ..., 28 July,
    # and the last. 24 months: noon of 31 May, 30 June and 31 July. One year: the last.
    both = [f"2024-07-{day}" for day in range(20, 32)]
    noon = [f"2024-07-{day:02}" for day in range(2, 20)]
    sundays = [
        "2024-05-19",
        "2024-05-26",
        "2024-06-02",
        "2024-06-09",
        "2024-06-16",
        "2024-06-23",
        "2024-06-30",
    ]  # 7 July and later are among the days
    stay = {at(f"{day} 00:00") for day in both} | {at(f"{day} 12:00") for day in [*both, *noon, *sundays, "2024-05-31"]}
    found = kept(snapshots, SETTINGS_OUT_OF_THE_BOX, "2024-07-31 12:00")
    assert {s.time_ns for s in snapshots if s.serial in found} == stay


# --- Keeping them: space --------------------------------------------------------------------------------------------
# The text: "Snapshots that are already deleted and not yet purged count with what purging them will free, and so do those that this run deletes by
# the keep rules. While that is not enough, the densest snapshot goes as well"

ALL = Settings()
# 1 January 00:00, 10:00, 13:00, 14:00, 20:00 and 2 January 20:00. Spans of those between two others: 13 h, 4 h, 7 h, 30 h.
DENSE = taken("2024-01-01 00:00", "2024-01-01 10:00", "2024-01-01 13:00", "2024-01-01 14:00", "2024-01-01 20:00", "2024-01-02 20:00")


def test_the_larger_of_two_limits_counts() -> None:
    assert excess_bytes(Settings(), 500, 0, 1000) == 0
    assert excess_bytes(Settings(space_limit_bytes=400), 500, 0, 1000) == 100
    assert excess_bytes(Settings(space_limit_bytes=500), 500, 0, 1000) == 0
    assert excess_bytes(Settings(free_limit=30), 500, 10, 1000) == 20
    assert excess_bytes(Settings(free_limit=Fraction(5, 100)), 500, 10, 1000) == 40
    assert excess_bytes(Settings(free_limit=Fraction(5, 100)), 500, 10, 1001) == 41, "50.05 are to stay free"
    assert excess_bytes(Settings(free_limit=Fraction(5, 100)), 500, 500, 1000) == 0
    assert excess_bytes(Settings(space_limit_bytes=400, free_limit=30), 500, 10, 1000) == 100
    assert excess_bytes(Settings(space_limit_bytes=490, free_limit=30), 500, 10, 1000) == 20


def test_what_was_deleted_before_counts() -> None:
    def frees(serials: set[int]) -> int:
        return 100 + 10 * len(serials)

    assert kept(DENSE, ALL, excess_bytes=100, frees=frees) == [1, 2, 3, 4, 5, 6]
    assert kept(DENSE, ALL, excess_bytes=101, frees=frees) == [1, 2, 4, 5, 6]


def test_what_the_keep_rules_delete_counts() -> None:
    assert kept(DENSE, Settings(keep_last=4), excess_bytes=20, frees=frees_ten_each) == [3, 4, 5, 6]
    # With 1 and 2 gone, 3 has the span from its own time to its next neighbour, 1 h; 4 has 7 h, 5 has 30 h.
    assert kept(DENSE, Settings(keep_last=4), excess_bytes=21, frees=frees_ten_each) == [4, 5, 6]


def test_the_densest_goes_until_it_is_enough() -> None:
    assert kept(DENSE, ALL, excess_bytes=0, frees=frees_ten_each) == [1, 2, 3, 4, 5, 6]
    assert kept(DENSE, ALL, excess_bytes=10, frees=frees_ten_each) == [1, 2, 4, 5, 6], "3: 10:00 to 14:00"
    # Then 1 has 10 h, 2 has 14 h (00:00 to 14:00), 4 has 10 h (10:00 to 20:00), 5 has 30 h: 1 and 4 are equal, the oldest goes.
    assert kept(DENSE, ALL, excess_bytes=11, frees=frees_ten_each) == [2, 4, 5, 6]
    # 2 has 4 h (its own 10:00 to 14:00), 4 has 10 h, 5 has 30 h.
    assert kept(DENSE, ALL, excess_bytes=30, frees=frees_ten_each) == [4, 5, 6]
    # 4 has 6 h, 5 has 30 h.
    assert kept(DENSE, ALL, excess_bytes=31, frees=frees_ten_each) == [5, 6]
    assert kept(DENSE, ALL, excess_bytes=50, frees=frees_ten_each) == [6]
    assert kept(DENSE, ALL, excess_bytes=51, frees=frees_ten_each) == [6], "or nobody is left"


def test_it_ends_only_when_enough_is_freed_whatever_one_of_them_frees() -> None:
    def frees(serials: set[int]) -> int:
        return 50 if {3, 1} <= serials else 0  # what both saw goes only with both

    assert kept(DENSE, ALL, excess_bytes=50, frees=frees) == [2, 4, 5, 6]


def test_those_that_must_stay_are_neighbours_and_do_not_go() -> None:
    snapshots = [
        Snapshot(1, at("2024-01-01 00:00")),
        Snapshot(2, at("2024-01-01 01:00"), pinned=True),
        Snapshot(3, at("2024-01-01 02:00"), pinned=True),
        Snapshot(4, at("2024-01-01 03:00")),
        Snapshot(5, at("2024-01-01 05:00")),
        Snapshot(6, at("2024-01-01 07:00")),
    ]
    # 1 has 1 h; 2 and 3, with 2 h, are pinned; 4 has 3 h; 5 has 4 h; 6 was taken last
    assert kept(snapshots, ALL, excess_bytes=10, frees=frees_ten_each) == [2, 3, 4, 5, 6]
    assert kept(snapshots, ALL, excess_bytes=20, frees=frees_ten_each) == [2, 3, 5, 6]
    assert kept(snapshots, ALL, excess_bytes=30, frees=frees_ten_each) == [2, 3, 6]
    assert kept(snapshots, ALL, excess_bytes=99, frees=frees_ten_each) == [2, 3, 6]


def test_those_of_the_future_count_as_neighbours() -> None:
    # 3, of 31 May 23:00, has 2 h between its neighbours of 31 May 22:30 and of the future, 1 June 00:30; 2 has 23 h; 1 has months.
    snapshots = [
        Snapshot(1, at("2024-05-31 00:00")),
        Snapshot(2, at("2024-05-31 22:30")),
        Snapshot(3, at("2024-05-31 23:00")),
        Snapshot(4, at("2024-06-01 00:30")),
        Snapshot(5, at("2024-01-01 00:00")),
    ]
    assert kept(snapshots, ALL, excess_bytes=10, frees=frees_ten_each) == [1, 2, 4, 5]
    # Without the one of the future, 3 has the span from its previous one to its own, half an hour.
    assert kept([*snapshots[:3], snapshots[4]], ALL, excess_bytes=10, frees=frees_ten_each) == [1, 2, 5]


def test_one_without_a_newer_neighbour() -> None:
    # 4 was taken last, with the clock set back. 3 has 5 h (from 2 on), 2 has 6 h, 1 has 2 h.
    snapshots = taken("2024-01-01 01:00", "2024-01-01 02:00", "2024-01-01 07:00", "2024-01-01 00:00")
    assert kept(snapshots, ALL, excess_bytes=10, frees=frees_ten_each) == [2, 3, 4]
    # Now 2 has 7 h (00:00 to 07:00), 3 has 5 h.
    assert kept(snapshots, ALL, excess_bytes=20, frees=frees_ten_each) == [2, 4]


def test_the_oldest_of_several_equally_dense() -> None:
    # 1, 2, 3 and 5 have 2 h each; 2 has the lowest time.
    snapshots = taken("2024-01-01 03:00", "2024-01-01 01:00", "2024-01-01 02:00", "2024-01-01 00:00", "2024-01-01 04:00", "2024-01-01 05:00")
    snapshots[3] = Snapshot(4, at("2024-01-01 00:00"), pinned=True)
    assert kept(snapshots, ALL, excess_bytes=10, frees=frees_ten_each) == [1, 3, 4, 5, 6]
    same = taken("2024-01-01 00:00", "2024-01-01 02:00", "2024-01-01 02:00", "2024-01-01 04:00")
    # 1, 2 and 3 have 2 h each
    assert kept(same, ALL, excess_bytes=10, frees=frees_ten_each) == [2, 3, 4]
    # Now 2 has 0 h (its own to its next), 3 has 2 h
    assert kept(same, ALL, excess_bytes=20, frees=frees_ten_each) == [3, 4]
    # With 1 pinned, 2 and 3 have 2 h each and the same time: the lower serial goes.
    assert kept([Snapshot(1, same[0].time_ns, pinned=True), *same[1:]], ALL, excess_bytes=10, frees=frees_ten_each) == [1, 3, 4]


def test_space_deletes_what_the_keep_rules_keep() -> None:
    assert kept(DENSE, Settings(keep_last=6), excess_bytes=10, frees=frees_ten_each) == [1, 2, 4, 5, 6]


# The text: "Those chosen by the space limits come after those of the keep rules in the budget of max-delete-fraction."


def test_the_budget_is_for_the_keep_rules_first() -> None:
    def settings(part: int) -> Settings:
        return Settings(keep_last=4, max_delete_fraction=Fraction(part, 6))

    assert kept(DENSE, settings(1), excess_bytes=1000, frees=frees_ten_each) == [2, 3, 4, 5, 6]
    assert kept(DENSE, settings(2), excess_bytes=1000, frees=frees_ten_each) == [3, 4, 5, 6]
    assert kept(DENSE, settings(3), excess_bytes=1000, frees=frees_ten_each) == [4, 5, 6], "and one for space: 3, see above"
    assert kept(DENSE, settings(4), excess_bytes=1000, frees=frees_ten_each) == [5, 6]


# --- Taking them: every ---------------------------------------------------------------------------------------------
# The text: "every = D: D after its anchor. The anchor is the time of its last run, also of one that was skipped."

HOURLY = Schedule(every=Duration.parse("1h"), tags=("hourly",))


def mounted(*schedules: Schedule, now: str = "2024-01-01 00:00", snapshots: list[Snapshot] | None = None) -> ScheduleModel:
    model = ScheduleModel(schedules)
    model.mount(at(now), snapshots or [])
    return model


def look(model: ScheduleModel, time: str) -> list[str] | None:
    """Something changes, then the clock is looked at."""
    model.changed(at(time), 1, 1)
    return model.look(at(time))


def test_every_is_due_its_duration_after_its_last_run() -> None:
    model = mounted(HOURLY)
    assert look(model, "2024-01-01 00:00") is None
    assert look(model, "2024-01-01 00:59:59") is None
    assert look(model, "2024-01-01 01:00") == ["hourly"]
    assert look(model, "2024-01-01 01:00") is None
    assert look(model, "2024-01-01 01:59:59") is None
    assert look(model, "2024-01-01 02:10") == ["hourly"], "ten minutes late"
    assert look(model, "2024-01-01 03:00") is None, "an hour after the last run is 03:10"
    assert look(model, "2024-01-01 03:10") == ["hourly"]


# The text: "Nothing has changed since the last snapshot of any kind: the run is skipped, and counts as a run for its anchor; with always it is
# taken all the same."


def test_a_run_is_skipped_when_nothing_has_changed_and_counts_as_a_run() -> None:
    model = mounted(HOURLY)
    assert model.look(at("2024-01-01 01:00")) is None
    model.changed(at("2024-01-01 01:10"), 1, 0)
    assert model.look(at("2024-01-01 01:10")) is None, "the run of 01:00 was one"
    assert model.look(at("2024-01-01 02:00")) == ["hourly"]
    assert model.look(at("2024-01-01 03:00")) is None, "nothing has changed since 02:00"


def test_bytes_without_records_and_records_without_bytes_are_changes() -> None:
    model = mounted(HOURLY)
    model.changed(at("2024-01-01 00:10"), 0, 1)
    assert model.look(at("2024-01-01 01:00")) == ["hourly"]
    model.changed(at("2024-01-01 01:10"), 1, 0)
    assert model.look(at("2024-01-01 02:00")) == ["hourly"]
    model.changed(at("2024-01-01 02:10"), 0, 0)
    assert model.look(at("2024-01-01 03:00")) is None


def test_with_always_it_is_taken_all_the_same() -> None:
    model = mounted(Schedule(every=Duration.parse("1h"), always=True))
    assert model.look(at("2024-01-01 00:30")) is None
    assert model.look(at("2024-01-01 01:00")) == []
    assert model.look(at("2024-01-01 02:00")) == []


def test_a_snapshot_of_any_kind_means_that_nothing_has_changed_since() -> None:
    model = mounted(HOURLY)
    model.changed(at("2024-01-01 00:10"), 5, 5)
    model.taken_by_hand(at("2024-01-01 00:20"))
    assert model.look(at("2024-01-01 01:00")) is None


# The text: "A run that was missed (the machine slept, was off, the process was stopped) is made up for by one run, however many there were."
# The text: "The clock was set forward: like a sleep."


def test_missed_runs_are_made_up_for_by_one() -> None:
    model = mounted(HOURLY)
    assert look(model, "2024-01-01 07:45") == ["hourly"]
    assert look(model, "2024-01-01 07:46") is None
    assert look(model, "2024-01-01 08:00") is None
    assert look(model, "2024-01-01 08:45") == ["hourly"]


def test_missed_cron_runs_are_made_up_for_by_one() -> None:
    model = mounted(Schedule(cron="0 2 * * *", tags=("night",)), now="2024-01-01 12:00")
    assert look(model, "2024-01-05 09:00") == ["night"]
    assert look(model, "2024-01-06 01:59:59") is None
    assert look(model, "2024-01-06 02:00") == ["night"]


# The text: "Several are due in the same moment: one snapshot with the tags of all, in the order of the schedules, each tag once. It is the run of
# each."


def test_several_that_are_due_in_the_same_moment_are_one() -> None:
    model = mounted(
        Schedule(every=Duration.parse("2h"), tags=("b", "x")),
        Schedule(every=Duration.parse("1h"), tags=("a", "x")),
        Schedule(every=Duration.parse("3h"), tags=("c", "b")),
    )
    assert look(model, "2024-01-01 01:00") == ["a", "x"]
    assert look(model, "2024-01-01 02:00") == ["b", "x", "a"]
    assert look(model, "2024-01-01 06:00") == ["b", "x", "a", "c"]
    assert look(model, "2024-01-01 06:59") is None, "it was the run of each"
    assert look(model, "2024-01-01 07:00") == ["a", "x"]


def test_one_that_says_always_takes_the_others_along() -> None:
    model = mounted(Schedule(every=Duration.parse("1h"), tags=("a",)), Schedule(every=Duration.parse("2h"), tags=("b",), always=True))
    assert model.look(at("2024-01-01 01:00")) is None
    assert model.look(at("2024-01-01 02:00")) == ["a", "b"]


# The text: "The clock was set back so that an anchor lies in the future: the anchor becomes now."


def test_the_clock_was_set_back() -> None:
    model = mounted(HOURLY, now="2024-06-01 00:00")
    assert look(model, "2024-01-01 00:00") is None
    assert look(model, "2024-01-01 00:59") is None
    assert look(model, "2024-01-01 01:00") == ["hourly"]
    model = mounted(Schedule(cron="0 2 * * *"), now="2024-06-01 00:00")
    assert look(model, "2024-01-01 03:00") is None
    assert look(model, "2024-01-02 02:00") == []


def test_the_clock_was_set_back_less_than_to_the_anchor() -> None:
    model = mounted(HOURLY)
    assert look(model, "2024-01-01 00:50") is None
    assert look(model, "2024-01-01 00:20") is None, "the anchor, 00:00, is not in the future"
    assert look(model, "2024-01-01 01:00") == ["hourly"]


# The text: "At a mount, the anchor of a schedule is the time of the newest snapshot (the last one taken) that a schedule took and that has all of
# this schedule's tags; when there is none, now. For one without tags, any snapshot that a schedule took serves."


def by_schedule(serial: int, time: str, *tags: str) -> Snapshot:
    return Snapshot(serial, at(time), tags, by_schedule=True)


def test_at_a_mount_the_anchor_is_the_last_snapshot_with_all_tags() -> None:
    snapshots = [
        by_schedule(1, "2024-01-01 10:00", "a", "b", "c"),
        by_schedule(2, "2024-01-01 11:00", "a"),
        Snapshot(3, at("2024-01-01 11:30"), ("a", "b")),  # by hand
    ]
    both, one, none = (Schedule(every=Duration.parse("1h"), tags=tags) for tags in (("b", "a"), ("a",), ()))
    for schedule, due in ((both, "2024-01-01 11:00"), (one, "2024-01-01 12:00"), (none, "2024-01-01 12:00")):
        model = mounted(schedule, now="2024-01-01 10:59:59", snapshots=snapshots)
        # At 10:59:59 the one of 11:00 lies in the future: those anchors become 10:59:59.
        assert look(model, "2024-01-01 10:59:59") is None
        model = mounted(schedule, now="2024-01-01 11:45", snapshots=snapshots)
        assert (look(model, "2024-01-01 11:45") is not None) == (due == "2024-01-01 11:00")
        model = mounted(schedule, now=due, snapshots=snapshots)
        assert look(model, due) is not None


def test_at_a_mount_the_last_one_taken_counts_not_the_one_of_the_latest_time() -> None:
    snapshots = [by_schedule(1, "2024-01-01 10:00", "hourly"), by_schedule(2, "2024-01-01 08:00", "hourly")]
    assert look(mounted(HOURLY, now="2024-01-01 10:30", snapshots=snapshots), "2024-01-01 10:30") == ["hourly"]
    # the order in which they are listed does not matter
    assert look(mounted(HOURLY, now="2024-01-01 10:30", snapshots=snapshots[::-1]), "2024-01-01 10:30") == ["hourly"]


def test_at_a_mount_without_such_a_snapshot_the_anchor_is_now() -> None:
    snapshots = [by_schedule(1, "2024-01-01 08:00", "daily"), Snapshot(2, at("2024-01-01 09:00"), ("hourly",))]
    model = mounted(HOURLY, now="2024-01-01 10:30", snapshots=snapshots)
    assert look(model, "2024-01-01 11:29") is None
    assert look(model, "2024-01-01 11:30") == ["hourly"]
    untagged = Schedule(every=Duration.parse("1h"))
    assert look(mounted(untagged, now="2024-01-01 10:30", snapshots=snapshots[1:]), "2024-01-01 10:30") is None, "one by hand does not serve"
    assert look(mounted(untagged, now="2024-01-01 10:30", snapshots=snapshots), "2024-01-01 10:30") == [], "any that a schedule took does"


def test_at_a_mount_an_anchor_in_the_future_becomes_now() -> None:
    model = mounted(HOURLY, now="2024-01-01 10:00", snapshots=[by_schedule(1, "2025-01-01 00:00", "hourly")])
    assert look(model, "2024-01-01 10:59") is None
    assert look(model, "2024-01-01 11:00") == ["hourly"]


def test_off_and_mounted_again() -> None:
    model = mounted(HOURLY)
    assert look(model, "2024-01-01 01:00") == ["hourly"]
    model.changed(at("2024-01-01 01:10"), 1, 1)
    model.mount(at("2024-01-03 08:00"), [by_schedule(1, "2024-01-01 01:00", "hourly")])
    assert model.look(at("2024-01-03 08:00")) == ["hourly"], "what changed before the machine went off is not saved yet"
    model.mount(at("2024-01-03 10:00"), [], (Schedule(every=Duration.parse("2h"), tags=("other",)),))
    assert look(model, "2024-01-03 11:59") is None
    assert look(model, "2024-01-03 12:00") == ["other"]


# The text: "A run that fails counts as a run; on-failure is told. on-change counts from there on, and on-idle waits for the next change, unless a
# snapshot of any kind has been taken meanwhile."


def test_a_run_that_fails_counts_as_a_run() -> None:
    model = mounted(HOURLY)
    model.changed(at("2024-01-01 00:10"), 1, 1)
    assert model.look(at("2024-01-01 01:00"), fails=True) == ["hourly"]
    assert model.look(at("2024-01-01 01:01")) is None
    assert model.look(at("2024-01-01 02:00")) == ["hourly"], "what had changed then has still changed since the last snapshot"


# The text: "Taking a snapshot by hand moves no anchor."


def test_taking_a_snapshot_by_hand_moves_no_anchor() -> None:
    model = mounted(HOURLY)
    model.taken_by_hand(at("2024-01-01 00:30"))
    assert look(model, "2024-01-01 01:00") == ["hourly"]


# --- Taking them: on change, on idle --------------------------------------------------------------------------------
# The text: "on-change = N or a size: as soon as so many records, or so many bytes, have changed since the last snapshot of any kind"


def test_on_change_of_records() -> None:
    model = mounted(Schedule(on_change_records=10, tags=("busy",)))
    model.changed(at("2024-01-01 00:01"), 9, 10**12)
    assert model.look(at("2024-01-01 00:01")) is None
    model.changed(at("2024-01-01 00:02"), 1, 0)
    assert model.look(at("2024-01-01 00:02")) == ["busy"]
    model.changed(at("2024-01-01 00:03"), 9, 0)
    assert model.look(at("2024-01-01 00:03")) is None, "since the last snapshot"
    model.taken_by_hand(at("2024-01-01 00:04"))
    model.changed(at("2024-01-01 00:05"), 9, 0)
    assert model.look(at("2024-01-01 00:05")) is None, "of any kind"
    model.changed(at("2024-01-01 00:06"), 20, 0)
    assert model.look(at("2024-01-01 00:06")) == ["busy"]


def test_on_change_of_bytes() -> None:
    model = mounted(Schedule(on_change_bytes=1000, tags=("big",)), Schedule(every=Duration.parse("1h")))
    model.changed(at("2024-01-01 00:01"), 10**6, 999)
    assert model.look(at("2024-01-01 00:01")) is None
    model.changed(at("2024-01-01 00:02"), 0, 1)
    assert model.look(at("2024-01-01 00:02")) == ["big"]
    model.changed(at("2024-01-01 00:59"), 1, 999)
    assert model.look(at("2024-01-01 01:00")) == [], "that of the other schedule is one of any kind as well"
    model.changed(at("2024-01-01 01:01"), 1, 999)
    assert model.look(at("2024-01-01 01:01")) is None


# The text: "on-idle = D: when something has changed since the last snapshot of any kind and then nothing for D"


def test_on_idle() -> None:
    model = mounted(Schedule(on_idle=Duration.parse("10m"), tags=("idle",)))
    assert model.look(at("2024-01-01 05:00")) is None, "nothing has changed"
    model.changed(at("2024-01-01 05:00"), 1, 1)
    assert model.look(at("2024-01-01 05:09:59")) is None
    model.changed(at("2024-01-01 05:09:59"), 1, 1)
    assert model.look(at("2024-01-01 05:10")) is None
    assert model.look(at("2024-01-01 05:19:58")) is None
    assert model.look(at("2024-01-01 05:19:59")) == ["idle"]
    assert model.look(at("2024-01-01 06:00")) is None
    model.changed(at("2024-01-01 06:00"), 1, 1)
    model.taken_by_hand(at("2024-01-01 06:05"))
    assert model.look(at("2024-01-01 07:00")) is None, "nothing has changed since the one by hand"


def test_on_idle_is_not_due_when_nothing_has_changed_also_when_another_takes_a_snapshot() -> None:
    model = mounted(Schedule(on_idle=Duration.parse("10m"), tags=("idle",)), Schedule(every=Duration.parse("1h"), tags=("every",), always=True))
    assert model.look(at("2024-01-01 01:00")) == ["every"]


def test_on_idle_with_a_clock_that_was_set_back() -> None:
    model = mounted(Schedule(on_idle=Duration.parse("10m")), now="2024-06-01 00:00")
    model.changed(at("2024-06-01 00:00"), 1, 1)
    assert model.look(at("2024-01-01 00:00")) is None
    assert model.look(at("2024-01-01 00:10")) == []


def test_on_change_counts_from_a_failure_on() -> None:
    for schedule in (Schedule(on_change_records=10, tags=("change",)), Schedule(on_change_bytes=10, tags=("change",))):
        model = mounted(schedule)
        model.changed(at("2024-01-01 00:00"), 12, 12)
        assert model.look(at("2024-01-01 00:00"), fails=True) == ["change"]
        model.changed(at("2024-01-01 00:01"), 9, 9)
        assert model.look(at("2024-01-01 00:01")) is None
        model.changed(at("2024-01-01 00:02"), 1, 1)
        assert model.look(at("2024-01-01 00:02"), fails=True) == ["change"]
        model.taken_by_hand(at("2024-01-01 00:03"))
        model.changed(at("2024-01-01 00:04"), 10, 10)
        assert model.look(at("2024-01-01 00:04")) == ["change"], "since the one by hand"


def test_on_idle_waits_for_the_next_change_after_a_failure() -> None:
    model = mounted(Schedule(on_idle=Duration.parse("10m"), tags=("idle",)))
    model.changed(at("2024-01-01 00:00"), 1, 1)
    assert model.look(at("2024-01-01 00:10"), fails=True) == ["idle"]
    assert model.look(at("2024-01-01 05:00")) is None
    model.changed(at("2024-01-01 05:00"), 1, 1)
    assert model.look(at("2024-01-01 05:09")) is None
    assert model.look(at("2024-01-01 05:10")) == ["idle"]


def test_the_failure_of_one_schedule_is_none_of_another() -> None:
    model = mounted(HOURLY, Schedule(on_idle=Duration.parse("2h"), tags=("idle",)), Schedule(on_change_records=3, tags=("change",)))
    model.changed(at("2024-01-01 00:00"), 2, 1)
    assert model.look(at("2024-01-01 01:00"), fails=True) == ["hourly"]
    model.changed(at("2024-01-01 01:01"), 1, 1)
    assert model.look(at("2024-01-01 01:01"), fails=True) == ["change"]
    assert model.look(at("2024-01-01 03:01")) == ["hourly", "idle"]


# The text: "Changes from before the mount count for on-change and on-idle; the time of the last change is then taken to be that of the mount. A
# run that failed before the mount is forgotten."


def test_changes_from_before_the_mount_count() -> None:
    change, idle = Schedule(on_change_records=10, tags=("change",)), Schedule(on_idle=Duration.parse("10m"), tags=("idle",))
    model = mounted(change, idle)
    model.changed(at("2024-01-01 00:00"), 9, 9)
    model.mount(at("2024-01-01 00:05"), [])
    assert model.look(at("2024-01-01 00:14")) is None, "ten minutes after the mount is 00:15"
    model.changed(at("2024-01-01 00:14"), 1, 1)
    assert model.look(at("2024-01-01 00:14"), fails=True) == ["change"]
    model.mount(at("2024-01-01 00:20"), [])
    assert model.look(at("2024-01-01 00:20"), fails=True) == ["change"], "a failure from before the mount is forgotten"
    assert model.look(at("2024-01-01 00:30")) == ["idle"]


# --- Taking them: cron ----------------------------------------------------------------------------------------------
# 'cron = "M H DOM MON DOW": at the first time after its anchor that the line names, in the schedule's time zone (default UTC).'
# The text: "Cron fields are those of man 5 crontab, and N/S is N and each S-th after it. Beyond that, L is the last day of the month and LW the last
# of Monday to Friday in it; as a day of the week, 5L is the last Friday of the month and 5#2 (or FRI#2) the second. A day is named when both day
# fields name it; when both begin with something else than *, one of them is enough."


@pytest.mark.parametrize(
    ("line", "after", "following"),
    [
        ("* * * * *", "2024-01-01 00:00", ["2024-01-01 00:01", "2024-01-01 00:02"]),
        ("* * * * *", "2024-01-01 00:00:01", ["2024-01-01 00:01"]),
        ("* * * * *", "2024-01-01 00:59:59", ["2024-01-01 01:00"]),
        ("30 2 * * *", "2024-01-01 02:29:59", ["2024-01-01 02:30", "2024-01-02 02:30", "2024-01-03 02:30"]),
        ("30 2 * * *", "2024-02-28 03:00", ["2024-02-29 02:30", "2024-03-01 02:30"]),
        ("*/20 * * * *", "2024-12-31 23:30", ["2024-12-31 23:40", "2025-01-01 00:00", "2025-01-01 00:20"]),
        ("5-20/10 8 * * *", "2024-01-01 00:00", ["2024-01-01 08:05", "2024-01-01 08:15", "2024-01-02 08:05"]),
        ("0,30 8,20 * * *", "2024-01-01 08:00", ["2024-01-01 08:30", "2024-01-01 20:00", "2024-01-01 20:30", "2024-01-02 08:00"]),
        ("1,58-59 23 * * *", "2024-01-01 23:30", ["2024-01-01 23:58", "2024-01-01 23:59", "2024-01-02 23:01"]),
        ("0 0 1 * *", "2024-01-31 12:00", ["2024-02-01 00:00", "2024-03-01 00:00"]),
        ("0 0 31 * *", "2024-01-31 12:00", ["2024-03-31 00:00", "2024-05-31 00:00", "2024-07-31 00:00", "2024-08-31 00:00"]),
        ("0 12 * 2 *", "2024-02-29 11:00", ["2024-02-29 12:00", "2025-02-01 12:00"]),
        ("0 12 1 JAN,jul *", "2024-01-01 12:00", ["2024-07-01 12:00", "2025-01-01 12:00"]),
        ("0 12 1 nov-DEC *", "2024-01-01 12:00", ["2024-11-01 12:00", "2024-12-01 12:00", "2025-11-01 12:00"]),
        ("0 0 29 2 *", "2024-02-29 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
        ("0 0 29 2 *", "2096-02-29 00:00", ["2104-02-29 00:00"]),  # 2100 is no leap year
        ("0 6 * * 1", "2024-01-01 06:00", ["2024-01-08 06:00"]),  # Mondays
        ("0 6 * * 0", "2024-01-01 06:00", ["2024-01-07 06:00", "2024-01-14 06:00"]),  # Sundays
        ("0 6 * * 7", "2024-01-01 06:00", ["2024-01-07 06:00"]),
        ("0 6 * * sun", "2024-01-01 06:00", ["2024-01-07 06:00"]),
        ("0 6 * * 5-7", "2024-01-01 06:00", ["2024-01-05 06:00", "2024-01-06 06:00", "2024-01-07 06:00", "2024-01-12 06:00"]),
        ("0 6 * * Mon-Fri", "2024-01-05 06:00", ["2024-01-08 06:00"]),
        ("0 6 * * */2", "2024-01-01 06:00", ["2024-01-02 06:00", "2024-01-04 06:00", "2024-01-06 06:00", "2024-01-07 06:00"]),  # Tu Th Sa Su
        # both days are restricted: either is enough (13 September 2024 is a Friday; 6 September is one as well)
        ("0 0 13 * 5", "2024-09-05 00:00", ["2024-09-06 00:00", "2024-09-13 00:00", "2024-09-20 00:00", "2024-09-27 00:00", "2024-10-04 00:00"]),
        ("0 0 13 * 5", "2024-10-12 00:00", ["2024-10-13 00:00", "2024-10-18 00:00"]),
        # one of them begins with *: both must match (odd days that are Mondays)
        ("0 0 */2 * 1", "2024-01-01 00:00", ["2024-01-15 00:00", "2024-01-29 00:00", "2024-02-05 00:00"]),
        ("0 0 1,*/30 * 1", "2024-01-01 00:00", ["2024-01-08 00:00", "2024-01-15 00:00", "2024-01-22 00:00", "2024-01-29 00:00", "2024-01-31 00:00"]),
        # a number with a step goes to the end
        ("50/4 0 * * *", "2024-01-01 00:00", ["2024-01-01 00:50", "2024-01-01 00:54", "2024-01-01 00:58", "2024-01-02 00:50"]),
        # the last day, the last of Monday to Friday (31 March 2024 is a Sunday), the last Friday, the second Tuesday
        ("0 0 L * *", "2024-02-01 00:00", ["2024-02-29 00:00", "2024-03-31 00:00", "2024-04-30 00:00"]),
        ("0 0 lw * *", "2024-02-01 00:00", ["2024-02-29 00:00", "2024-03-29 00:00", "2024-04-30 00:00"]),
        ("0 0 1,L 2 *", "2024-02-01 00:00", ["2024-02-29 00:00", "2025-02-01 00:00"]),
        ("0 0 * * 5L", "2024-02-01 00:00", ["2024-02-23 00:00", "2024-03-29 00:00", "2024-04-26 00:00"]),
        ("0 0 * * tue#2", "2024-02-01 00:00", ["2024-02-13 00:00", "2024-03-12 00:00"]),
        ("0 0 * * 7L,7#1", "2024-02-01 00:00", ["2024-02-04 00:00", "2024-02-25 00:00", "2024-03-03 00:00", "2024-03-31 00:00"]),
    ],
)
def test_cron_lines(line: str, after: str, following: list[str]) -> None:
    time_ns: int | None = at(after)
    for expected in following:
        assert time_ns is not None
        time_ns = next_run_ns(line, "UTC", time_ns)
        assert time_ns == at(expected), expected


@pytest.mark.parametrize("line", ["0 0 30 2 *", "0 0 31 4,6,9,11 *"])
def test_a_line_that_names_no_time_never_comes(line: str) -> None:
    assert next_run_ns(line, "UTC", at("2024-01-01 00:00")) is None
    assert look(mounted(Schedule(cron=line)), "2060-01-01 00:00") is None


@pytest.mark.parametrize(
    "line",
    [
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5/0 * * * *",
        "* * 5L * *",
        "* * * * 5#6",
        "*/0 * * * *",
        "9-3 * * * *",
        "* * * x *",
        "* * * *",
    ],
)
def test_what_is_no_cron_line(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        next_run_ns(line, "UTC", at("2024-01-01 00:00"))


def test_cron_in_a_time_zone() -> None:
    # 02:30 in Berlin is 01:30 UTC in winter, 00:30 UTC in summer; 00:00 in Kathmandu is 18:15 UTC the day before
    assert next_run_ns("30 2 * * *", "Europe/Berlin", at("2024-01-01 00:00")) == at("2024-01-01 01:30")
    assert next_run_ns("30 2 * * *", "Europe/Berlin", at("2024-07-01 00:00")) == at("2024-07-01 00:30")
    assert next_run_ns("0 0 1 * *", "Asia/Kathmandu", at("2024-01-01 00:00")) == at("2024-01-31 18:15")
    assert next_run_ns("0 0 * * 1", "America/New_York", at("2024-01-01 06:00")) == at("2024-01-08 05:00")
    model = mounted(Schedule(cron="0 0 * * *", zone="America/New_York", tags=("midnight",)))
    assert look(model, "2024-01-01 04:59:59") is None
    assert look(model, "2024-01-01 05:00") == ["midnight"]


def test_cron_is_due_at_the_first_time_after_its_anchor() -> None:
    model = mounted(Schedule(cron="0 * * * *", tags=("full",)), now="2024-01-01 10:00")
    assert look(model, "2024-01-01 10:00") is None, "after, not at"
    assert look(model, "2024-01-01 10:59:59") is None
    assert look(model, "2024-01-01 11:20") == ["full"]
    assert look(model, "2024-01-01 11:59") is None
    assert look(model, "2024-01-01 12:00") == ["full"]
    assert look(model, "2024-01-01 12:00:59") is None


# The text: "Daylight saving: a cron line whose minute and hour both begin with something else than * names each of its times once a day: one that the
# clock leaves out comes when the clock has been set forward, one that the clock shows twice comes at the first. Any other line goes by what the
# clock shows."


def runs_of(line: str, zone: str, after: str, count: int) -> list[str]:
    found: list[str] = []
    time_ns: int | None = at(after)
    for _ in range(count):
        assert time_ns is not None
        time_ns = next_run_ns(line, zone, time_ns)
        assert time_ns is not None
        found.append(datetime.fromtimestamp(time_ns // SECOND_NS, UTC).strftime("%m-%d %H:%M"))
    return found


SPRING, AUTUMN = "2024-03-30 12:00", "2024-10-26 12:00"  # the noon before


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("30 1 * * *", ["03-31 00:30", "03-31 23:30"]),  # not skipped
        ("30 2 * * *", ["03-31 01:00", "04-01 00:30"]),  # skipped: right after the change, which is 03:00
        ("0 2 * * *", ["03-31 01:00", "04-01 00:00"]),
        ("59 2 * * *", ["03-31 01:00", "04-01 00:59"]),
        ("0 3 * * *", ["03-31 01:00", "04-01 01:00"]),
        ("30 2,3 * * *", ["03-31 01:00", "03-31 01:30", "04-01 00:30"]),
        ("0,30 2 * * *", ["03-31 01:00", "04-01 00:00", "04-01 00:30"]),  # two skipped ones in one moment
        ("30 2 31 3 *", ["03-31 01:00"]),
        ("30 2 * * mon", ["04-01 00:30"]),
        ("*/30 2 * * *", ["04-01 00:00", "04-01 00:30"]),  # follows the wall clock, which knows no 02:30 that day
        ("30 */2 * * *", ["03-30 13:30", "03-30 15:30", "03-30 17:30", "03-30 19:30", "03-30 21:30", "03-30 23:30", "03-31 02:30"]),
        ("30 * * * *", ["03-30 12:30", "03-30 13:30"]),
    ],
)
def test_cron_when_daylight_saving_begins(line: str, runs: list[str]) -> None:
    assert runs_of(line, "Europe/Berlin", SPRING, len(runs)) == runs


def test_hourly_when_daylight_saving_begins() -> None:
    assert runs_of("30 * * * *", "Europe/Berlin", "2024-03-31 00:00", 3) == ["03-31 00:30", "03-31 01:30", "03-31 02:30"]


@pytest.mark.parametrize(
    ("line", "runs"),
    [
        ("30 1 * * *", ["10-26 23:30", "10-28 00:30"]),  # 01:30 of the 27th (summer time) and of the 28th (winter time)
        ("30 2 * * *", ["10-27 00:30", "10-28 01:30"]),  # comes twice: only the first
        ("0 2 * * *", ["10-27 00:00", "10-28 01:00"]),
        ("0 3 * * *", ["10-27 02:00", "10-28 02:00"]),
        ("0,30 2 * * *", ["10-27 00:00", "10-27 00:30", "10-28 01:00"]),
        ("*/30 2 * * *", ["10-27 00:00", "10-27 00:30", "10-27 01:00", "10-27 01:30", "10-28 01:00"]),  # by the wall clock: twice
    ],
)
def test_cron_when_daylight_saving_ends(line: str, runs: list[str]) -> None:
    assert runs_of(line, "Europe/Berlin", AUTUMN, len(runs)) == runs


def test_hourly_when_daylight_saving_ends() -> None:
    assert runs_of("30 * * * *", "Europe/Berlin", "2024-10-27 00:00", 3) == ["10-27 00:30", "10-27 01:30", "10-27 02:30"]


def test_a_run_in_the_repeated_time_is_not_made_up_for_when_it_is_mounted_in_the_second_pass() -> None:
    # 01:10 UTC is 02:10 for the second time; 02:30 has been
    assert runs_of("30 2 * * *", "Europe/Berlin", "2024-10-27 01:10", 1) == ["10-28 01:30"]


def test_half_an_hour_of_daylight_saving() -> None:
    # Lord Howe: on 6 October 2024 02:00 became 02:30 (15:30 UTC of the 5th); on 7 April 02:00 became 01:30 (15:00 UTC of the 6th)
    assert runs_of("15 2 * * *", "Australia/Lord_Howe", "2024-10-05 00:00", 2) == ["10-05 15:30", "10-06 15:15"]
    assert runs_of("45 1 * * *", "Australia/Lord_Howe", "2024-04-06 00:00", 2) == ["04-06 14:45", "04-07 15:15"]
    assert runs_of("*/15 1 * * *", "Australia/Lord_Howe", "2024-04-06 14:00", 5) == [
        "04-06 14:15",
        "04-06 14:30",
        "04-06 14:45",
        "04-06 15:00",
        "04-06 15:15",
    ]


def test_larger_changes_of_the_clock() -> None:
    # Samoa had no 30 December 2011: at 10:00 UTC midnight of the 29th became midnight of the 31st
    assert runs_of("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", 4) == ["12-29 22:00", "12-30 10:00", "12-30 22:00", "12-31 22:00"]
    assert runs_of("0 12 30 12 *", "Pacific/Apia", "2011-12-01 00:00", 2) == ["12-30 10:00", "12-29 22:00"]  # that of 2012, at 14 hours ahead
    assert runs_of("0 */12 * * *", "Pacific/Apia", "2011-12-30 00:00", 2) == ["12-30 10:00", "12-30 22:00"]

    # Casey, on 5 March 2010: 02:00, 11 hours ahead, became 23:00, 8 hours ahead (15:00 UTC of the 4th); 00:30 comes twice
    assert runs_of("30 0 * * *", "Antarctica/Casey", "2010-03-04 00:00", 2) == ["03-04 13:30", "03-05 16:30"]
    assert runs_of("*/30 0 * * *", "Antarctica/Casey", "2010-03-04 12:00", 4) == ["03-04 13:00", "03-04 13:30", "03-04 16:00", "03-04 16:30"]


def test_midnight_that_is_left_out() -> None:
    # Beirut: on 31 March 2024 00:00 became 01:00 (22:00 UTC of the 30th)
    assert runs_of("30 0 * * *", "Asia/Beirut", "2024-03-30 12:00", 2) == ["03-30 22:00", "03-31 21:30"]
    assert runs_of("*/30 0,2 * * *", "Asia/Beirut", "2024-03-30 12:00", 3) == ["03-30 23:00", "03-30 23:30", "03-31 21:00"]
    assert runs_of("0 0 31 3 *", "Asia/Beirut", "2024-03-30 12:00", 1) == ["03-30 22:00"]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"])
@pytest.mark.parametrize("begin", ["2024-03-30 11:17", "2024-10-05 11:17", "2024-10-26 11:17"])
def test_going_over_days_and_hours_at_once_misses_no_minute(zone: str, begin: str) -> None:
    # The bounds of a day and of an hour are named, and skipped and repeated minutes.
    lines = ("0 0 * * *", "59 23 * * sun", "0,59 2,3 * * *", "*/15 1-3 */3 * *", "1 */5 6,27,31 * *")
    minutes = [at(begin) + minute * MINUTE_NS for minute in range(2 * 24 * 60)]
    clock = [datetime.fromtimestamp(time_ns // SECOND_NS, UTC).astimezone(ZoneInfo(zone)) for time_ns in minutes]
    for line in lines:
        cron = Cron.parse(line)
        slowly = [time_ns for time_ns, before, wall in zip(minutes[1:], clock, clock[1:], strict=False) if runs_at(cron, before, wall)]
        quickly: list[int] = []
        time_ns = next_run_ns(line, zone, minutes[0])
        while time_ns is not None and time_ns <= minutes[-1]:
            quickly.append(time_ns)
            time_ns = next_run_ns(line, zone, time_ns)
        assert slowly
        assert quickly == slowly, line
