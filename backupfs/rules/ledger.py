"""What a repository takes, on paper: the live tree, and what snapshots hold beyond it.

The live tree always takes the same. Each day so many bytes of it are replaced, day by day the same ones, one after the other: each stands for
exactly a day. Then a snapshot holds what is replaced until the next one that stands (until now, if it is the newest), but no more than a day's
changes, since what is replaced after that was born after it. Everything else that it saw, the next one or the live tree has too. So snapshots
together hold the sum of this over the times between them, and what some free is what the sum lacks without them.

What snapshots hold when the ledger is opened is known. It is spread over their times in the same way, and is of other bytes than what is
replaced from then on.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

from backupfs.rules.policy import DAY_NS, Retention
from backupfs.rules.retention import Candidate, Question, excess


@dataclass(frozen=True, slots=True)
class Disk:
    """What a repository lies on."""

    free_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Opening:
    """What a ledger begins with: what the live tree takes, what all snapshots that stand hold beyond it, and how much is replaced each day from then
    on. Without a disk, limits of what is free on it are not looked at.
    """

    live_bytes: int = 0
    held_bytes: int = 0
    daily_bytes: int = 0
    disk: Disk | None = None


def daily_bytes(held_bytes: int, present: Iterable[Candidate], now_ns: int) -> int:
    """How much is replaced each day, by what all snapshots that stand hold. What has changed in less than a day counts as a day's changes."""
    return held_bytes * DAY_NS // max(_replacing_ns([*_moments(present, now_ns).values(), now_ns]), DAY_NS)


class Ledger:
    """Follows snapshots that come and go from `opened_ns` on. What none of them holds any more is free at once; nothing else uses the disk."""

    def __init__(self, opening: Opening, retention: Retention, present: Iterable[Candidate], opened_ns: int) -> None:
        self._opening = opening
        self._disk = opening.disk or Disk(0, 0)
        self._limits = retention if opening.disk else replace(retention, free_limit_bytes=None, free_limit_share=None)
        self._opened_ns = opened_ns
        self._moments = _moments(present, opened_ns)
        self._present_ns = self._replacing([*self._moments.values(), opened_ns])[0]
        self._between = self._replacing(list(self._moments.values()))

    @property
    def is_limited(self) -> bool:
        """A limit of space is looked at."""
        return self._limits.limits_space

    def add(self, serial: int, time_ns: int) -> None:
        """A snapshot is taken: none of those that stand is newer, and the ledger has been opened before."""
        before, since = self._replacing([*self._newest(), time_ns])
        self._between = self._between[0] + before, self._between[1] + since
        self._moments[serial] = time_ns

    def remove(self, serials: Iterable[int]) -> None:
        """Snapshots go."""
        for serial in serials:
            del self._moments[serial]
        self._between = self._replacing(list(self._moments.values()))

    def used_bytes(self, now_ns: int) -> int:
        """What the repository takes, not before the newest snapshot."""
        before, since = self._replacing([*self._newest(), now_ns])
        return self._opening.live_bytes + self._held_bytes(self._between[0] + before, self._between[1] + since)

    def frees_bytes(self, serials: Question, now_ns: int) -> int:
        """What comes back when these go, and no others."""
        if not serials:
            return 0
        staying = [moment for serial, moment in self._moments.items() if serial not in serials]
        return self.used_bytes(now_ns) - self._opening.live_bytes - self._held_bytes(*self._replacing([*staying, now_ns]))

    def excess_bytes(self, now_ns: int) -> int:
        """How many bytes are too many by the space limits; 0: none."""
        used_bytes = self.used_bytes(now_ns)
        grown_bytes = used_bytes - self._opening.live_bytes - self._opening.held_bytes
        return excess(self._limits, used_bytes, self._disk.free_bytes - grown_bytes, self._disk.total_bytes)

    def _newest(self) -> list[int]:
        return [next(reversed(self._moments.values()))] if self._moments else []

    def _held_bytes(self, before_ns: int, since_ns: int) -> int:
        before_bytes = self._opening.held_bytes * before_ns // self._present_ns if self._present_ns else 0
        return before_bytes + self._opening.daily_bytes * since_ns // DAY_NS

    def _replacing(self, moments: Sequence[int]) -> tuple[int, int]:
        """For how long, between moments that are sorted, bytes are replaced that the earlier one sees: before the ledger was opened, and since."""
        place = bisect_left(moments, self._opened_ns)
        before, since = moments[:place], moments[place:]
        opened = [self._opened_ns] if before and since else []
        return _replacing_ns([*before, *opened]), _replacing_ns([*opened, *since])


def _moments(present: Iterable[Candidate], now_ns: int) -> dict[int, int]:
    """The times by serial, sorted. One in the future was taken by a clock that was wrong: just now."""
    moments = {snapshot.serial: min(snapshot.time_ns, now_ns - 1) for snapshot in present}
    return dict(sorted(moments.items(), key=itemgetter(1)))


def _replacing_ns(moments: Sequence[int]) -> int:
    """For how long, between moments that are sorted, bytes are replaced that the earlier one sees."""
    return sum([min(newer - older, DAY_NS) for older, newer in pairwise(moments)])
