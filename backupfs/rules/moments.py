"""Moments as people's calendars have them, of times in nanoseconds since 1970 UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final

from backupfs.rules.policy import SECOND_NS

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_FIRST_S: Final = (datetime(2, 1, 1, tzinfo=UTC) - _EPOCH) // _SECOND
_LAST_S: Final = (datetime(9900, 1, 1, tzinfo=UTC) - _EPOCH) // _SECOND
"""A year and some from the ends of what `datetime` knows, so that a time zone or a cron line does not lead beyond."""


def utc_moment(time_ns: int) -> datetime:
    """The second that this time lies in. Times outside the years 2 to 9900 take the nearest one."""
    return _EPOCH + timedelta(seconds=min(max(time_ns // SECOND_NS, _FIRST_S), _LAST_S))


def moment_ns(moment: datetime) -> int:
    """The time of a moment of whole seconds, in any zone."""
    return (moment - _EPOCH) // _SECOND * SECOND_NS
