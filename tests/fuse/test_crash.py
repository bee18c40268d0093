"""kill -9 at random instants: after `mount` on the same directory, and nothing else, what fsync acknowledged is there.

`BACKUPFS_TEST_KILLS=30` kills so many times; each instant is drawn from its number, so `-k 'kill[17]'` repeats it.
"""

import os
import random
import select
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fuse.promises import Promises, Writer, content
from tests.mounted import Repository

pytestmark = pytest.mark.crash

KILLS: Final = int(os.environ.get("BACKUPFS_TEST_KILLS", "3"))


def a_moment(rng: random.Random) -> None:
    """Somewhere within the next requests."""
    select.select([], [], [], rng.random() * 0.03)


@pytest.mark.parametrize("kill", range(KILLS))
def test_what_fsync_acknowledged_survives_a_kill(mounted_repository: Repository, kill: int) -> None:
    rng = random.Random(kill)
    root = mounted_repository.directory / "tree"
    root.mkdir()
    writer = Writer(root, kill)
    try:
        writer.listen_for(rng.randrange(5, 400))
        a_moment(rng)
        mounted_repository.kill()
        writer.rest()
    finally:
        writer.stop()
    began = time.monotonic()
    mounted_repository.mount()
    print(f"kill {kill}: mounted again after {time.monotonic() - began:.2f} s")
    writer.promises.hold_in(root)
    writer.promises.hold_in(mounted_repository.snapshot() / "tree")
    mounted_repository.command("check", mounted_repository.directory, "--read-data")


def test_killed_again_and_again(mounted_repository: Repository) -> None:
    """Each time the process is killed some moments after it came up, at last while it recovers."""
    rng = random.Random(4711)
    promises: list[tuple[Path, Promises]] = []
    for life in range(3):
        root = mounted_repository.directory / f"life-{life}"
        root.mkdir()
        writer = Writer(root, 1000 + life)
        try:
            writer.listen_for(rng.randrange(20, 120))
            mounted_repository.kill()
            writer.rest()
        finally:
            writer.stop()
        promises.append((root, writer.promises))
        mounted_repository.mount()
        if life == 1:
            mounted_repository.kill()
            mounted_repository.mount()
        for place, told in promises:
            told.hold_in(place)
    mounted_repository.remount()
    for place, told in promises:
        told.hold_in(place)


def test_snapshots_survive_a_kill_whole_or_not_at_all(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    taken: list[Any] = []
    for n in range(3):
        (root / "file").write_bytes(content("snapshot", n, 500_000))
        taken.append(mounted_repository.snapshot().name)
    (root / "file").write_bytes(content("snapshot", 3, 500_000))
    mounted_repository.kill()
    mounted_repository.mount()
    assert mounted_repository.snapshot_names() == taken
    for n, name in enumerate(taken):
        assert (root / ".snapshots" / name / "file").read_bytes() == content("snapshot", n, 500_000)


def test_files_unlinked_while_open_are_gone_after_a_kill(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    descriptor = os.open(root / "file", os.O_CREAT | os.O_RDWR, 0o644)
    os.write(descriptor, os.urandom(2 << 20))
    os.fsync(descriptor)
    os.unlink(root / "file")
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    mounted_repository.kill()
    with suppress(OSError):  # nobody answers
        os.close(descriptor)
    mounted_repository.mount()
    assert os.listdir(root) == [".snapshots"]
    mounted_repository.command("check", root, "--read-data")
