"""A forecast as a picture made of characters: what stands as time goes on, and what stands at the end."""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Final

from backupfs.rules.forecast import AGES_NS, Forecast, Period
from backupfs.rules.moments import utc_moment
from backupfs.rules.policy import DAY_NS, SECOND_NS
from backupfs.rules.schedule import trigger

Line = list[tuple[str, str]]
"""Pieces of text, each with its style."""
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
    lines: list[Line] = [[(f"{'UNTIL':<12}{'TAKEN':>8}{'DELETED':>9}{'STAND':>8}  OF THESE", "bold")]]
    lines += [[(f"{_day(row.end_ns):<12}{row.taken:>8}{row.deleted:>9}{row.count:>8}  ", ""), *_bar(row.ages, widest)] for row in rows]
    lines.append([("", "")])
    for (sign, style), meaning in zip(_AGES, _LEGEND, strict=True):
        lines[-1] += [(sign, style), (f" {meaning}   ", "")]
    return [*lines, [], *timeline(forecast)]


def by_stretch(periods: Sequence[Period]) -> Iterator[Period]:
    """Periods put together: those of a calendar month, if they are about more than a quarter of a year, of a week if about more than two weeks."""
    span_ns = periods[-1].end_ns - periods[0].start_ns if periods else 0
    for _, group in groupby(periods, key=lambda period: _stretch(period, periods[0].start_ns, span_ns)):
        each = list(group)
        last = each[-1]
        taken, deleted = sum(period.taken for period in each), sum(period.deleted for period in each)
        yield Period(each[0].start_ns, last.end_ns, taken, deleted, last.count, last.oldest_ns, last.ages)


def _stretch(period: Period, start_ns: int, span_ns: int) -> int:
    if span_ns > 92 * DAY_NS:
        begun = utc_moment(period.start_ns)
        return begun.year * 12 + begun.month
    return (period.start_ns - start_ns) // (7 * DAY_NS if span_ns > 14 * DAY_NS else DAY_NS)


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
            }
            for period in forecast.periods
        ],
        "standing": [
            {"time_ns": standing.time_ns, "age_s": standing.age_ns // SECOND_NS, "tags": list(standing.tags), "reasons": list(standing.reasons)}
            for standing in forecast.standing
        ],
        "left_out": [trigger(schedule) for schedule in forecast.left_out],
    }


def _day(time_ns: int) -> str:
    return f"{utc_moment(time_ns):%Y-%m-%d}"
