"""How many requests programs cost on a real mount, in counts that are the same on every machine.

What the kernel asks for is not ours to say, but much of it depends on what it was told: for how long answers hold, that names are missing, which
features there are. A request costs more than anything that is done for it.
"""

import inspect
import os
import stat
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from backupfs.clock import SystemClock
from backupfs.engine.filesystem import FileSystem
from backupfs.engine.repository import create_repository, open_filesystem, unlock
from backupfs.engine.seams import Seams
from backupfs.fuse.mount import MountOptions
from backupfs.offload import ThreadOffload
from backupfs.randomness import SystemRandomness
from backupfs.stores.files import SystemFiles
from tests.crash.simulation import KDF
from tests.fuse_floor.floor import Floor, serving

DIRECTORIES: Final = 3
FILES: Final = 20
"""In each of them."""


class Counted:
    """The engine behind a mount; counts what it is asked."""

    def __init__(self, fs: FileSystem) -> None:
        self.__dict__.update(fs=fs, requests=Counter())

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.fs, name)
        if not inspect.iscoroutinefunction(member):
            return member

        async def asked(*args: Any) -> Any:
            self.requests[name] += 1
            return await member(*args)

        return asked

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.fs, name, value)


@asynccontextmanager
async def counted(base: Path) -> AsyncIterator[Floor]:
    """A new repository, mounted by this process."""
    files, clock, randomness = SystemFiles(), SystemClock(), SystemRandomness()
    create_repository(base / "repository", b"password", files=files, clock=clock, randomness=randomness, kdf=KDF)
    unlocked = unlock(base / "repository", b"password", files=files)
    seams = Seams(files, clock, randomness, ThreadOffload())
    async with (
        open_filesystem(base / "repository", unlocked, base / "state", seams=seams, owner=(os.geteuid(), os.getegid())) as fs,
        serving(base / "mount", MountOptions(), Counted(fs)) as floor,  # type: ignore[arg-type]  # as good as a fake
    ):
        yield floor


async def asked(floor: Floor, work: Callable[..., object], *args: object) -> Counter[str]:
    """The requests of some work, those that nobody waits for included."""
    requests: Counter[str] = floor.fs.requests
    requests.clear()
    await floor.do(work, *args)
    opened = requests["open"] + requests["create"]
    await floor.until(lambda: requests["release"] == opened)
    del requests["statfs"]  # by which that was waited for
    return +requests


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", source, target], check=True)


async def test_a_tree_that_is_copied_in(base: Path) -> None:
    """Ten requests a file: one that finds its name free; one that makes it; one for `security.capability`, before its first byte; its bytes; the
    times that `cp` gives it; the access list that its mode is; the ctime that the kernel gives for that; two that close it; and one for the
    directory, which the kernel asks for anew whenever a name was added. One more where the clock has ticked between making it and its first byte.
    """
    source = base / "source"
    for number in range(DIRECTORIES):
        (source / str(number)).mkdir(parents=True)
        for n in range(FILES):
            (source / str(number) / str(n)).write_bytes(b"x" * (n + 1))
    async with counted(base) as floor:
        requests = await asked(floor, copy, source, floor.directory / "copy")
        files = DIRECTORIES * FILES
        assert {name: requests[name] for name in ("create", "write", "flush", "release", "open")} == {
            "create": files, "write": files, "flush": files, "release": files, "open": 0,
        }  # fmt: skip
        made = DIRECTORIES + 1
        assert requests["mkdir"] == made
        assert files <= requests["lookup"] <= files + 3 * made
        assert files <= requests["getattr"] <= files + 4 * made
        assert requests["setattr"] <= 3 * (files + made)
        assert requests["getxattr"] <= files + made
        assert requests["setxattr"] <= files + made
        assert requests["listxattr"] == requests["opendir"] == requests["readdir"] == 0
        assert requests.total() <= 11 * files + 16 * made

        def look() -> int:
            return sum(os.lstat(os.path.join(here, name)).st_size for here, _, names in os.walk(floor.directory / "copy") for name in names)

        requests = await asked(floor, look)
        assert requests["lookup"] == 0, "what a listing tells is not asked for again"
        assert requests["opendir"] == requests["releasedir"] == made
        assert requests["readdir"] <= 3 * made
        assert requests["getattr"] <= files + made, "the number of blocks changes as bytes are stored"
        assert not await asked(floor, look) - Counter({"opendir": made, "readdir": 3 * made, "releasedir": made, "getattr": files + made})


async def test_small_operations(base: Path) -> None:
    async with counted(base) as floor:
        top = floor.directory / "d"
        await floor.do(os.mkdir, top)

        def make() -> None:
            for n in range(FILES):
                os.close(os.open(top / str(n), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        def rename() -> None:
            for n in range(FILES):
                os.rename(top / str(n), top / f"{n}.renamed")

        def remove() -> None:
            for n in range(FILES):
                os.unlink(top / f"{n}.renamed")

        names = {"lookup": FILES, "getattr": FILES}
        assert not await asked(floor, make) - Counter({**names, "create": FILES, "flush": FILES, "release": FILES})
        assert not await asked(floor, rename) - Counter({**names, "rename": FILES, "setattr": FILES}), "the kernel tells the ctime that it gives"
        assert not await asked(floor, remove) - Counter({"unlink": FILES, "getattr": FILES, "setattr": FILES})


async def test_asking_again_asks_nobody(base: Path) -> None:
    """The kernel keeps what it was told, also that a name is missing."""
    async with counted(base) as floor:
        path = floor.directory / "f"
        await floor.do(path.write_bytes, b"content")

        def look() -> None:
            for _ in range(FILES):
                assert stat.S_ISREG(os.stat(path, follow_symlinks=False).st_mode)
                assert not os.path.lexists(floor.directory / "missing")

        assert (await asked(floor, look)).total() <= 3
        assert not await asked(floor, look)
