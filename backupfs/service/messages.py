"""What goes over the control socket, the readiness pipe and into the mount record: JSON, one value a line.

A connection carries one request and its replies: items and progress as they come, then one result or one failure.
Fields are only ever added, with defaults, so that a command and a daemon of different versions understand each other.
"""

import os
from typing import Any, Final

import msgspec

from backupfs.engine.attributes import EngineStatus
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
from backupfs.service.hooks import HookFailedError

REQUEST_BYTES_MAX: Final = 256 * 1024
"""A request is a verb with a message and some names; more is an attempt to take memory."""
REPLY_BYTES_MAX: Final = 64 * 1024 * 1024
"""A reply names at most the paths that one damaged object touches."""


class NotRunningError(BackupfsError):
    """Nothing serves what was named."""

    kind = "not-mounted"


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
    """Take a snapshot now."""

    message: str = ""
    tags: list[str] = []


class SnapshotListRequest(msgspec.Struct, tag_field="request", tag="snapshot-list"):
    """One item for each kept snapshot, oldest first."""


class SnapshotDeleteRequest(msgspec.Struct, tag_field="request", tag="snapshot-delete"):
    """Mark a snapshot deleted."""

    name: str


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
    | SnapshotDeleteRequest
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


class Progress(msgspec.Struct, tag_field="reply", tag="progress"):
    """So many of so many bytes (steps, of a restore) are done."""

    done: int
    total: int


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


def shown(text: str) -> str:
    """A path or a text with paths in it, fit for JSON: what is no UTF-8 is written out as Python shows it."""
    return text.encode("utf-8", "backslashreplace").decode()


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
