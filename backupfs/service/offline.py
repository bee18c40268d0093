"""What is done with a repository that is not mounted, in the command's own process. Everything here blocks."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from backupfs.engine.checking import Finding
from backupfs.engine.keyring import Unlocked, calibrated_kdf
from backupfs.engine.repository import RebuildReport, check_repository, create_repository, rebuild_index, unlock
from backupfs.engine.seams import Seams
from backupfs.service.groups import cause
from backupfs.service.locate import Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class NewRepository:
    """What `init` is asked for."""

    root: Path
    label: str
    compression: bool
    kdf_seconds: float


def create(new: NewRepository, password: bytes, seams: Seams) -> str:
    """Make a repository in a directory that is missing or empty. Its id in hexadecimal."""
    made = create_repository(
        new.root,
        password,
        files=seams.files,
        clock=seams.clock,
        randomness=seams.randomness,
        kdf=calibrated_kdf(new.kdf_seconds),
        compression=new.compression,
        label=new.label,
    )
    return made.hex()


def rebuild(place: Place, password: bytes, seams: Seams, on_progress: Callable[[int, int], None]) -> RebuildReport:
    """Make the index anew from the repository and the key alone. LockedError while it is mounted."""
    with _alone(place, password, seams) as unlocked:
        return _run(lambda: rebuild_index(place.repository, unlocked, place.state.path, seams=seams, progress=on_progress))


def check(
    place: Place,
    password: bytes,
    seams: Seams,
    read_data: bool,
    on_finding: Callable[[Finding], None],
    on_progress: Callable[[int, int], None],
) -> int:
    """Check the repository from the store; the number of findings. LockedError while it is mounted: then the daemon
    does it.
    """

    async def all_findings() -> int:
        count = 0
        async with aclosing(
            check_repository(place.repository, unlocked, place.state.path, seams=seams, read_data=read_data, progress=on_progress)
        ) as found:
            async for finding in found:
                on_finding(finding)
                count += 1
        return count

    with _alone(place, password, seams) as unlocked:
        return _run(all_findings)


@contextmanager
def _alone(place: Place, password: bytes, seams: Seams) -> Iterator[Unlocked]:
    place.state.make()
    with place.state.locked(seams.files):
        yield unlock(place.repository, password, files=seams.files)


def _run(work: Callable[[], Awaitable[T]]) -> T:
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise cause(group) from None
