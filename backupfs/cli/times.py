"""Times in the future as a person types them."""

import os
import re
import time
from datetime import date, datetime, timedelta
from typing import Final

from backupfs.errors import UsageError
from backupfs.rules.moments import moment_ns, utc_moment
from backupfs.service.places import local_zone

_CLOCK: Final = re.compile(r"[0-9]{1,2}:[0-9]{2}", re.ASCII)
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)


def until(text: str) -> int:
    """Nanoseconds since 1970, UTC, of the end of a day, of a time of today, or of an ISO 8601 time, in the user's time zone unless it names one."""
    zone = local_zone(os.environ)
    try:
        if _CLOCK.fullmatch(text):
            today = utc_moment(time.time_ns()).astimezone(zone).date()
            return moment_ns(datetime.fromisoformat(f"{today} {text:0>5}").replace(tzinfo=zone))
        if _DAY.fullmatch(text):
            after = date.fromisoformat(text) + timedelta(days=1)
            return moment_ns(datetime(after.year, after.month, after.day, tzinfo=zone))
        moment = datetime.fromisoformat(text)
        return moment_ns(moment if moment.tzinfo else moment.replace(tzinfo=zone))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"{text!r} is no time: write 2027-01-31 (to the end of that day), 18:00, 2027-01-31T18:00 or 2027-01-31T18:00:00Z"
        ) from error
