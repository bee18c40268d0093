"""How a test says that backupfs is known to differ: such tests are named `test_unlike_ext4_...`, and docs/posix.md gives the reason of each."""

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from tests.fuse.conftest import NATIVE

T = TypeVar("T")
OLD_NS: Final = 1_218_364_662_839_476_861
_COARSE: Final = 5  # CLOCK_REALTIME_COARSE, from which file systems take their time stamps; `time` has no name for it


def here_or_on_ext4(here: T, on_ext4: T) -> T:
    """What is expected: the one on a mount of backupfs, the other on the local disk."""
    return on_ext4 if NATIVE else here


def outcome(call: Callable[..., object], *arguments: object, **named: object) -> object:
    """What a call gives, or the name of its error, as in "EPERM"."""
    try:
        return call(*arguments, **named)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def times_moved(path: Path | int, change: Callable[[], object], *, access_ns: int = 2**32 * 10**9) -> str:
    """Which times a change moves: letters of "amc". The change is made when the clock for time stamps has moved on from the file's last change.

    The time of last access begins in the future, so that a mount with `relatime`, as the local disk may be, keeps it as one with `noatime` does.
    """
    follows = isinstance(path, int)  # a descriptor leads nowhere else, and may not be told not to
    os.utime(path, ns=(access_ns, OLD_NS), follow_symlinks=follows)
    before = os.stat(path, follow_symlinks=follows)
    while time.clock_gettime_ns(_COARSE) <= before.st_ctime_ns:
        continue
    change()
    after = os.stat(path, follow_symlinks=follows)
    assert after.st_ctime_ns >= before.st_ctime_ns
    pairs = {"a": "st_atime_ns", "m": "st_mtime_ns", "c": "st_ctime_ns"}
    return "".join(letter for letter, field in pairs.items() if getattr(after, field) != getattr(before, field))
