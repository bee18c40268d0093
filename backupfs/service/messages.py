"""What goes over the control socket, the readiness pipe and into the mount record: JSON, one value a line.

A connection carries one request and its replies: items and progress as they come, then one result or one failure.
Fields are only ever added, with defaults, so that a command and a daemon of different versions understand each other.
"""

import os
import stat
from typing import Any, Final, Literal

import msgspec

from backupfs.engine.attributes import EngineStatus, SnapshotInfo, Stats, Usage
from backupfs.errors import (
    BackupfsError,
    DamageError,
    FileSystemError,
    LockedError,
    MissingObjectError,
    ReadOnlyError,
    RepositoryMissingError,
    RollbackError,
    StoreError,
    StoreFullError,
    UnsupportedError,
    UsageError,
    WrongPasswordError,
)
from backupfs.fuse.unmounting import MountBusyError
from backupfs.service.groups import cause

REQUEST_BYTES_MAX: Final = 256 * 1024
"""A request is a verb with a message and some names; more is an attempt to take memory."""
REPLY_BYTES_MAX: Final = 64 * 1024 * 1024
"""A reply names at most the paths that one damaged object touches."""
_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class NotRunningError(BackupfsError):
    """Nothing serves what was named."""

    kind = "not-mounted"


class HookFailedError(BackupfsError):
    """A hook ended with another exit code than 0, or not in time."""

    kind = "hook"


_KINDS: Final[dict[str, type[BackupfsError]]] = {
    error.kind: error
    for error in (
        BackupfsError,
        UsageError,
        RepositoryMissingError,
        LockedError,
        WrongPasswordError,
        DamageError,
        MissingObjectError,
        RollbackError,
        UnsupportedError,
        StoreError,
        StoreFullError,
        ReadOnlyError,
        MountBusyError,
        NotRunningError,
        HookFailedError,
    )
}


class StatusRequest(msgspec.Struct, tag_field="request", tag="status"):
    """What the daemon is doing."""


class StatsRequest(msgspec.Struct, tag_field="request", tag="stats"):
    """Space and counts."""


class SnapshotCreateRequest(msgspec.Struct, tag_field="request", tag="snapshot-create"):
    """Take a snapshot now. Without a name it gets one from the time."""

    message: str = ""
    tags: list[str] = []
    name: str = ""


class SnapshotListRequest(msgspec.Struct, tag_field="request", tag="snapshot-list"):
    """One `SnapshotTold` for each kept snapshot, or each deleted one, oldest first. `sizes`: with what deleting each alone would free."""

    deleted: bool = False
    sizes: bool = False


class SnapshotShowRequest(msgspec.Struct, tag_field="request", tag="snapshot-show"):
    """Everything about one snapshot, kept or deleted: a `SnapshotShown`."""

    name: str


class SnapshotDeleteRequest(msgspec.Struct, tag_field="request", tag="snapshot-delete"):
    """Mark snapshots deleted, all or none; `dry_run`: only say what that would free. `name` is one more of `names`."""

    name: str = ""
    names: list[str] = []
    dry_run: bool = False


class SnapshotUndeleteRequest(msgspec.Struct, tag_field="request", tag="snapshot-undelete"):
    """Bring deleted snapshots back, all or none."""

    names: list[str]


class SnapshotPinRequest(msgspec.Struct, tag_field="request", tag="snapshot-pin"):
    """Keep snapshots until they are unpinned, or unpin them; all or none."""

    names: list[str]
    pinned: bool


class SnapshotHoldRequest(msgspec.Struct, tag_field="request", tag="snapshot-hold"):
    """Keep snapshots until a time; 0 lets go of them. All or none."""

    names: list[str]
    until_ns: int


class PruneRequest(msgspec.Struct, tag_field="request", tag="prune"):
    """Run retention now: one `FateTold` for each snapshot, then a `Pruned`. `dry_run`: nothing is deleted."""

    dry_run: bool = False


class CollectRequest(msgspec.Struct, tag_field="request", tag="gc"):
    """Get back all space that can be got, without pauses; progress is of bytes that are copied. `now`: also what deleted snapshots hold that could
    still be brought back. `dry_run`: only say what that would do.
    """

    now: bool = False
    dry_run: bool = False


class OutlookRequest(msgspec.Struct, tag_field="request", tag="outlook"):
    """What a forecast of the space begins with: an `OutlookTold`."""


class UnmountRequest(msgspec.Struct, tag_field="request", tag="umount"):
    """Unmount, commit and end. Answered when everything is durable; the process is gone right after."""


class LendRequest(msgspec.Struct, tag_field="request", tag="lend"):
    """Keep a snapshot readable for the asking process, for as long as it keeps the connection: one item, the snapshot, when it can be read."""

    name: str


class CheckRequest(msgspec.Struct, tag_field="request", tag="check"):
    """Check the repository: progress as it goes, one item for each finding."""

    read_data: bool = False


class ConfigurationRequest(msgspec.Struct, tag_field="request", tag="configuration"):
    """What each source of configuration says, the strongest first; without the defaults."""


class PolicyRequest(msgspec.Struct, tag_field="request", tag="policy"):
    """The policy that the repository keeps."""


class PolicySetRequest(msgspec.Struct, tag_field="request", tag="policy-set"):
    """Keep this policy, a JSON text, or none when it is empty. Refused when the one kept is no longer `instead_of`, if that is given."""

    policy: str
    instead_of: str | None = None


class VersionsRequest(msgspec.Struct, tag_field="request", tag="versions"):
    """One item for each version of what a path, from the root of the mount, has led to; the newest first."""

    path: bytes


class DiffRequest(msgspec.Struct, tag_field="request", tag="diff"):
    """One item for each difference between two snapshots at and below a path, given by serial; `newer` 0 is the present. Without `each` only the
    counts, which are the result.
    """

    older: int
    newer: int = 0
    below: bytes = b""
    each: bool = True


class FindRequest(msgspec.Struct, tag_field="request", tag="find"):
    """One item for each name below a path that fits a shell pattern, whenever it was."""

    pattern: bytes
    below: bytes = b""


class RestoreRequest(msgspec.Struct, tag_field="request", tag="restore"):
    """Bring a path back into the live tree as it was in a snapshot, there or at `target`. Items: the steps that are planned, those that are left out
    for want of an option, and, as they happen, those that fail. Progress counts steps.
    """

    path: bytes
    serial: int
    target: bytes | None = None
    overwrite: bool = False
    delete: bool = False
    dry_run: bool = False


class UndoRequest(msgspec.Struct, tag_field="request", tag="undo"):
    """Take the last restore back. Items and progress as of a restore."""

    dry_run: bool = False


PastRequest = VersionsRequest | DiffRequest | FindRequest | RestoreRequest | UndoRequest
Request = (
    StatusRequest
    | StatsRequest
    | SnapshotCreateRequest
    | SnapshotListRequest
    | SnapshotShowRequest
    | SnapshotDeleteRequest
    | SnapshotUndeleteRequest
    | SnapshotPinRequest
    | SnapshotHoldRequest
    | PruneRequest
    | CollectRequest
    | OutlookRequest
    | UnmountRequest
    | CheckRequest
    | LendRequest
    | ConfigurationRequest
    | PolicyRequest
    | PolicySetRequest
    | PastRequest
)


class Item(msgspec.Struct, tag_field="reply", tag="item"):
    """One of several results."""

    value: msgspec.Raw


Stage = Literal["", "reckoning", "surveying", "purging", "copying"]
"""What the progress of a request with several stages is about: records looked at, ends of packs read, records looked at, bytes copied."""


class Progress(msgspec.Struct, tag_field="reply", tag="progress"):
    """So many of so many are done, of a stage where there are several: otherwise bytes, steps of a restore, or snapshots where those are listed."""

    done: int
    total: int
    stage: Stage = ""


class Result(msgspec.Struct, tag_field="reply", tag="result"):
    """The last reply of a request that was done."""

    value: msgspec.Raw


class Failure(msgspec.Struct, tag_field="reply", tag="failure"):
    """The last reply of a request that was not done. `error` makes an exception of it again."""

    kind: str
    message: str
    fields: dict[str, str | int | float | bool | list[str] | None] = {}


Reply = Item | Progress | Result | Failure


class Ready(msgspec.Struct, tag_field="reply", tag="ready"):
    """The mount answers. `schedules` are those in force, in words; `every_s` is the shortest interval among them."""

    pid: int
    every_s: int | None = None
    schedules: list[str] = []


class MountRecord(msgspec.Struct):
    """Who serves which directory: the file `mount.json` beside the control socket."""

    repository: str
    repository_id: str
    directory: str
    pid: int
    since_ns: int
    read_only: bool


class Trouble(msgspec.Struct):
    """A log record of level WARNING or above, kept for `status`."""

    time_ns: int
    level: str
    source: str
    message: str


class ScheduleStatus(msgspec.Struct):
    """Automatic snapshots in short. `every_s` is the shortest interval of any schedule, None when none has one.

    `next_ns` is when the next one is due if something changes until then; None when only changes make one due.
    """

    every_s: int | None
    next_ns: int | None


class ScheduleView(msgspec.Struct):
    """One schedule. `next_ns` is when it is due if nothing but the time goes on; None when only changes make it due."""

    trigger: str
    tags: list[str]
    always: bool
    next_ns: int | None


class SnapshotTold(SnapshotInfo, frozen=True):
    """A snapshot with what deleting it would free, beyond what is deleted already; None when that was not asked for. `undelete_until_ns` is how long
    a deleted one can be brought back for certain, None for others.
    """

    frees_bytes: int | None = None
    undelete_until_ns: int | None = None


class FateTold(msgspec.Struct, frozen=True):
    """What retention does with a snapshot, and why."""

    serial: int
    name: str
    time_ns: int
    keep: bool
    reasons: list[str]


class SnapshotShown(msgspec.Struct, frozen=True):
    """The result of a `SnapshotShowRequest`. A deleted snapshot has no fate."""

    snapshot: SnapshotTold
    fate: FateTold | None


class SnapshotsChanged(msgspec.Struct, frozen=True):
    """The result of a request that changes snapshots, or would. `fates` are those of retention, where they matter."""

    names: list[str]
    frees_bytes: int | None = None
    undelete_until_ns: int | None = None
    fates: list[FateTold] = []


class Pruned(msgspec.Struct, frozen=True):
    """How many snapshots stay and how many are deleted, what that frees, and how much space was too much by the limits."""

    kept: int
    deleted: int
    frees_bytes: int
    excess_bytes: int
    dry_run: bool


class Collected(msgspec.Struct, frozen=True):
    """What a collection did, or would do. Bytes.

    `purged` snapshots were purged, which alone freed `purge_frees_bytes`; `waiting` deleted ones can still be brought back. `dead_bytes` were
    dead in packs before, of which `packs` were to be rewritten: copying `copied_bytes` to free `frees_bytes`. `used_…` is what the repository
    took on its disk.
    """

    dry_run: bool
    purged: int
    purge_frees_bytes: int
    waiting: int
    dead_bytes: int
    packs: int
    copied_bytes: int
    frees_bytes: int
    used_before_bytes: int
    used_after_bytes: int


class SpaceTold(Usage, frozen=True):
    """Where the space goes. `held_bytes` are stored in closed packs, `dead_bytes` of them no longer count, and collecting those as thoroughly as that
    pays would free `collectable_bytes`. `deleted_bytes` come back when all deleted snapshots are purged.
    """

    held_bytes: int
    dead_bytes: int
    collectable_bytes: int
    deleted: int
    deleted_bytes: int
    used_bytes: int


class StatsTold(Stats, frozen=True):
    """The result of a `StatsRequest`."""

    space: SpaceTold


class OutlookTold(msgspec.Struct, frozen=True):
    """The space as it is when all that is deleted or dead already has come back: what all kept snapshots hold, what else the repository takes, and
    its disk.
    """

    held_bytes: int
    live_bytes: int
    free_bytes: int
    total_bytes: int


class RetentionStatus(msgspec.Struct, frozen=True):
    """When retention ran last and how many snapshots it then kept and deleted; when it runs next, None: never; what went wrong the last time."""

    last_ns: int | None
    next_ns: int | None
    kept: int
    deleted: int
    failure: str = ""


class DeletedTold(msgspec.Struct, frozen=True):
    """A deleted snapshot. It can be brought back until `until_ns` for certain, and after that until it is being purged."""

    name: str
    deleted_ns: int | None
    until_ns: int | None
    is_purging: bool


class LayerTold(msgspec.Struct):
    """What one source of configuration says, as tables that TOML could have."""

    origin: str
    settings: dict[str, Any]


class ConfigurationTold(msgspec.Struct):
    """The result of a `ConfigurationRequest`."""

    layers: list[LayerTold]


class PolicyTold(msgspec.Struct):
    """The policy of a repository, a JSON text; empty when none was set."""

    policy: str


class ServiceStatus(msgspec.Struct):
    """What `status` shows. `engine` is the engine's own account."""

    mounted: bool
    phase: str
    repository: str
    repository_id: str
    directory: str
    pid: int
    since_ns: int
    read_only: bool
    log: str
    schedule: ScheduleStatus | None
    engine: EngineStatus | None
    errors: list[Trouble]
    schedules: list[ScheduleView] = []
    configuration: str | None = None
    retention: RetentionStatus | None = None
    deleted: list[DeletedTold] = []


def shown(text: str) -> str:
    """A path or a text with paths in it, fit for JSON: what is no UTF-8 is written out as Python shows it."""
    return text.encode("utf-8", "backslashreplace").decode()


def type_word(bits: int) -> str:
    """The word for a file type of stat(2)."""
    return _TYPES.get(bits, "unknown")


def shown_path(path: bytes) -> str:
    """A path of the mount, fit for JSON."""
    return shown(os.fsdecode(path))


def _plain(value: object) -> str | int | float | bool | list[str] | None:
    if isinstance(value, list):
        return [shown(str(item)) for item in value]
    return value if isinstance(value, (int, float, bool, type(None))) else shown(str(value))


def failure(error: BaseException) -> Failure:
    """What another process is told of an error."""
    error = cause(error)
    if isinstance(error, BackupfsError):
        fields = {name: _plain(value) for name, value in error.fields.items()}
        return Failure(error.kind, shown(str(error)), fields)
    if isinstance(error, FileSystemError):
        return Failure(BackupfsError.kind, f"the file system answered {error}", {"errno": error.errno})
    return Failure(BackupfsError.kind, shown(f"internal error: {type(error).__name__}: {error}"))


def error(told: Failure) -> BackupfsError:
    """The exception that a failure stands for."""
    return _KINDS.get(told.kind, BackupfsError)(told.message, **told.fields)


def raw(value: object) -> msgspec.Raw:
    """`value` as JSON inside a reply."""
    return msgspec.Raw(msgspec.json.encode(value))
