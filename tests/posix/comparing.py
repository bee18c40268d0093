"""What of two sides must be equal, and what their times must have in common. Values in, lines of differences out.

Inode and device numbers, blocks and the size of directories are not compared. Of times it is compared which of them a step changed, which of those
it made equal to each other or newer than another, that they are those of the step and none goes back, and the value of each that a caller has set.
"""

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Final

from tests.posix.side import Before, Facts, Seen, Times

NAMES: Final = ("atime", "mtime", "ctime")
ALL: Final = frozenset(range(3))
WITHOUT_ATIME: Final = frozenset((1, 2))
TICK_NS: Final = 10_000_000
"""The kernel's coarse clock moves at least this often. A time that the kernel itself gives is as old as its last move."""
SET_NS: Final = 3_600_000_000_000
"""A time so far from now was set by a caller, and none that is drawn lies nearer."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When a step was made: before it by the coarse clock and by the fine one, after it by the fine one. A change in it has a time from `coarse_ns`
    on, one before it has a time before `begin_ns`.
    """

    coarse_ns: int
    begin_ns: int
    end_ns: int

    def is_set(self, time_ns: int) -> bool:
        """Whether this time cannot come from a clock."""
        return abs(time_ns - self.end_ns) > SET_NS

    def is_now(self, time_ns: int) -> bool:
        """Whether a clock may have given this time in the step."""
        return self.coarse_ns - TICK_NS <= time_ns <= self.end_ns + TICK_NS

    def changed(self, before: Times | None, after: Times, i: int) -> bool | None:
        """Whether the step changed this time; None when that cannot be told of what was not looked at before it, perhaps because it was not there."""
        if before is not None:
            return after[i] != before[i]
        return None if self.coarse_ns <= after[i] < self.begin_ns else after[i] >= self.begin_ns


def fact_faults(expected: Facts, found: Facts) -> list[str]:
    """What is different between the two sides."""
    if expected == found:
        return []
    pairs = ((field.name, getattr(expected, field.name), getattr(found, field.name)) for field in fields(Facts))
    return [f"{name}: {_shown(name, was)} is {_shown(name, now)}" for name, was, now in pairs if was != now]


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that the kernel makes, of which no request says anything: see `docs/posix.md`. Of regular files, unless `kind` says
    otherwise.
    """

    name: str
    calls: frozenset[str]
    """With the error, as in "renameat2: ENOTEMPTY", if it is one of calls that fail."""
    times: frozenset[int]
    kept: bool
    """Whether these times are kept where ext4 changes them; otherwise they are changed where ext4 keeps them."""
    same_size: bool = False
    """Only when the size is what it was."""
    kind: int = stat.S_IFREG


KNOWN: Final = (
    Known("truncating to the size a file has changes no times", frozenset({"truncate"}), WITHOUT_ATIME, kept=True, same_size=True),
    Known(
        "setting an attribute to what it is changes the ctime, and so does removing a list that is not there",
        frozenset({"setxattr", "fsetxattr", "removexattr", "fremovexattr"}),
        frozenset({2}),
        kept=False,
    ),
    Known("writing into a FIFO changes none of its times", frozenset({"write"}), WITHOUT_ATIME, kept=True, kind=stat.S_IFIFO),
    Known(
        "a rename that was to leave a whiteout and fails, since there is a directory that is not empty, changes no times",
        frozenset({"renameat2: ENOTEMPTY"}),
        WITHOUT_ATIME,
        kept=True,
        kind=stat.S_IFDIR,
    ),
)


def time_faults(
    expected: tuple[Times | None, Times],
    found: tuple[Times | None, Times],
    moment: Moment,
    compared: frozenset[int] = ALL,
    known: Sequence[Known] = (),
) -> list[str]:
    """Each side: the times before the step, if it was there, and after it."""
    (expected_before, expected_after), (found_before, found_after) = expected, found
    faults: list[str] = []
    by_clock: list[int] = []
    for i in sorted(compared):
        was, now = expected_after[i], found_after[i]
        if moment.is_set(was) or moment.is_set(now):
            kept = found_before is not None and found_before[i] == now and any(each.kept and i in each.times for each in known)
            if was != now and not kept:
                faults.append(f"{NAMES[i]}: set to {was}, is {now}")
            continue
        was_changed = moment.changed(expected_before, expected_after, i)
        now_changed = moment.changed(found_before, found_after, i)
        if was_changed is None or now_changed is None or any(i in each.times and was_changed == each.kept != now_changed for each in known):
            continue
        if was_changed and now_changed:
            by_clock.append(i)
            faults += [f"{NAMES[i]}: {time} is not of this step, {moment}" for time in (was, now) if not moment.is_now(time)]
        elif was_changed and now < moment.coarse_ns:  # or else the clock has not moved between two changes
            faults.append(f"{NAMES[i]}: was not changed ({now}, {moment.begin_ns - now} ns before the step)")
        elif now_changed and was < moment.coarse_ns:
            faults.append(f"{NAMES[i]}: was changed, from {found_before and found_before[i]} to {now}")
    for i in by_clock:
        older = [NAMES[j] for j in sorted(compared) if expected_after[i] >= expected_after[j] and found_after[i] < found_after[j]]
        faults += [f"{NAMES[i]}: is older than the {other}: {found_after}, on ext4 {expected_after}" for other in older]
        if found_before is not None and found_after[i] < found_before[i] and not moment.is_set(found_before[i]):
            faults.append(f"{NAMES[i]}: went back from {found_before[i]} to {found_after[i]}")
    for i, j in combinations(by_clock, 2):  # ext4 may take the clock twice in one step, as when a list is inherited
        if expected_after[i] == expected_after[j] and found_after[i] != found_after[j]:
            faults.append(f"{NAMES[i]} and {NAMES[j]}: {expected_after[i]}, {expected_after[j]} are {found_after[i]}, {found_after[j]}")
    return faults


def seen_faults(
    what: str,
    expected: Seen | str,
    found: Seen | str,
    before: tuple[Mapping[int, Before], Mapping[int, Before]],
    moment: Moment,
    compared: frozenset[int] = ALL,
    call: str = "",
) -> list[str]:
    """What is different about one object after a step; `before` has the times of what was looked at before it, by inode, for each side."""
    if isinstance(expected, str) or isinstance(found, str):
        return [] if expected == found else [f"{what}: {_state(expected)} is {_state(found)}"]
    faults = fact_faults(expected.facts, found.facts)
    was, now = before[0].get(expected.ino), before[1].get(found.ino)
    if (was is None) == (now is None):
        known = [each for each in KNOWN if call in each.calls and _may_be(each, was, expected)]
        faults += time_faults((_times_of(was), expected.times), (_times_of(now), found.times), moment, compared, known)
    else:
        faults.append(f"only {'ext4' if was else 'the mount'} shows what was looked at before")
    return [f"{what}: {fault}" for fault in faults]


def _times_of(before: Before | None) -> Times | None:
    return None if before is None else before.times


def _may_be(known: Known, before: Before | None, after: Seen) -> bool:
    return stat.S_IFMT(after.facts.mode) == known.kind and (not known.same_size or before is None or before.size == after.facts.size)


def tree_faults(expected: Mapping[bytes, Seen], found: Mapping[bytes, Seen], moment: Moment, compared: frozenset[int] = ALL) -> list[str]:
    """What is different between two whole trees; which paths are one file counts."""
    faults = [f"{path!r}: missing" for path in sorted(expected.keys() - found.keys())]
    faults += [f"{path!r}: not expected" for path in sorted(found.keys() - expected.keys())]
    for path in sorted(expected.keys() & found.keys()):
        was, now = expected[path], found[path]
        faults += [f"{path!r}: {fault}" for fault in fact_faults(was.facts, now.facts)]
        for i in sorted(compared):
            if was.times[i] != now.times[i] and (moment.is_set(was.times[i]) or moment.is_set(now.times[i])):
                faults.append(f"{path!r}: {NAMES[i]}: set to {was.times[i]}, is {now.times[i]}")
    if _groups(expected) != _groups(found):
        faults.append(f"other paths are one file: {_groups(expected)} are {_groups(found)}")
    return faults


def _groups(tree: Mapping[bytes, Seen]) -> list[list[bytes]]:
    by_ino: dict[int, list[bytes]] = {}
    for path, seen in tree.items():
        by_ino.setdefault(seen.ino, []).append(path)
    return sorted(sorted(paths) for paths in by_ino.values() if len(paths) > 1)


def _state(seen: Seen | str) -> str:
    return seen if isinstance(seen, str) else "there"


def _shown(name: str, value: object) -> str:
    if name == "mode" and isinstance(value, int):
        return oct(value)
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes {value[:20]!r}..."
    return repr(value)
