"""Objects as files below a directory. A name appears only when its bytes are durable: written aside, synced, renamed,
directory synced.
"""

from collections.abc import Iterator
from pathlib import Path

from backupfs.errors import StoreError
from backupfs.stores.files import Files

_ASIDE = ".partial"


class LocalStore:
    """A `Store` in a directory of the local machine."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root = root
        self._files = files

    def put(self, name: str, data: bytes) -> None:
        """See `Store`."""
        path = self._path(name)
        if self._files.exists(path):
            raise StoreError(f"{path} exists already", path=str(path))
        self._make_parents(path)
        aside = path.with_name(path.name + _ASIDE)
        if self._files.exists(aside):
            self._files.unlink(aside)
        handle = self._files.create(aside)
        try:
            self._files.write_at(handle, 0, [data])
            self._files.sync(handle)
        finally:
            self._files.close(handle)
        self._files.rename(aside, path)
        self._files.sync_directory(path.parent)

    def put_file(self, name: str, path: Path) -> None:
        """See `Store`."""
        target = self._path(name)
        self._make_parents(target)
        self._files.rename(path, target)
        self._files.sync_directory(target.parent)

    def get(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """See `Store`."""
        handle = self._files.open(self._path(name))
        try:
            wanted = self._files.size(handle) - offset if size_bytes is None else size_bytes
            return self._files.read_at(handle, offset, max(wanted, 0))
        finally:
            self._files.close(handle)

    def size(self, name: str) -> int:
        """See `Store`."""
        handle = self._files.open(self._path(name))
        try:
            return self._files.size(handle)
        finally:
            self._files.close(handle)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Store`."""
        if prefix == "packs":
            for shard in self._files.list(self.root / prefix):
                yield from (f"{prefix}/{shard}/{name}" for name in self._files.list(self.root / prefix / shard) if _whole(name))
        else:
            yield from (f"{prefix}/{name}" for name in self._files.list(self._path(prefix)) if _whole(name))

    def delete(self, name: str) -> None:
        """See `Store`."""
        path = self._path(name)
        self._files.unlink(path)
        self._files.sync_directory(path.parent)

    def sweep(self, prefix: str) -> None:
        """See `Store`."""
        folder = self._path(prefix)
        for name in self._files.list(folder):
            if not _whole(name):
                self._files.unlink(folder / name)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise StoreError(f"{name!r} is no name of an object")
        return self.root.joinpath(*parts)

    def _make_parents(self, path: Path) -> None:
        missing = []
        parent = path.parent
        while parent != self.root and not self._files.exists(parent):
            missing.append(parent)
            parent = parent.parent
        for directory in reversed(missing):
            self._files.make_directory(directory)
            self._files.sync_directory(directory.parent)


def _whole(name: str) -> bool:
    return not name.endswith(_ASIDE)
