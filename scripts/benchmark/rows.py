"""The table of rows: what is measured, by whom, and what is aimed at. Targets are those of the project's table of performance, in the same words."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from scripts.benchmark import copies, names, scale, sizes, snapshots, writes
from scripts.benchmark.archivers import Borg, BorgMount, Restic
from scripts.benchmark.figures import Absolute, OtherRow, Ratio, Target
from scripts.benchmark.setting import By, by
from scripts.benchmark.systems import BackupFs, Btrfs, Disk, EmptyFs, FloorFs, Gocryptfs, System

SYSTEMS: Final[Mapping[str, type[System]]] = {
    kind.name: kind for kind in (BackupFs, EmptyFs, FloorFs, Gocryptfs, Borg, BorgMount, Restic, Btrfs, Disk)
}
"""All, in the order in which they are shown."""


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    key: str
    title: str
    unit: str
    targets: tuple[Target, ...] = ()
    more_is_better: bool = False
    one: str = "operation"
    """What a rate counts, or what there are `count` of in a time."""
    count: int = 1


@dataclass(frozen=True)
class Work:
    """A piece of work, and the rows that come out of it."""

    key: str
    subject: str
    rows: tuple[Row, ...]
    systems: Mapping[str, By]
    needs: frozenset[str] = field(default_factory=frozenset)
    """Kinds of sources."""


def _rate(key: str, title: str, unit: str, *targets: Target) -> Row:
    return Row(key, title, unit, targets, more_is_better=True)


def _ratios(limit: float, *peers: type[System]) -> tuple[Target, ...]:
    return tuple(Ratio(limit, (peer.name,)) for peer in peers)


_SMALLEST: Final = (Ratio(1.05, (Borg.name, Restic.name)),)
_AS_FAST_AS_BOTH: Final = _ratios(1.0, EmptyFs, Gocryptfs)

WORKS: Final = (
    Work(
        "copy",
        "A large copy",
        (
            Row(
                "copy-in",
                "copy 1 GiB in (half text, half noise), until durable",
                "s",
                (*_ratios(2 / 3, Borg, Restic), *_ratios(1.0, Gocryptfs)),
                one="MiB",
                count=1024,
            ),
            Row("copy-in-synced", "copy 1 GiB in, and sync the whole disk", "s"),
            Row("copy-back", "copy 1 GiB back from a snapshot, caches cold", "s", _ratios(1.0, Restic)),
            Row("size-large", "repository with 1 GiB (half text, half noise) in it", "MiB", _SMALLEST),
        ),
        {
            **by(copies.large_mounted, BackupFs, EmptyFs, FloorFs, Gocryptfs),
            **by(copies.large_archived, Borg, Restic),
            **by(copies.large_borg_mount, BorgMount),
        },
        frozenset({"large"}),
    ),
    Work(
        "tree",
        "A tree of small files",
        (
            Row("tree", "`cp -a` of 20,000 files in 400 directories", "s", _AS_FAST_AS_BOTH, one="file", count=20_000),
            Row("tree-durable", "the same tree, until durable", "s"),
        ),
        {**by(copies.tree_mounted, BackupFs, EmptyFs, FloorFs, Gocryptfs, Btrfs, Disk), **by(copies.tree_archived, Borg, Restic)},
        frozenset({"tree"}),
    ),
    Work(
        "remove",
        "A tree of small files",
        (Row("tree-remove", "`rm -rf` of that tree", "s"),),
        by(copies.remove, BackupFs, EmptyFs, FloorFs, Gocryptfs, Btrfs, Disk),
        frozenset({"tree"}),
    ),
    Work(
        "names",
        "Names",
        (
            _rate("create", "create", "/s", *_AS_FAST_AS_BOTH),
            _rate("create-4k", "create and write 4 KiB", "/s", *_AS_FAST_AS_BOTH),
            _rate("stat-cold", "stat, caches cold", "/s", *_AS_FAST_AS_BOTH),
            _rate("rename", "rename", "/s", *_AS_FAST_AS_BOTH),
            _rate("unlink", "unlink", "/s", *_AS_FAST_AS_BOTH),
            replace(_rate("scandir", "scandir, entries", "/s", *_AS_FAST_AS_BOTH), one="entry"),
        ),
        by(names.operations, BackupFs, EmptyFs, FloorFs, Gocryptfs, Btrfs, Disk),
    ),
    Work(
        "snapshot",
        "Snapshots",
        (Row("snapshot-few", "take a snapshot of 1,000 files", "ms", (Absolute(10),)),),
        by(snapshots.of_few, BackupFs),
    ),
    Work(
        "history",
        "Snapshots",
        (
            Row("snapshot-tree", "take a snapshot of 20,000 files in 400 directories", "ms", (Absolute(10),)),
            Row("history-diff", "diff two snapshots of that tree, 1,000 files changed", "ms"),
            Row("history-versions", "list the versions of one of these files", "ms"),
            Row("history-delete", "delete the older of these snapshots", "ms"),
            Row("history-collect", "the same, until its space is free", "ms"),
        ),
        {
            **by(snapshots.history_backupfs, BackupFs),
            **by(snapshots.history_btrfs, Btrfs),
            **by(snapshots.history_archiver, Borg, Restic),
        },
        frozenset({"tree"}),
    ),
    Work(
        "load",
        "Snapshots",
        (
            Row("snapshot-hold", "longest wait of a writer during a snapshot, 64 MiB dirty, a copy running", "ms", (Absolute(50),)),
            Row("snapshot-no-hold", "longest wait of a writer for as long without a snapshot", "ms"),
            Row("snapshot-after", "1,000 changes right after a snapshot, to 1,000 later", "x"),
        ),
        by(snapshots.under_load, BackupFs),
        frozenset({"large"}),
    ),
    Work(
        "stream",
        "Small writes",
        (
            _rate("stream", "4 KiB writes streamed, 256 MiB into the page cache, xattrs on", "MiB/s", Absolute(500)),
            _rate("stream-whole", "4 KiB writes streamed, 1 GiB", "MiB/s"),
            Row("stream-wait", "4 KiB writes streamed: longest that 1 MiB took", "ms", (Absolute(1000),)),
        ),
        by(writes.stream, BackupFs, EmptyFs, FloorFs, Gocryptfs, Disk),
        frozenset({"large"}),
    ),
    Work(
        "fsync",
        "Small writes",
        (
            Row("fsync", "append 4 KiB and fsync: median", "ms", _ratios(3.0, Disk)),
            Row("fsync-p99", "append 4 KiB and fsync: 99 of 100 within", "ms"),
            Row("fsync-max", "append 4 KiB and fsync: all within", "ms"),
        ),
        by(writes.fsync, BackupFs, EmptyFs, FloorFs, Gocryptfs, Btrfs, Disk),
    ),
    Work(
        "fsync-8",
        "Small writes",
        (
            _rate("fsync-8-rate", "8 processes append 4 KiB and fsync: all together", "/s", *_ratios(1 / 3, Disk)),
            Row("fsync-8", "8 processes append 4 KiB and fsync: median", "ms"),
            Row("fsync-8-p99", "8 processes append 4 KiB and fsync: 99 of 100 within", "ms"),
            Row("fsync-8-max", "8 processes append 4 KiB and fsync: all within", "ms"),
        ),
        by(writes.fsync_together, BackupFs, EmptyFs, FloorFs, Gocryptfs, Btrfs, Disk),
    ),
    Work(
        "overwrite",
        "Small writes",
        (
            Row("overwrite", "16,384 random 4 KiB overwrites in a file of 1 GiB, and an fsync", "s", _ratios(1.0, Gocryptfs)),
            Row("overwrite-durable", "these overwrites, until the unmount has returned", "s"),
            Row("overwrite-amplification", "these overwrites: bytes that the repository grew by, for each byte written", "x", (Absolute(2),)),
        ),
        by(writes.overwrite, BackupFs, Gocryptfs, Btrfs, Disk),
        frozenset({"large"}),
    ),
    *(
        Work(
            f"size-{kind}",
            "Size of the repository",
            (Row(f"size-{kind}", title, "MiB", _SMALLEST),),
            sizes.of(kind, BackupFs, Borg, Restic),
            frozenset({kind}),
        )
        for kind, title in (
            ("code", "repository with 10 versions of a source tree (Python's library, a file of twenty edited each time)"),
            ("dump", "repository with 3 versions of a database dump of 256 MiB, rows inserted all over it"),
            ("image", "repository with 2 versions of a virtual machine's disk: ext4, 2 GiB, sparse"),
        )
    ),
    Work(
        "many",
        "{files} files",
        (
            _rate("many-create", "make {files} empty files", "/s"),
            Row("many-snapshot", "take a snapshot of {files} files", "ms", (Absolute(10), OtherRow(1.5, "snapshot-few", "that of 1,000 files"))),
            Row("many-hold", "longest wait of a writer during a snapshot of {files} files, 64 MiB dirty", "ms", (Absolute(50),)),
            Row("many-diff", "diff two snapshots of {files} files, 1,000 changed", "ms", (OtherRow(1.5, "history-diff", "that of 20,000 files"),)),
            Row("many-versions", "list the versions of one of {files} files", "ms", (OtherRow(1.5, "history-versions", "that of 20,000 files"),)),
            Row("many-delete", "delete one of two snapshots of {files} files", "ms", (OtherRow(1.5, "history-delete", "that of 20,000 files"),)),
            Row("many-collect", "the same, until its space is free, {files} files", "ms"),
            _rate("many-list", "list {files} files with their attributes, caches cold", "/s"),
            Row("many-resident", "memory resident, {files} files there, while 1 GiB is copied in", "MiB", (Absolute(300),)),
            Row("many-anonymous", "of that, memory of its own (anonymous)", "MiB"),
            Row("many-peak", "most memory resident at any time of all this", "MiB", (Absolute(300),)),
            Row("many-repository", "repository, for each file (before the 1 GiB)", "B"),
            Row("many-index", "index, for each file", "B"),
            Row("past-list", "`ls -l .snapshots` with 1,000 snapshots of {files} files", "ms"),
            Row("past-snapshot", "take one more snapshot then", "ms", (Absolute(10), OtherRow(1.5, "snapshot-few", "that of 1,000 files"))),
            Row("past-diff", "diff two of them then, 1,000 changed", "ms", (OtherRow(1.5, "history-diff", "that of 20,000 files"),)),
            Row("past-versions", "list 1,000 versions of a file", "ms"),
            Row("past-delete", "delete one of them then", "ms", (OtherRow(1.5, "history-delete", "that of 20,000 files"),)),
            Row("past-collect", "the same, until its space is free", "ms"),
            Row("past-fsync", "append 4 KiB and fsync then: median", "ms", (OtherRow(1.5, "fsync", "that in a new repository"),)),
            Row("past-index", "index, for each file, with these snapshots", "B"),
            Row("many-mount", "mount {files} files and 1,000 snapshots after a clean end", "s"),
            Row("many-journal", "journal since the last checkpoint, at a kill -9", "MiB"),
            Row("many-mount-killed", "mount after that kill -9", "s", (Absolute(2),)),
            Row("many-mount-lost", "mount after another kill -9, the index lost", "s"),
            Row("many-rebuild", "`rebuild-index` of {files} files", "s", (Absolute(60),)),
        ),
        {**by(scale.many_backupfs, BackupFs), **by(scale.many_btrfs, Btrfs), **by(scale.many_archiver, Borg)},
        frozenset({"large", "many"}),
    ),
    Work(
        "nominal",
        "200 GiB, nominally",
        (
            Row("nominal", "write 100 GiB with a MiB of data in each, and copy 1 GiB in a hundred times, until durable", "s"),
            Row("nominal-repository", "repository with that in it", "MiB"),
            Row("nominal-resident", "most memory resident meanwhile", "MiB", (Absolute(300),)),
        ),
        by(scale.nominal, BackupFs),
        frozenset({"large"}),
    ),
    Work(
        "day",
        "A long day",
        (
            _rate("day-rate", "10,000,000 calls on {files} files, 40 snapshots of which 10 are kept", "/s"),
            Row("day-resident", "most memory resident meanwhile", "MiB", (Absolute(300),)),
            Row("day-growth", "memory resident: growth in the last half, for each 1,000,000 calls", "MiB", (Absolute(1),)),
            Row("day-growth-anonymous", "memory of its own (anonymous): growth in the last half, for each 1,000,000 calls", "MiB"),
        ),
        by(scale.day, BackupFs),
    ),
    Work(
        "idle",
        "A mount with nothing to do",
        (Row("idle", "processor time of a mount with nothing to do, of one core", "%", (Absolute(0.1),)),),
        {**by(scale.idle_backupfs, BackupFs), **by(scale.idle_fuse, EmptyFs, Gocryptfs)},
    ),
)
