"""The rules of `docs/snapshots.md` once more: simple, slow, and written from that text alone.

It is read beside the document. Whoever changes a sentence there changes it here, without looking at `backupfs/rules`; the tests
that hold both against each other then show whether the rules still do what the document says. Hence nothing here is imported from backupfs,
and nothing is clever: retention looks at every snapshot for every question, cron goes through the minutes one by one.

`fates` is the part "Keeping them", `ScheduleModel` the part "Taking them", `next_run_ns` what cron calls the next run. Times are nanoseconds since
1970 in UTC. Where the document left something open, it says by now what loses the least data.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from zoneinfo import ZoneInfo

SECOND_NS = 10**9
MINUTE_NS = 60 * SECOND_NS
HOUR_NS = 60 * MINUTE_NS
DAY_NS = 24 * HOUR_NS
WEEK_NS = 7 * DAY_NS

# --- values ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time, as opposed to a count."""

    ns: int

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Read `90s`, `15m`, `36h`, `30d`, `2w`, `1w2d`; anything else is a ValueError."""
        found = re.fullmatch(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text, re.ASCII)
        if not text or found is None:
            raise ValueError(f"{text!r} is no duration")
        units = (WEEK_NS, DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS)
        return cls(sum(int(number or 0) * unit for number, unit in zip(found.groups(), units, strict=True)))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is kept. Serials rise in the order in which snapshots are taken, whatever the clock says."""

    serial: int
    time_ns: int
    tags: tuple[str, ...] = ()
    by_schedule: bool = False
    pinned: bool = False
    hold_end_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What is to be kept. A rule is a count, a duration, or not given."""

    keep_last: int | Duration | None = None
    keep_minutely: int | Duration | None = None
    keep_hourly: int | Duration | None = None
    keep_daily: int | Duration | None = None
    keep_weekly: int | Duration | None = None
    keep_monthly: int | Duration | None = None
    keep_quarterly: int | Duration | None = None
    keep_yearly: int | Duration | None = None
    keep_within: Duration | None = None
    keep_tag: tuple[str, ...] = ()
    min_age: Duration = Duration(0)
    max_delete_fraction: Fraction = Fraction(1)
    space_limit_bytes: int | None = None
    free_limit: int | Fraction | None = None  # bytes, or a share of the disk
    zone: str = "UTC"


@dataclass(frozen=True, slots=True)
class Schedule:
    """When snapshots are taken: exactly one of the triggers `every`, `cron`, `on_change_…`, `on_idle`."""

    every: Duration | None = None
    cron: str | None = None
    on_change_records: int | None = None
    on_change_bytes: int | None = None
    on_idle: Duration | None = None
    tags: tuple[str, ...] = ()
    always: bool = False
    zone: str = "UTC"

    def __post_init__(self) -> None:
        triggers = (self.every, self.cron, self.on_change_records, self.on_change_bytes, self.on_idle)
        assert sum(trigger is not None for trigger in triggers) == 1, "a schedule has one trigger"


SETTINGS_OUT_OF_THE_BOX = Settings(keep_hourly=24, keep_daily=30, keep_weekly=12, keep_monthly=24, keep_yearly=10, keep_within=Duration.parse("1d"))
SCHEDULES_OUT_OF_THE_BOX = (Schedule(every=Duration(HOUR_NS)),)


# --- the calendar ---------------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def wall_clock(time_ns: int, zone: str) -> datetime:
    """What calendar and clock of a zone show at a time, to the second."""
    return (_EPOCH + timedelta(seconds=time_ns // SECOND_NS)).astimezone(ZoneInfo(zone))


@lru_cache(maxsize=200_000)
def periods(time_ns: int, zone: str) -> dict[str, tuple[object, ...]]:
    """The minute, hour, day, … of the zone's calendar that a time lies in: two times have the same value when they share the period.

    An hour or a minute that the clock shows twice is two, so the offset belongs to them.
    """
    wall = wall_clock(time_ns, zone)
    iso = wall.isocalendar()
    return {
        "minutely": (wall.date(), wall.hour, wall.minute, wall.utcoffset()),
        "hourly": (wall.date(), wall.hour, wall.utcoffset()),
        "daily": (wall.date(),),
        "weekly": (iso.year, iso.week),
        "monthly": (wall.year, wall.month),
        "quarterly": (wall.year, (wall.month - 1) // 3),
        "yearly": (wall.year,),
    }


# --- keeping them ---------------------------------------------------------------------------------------------------


def _by_time(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.time_ns, snapshot.serial


def _is_given(rule: int | Duration | None) -> bool:
    """A count of 0 is no rule, and 0 is no duration."""
    return rule is not None and rule not in (0, Duration(0))


def never_removed(snapshots: Sequence[Snapshot], now_ns: int) -> set[int]:
    """Level 1."""
    newest = max((s.serial for s in snapshots), default=None)
    return {
        s.serial for s in snapshots if s.pinned or (s.hold_end_ns is not None and now_ns < s.hold_end_ns) or s.serial == newest or s.time_ns > now_ns
    }


def young(snapshots: Sequence[Snapshot], settings: Settings, now_ns: int) -> set[int]:
    """Level 2."""
    return {s.serial for s in snapshots if s.time_ns > now_ns - settings.min_age.ns}


def kept_by_rules(snapshots: Sequence[Snapshot], settings: Settings, now_ns: int) -> set[int]:
    """Level 5: those that at least one keep rule keeps, all when no rule is given."""
    by_period: dict[str, int | Duration | None] = {
        "minutely": settings.keep_minutely,
        "hourly": settings.keep_hourly,
        "daily": settings.keep_daily,
        "weekly": settings.keep_weekly,
        "monthly": settings.keep_monthly,
        "quarterly": settings.keep_quarterly,
        "yearly": settings.keep_yearly,
    }
    rules = (settings.keep_last, settings.keep_within, *by_period.values())
    if not any(_is_given(rule) for rule in rules) and not settings.keep_tag:
        return {s.serial for s in snapshots}
    newest_first = sorted((s for s in snapshots if s.time_ns <= now_ns), key=_by_time, reverse=True)
    if not newest_first:
        return set()
    ref_ns = newest_first[0].time_ns
    kept: set[int] = set()

    for rule in (settings.keep_last, settings.keep_within):
        if isinstance(rule, Duration):
            kept |= {s.serial for s in newest_first if s.time_ns > ref_ns - rule.ns}
        elif rule is not None:
            kept |= {s.serial for s in newest_first[:rule]}

    for name, rule in by_period.items():
        if rule is None:
            continue
        newest_of_each: dict[tuple[object, ...], Snapshot] = {}
        for s in newest_first:
            newest_of_each.setdefault(periods(s.time_ns, settings.zone)[name], s)
        newest = list(newest_of_each.values())  # in the order in which they were met: the newest period first
        if isinstance(rule, Duration):
            kept |= {s.serial for s in newest if s.time_ns > ref_ns - rule.ns}
        else:
            kept |= {s.serial for s in newest[:rule]}

    kept |= {s.serial for s in newest_first if set(s.tags) & set(settings.keep_tag)}
    return kept


def _densest(staying: Sequence[Snapshot], may_go: set[int]) -> Snapshot | None:
    """Of those in `may_go` the one with the smallest span between its neighbours among those that stay, the oldest of several."""
    ordered = sorted(staying, key=_by_time)
    best: tuple[int, Snapshot] | None = None
    for at, s in enumerate(ordered):
        if s.serial not in may_go:
            continue
        older = ordered[at - 1] if at > 0 else s
        newer = ordered[at + 1] if at + 1 < len(ordered) else s
        span_ns = newer.time_ns - older.time_ns
        if best is None or span_ns < best[0]:
            best = span_ns, s
    return None if best is None else best[1]


def fates(snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, excess_bytes: int, frees: Callable[[set[int]], int]) -> dict[int, bool]:
    """For the serial of each snapshot that is kept: does it stay (True) or is it deleted in this run.

    `excess_bytes` is what the function of this name says. `frees(serials)` is how many bytes are freed when these are purged, together with those
    that were deleted before this run.
    """
    spared = never_removed(snapshots, now_ns) | young(snapshots, settings, now_ns)
    budget = max(1, math.floor(settings.max_delete_fraction * len(snapshots)))

    wanted = kept_by_rules(snapshots, settings, now_ns)
    unwanted = sorted((s for s in snapshots if s.serial not in wanted and s.serial not in spared), key=_by_time)
    deleted = {s.serial for s in unwanted[:budget]}

    while len(deleted) < budget and frees(set(deleted)) < excess_bytes:
        staying = [s for s in snapshots if s.serial not in deleted]
        goes = _densest(staying, {s.serial for s in staying} - spared)
        if goes is None:
            break
        deleted.add(goes.serial)
    return {s.serial: s.serial not in deleted for s in snapshots}


def excess_bytes(settings: Settings, used_bytes: int, free_bytes: int, total_bytes: int) -> int:
    """How many bytes are too many by the space limits, 0 when none are. `used` is what the repository takes, the others are of its disk."""
    over: list[int | Fraction] = [0]
    if settings.space_limit_bytes is not None:
        over.append(used_bytes - settings.space_limit_bytes)
    if isinstance(settings.free_limit, Fraction):
        over.append(settings.free_limit * total_bytes - free_bytes)
    elif settings.free_limit is not None:
        over.append(settings.free_limit - free_bytes)
    return math.ceil(max(over))


# --- cron -----------------------------------------------------------------------------------------------------------

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_HORIZON = timedelta(days=50 * 366)  # 29 February on a given weekday can be 40 years away; what is further away never comes


@dataclass(frozen=True, slots=True)
class Cron:
    """A line of five fields."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days_of_month: frozenset[int]
    months: frozenset[int]
    days_of_week: frozenset[int]  # 0 is Sunday
    special_days: tuple[frozenset[str], frozenset[str]]  # of the month: L, LW; of the week: 5L, 5#2
    any_day_field_is_open: bool
    is_at_fixed_times: bool

    @classmethod
    def parse(cls, line: str) -> "Cron":
        minute, hour, day_of_month, month, day_of_week = line.split()
        day_of_month, last_days = _take_out(day_of_month, r"L|LW")
        day_of_week, special = _take_out(day_of_week, r"[0-7]L|(?:[0-7]|[A-Z]{3})#[1-5]")
        numbers = {**{name.upper(): str(number) for number, name in enumerate(_DAYS)}, "7": "0"}
        return cls(
            _numbers(minute, 0, 59),
            _numbers(hour, 0, 23),
            _numbers(day_of_month, 1, 31),
            _numbers(month, 1, 12, {name: number for number, name in enumerate(_MONTHS, 1)}),
            frozenset(number % 7 for number in _numbers(day_of_week, 0, 7, {name: number for number, name in enumerate(_DAYS)})),
            (last_days, frozenset(re.sub(r"^([A-Z]{3}|7)", lambda found: numbers[found[0]], word) for word in special)),
            day_of_month.startswith("*") or day_of_week.startswith("*"),
            not minute.startswith("*") and not hour.startswith("*"),
        )

    def names_day(self, day: date) -> bool:
        of_month, of_week = self.special_days
        in_month = day.day in self.days_of_month or bool(of_month & _last_days(day))
        in_week = day.isoweekday() % 7 in self.days_of_week or bool(of_week & _days_of_the_month(day))
        return day.month in self.months and ((in_month and in_week) if self.any_day_field_is_open else (in_month or in_week))

    def names_hour(self, wall: datetime) -> bool:
        return wall.hour in self.hours and self.names_day(wall.date())

    def names(self, wall: datetime) -> bool:
        return wall.minute in self.minutes and self.names_hour(wall)


def _take_out(text: str, special: str) -> tuple[str, frozenset[str]]:
    """A field without the words that look like this, and these words in capitals."""
    words = text.split(",")
    found = [word for word in words if re.fullmatch(special, word, re.ASCII | re.IGNORECASE)]
    return ",".join(word for word in words if word not in found), frozenset(word.upper() for word in found)


def _last_days(day: date) -> set[str]:
    """`L` for the last day of its month, `LW` for the last of Monday to Friday in it."""
    later = [day + n * _DAY for n in range(1, 4) if (day + n * _DAY).month == day.month]
    words = {"L"} if not later else set()
    return words | ({"LW"} if day.isoweekday() <= 5 and all(other.isoweekday() > 5 for other in later) else set())


def _days_of_the_month(day: date) -> set[str]:
    """`5#2` for its second Friday, `5L` for its last."""
    weekday = day.isoweekday() % 7
    return {f"{weekday}#{(day.day + 6) // 7}"} | ({f"{weekday}L"} if (day + 7 * _DAY).month != day.month else set())


def _numbers(text: str, low: int, high: int, names: dict[str, int] | None = None) -> frozenset[int]:
    """The numbers that a field names: a list of numbers, ranges, and `*`, each also with a step; of a number, up to the end."""

    def number(word: str) -> int:
        value = (names or {}).get(word.lower())
        return int(word) if value is None else value

    found: set[int] = set()
    for part in text.split(",") if text else ():
        span, slash, step = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            start, end = low, high
        elif dash:
            start, end = number(first), number(last)
        else:
            start = number(first)
            end = high if slash else start
        if not low <= start <= end <= high or (slash and int(step) < 1):
            raise ValueError(f"{part!r} is not within {low}-{high}")
        found.update(range(start, end + 1, int(step) if slash else 1))
    return frozenset(found)


def runs_at(cron: Cron, before: datetime, wall: datetime) -> bool:
    """Does the line run at the minute `wall`, when one minute earlier the clock showed `before`?

    A line at fixed times (its minute and its hour begin with something else than `*`) that names a minute that was left out runs right after the
    change, and one that names a minute that comes twice runs at the first. All others go by what the clock shows.
    """
    if not cron.is_at_fixed_times:
        return cron.names(wall)
    if cron.names(wall):
        return wall.fold == 0
    left_out = (_offset(wall) - _offset(before)) // _MINUTE
    plain = before.replace(tzinfo=None)
    return any(cron.names(plain + minutes * _MINUTE) for minutes in range(1, left_out + 1))


def _offset(wall: datetime) -> timedelta:
    offset = wall.utcoffset()
    assert offset is not None
    return offset


@lru_cache(maxsize=200_000)
def next_run_ns(line: str, zone: str, after_ns: int) -> int | None:
    """The first time after a time that a cron line names, None when it never comes.

    Goes through the minutes one by one, but over a day or an hour at once when the wall clock is not changed in it and the line names no minute of
    the (one or two) days or hours of the zone's calendar that it touches.
    """
    cron, tz = Cron.parse(line), ZoneInfo(zone)
    time = _EPOCH + timedelta(minutes=after_ns // MINUTE_NS + 1)
    end = time + _HORIZON
    while time < end:
        before, wall = (time - _MINUTE).astimezone(tz), time.astimezone(tz)
        day_later, hour_later = (time + _DAY - _MINUTE).astimezone(tz), (time + _HOUR - _MINUTE).astimezone(tz)
        if _offset(before) == _offset(day_later) and not cron.names_day(wall.date()) and not cron.names_day(day_later.date()):
            time += _DAY
        elif _offset(before) == _offset(hour_later) and not cron.names_hour(wall) and not cron.names_hour(hour_later):
            time += _HOUR
        elif runs_at(cron, before, wall):
            return (time - _EPOCH) // _MINUTE * MINUTE_NS
        else:
            time += _MINUTE
    return None


# --- taking them ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ScheduleModel:
    """Says at which looks at the clock a snapshot is taken, and with which tags.

    Whoever drives it tells it of everything that happens, in the order in which it happens; times may go backwards, as clocks do. Sleep is a time in
    which nothing is told. A machine that was off is mounted again: what has changed since the last snapshot is still changed then.

    `failed` has the last failure of each schedule since the last snapshot of any kind: the records and bytes that had changed by then. Nothing has
    changed since the failures of those in `still_since_failure`.
    """

    schedules: tuple[Schedule, ...]
    anchors_ns: list[int] = field(default_factory=list)
    changed_records: int = 0
    changed_bytes: int = 0
    last_change_ns: int = 0
    failed: dict[int, tuple[int, int]] = field(default_factory=dict)
    still_since_failure: set[int] = field(default_factory=set)

    def mount(self, now_ns: int, snapshots: Iterable[Snapshot], schedules: tuple[Schedule, ...] | None = None) -> None:
        """Begin anew, with other schedules when they are given. `snapshots` are those that are kept."""
        if schedules is not None:
            self.schedules = schedules
        by_schedules = sorted((s for s in snapshots if s.by_schedule), key=lambda s: s.serial)
        self.anchors_ns = []
        for schedule in self.schedules:
            anchor_ns = now_ns
            for s in by_schedules:
                if set(schedule.tags) <= set(s.tags):
                    anchor_ns = s.time_ns
            self.anchors_ns.append(anchor_ns)
        self.last_change_ns = now_ns
        self._forget_failures()
        self._note_clock(now_ns)

    def changed(self, now_ns: int, records: int, size_bytes: int) -> None:
        """So many records and bytes have changed."""
        if records or size_bytes:
            self.changed_records += records
            self.changed_bytes += size_bytes
            self.last_change_ns = now_ns
            self.still_since_failure.clear()

    def taken_by_hand(self, now_ns: int) -> None:
        """Somebody took a snapshot. It moves no anchor, but from now on nothing has changed since the last one."""
        self._nothing_has_changed()

    def look(self, now_ns: int, *, fails: bool = False) -> list[str] | None:
        """The tags of the snapshot that is taken now, or None when none is. `fails`: if one is tried, it fails."""
        self._note_clock(now_ns)
        due = [at for at in range(len(self.schedules)) if self._is_due(at, now_ns)]
        for at in due:
            self.anchors_ns[at] = now_ns
        if not due or not (self._has_changed() or any(self.schedules[at].always for at in due)):
            return None
        tags = list(dict.fromkeys(tag for at in due for tag in self.schedules[at].tags))
        if fails:
            self.failed.update(dict.fromkeys(due, (self.changed_records, self.changed_bytes)))
            self.still_since_failure.update(due)
        else:
            self._nothing_has_changed()
        return tags

    def is_any_due(self, now_ns: int) -> bool:
        """Whether a look at this time, which is not before the last, would find something due if nothing happens until then."""
        return any(self._is_due(at, now_ns) for at in range(len(self.schedules)))

    def _note_clock(self, now_ns: int) -> None:
        """An anchor that lies in the future becomes now, and so does a last change that does."""
        self.anchors_ns = [min(anchor_ns, now_ns) for anchor_ns in self.anchors_ns]
        self.last_change_ns = min(self.last_change_ns, now_ns)

    def _is_due(self, at: int, now_ns: int) -> bool:
        schedule, anchor_ns = self.schedules[at], self.anchors_ns[at]
        if schedule.every is not None:
            return now_ns >= anchor_ns + schedule.every.ns
        if schedule.cron is not None:
            next_ns = next_run_ns(schedule.cron, schedule.zone, anchor_ns)
            return next_ns is not None and now_ns >= next_ns
        failed_records, failed_bytes = self.failed.get(at, (0, 0))
        if schedule.on_change_records is not None:
            return self.changed_records - failed_records >= schedule.on_change_records
        if schedule.on_change_bytes is not None:
            return self.changed_bytes - failed_bytes >= schedule.on_change_bytes
        assert schedule.on_idle is not None
        return self._has_changed() and at not in self.still_since_failure and now_ns >= self.last_change_ns + schedule.on_idle.ns

    def _has_changed(self) -> bool:
        return self.changed_records > 0 or self.changed_bytes > 0

    def _nothing_has_changed(self) -> None:
        self.changed_records = self.changed_bytes = 0
        self._forget_failures()

    def _forget_failures(self) -> None:
        self.failed.clear()
        self.still_since_failure.clear()
