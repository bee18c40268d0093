"""Every file operation that durability depends on, each with its sync, handed in.

`SystemFiles` is the kernel's; tests put a disk there that loses, tears and reorders whatever was not synced. All
functions block and are called from worker threads. Errors of the operating system come out as `StoreError`
(`StoreFullError` for no space or quota).
"""

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NewType, Protocol

from backupfs.errors import LockedError, MissingObjectError, StoreError, StoreFullError

Handle = NewType("Handle", int)
"""An open file of a `Files`."""


class Files(Protocol):
    """Files by path. Names in a directory are durable after `sync_directory`, contents after `sync`."""

    def create(self, path: Path) -> Handle:
        """A new empty file, open for reading and writing; StoreError when it exists."""
        ...

    def open(self, path: Path) -> Handle:
        """An existing file, open for reading. MissingObjectError when there is none."""
        ...

    def reopen(self, path: Path) -> Handle:
        """An existing file, open for reading and writing. MissingObjectError when there is none."""
        ...

    def close(self, handle: Handle) -> None:
        """Forget a handle; makes nothing durable."""
        ...

    def write_at(self, handle: Handle, offset: int, parts: Sequence[bytes]) -> None:
        """Write all parts, one after another, from `offset` on. Not durable before `sync`."""
        ...

    def read_at(self, handle: Handle, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` from `offset`: fewer only at the end of the file."""
        ...

    def size(self, handle: Handle) -> int:
        """Length of an open file in bytes."""
        ...

    def sync(self, handle: Handle) -> None:
        """`fdatasync`: contents and length survive a power cut. After an error nothing is known of what was written
        since the last one.
        """
        ...

    def sync_directory(self, path: Path) -> None:
        """The names in this directory survive a power cut."""
        ...

    def rename(self, old: Path, new: Path) -> None:
        """Give a file another name, replacing what has that name."""
        ...

    def unlink(self, path: Path) -> None:
        """Remove a file; MissingObjectError when there is none."""
        ...

    def make_directory(self, path: Path) -> None:
        """Make a directory (mode 0700) if it is not there; the parent must be."""
        ...

    def list(self, path: Path) -> list[str]:
        """Names in a directory, sorted; empty when it does not exist."""
        ...

    def exists(self, path: Path) -> bool:
        """Whether the path leads to anything; StoreError when that cannot be told."""
        ...

    def lock(self, path: Path) -> Handle:
        """Take the writer lock on this file (made if need be), or LockedError. The kernel lets go of it when the
        process dies.
        """
        ...

    def allocate(self, path: Path, size_bytes: int) -> None:
        """A file of this size whose blocks are taken now. StoreFullError leaves nothing behind."""
        ...

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """(free, total) bytes of the file system that holds `path`, as an ordinary user may use them."""
        ...


@contextmanager
def _translated(what: str, where: Path | Handle) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        path = where if isinstance(where, Path) else _path_of(where)
        raise _error(what, path, error) from error


def _error(what: str, path: Path, error: OSError) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(f"{what} {path}: it is not there", path=str(path))
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(f"{what} {path}: no space is left there", path=str(path))
    return StoreError(f"{what} {path}: {error.strerror}", path=str(path), errno=error.errno)


def _path_of(handle: Handle) -> Path:
    """For people: a number says nothing to them."""
    try:
        return Path(os.readlink(f"/proc/self/fd/{handle}"))
    except OSError:
        return Path(f"descriptor {handle}")


class SystemFiles:
    """The operating system's files."""

    def create(self, path: Path) -> Handle:
        """See `Files`."""
        with _translated("create", path):
            return Handle(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))

    def open(self, path: Path) -> Handle:
        """See `Files`."""
        with _translated("open", path):
            return Handle(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))

    def reopen(self, path: Path) -> Handle:
        """See `Files`."""
        with _translated("open", path):
            return Handle(os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW))

    def close(self, handle: Handle) -> None:
        """See `Files`."""
        with _translated("close", handle):
            os.close(handle)

    def write_at(self, handle: Handle, offset: int, parts: Sequence[bytes]) -> None:
        """See `Files`."""
        with _translated("write", handle):
            at = 0
            views = [memoryview(part) for part in parts if part]
            while at < len(views):
                written = os.pwritev(handle, views[at : at + 512], offset)
                offset += written
                while at < len(views) and written >= len(views[at]):
                    written -= len(views[at])
                    at += 1
                if written:
                    views[at] = views[at][written:]

    def read_at(self, handle: Handle, offset: int, size_bytes: int) -> bytes:
        """See `Files`."""
        with _translated("read", handle):
            data = os.pread(handle, size_bytes, offset)
            while 0 < len(data) < size_bytes:
                more = os.pread(handle, size_bytes - len(data), offset + len(data))
                if not more:
                    break
                data += more
            return data

    def size(self, handle: Handle) -> int:
        """See `Files`."""
        with _translated("stat", handle):
            return os.fstat(handle).st_size

    def sync(self, handle: Handle) -> None:
        """See `Files`."""
        with _translated("sync", handle):
            os.fdatasync(handle)

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""
        with _translated("sync", path):
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def rename(self, old: Path, new: Path) -> None:
        """See `Files`."""
        with _translated("rename", old):
            os.rename(old, new)

    def unlink(self, path: Path) -> None:
        """See `Files`."""
        with _translated("unlink", path):
            os.unlink(path)

    def make_directory(self, path: Path) -> None:
        """See `Files`."""
        with _translated("make directory", path):
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not path.is_dir():
                    raise

    def list(self, path: Path) -> list[str]:
        """See `Files`."""
        with _translated("list", path):
            try:
                return sorted(os.listdir(path))
            except FileNotFoundError:
                return []

    def exists(self, path: Path) -> bool:
        """See `Files`."""
        with _translated("look for", path):
            try:
                os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                return False
            return True

    def lock(self, path: Path) -> Handle:
        """See `Files`."""
        with _translated("lock", path):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                raise LockedError(
                    f"{path.parent} is in use by another backupfs process; unmount it there first (`backupfs umount DIR`)",
                    path=str(path),
                ) from None
            except OSError:
                os.close(handle)
                raise
            return Handle(handle)

    def allocate(self, path: Path, size_bytes: int) -> None:
        """See `Files`."""
        handle = self.create(path)
        try:
            with _translated("reserve space in", path):
                os.posix_fallocate(handle, 0, size_bytes)
        except StoreError:
            os.unlink(path)
            raise
        finally:
            os.close(handle)

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """See `Files`."""
        with _translated("statvfs", path):
            facts = os.statvfs(path)
            return facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
