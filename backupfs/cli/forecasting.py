"""A forecast as a picture made of characters: what stands as time goes on, and what stands at the end."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Final

from backupfs.cli.output import readable_size
from backupfs.rules.forecast import AGES_NS, Forecast, Overrun, Period
from backupfs.rules.ledger import Opening
from backupfs.rules.moments import utc_moment
from backupfs.rules.policy import DAY_NS, SECOND_NS
from backupfs.rules.quantities import show_size
from backupfs.rules.schedule import trigger

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""
OPTION: Final = "option"
SNAPSHOTS: Final = "snapshots"
UNKNOWN: Final = "unknown"
"""Where the rate of change comes from: it is given, it is what the snapshots show, or nobody knows."""
BAR_CELLS: Final = 60
LINE_CELLS: Final = 62
_AGES: Final = (("h", "bold green"), ("d", "green"), ("m", "cyan"), ("y", "blue"))
_LEGEND: Final = ("up to a day old", "up to 31 days", "up to a year", "older")
_AGE_FIELDS: Final = ("day", "month", "year", "older")
_BANDS: Final = (("last day", DAY_NS), ("last 31 days", AGES_NS[1]), ("last year", AGES_NS[2]), ("last ten years", 3653 * DAY_NS))


def picture(forecast: Forecast) -> list[Line]:
    """One row a month (a week, a day, when it is about less), and a timeline of what stands at the end."""
    rows = list(by_stretch(forecast.periods))
    widest = max((row.count for row in rows), default=0)
    lines: list[Line] = [[(f"{'UNTIL':<12}{'TAKEN':>8}{'DELETED':>9}{'STAND':>8}{'SPACE':>12}  OF THESE", "bold")]]
    lines += [[(_figures(row), ""), *_bar(row.ages, widest)] for row in rows]
    lines.append([("", "")])
    for (sign, style), meaning in zip(_AGES, _LEGEND, strict=True):
        lines[-1] += [(sign, style), (f" {meaning}   ", "")]
    return [*lines, [], *timeline(forecast)]


def space_in_words(opening: Opening, source: str, *, is_known: bool) -> list[str]:
    """What it begins with, how much changes, and where that comes from. `is_known`: what the live tree takes, and the disk."""
    if source == OPTION:
        changes = f"changes: {show_size(opening.daily_bytes)} a day, as --changes says"
    elif source == SNAPSHOTS:
        changes = f"changes: {readable_size(opening.daily_bytes)} a day, by what the snapshots hold"
    else:
        changes = "changes: it is not known how much changes in a day, so nothing does; --changes says how much"
    if not is_known:
        return [changes, "space: what snapshots hold; the live tree and the disk are not known"]
    return [changes, f"space: {readable_size(opening.live_bytes)} for the live tree; snapshots hold {readable_size(opening.held_bytes)} more now"]


def overrun_in_words(overrun: Overrun) -> str:
    """What the space limits cannot hold back, and when."""
    until = "on" if overrun.until_ns is None else f"to {_day(overrun.until_ns)}"
    size = readable_size(overrun.size_bytes)
    return f"by the space limits, up to {size} are too many from {_day(overrun.from_ns)} {until}, whatever retention may delete"


def by_stretch(periods: Sequence[Period]) -> Iterator[Period]:
    """Periods put together: those of a calendar month, if they are about more than a quarter of a year, of a week if about more than two weeks."""
    span_ns = periods[-1].end_ns - periods[0].start_ns if periods else 0
    for _, group in groupby(periods, key=lambda period: _stretch(period, periods[0].start_ns, span_ns)):
        each = list(group)
        last = each[-1]
        yield replace(
            last,
            start_ns=each[0].start_ns,
            taken=sum(period.taken for period in each),
            deleted=sum(period.deleted for period in each),
            excess_bytes=max(period.excess_bytes for period in each),
        )


def _stretch(period: Period, start_ns: int, span_ns: int) -> int:
    if span_ns > 92 * DAY_NS:
        begun = utc_moment(period.start_ns)
        return begun.year * 12 + begun.month
    return (period.start_ns - start_ns) // (7 * DAY_NS if span_ns > 14 * DAY_NS else DAY_NS)


def _figures(row: Period) -> str:
    return f"{_day(row.end_ns):<12}{row.taken:>8}{row.deleted:>9}{row.count:>8}{readable_size(row.used_bytes):>12}  "


def _bar(ages: Sequence[int], widest: int) -> Line:
    """Each kind of age has at least one cell, if there are any of it."""
    cells = [count if widest <= BAR_CELLS else -(-count * BAR_CELLS // widest) for count in ages]
    return [(sign * count, style) for (sign, style), count in zip(_AGES, cells, strict=True)]


def timeline(forecast: Forecast) -> list[Line]:
    """A line for each band of ages, the newest on the right: `|` is one snapshot, `#` are several, `.` is none."""
    lines: list[Line] = [[(f"What stands at the end, {len(forecast.standing)} snapshots; older on the left", "bold")]]
    ages = [standing.age_ns for standing in forecast.standing]
    bounds = [0, *(until_ns for _, until_ns in _BANDS)]
    for (name, until_ns), (younger_ns, older_ns), (_, style) in zip(_BANDS, pairwise(bounds), _AGES, strict=True):
        inside = [age_ns for age_ns in ages if (younger_ns < age_ns or not younger_ns) and age_ns <= older_ns]
        counts = [0] * LINE_CELLS
        for age_ns in inside:
            counts[LINE_CELLS - 1 - min(max(age_ns, 0) * LINE_CELLS // until_ns, LINE_CELLS - 1)] += 1
        if inside:
            lines.append([(f"  {name:<15}{len(inside):>6}  ", ""), ("".join(".|#"[min(count, 2)] for count in counts), style)])
    beyond = sum(age_ns > bounds[-1] for age_ns in ages)
    if beyond:
        lines.append([(f"  {'older':<15}{beyond:>6}", "")])
    return lines


def as_plain(forecast: Forecast) -> dict[str, object]:
    """The data, for JSON."""
    overrun = forecast.overrun
    return {
        "periods": [
            {
                "start_ns": period.start_ns,
                "end_ns": period.end_ns,
                "taken": period.taken,
                "deleted": period.deleted,
                "count": period.count,
                "oldest_ns": period.oldest_ns,
                "ages": dict(zip(_AGE_FIELDS, period.ages, strict=True)),
                "used_bytes": period.used_bytes,
                "excess_bytes": period.excess_bytes,
            }
            for period in forecast.periods
        ],
        "standing": [
            {"time_ns": standing.time_ns, "age_s": standing.age_ns // SECOND_NS, "tags": list(standing.tags), "reasons": list(standing.reasons)}
            for standing in forecast.standing
        ],
        "left_out": [trigger(schedule) for schedule in forecast.left_out],
        "overrun": None if overrun is None else {"bytes": overrun.size_bytes, "from_ns": overrun.from_ns, "until_ns": overrun.until_ns},
    }


def _day(time_ns: int) -> str:
    return f"{utc_moment(time_ns):%Y-%m-%d}"
