"""What commands ask about space: where it goes, what retention would delete or deletes, and getting it back."""

from typing import Final, Protocol

import msgspec
import trio

from backupfs.engine.attributes import UpkeepStatus
from backupfs.errors import BackupfsError
from backupfs.service.control import Replies
from backupfs.service.freeing import deleted_serials, frees
from backupfs.service.groups import cause
from backupfs.service.messages import Collected, CollectRequest, OutlookTold, Pruned, PruneRequest, SpaceTold, StatsTold
from backupfs.service.retaining import Collecting, Retained, Retainer

PROGRESS_S: Final = 0.5


class Freeable(Collecting, Protocol):
    """The part of the engine's upkeep that is needed here."""

    async def collect_now(self, *, purge_deleted: bool, thorough: bool) -> None:
        """Get all space back that can be got, without pauses."""
        ...

    def status(self) -> UpkeepStatus:
        """What is going on."""
        ...


class SpaceRequests:
    """Answers what is asked about the space of one repository."""

    def __init__(self, engine: Retained, upkeep: Freeable, retainer: Retainer) -> None:
        self._engine = engine
        self._upkeep = upkeep
        self._retainer = retainer

    async def stats(self) -> StatsTold:
        """How much there is, and where it goes."""
        engine = self._engine
        deleted = deleted_serials(engine)
        deleted_bytes = await frees(engine, deleted)
        survey = await self._upkeep.survey(thorough=True)
        usage = await engine.usage()
        space = SpaceTold(
            **msgspec.structs.asdict(usage),
            held_bytes=survey.held_bytes,
            dead_bytes=survey.dead_bytes,
            collectable_bytes=survey.plan.freed_bytes,
            deleted=len(deleted),
            deleted_bytes=deleted_bytes,
            used_bytes=usage.used_bytes,
        )
        return StatsTold(**msgspec.structs.asdict(engine.stats()), space=space)

    async def outlook(self) -> OutlookTold:
        """See `OutlookRequest`. Costs what has changed since the oldest snapshot."""
        engine = self._engine
        deleted = deleted_serials(engine)
        coming_bytes = (await frees(engine, deleted)) + (await self._upkeep.survey(thorough=True)).plan.freed_bytes
        held_bytes = await frees(engine, [info.serial for info in engine.snapshots()])
        used_bytes = (await engine.usage()).used_bytes
        stats = engine.stats()
        return OutlookTold(held_bytes, max(used_bytes - coming_bytes - held_bytes, 0), stats.free_bytes + coming_bytes, stats.total_bytes)

    async def prune(self, request: PruneRequest, replies: Replies) -> Pruned:
        """See `PruneRequest`."""
        plan = await (self._retainer.plan() if request.dry_run else self._retainer.apply())
        gone = [fate.serial for fate in plan.deleted]
        freed = await frees(self._engine, gone)
        for fate in plan.fates:
            await replies.item(fate)
        return Pruned(len(plan.fates) - len(gone), len(gone), freed, plan.excess_bytes, request.dry_run)

    async def collect(self, request: CollectRequest, replies: Replies) -> Collected:
        """See `CollectRequest`."""
        engine = self._engine
        before = {info.serial for info in engine.deleted_snapshots()}
        purge = await frees(engine, before) if request.now else 0
        survey = await self._upkeep.survey(thorough=True)
        used_bytes = (await engine.usage()).used_bytes
        after = set() if request.now else before
        used_after_bytes = used_bytes
        if not request.dry_run:
            if self._upkeep.status().stopped:
                raise BackupfsError("background work stopped after a failure, which `backupfs status` names; unmount, mend the cause, mount again")
            await self._collect(request.now, replies)
            after = {info.serial for info in engine.deleted_snapshots()}
            used_after_bytes = (await engine.usage()).used_bytes
        return Collected(
            dry_run=request.dry_run,
            purged=len(before - after),
            purge_frees_bytes=purge,
            waiting=len(before & after),
            dead_bytes=survey.dead_bytes,
            packs=len(survey.plan.packs),
            copied_bytes=survey.plan.copied_bytes,
            frees_bytes=survey.plan.freed_bytes,
            used_before_bytes=used_bytes,
            used_after_bytes=used_after_bytes,
        )

    async def _collect(self, purge_deleted: bool, replies: Replies) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, replies)
                await self._upkeep.collect_now(purge_deleted=purge_deleted, thorough=True)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise cause(group) from None

    async def _tell(self, replies: Replies) -> None:
        """How much of what the plan copies is copied. It is known when the snapshots have been purged."""
        total = 0
        told = (0, 0)
        while True:
            left = self._upkeep.status().waiting_bytes
            total = max(total, left)
            if total and told != (total - left, total):
                told = total - left, total
                await replies.progress(*told)
            await trio.sleep(PROGRESS_S)
