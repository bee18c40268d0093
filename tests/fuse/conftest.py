"""Fixtures for tests on real mounts. With `BACKUPFS_TEST_NATIVE=1` tests that only need a directory get one on the
disk: what they say of a file system must be true of ext4 too.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests import mounted
from tests.mounted import Repository, workspace

NATIVE: Final = os.environ.get("BACKUPFS_TEST_NATIVE") == "1"
_HERE: Final = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs FUSE; what needs root says so itself."""
    mark_mount_tests(items, _HERE)


def mark_mount_tests(items: list[pytest.Item], below: Path) -> None:
    """The tests below a directory need FUSE, and root if they are marked so: without it they are skipped."""
    no_fuse = pytest.mark.skip(reason="/dev/fuse cannot be opened here")
    no_root = pytest.mark.skip(reason="needs root")
    for item in items:
        if below not in item.path.parents:
            continue
        item.add_marker(pytest.mark.fuse)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            item.add_marker(no_fuse)
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(no_root)


@pytest.fixture
def base() -> Iterator[Path]:
    """An empty directory that every user can reach."""
    with workspace() as place:
        yield place


@pytest.fixture
def mounted_repository(base: Path) -> Iterator[Repository]:
    """A new repository, mounted."""
    with mounted.repository(base / "r") as made:
        yield made


@pytest.fixture
def make_repository(base: Path) -> Iterator[Callable[..., Repository]]:
    """Makes repositories, each below a directory of its own: `make(*mount options, mounted=..., init=...)`."""
    with ExitStack() as stack:
        names = (f"r{n}" for n in range(100))

        def make(*options: str, **more: object) -> Repository:
            return stack.enter_context(mounted.repository(base / next(names), *options, **more))  # type: ignore[arg-type]

        yield make


@contextmanager
def on_shared_mount() -> Iterator[Path]:
    """A mount for many tests, open to all users (if root makes it), or a directory on the disk instead."""
    with workspace() as place:
        if NATIVE:
            (place / "native").mkdir()
            yield place / "native"
            return
        options = ["--allow-other"] if os.geteuid() == 0 else []
        with mounted.repository(place / "r", *options) as made:
            yield made.directory


@contextmanager
def place_on(mount: Path, name: str) -> Iterator[Path]:
    """An empty directory there, for as long as one test runs."""
    made = mount / re.sub("[^a-zA-Z0-9_.-]", "_", name)[:200]
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[Path]:
    """One mount for a whole module: each test has a directory on it."""
    with on_shared_mount() as directory:
        yield directory


@pytest.fixture
def place(shared_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the shared mount."""
    with place_on(shared_mount, request.node.name) as made:
        yield made
