"""What the kernel says of a file is so: everybody who is asked says the same, and what is said of files that are open, written and not yet stored
is what a kernel says that has forgotten them, what a mount says that is new, and what the disk says of a file that has been through the same.

Many short random histories of as many files, then all of them are looked at again; `--seed` replays, `--scale` makes more of them.
"""

import ctypes
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests import mounted
from tests.fuse.conftest import NATIVE
from tests.mounted import Repository, workspace
from tests.posix.test_fsx import drop_caches
from tests.posix.views import ALL, ELSEWHERE, IN_A_SNAPSHOT, Clock, History, View, differences, view

pytestmark = [pytest.mark.fuse, pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse cannot be opened here")]

HISTORIES: Final = 200
STEPS_MAX: Final = 9
_libc: Final = ctypes.CDLL(None, use_errno=True)


def write_back(directory: Path) -> None:
    """Everything of this file system that the kernel has not written yet, attributes too: what is dirty cannot be forgotten."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        assert _libc.syncfs(descriptor) == 0
    finally:
        os.close(descriptor)


def assert_still(seen: dict[str, tuple[History, View]], directory: Path, when: str, compared: Sequence[str] = ALL) -> None:
    wrong = []
    for name, (history, expected) in seen.items():
        if lines := differences(expected, view(directory / name), compared):
            wrong.append("\n  ".join([f"{name} after {', '.join(history.steps)}:", *lines]))
    assert not wrong, f"{when}, {len(wrong)} of {len(seen)} are seen differently:\n" + "\n".join(wrong[:10])


@pytest.fixture
def somewhere() -> Iterator[tuple[Path, Repository | None]]:
    """An empty directory, and the repository that is mounted there."""
    with workspace() as place:
        if NATIVE:
            yield place, None
            return
        with mounted.repository(place / "r", "--every", "off") as made:
            yield made.directory, made


def test_the_kernels_view_never_lies(somewhere: tuple[Path, Repository | None], tmp_path: Path, seed: int, scale: float) -> None:
    directory, repository = somewhere
    rng, clock, clock_of_disk = random.Random(seed), Clock(), Clock()
    seen: dict[str, tuple[History, View]] = {}
    with ExitStack() as still_open:
        for n in range(int(HISTORIES * scale)):
            name = f"h{n}"
            history = still_open.enter_context(closing(History(directory / name, f"{seed} {n}", clock, synced=n % 3 == 0)))
            steps = rng.randint(1, STEPS_MAX)
            history.run(steps)
            seen[name] = history, history.see()
            with closing(History(tmp_path / name, f"{seed} {n}", clock_of_disk, synced=False)) as same:
                same.run(steps)
                lines = differences(same.see(), seen[name][1], ELSEWHERE)
                assert not lines, "\n".join([f"unlike on the disk after {', '.join(history.steps)}:", *lines])
        assert_still(seen, directory, "with everything still open")
        past = repository.snapshot() if repository is not None else directory
        assert_still(seen, past, "in a snapshot that was taken meanwhile", IN_A_SNAPSHOT)
    assert_still(seen, directory, "with everything closed")
    write_back(directory)
    drop_caches()
    assert_still(seen, directory, "with a kernel that has forgotten it")
    if repository is not None:
        repository.remount("--every", "off")
        assert_still(seen, directory, "with a new mount")
        assert_still(seen, past, "in the snapshot", IN_A_SNAPSHOT)
