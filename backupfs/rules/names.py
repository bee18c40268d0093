"""Names of snapshots: the UTC time of the cut, sortable, without colons so that SMB and Windows can show them."""

import enum
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from backupfs.rules.when import reads_as_time

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_S: Final = int((datetime(1, 1, 1, tzinfo=UTC) - _EPOCH).total_seconds())
_LAST_S: Final = int((datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - _EPOCH).total_seconds())
_SECOND_NS: Final = 1_000_000_000
_LIKE_A_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z.*", re.DOTALL)


class SnapDir(enum.StrEnum):
    """What becomes of `.snapshots` at the root of a mount. The name is reserved all the same."""

    VISIBLE = "visible"
    HIDDEN = "hidden"
    """It leads to the snapshots and is not listed."""
    DISABLED = "disabled"
    """It is not there."""


def utc_second(time_ns: int) -> str:
    """`2026-10-04T120000Z`: the second that `time_ns` (since 1970, UTC) lies in. Times outside the years 1 to 9999 take
    the nearest one.
    """
    second = min(max(time_ns // _SECOND_NS, _FIRST_S), _LAST_S)
    moment = _EPOCH + timedelta(seconds=second)
    return f"{moment.year:04d}-{moment.month:02d}-{moment.day:02d}T{moment.hour:02d}{moment.minute:02d}{moment.second:02d}Z"


def snapshot_name(time_ns: int, serial: int, greatest: str) -> str:
    """A name for the snapshot number `serial`, cut at `time_ns`; `greatest` is the greatest name ever made from a time, empty before the first.

    The second alone, if it is later than all before. Otherwise (two in one second, a clock that was set back) the number follows, as in `…Z-017`:
    no other snapshot has it, so no name is given twice, and nothing but the greatest has to be remembered.
    """
    base = utc_second(time_ns)
    return base if base > greatest else f"{base}-{serial:03d}"


NAME_MAX_BYTES: Final = 200


def name_fault(name: str) -> str | None:
    """Why a person may not give this name to a snapshot; None when it will do."""
    if not name or len(name.encode("utf-8", "surrogateescape")) > NAME_MAX_BYTES:
        return f"a snapshot's name has 1 to {NAME_MAX_BYTES} bytes"
    if name in (".", "..", "latest") or name.startswith(("@GMT-", ".")):
        return "`latest`, names that begin with a dot and names that begin with @GMT- mean something else"
    if not name.isprintable() or "/" in name:
        return "a snapshot's name is made of printable characters other than a slash"
    if _LIKE_A_TIME.fullmatch(name):
        return "names that look like a time are given by the clock"
    if name.startswith("-") or reads_as_time(name):
        return "a number, a time (yesterday, 18:00, 2026-10-04) and what begins with a dash mean something else where a snapshot is asked for"
    return None


def is_tag(text: str) -> bool:
    """Whether a snapshot may have this tag: lists of them are written with commas."""
    return bool(text) and text.isprintable() and "," not in text
