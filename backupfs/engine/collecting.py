"""Collection: getting the room of dead blobs back, online.

A step copies some live blobs of a pack that is mostly dead into a pack that is being written; the batch that says so is the commit of the copy, and
the pack goes with the batch in which nothing lives in it any more. Nothing else is kept of what was under way: after an interruption the plan is made
anew, and what was copied counts.
"""

import logging
from collections import deque
from dataclasses import dataclass

import trio

from backupfs import limits
from backupfs.blobs.packs import pack_name
from backupfs.blobs.trailers import PackEnd
from backupfs.engine.blobstore import BlobStore
from backupfs.engine.committer import Committer
from backupfs.engine.seams import Progress, unwatched
from backupfs.engine.volume import Volume
from backupfs.errors import BackupfsError, DamageError, StoreError, StoreFullError
from backupfs.format import catalog as records
from backupfs.format.catalog import Pack, PackState, Table
from backupfs.format.pack import PackEntry
from backupfs.rules.collection import DEAD_SHARE_MAX, CollectionPlan, PackUse, plan_collection

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Collected:
    """What has been done since the mount, and what is left of the plan under way. Bytes."""

    copied_bytes: int = 0
    freed_bytes: int = 0
    waiting_packs: int = 0
    waiting_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    """What closed packs hold, what of that is dead, and the plan that would be carried out now. Bytes."""

    held_bytes: int
    dead_bytes: int
    plan: CollectionPlan


class Collector:
    """Rewrites packs. Only one task carries out a plan at a time; anybody may survey."""

    def __init__(self, volume: Volume, committer: Committer, blobs: BlobStore) -> None:
        self._volume = volume
        self._committer = committer
        self._blobs = blobs
        self._held: dict[int, int] = {}
        """Stored bytes that were ever put into each closed pack: they never change."""
        self._hopeless: set[int] = set()
        """Packs that cannot be rewritten because something in them cannot be read."""
        self._planned_at = -1
        self.so_far = Collected()

    def is_due(self) -> bool:
        """Whether enough has died since the last plan to make another."""
        enough = max(limits.COLLECT_DIED_BYTES, int(DEAD_SHARE_MAX / 4 * sum(self._held.values())))
        return self._planned_at < 0 or self._volume.catalog.died_bytes - self._planned_at > enough

    async def plan(self, *, thorough: bool = False) -> CollectionPlan:
        """What is to be rewritten now, by what the index has."""
        self._planned_at = self._volume.catalog.died_bytes
        return (await self.survey(thorough=thorough)).plan

    async def survey(self, *, thorough: bool, progress: Progress = unwatched) -> Survey:
        """What would be rewritten now, and what there is. Reads the ends of packs that it has not seen before, and tells `progress` of them."""
        closed = {number: pack for number, pack in await self._closed_packs() if number not in self._hopeless}
        self._held = {number: held for number, held in self._held.items() if number in closed}
        unknown = [(number, pack) for number, pack in closed.items() if number not in self._held]
        offload = self._volume.seams.offload
        # A few at a time: the first look after a mount reads something of every pack, and whoever unmounts need not wait for all of it.
        for at in range(0, len(unknown), limits.COLLECT_STEP_BLOBS):
            read, unreadable = await offload.disk(self._read_held, unknown[at : at + limits.COLLECT_STEP_BLOBS])
            self._held.update(read)
            for number, pack, error in unreadable:
                self._give_up(number, pack, error)
            progress(min(at + limits.COLLECT_STEP_BLOBS, len(unknown)), len(unknown))
        uses = [PackUse(number, self._held[number], pack.live_bytes) for number, pack in closed.items() if number in self._held]
        held, dead = sum(use.held_bytes for use in uses), sum(use.dead_bytes for use in uses)
        return Survey(held, dead, await offload.cpu(lambda: plan_collection(uses, thorough=thorough)))

    async def _closed_packs(self) -> list[tuple[int, Pack]]:
        found: list[tuple[int, Pack]] = []
        start = b""
        while True:
            rows = self._volume.catalog.applied_rows(Table.PACKS, start, limits.RECKON_RECORDS_PER_STEP)
            packs = [(records.number_of(key), records.decode_pack(value)) for key, value in rows]
            found += [(number, pack) for number, pack in packs if pack.state == PackState.SEALED]
            if len(rows) < limits.RECKON_RECORDS_PER_STEP:
                return found
            start = rows[-1][0] + b"\0"
            await trio.lowlevel.checkpoint()

    async def run(self, plan: CollectionPlan, *, hurry: bool = False) -> None:
        """Carry a plan out. Unless there is a `hurry`, it works at most half of the time. Raises StoreError, and StoreFullError when there was a
        hurry, and no room to copy what lives.
        """
        waiting = deque(plan.packs)
        too_large: list[PackUse] = []
        try:
            while waiting:
                copied = await self._rewrite_some(waiting, too_large, hurry)
                await self._let_go()
                if copied:
                    # What these have freed may be the room for those.
                    waiting.extend(too_large)
                    too_large.clear()
            if too_large:
                # What it would free comes back only after it has been copied. Packs in which nothing lives need no room to go.
                self._planned_at = -1
                if hurry:
                    raise await self._too_little_room(too_large)
        except BackupfsError:
            # What is left of it is due as before.
            self._planned_at = -1
            raise
        finally:
            self.so_far.waiting_packs = self.so_far.waiting_bytes = 0

    async def _rewrite_some(self, waiting: deque[PackUse], too_large: list[PackUse], hurry: bool) -> int:
        """Rewrite packs until what they free is needed to go on; those that do not fit now are put aside. How many were."""
        copied = 0
        while waiting:
            self.so_far.waiting_packs = len(waiting)
            self.so_far.waiting_bytes = sum(pack.live_bytes for pack in waiting)
            if await self._have_room(waiting[0].live_bytes, hurry):
                await self._rewrite(waiting.popleft(), hurry)
                copied += 1
                if self._volume.space.is_short():
                    break
            elif copied:
                break
            else:
                too_large.append(waiting.popleft())
        return copied

    async def _let_go(self) -> None:
        await self._committer.commit()
        await self._committer.applied()
        await self._committer.removed()

    async def _have_room(self, size_bytes: int, hurry: bool) -> bool:
        """Whether so many bytes can be copied. Where room is short, or somebody asks for it, the reserve is there for that, and taken again from what
        comes back.
        """
        space, disk = self._volume.space, self._volume.seams.offload.disk
        if size_bytes <= await disk(space.room_bytes):
            return True
        if not hurry and not space.is_short():
            return False
        return size_bytes <= await disk(space.room_with_reserve_bytes) and await disk(space.release)

    async def _too_little_room(self, packs: list[PackUse]) -> StoreFullError:
        room = await self._volume.seams.offload.disk(self._volume.space.room_with_reserve_bytes)
        least = min(pack.live_bytes for pack in packs)
        return StoreFullError(
            f"{len(packs)} packs with {sum(pack.dead_bytes for pack in packs)} dead bytes wait for room: what lives in one has {least} bytes to copy,"
            f" and {room} may be used; make room on the disk, or remove more"
        )

    async def _rewrite(self, use: PackUse, hurry: bool) -> None:
        volume = self._volume
        pack = self._pack(use.number)
        if pack is None:
            return
        try:
            entries = await volume.seams.offload.disk(self._read_entries, pack)
        except (DamageError, StoreError) as error:
            self._give_up(use.number, pack, error)
            return
        copied = 0
        for group in _groups(entries):
            began = trio.current_time()
            await self._committer.room()
            numbers = [number for entry in group if (number := self._living(use.number, entry)) is not None]
            try:
                copied += await self._blobs.move(numbers)
            except DamageError as error:
                self._give_up(use.number, pack, error)
                return
            if not hurry:
                await trio.sleep(min(trio.current_time() - began, limits.COLLECT_PAUSE_MAX_S))
        self.so_far.copied_bytes += copied
        self.so_far.freed_bytes += use.held_bytes - copied

    def _living(self, pack: int, entry: PackEntry) -> int | None:
        """Number of the blob that this entry is, when it counts and stands here."""
        catalog = self._volume.catalog
        number = catalog.known_blob(entry.blob_id)
        if number is None:
            return None
        blob = catalog.blob(number)
        return number if (blob.pack, blob.offset) == (pack, entry.offset) else None

    def _pack(self, number: int) -> Pack | None:
        value = self._volume.catalog.get(Table.PACKS, records.number_key(number))
        return None if value is None else records.decode_pack(value)

    def _give_up(self, number: int, pack: Pack, error: Exception) -> None:
        """Leave a pack alone from now on, unless it has just gone because nothing lives in it any more."""
        if self._pack(number) is None:
            return
        self._hopeless.add(number)
        told = f"pack {pack.object_id.hex()} is not rewritten, because it cannot be read: {error}; `backupfs check --read-data` names the files"
        self._volume.errors.append(told)
        log.error("%s", told)

    def _read_held(self, packs: list[tuple[int, Pack]]) -> tuple[dict[int, int], list[tuple[int, Pack, Exception]]]:
        """In a thread: stored bytes that were put into each of these packs, and those that could not be read."""
        held: dict[int, int] = {}
        unreadable: list[tuple[int, Pack, Exception]] = []
        for number, pack in packs:
            try:
                held[number] = self._end(pack).held_bytes()
            except (DamageError, StoreError) as error:
                unreadable.append((number, pack, error))
        return held, unreadable

    def _read_entries(self, pack: Pack) -> list[PackEntry]:
        """In a thread."""
        return self._end(pack).entries()

    def _end(self, pack: Pack) -> PackEnd:
        volume = self._volume
        return PackEnd(volume.store, volume.keys, pack_name(pack.object_id), pack.object_id)


def _groups(entries: list[PackEntry]) -> list[list[PackEntry]]:
    """Entries in groups that are copied together."""
    groups: list[list[PackEntry]] = []
    size = limits.COLLECT_STEP_BYTES
    for entry in entries:
        if size >= limits.COLLECT_STEP_BYTES or len(groups[-1]) >= limits.COLLECT_STEP_BLOBS:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += entry.plain_bytes
    return groups
