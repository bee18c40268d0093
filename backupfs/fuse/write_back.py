"""Bringing in what the kernel still holds of one file: its dirty pages, mapped ones included, arrive as requests.

Everything here blocks until those requests are answered, so it runs in a thread while the loop serves, and while nothing that they need is
held back.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pyfuse3

_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


def sync_through_mount(mountpoint: Path, path: bytes | None, ino: int) -> None:
    """Have the kernel write back the live file `ino`, which `path` (relative to the root of the mount) led to a moment ago.

    Where the file cannot be opened (an ordinary user's mode 000, a lease that somebody holds), and for one without a path, the kernel is told
    to drop its cache of the inode instead, which writes back first. FileNotFoundError, also when the path leads to another file by now: it was
    renamed or removed, or something is mounted over it, look for its path again. Other OSErrors are those of fsync(2).
    """
    try:
        if path is not None:
            _sync(mountpoint, path, ino)
            return
    except (PermissionError, BlockingIOError):
        pass
    try:
        pyfuse3.invalidate_inode(ino)
    except FileNotFoundError:  # the kernel knows no such inode (any more), so it holds nothing of it
        return


def _sync(mountpoint: Path, path: bytes, ino: int) -> None:
    with _found(mountpoint, path) as found:
        facts = os.fstat(found)
        if (facts.st_dev, facts.st_ino) != (os.stat(mountpoint).st_dev, ino):
            raise FileNotFoundError(errno.ENOENT, "another file has this name now", path)
        opened = os.open(f"/proc/self/fd/{found}", _READ)  # this very inode, whatever the name leads to meanwhile
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def _found(mountpoint: Path, path: bytes) -> Iterator[int]:
    """A descriptor of what the path leads to, for looking only. No symlink is followed: no component of a true path is one."""
    at = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *directories, last = path.split(b"/")
        for name in directories:
            below = os.open(name, _DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
        below = os.open(last, _LOOK, dir_fd=at)
        os.close(at)
        at = below
        yield at
    finally:
        os.close(at)
