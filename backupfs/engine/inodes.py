"""Inodes of the live tree in memory.

An inode's newest record lives here while somebody uses it; it is encoded when a batch is frozen. One object stands for an inode at any time:
whoever holds it across an await keeps it alive, and `get` finds it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

import msgspec

from backupfs import limits
from backupfs.catalog.catalog import Catalog
from backupfs.engine.attributes import Attributes
from backupfs.engine.counts import Counts
from backupfs.errors import DamageError
from backupfs.format import catalog as records
from backupfs.format.catalog import TOMBSTONE, Extent, Inode, Orphan, Table, number_key, orphan_key
from backupfs.rules.extents import clip
from backupfs.rules.runs import Runs


class InodeState(msgspec.Struct, weakref=True, eq=False):
    """`record.size` is what stat shows. `stored_bytes` is the size that a batch may record while bytes are still unstored."""

    ino: int
    record: Inode
    stored_bytes: int
    only_epoch: int | None = None
    """Of an inode that was made since the mount: the epoch of its only record, 0 while no batch has had it. None: not known, or there are several."""
    recorded: list[Extent] = []  # each gets its own
    """The extents in that record."""
    runs: Runs = msgspec.field(default_factory=Runs)
    in_flight: Runs = msgspec.field(default_factory=Runs)
    flushing: int = 0
    """How many turns of storing bytes of it are under way."""
    awaited: int = 0
    """How many wait for the end of those."""
    changed: bool = False
    dead: bool = False
    handles: int = 0
    writers: int = 0
    xattrs: dict[bytes, bytes] | None = None
    shown: Attributes | None = None
    """What stat shows of it, while the record stays as it is and all bytes are stored."""
    unfinished: tuple[int, int] | None = None
    """(end, start) of a chunk at the file's end whose cut is not known: its bytes up to `end` are stored in small blobs from `start` on."""
    tail_blobs: int = 0
    """How many small blobs the unfinished chunk is stored in."""
    written_at: float = 0.0
    error: int = 0
    error_count: int = 0
    """Failures to store this file's bytes, and the errno of the last: each handle is told once."""

    @property
    def clean(self) -> bool:
        """Whether all bytes received are stored."""
        return not self.runs.runs and not self.in_flight.runs

    def settled_record(self) -> Inode:
        """The record as a batch may have it: no size beyond the data that is stored."""
        record = self.record
        if self.clean or self.stored_bytes >= record.size:
            return record
        size = self.stored_bytes
        return Inode(
            record.mode, record.uid, record.gid, size, record.nlink, record.atime_ns, record.mtime_ns, record.ctime_ns,
            record.birth_ns, record.rdev, record.target, record.data, clip(record.extents, 0, size), record.links, record.allocated,
        )  # fmt: skip


class InodeTable:
    """Finds, keeps and records inodes."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._alive: WeakValueDictionary[int, InodeState] = WeakValueDictionary()
        """Of those that are not among the recent ones: what somebody else holds."""
        self._recent: OrderedDict[int, InodeState] = OrderedDict()
        self._changed: dict[int, InodeState] = {}
        self._new_orphans: dict[int, int] = {}
        self.lookups = Counts()
        """Of those that are in the present."""

    def get(self, ino: int) -> InodeState | None:
        """An inode that exists, names or not; None otherwise."""
        recent = self._recent
        state = recent.get(ino)
        if state is not None:
            recent.move_to_end(ino)
            return state
        state = self._alive.get(ino)
        if state is None:
            value = self._catalog.value(Table.INODES, number_key(ino), records.EPOCH_MAX)
            if value is None:
                return None
            record = records.decode_inode(value)
            state = InodeState(ino, record, record.size)
        elif state.dead:
            return None
        self._keep(state)
        return state

    def named(self, inos: Sequence[int]) -> list[InodeState]:
        """These, to which names lead. Those in memory are not taken for used: a listing looks at all there are. Raises DamageError."""
        recent = self._recent
        return [recent.get(ino) or self._named(ino) for ino in inos]

    def add(self, ino: int, record: Inode) -> InodeState:
        """A new inode."""
        state = InodeState(ino, record, record.size, only_epoch=0, xattrs={})
        self._keep(state)
        self.touch(state)
        return state

    def touch(self, state: InodeState) -> None:
        """The record has changed: the next batch takes it."""
        state.shown = None
        if not state.changed:
            state.changed = True
            self._changed[state.ino] = state

    def remove(self, state: InodeState, epoch: int) -> None:
        """The inode ends as of `epoch`."""
        state.dead = True
        state.changed = False
        self._changed.pop(state.ino, None)
        self._recent.pop(state.ino, None)
        if state.only_epoch is None:
            self._catalog.write(Table.INODES, number_key(state.ino), TOMBSTONE, epoch)
        else:
            self._catalog.write_over(Table.INODES, number_key(state.ino), TOMBSTONE, state.only_epoch, (state.recorded, ()), epoch)

    def record_changed(self) -> None:
        """Write all changed records into the catalog's active layer. Raises DamageError; what is not written then stays to be."""
        catalog = self._catalog
        for ino, state in list(self._changed.items()):
            record = state.settled_record()
            value = records.encode(record)
            if state.only_epoch is None:
                catalog.write(Table.INODES, number_key(ino), value)
            else:
                refers = state.recorded, record.extents
                state.only_epoch = catalog.write_over(Table.INODES, number_key(ino), value, state.only_epoch, refers)
                state.recorded = record.extents
            state.changed = False
            del self._changed[ino]

        for ino, epoch in self._new_orphans.items():
            self._catalog.put(Table.ORPHANS, orphan_key(records.ORPHAN_INODE, ino), records.encode(Orphan(epoch, 0)))
        self._new_orphans.clear()

    def lost_last_name(self, ino: int, epoch: int) -> None:
        """An inode is an orphan as of `epoch`. The next batch takes note of it, unless it has ended before."""
        self._new_orphans[ino] = epoch

    def is_orphan_no_more(self, ino: int) -> None:
        """An orphan has ended."""
        if self._new_orphans.pop(ino, None) is None:
            self._catalog.put(Table.ORPHANS, orphan_key(records.ORPHAN_INODE, ino), None)

    @property
    def changed_count(self) -> int:
        """How many records wait for the next batch."""
        return len(self._changed)

    def xattrs(self, state: InodeState) -> dict[bytes, bytes]:
        """The extended attributes; not to be changed in place."""
        if state.xattrs is None:
            value = self._catalog.value(Table.XATTRS, number_key(state.ino), records.EPOCH_MAX)
            state.xattrs = {} if value is None else records.decode_xattrs(value)
        return state.xattrs

    def set_xattrs(self, state: InodeState, xattrs: dict[bytes, bytes]) -> None:
        """Replace the extended attributes."""
        state.xattrs = xattrs
        value = records.encode(xattrs) if xattrs else TOMBSTONE
        self._catalog.write(Table.XATTRS, number_key(state.ino), value)

    def _named(self, ino: int) -> InodeState:
        state = self.get(ino)
        if state is None:
            raise DamageError(f"inode {ino} is named but has no record", ino=ino)
        return state

    def _keep(self, state: InodeState) -> None:
        recent = self._recent
        recent[state.ino] = state
        while len(recent) > limits.INODE_CACHE_ENTRIES:
            # What is not settled yet is held elsewhere: by a handle, by the changed records, by whoever stores its bytes.
            ino, oldest = recent.popitem(last=False)
            self._alive[ino] = oldest
