"""Objects as files below a directory. A name appears only when its bytes are durable: written aside, synced, renamed,
directory synced.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from backupfs.errors import StoreError
from backupfs.format.layout import is_object_name
from backupfs.stores.files import Files

_ASIDE = ".partial"
_SHARD: Final = re.compile("[0-9a-f]{2}", re.ASCII)


class LocalStore:
    """A `Store` in a directory of the local machine."""

    def __init__(self, root: Path, files: Files) -> None:
        self.root = root
        self._files = files
        self._making = threading.Lock()
        self._settled: set[Path] = set()
        """Directories in which the names of all directories are durable."""

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
            try:
                self._files.write_at(handle, 0, [data])
                self._files.sync(handle)
            finally:
                self._files.close(handle)
            self._files.rename(aside, path)
        except StoreError:
            # On a full disk others need its room.
            with suppress(StoreError):
                self._files.unlink(aside)
            raise
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
        folders = [prefix]
        if prefix == "packs":
            folders = [f"{prefix}/{shard}" for shard in self._files.list(self.root / prefix) if _SHARD.fullmatch(shard)]
        for folder in folders:
            names = (f"{folder}/{name}" for name in self._files.list(self._path(folder)))
            yield from filter(is_object_name, names)

    def delete(self, name: str) -> None:
        """See `Store`."""
        path = self._path(name)
        self._files.unlink(path)
        self._files.sync_directory(path.parent)

    def sweep(self, prefix: str) -> None:
        """See `Store`."""
        folder = self._path(prefix)
        for name in self._files.list(folder):
            if name.endswith(_ASIDE):
                self._files.unlink(folder / name)

    def _path(self, name: str) -> Path:
        parts = name.split("/")
        if not name or any(part in ("", ".", "..") for part in parts):
            raise StoreError(f"{name!r} is no name of an object")
        return self.root.joinpath(*parts)

    def _make_parents(self, path: Path) -> None:
        """Have a durable directory for it. One that is there may be what a process made that died, or failed, before its name was synced."""
        with self._making:
            for relative in reversed(path.relative_to(self.root).parents[:-1]):
                directory = self.root / relative
                above = directory.parent
                if not self._files.exists(directory):
                    self._settled.discard(above)
                    self._files.make_directory(directory)
                if above not in self._settled:
                    self._files.sync_directory(above)
                    self._settled.add(above)
