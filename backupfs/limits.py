"""Every bound in one place, each with its reason."""

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB
TIB: Final = 1024 * GIB

# Chunks: 256 KiB on average hash, compress and seal at full speed and still find what an insertion left alone.
CHUNK_MIN_BYTES: Final = 64 * KIB
CHUNK_AVG_BYTES: Final = 256 * KIB
CHUNK_MAX_BYTES: Final = 1 * MIB

# A pack is one object: large enough that a store of a terabyte has tens of thousands, small enough to be rewritten at recovery.
PACK_TARGET_BYTES: Final = 30 * MIB
"""What overshoots it a little stays below 32 MiB: there padding takes 0.8 % on average, right above it twice as much."""
PACK_BLOBS_MAX: Final = 32 * KIB
"""With so many it is full, however small they are: of each some 170 bytes are held until the pack is closed."""
OPEN_PACKS: Final = 2
"""Chunks go to one of these at random, so that the order of lengths in a pack says less."""

PACK_UNSYNCED_BYTES: Final = 8 * MIB
"""Sealed bytes of a pack that stay in memory, for the case that syncing it fails; beyond this it is synced at once."""

JOURNAL_FRAME_BYTES: Final = 4 * KIB
JOURNAL_SEGMENT_TARGET_BYTES: Final = 8 * MIB
"""Whoever reads a segment holds it in memory."""
JOURNAL_FRAME_MAX_BYTES: Final = 256 * MIB
"""No honest frame is larger; a length beyond it is damage, not a reason to take memory."""

CHECKPOINT_MIN_BYTES: Final = 4 * MIB
"""A checkpoint is made when the journal since the last one is larger than this and than that checkpoint: so both stay in proportion to what there is,
and all checkpoints together write about as much as the journal.
"""
CHECKPOINTS_KEPT: Final = 2
CHECKPOINT_PART_BYTES: Final = 4 * MIB
"""Of records, before compression."""
CHECKPOINT_LOOK_S: Final = 10.0
SORT_RUN_RECORDS: Final = 25_000
"""So many records are sorted in memory, some 7 MB, while nothing else goes on in this process, for 7 ms; more go to runs on disk."""
SORT_PIECE_BYTES: Final = 64 * KIB
"""Of each run one piece is in memory while runs are merged."""
BREATHE_RECORDS: Final = 256
"""Long work in a thread lets the loop have the interpreter after so many records: half a millisecond."""

BATCH_RECORDS: Final = 4096
"""A batch is frozen at this many records: encoding it holds the loop for some 10 ms."""
LAYER_RECORDS_MAX: Final = 2 * BATCH_RECORDS
"""Changing requests wait while the layer that takes their changes holds this many records."""
BATCH_BYTES: Final = 16 * MIB
LAYER_BYTES_MAX: Final = 64 * MIB
"""The same in bytes of values: a batch must stay well below the largest frame that a reader accepts."""
CARRIED_BYTES_MAX: Final = 36 * KIB
"""So many bytes of blobs a batch carries itself, as eight writers of 4 KiB make: one sync instead of two. More is not written twice."""
COMMIT_DELAY_S: Final = 5.0
"""Everything received is committed after at most this long, and the index follows then."""
INDEX_RECORDS: Final = 4096
"""So many records, or those of one batch, are written to the index in one transaction: what that changes is held until it ends, some pages of 4 KiB
for each record where they lie apart. Batches are joined to layers of so many.
"""
INDEX_LAYERS: Final = 8
"""So many layers wait for the index, then it follows at once. While it does, whoever changes something has the interpreter less often, and takes a
sixth to a quarter longer. So some ten thousand changes in a row are left alone, and the index follows when they are over.
"""
INDEX_BYTES: Final = 8 * MIB
"""The same in bytes of values."""
LAYERS_MAX: Final = 12
"""Changes wait while more layers than this are on their way to the index."""
MEMORY_BACK_RECORDS: Final = 131_072
"""After so many records that went to the index the heap gives back what is free in it: some milliseconds, half a minute of hard work apart."""
JOINED_RECORDS_MAX: Final = 256
"""A batch of so few records is joined with the one before that waits for the index; copying more would hold the loop."""

REGION_BYTES: Final = 16 * MIB
REGION_LAST: Final = 2**32 - 1
"""Its key has 32 bits for the number. This one has no end."""
REGION_EXTENTS_MAX: Final = 1024
"""Its record then has some 14 KiB, which each change of the region writes anew; with fewer, chunks are written anew more often than is written to
them: at 320 each 4 KiB of random overwrites brought up to 30 KiB.
"""
INLINE_EXTENTS_MAX: Final = 4
"""More extents than this move from the inode's record to regions."""

DIRTY_BYTES_MAX: Final = 48 * MIB
"""Bytes written and not yet stored; writers wait beyond it."""
FLUSH_RUN_BYTES: Final = 4 * MIB
"""A run this long is chunked and stored while more arrives."""
FLUSH_JOB_BYTES: Final = 4 * MIB
"""So much of one growing file goes to a thread at once. It is held several times over while it is joined, compressed and sealed."""
FLUSH_SMALL_BYTES: Final = 1 * MIB
"""So many bytes of small files go to a worker thread together."""
FLUSH_FILES: Final = 512
"""So many small files at most go together: applying their extents holds the loop."""
FLUSH_JOBS: Final = 4
"""So many parts are on their way at once: one that is cut, two that are compressed and sealed, one that waits for the disk."""
INLINE_WORK_BYTES: Final = 32 * KIB
"""Less than this is cut, hashed, compressed and sealed on the loop: handing it to a thread costs more."""
READ_AHEAD_BYTES: Final = 4 * MIB
READ_AHEAD_STEP_BYTES: Final = 1 * MIB
"""So much is fetched by one visit to a thread, what stands side by side in a pack by one read."""
READ_AHEAD_TASKS: Final = 8
TAIL_BLOBS_MAX: Final = 64
"""So many small blobs may make up the unfinished end of a file that is synced again and again; then they are stored as one."""
DIRTY_AGE_S: Final = 2.0
"""Bytes of files that stopped growing are stored after this long."""

CHUNK_CACHE_BYTES: Final = 24 * MIB
"""With what it costs to keep each chunk."""
INODE_CACHE_ENTRIES: Final = 20_000
INDEX_RESIDENT_BYTES: Final = 16 * MIB
"""Of the index's file so much is in this process at a time; the page cache has the rest."""
LISTED_NAMES_MAX: Final = 32 * KIB
"""So many names are held of directories whose names are all known: some 10 MiB."""
CPU_THREADS: Final = 3
"""Of these two compute, on two processors, while the third waits for the interpreter or for the kernel to take what it has written."""
DISK_THREADS: Final = 8

NAME_MAX_BYTES: Final = 255
PATTERN_MAX: Final = 4096
"""Characters of what names are looked for by: as many as a path has. Reading one takes time that grows with their square."""
XATTR_VALUE_MAX_BYTES: Final = 64 * KIB
XATTRS_MAX_BYTES: Final = 256 * KIB
"""All of one file's, names included: they stand in one record."""
XATTR_NAMES_MAX_BYTES: Final = 64 * KIB
"""All names of one file's, each with a zero: the kernel lists no more (XATTR_LIST_MAX)."""
LINKS_MAX: Final = 65_000
FILE_SIZE_MAX_BYTES: Final = 2**63 - 1
TIME_MIN_NS: Final = -(2**63)
TIME_MAX_NS: Final = 2**64 - 1
"""What a record can say: the years from 1677 to 2554."""
INODE_LINKS_INLINE: Final = 8

REAP_RECORDS_PER_STEP: Final = 256
PURGE_RECORDS_PER_STEP: Final = 64
RECKONED_GROUPS_MAX: Final = 65_536
"""Of blobs in so many groups of 64 neighbours it is counted at a time how often they are referred to: 14 MiB at most. With more it is gone through
the changes several times."""
RECKON_RECORDS_PER_STEP: Final = 512
"""So many rows are looked at before others get their turn, when it is counted what something holds or what has changed."""
COMPARED_PER_STEP: Final = 64
"""The same for what takes several looks each: entries that are compared in two trees, changes whose versions are gone through. A millisecond or
two."""
CHORES_GIVE_WAY: Final = 2
"""After each step of a chore others have the loop for so many times as long, unless somebody waits for the chores."""
COLLECT_STEP_BYTES: Final = 4 * MIB
COLLECT_STEP_BLOBS: Final = 256
"""So much of a pack is copied at once: it is held in memory."""
COLLECT_PAUSE_MAX_S: Final = 1.0
COLLECT_DIED_BYTES: Final = 4 * MIB
"""So many bytes must have died before it is looked again for packs to rewrite."""
RESTORE_REGIONS_PER_STEP: Final = 64
LOOK_S: Final = 60.0
"""The clock is read at least this often, and room on the disk: trio's time stands still while the machine sleeps, the clock may be set, others may
use the disk. All look at the same moments (`clock.until_next`).
"""
SET_ASIDE_KEPT: Final = 3
"""What so many recoveries set aside is kept, for whoever looks into what happened; older goes."""
SNAPSHOTS_EVER_MAX: Final = (1 << 22) - 1
"""So many snapshots a repository can have had: their numbers share the inode numbers of `.snapshots` with the directories' (one each two minutes for
15 years).
"""
SNAPSHOT_PARK_S: Final = 0.050
"""Longest time that changing requests are held up for a snapshot's cut."""

FOLLOW_S: Final = 1.0
"""A mount beside another one looks at the index anew this often: what it looks at, the other cannot use again."""
INDEX_MAP_BYTES: Final = 1 * TIB
"""Address space reserved for the index; the file grows as needed."""

KDF_TIME_MIN: Final = 3
KDF_LANES: Final = 4
KDF_MEMORY_MIN_KIB: Final = 64 * KIB
KDF_TIME_MAX: Final = 1000
KDF_LANES_MAX: Final = 64
KDF_MEMORY_MAX_KIB: Final = 4 * MIB
"""A slot that asks for more is refused before memory is taken."""
KEY_SLOTS_MAX: Final = 64

POLICY_BYTES_MAX: Final = 64 * KIB
CONFIGURATION_BYTES_MAX: Final = 256 * KIB
HOOK_OUTPUT_BYTES_MAX: Final = 4 * KIB
"""Of what a hook prints, the end goes to the log."""

LOG_BYTES_MAX: Final = 4 * MIB
STATUS_ERRORS_MAX: Final = 32
RESERVE_BYTES: Final = 64 * MIB
"""Ballast kept on the repository's file system, given up so that deleting works on a full disk."""
PAGES_BYTES_MAX: Final = 256 * MIB
"""So much of what programs have written may stand in the kernel's pages before it is brought here, where the kernel lets itself be told."""
RECORDS_ROOM_BYTES: Final = 8 * MIB
"""The last of the disk takes no contents of files and no checkpoint, only what is recorded: the journal, the index."""
SPACE_SHORT_LOOK_S: Final = 1.0
"""While room is short it is looked at this often, so that space that has come back is soon usable."""
