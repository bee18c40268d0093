"""The values that requests and answers are made of."""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec


class Attributes(msgspec.Struct, gc=False):
    """What stat(2) shows. `ino` is the number the kernel sees; `cacheable` tells whether the kernel may keep this for ever. Not changed once it is
    made: an inode keeps its own until it changes.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    blocks: int
    cacheable: bool = True
    answer: Any = None
    """What the kernel's side has made of it, which is kept with it."""


@dataclass(frozen=True, slots=True)
class Disarmed:
    """What the past must not let anybody do again, although it did then: use rights that set-id bits lend, or devices."""

    set_id: bool = False
    devices: bool = False


class AttributeChanges(msgspec.Struct, gc=False):
    """What setattr is to set; None leaves a field alone."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None

    def sets_nothing(self) -> bool:
        """Whether there is nothing in it but at most a ctime."""
        return self.mode is None and self.size is None and self.atime_ns is None and self.mtime_ns is None and self.uid is None and self.gid is None


class Caller(Protocol):
    """Who asks."""

    @property
    def uid(self) -> int:
        """User."""
        ...

    @property
    def gid(self) -> int:
        """Group."""
        ...

    @property
    def pid(self) -> int:
        """Process."""
        ...

    @property
    def umask(self) -> int:
        """The process's umask."""
        ...


class Opened(msgspec.Struct, gc=False):
    """A file handle and how the kernel is to use its cache."""

    fh: int
    direct_io: bool = False
    keep_cache: bool = True


class DirectoryEntry(msgspec.Struct, frozen=True, gc=False):
    """One name; a listing goes on behind `next_cookie`."""

    name: bytes
    attributes: Attributes
    next_cookie: int


@dataclass(slots=True)
class SpaceFacts:
    """What statfs(2) shows."""

    block_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


class SnapshotInfo(msgspec.Struct, frozen=True):
    """A snapshot, as it is shown. `made`, `altered` and `removed` count inodes since the snapshot before; None while they have not been counted."""

    serial: int
    name: str
    time_ns: int
    why: str
    message: str
    tags: list[str]
    changes: int
    state: str
    pinned: bool = False
    hold_until_ns: int | None = None
    deleted_ns: int | None = None
    made: int | None = None
    altered: int | None = None
    removed: int | None = None


class Stats(msgspec.Struct, frozen=True):
    """How much there is. Bytes; `stored` is what blobs take in packs, `live` what their plaintext comes to."""

    snapshots: int
    packs: int
    stored_bytes: int
    free_bytes: int
    total_bytes: int
    journal_segment: int
    journal_bytes: int
    batches: int
    index_bytes: int
    inodes_made: int
    blobs_made: int


class UpkeepStatus(msgspec.Struct, frozen=True):
    """Background work: snapshots marked deleted, those being purged now, inodes to be ended, packs that the collection under way still has to
    rewrite and their bytes; what it has copied and freed since the mount, and how many rows of `changes` purging has looked at. `stopped`: it has
    failed and waits for the next mount.
    """

    deleted: int
    purging: int
    orphans: int
    packs_to_rewrite: int
    waiting_bytes: int
    copied_bytes: int
    freed_bytes: int
    purged_records: int
    stopped: bool


class EngineStatus(msgspec.Struct, frozen=True):
    """What is going on now."""

    epoch: int
    dirty_bytes: int
    open_files: int
    uncommitted_records: int
    layers_not_applied: int
    changes_since_snapshot: int
    snapshots: int
    purging: int
    orphans: int
    upkeep: UpkeepStatus
    journal_since_checkpoint_bytes: int
    space_short: bool
    read_only: bool
    failure: str
    errors: list[str]


class TreeChange(msgspec.Struct, frozen=True):
    """One difference: `kind` is one of `+ - M R T P`; `old_path` is set for R; `type` is the file type bits of stat(2). Sizes of then and now, None
    where it was not.
    """

    kind: str
    path: bytes
    old_path: bytes
    type: int
    old_size: int | None
    size: int | None


class FileVersion(msgspec.Struct, frozen=True):
    """A version of a file, the path that led to it then, and the names of the first and last kept snapshot that show it; how many do."""

    path: bytes
    ino: int
    type: int
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    first: str | None
    last: str | None
    snapshots: int
    is_present: bool


class Found(msgspec.Struct, frozen=True):
    """A name that fitted: its path when it was seen last, and the names of the first and last kept snapshot that show it, with their numbers; how
    many do.
    """

    path: bytes
    type: int
    first: str | None
    last: str | None
    snapshots: int
    is_present: bool
    serials: tuple[int, int] = (0, 0)


class RestoreStep(msgspec.Struct, frozen=True):
    """What is done to one path: `action` is add, replace, attributes or remove. The inode of then (0: none) and the live one (0: none). `shared_ino`
    is a live inode, unchanged since, that this path was another name of.
    """

    action: str
    path: bytes
    old_ino: int
    live_ino: int
    type: int
    size: int
    shared_ino: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Bytes of closed packs, of closed journal segments, of checkpoints, of the packs and the segment that are appended to, of the reserve, and of
    what recovery has set aside. `used` is what the snapshots and the present need: the first four.
    """

    packs_bytes: int
    journal_bytes: int
    checkpoints_bytes: int
    open_bytes: int
    reserve_bytes: int
    set_aside_bytes: int

    @property
    def used_bytes(self) -> int:
        """What counts for a limit of space."""
        return self.packs_bytes + self.journal_bytes + self.checkpoints_bytes + self.open_bytes
