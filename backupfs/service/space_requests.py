"""What commands ask about space: where it goes, what retention would delete or deletes, and getting it back."""

from collections.abc import Callable
from typing import Protocol

import msgspec

from backupfs.engine.attributes import UpkeepStatus
from backupfs.errors import BackupfsError
from backupfs.service.control import Replies
from backupfs.service.freeing import deleted_serials, frees
from backupfs.service.messages import Collected, CollectRequest, OutlookTold, Pruned, PruneRequest, SpaceTold, StatsTold
from backupfs.service.retaining import Collecting, Retained, Retainer
from backupfs.service.telling import Telling, telling


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

    async def stats(self, replies: Replies) -> StatsTold:
        """How much there is, and where it goes."""
        engine = self._engine
        deleted = deleted_serials(engine)
        async with telling(replies) as about:
            deleted_bytes = await frees(engine, deleted, about.of("reckoning"))
            survey = await self._upkeep.survey(thorough=True, progress=about.of("surveying"))
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

    async def outlook(self, replies: Replies) -> OutlookTold:
        """See `OutlookRequest`. Costs what has changed since the oldest snapshot."""
        engine = self._engine
        deleted = deleted_serials(engine)
        async with telling(replies) as about:
            reckoning, surveying = about.of("reckoning"), about.of("surveying")
            coming_bytes = await frees(engine, deleted, reckoning)
            coming_bytes += (await self._upkeep.survey(thorough=True, progress=surveying)).plan.freed_bytes
            held_bytes = await frees(engine, [info.serial for info in engine.snapshots()], reckoning)
        used_bytes = (await engine.usage()).used_bytes
        stats = engine.stats()
        return OutlookTold(held_bytes, max(used_bytes - coming_bytes - held_bytes, 0), stats.free_bytes + coming_bytes, stats.total_bytes)

    async def prune(self, request: PruneRequest, replies: Replies) -> Pruned:
        """See `PruneRequest`."""
        async with telling(replies) as about:
            progress = about.of("reckoning")
            plan = await (self._retainer.plan(progress) if request.dry_run else self._retainer.apply(progress))
            gone = [fate.serial for fate in plan.deleted]
            freed = await frees(self._engine, gone, progress)
        for fate in plan.fates:
            await replies.item(fate)
        return Pruned(len(plan.fates) - len(gone), len(gone), freed, plan.excess_bytes, request.dry_run)

    async def collect(self, request: CollectRequest, replies: Replies) -> Collected:
        """See `CollectRequest`."""
        engine = self._engine
        before = {info.serial for info in engine.deleted_snapshots()}
        async with telling(replies) as about:
            purge = await frees(engine, before, about.of("reckoning")) if request.now else 0
            survey = await self._upkeep.survey(thorough=True, progress=about.of("surveying"))
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
        purging = [info.serial for info in self._engine.deleted_snapshots() if purge_deleted or info.state == "purging"]
        records = await self._engine.reckoner.records(purging) if purging else 0
        async with telling(replies) as about:
            about.sample = self._sampler(about, records)
            await self._upkeep.collect_now(purge_deleted=purge_deleted, thorough=True)

    def _sampler(self, about: Telling, records: int) -> Callable[[], None]:
        """How many of the records are purged, then how much of what the plan copies is copied: that is known when the snapshots have been purged."""
        before = self._upkeep.status().purged_records
        copying_bytes = 0

        def sample() -> None:
            nonlocal copying_bytes
            status = self._upkeep.status()
            copying_bytes = max(copying_bytes, status.waiting_bytes)
            if copying_bytes:
                about.of("copying")(copying_bytes - status.waiting_bytes, copying_bytes)
            elif records:
                about.of("purging")(min(status.purged_records - before, records), records)

        return sample
