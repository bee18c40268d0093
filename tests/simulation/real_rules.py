"""The rules of backupfs, told and asked in the words of the model."""

from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from fractions import Fraction
from zoneinfo import ZoneInfo

from backupfs.rules import policy, retention, schedule
from backupfs.rules.cron import check_cron
from backupfs.rules.schedule import Action, Activity, State, Taken
from tests.models.snapshot_rules import Duration, Schedule, Settings, Snapshot


class RealRules:
    """What `tests.models.world.Rules` asks for.

    `wait_ns` is after how long the next look must come when nothing happens until then, as the last one has said; None:
    none must. It is 0 when that one took a snapshot: then the next comes at once.
    """

    def __init__(self) -> None:
        self._schedules: tuple[policy.Schedule, ...] = ()
        self._state = State((), 0)
        self._activity = Activity(0, 0, None, 1)
        self.wait_ns: int | None = None

    def mount(self, now_ns: int, snapshots: Sequence[Snapshot], schedules: tuple[Schedule, ...]) -> None:
        self._schedules = tuple(real_schedule(each) for each in schedules)
        taken = [Taken(s.time_ns, s.serial, schedule.SCHEDULED if s.by_schedule else "manual", s.tags) for s in snapshots]
        self._state = schedule.initial(now_ns, self._schedules, taken)
        self._activity = Activity(self._activity.records, self._activity.size_bytes, None, self._activity.epoch, 0)

    def changed(self, now_ns: int, records: int, size_bytes: int) -> None:
        before = self._activity
        self._activity = Activity(before.records + records, before.size_bytes + size_bytes, now_ns, before.epoch, before.changes + 1)

    def taken_by_hand(self, now_ns: int) -> None:
        self._activity = Activity(0, 0, self._activity.changed_at_ns, self._activity.epoch + 1, self._activity.changes)

    def look(self, now_ns: int, *, fails: bool) -> list[str] | None:
        decision = schedule.decide(now_ns, self._state, self._schedules, self._activity)
        self._state = decision.state
        if decision.action is not Action.RUN:
            self.wait_ns = decision.wait_ns
            return None
        if not fails:
            self.taken_by_hand(now_ns)
        self.wait_ns = 0
        return list(decision.tags)

    def excess_bytes(self, settings: Settings, used_bytes: int, free_bytes: int, total_bytes: int) -> int:
        return retention.excess(real_retention(settings), used_bytes, free_bytes, total_bytes)

    def fates(
        self, snapshots: Sequence[Snapshot], settings: Settings, now_ns: int, too_many: int, frees: Callable[[set[int]], int]
    ) -> dict[int, bool]:
        found = retention.decide(
            [real_candidate(s) for s in snapshots], real_retention(settings), now_ns, too_many, lambda serials: frees(set(serials))
        )
        return {fate.serial: fate.keep for fate in found}


def real_candidate(s: Snapshot) -> retention.Candidate:
    return retention.Candidate(s.serial, s.time_ns, s.tags, s.pinned, s.hold_end_ns or 0)


def real_schedule(given: Schedule) -> policy.Schedule:
    return policy.Schedule(
        every_ns=_ns(given.every),
        cron=None if given.cron is None else check_cron(given.cron),
        on_change_records=given.on_change_records,
        on_change_bytes=given.on_change_bytes,
        on_idle_ns=_ns(given.on_idle),
        tags=given.tags,
        always=given.always,
        zone=_zone(given.zone),
    )


def real_retention(given: Settings) -> policy.Retention:
    return policy.Retention(
        keep_last=_keep(given.keep_last),
        keep_minutely=_keep(given.keep_minutely),
        keep_hourly=_keep(given.keep_hourly),
        keep_daily=_keep(given.keep_daily),
        keep_weekly=_keep(given.keep_weekly),
        keep_monthly=_keep(given.keep_monthly),
        keep_quarterly=_keep(given.keep_quarterly),
        keep_yearly=_keep(given.keep_yearly),
        keep_within_ns=_ns(given.keep_within) or 0,
        keep_tags=given.keep_tag,
        min_age_ns=given.min_age.ns,
        max_delete_fraction=float(given.max_delete_fraction),
        space_limit_bytes=given.space_limit_bytes,
        free_limit_bytes=given.free_limit if isinstance(given.free_limit, int) else None,
        free_limit_share=float(given.free_limit) if isinstance(given.free_limit, Fraction) else None,
        zone=_zone(given.zone),
    )


def _ns(duration: Duration | None) -> int | None:
    return None if duration is None else duration.ns


def _keep(rule: int | Duration | None) -> policy.Keep:
    return policy.Duration(rule.ns) if isinstance(rule, Duration) else rule or 0


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)
