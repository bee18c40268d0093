"""Whoever calls: this thread takes another user's ids for one call and becomes root again.

Real and effective ids change, so that access(2) answers for that user too, and the kernel takes the capabilities away with them. It costs a few
microseconds, where a process per user costs two switches between processes, and an open descriptor can be used by any of them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Identity:
    """A user with a primary group and others."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return self.name


COMMON: Final = 2000
"""A group of both ordinary users."""
ROOT: Final = Identity("ROOT", 0, 0)
ALICE: Final = Identity("ALICE", 1001, 1001, (COMMON,))
BOB: Final = Identity("BOB", 1002, 1002, (COMMON,))
NOBODY: Final = Identity("NOBODY", 65534, 65534)
EVERYBODY: Final = (ROOT, ALICE, BOB, NOBODY)


@contextmanager
def acting_as(who: Identity, umask: int) -> Iterator[None]:
    """Everything within is done by `who`, with this umask; only root can do that. Not for two threads at once: the ids are those of the process."""
    before = os.umask(umask)
    try:
        if who.uid == os.geteuid():
            yield
            return
        groups = os.getgroups()
        os.setgroups(who.groups)
        os.setresgid(who.gid, who.gid, 0)
        os.setresuid(who.uid, who.uid, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups(groups)
    finally:
        os.umask(before)
