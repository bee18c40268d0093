"""An opened repository: its parts, wired together once, and the numbers it hands out."""

import logging
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from backupfs import limits
from backupfs.blobs.cache import ChunkCache
from backupfs.blobs.packs import PackWriter
from backupfs.blobs.reader import BlobReader
from backupfs.catalog.catalog import Catalog
from backupfs.catalog.index import Index
from backupfs.codec.chunker import Chunker
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys
from backupfs.engine.head import Head
from backupfs.engine.seams import Seams
from backupfs.engine.space import Space
from backupfs.errors import BackupfsError, ReadOnlyError
from backupfs.format.catalog import Counters
from backupfs.journal.checkpoints import Checkpoints
from backupfs.journal.segments import JournalReader
from backupfs.journal.writer import JournalWriter
from backupfs.stores.port import Store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Volume:
    """`read_only` volumes have no writers: `packs` and `journal` are never used then."""

    root: Path
    state: Path
    keys: Keys
    seams: Seams
    store: Store
    index: Index
    catalog: Catalog
    counters: Counters
    packs: PackWriter
    reader: BlobReader
    journal: JournalWriter
    journal_reader: JournalReader
    checkpoints: Checkpoints
    compressor: Compressor
    chunker: Chunker
    space: Space
    head: Head
    read_only: bool
    cache: ChunkCache = field(default_factory=lambda: ChunkCache(limits.CHUNK_CACHE_BYTES))
    held_packs: int = 0
    """While above zero, packs that nothing lives in stay, and no journal is cut: somebody reads the store as it was."""
    journal_before_bytes: int = 0
    """The journal between the newest checkpoint and what this process has appended."""
    checkpoint_bytes: int = 0
    """Size of the newest checkpoint."""
    follows: bool = False
    """Whether another process writes to the index that is read here."""
    changed_at_ns: int | None = None
    """When somebody changed something last; None: not since the repository was opened."""
    changes: int = 0
    """How often that was noted."""
    failure: BackupfsError | None = None
    errors: deque[str] = field(default_factory=lambda: deque(maxlen=limits.STATUS_ERRORS_MAX))

    def now_ns(self) -> int:
        """The time stamp for a change that is made now, and noted as the last one."""
        now_ns = self.changed_at_ns = self.seams.clock.now_ns()
        self.changes += 1
        return now_ns

    def note_change(self, now_ns: int) -> None:
        """A change was made that the kernel has given this time stamp, a moment ago as a rule."""
        self.changed_at_ns = max(now_ns, self.changed_at_ns or 0)
        self.changes += 1

    def next_ino(self) -> int:
        """A number for a new inode."""
        number = self.counters.ino
        self.counters.ino += 1
        return number

    def next_data(self) -> int:
        """A number for a file's regions."""
        number = self.counters.data
        self.counters.data += 1
        return number

    def next_blob(self) -> int:
        """A number for a new blob."""
        number = self.counters.blob
        self.counters.blob += 1
        return number

    def check_writable(self) -> None:
        """Raises ReadOnlyError when nothing can be made durable any more."""
        if self.failure is not None:
            raise ReadOnlyError(f"writing has stopped: {self.failure}")
        if self.read_only:
            raise ReadOnlyError("this mount is read-only")

    @property
    def created_ns(self) -> int:
        """When the repository was made."""
        return self.keys.config.created_ns

    def close_journal(self) -> None:
        """End the journal's segment and remember how far this host has seen it. Blocks."""
        self.journal.close()
        end = self.journal.position
        self.index.apply([((end.segment, end.segment_bytes, end.batch), [])])
        self.head.save(self.journal.position, self.journal.last_hash())

    def fail(self, error: BackupfsError) -> None:
        """Stop writing for good in this process; what was acknowledged is safe, what was not is told to whoever asks."""
        if self.failure is None:
            self.failure = error
            log.critical("writing stops: %s. What fsync acknowledged is safe; unmount, mend the cause, mount again.", error)
