"""What is asked about the past over the control socket: versions of a file, differences, where a name has stood."""

import os
import stat
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Protocol, assert_never

import msgspec

from backupfs.engine.attributes import FileVersion, Found, TreeChange
from backupfs.errors import FileSystemError, UsageError
from backupfs.service.control import Replies
from backupfs.service.messages import DiffRequest, FindRequest, VersionsRequest, shown_path, type_word


class Historian(Protocol):
    """The part of the engine's history that is needed here."""

    async def diff(self, older: int, newer: int, below: bytes = b"") -> list[TreeChange]:
        """What differs, sorted by path."""
        ...

    async def versions(self, path: bytes) -> list[FileVersion]:
        """The newest first."""
        ...

    def find(self, pattern: str) -> AsyncGenerator[Found]:
        """Names that fit."""
        ...


class VersionTold(msgspec.Struct, frozen=True):
    """A version of what a path has led to. `first` and `last` name the snapshots that show it, of which there are `snapshots`; None when only the
    present does.
    """

    path: str
    type: str
    size: int
    mtime_ns: int
    mode: str
    uid: int
    gid: int
    first: str | None
    last: str | None
    snapshots: int
    is_present: bool


class ChangeTold(msgspec.Struct, frozen=True):
    """A difference: `kind` is one of `+ - M R T P`, `old_path` is set for R. Sizes are None where there was nothing."""

    kind: str
    path: str
    old_path: str | None
    type: str
    old_size: int | None
    size: int | None


class DiffTold(msgspec.Struct, frozen=True):
    """How many differences there are of each kind, and the bytes in files that came and that went: a change of size counts as the difference."""

    counts: dict[str, int]
    more_bytes: int
    less_bytes: int


class FoundTold(msgspec.Struct, frozen=True):
    """A name that fits: the path that led to it last, and the first and last snapshot that show it, as for versions."""

    path: str
    type: str
    first: str | None
    last: str | None
    snapshots: int
    is_present: bool


@contextmanager
def said_of(path: bytes, where: str) -> Iterator[None]:
    """An ordinary answer of the engine about a path becomes a sentence: UsageError."""
    try:
        yield
    except FileSystemError as error:
        raise UsageError(f"{os.fsdecode(path) or '/'!r} {where}: {os.strerror(error.errno)}", errno=error.errno) from error


async def answer(historian: Historian, request: VersionsRequest | DiffRequest | FindRequest, replies: Replies) -> object:
    """The result; what was found goes into `replies`."""
    match request:
        case VersionsRequest():
            return await _versions(historian, request, replies)
        case DiffRequest():
            return await _diff(historian, request, replies)
        case FindRequest():
            return await _find(historian, request, replies)
        case _:
            assert_never(request)


async def _versions(historian: Historian, request: VersionsRequest, replies: Replies) -> object:
    with said_of(request.path, "is in no snapshot and not in the present"):
        found = await historian.versions(request.path)
    for v in found:
        told = VersionTold(
            shown_path(v.path), type_word(v.type), v.size, v.mtime_ns, f"{v.mode:04o}", v.uid, v.gid, v.first, v.last, v.snapshots, v.is_present
        )
        await replies.item(told)
    return {"versions": len(found)}


async def _diff(historian: Historian, request: DiffRequest, replies: Replies) -> DiffTold:
    with said_of(request.below, "cannot be compared"):
        changes = await historian.diff(request.older, request.newer, request.below)
    for change in changes if request.each else ():
        old_path = shown_path(change.old_path) if change.old_path else None
        await replies.item(ChangeTold(change.kind, shown_path(change.path), old_path, type_word(change.type), change.old_size, change.size))
    return _summed(changes)


def _summed(changes: Sequence[TreeChange]) -> DiffTold:
    grown = [(change.size or 0) - (change.old_size or 0) for change in changes if change.type != stat.S_IFDIR]
    counts = Counter(change.kind for change in changes)
    return DiffTold(
        {kind: counts[kind] for kind in "+-MRTP" if counts[kind]},
        more_bytes=sum(difference for difference in grown if difference > 0),
        less_bytes=-sum(difference for difference in grown if difference < 0),
    )


async def _find(historian: Historian, request: FindRequest, replies: Replies) -> object:
    count = 0
    below = request.below.strip(b"/")
    last: Found | None = None
    async with aclosing(historian.find(os.fsdecode(request.pattern))) as names:
        async for found in names:
            if below and not found.path.startswith(below + b"/"):
                continue
            if last is not None and (found.path, found.type) == (last.path, last.type):
                last = _joined(last, found)
                continue
            count += 1
            if last is not None:
                await replies.item(_found(last))
            last = found
    if last is not None:
        await replies.item(_found(last))
    return {"found": count}


def _joined(one: Found, other: Found) -> Found:
    """One name that led to one thing and then to another, as when an editor replaces a file, or in one directory and then in another of that name."""
    seen = [name for name in (one, other) if name.snapshots]
    first = min(seen, key=lambda name: name.serials[0], default=one)
    last = max(seen, key=lambda name: name.serials[1], default=one)
    return Found(
        one.path,
        one.type,
        first.first,
        last.last,
        one.snapshots + other.snapshots,
        one.is_present or other.is_present,
        (first.serials[0], last.serials[1]),
    )


def _found(name: Found) -> FoundTold:
    return FoundTold(shown_path(name.path), type_word(name.type), name.first, name.last, name.snapshots, name.is_present)
