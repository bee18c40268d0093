"""What commands ask about snapshots: they are named, listed with what deleting them would free, deleted, brought back, pinned and held.

Whatever is said about several snapshots is done to all of them or to none; they are all named before anything is done.
"""

import errno
import re
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Final, Protocol, assert_never

import msgspec
import trio

from backupfs.clock import Clock
from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import FileSystemError, UsageError
from backupfs.rules.names import is_tag
from backupfs.rules.when import Known, resolve
from backupfs.service.control import Replies
from backupfs.service.freeing import Reckonable, frees
from backupfs.service.messages import (
    DeletedTold,
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotHoldRequest,
    SnapshotListRequest,
    SnapshotPinRequest,
    SnapshotsChanged,
    SnapshotShown,
    SnapshotShowRequest,
    SnapshotTold,
    SnapshotUndeleteRequest,
)
from backupfs.service.retaining import Retainer
from backupfs.service.snapshots import SnapshotTaker
from backupfs.service.telling import PROGRESS_S, telling

Changing = SnapshotCreateRequest | SnapshotUndeleteRequest | SnapshotPinRequest | SnapshotHoldRequest
_NUMBER: Final = re.compile("[0-9]{1,12}|latest(~[0-9]{1,9})?", re.ASCII)


class Upkeeping(Protocol):
    """The part of the engine's upkeep that is needed here."""

    undelete_ns: int
    """So long after it was marked a deleted snapshot can be brought back for certain."""


class Shelf(Reckonable, Protocol):
    """The part of the engine that is needed here. What changes several snapshots changes all or none, durably, or raises UsageError."""

    def snapshots(self) -> Sequence[SnapshotInfo]:
        """The kept ones, oldest first."""
        ...

    def check_deletable(self, names: Iterable[str]) -> None:
        """UsageError as `delete_snapshots` would raise it now."""
        ...

    async def delete_snapshots(self, names: Iterable[str]) -> None:
        """Mark deleted."""
        ...

    async def undelete_snapshots(self, names: Iterable[str]) -> None:
        """Bring back."""
        ...

    async def pin_snapshots(self, names: Iterable[str], *, pinned: bool) -> None:
        """Keep until they are unpinned."""
        ...

    async def hold_snapshots(self, names: Iterable[str], until_ns: int) -> None:
        """Keep until a time; 0: no longer."""
        ...


class SnapshotRequests:
    """Answers what is asked about the snapshots of one mount."""

    def __init__(self, engine: Shelf, upkeep: Upkeeping, taker: SnapshotTaker, retainer: Retainer, clock: Clock) -> None:
        self._engine = engine
        self._upkeep = upkeep
        self._taker = taker
        self._retainer = retainer
        self._clock = clock

    async def change(self, request: Changing) -> object:
        """Do what is asked."""
        match request:
            case SnapshotCreateRequest():
                return await self._create(request)
            case SnapshotUndeleteRequest():
                return await self._undelete(request.names)
            case SnapshotPinRequest():
                names = self._named(request.names, self._engine.snapshots(), "changed")
                await self._engine.pin_snapshots(names, pinned=request.pinned)
                return SnapshotsChanged(names)
            case SnapshotHoldRequest():
                return await self._hold(request)
            case _:
                assert_never(request)

    async def delete(self, request: SnapshotDeleteRequest, replies: Replies) -> SnapshotsChanged:
        """See `SnapshotDeleteRequest`."""
        wanted = [*request.names, *([request.name] if request.name else [])]
        names = self._named(wanted, self._engine.snapshots(), "deleted")
        self._engine.check_deletable(names)
        async with telling(replies) as about:
            freed = await frees(self._engine, self._serials(names), about.of("reckoning"))
        if not request.dry_run:
            await self._engine.delete_snapshots(names)
        return SnapshotsChanged(names, freed, self._clock.now_ns() + self._upkeep.undelete_ns)

    async def tell_all(self, request: SnapshotListRequest, replies: Replies) -> object:
        """See `SnapshotListRequest`."""
        found = list(self._engine.deleted_snapshots() if request.deleted else self._engine.snapshots())
        told_at = trio.current_time()
        for done, info in enumerate(found):
            await replies.item(await self._told(info, with_size=request.sizes))
            if trio.current_time() - told_at >= PROGRESS_S:
                told_at = trio.current_time()
                await replies.progress(done + 1, len(found))
        return {"count": len(found)}

    async def show(self, request: SnapshotShowRequest) -> SnapshotShown:
        """See `SnapshotShowRequest`."""
        kept = self._engine.snapshots()
        # `latest` is one that shows; by name and number deleted ones are found as well.
        known = kept if request.name.startswith("latest") else [*kept, *self._engine.deleted_snapshots()]
        (name,) = self._named([request.name], known, "shown")
        found = {info.name: info for info in known}
        fate = next((fate for fate in (await self._retainer.plan()).fates if fate.name == name), None)
        return SnapshotShown(await self._told(found[name], with_size=True), fate)

    def deleted(self) -> list[DeletedTold]:
        """What waits to be purged."""
        return [
            DeletedTold(info.name, info.deleted_ns, self._undelete_until_ns(info), info.state == "purging")
            for info in self._engine.deleted_snapshots()
        ]

    async def _create(self, request: SnapshotCreateRequest) -> SnapshotInfo:
        for tag in request.tags:
            if not is_tag(tag):
                raise UsageError(f"{tag!r} is no tag: one has no comma and nothing that cannot be printed; give several with --tag each")
        try:
            return await self._taker.take("manual", request.message, list(dict.fromkeys(request.tags)), request.name)
        except FileSystemError as error:
            if error.errno != errno.EEXIST:
                raise
            message = f"there is, or has been, a snapshot {request.name!r}, and a name is never used again; choose another one"
            raise UsageError(message) from None

    async def _undelete(self, wanted: Sequence[str]) -> SnapshotsChanged:
        names = self._named(wanted, self._engine.deleted_snapshots(), "brought back", " --deleted")
        await self._engine.undelete_snapshots(names)
        fates = [fate for fate in self._retainer.fates_by_rules() if fate.name in names]
        return SnapshotsChanged(names, fates=fates)

    async def _hold(self, request: SnapshotHoldRequest) -> SnapshotsChanged:
        names = self._named(request.names, self._engine.snapshots(), "changed")
        if request.until_ns and request.until_ns <= self._clock.now_ns():
            raise UsageError("the end of the hold has passed; nothing was changed. `backupfs snapshot hold --release` lets go of a snapshot")
        await self._engine.hold_snapshots(names, request.until_ns)
        return SnapshotsChanged(names)

    def _named(self, wanted: Iterable[str], known: Sequence[SnapshotInfo], what: str, option: str = "") -> list[str]:
        """Names of the snapshots that are meant, each once: by name, number, `latest` or `latest~2`. UsageError when there is no such one."""
        names = {info.serial: info.name for info in known}
        choices = [Known(info.serial, info.name, info.time_ns) for info in known]
        found: list[str] = []
        missing: list[str] = []
        for word in dict.fromkeys(wanted):
            try:
                if word not in names.values() and not _NUMBER.fullmatch(word):
                    raise UsageError(word)
                found.append(names[resolve(word, choices, self._clock.now_ns(), UTC)])
            except UsageError:
                missing.append(word)
        if missing:
            kind = "deleted snapshot" if option else "snapshot"
            raise UsageError(f"there is no {kind} {', '.join(sorted(missing))}; nothing was {what}. `backupfs snapshot list{option}` shows them")
        return list(dict.fromkeys(found))

    def _serials(self, names: Sequence[str]) -> list[int]:
        return [info.serial for info in self._engine.snapshots() if info.name in names]

    async def _told(self, info: SnapshotInfo, *, with_size: bool) -> SnapshotTold:
        size = await frees(self._engine, [info.serial]) if with_size else None
        return SnapshotTold(**msgspec.structs.asdict(info), frees_bytes=size, undelete_until_ns=self._undelete_until_ns(info))

    def _undelete_until_ns(self, info: SnapshotInfo) -> int | None:
        return None if info.deleted_ns is None or info.state == "purging" else info.deleted_ns + self._upkeep.undelete_ns
