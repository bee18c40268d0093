"""Cron lines: which are refused, and when one comes next. The library knows the fields and the calendar; of clocks that are set for daylight saving
it knows what Debian's cron does with fixed times, and the rest is done here.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final

from cronsim import CronSim, CronSimError

from backupfs.errors import UsageError
from backupfs.rules.moments import moment_ns, utc_moment

_FIELDS: Final = ("minute", "hour", "day-of-month", "month", "day-of-week")
_SOME_DAY: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LINE_CHARS_MAX: Final = 1000
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
_HOW: Final = "write minute, hour, day of the month, month and day of the week, such as `30 3 * * *` (each day at 3:30) or `*/15 8-18 * * MON-FRI`"


def check_cron(line: str) -> str:
    """The line with single spaces. Raises UsageError, which names the line and what is wrong, for one that is none and
    for one that names no time in fifty years.
    """
    fields = line.split()
    line = " ".join(fields)
    if len(line) > _LINE_CHARS_MAX:
        raise UsageError(f"{line[:40] + '…'!r} is no cron line: it is longer than {_LINE_CHARS_MAX} characters; {_HOW}")
    if len(fields) != len(_FIELDS):
        raise UsageError(f"{line!r} is no cron line: it has {len(fields)} fields instead of 5; {_HOW}")
    try:
        if next(CronSim(line, _SOME_DAY), None) is None:
            raise UsageError(f"the cron line {line!r} never comes: no day is all that it names")
    except (CronSimError, ValueError) as error:
        raise UsageError(_complaint(line, fields)) from error
    return line


def _complaint(line: str, fields: Sequence[str]) -> str:
    for place, name in enumerate(_FIELDS):
        alone = ["*"] * len(_FIELDS)
        alone[place] = fields[place]
        try:
            CronSim(" ".join(alone), _SOME_DAY)
        except (CronSimError, ValueError):
            return f"{line!r} is no cron line: {fields[place]!r} is no {name}; {_HOW}"
    return f"the cron line {line!r} never comes: no month that it names has such a day"


def next_ns(line: str, zone: tzinfo, after_ns: int) -> int | None:
    """The first time after `after_ns` that a checked line names; None when it names none in the fifty years after that."""
    after = utc_moment(after_ns)
    found = _next_reading(line, zone, after) if _is_at_fixed_times(line) else _next_shown(line, zone, after)
    return None if found is None else moment_ns(found)


def _is_at_fixed_times(line: str) -> bool:
    return not any(field.startswith("*") for field in line.split()[:2])


def _next_reading(line: str, zone: tzinfo, after: datetime) -> datetime | None:
    """The next time of a line that names each reading of the clock once a day: one that is left out when the clock has been
    set forward, one that is shown twice at the first.

    Times are looked for until one is later: the first of two equal readings may have been before `after`.
    """
    return next((moment for moment in CronSim(line, after.astimezone(zone)) if moment.astimezone(UTC) > after), None)


def _next_shown(line: str, zone: tzinfo, after: datetime) -> datetime | None:
    """The next time at which the zone's clock shows a reading that the line names.

    The library is asked about readings only. Each holds up to the next change of the clock, and from there on the clock
    shows others.
    """
    since, ahead = after, _ahead(zone, after)
    shown = after + ahead
    while (reading := next(CronSim(line, shown), None)) is not None:
        found = reading - ahead
        change = _next_change(zone, since, found)
        if change is None or found < change:
            return found
        since, ahead = change, _ahead(zone, change)
        shown = change + ahead - _SECOND
    return None


def _ahead(zone: tzinfo, moment: datetime) -> timedelta:
    """How far the zone's clock is ahead of UTC."""
    return moment.astimezone(zone).utcoffset() or timedelta()


def _next_change(zone: tzinfo, after: datetime, until: datetime) -> datetime | None:
    """The first second after `after` and up to `until` from which on the zone's clock is ahead by something else. No clock is
    changed twice in a day.
    """
    ahead = _ahead(zone, after)
    low = after
    while low < until:
        high = min(low + _DAY, until)
        if _ahead(zone, high) != ahead:
            while high - low > _SECOND:
                middle = low + (high - low) // _SECOND // 2 * _SECOND
                low, high = (middle, high) if _ahead(zone, middle) == ahead else (low, middle)
            return high
        low = high
    return None
