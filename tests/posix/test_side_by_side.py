"""The same random calls on ext4 and on a mount, side by side: results, errors, what stands there and the order of times are the same after each."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis.errors import Flaky

from tests.mounted import workspace
from tests.posix.grounds import SMALL, DirectoryGround, compare_recent, ext4, mount
from tests.posix.machine import STEPS, Counts, Difference, run_sequences
from tests.posix.side import Side

pytestmark = pytest.mark.root

PARTS = 4
SEQUENCES = 200
CALLS = 35
"""Of the 53 that there are, each part makes at least so many that succeed."""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_mount_behaves_as_ext4(part: int, seed: int, scale: float, request: pytest.FixtureRequest) -> None:
    """Half of it with limits at which everything fills up soon. `--seed` and `--hypothesis-seed` give other sequences, `--scale` more;
    `python -m tests.posix.side_by_side` runs for as long as wanted.
    """
    given = request.config.getoption("--hypothesis-seed", None)
    first_seed = seed if given in {None, "random"} else int(str(given))
    sequences = max(1, round(SEQUENCES * scale / PARTS))
    counts = Counts()
    with workspace() as place, ext4(place) as base, mount(place, SMALL if part % 2 else {}) as ground:
        run_sequences(base, ground, counts, first_seed=first_seed * PARTS + part, sequences=sequences)
        ground.losing_index()
        counts.snapshots += compare_recent(ground.recent)
    print(counts.shown())
    assert counts.steps >= sequences * STEPS
    assert counts.snapshots >= 2 * sequences
    assert counts.remounts >= sequences
    if sequences >= SEQUENCES // PARTS:
        succeeded = [call for call, (done, _) in counts.calls.items() if done]
        assert len(succeeded) >= CALLS, f"calls that never succeed compare errors only: {sorted(counts.calls.keys() - succeeded)}"


# --- that a difference is found ------------------------------------------------------------------------------------


class Forgetful(Side):
    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), os.stat(self.at(path)).st_mode & 0o7777)


class Short(Side):
    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        super().pwrite(slot, data[:-1], offset)
        return len(data)


class Strange(Side):
    def rmdir(self, path: bytes) -> None:
        try:
            super().rmdir(path)
        except OSError as error:
            raise OSError(errno.EBUSY, "always busy") from error


class Copying(Side):
    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        super().link(old, new, follow)
        os.unlink(self.at(new))
        shutil.copy2(self.at(old), self.at(new), follow_symlinks=follow)


class Rounding(Side):
    def utimens(self, path: bytes, atime: Any, mtime: Any, follow: bool) -> None:
        super().utimens(path, atime // 100 * 100 if isinstance(atime, int) else atime, mtime, follow)


class Timeless(Side):
    def truncate(self, path: bytes, size: int) -> None:
        before = os.stat(self.at(path))
        super().truncate(path, size)
        os.utime(self.at(path), ns=(before.st_atime_ns, before.st_mtime_ns))


class Touching(Side):
    def readlink(self, path: bytes) -> bytes:
        target = super().readlink(path)
        os.utime(self.at(path), follow_symlinks=False)
        return target


class Skipping(Side):
    def readdir(self, key: int, to_the_end: bool) -> str:
        answer = super().readdir(key, to_the_end)
        stream = self.streams[key]
        if not answer and to_the_end and stream.read:
            stream.read.pop()
            return "; ".join(stream.faults(ended=True))
        return answer


class Losing(Side):
    def setxattr(self, path: bytes, name: str, value: bytes, flags: int, follow: bool) -> None:
        super().setxattr(path, name, value[:1], flags, follow)


@contextmanager
def _directories() -> Iterator[tuple[Path, DirectoryGround]]:
    with workspace() as place, ext4(place) as base:
        sides = base / "expected", base / "found", base / "copies"
        for directory in sides:
            directory.mkdir()
        yield sides[0], DirectoryGround(sides[1], sides[2])


@pytest.mark.parametrize("found", [Forgetful, Short, Strange, Copying, Rounding, Timeless, Touching, Skipping, Losing])
def test_a_side_that_is_wrong_is_found(found: type[Side], seed: int) -> None:
    # Whether a wrong time shows depends on the kernel's tick: what Hypothesis cannot repeat for that is no answer, and the next seed is asked.
    with _directories() as (base, ground), pytest.raises(Difference):
        for other in range(5):
            try:
                run_sequences(base, ground, Counts(), first_seed=seed + other, sequences=200, found=found, shrink=False)
            except Flaky:
                continue
            break


class ChangingSnapshots(DirectoryGround):
    """Its snapshots get something more when it is mounted anew."""

    def remount(self) -> None:
        for kept in self.recent:
            (kept.path / "t" / "more").touch()


class ChangingMount(DirectoryGround):
    """It loses a nanosecond when it is mounted anew."""

    def remount(self) -> None:
        for directory in self.root.glob("*/t"):
            facts = directory.stat()
            os.utime(directory, ns=(facts.st_atime_ns, facts.st_mtime_ns - 1))


@pytest.mark.parametrize(("ground", "error"), [(ChangingSnapshots, AssertionError), (ChangingMount, Difference)])
def test_what_changes_without_a_call_is_found(ground: type[DirectoryGround], error: type[Exception], seed: int) -> None:
    with _directories() as (base, plain), pytest.raises(error):
        run_sequences(base, ground(plain.root, plain.copies), Counts(), first_seed=seed, sequences=20, shrink=False)


def test_two_directories_of_one_file_system_never_differ(seed: int) -> None:
    counts = Counts()
    with _directories() as (base, ground):
        run_sequences(base, ground, counts, first_seed=seed, sequences=10)
    assert counts.steps >= 10 * STEPS
