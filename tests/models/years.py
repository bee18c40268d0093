"""Years in the life of a mounted directory, as plain events for the rules of snapshots and their model to live through.

`years(seed, n)` is the same for the same seed. The machine works and rests, sleeps, is off for days and is mounted again; its clock is set back and
forth; its owner takes, pins, holds, deletes and brings back snapshots and changes the policy. Which snapshot an event means is not known here: that
depends on what the rules have kept, so events carry a `pick`, and `world.py` makes a snapshot of it.

Many times are whole minutes or hours, also when that makes two of them equal: whether a rule says "after" or "at" shows only there.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction

from tests.models.snapshot_rules import (
    DAY_NS,
    HOUR_NS,
    MINUTE_NS,
    SCHEDULES_OUT_OF_THE_BOX,
    SECOND_NS,
    SETTINGS_OUT_OF_THE_BOX,
    Duration,
    Schedule,
    Settings,
    wall_clock,
)

MIB = 2**20
TAGS = ("auto", "hourly", "nightly", "work", "release", "before")
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Beirut", "Pacific/Auckland")
CRON_LINES = (
    "0 * * * *",
    "*/15 8-18 * * mon-fri",
    "30 2 * * *",
    "0 3 * * *",
    "15 1,2,3 * * *",
    "0 0 1 * *",
    "0 12 13 * 5",
    "45 */6 * * *",
    "0 22 */3 * sun",
    "*/30 0,2 * * *",
    "20/25 1 * * *",
    "5,35 0-3 * * *",
    "40 2 * * sun",
    "0 23 L * 5#2",
)
FRACTIONS = (Fraction(1), Fraction(1), Fraction(1, 2), Fraction(29, 100), Fraction(1, 10), Fraction(1, 50))


@dataclass(frozen=True, slots=True)
class Mounted:
    """The directory is mounted (again), with these schedules. A look follows."""

    now_ns: int
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True, slots=True)
class Changed:
    """So much was written."""

    now_ns: int
    records: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Looked:
    """The scheduler looks at the clock; when a snapshot is due, taking it may fail."""

    now_ns: int
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Slept:
    """The machine woke up after so long. Nobody is told, it is here for whoever reads the events."""

    now_ns: int
    for_ns: int


@dataclass(frozen=True, slots=True)
class ClockSet:
    """The clock was set, by a positive or negative amount. Nobody is told either."""

    now_ns: int
    by_ns: int


@dataclass(frozen=True, slots=True)
class TakenByHand:
    """Somebody takes a snapshot."""

    now_ns: int
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pinned:
    """A kept snapshot is pinned, or no longer."""

    now_ns: int
    pick: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class Held:
    """A kept snapshot is held until a time, or no longer."""

    now_ns: int
    pick: int
    hold_end_ns: int | None


@dataclass(frozen=True, slots=True)
class Deleted:
    """A kept snapshot is deleted by its owner, whatever it is."""

    now_ns: int
    pick: int


@dataclass(frozen=True, slots=True)
class Undeleted:
    """A snapshot that is deleted and not yet purged is brought back."""

    now_ns: int
    pick: int


@dataclass(frozen=True, slots=True)
class PolicyChanged:
    """From now on retention follows these settings."""

    now_ns: int
    settings: Settings


@dataclass(frozen=True, slots=True)
class Pruned:
    """Retention runs without a snapshot having been taken: hourly, or because somebody asked."""

    now_ns: int


Event = Mounted | Changed | Looked | Slept | ClockSet | TakenByHand | Pinned | Held | Deleted | Undeleted | PolicyChanged | Pruned


def years(seed: int, n: int, *, out_of_the_box: bool = False) -> Iterator[Event]:
    """`n` years from 2023 on, some 8,000 events each; `out_of_the_box` with the schedule and the keep rules that are set there, all the time."""
    return _Life(random.Random(seed), out_of_the_box).live(n)


@dataclass(slots=True)
class _Life:
    """One machine and its owner. The time that really passes is `true_ns`, its clock is ahead by `skew_ns`."""

    rng: random.Random
    out_of_the_box: bool
    true_ns: int = int(datetime(2023, 1, 1, 7, 30, tzinfo=UTC).timestamp()) * SECOND_NS
    skew_ns: int = 0
    schedules: tuple[Schedule, ...] = field(default=SCHEDULES_OUT_OF_THE_BOX)
    settings: Settings = field(default=SETTINGS_OUT_OF_THE_BOX)

    @property
    def now_ns(self) -> int:
        return self.true_ns + self.skew_ns

    def chance(self, percent: float) -> bool:
        return self.rng.random() * 100 < percent

    def live(self, n: int) -> Iterator[Event]:
        end_ns = self.true_ns + n * 365 * DAY_NS
        if not self.out_of_the_box:
            self.schedules, self.settings = self._some_schedules(), self._some_settings()
        yield PolicyChanged(self.now_ns, self.settings)
        yield from self._mount()
        while self.true_ns < end_ns:
            yield from self._session()
            yield from self._night()

    # --- what passes ---

    def _pass(self, low_ns: int, high_ns: int) -> None:
        """Let time pass; often until a whole minute, quarter or hour of the clock."""
        self.true_ns += self.rng.randint(low_ns, high_ns)
        unit_ns = self.rng.choice((1, SECOND_NS, MINUTE_NS, 15 * MINUTE_NS, 15 * MINUTE_NS, HOUR_NS))
        self.true_ns += -self.now_ns % unit_ns

    def _mount(self) -> Iterator[Event]:
        yield Mounted(self.now_ns, self.schedules)
        yield Looked(self.now_ns)

    def _session(self) -> Iterator[Event]:
        """Some hours awake, busy or quiet."""
        end_ns = self.true_ns + self.rng.randint(1, 16) * HOUR_NS
        busy = self.chance(70)
        while self.true_ns < end_ns and not self._is_clock_changed_soon():
            low_ns, high_ns = self.rng.choice(
                ((SECOND_NS, 30 * SECOND_NS), (MINUTE_NS, 9 * MINUTE_NS), (10 * MINUTE_NS, HOUR_NS), (30 * MINUTE_NS, 3 * HOUR_NS))
            )
            self._pass(low_ns, high_ns)
            if self.chance(50 if busy else 4):
                yield self._change()
            if self.chance(7):
                busy = not busy
                for _ in range(self.rng.randint(0, 6)):
                    yield self._change()
                    self._pass(0, 20 * SECOND_NS)
            yield Looked(self.now_ns, fails=self.chance(0.7))
            if self.chance(8):
                yield from self._owner()

    def _night(self) -> Iterator[Event]:
        """Asleep or off, for hours, seldom for weeks; awake when a clock that matters is changed."""
        if self._is_clock_changed_soon():
            yield from self._vigil()
            return
        begin_ns = self.true_ns
        low_ns, high_ns = (2 * DAY_NS, 25 * DAY_NS) if self.chance(2) else (4 * HOUR_NS, 14 * HOUR_NS)
        self._pass(low_ns, high_ns)
        if not self.out_of_the_box and self.chance(2):
            self.settings, self.schedules = self._some_settings(), self._some_schedules()
            yield self._policy()
            yield from self._mount()
        elif self.chance(25):
            yield from self._mount()
        else:
            yield Slept(self.now_ns, self.true_ns - begin_ns)

    def _is_clock_changed_soon(self) -> bool:
        """Whether daylight saving begins or ends within half a day where it matters."""
        zones = {self.settings.zone, *(schedule.zone for schedule in self.schedules if schedule.cron is not None)}
        now_ns, soon_ns = self.now_ns, self.now_ns + 12 * HOUR_NS
        return any(wall_clock(now_ns, zone).utcoffset() != wall_clock(soon_ns, zone).utcoffset() for zone in zones)

    def _vigil(self) -> Iterator[Event]:
        """Half a day with something every few minutes."""
        end_ns = self.true_ns + 12 * HOUR_NS
        while self.true_ns < end_ns:
            self._pass(SECOND_NS, 20 * MINUTE_NS)
            yield self._change()
            yield Looked(self.now_ns)
            if self.chance(50):
                yield TakenByHand(self.now_ns, ())
            if self.chance(50):
                yield Pruned(self.now_ns)

    def _change(self) -> Changed:
        records = self.rng.choice((0, 1, 1, 3, 20, 400))
        return Changed(self.now_ns, records, 0 if records == 3 else self.rng.randint(1, self.rng.choice((4096, MIB, 64 * MIB))))

    def _owner(self) -> Iterator[Event]:
        """Something that people do, or that is done to clocks."""
        kind, pick = self.rng.randrange(100), self.rng.randrange(10**6)
        if kind < 20:
            tags = self.rng.choice(self.schedules).tags if self.chance(50) else tuple(self.rng.sample(TAGS, self.rng.randint(0, 2)))
            yield TakenByHand(self.now_ns, tags)
        elif kind < 50:
            yield Pruned(self.now_ns)
        elif kind < 61:
            yield Pinned(self.now_ns, pick, pinned=self.chance(40))
        elif kind < 69:
            yield from self._hold(pick)
        elif kind < 77:
            yield Deleted(self.now_ns, pick)
        elif kind < 83:
            yield Undeleted(self.now_ns, pick)
        elif kind < 88:
            self.settings = replace(self.settings, max_delete_fraction=self.rng.choice(FRACTIONS), min_age=self._some_min_age())
            yield self._policy()
        elif kind < 91:
            yield self._policy()
        else:
            yield self._set_clock()

    def _hold(self, pick: int) -> Iterator[Event]:
        """Hold some for days or hours; the end is sometimes waited for, and then it is the moment of a run of retention."""
        length_ns = self.rng.randint(0, 30) * self.rng.choice((HOUR_NS, DAY_NS))
        for place in range(self.rng.randint(1, 8)):
            yield Held(self.now_ns, pick + place, self.now_ns + length_ns if self.chance(80) else None)
        if length_ns < 30 * HOUR_NS and self.chance(70):
            self.true_ns += length_ns
            yield Pruned(self.now_ns)

    def _set_clock(self) -> ClockSet:
        """Set it wrong by seconds to days, seldom by months; if it is wrong, mostly right again."""
        before_ns = self.skew_ns
        if self.skew_ns and self.chance(80):
            self.skew_ns = 0
        else:
            most_ns = self.rng.choice((MINUTE_NS, HOUR_NS, HOUR_NS, 26 * HOUR_NS, 100 * DAY_NS))
            self.skew_ns = self.rng.choice((-1, 1)) * self.rng.randint(0, most_ns)
        return ClockSet(self.now_ns, self.skew_ns - before_ns)

    # --- what is wanted ---

    def _policy(self) -> PolicyChanged:
        """With other limits of space."""
        self.settings = replace(
            self.settings,
            space_limit_bytes=self.rng.randint(200, 4000) * MIB if self.chance(30) else None,
            free_limit=self.rng.choice((None, None, None, None, 500 * MIB, 3000 * MIB, Fraction(5, 100), Fraction(36, 100))),
        )
        return PolicyChanged(self.now_ns, self.settings)

    def _some_min_age(self) -> Duration:
        return Duration(self.rng.choice((0, 0, HOUR_NS, 2 * HOUR_NS, 6 * HOUR_NS, 2 * DAY_NS)))

    def _some_settings(self) -> Settings:
        """Rules that keep some dozens of snapshots; seldom none, which keeps all until the policy is changed."""

        def rule(most: int, unit_ns: int) -> int | Duration | None:
            return self.rng.choice((None, None, self.rng.randint(0, most), Duration(self.rng.randint(1, most) * unit_ns)))

        within = Duration(self.rng.randint(1, 60) * HOUR_NS) if self.chance(40) else None
        if self.chance(2):
            return Settings(zone=self.rng.choice(ZONES))
        return Settings(
            keep_last=rule(15, HOUR_NS),
            keep_minutely=rule(30, MINUTE_NS),
            keep_hourly=rule(48, HOUR_NS) or rule(48, HOUR_NS),
            keep_daily=rule(30, DAY_NS) or 7,
            keep_weekly=rule(12, 7 * DAY_NS),
            keep_monthly=rule(24, 30 * DAY_NS),
            keep_quarterly=rule(8, 91 * DAY_NS),
            keep_yearly=rule(10, 365 * DAY_NS),
            keep_within=within,
            keep_tag=tuple(self.rng.sample(TAGS[3:], 1)) if self.chance(25) else (),
            min_age=self._some_min_age(),
            max_delete_fraction=self.rng.choice(FRACTIONS),
            zone=self.rng.choice(ZONES),
        )

    def _some_schedules(self) -> tuple[Schedule, ...]:
        return tuple(self._some_schedule() for _ in range(self.rng.randint(1, 4)))

    def _some_schedule(self) -> Schedule:
        plain = Schedule(
            every=Duration(self.rng.choice((15, 60, 60, 90, 24 * 60)) * MINUTE_NS),
            tags=tuple(self.rng.sample(TAGS[:4], self.rng.randint(0, 2))),
            always=self.chance(20),
            zone=self.rng.choice(ZONES),
        )
        kind = self.rng.randrange(6)
        if kind in {0, 5}:
            return replace(plain, every=None, cron=self.rng.choice(CRON_LINES))
        if kind == 1:
            return replace(plain, every=None, on_change_records=self.rng.choice((1, 21, 500)))
        if kind == 2:
            return replace(plain, every=None, on_change_bytes=self.rng.choice((4096, MIB, 100 * MIB)))
        if kind == 3:
            return replace(plain, every=None, on_idle=Duration(self.rng.choice((10 * SECOND_NS, 5 * MINUTE_NS, HOUR_NS))))
        return plain
