"""Fixtures for the conformance suite: one mount for all of it, and somebody of each kind who makes calls on it.

With `BACKUPFS_TEST_NATIVE=1` the same rules are asked of the local disk, where each must hold too.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fuse.conftest import mark_mount_tests, on_shared_mount, place_on
from tests.posix.actors import Actor

ALICE: Final = 65531
BOB: Final = 65532
CAROL: Final = 65533
TEAM: Final = 65530
"""A group that alice and bob are in by supplement; nobody's own."""

Identity = tuple[int, int, tuple[int, ...]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs FUSE; what needs other identities than one's own says so by asking for them."""
    mark_mount_tests(items, Path(__file__).parent)


@pytest.fixture(scope="session")
def posix_mount() -> Iterator[Path]:
    """The one mount, open to all users if root makes it."""
    with on_shared_mount() as directory:
        yield directory


@pytest.fixture
def place(posix_mount: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the mount, for one test."""
    with place_on(posix_mount, request.node.name) as made:
        yield made


@pytest.fixture(scope="session")
def cast() -> Iterator[dict[Identity, Actor]]:
    """Everybody who has appeared so far."""
    known: dict[Identity, Actor] = {}
    yield known
    for actor in known.values():
        actor.close()


@pytest.fixture
def actor(cast: dict[Identity, Actor]) -> Iterator[Callable[..., Actor]]:
    """Calls somebody on stage: `actor(uid, gid, (group, ...))`; with nothing open and in no directory when the test ends."""
    used: list[Actor] = []

    def enter(uid: int, gid: int, groups: tuple[int, ...] = ()) -> Actor:
        if os.geteuid() != 0 and uid != os.geteuid():
            pytest.skip("needs root, to be somebody else")
        identity = uid, gid, groups
        if identity not in cast:
            cast[identity] = Actor(uid, gid, groups)
        used.append(cast[identity])
        return cast[identity]

    yield enter
    for each in used:
        each.reset()


@pytest.fixture
def me(actor: Callable[..., Actor]) -> Actor:
    """Whoever runs the tests: root, as a rule."""
    return actor(os.geteuid(), os.getegid())


@pytest.fixture
def root(actor: Callable[..., Actor]) -> Actor:
    return actor(0, 0)


@pytest.fixture
def alice(actor: Callable[..., Actor]) -> Actor:
    """A user with a group of her own, and a member of TEAM."""
    return actor(ALICE, ALICE, (TEAM,))


@pytest.fixture
def bob(actor: Callable[..., Actor]) -> Actor:
    """Another one, and a member of TEAM too."""
    return actor(BOB, BOB, (TEAM,))


@pytest.fixture
def carol(actor: Callable[..., Actor]) -> Actor:
    """A third, who has nothing in common with anybody."""
    return actor(CAROL, CAROL)
