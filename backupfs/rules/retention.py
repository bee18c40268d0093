"""Which snapshots stay: every one gets its fate, with reasons. `docs/snapshots.md` is what this carries out.

Levels, the stronger first: some are never removed; young ones stay; only so many go in one run; space limits; keep
rules.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import islice
from math import ceil, floor
from operator import attrgetter
from typing import Final

from backupfs.rules.moments import utc_moment
from backupfs.rules.policy import Duration, Keep, Retention
from backupfs.rules.quantities import show_duration

_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A snapshot that is kept. Serials go up in the order in which snapshots are taken. `hold_until_ns` 0: not held."""

    serial: int
    time_ns: int
    tags: tuple[str, ...] = ()
    pinned: bool = False
    hold_until_ns: int = 0


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a snapshot, and all the reasons there are for it, for people."""

    serial: int
    keep: bool
    reasons: tuple[str, ...]


def _unknown(_: frozenset[int]) -> int:
    raise ValueError("who says that there is too much must say what deleting frees")


Question = frozenset[int]
"""Serials: how many bytes would purging these snapshots free, together with those that are deleted already?"""


def decide(
    candidates: Sequence[Candidate],
    retention: Retention,
    now_ns: int,
    excess_bytes: int = 0,
    frees: Callable[[Question], int] = _unknown,
) -> list[Fate]:
    """The fate of each, sorted by time and then by serial.

    `frees` answers questions; never less for more serials. It is asked O(log n) times, and only while `excess_bytes`
    are too many.
    """
    decision = deciding(candidates, retention, now_ns, excess_bytes)
    try:
        question = next(decision)
        while True:
            question = decision.send(frees(question))
    except StopIteration as end:
        fates: list[Fate] = end.value
        return fates


def deciding(candidates: Sequence[Candidate], retention: Retention, now_ns: int, excess_bytes: int = 0) -> Generator[Question, int, list[Fate]]:
    """`decide` for whoever has to wait for the answers: it yields each question, and is sent what that frees."""
    ordered = sorted(candidates, key=attrgetter("time_ns", "serial"))
    guarded = _guards(ordered, retention, now_ns)
    kept = _keeps(ordered, retention, now_ns)
    unkept = [snapshot for snapshot in ordered if snapshot.serial not in guarded and snapshot.serial not in kept]
    budget = _budget(len(ordered), retention.max_delete_fraction)
    deleted = {snapshot.serial: "no rule keeps it" for snapshot in unkept[:budget]}
    waiting = {snapshot.serial: ("max-delete-fraction: next run",) for snapshot in unkept[budget:]}
    if excess_bytes > 0 and len(deleted) < budget:
        thinned = yield from _thin(ordered, guarded, frozenset(deleted), budget - len(deleted), excess_bytes)
        deleted.update(dict.fromkeys(thinned, "space limit: densest"))
    return [
        Fate(snapshot.serial, False, (deleted[snapshot.serial],))
        if snapshot.serial in deleted
        else Fate(snapshot.serial, True, (*guarded.get(snapshot.serial, ()), *kept.get(snapshot.serial, ()), *waiting.get(snapshot.serial, ())))
        for snapshot in ordered
    ]


def excess(retention: Retention, used_bytes: int, free_bytes: int, total_bytes: int) -> int:
    """How many bytes are too many by the space limits; 0: none. `used` is what the repository takes, the others are of
    its disk.
    """
    over = [0]
    if retention.space_limit_bytes is not None:
        over.append(used_bytes - retention.space_limit_bytes)
    if retention.free_limit_bytes is not None:
        over.append(retention.free_limit_bytes - free_bytes)
    if retention.free_limit_share is not None:
        over.append(ceil(_exactly(retention.free_limit_share) * total_bytes) - free_bytes)
    return max(over)


# --- levels 1 and 2: what is never removed, and what is young -------------------------------------------------------


def _guards(ordered: Sequence[Candidate], retention: Retention, now_ns: int) -> dict[int, list[str]]:
    """Serials of those that nothing below may delete, with the reasons."""
    newest = max((snapshot.serial for snapshot in ordered), default=0)
    guarded: dict[int, list[str]] = {}
    for snapshot in ordered:
        reasons = []
        if snapshot.serial == newest:
            reasons.append("newest")
        if snapshot.pinned:
            reasons.append("pinned")
        if now_ns < snapshot.hold_until_ns:
            reasons.append(f"held until {_minute(snapshot.hold_until_ns)}")
        if snapshot.time_ns > now_ns:
            reasons.append("in the future")
        elif snapshot.time_ns > now_ns - retention.min_age_ns:
            reasons.append("younger than min-age")
        if reasons:
            guarded[snapshot.serial] = reasons
    return guarded


def _minute(time_ns: int) -> str:
    """`2026-10-04 12:00 UTC`, rounded up."""
    moment = utc_moment(time_ns - 1) + _MINUTE
    return f"{moment:%Y-%m-%d %H:%M} UTC"


# --- level 3: how many go in one run --------------------------------------------------------------------------------


def _budget(count: int, fraction: float) -> int:
    return max(1, floor(_exactly(fraction) * count))


def _exactly(share: float) -> Fraction:
    """The decimal number that this was written as."""
    return Fraction(Decimal(repr(share)))


# --- level 4: the space limits --------------------------------------------------------------------------------------


def _thin(
    ordered: Sequence[Candidate],
    guarded: Mapping[int, object],
    deleted: frozenset[int],
    budget: int,
    excess_bytes: int,
) -> Generator[Question, int, list[int]]:
    """Serials of the densest, at most `budget`, until it is enough: the fewest, in the order in which they are chosen.

    Who is chosen next does not depend on what the others free. So the number is found by doubling it until it is
    enough, and then by halving the span in which it lies.
    """
    if (yield deleted) >= excess_bytes:
        return []
    densest = islice(_densest([snapshot for snapshot in ordered if snapshot.serial not in deleted], guarded), budget)
    chosen = list(islice(densest, 1))
    too_few = 0
    while chosen and (yield deleted.union(chosen)) < excess_bytes:
        too_few = len(chosen)
        chosen += islice(densest, too_few)
        if len(chosen) == too_few:
            return chosen
    enough = len(chosen)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if (yield deleted.union(chosen[:middle])) >= excess_bytes:
            enough = middle
        else:
            too_few = middle
    return chosen[:enough]


def _densest(standing: Sequence[Candidate], guarded: Mapping[int, object]) -> Iterator[int]:
    """Serials of those that are not guarded, each time the one with the smallest span between its neighbours, the oldest
    of several. A neighbour's span changes when one goes: the heap holds old spans too, which are passed over.
    """
    last = len(standing) - 1
    older = list(range(-1, last))
    newer = list(range(1, last + 2))

    def span_ns(place: int) -> int:
        before = older[place] if older[place] >= 0 else place
        after = newer[place] if newer[place] <= last else place
        return standing[after].time_ns - standing[before].time_ns

    heap = [(span_ns(place), place) for place, snapshot in enumerate(standing) if snapshot.serial not in guarded]
    heapify(heap)
    gone = bytearray(last + 1)
    while heap:
        noted_ns, place = heappop(heap)
        if gone[place] or noted_ns != span_ns(place):
            continue
        gone[place] = True
        yield standing[place].serial
        before, after = older[place], newer[place]
        if before >= 0:
            newer[before] = after
        if after <= last:
            older[after] = before
        for neighbour in (before, after):
            if 0 <= neighbour <= last and standing[neighbour].serial not in guarded:
                heappush(heap, (span_ns(neighbour), neighbour))


# --- level 5: the keep rules ----------------------------------------------------------------------------------------


def _keeps(ordered: Sequence[Candidate], retention: Retention, now_ns: int) -> dict[int, list[str]]:
    """Serials of those that a keep rule keeps, with the rules."""
    past = [snapshot for snapshot in reversed(ordered) if snapshot.time_ns <= now_ns]
    rules = _rules(retention, past)
    if not rules and not retention.keep_tags:
        return {snapshot.serial: ["no keep rule is given"] for snapshot in ordered}
    kept: dict[int, list[str]] = {}
    for rule in rules:
        for snapshot, reason in _newest_of_each(past, rule):
            kept.setdefault(snapshot.serial, []).append(reason)
    wanted = set(retention.keep_tags)
    for snapshot in past if wanted else ():
        kept_tags = [f"tag {tag}" for tag in dict.fromkeys(snapshot.tags) if tag in wanted]
        if kept_tags:
            kept.setdefault(snapshot.serial, []).extend(kept_tags)
    return kept


@dataclass(frozen=True, slots=True)
class _Rule:
    """`periods` are the numbers of the periods that the snapshots lie in, newest first; for some rules each has its own."""

    name: str
    keep: Keep
    periods: Iterable[int]


def _rules(retention: Retention, past: Sequence[Candidate]) -> list[_Rule]:
    """The rules that are given, but for the tags."""
    each = range(len(past))
    by_calendar = (
        ("minutely", retention.keep_minutely, _minute_number),
        ("hourly", retention.keep_hourly, _hour_number),
        ("daily", retention.keep_daily, datetime.toordinal),
        ("weekly", retention.keep_weekly, _week_number),
        ("monthly", retention.keep_monthly, _month_number),
        ("quarterly", retention.keep_quarterly, _quarter_number),
        ("yearly", retention.keep_yearly, attrgetter("year")),
    )
    rules = [_Rule("last", retention.keep_last, each)]
    if any(keep for _, keep, _ in by_calendar):
        moments = [utc_moment(snapshot.time_ns).astimezone(retention.zone) for snapshot in past]
        rules += [_Rule(name, keep, map(number, moments)) for name, keep, number in by_calendar]
    rules.append(_Rule("", Duration(retention.keep_within_ns) if retention.keep_within_ns else 0, each))
    return [rule for rule in rules if rule.keep]


def _newest_of_each(past: Sequence[Candidate], rule: _Rule) -> Iterator[tuple[Candidate, str]]:
    """The newest snapshot of each period that the rule keeps, with the reason. `past` is sorted, newest first."""
    keep = rule.keep
    seen: set[int] = set()
    for snapshot, period in zip(past, rule.periods, strict=True):
        if period in seen:
            continue
        if isinstance(keep, Duration):
            if snapshot.time_ns <= past[0].time_ns - keep.ns:
                return
            reason = f"{rule.name} within {show_duration(keep.ns)}".lstrip()
        else:
            if len(seen) == keep:
                return
            reason = f"{rule.name} {len(seen) + 1} of {keep}"
        seen.add(period)
        yield snapshot, reason


def _minute_number(moment: datetime) -> int:
    """One that the clock shows twice is two, as an hour is."""
    return ((moment.toordinal() * 24 + moment.hour) * 60 + moment.minute) * 2 + moment.fold


def _hour_number(moment: datetime) -> int:
    return (moment.toordinal() * 24 + moment.hour) * 2 + moment.fold


def _week_number(moment: datetime) -> int:
    """The first day of the year 1 was a Monday, and has the number 1."""
    return (moment.toordinal() - 1) // 7


def _month_number(moment: datetime) -> int:
    return moment.year * 12 + moment.month - 1


def _quarter_number(moment: datetime) -> int:
    return _month_number(moment) // 3
