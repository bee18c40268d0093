"""What may be configured, as values: what each source says, and what they say together.

A source is the options of a command, the environment, a file, the policy that the repository keeps (schedule and retention only: hooks run
commands, and a repository must not bring any along), or the defaults. How they are written is in `vocabulary.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, tzinfo
from typing import Any, Final

from backupfs.rules.names import SnapDir
from backupfs.rules.policy import DEFAULT_RETENTION, DEFAULT_SCHEDULES, DEFAULT_UNDELETE_NS, SECOND_NS, Keep, Retention, Schedule

DEFAULT_HOOK_TIMEOUT_NS: Final = 60 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the disk, where a size could stand as well. Above 0 and below 1."""

    fraction: float


@dataclass(frozen=True, slots=True)
class Settings:
    """What one source says; None is nothing. 0 says that there is no such rule, the empty command that there is no such hook."""

    schedules: tuple[Schedule, ...] | None = None
    keep_last: Keep | None = None
    keep_minutely: Keep | None = None
    keep_hourly: Keep | None = None
    keep_daily: Keep | None = None
    keep_weekly: Keep | None = None
    keep_monthly: Keep | None = None
    keep_quarterly: Keep | None = None
    keep_yearly: Keep | None = None
    keep_within_ns: int | None = None
    keep_tags: tuple[str, ...] | None = None
    min_age_ns: int | None = None
    max_delete_fraction: float | None = None
    space_limit_bytes: int | None = None
    free_limit: int | Share | None = None
    retention_zone: tzinfo | None = None
    undelete_ns: int | None = None
    before_snapshot: tuple[str, ...] | None = None
    after_snapshot: tuple[str, ...] | None = None
    on_failure: tuple[str, ...] | None = None
    hook_timeout_ns: int | None = None
    read_only: bool | None = None
    allow_other: bool | None = None
    suid: bool | None = None
    dev: bool | None = None
    keep_awake: bool | None = None
    snapdir: SnapDir | None = None


NOTHING: Final = Settings()


@dataclass(frozen=True, slots=True)
class HookCommands:
    """What to run around a snapshot, each an argument list; an empty one is no hook. `timeout_ns` is for each."""

    before_snapshot: tuple[str, ...] = ()
    after_snapshot: tuple[str, ...] = ()
    on_failure: tuple[str, ...] = ()
    timeout_ns: int = DEFAULT_HOOK_TIMEOUT_NS


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says; `origin` names it."""

    origin: str
    settings: Settings


DEFAULTS: Final = Layer(
    "default",
    Settings(
        schedules=DEFAULT_SCHEDULES,
        keep_last=DEFAULT_RETENTION.keep_last,
        keep_minutely=DEFAULT_RETENTION.keep_minutely,
        keep_hourly=DEFAULT_RETENTION.keep_hourly,
        keep_daily=DEFAULT_RETENTION.keep_daily,
        keep_weekly=DEFAULT_RETENTION.keep_weekly,
        keep_monthly=DEFAULT_RETENTION.keep_monthly,
        keep_quarterly=DEFAULT_RETENTION.keep_quarterly,
        keep_yearly=DEFAULT_RETENTION.keep_yearly,
        keep_within_ns=DEFAULT_RETENTION.keep_within_ns,
        keep_tags=DEFAULT_RETENTION.keep_tags,
        min_age_ns=DEFAULT_RETENTION.min_age_ns,
        max_delete_fraction=DEFAULT_RETENTION.max_delete_fraction,
        space_limit_bytes=0,
        free_limit=0,
        retention_zone=DEFAULT_RETENTION.zone,
        undelete_ns=DEFAULT_UNDELETE_NS,
        before_snapshot=(),
        after_snapshot=(),
        on_failure=(),
        hook_timeout_ns=DEFAULT_HOOK_TIMEOUT_NS,
        read_only=False,
        allow_other=False,
        suid=False,
        dev=False,
        keep_awake=True,
        snapdir=SnapDir.VISIBLE,
    ),
)
assert None not in [getattr(DEFAULTS.settings, field.name) for field in fields(Settings)]


@dataclass(frozen=True, slots=True)
class Effective:
    """What is in force: each field of `settings` has a value, and `origins` says which source it is from."""

    settings: Settings
    origins: Mapping[str, str]

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """When snapshots are taken."""
        return self.settings.schedules or ()

    @property
    def retention(self) -> Retention:
        """Which snapshots are kept."""
        s = self.settings
        return Retention(
            keep_last=s.keep_last or 0,
            keep_minutely=s.keep_minutely or 0,
            keep_hourly=s.keep_hourly or 0,
            keep_daily=s.keep_daily or 0,
            keep_weekly=s.keep_weekly or 0,
            keep_monthly=s.keep_monthly or 0,
            keep_quarterly=s.keep_quarterly or 0,
            keep_yearly=s.keep_yearly or 0,
            keep_within_ns=s.keep_within_ns or 0,
            keep_tags=s.keep_tags or (),
            min_age_ns=s.min_age_ns or 0,
            max_delete_fraction=s.max_delete_fraction or 1.0,
            space_limit_bytes=s.space_limit_bytes or None,
            free_limit_bytes=s.free_limit if isinstance(s.free_limit, int) and s.free_limit else None,
            free_limit_share=s.free_limit.fraction if isinstance(s.free_limit, Share) else None,
            zone=s.retention_zone or UTC,
        )

    @property
    def undelete_ns(self) -> int:
        """How long a deleted snapshot can be brought back for certain."""
        return self.settings.undelete_ns or 0

    @property
    def hooks(self) -> HookCommands:
        """What runs around a snapshot."""
        s = self.settings
        return HookCommands(s.before_snapshot or (), s.after_snapshot or (), s.on_failure or (), s.hook_timeout_ns or DEFAULT_HOOK_TIMEOUT_NS)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be changed through the mount."""
        return bool(self.settings.read_only)

    @property
    def allow_other(self) -> bool:
        """Whether other users may use the mount."""
        return bool(self.settings.allow_other)

    @property
    def suid(self) -> bool:
        """Whether set-id bits lend rights."""
        return bool(self.settings.suid)

    @property
    def dev(self) -> bool:
        """Whether device nodes open."""
        return bool(self.settings.dev)

    @property
    def keep_awake(self) -> bool:
        """Whether processors are kept awake while requests are dense."""
        return bool(self.settings.keep_awake)

    @property
    def snapdir(self) -> SnapDir:
        """What becomes of `.snapshots`."""
        return self.settings.snapdir or SnapDir.VISIBLE


def overlaid(layers: Sequence[Layer]) -> tuple[Settings, dict[str, str]]:
    """What these sources, the strongest first, say together, key by key, and by field which of them said it."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for field in fields(Settings):
            value = getattr(layer.settings, field.name)
            if value is not None and field.name not in values:
                values[field.name], origins[field.name] = value, layer.origin
    return Settings(**values), origins


def effective(layers: Sequence[Layer]) -> Effective:
    """The same with the defaults below them."""
    return Effective(*overlaid([*layers, DEFAULTS]))
