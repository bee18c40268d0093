"""Points in time as people say them, and which snapshot each of them means.

A time means the newest snapshot at or before it, a bare day its last one or, if it has none, the newest before it. A time stands for the whole second
that it names, as names of snapshots do, or for the whole of its last digit when it has a fraction: so a time that was shown finds what it was shown
for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Final

from backupfs.errors import UsageError
from backupfs.rules.moments import moment_ns, utc_moment
from backupfs.rules.policy import SECOND_NS
from backupfs.rules.quantities import parse_duration

_DAY: Final = "(?:(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})|(?P<word>today|yesterday))"
_CLOCK: Final = "(?P<hour>[0-9]{1,2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.](?P<fraction>[0-9]{1,9}))?)?"
_ZONE: Final = "(?: ?(?:(?P<utc>[Zz])|(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})))?"
_OF_A_DAY: Final = re.compile(f"{_DAY}(?:(?:[Tt]| +){_CLOCK}{_ZONE})?", re.ASCII)
_OF_TODAY: Final = re.compile(f"{_CLOCK}{_ZONE}", re.ASCII)
_BACK: Final = re.compile("latest(?:~(?P<back>[0-9]{1,9}))?", re.ASCII)
_NUMBER: Final = re.compile("[0-9]{1,12}", re.ASCII)
HOW: Final = (
    "write the name or the number of a snapshot, latest, latest~2, -3h, -2d, yesterday, 18:00, yesterday 18:00, 2026-10-04 or 2026-10-04T18:00:00Z"
)


@dataclass(frozen=True, slots=True)
class Known:
    """A snapshot that can be meant. `time_ns` since 1970, UTC."""

    serial: int
    name: str
    time_ns: int


def resolve(text: str, snapshots: Sequence[Known], now_ns: int, zone: tzinfo) -> int:
    """The serial of the snapshot that is meant. Days and times without a zone of their own are those of `zone`.

    UsageError says what was not understood, or that there is none at or before that time, and which is the first.
    """
    words = text.strip()
    named = [known.serial for known in snapshots if known.name == words]
    if named:
        return named[0]
    if not reads_as_time(words):
        raise UsageError(f"{text!r} is neither a snapshot nor a time: {HOW}")
    if not snapshots:
        raise UsageError("there is no snapshot yet; `backupfs snapshot create` takes one")
    if _NUMBER.fullmatch(words):
        return _numbered(int(words), snapshots)
    if (back := _BACK.fullmatch(words)) is not None:
        return _counted_back(int(back["back"] or 0), snapshots)
    return _newest(_reaches(words, now_ns, zone), snapshots, words)


def reads_as_time(text: str) -> bool:
    """Whether this has the form of something that `resolve` understands without knowing any names."""
    words = text.strip()
    if _NUMBER.fullmatch(words) or _BACK.fullmatch(words):
        return True
    try:
        _reaches(words, 0, UTC)
    except UsageError:
        return False
    return True


def _numbered(serial: int, snapshots: Sequence[Known]) -> int:
    if all(known.serial != serial for known in snapshots):
        raise UsageError(f"there is no snapshot number {serial}; `backupfs snapshot list` shows those that there are")
    return serial


def _counted_back(back: int, snapshots: Sequence[Known]) -> int:
    taken = sorted(known.serial for known in snapshots)
    if back >= len(taken):
        raise UsageError(f"latest~{back} is too far back: there are {len(taken)} snapshots, the first is latest~{len(taken) - 1}")
    return taken[-1 - back]


def _newest(reaches: Callable[[int], bool], snapshots: Sequence[Known], words: str) -> int:
    found = max((known for known in snapshots if reaches(known.time_ns)), key=_by_time, default=None)
    if found is None:
        first = min(snapshots, key=_by_time)
        raise UsageError(f"there is no snapshot at or before {words!r}; the first is {first.name}")
    return found.serial


def _by_time(known: Known) -> tuple[int, int]:
    return known.time_ns, known.serial


def _reaches(words: str, now_ns: int, zone: tzinfo) -> Callable[[int], bool]:
    """Tells of a time whether it is at or before the one that is meant. UsageError when none is."""
    if words.startswith("-"):
        until_ns = now_ns - parse_duration(words[1:])
        return lambda time_ns: time_ns <= until_ns
    match = _OF_A_DAY.fullmatch(words) or _OF_TODAY.fullmatch(words)
    if match is None:
        raise UsageError(f"{words!r} is no time")
    written = match.groupdict()
    try:
        day = _day(written, now_ns, zone)
        if written["hour"] is None:
            return lambda time_ns: utc_moment(time_ns).astimezone(zone).date() <= day
        end_ns = _end_ns(written, day, zone)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{words!r} is no time: {error}") from error
    return lambda time_ns: time_ns < end_ns


def _day(written: Mapping[str, str | None], now_ns: int, zone: tzinfo) -> date:
    if written.get("year"):
        return date(_number(written, "year"), _number(written, "month"), _number(written, "day"))
    today = utc_moment(now_ns).astimezone(_own_zone(written) or zone).date()
    return today - timedelta(days=1) if written.get("word") == "yesterday" else today


def _end_ns(written: Mapping[str, str | None], day: date, zone: tzinfo) -> int:
    """The first time that is later than the one that was written."""
    clock = time(_number(written, "hour"), _number(written, "minute"), _number(written, "second"), tzinfo=_own_zone(written) or zone)
    begin_ns = moment_ns(datetime.combine(day, clock))
    fraction = written["fraction"] or ""
    unit_ns: int = SECOND_NS // 10 ** len(fraction)
    return begin_ns + (int(fraction or 0) + 1) * unit_ns


def _number(written: Mapping[str, str | None], name: str) -> int:
    return int(written[name] or 0)


def _own_zone(written: Mapping[str, str | None]) -> tzinfo | None:
    if written["utc"]:
        return UTC
    if not written["sign"]:
        return None
    offset = timedelta(hours=_number(written, "hours"), minutes=_number(written, "minutes"))
    return timezone(-offset if written["sign"] == "-" else offset)
