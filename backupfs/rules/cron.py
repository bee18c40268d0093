"""Cron lines: which are refused, and when one comes next. The library follows Debian's cron."""

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from cronsim import CronSim, CronSimError

from backupfs.errors import UsageError
from backupfs.rules.moments import moment_ns, utc_moment

_FIELDS: Final = ("minute", "hour", "day-of-month", "month", "day-of-week")
_SOME_DAY: Final = datetime(2000, 1, 1, tzinfo=UTC)
_LINE_CHARS_MAX: Final = 1000
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
    """The first time after `after_ns` that a checked line names; None when it names none in the fifty years after that.

    Times are looked for until one is later: where the clock is set back, the library gives the first of two equal
    readings, which may have been before `after_ns`.
    """
    for moment in CronSim(line, utc_moment(after_ns).astimezone(zone)):
        found_ns = moment_ns(moment)
        if found_ns > after_ns:
            return found_ns
    return None
