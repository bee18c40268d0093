"""What a person may ask for: when snapshots are taken and which are kept. `docs/snapshots.md` says what each value means.

These are values only; `rules.schedule` and `rules.retention` decide with them.
"""

from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Final

SECOND_NS: Final = 1_000_000_000
HOUR_NS: Final = 3600 * SECOND_NS
DAY_NS: Final = 24 * HOUR_NS


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time, where a count could stand as well. Positive."""

    ns: int


Keep = int | Duration
"""So many, or those of so long. 0 is no rule."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """One trigger, exactly: `every_ns`, `cron`, `on_change_records`, `on_change_bytes` or `on_idle_ns`.

    `cron` is a line that has been checked. `zone` is for it alone.
    """

    every_ns: int | None = None
    cron: str | None = None
    on_change_records: int | None = None
    on_change_bytes: int | None = None
    on_idle_ns: int | None = None
    tags: tuple[str, ...] = ()
    always: bool = False
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Retention:
    """Which snapshots are kept. Without any keep rule all are. `free_limit_share` is a share of the disk, above 0 and below 1."""

    keep_last: Keep = 0
    keep_minutely: Keep = 0
    keep_hourly: Keep = 0
    keep_daily: Keep = 0
    keep_weekly: Keep = 0
    keep_monthly: Keep = 0
    keep_quarterly: Keep = 0
    keep_yearly: Keep = 0
    keep_within_ns: int = 0
    keep_tags: tuple[str, ...] = ()
    min_age_ns: int = 0
    max_delete_fraction: float = 1.0
    space_limit_bytes: int | None = None
    free_limit_bytes: int | None = None
    free_limit_share: float | None = None
    zone: tzinfo = UTC

    @property
    def limits_space(self) -> bool:
        """There is a space limit of any kind."""
        return self.space_limit_bytes is not None or self.free_limit_bytes is not None or self.free_limit_share is not None


DEFAULT_SCHEDULES: Final = (Schedule(every_ns=HOUR_NS),)
DEFAULT_RETENTION: Final = Retention(keep_hourly=24, keep_daily=30, keep_weekly=12, keep_monthly=24, keep_yearly=10, keep_within_ns=DAY_NS)
DEFAULT_UNDELETE_NS: Final = HOUR_NS
