"""A recorded life of a repository on a simulated disk, and what comes of it when the power goes at any point."""

import random
import shutil
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.repository import check_repository, create_repository, open_filesystem, unlock
from backupfs.errors import BackupfsError, FileSystemError
from backupfs.format import objects, pack
from backupfs.format.layout import Sealed
from backupfs.stores.files import Files
from backupfs.stores.local import LocalStore
from tests.crash import model as tree_model
from tests.crash.disk import Image, SimulatedDisk
from tests.crash.faults import FaultyFiles, Verdict
from tests.crash.model import Model
from tests.crash.power_cut import CrashState
from tests.crash.simulation import (
    KDF,
    PASSWORD,
    SMALL_LIMITS,
    IndexCopies,
    SeededRandomness,
    SteppingClock,
    run,
    seams,
)
from tests.crash.workload import Workload, read_back

ROOT = Path("/repository")

Trees = tuple[dict[tree_model.Path, tree_model.Found], dict[str, dict[tree_model.Path, tree_model.Found]]]


@contextmanager
def small_limits() -> Iterator[None]:
    """Everything fills up soon."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL_LIMITS.items():
            patch.setattr(limits, name, value)
        yield


class Host:
    """A machine: a directory for the index, which is a real file, and a disk, which is not. One at a time is switched
    on.
    """

    def __init__(self, state: Path) -> None:
        self.state = state

    def switch_on(self, index: bytes | None) -> None:
        """The index as given, or none."""
        shutil.rmtree(self.state, ignore_errors=True)
        (self.state / "index").mkdir(parents=True)
        if index is not None:
            (self.state / "index" / "data.mdb").write_bytes(index)

    def copies(self, disk: SimulatedDisk) -> IndexCopies:
        """Where copies of the index are kept while the disk's log grows."""
        return IndexCopies(self.state / "index" / "data.mdb", lambda: len(disk.log))


@dataclass
class History:
    """What was asked of the disk and of the file system. Cuts are made from `begins` on."""

    host: Host
    disk: SimulatedDisk
    model: Model
    copies: IndexCopies
    begins: int


@dataclass
class Reopened:
    """What was found after a cut."""

    faults: list[str]
    trees: Trees | None
    disk: SimulatedDisk
    mounted_at: int


def make_repository(host: Host, seed: object) -> SimulatedDisk:
    """A disk with a new repository on it."""
    disk = SimulatedDisk()
    for parent in [*reversed(host.state.parents[:-1]), host.state]:
        disk.make_directory(parent)
        disk.sync_directory(parent.parent)

    async def create() -> None:
        create_repository(ROOT, PASSWORD, files=disk, clock=SteppingClock(), randomness=SeededRandomness(f"init {seed}"), kdf=KDF)

    run(create, seed)
    return disk


def record(host: Host, seed: int, count: int, mounts: int = 2, verdict: Verdict | None = None, faulty: list[FaultyFiles] | None = None) -> History:
    """A new repository, mounted and stopped cleanly some times, with so many random requests each time.

    With a `verdict` calls fail (see `FaultyFiles`, which is appended to `faulty`), and the life ends with the first
    request that is refused.
    """
    disk = make_repository(host, seed)
    if verdict is None:
        return _live(host, disk, disk, Model(), None, seed, count, mounts)
    files = FaultyFiles(disk, verdict)
    if faulty is not None:
        faulty.append(files)
    return _live(host, disk, files, Model(), None, seed, count, mounts)


def record_further(host: Host, image: Image, index: bytes | None, model: Model, seed: int, count: int) -> History:
    """The life of a repository after a power cut: its log begins with the recovery."""
    disk = SimulatedDisk(image)
    return _live(host, disk, disk, model, index, seed, count, 1)


def _live(
    host: Host,
    disk: SimulatedDisk,
    files: Files,
    model: Model,
    index: bytes | None,
    seed: int,
    count: int,
    mounts: int,
) -> History:
    host.switch_on(index)
    copies = host.copies(disk)
    if index is not None:
        copies.take()
    begins = len(disk.log)
    draw = random.Random(f"workload/{seed}")

    def position() -> int:
        return len(disk.log)

    async def live() -> None:
        for mount in range(mounts):
            async with _mounted(host, files, f"{seed}/{mount}", copies) as fs:
                workload = Workload(fs, model, position, draw)
                model.end_step("mount", begins, position(), acknowledges=True)
                await workload.act(count)
                if draw.random() < 0.5:
                    await workload.close_all()
                stopping = position()
            if fs.status().failure or fs.status().dirty_bytes:
                return
            model.acknowledge_all(position())
            model.dirty.clear()
            model.end_step("clean stop", stopping, position(), acknowledges=True)

    try:
        run(live, seed)
    except* (BackupfsError, FileSystemError):
        if files is disk:
            raise
    return History(host, disk, model, copies, begins)


def _mounted(host: Host, files: Files, seed: object, copies: IndexCopies | None = None) -> AbstractAsyncContextManager[FileSystem]:
    unlocked = unlock(ROOT, PASSWORD, files=files)
    taken = copies.take if copies is not None else lambda: None
    return open_filesystem(ROOT, unlocked, host.state, seams=seams(files, seed, taken))


def reopen(history: History, state: CrashState, index: bytes | None) -> Reopened:
    """Switch on after the cut, mount, read everything, stop. Whatever goes wrong is a fault."""
    history.host.switch_on(index)
    disk = state.disk()
    result = Reopened([], None, disk, 0)

    async def look() -> None:
        async with _mounted(history.host, disk, state.name) as fs:
            result.mounted_at = len(disk.log)
            result.trees = await read_back(fs)
        check_packs(disk)

    try:
        run(look, state.name)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test is for
        result.faults = [f"{type(error).__name__}: {_innermost(error)}"]
    else:
        assert result.trees is not None
        result.faults = history.model.faults(state.position, *result.trees)
    return result


def check(host: Host, disk: SimulatedDisk) -> list[str]:
    """What `backupfs check --read-data` finds, the references counted anew among it."""

    async def look() -> list[str]:
        unlocked = unlock(ROOT, PASSWORD, files=disk)
        findings = check_repository(ROOT, unlocked, host.state, seams=seams(disk, "check"), read_data=True, progress=lambda done, total: None)
        async with aclosing(findings):
            return [str(finding) async for finding in findings]

    return run(look, "check")


def check_packs(disk: SimulatedDisk) -> None:
    """Every finished pack can be read from its end, without the index. Raises DamageError."""
    unlocked = unlock(ROOT, PASSWORD, files=disk)
    store = LocalStore(ROOT, disk)
    for name in store.list("packs"):
        object_id = bytes.fromhex(name.rpartition("/")[2])
        size = store.size(name)
        header = objects.decode(store.get(name, size - objects.HEADER_BYTES), objects.PACK_MAGIC, name)
        sealer = unlocked.keys.object_sealer(header, object_id)
        at = size - pack.END_BYTES
        footer = pack.decode_footer(sealer.open(Sealed.PACK_FOOTER, at, store.get(name, at, pack.FOOTER_BYTES)), size)
        sealed = store.get(name, footer.trailer_offset, footer.trailer_bytes)
        pack.decode_trailer(sealer.open(Sealed.PACK_TRAILER, footer.trailer_offset, sealed), footer)


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def index_at(history: History, position: int, draw: random.Random) -> tuple[str, bytes | None]:
    """The index that may be there after a cut: as it was, one write behind, or lost."""
    choice = draw.random()
    if choice < 0.5:
        return "index", history.copies.at(position)
    if choice < 0.65:
        return "index one write behind", history.copies.at(position, back=1)
    return "no index", None
