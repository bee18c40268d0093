"""A repository on disk: making one, unlocking it, opening it as a file system."""

import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from functools import partial
from pathlib import Path

import msgspec

from backupfs import limits
from backupfs.blobs.packs import PackWriter
from backupfs.blobs.reader import BlobReader
from backupfs.catalog.catalog import Catalog
from backupfs.catalog.index import DISTRUSTED, Index
from backupfs.clock import Clock
from backupfs.codec import keys as key_codec
from backupfs.codec.chunker import Chunker
from backupfs.codec.compression import Compressor
from backupfs.codec.keys import Keys
from backupfs.engine import keyring, recovery
from backupfs.engine.attributes import SnapshotInfo
from backupfs.engine.checking import Checker, Finding, check, remove_scratch, scratch_directory
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.head import Head
from backupfs.engine.identity import CONFIG, put_twice, read_configs
from backupfs.engine.keyring import Unlocked
from backupfs.engine.seams import Progress, Seams
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.space import Space
from backupfs.engine.usage import OPEN, SET_ASIDE
from backupfs.engine.volume import Volume
from backupfs.errors import DamageError, UsageError
from backupfs.format import catalog as records
from backupfs.format import config as config_format
from backupfs.format.catalog import META_COUNTERS, Counters, Inode, Orphan, Table, number_key
from backupfs.format.config import CIPHER_AES_256_GCM, CIPHER_CHACHA20_POLY1305, Config
from backupfs.format.journal import Change, SegmentOpen, encode_batch
from backupfs.format.keyslot import KdfParameters
from backupfs.ids import FIRST_INO, ROOT_INO
from backupfs.journal.checkpoints import Checkpoints
from backupfs.journal.segments import JournalReader
from backupfs.journal.writer import JournalWriter
from backupfs.randomness import Randomness
from backupfs.rules import labels
from backupfs.rules.labels import KeyKind
from backupfs.stores.files import Files
from backupfs.stores.local import LocalStore

LOCK = "lock"
INDEX = "index"
HEAD = "head"
_COMPRESSION_LEVEL = 1


Choice = Callable[[Sequence[SnapshotInfo]], str]
"""Picks the name of one of the kept snapshots."""


class RebuildReport(msgspec.Struct, frozen=True):
    """What rebuilding the index read."""

    batches: int
    segment: int
    index_bytes: int


def create_repository(
    root: Path,
    password: bytes,
    *,
    files: Files,
    clock: Clock,
    randomness: Randomness,
    kdf: KdfParameters,
    compression: bool = True,
    label: str = "password",
) -> bytes:
    """Make a repository in a directory that is missing or empty; gives its id. Blocks. UsageError when something is there."""
    text = labels.to_store(KeyKind.PASSWORD, label)
    if files.exists(root) and files.list(root):
        raise UsageError(f"{root} is not empty; a repository is made in a new or an empty directory", path=str(root))
    _make_directories(root, files)
    config = Config(
        repository_id=randomness.draw(16),
        created_ns=clock.now_ns(),
        chunk_min_bytes=limits.CHUNK_MIN_BYTES,
        chunk_avg_bytes=limits.CHUNK_AVG_BYTES,
        chunk_max_bytes=limits.CHUNK_MAX_BYTES,
        cipher=CIPHER_AES_256_GCM if _has_aes() else CIPHER_CHACHA20_POLY1305,
        compression=config_format.COMPRESSION_ZSTD if compression else config_format.COMPRESSION_NONE,
        compression_level=_COMPRESSION_LEVEL,
        features=config_format.FEATURES,
    )
    master = key_codec.new_master(randomness)
    store = LocalStore(root, files)
    # Durable with the first object that the store takes, as all directories that it finds.
    for directory in (keyring.FOLDER, OPEN, "packs", "journal"):
        files.make_directory(root / directory)
    keyring.put_slot(store, key_codec.make_slot(master, password, text, kdf, config, clock.now_ns(), randomness))
    # The configuration comes last: a repository that was half made is none.
    put_twice(store, CONFIG, config_format.encode(config, key_codec.config_mac(master, config)))
    return config.repository_id


def unlock(root: Path, password: bytes, *, files: Files) -> Unlocked:
    """Open a key slot with a password, or with the words of a recovery key. Raises RepositoryMissingError, WrongPasswordError, DamageError. Blocks
    for the key derivation.
    """
    configs = read_configs(root, files)
    return keyring.unlock(root, configs, keyring.stored_slots(root, configs[0][0].repository_id, files), password)


@asynccontextmanager
async def open_filesystem(
    root: Path,
    unlocked: Unlocked,
    state: Path,
    *,
    seams: Seams,
    read_only: bool = False,
    owner: tuple[int, int] = (0, 0),
    accept_rollback: bool = False,
    undelete_ns: int = 0,
    choose: Choice | None = None,
) -> AsyncIterator[FileSystem]:
    """Take the lock, recover, and run the file system. At the end everything is committed and the lock is free.

    `undelete_ns` is what `Upkeep.undelete_ns` begins with: purging begins as soon as this runs. `choose` picks one of the snapshots: then that one
    is all there is, for reading. Raises LockedError, DamageError, RollbackError, StoreError.
    """
    offload = seams.offload
    lock = await offload.disk(seams.files.lock, root / LOCK)
    try:
        opening = partial(_open_volume, root, unlocked, state, seams, read_only, owner, accept_rollback)
        try:
            volume = await offload.disk(opening)
        except DamageError:
            if not (state / INDEX / DISTRUSTED).exists():
                raise
            # It was the index that was damaged: the second time it is built anew.
            volume = await offload.disk(opening)
        try:
            orphans, ended = _to_do(volume)
            if choose is not None:
                _show_only(volume, choose)
            filesystem = FileSystem(volume, orphans, ended)
            filesystem.upkeep.undelete_ns = undelete_ns
            async with filesystem.running():
                yield filesystem
        finally:
            volume.reader.close()
            volume.index.close()
    finally:
        seams.files.close(lock)


@asynccontextmanager
async def open_lent_snapshot(root: Path, unlocked: Unlocked, state: Path, name: str, *, seams: Seams) -> AsyncIterator[FileSystem]:
    """One snapshot, for reading, beside the process that has the repository mounted and has lent the snapshot (`FileSystem.lending`); `state` is that
    process's.

    Raises DamageError, StoreError.
    """
    volume = await seams.offload.disk(_lent_volume, root, unlocked, state, name, seams)
    try:
        filesystem = FileSystem(volume, {}, [])
        async with filesystem.running():
            yield filesystem
    finally:
        volume.reader.close()
        volume.index.close()


def _show_only(volume: Volume, choose: Choice) -> None:
    snapshots = Snapshots(volume.catalog)
    serial = snapshots.serial_of(choose(snapshots.kept()))
    if serial is None:
        raise UsageError("there is no such snapshot; `backupfs snapshot list` shows them")
    volume.catalog = Catalog(volume.index, volume.counters.epoch, 0, snapshots.epoch_of(serial))


def _lent_volume(root: Path, unlocked: Unlocked, state: Path, name: str, seams: Seams) -> Volume:
    keys, files = unlocked.keys, seams.files
    store = LocalStore(root, files)
    compressor = Compressor(unlocked.config.compression, unlocked.config.compression_level)
    index = Index(state / INDEX, keys, None)
    try:
        value = index.get(Table.META, META_COUNTERS)
        counters = Counters(1, FIRST_INO, 1, 1, 1, 1) if value is None else records.decode_counters(value)
        volume = Volume(
            root=root,
            state=state,
            keys=keys,
            seams=seams,
            store=store,
            index=index,
            catalog=Catalog(index, counters.epoch, 0),
            counters=counters,
            packs=PackWriter(root / OPEN, files, store, keys, compressor, seams.randomness, counters),
            reader=BlobReader(root / OPEN, files, store, keys, compressor),
            journal=JournalWriter(root / OPEN, files, store, keys, compressor, seams.randomness, SegmentOpen(0, 0, b""), 0),
            journal_reader=_journal_reader(root, unlocked, seams),
            checkpoints=_checkpoints(root, unlocked, seams),
            compressor=compressor,
            chunker=Chunker(unlocked.config, keys.chunk_seed),
            space=Space(root / OPEN, files),
            head=Head(state / HEAD, files, keys, seams.randomness),
            read_only=True,
            follows=True,
        )
        _show_only(volume, lambda _: name)
    except BaseException:
        index.close()
        raise
    return volume


async def rebuild_index(root: Path, unlocked: Unlocked, state: Path, *, seams: Seams, progress: Progress) -> RebuildReport:
    """Build the index anew from checkpoints, the journal and the key alone."""
    lock = await seams.offload.disk(seams.files.lock, root / LOCK)
    try:
        return await seams.offload.disk(_rebuild, root, unlocked, state, seams, progress)
    finally:
        seams.files.close(lock)


async def check_repository(
    root: Path, unlocked: Unlocked, state: Path, *, seams: Seams, read_data: bool, progress: Progress
) -> AsyncGenerator[Finding]:
    """Check a repository that is not mounted; the findings as they are made. `FileSystem.check` does it for one that is."""
    lock = await seams.offload.disk(seams.files.lock, root / LOCK)
    try:
        scratch = await seams.offload.disk(scratch_directory, state)
        checker = await seams.offload.disk(lambda: Checker(root, unlocked.keys, seams, scratch, read_data, progress))
        async with aclosing(check(checker)) as findings:
            async for finding in findings:
                yield finding
    finally:
        seams.files.close(lock)


def _rebuild(root: Path, unlocked: Unlocked, state: Path, seams: Seams, progress: Progress) -> RebuildReport:
    directory = state / INDEX
    for path in directory.iterdir() if directory.exists() else ():
        path.unlink()
    index = Index(directory, unlocked.keys, seams.randomness)
    try:
        with closing(recovery.CarriedBlobs(root / OPEN, seams.files)) as carried:
            result = recovery.replay(_journal_reader(root, unlocked, seams), _checkpoints(root, unlocked, seams), index, None, carried, progress)
        return RebuildReport(result.batches, result.position.segment, index.data_bytes())
    finally:
        index.close()


def _open_volume(
    root: Path,
    unlocked: Unlocked,
    state: Path,
    seams: Seams,
    read_only: bool,
    owner: tuple[int, int],
    accept_rollback: bool,
) -> Volume:
    files, keys = seams.files, unlocked.keys
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    remove_scratch(state)
    open_directory = root / OPEN
    # A copy of a repository may have lost its empty directories: git and object stores keep none.
    _make_directories(open_directory, files)
    store = LocalStore(root, files)
    compressor = Compressor(unlocked.config.compression, unlocked.config.compression_level)
    head = Head(state / HEAD, files, keys, seams.randomness)
    if accept_rollback:
        head.forget()
        recovery.set_index_aside(state / INDEX)
    journal_reader = _journal_reader(root, unlocked, seams)
    checkpoints = _checkpoints(root, unlocked, seams)
    index = recovery.open_index(state / INDEX, keys, seams, journal_reader, checkpoints)
    try:
        with closing(recovery.CarriedBlobs(open_directory, files, read_only=read_only)) as carried:
            replayed = recovery.replay(journal_reader, checkpoints, index, head.load(), carried, _quiet)
        reader = BlobReader(open_directory, files, store, keys, compressor, carried.lacking)
        value = index.get(Table.META, META_COUNTERS)
        counters = Counters(1, FIRST_INO, 1, 1, 1, 1) if value is None else records.decode_counters(value)
        packs = PackWriter(open_directory, files, store, keys, compressor, seams.randomness, counters)
        journal = JournalWriter(open_directory, files, store, keys, compressor, seams.randomness, replayed.last, replayed.position.batch)
        if read_only and replayed.batches:
            # The index may know more than its position says: when that is gone from the journal, this tells.
            head.save(replayed.position, replayed.last.previous_hash)
        if not read_only:
            first = _first_records(counters, owner, seams.clock.now_ns()) if value is None else []
            _begin_writing(root, replayed, first, index, reader, journal, store, keys, seams)
            head.save(journal.position, journal.last_hash())
        catalog = Catalog(index, counters.epoch, 0)
        if read_only and value is None:
            # Never mounted for writing: an empty root, in memory only.
            for table, key, record in _first_records(counters, owner, seams.clock.now_ns())[:1]:
                catalog.active.put_version(Table(table), key[:-8], counters.epoch, record)
        # A repository that was written before this was counted: whether there are any.
        catalog.changed_in_epoch = counters.changed_records or len(
            catalog.applied_changes(records.change_key(counters.epoch, 0, b""), counters.epoch, 1)
        )
        space = Space(open_directory, files)
        if not read_only:
            space.refresh(0)
        journal_bytes, checkpoint_bytes = recovery.journal_since_checkpoint(journal_reader, checkpoints, store)
        return Volume(
            root=root,
            state=state,
            keys=keys,
            seams=seams,
            store=store,
            index=index,
            catalog=catalog,
            counters=counters,
            packs=packs,
            reader=reader,
            journal=journal,
            journal_reader=journal_reader,
            checkpoints=checkpoints,
            journal_before_bytes=journal_bytes,
            checkpoint_bytes=checkpoint_bytes,
            compressor=compressor,
            chunker=Chunker(unlocked.config, keys.chunk_seed),
            space=space,
            head=head,
            read_only=read_only,
        )
    except BaseException:
        index.close()
        raise


def _begin_writing(
    root: Path,
    replayed: recovery.Replayed,
    first: list[Change],
    index: Index,
    reader: BlobReader,
    journal: JournalWriter,
    store: LocalStore,
    keys: Keys,
    seams: Seams,
) -> None:
    """Close what a dead process left open, and begin a segment with what that changes behind `first`."""
    open_directory = root / OPEN
    aside = recovery.SetAside(root / SET_ASIDE, replayed.position.segment, seams.files)
    unclean = bool(replayed.unclosed or replayed.torn)
    changes = first + recovery.finish_packs(index, reader, open_directory, aside, store, keys, seams, unclean)
    journal.open(above=max(replayed.torn, default=0))
    recovery.retire_segments(replayed, open_directory, aside, store)
    aside.forget_oldest()
    if changes:
        journal.append(encode_batch(changes))
    position = journal.position
    index.apply([((position.segment, position.segment_bytes, position.batch), changes)])
    index.renew()


def _journal_reader(root: Path, unlocked: Unlocked, seams: Seams) -> JournalReader:
    compressor = Compressor(unlocked.config.compression, unlocked.config.compression_level)
    return JournalReader(root / OPEN, seams.files, LocalStore(root, seams.files), unlocked.keys, compressor)


def _checkpoints(root: Path, unlocked: Unlocked, seams: Seams) -> Checkpoints:
    compressor = Compressor(unlocked.config.compression, unlocked.config.compression_level)
    return Checkpoints(LocalStore(root, seams.files), unlocked.keys, compressor, seams.randomness)


def _first_records(counters: Counters, owner: tuple[int, int], now: int) -> list[Change]:
    root = Inode(stat.S_IFDIR | 0o755, *owner, 0, 2, now, now, now, now, 0, b"", 0, [], [])
    key = number_key(ROOT_INO) + records.epoch_suffix(counters.epoch)
    return [(Table.INODES, key, records.encode(root)), (Table.META, META_COUNTERS, records.encode_counters(counters))]


def _to_do(volume: Volume) -> tuple[dict[int, int], list[tuple[int, Orphan]]]:
    orphans: dict[int, int] = {}
    ended: list[tuple[int, Orphan]] = []
    for key, value in volume.catalog.rows(Table.ORPHANS):
        kind, number = records.split_orphan(key)
        orphan = records.decode_orphan(value)
        if kind == records.ORPHAN_INODE:
            orphans[number] = orphan.epoch
        else:
            ended.append((number, orphan))
    return orphans, ended


def _make_directories(path: Path, files: Files) -> None:
    """Make the directory and those above it, as far as they are missing; all are durable on return."""
    missing = []
    at = path
    while not files.exists(at):
        missing.append(at)
        at = at.parent
    for directory in reversed(missing):
        files.make_directory(directory)
        files.sync_directory(directory.parent)


def _has_aes() -> bool:
    try:
        return " aes" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def _quiet(_done: int, _total: int) -> None:
    """Replay goes unreported."""
