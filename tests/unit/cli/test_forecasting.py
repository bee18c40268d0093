"""The picture of a forecast, and `policy simulate` with and without a mount."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.cli.forecasting import BAR_CELLS, LINE_CELLS, Line, as_plain, by_stretch, overrun_in_words, picture, timeline
from backupfs.engine.attributes import Usage
from backupfs.rules.forecast import Forecast, Overrun, Period, Standing
from backupfs.rules.policy import DAY_NS, Schedule
from tests.unit.cli.daemon import FakeDaemon

Command = Callable[..., int]
FIRST_NS = 20_454 * DAY_NS
"""1 January 2026."""


def plain(lines: list[Line]) -> list[str]:
    return ["".join(text for text, _ in line) for line in lines]


def days(count: int, ages: tuple[int, ...] = (2, 1, 0, 1)) -> tuple[Period, ...]:
    return tuple(
        Period(
            FIRST_NS + day * DAY_NS,
            FIRST_NS + (day + 1) * DAY_NS,
            taken=24,
            deleted=23,
            count=sum(ages),
            oldest_ns=0,
            ages=ages,
            used_bytes=day * 1024**3,
            excess_bytes=day % 5,
        )
        for day in range(count)
    )


def standing(*ages_ns: int) -> Forecast:
    return Forecast((), tuple(Standing(0, age_ns, (), ()) for age_ns in ages_ns), ())


def test_a_row_a_month_a_week_or_a_day() -> None:
    months = list(by_stretch(days(365)))
    assert [month.taken for month in months] == [24 * n for n in (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)]
    assert [month.deleted for month in months[:2]] == [23 * 31, 23 * 28]
    assert [month.used_bytes for month in months[:2]] == [30 * 1024**3, 58 * 1024**3]
    assert [week.excess_bytes for week in by_stretch(days(16))] == [4, 4, 4], "the most of its days"
    assert (months[0].start_ns, months[-1].end_ns) == (FIRST_NS, FIRST_NS + 365 * DAY_NS)
    assert [week.taken for week in by_stretch(days(16))] == [7 * 24, 7 * 24, 2 * 24]
    assert [day.taken for day in by_stretch(days(14))] == [24] * 14
    assert list(by_stretch(())) == []


def test_the_picture() -> None:
    made = picture(Forecast(days(2), (Standing(0, 0, (), ()), Standing(0, 3 * DAY_NS, (), ())), ()))
    assert plain(made) == [
        "UNTIL          TAKEN  DELETED   STAND       SPACE  OF THESE",
        "2026-01-02        24       23       4         0 B  hhdy",
        "2026-01-03        24       23       4     1.0 GiB  hhdy",
        "h up to a day old   d up to 31 days   m up to a year   y older   ",
        "",
        "What stands at the end, 2 snapshots; older on the left",
        "  last day            1  " + "." * 61 + "|",
        "  last 31 days        1  " + "." * 55 + "|" + "." * 6,
    ]
    assert [style for _, style in made[1] if style] == ["bold green", "green", "cyan", "blue"]
    assert plain(picture(Forecast((), (), ())))[-1] == "What stands at the end, 0 snapshots; older on the left"


@given(st.lists(st.integers(0, 5000), min_size=4, max_size=4))
def test_a_bar_fits_and_shows_each_kind_that_there_is(ages: list[int]) -> None:
    row = plain(picture(Forecast(days(1, tuple(ages)), (), ())))[1]
    bar = row[51:]
    assert [bar.count(sign) > 0 for sign in "hdmy"] == [count > 0 for count in ages]
    assert len(bar) == sum(ages) if sum(ages) <= BAR_CELLS else len(bar) <= BAR_CELLS + 4
    assert bar == "".join(sorted(bar, key="hdmy".index))


@given(st.lists(st.integers(-DAY_NS, 5000 * DAY_NS), max_size=40))
def test_each_that_stands_is_on_one_line(ages_ns: list[int]) -> None:
    lines = plain(timeline(standing(*ages_ns)))[1:]
    assert sum(int(line[17:25]) for line in lines) == len(ages_ns)
    for line in lines:
        marks = line[25:]
        assert len(marks) in (0, LINE_CELLS)
        assert marks.count("|") + 2 * marks.count("#") <= int(line[17:25])
        assert (marks.count("|") == int(line[17:25])) or "#" in marks or not marks


def test_where_on_the_line() -> None:
    (_, line) = plain(timeline(standing(DAY_NS, DAY_NS, 0, DAY_NS // 2)))
    assert line[25:] == "#" + "." * 29 + "|" + "." * 30 + "|"
    assert plain(timeline(standing(3654 * DAY_NS)))[1:] == ["  older               1"]


def test_the_data() -> None:
    made = as_plain(Forecast(days(1), (Standing(7, 90 * 10**9, ("t",), ("newest",)),), (Schedule(on_change_records=5),)))
    assert made["standing"] == [{"time_ns": 7, "age_s": 90, "tags": ["t"], "reasons": ["newest"]}]
    assert made["left_out"] == ["on change of 5 records"]
    assert made["periods"] == [
        {
            "start_ns": FIRST_NS,
            "end_ns": FIRST_NS + DAY_NS,
            "taken": 24,
            "deleted": 23,
            "count": 4,
            "oldest_ns": 0,
            "ages": {"day": 2, "month": 1, "year": 0, "older": 1},
            "used_bytes": 0,
            "excess_bytes": 0,
        }
    ]
    assert made["overrun"] is None
    assert as_plain(Forecast(days(6), (), ()))["overrun"] == {"bytes": 4, "from_ns": FIRST_NS + DAY_NS, "until_ns": FIRST_NS + 5 * DAY_NS}
    assert as_plain(Forecast(days(3), (), ()))["overrun"] == {"bytes": 2, "from_ns": FIRST_NS + DAY_NS, "until_ns": None}


def test_what_is_too_much_in_words() -> None:
    beginning = "by the space limits, up to 3.0 MiB are too many from 2026-01-02"
    assert overrun_in_words(Overrun(3 * 1024**2, FIRST_NS + DAY_NS, None)) == f"{beginning} on, whatever retention may delete"
    until = Overrun(3 * 1024**2, FIRST_NS + DAY_NS, FIRST_NS + 5 * DAY_NS)
    assert overrun_in_words(until) == f"{beginning} to 2026-01-06, whatever retention may delete"


# --- the verb ---------------------------------------------------------------------------------------------------------


def test_without_a_mount_it_begins_with_nothing_and_says_so(command: Command, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("policy", "simulate", repository, "--days", "3") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("Neither the policy nor the snapshots of a repository are known")
    assert shown[1] == "snapshot every 1h"
    assert shown[2].startswith("retention: keep-hourly = 24, keep-daily = 30")
    assert shown[3:5] == [
        "changes: it is not known how much changes in a day, so nothing does; --changes says how much",
        "space: what snapshots hold; the live tree and the disk are not known",
    ]
    rows = [line.split()[1:6] for line in shown[7:10]]
    assert rows == [["24", "0", "24", "0", "B"], ["24", "23", "25", "0", "B"], ["24", "23", "26", "0", "B"]]
    assert command("policy", "simulate", repository, "--days", "3", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["days"], told["policy_known"], told["snapshots_known"]) == (3, False, 0)
    assert (told["live_bytes"], told["held_bytes"], told["changes_bytes_per_day"], told["changes_source"]) == (None, 0, 0, "unknown")
    assert [period["count"] for period in told["periods"]] == [24, 25, 26]
    assert told["standing"][0]["age_s"] <= 3 * 86_400
    assert command("policy", "simulate", repository, "--days", "0") == 2


def test_changes_without_a_mount(command: Command, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run is an hour from now, so an hour's changes of the first day are held by none. On the third day the oldest go."""
    file = tmp_path / "limits.toml"
    none = "".join(f"keep-{name} = 0\n" for name in ("hourly", "daily", "weekly", "monthly", "yearly", "within"))
    file.write_text(f'[retention]\n{none}space-limit = "60MB"\nfree-limit = "10%"\n')
    assert command("policy", "simulate", repository, "--days", "3", "--changes", "24MB", "--config", file) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[2:7] == [
        "retention: every snapshot stays",
        "space limits: space-limit = 60MB, free-limit = 10%",
        "free-limit is not looked at: the disk is not known",
        "changes: 24MB a day, as --changes says",
        "space: what snapshots hold; the live tree and the disk are not known",
    ]
    assert command("policy", "simulate", repository, "--days", "3", "--changes", "24MB", "--config", file, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["changes_bytes_per_day"], told["changes_source"], told["overrun"]) == (24_000_000, "option", None)
    assert [period["used_bytes"] for period in told["periods"]] == [23_000_000, 47_000_000, 60_000_000]
    assert [period["count"] for period in told["periods"]] == [24, 48, 61]
    assert [period["excess_bytes"] for period in told["periods"]] == [0, 0, 0]
    assert command("policy", "simulate", repository, "--changes", "2G") == 2
    assert "'2G' is no size: write 2GiB for powers of 1024" in capsys.readouterr().err
    assert command("policy", "simulate", repository, "--changes", "") == 2


def test_with_a_mount_it_begins_with_what_is_there(
    command: Command, daemon: FakeDaemon, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.shelf.add(400 * DAY_NS, tags=["keep"], holds="k")
    daemon.shelf.add(2 * DAY_NS, holds="kl")
    daemon.shelf.used = Usage(10_000, 0, 0, 0, 0, 0)
    daemon.shelf.change("s2", pinned=True)
    daemon.layers = [
        {
            "origin": "file",
            "settings": {
                "schedule": [{"every": "1d"}, {"on-idle": "5m"}],
                "retention": {"keep-tag": ["keep"], "keep-last": 2, "space-limit": "1GiB", "keep-hourly": 0, "keep-daily": 0, "keep-weekly": 0},
            },
        },
        {"origin": "policy of the repository", "settings": {"retention": {"keep-monthly": 0, "keep-yearly": 0, "keep-within": 0}}},
    ]
    assert command("policy", "simulate", repository, "--days", "10", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["policy_known"], told["snapshots_known"], told["left_out"]) == (True, 2, ["on idle for 5m"])
    assert [one["reasons"] for one in told["standing"]][:2] == [["tag keep"], ["pinned"]]
    assert len(told["standing"]) == 4
    assert (told["live_bytes"], told["held_bytes"]) == (10_000 - 1024 - 2048, 1024 + 2048)
    assert (told["changes_bytes_per_day"], told["changes_source"], told["overrun"]) == ((1024 + 2048) // 2, "snapshots", None)
    assert [period["used_bytes"] for period in told["periods"]] == [10_000 + 1536, *[10_000 + 2 * 1536] * 9]
    assert command("policy", "simulate", repository, "--days", "10") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:6] == [
        "snapshot every 1d",
        "not foreseen: snapshot on idle for 5m",
        "retention: keep-last = 2, keep-tag = ['keep']",
        "space limits: space-limit = 1GiB",
        "changes: 1.5 KiB a day, by what the snapshots hold",
        "space: 6.8 KiB for the live tree; snapshots hold 3.0 KiB more now",
    ]
    other = tmp_path / "other.toml"
    other.write_text("[retention]\nkeep-hourly = 0\nkeep-daily = 0\nkeep-weekly = 0\n")
    assert command("policy", "simulate", repository, "--days", "1", "--config", other) == 0
    assert "retention: every snapshot stays" in capsys.readouterr().out.splitlines(), "its own policy counts all the same"
    daemon.layers[0]["settings"]["retention"] = {"space-limit": "1KiB"}
    assert command("policy", "simulate", repository, "--days", "1", "--changes", "1MB") == 0
    shown = capsys.readouterr().out.splitlines()
    assert "changes: 1MB a day, as --changes says" in shown
    assert shown[-2] == ""
    assert re.fullmatch("by the space limits, up to [0-9.]+ KiB are too many from [0-9-]{10} on, whatever retention may delete", shown[-1])
