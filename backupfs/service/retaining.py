"""Retention at work: it is asked which snapshots stay, and the others are marked deleted. Which ones, `rules.retention` decides."""

import logging
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from backupfs import limits
from backupfs.clock import Clock, until_next
from backupfs.engine.attributes import SnapshotInfo, Stats, Usage
from backupfs.engine.collecting import Survey
from backupfs.engine.seams import Progress
from backupfs.errors import BackupfsError
from backupfs.rules.policy import HOUR_NS, SECOND_NS, Retention
from backupfs.rules.retention import Candidate, Fate, Question, decide, deciding, excess
from backupfs.service.freeing import Reckonable, deleted_serials, frees
from backupfs.service.messages import FateTold, RetentionStatus

RETRY_NS: Final = 600 * SECOND_NS
"""After a failure it is tried again so soon."""
ATTEMPTS: Final = 5
"""So often a plan is made anew because snapshots or the policy have changed while it was made."""
_log = logging.getLogger(__name__)


class Collecting(Protocol):
    """The part of the engine's upkeep that is needed here."""

    async def survey(self, *, thorough: bool, progress: Progress = ...) -> Survey:
        """What is dead, and what collection would rewrite now."""
        ...

    def collect_soon(self) -> None:
        """Get back all space that is dead already."""
        ...


class Retained(Reckonable, Protocol):
    """The part of the engine that is needed here."""

    def snapshots(self) -> Sequence[SnapshotInfo]:
        """The kept ones, oldest first."""
        ...

    async def delete_snapshots(self, names: Iterable[str]) -> None:
        """All or none, decided before anything is waited for; durable on return."""
        ...

    def stats(self) -> Stats:
        """Space and counts."""
        ...

    async def usage(self) -> Usage:
        """What the repository takes on its disk."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of each snapshot: `fates`, sorted by time and then by serial. `excess_bytes` were too many by the space limits."""

    retention: Retention
    candidates: tuple[Candidate, ...]
    fates: tuple[FateTold, ...]
    excess_bytes: int
    collectable_bytes: int

    @property
    def deleted(self) -> list[FateTold]:
        """Those that go."""
        return [fate for fate in self.fates if not fate.keep]


class Retainer:
    """Keeps to `retention`, which may be replaced at any time. One task runs it; `plan` and `apply` may be asked for besides."""

    def __init__(self, engine: Retained, upkeep: Collecting, clock: Clock, retention: Retention) -> None:
        self.retention = retention
        self._engine = engine
        self._upkeep = upkeep
        self._clock = clock
        self._one_at_a_time = trio.Lock()
        self._woken = trio.Event()
        self._next_ns = clock.now_ns() + HOUR_NS
        self._last_ns: int | None = None
        self._kept = self._deleted = 0
        self._failure = ""

    def status(self) -> RetentionStatus:
        """When it ran, and with what result."""
        return RetentionStatus(self._last_ns, self._next_ns, self._kept, self._deleted, self._failure)

    def wake(self) -> None:
        """Run soon: a schedule has taken a snapshot."""
        self._next_ns = self._clock.now_ns()
        self._woken.set()

    async def run(self) -> None:
        """Task: until cancelled. Once an hour, and when woken. What fails is logged, and tried again."""
        while True:
            now_ns = self._clock.now_ns()
            self._next_ns = min(self._next_ns, now_ns + HOUR_NS)  # the clock may have been set back
            if now_ns >= self._next_ns:
                await self._run_once()
                continue
            self._woken = trio.Event()
            with trio.move_on_after(min((self._next_ns - now_ns) / SECOND_NS, until_next(trio.current_time(), limits.LOOK_S))):
                await self._woken.wait()

    async def _run_once(self) -> None:
        try:
            await self.apply()
        except Exception as error:  # noqa: BLE001 retention that fails must not end the mount
            self._next_ns = self._clock.now_ns() + RETRY_NS
            self._failure = str(error)
            if isinstance(error, BackupfsError):
                _log.error("retention has failed and is tried again: %s", error)
            else:
                _log.exception("retention has failed and is tried again")

    async def apply(self, progress: Progress | None = None) -> Plan:
        """Make a plan and carry it out: durable on return. BackupfsError when that is not possible; nothing is deleted then. `progress` is of
        reckoning.
        """
        async with self._one_at_a_time:
            self._next_ns = self._clock.now_ns() + HOUR_NS
            plan = await self._settled_plan(progress)
            deleted = plan.deleted
            if deleted:
                await self._engine.delete_snapshots([fate.name for fate in deleted])
            if plan.collectable_bytes:
                self._upkeep.collect_soon()
            self._last_ns = self._clock.now_ns()
            self._kept, self._deleted, self._failure = len(plan.fates) - len(deleted), len(deleted), ""
            _log.info("retention: %d snapshots stay, %d are deleted", self._kept, self._deleted)
            return plan

    async def _settled_plan(self, progress: Progress | None) -> Plan:
        """A plan that holds at the moment when this returns."""
        for _ in range(ATTEMPTS):
            plan = await self.plan(progress)
            if plan.retention == self.retention and plan.candidates == self._candidates():
                return plan
        raise BackupfsError("snapshots or policy have changed again and again while it was decided which snapshots stay; nothing was deleted")

    async def plan(self, progress: Progress | None = None) -> Plan:
        """What would be done now. Nothing is."""
        retention = self.retention
        infos = {info.serial: info for info in self._engine.snapshots()}
        candidates = self._candidates()
        excess_bytes, coming_bytes, collectable_bytes = await self._excess(retention)
        decision = deciding(candidates, retention, self._clock.now_ns(), excess_bytes)
        fates = await self._answered(decision, coming_bytes, progress)
        return Plan(retention, candidates, tuple(_told(fate, infos[fate.serial]) for fate in fates), excess_bytes, collectable_bytes)

    def fates_by_rules(self) -> list[FateTold]:
        """The fate of each, whatever the space limits say."""
        infos = {info.serial: info for info in self._engine.snapshots()}
        return [_told(fate, infos[fate.serial]) for fate in decide(self._candidates(), self.retention, self._clock.now_ns())]

    def _candidates(self) -> tuple[Candidate, ...]:
        return tuple(candidate(info) for info in self._engine.snapshots())

    async def _excess(self, retention: Retention) -> tuple[int, int, int]:
        """Bytes that are too many by the space limits; those that come back without a further deletion; those of them that wait for collection.

        What comes back is counted first. Space that comes back meanwhile is then counted twice, and a snapshot too few goes, not one too many.
        """
        if (await self._measured(retention)) <= 0:
            return 0, 0, 0
        deleted = deleted_serials(self._engine)
        purgeable = await self._engine.reckoner.frees(deleted) if deleted else 0
        collectable = (await self._upkeep.survey(thorough=True)).plan.freed_bytes
        return await self._measured(retention), purgeable + collectable, collectable

    async def _measured(self, retention: Retention) -> int:
        if not retention.limits_space:
            return 0
        usage = await self._engine.usage()
        stats = self._engine.stats()
        return excess(retention, usage.used_bytes, stats.free_bytes, stats.total_bytes)

    async def _answered(self, decision: Generator[Question, int, list[Fate]], coming_bytes: int, progress: Progress | None) -> list[Fate]:
        try:
            question = next(decision)
            while True:
                question = decision.send(coming_bytes + await frees(self._engine, question, progress))
        except StopIteration as end:
            fates: list[Fate] = end.value
            return fates


def candidate(info: SnapshotInfo) -> Candidate:
    """A snapshot as the rules see it."""
    return Candidate(info.serial, info.time_ns, tuple(info.tags), info.pinned, info.hold_until_ns or 0)


def _told(fate: Fate, info: SnapshotInfo) -> FateTold:
    return FateTold(fate.serial, info.name, info.time_ns, fate.keep, list(fate.reasons))
