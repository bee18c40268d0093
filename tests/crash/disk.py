"""A disk in memory that writes down what is asked of it. What a power cut leaves of it: `power_cut`. Contents are
shared between disks and images until they are written to.
"""

import enum
import errno
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import backupfs
from backupfs.errors import LockedError, MissingObjectError, StoreError, StoreFullError
from backupfs.stores.files import Handle

ROOT: Final = 0
_PACKAGE: Final = os.path.dirname(os.path.abspath(backupfs.__file__))
_FIRST_HANDLE: Final = 1 << 20
"""No number that is a descriptor of this process by accident."""

NodeId = int
Content = bytes | bytearray
Entry = tuple[NodeId, str, NodeId | None]
"""(directory, name, what it leads to from now on, or None)."""


class Op(enum.Enum):
    """What was asked of the disk."""

    WRITE = "write"
    NAMES = "names"
    SYNC = "sync"
    SYNC_FAILED = "sync failed"
    SYNC_DIRECTORY = "sync_directory"


@dataclass(frozen=True, slots=True)
class Event:
    """One change or sync. `site` is the line of the program that asked: `stores/local.py:36`."""

    op: Op
    site: str
    what: str
    node: NodeId = ROOT
    offset: int = 0
    data: bytes = b""
    length: int = 0
    entries: tuple[Entry, ...] = ()
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """What lies on a disk without power. Never changed once made."""

    files: Mapping[NodeId, bytes]
    directories: Mapping[NodeId, Mapping[str, NodeId]]

    def fingerprint(self) -> int:
        """Equal for images that a program cannot tell apart."""
        found: list[tuple[str, int]] = []

        def visit(directory: NodeId, path: str) -> None:
            for name, node in sorted(self.directories[directory].items()):
                if node in self.directories:
                    found.append((f"{path}/{name}/", 0))
                    visit(node, f"{path}/{name}")
                else:
                    found.append((f"{path}/{name}", hash(self.files[node])))

        visit(ROOT, "")
        return hash(tuple(found))

    def listing(self) -> dict[str, int]:
        """Path and length of every file, for messages."""
        found: dict[str, int] = {}

        def visit(directory: NodeId, path: str) -> None:
            for name, node in sorted(self.directories[directory].items()):
                if node in self.directories:
                    visit(node, f"{path}/{name}")
                else:
                    found[f"{path}/{name}"] = len(self.files[node])

        visit(ROOT, "")
        return found


EMPTY: Final = Image({}, {ROOT: {}})


@dataclass(slots=True)
class _OpenFile:
    node: NodeId
    writable: bool


class SimulatedDisk:
    """`Files` in memory. `capacity_bytes` bounds the sum of all lengths."""

    def __init__(self, image: Image = EMPTY, capacity_bytes: int = 1 << 40) -> None:
        self.base = image
        self.log: list[Event] = []
        self._files: dict[NodeId, Content] = dict(image.files)
        self._directories: dict[NodeId, dict[str, NodeId]] = {n: dict(e) for n, e in image.directories.items()}
        self._next_node = max([ROOT, *image.files, *image.directories]) + 1
        self._open: dict[Handle, _OpenFile] = {}
        self._next_handle = _FIRST_HANDLE
        self._locks: dict[NodeId, Handle] = {}
        self._capacity_bytes = capacity_bytes
        self._used_bytes = sum(len(content) for content in image.files.values())
        self._mutex = threading.RLock()

    # --- Files ------------------------------------------------------------------------------------------------------

    def create(self, path: Path) -> Handle:
        """See `Files`."""
        with self._mutex:
            return self._opened(self._new_file(path), writable=True)

    def open(self, path: Path) -> Handle:
        """See `Files`."""
        with self._mutex:
            return self._opened(self._file_at(path), writable=False)

    def reopen(self, path: Path) -> Handle:
        """See `Files`."""
        with self._mutex:
            return self._opened(self._file_at(path), writable=True)

    def close(self, handle: Handle) -> None:
        """See `Files`."""
        with self._mutex:
            node = self._handle(handle).node
            del self._open[handle]
            if self._locks.get(node) == handle:
                del self._locks[node]
            self._forget_if_gone(node)

    def write_at(self, handle: Handle, offset: int, parts: Sequence[bytes]) -> None:
        """See `Files`. What fits is written before StoreFullError."""
        with self._mutex:
            opened = self._handle(handle)
            if not opened.writable:
                raise failure(errno.EBADF, "write", handle)
            data = b"".join(parts)
            length = len(self._files[opened.node])
            room = self._capacity_bytes - self._used_bytes
            fits = data[: max(0, length + room - offset)]
            if fits:
                self._write(opened.node, offset, fits)
            if len(fits) < len(data):
                raise failure(errno.ENOSPC, "write", handle)

    def read_at(self, handle: Handle, offset: int, size_bytes: int) -> bytes:
        """See `Files`."""
        with self._mutex:
            return bytes(self._files[self._handle(handle).node][offset : offset + size_bytes])

    def size(self, handle: Handle) -> int:
        """See `Files`."""
        with self._mutex:
            return len(self._files[self._handle(handle).node])

    def sync(self, handle: Handle) -> None:
        """See `Files`."""
        with self._mutex:
            self._note(Op.SYNC, f"handle {handle}", node=self._handle(handle).node)

    def sync_directory(self, path: Path) -> None:
        """See `Files`."""
        with self._mutex:
            self._note(Op.SYNC_DIRECTORY, str(path), node=self._directory_at(path))

    def rename(self, old: Path, new: Path) -> None:
        """See `Files`."""
        with self._mutex:
            old_parent, new_parent = self._directory_at(old.parent), self._directory_at(new.parent)
            node = self._directories[old_parent].get(old.name)
            if node is None:
                raise failure(errno.ENOENT, "rename", old)
            replaced = self._directories[new_parent].get(new.name)
            if replaced is not None and (replaced in self._directories or node in self._directories):
                raise failure(errno.EEXIST, "rename", new)
            if (old_parent, old.name) == (new_parent, new.name):
                return
            entries: tuple[Entry, ...] = ((old_parent, old.name, None), (new_parent, new.name, node))
            self._change_names(entries, f"rename {old} {new}")
            if replaced is not None:
                self._forget_if_gone(replaced)

    def unlink(self, path: Path) -> None:
        """See `Files`."""
        with self._mutex:
            node = self._file_at(path)
            self._change_names(((self._directory_at(path.parent), path.name, None),), f"unlink {path}")
            self._forget_if_gone(node)

    def make_directory(self, path: Path) -> None:
        """See `Files`."""
        with self._mutex:
            parent = self._directory_at(path.parent)
            existing = self._directories[parent].get(path.name)
            if existing in self._directories:
                return
            if existing is not None:
                raise failure(errno.EEXIST, "make directory", path)
            node = self._new_node()
            self._directories[node] = {}
            self._change_names(((parent, path.name, node),), f"mkdir {path}", is_directory=True)

    def list(self, path: Path) -> list[str]:
        """See `Files`."""
        with self._mutex:
            try:
                return sorted(self._directories[self._directory_at(path)])
            except MissingObjectError:
                return []

    def exists(self, path: Path) -> bool:
        """See `Files`."""
        with self._mutex:
            try:
                return path == path.parent or path.name in self._directories[self._directory_at(path.parent)]
            except StoreError:
                return False

    def lock(self, path: Path) -> Handle:
        """See `Files`."""
        with self._mutex:
            node = self._file_at(path) if self.exists(path) else self._new_file(path)
            if node in self._locks:
                raise LockedError(f"{path} is locked", path=str(path))
            handle = self._opened(node, writable=True)
            self._locks[node] = handle
            return handle

    def allocate(self, path: Path, size_bytes: int) -> None:
        """See `Files`."""
        with self._mutex:
            if self._capacity_bytes - self._used_bytes < size_bytes:
                raise failure(errno.ENOSPC, "reserve space in", path)
            node = self._new_file(path)
            self._files[node] = bytes(size_bytes)
            self._used_bytes += size_bytes
            self._note(Op.WRITE, f"allocate {path}", node=node, length=size_bytes)

    def free_bytes(self, path: Path) -> tuple[int, int]:
        """See `Files`."""
        with self._mutex:
            self._directory_at(path) if self._is_directory(path) else self._file_at(path)
            return self._capacity_bytes - self._used_bytes, self._capacity_bytes

    # --- faults and inspection --------------------------------------------------------------------------------------

    def fail_sync(self, handle: Handle) -> None:
        """A `sync` that answers EIO: what was not durable is from now on believed to be, and may be lost."""
        with self._mutex:
            self._note(Op.SYNC_FAILED, f"handle {handle}", node=self._handle(handle).node)
        raise failure(errno.EIO, "sync", handle)

    def damage(self, path: Path, offset: int, mask: int = 0xFF) -> None:
        """Flip bits of one byte, behind everybody's back."""
        with self._mutex:
            content = self._owned(self._file_at(path))
            content[offset] ^= mask

    def image(self) -> Image:
        """All of it as it is now, as after a clean shutdown."""
        with self._mutex:
            for node, content in self._files.items():
                self._files[node] = bytes(content)
            return reachable(self._files, self._directories)

    def set_capacity(self, capacity_bytes: int) -> None:
        """A disk that got larger or smaller."""
        self._capacity_bytes = capacity_bytes

    # --- the inside -------------------------------------------------------------------------------------------------

    def _note(
        self,
        op: Op,
        what: str,
        *,
        node: NodeId = ROOT,
        offset: int = 0,
        data: bytes = b"",
        length: int = 0,
        entries: tuple[Entry, ...] = (),
        is_directory: bool = False,
    ) -> None:
        self.log.append(Event(op, call_site(), what, node, offset, data, length, entries, is_directory))

    def _new_node(self) -> NodeId:
        node = self._next_node
        self._next_node += 1
        return node

    def _new_file(self, path: Path) -> NodeId:
        parent = self._directory_at(path.parent)
        if path.name in self._directories[parent]:
            raise failure(errno.EEXIST, "create", path)
        node = self._new_node()
        self._files[node] = b""
        self._change_names(((parent, path.name, node),), f"create {path}")
        return node

    def _change_names(self, entries: tuple[Entry, ...], what: str, *, is_directory: bool = False) -> None:
        for directory, name, node in entries:
            if node is None:
                del self._directories[directory][name]
            else:
                self._directories[directory][name] = node
        self._note(Op.NAMES, what, entries=entries, is_directory=is_directory)

    def _write(self, node: NodeId, offset: int, data: bytes) -> None:
        content = self._owned(node)
        grown = max(0, offset + len(data) - len(content))
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data
        self._used_bytes += grown
        self._note(Op.WRITE, f"write {offset}+{len(data)}", node=node, offset=offset, data=data, length=len(content))

    def _owned(self, node: NodeId) -> bytearray:
        content = self._files[node]
        if isinstance(content, bytes):
            content = self._files[node] = bytearray(content)
        return content

    def _opened(self, node: NodeId, *, writable: bool) -> Handle:
        handle = Handle(self._next_handle)
        self._next_handle += 1
        self._open[handle] = _OpenFile(node, writable)
        return handle

    def _handle(self, handle: Handle) -> _OpenFile:
        if handle not in self._open:
            raise failure(errno.EBADF, "use", handle)
        return self._open[handle]

    def _directory_at(self, path: Path) -> NodeId:
        node = ROOT
        for name in path.parts[1:]:
            found = self._directories[node].get(name)
            if found is None:
                raise failure(errno.ENOENT, "find", path)
            if found not in self._directories:
                raise failure(errno.ENOTDIR, "find", path)
            node = found
        return node

    def _is_directory(self, path: Path) -> bool:
        return path == path.parent or self._directories[self._directory_at(path.parent)].get(path.name) in self._directories

    def _file_at(self, path: Path) -> NodeId:
        node = self._directories[self._directory_at(path.parent)].get(path.name)
        if node is None:
            raise failure(errno.ENOENT, "open", path)
        if node in self._directories:
            raise failure(errno.EISDIR, "open", path)
        return node

    def _forget_if_gone(self, node: NodeId) -> None:
        """Give back the space of a file that no name and no handle leads to."""
        named = any(node in entries.values() for entries in self._directories.values())
        if not named and all(opened.node != node for opened in self._open.values()):
            self._used_bytes -= len(self._files.pop(node))


def call_site() -> str:
    """The innermost line of the program (not of the tests) that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(_PACKAGE):
            return f"{name[len(_PACKAGE) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "tests"


def failure(code: int, what: str, which: object) -> StoreError:
    message = f"{what} {which}: {os.strerror(code)}"
    if code == errno.ENOENT:
        return MissingObjectError(message, path=str(which))
    if code in (errno.ENOSPC, errno.EDQUOT):
        return StoreFullError(message, path=str(which))
    return StoreError(message, path=str(which), errno=code)


def reachable(files: Mapping[NodeId, Content], directories: Mapping[NodeId, Mapping[str, NodeId]]) -> Image:
    kept_files: dict[NodeId, bytes] = {}
    kept_directories: dict[NodeId, dict[str, NodeId]] = {}
    waiting = [ROOT]
    while waiting:
        directory = waiting.pop()
        kept_directories[directory] = dict(directories[directory])
        for node in kept_directories[directory].values():
            if node in directories:
                if node not in kept_directories:
                    waiting.append(node)
            else:
                kept_files[node] = bytes(files[node])
    return Image(kept_files, kept_directories)
