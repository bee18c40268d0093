"""Errors of the operating system, injected where the program meets it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from backupfs.stores.files import Files, Handle
from tests.crash.disk import SimulatedDisk, failure

T = TypeVar("T")
Verdict = Callable[[str, int], int | None]
"""(operation, number of the call) -> the errno it fails with, or None."""


class FaultyFiles:
    """A disk whose calls fail when `verdict(operation, number)` gives an errno. Numbers count all calls from 1, in
    `calls`.

    A failing write has written its first half. A failing sync is `SimulatedDisk.fail_sync`. All others have done
    nothing.
    """

    def __init__(self, inner: SimulatedDisk, verdict: Verdict) -> None:
        self.inner = inner
        self.calls: list[str] = []
        self._verdict = verdict

    def create(self, path: Path) -> Handle:
        """See `Files`."""
        return self._call("create", path, lambda: self.inner.create(path))

    def open(self, path: Path) -> Handle:
        """See `Files`."""
        return self._call("open", path, lambda: self.inner.open(path))

    def reopen(self, path: Path) -> Handle:
        """See `Files`."""
        return self._call("reopen", path, lambda: self.inner.reopen(path))

    def close(self, handle: Handle) -> None:
        """See `Files`. Never fails: what it would report, `sync` has."""
        self.inner.close(handle)

    def write_at(self, handle: Handle, offset: int, parts: Sequence[bytes]) -> None:
        """See `Files`."""
        code = self._counted("write_at")
        if code is None:
            self.inner.write_at(handle, offset, parts)
            return
        data = b"".join(parts)
        self.inner.write_at(handle, offset, [data[: len(data) // 2]])
        raise failure(code, "write", handle)

    def read_at(self, handle: Handle, offset: int, size_bytes: int) -> bytes:
        """See `Files`."""
        return self._call("read_at", handle, lambda: self.inner.read_at(handle, offset, size_bytes))

    def size(self, handle: Handle) -> int:
        """See `Files`."""
        return self._call("size", handle, lambda: self.inner.size(handle))

    def sync(self, handle: Handle) -> None:
        """See `Files`."""
        if self._counted("sync") is None:
            self.inner.sync(handle)
        else:
            self.inner.fail_sync(handle)

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""
        self._call("sync_directory", path, lambda: self.inner.sync_directory(path))

    def rename(self, old: Path, new: Path) -> None:
        """See `Files`."""
        self._call("rename", old, lambda: self.inner.rename(old, new))

    def unlink(self, path: Path) -> None:
        """See `Files`."""
        self._call("unlink", path, lambda: self.inner.unlink(path))

    def make_directory(self, path: Path) -> None:
        """See `Files`."""
        self._call("make_directory", path, lambda: self.inner.make_directory(path))

    def list(self, path: Path) -> list[str]:
        """See `Files`."""
        return self._call("list", path, lambda: self.inner.list(path))

    def exists(self, path: Path) -> bool:
        """See `Files`."""
        return self._call("exists", path, lambda: self.inner.exists(path))

    def lock(self, path: Path) -> Handle:
        """See `Files`."""
        return self._call("lock", path, lambda: self.inner.lock(path))

    def allocate(self, path: Path, size_bytes: int) -> None:
        """See `Files`."""
        self._call("allocate", path, lambda: self.inner.allocate(path, size_bytes))

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """See `Files`."""
        return self.inner.free_bytes(path)

    def _counted(self, operation: str) -> int | None:
        self.calls.append(operation)
        return self._verdict(operation, len(self.calls))

    def _call(self, operation: str, which: object, work: Callable[[], T]) -> T:
        code = self._counted(operation)
        if code is not None:
            raise failure(code, operation, which)
        return work()


def _is_files(disk: SimulatedDisk, faulty: FaultyFiles) -> tuple[Files, Files]:
    """For the type checker: both are `Files`."""
    return disk, faulty
