"""One of two trees on which the same calls are made: what a call gives, and what stands there afterwards.

Descriptors, mappings and directory streams are kept under numbers, which are the same on both sides.
"""

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from tests.posix import calls
from tests.posix.calls import Time

Times = tuple[int, int, int]
"""atime, mtime and ctime in nanoseconds."""
_READ_BYTES: Final = 1 << 20
_DIRENTS_BYTES: Final = 300
"""Room for one of the longest names, or for a few short ones."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What must be equal on both sides. The size of directories, numbers of inodes and devices, blocks and times are not among it."""

    mode: int
    nlink: int
    uid: int
    gid: int
    size: int | None
    rdev: int | None
    target: bytes | None = None
    xattrs: tuple[tuple[str, bytes], ...] = ()
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One object of one side."""

    facts: Facts
    times: Times
    ino: int


@dataclass(frozen=True, slots=True)
class Before:
    """Of an object before a step."""

    times: Times
    size: int


@dataclass(slots=True)
class OpenFile:
    descriptor: int
    reader: int | None
    """Another descriptor of the same file, by which its content is looked at: closing one that was opened for each look would have the kernel send
    all dirty pages each time."""
    ino: int


@dataclass(slots=True)
class MappedFile:
    """A file in memory, and a descriptor by which its content is looked at."""

    memory: mmap.mmap
    reader: int

    def close(self) -> None:
        """Neither is used afterwards."""
        self.memory.close()
        os.close(self.reader)

    def end(self, wanted: int) -> int:
        """How far it can be used: behind the end of the file there is nothing."""
        return min(len(self.memory), self.memory.size(), wanted)


@dataclass(slots=True)
class Stream:
    """A directory being read: what stood there all the time since it was begun, what ever did, and what was read."""

    descriptor: int
    standing: set[bytes]
    possible: set[bytes]
    read: list[bytes] = field(default_factory=list)

    def update(self, names: set[bytes]) -> None:
        """What the directory has now."""
        self.standing &= names
        self.possible |= names

    def faults(self, ended: bool) -> list[str]:
        """What POSIX does not allow to have been read."""
        found = [f"{name!r} was read and never stood there" for name in self.read if name not in self.possible]
        found += [
            f"{name!r} stood there all the time and was read {self.read.count(name)} times" for name in self.standing if self.read.count(name) > 1
        ]
        if ended:
            found += [f"{name!r} stood there all the time and was not read" for name in self.standing if name not in self.read]
        return found


def name_of(error: OSError) -> str:
    """EPERM and its like."""
    return errno.errorcode.get(error.errno or 0, str(error.errno))


class Side:
    """Calls below `root`. Every method that is a call raises OSError as the system call does."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self.files: dict[int, OpenFile] = {}
        self.maps: dict[int, MappedFile] = {}
        self.streams: dict[int, Stream] = {}

    def at(self, path: bytes) -> bytes:
        """The path from the root of the machine."""
        return self.root + b"/" + path

    def attempt(self, call: str, *arguments: Any) -> object:
        """What a call gives, or the name of its error."""
        try:
            return getattr(self, call)(*arguments)
        except OSError as error:
            return name_of(error)

    # --- descriptors ---

    def open(self, slot: int, path: bytes, flags: int, mode: int) -> None:
        self.files[slot] = OpenFile(os.open(self.at(path), flags | os.O_NONBLOCK | os.O_NOCTTY, mode), None, 0)

    def opened(self, slot: int) -> None:
        """To be called, as root, after `open`."""
        file = self.files[slot]
        status = os.fstat(file.descriptor)
        file.ino = status.st_ino
        if stat.S_ISREG(status.st_mode):
            try:
                file.reader = os.open(f"/proc/self/fd/{file.descriptor}", os.O_RDONLY)
            except PermissionError:
                return

    def close(self, slot: int) -> None:
        file = self.files.pop(slot)
        if file.reader is not None:
            os.close(file.reader)
        os.close(file.descriptor)

    def close_all(self) -> None:
        """Nothing of it is used afterwards."""
        for slot in list(self.files):
            self.close(slot)
        for mapping in self.maps.values():
            mapping.close()
        self.maps.clear()
        for key in list(self.streams):
            self.closedir(key)

    def write(self, slot: int, data: bytes) -> int:
        return os.write(self.files[slot].descriptor, data)

    def pwrite(self, slot: int, data: bytes, offset: int) -> int:
        return os.pwrite(self.files[slot].descriptor, data, offset)

    def read(self, slot: int, size: int) -> bytes:
        return os.read(self.files[slot].descriptor, size)

    def pread(self, slot: int, size: int, offset: int) -> bytes:
        return os.pread(self.files[slot].descriptor, size, offset)

    def lseek(self, slot: int, offset: int, whence: int) -> int:
        return os.lseek(self.files[slot].descriptor, offset, whence)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.files[slot].descriptor, size)

    def fsync(self, slot: int) -> None:
        os.fsync(self.files[slot].descriptor)

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self.files[slot].descriptor)

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.files[slot].descriptor, mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.files[slot].descriptor, uid, gid)

    def futimens(self, slot: int, atime: Time, mtime: Time) -> None:
        calls.futimens(self.files[slot].descriptor, atime, mtime)

    def link_open(self, slot: int, new: bytes) -> None:
        calls.linkat(b"/proc/self/fd/%d" % self.files[slot].descriptor, self.at(new), follow=True)

    def fsetxattr(self, slot: int, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self.files[slot].descriptor, name, value, flags)

    def fremovexattr(self, slot: int, name: str) -> None:
        os.removexattr(self.files[slot].descriptor, name)

    def reopen(self, slot: int, other: int, flags: int) -> None:
        path = f"/proc/self/fd/{self.files[other].descriptor}"
        self.files[slot] = OpenFile(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY), None, 0)

    # --- below an open directory, which may have been removed ---

    def openat(self, slot: int, name: bytes) -> None:
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY, 0o666, dir_fd=self.files[slot].descriptor))

    def mkdirat(self, slot: int, name: bytes) -> None:
        os.mkdir(name, 0o777, dir_fd=self.files[slot].descriptor)

    def symlinkat(self, slot: int, name: bytes) -> None:
        os.symlink(b"a", name, dir_fd=self.files[slot].descriptor)

    def unlinkat(self, slot: int, name: bytes) -> None:
        os.unlink(name, dir_fd=self.files[slot].descriptor)

    def rmdirat(self, slot: int, name: bytes) -> None:
        os.rmdir(name, dir_fd=self.files[slot].descriptor)

    def statat(self, slot: int, name: bytes) -> Facts:
        return _facts(os.stat(name, dir_fd=self.files[slot].descriptor, follow_symlinks=False))

    def rename_into(self, slot: int, name: bytes, old: bytes) -> None:
        os.rename(self.at(old), name, dst_dir_fd=self.files[slot].descriptor)

    def link_into(self, slot: int, name: bytes, old: bytes) -> None:
        os.link(self.at(old), name, dst_dir_fd=self.files[slot].descriptor, follow_symlinks=False)

    def rename_out(self, slot: int, name: bytes, new: bytes) -> None:
        os.rename(name, self.at(new), src_dir_fd=self.files[slot].descriptor)

    # --- mappings ---

    def map(self, slot: int, key: int) -> None:
        file = self.files[slot]
        size = os.fstat(file.descriptor).st_size
        if not size:
            raise OSError(errno.EINVAL, "nothing to map")
        memory = mmap.mmap(file.descriptor, size)
        if key in self.maps:
            self.maps.pop(key).close()
        self.maps[key] = MappedFile(memory, os.dup(file.descriptor))

    def store(self, key: int, data: bytes, offset: int) -> int:
        """Write into a mapping and have it synced; what lies behind the file's end now is left alone. How many bytes were written."""
        mapping = self.maps[key]
        end = mapping.end(offset + len(data))
        if end <= offset:
            return 0
        mapping.memory[offset:end] = data[: end - offset]
        mapping.memory.flush()
        return end - offset

    def load(self, key: int, size: int, offset: int) -> bytes:
        mapping = self.maps[key]
        end = mapping.end(offset + size)
        return mapping.memory[offset:end] if end > offset else b""

    # --- paths ---

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self.at(path), size)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self.at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def rename(self, old: bytes, new: bytes) -> None:
        os.rename(self.at(old), self.at(new))

    def renameat2(self, old: bytes, new: bytes, flags: int) -> None:
        calls.renameat2(self.at(old), self.at(new), flags)

    def link(self, old: bytes, new: bytes, follow: bool) -> None:
        calls.linkat(self.at(old), self.at(new), follow=follow)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self.at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self.at(path))

    def mknod(self, path: bytes, mode: int, device: int) -> None:
        os.mknod(self.at(path), mode, device)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool) -> None:
        os.chown(self.at(path), uid, gid, follow_symlinks=follow)

    def utimens(self, path: bytes, atime: Time, mtime: Time, follow: bool) -> None:
        calls.utimensat(self.at(path), atime, mtime, follow=follow)

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int, follow: bool) -> None:
        os.setxattr(self.at(path), name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: str, follow: bool) -> bytes:
        return os.getxattr(self.at(path), name, follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool) -> list[str]:
        return sorted(os.listxattr(self.at(path), follow_symlinks=follow))

    def removexattr(self, path: bytes, name: str, follow: bool) -> None:
        os.removexattr(self.at(path), name, follow_symlinks=follow)

    def access(self, path: bytes, mode: int) -> bool:
        return os.access(self.at(path), mode)

    def stat(self, path: bytes) -> Facts:
        return _facts(os.stat(self.at(path)))

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self.at(path)))

    # --- directory streams ---

    def opendir(self, key: int, path: bytes) -> None:
        self.streams[key] = Stream(os.open(self.at(path), os.O_RDONLY | os.O_DIRECTORY), set(), set())

    def closedir(self, key: int) -> None:
        os.close(self.streams.pop(key).descriptor)

    def readdir(self, key: int, to_the_end: bool) -> str:
        """Read on: a few names, or all. Not comparable but for errors: each side has its order."""
        stream = self.streams[key]
        while names := calls.getdents(stream.descriptor, _DIRENTS_BYTES):
            stream.read += [name for name in names if name not in {b".", b".."}]
            if not to_the_end:
                break
        return "; ".join(stream.faults(ended=not names))

    def rewinddir(self, key: int) -> None:
        os.lseek(self.streams[key].descriptor, 0, os.SEEK_SET)

    # --- looking ---

    def before(self, path: bytes) -> list[tuple[int, Before]]:
        """Inode, times and size of what stands there, and of what it leads to."""
        seen = []
        try:
            status = os.lstat(self.at(path))
            seen.append(status)
            if stat.S_ISLNK(status.st_mode):
                seen.append(os.stat(self.at(path)))
        except OSError:  # it is not there, or leads to nothing
            pass
        return [(status.st_ino, Before(_times(status), status.st_size)) for status in seen]

    def before_open(self, descriptor: int) -> tuple[int, Before]:
        """The same of an open file."""
        status = os.fstat(descriptor)
        return status.st_ino, Before(_times(status), status.st_size)

    def look_briefly(self, path: bytes) -> Seen | str:
        """What stat(2) tells of what a path leads to, or the name of the error."""
        try:
            status = os.stat(self.at(path))
        except OSError as error:
            return name_of(error)
        return Seen(_facts(status), _times(status), status.st_ino)

    def look(self, path: bytes, *, follow: bool = False) -> Seen | str:
        """Everything about what stands there, or the name of the error."""
        full = self.at(path)
        try:
            status = os.stat(full, follow_symlinks=follow)
        except OSError as error:
            return name_of(error)
        kind = stat.S_IFMT(status.st_mode)
        target = os.readlink(full) if kind == stat.S_IFLNK else None
        xattrs = tuple((name, os.getxattr(full, name, follow_symlinks=follow)) for name in sorted(os.listxattr(full, follow_symlinks=follow)))
        read = self._content(full, status) if kind == stat.S_IFREG else None
        return Seen(_facts(status, target, xattrs, read), _times(status), status.st_ino)

    def look_open(self, descriptor: int, reader: int | None) -> Seen:
        """The same for an open file, whatever names it has: without content and attributes when it cannot be read."""
        status = os.fstat(descriptor)
        if reader is None:
            return Seen(_facts(status), _times(status), status.st_ino)
        xattrs = tuple((name, os.getxattr(reader, name)) for name in sorted(os.listxattr(reader)))
        return Seen(_facts(status, None, xattrs, _read_all(reader)), _times(status), status.st_ino)

    def open_ones(self, slots: Iterable[int], keys: Iterable[int]) -> dict[str, tuple[int, int | None]]:
        """Descriptor and reader of open files and mappings, under what to call them."""
        files = {f"the file open as {slot}": self.files[slot] for slot in slots}
        maps = {f"the file mapped as {key}": self.maps[key] for key in keys}
        return {what: (file.descriptor, file.reader) for what, file in files.items()} | {
            what: (mapping.reader, mapping.reader) for what, mapping in maps.items()
        }

    def names(self, path: bytes) -> list[tuple[bytes, str]] | str:
        """What a directory lists, with the types that the listing gives."""
        try:
            with os.scandir(self.at(path)) as entries:
                return sorted((entry.name, _kind(entry)) for entry in entries)
        except OSError as error:
            return name_of(error)

    def tree(self) -> dict[bytes, Seen]:
        """Everything, by path."""
        found: dict[bytes, Seen] = {}
        waiting = [b"."]
        while waiting:
            path = waiting.pop()
            seen = self.look(path)
            assert isinstance(seen, Seen), f"{path!r} is listed and cannot be looked at: {seen}"
            found[path] = seen
            if stat.S_ISDIR(seen.facts.mode):
                waiting += [name if path == b"." else path + b"/" + name for name in os.listdir(self.at(path))]
        return found

    def paths(self) -> tuple[list[bytes], list[bytes]]:
        """All paths, and those of directories, in byte order; the root is b"."."""
        everything, directories = [b"."], [b"."]
        waiting = [b""]
        while waiting:
            above = waiting.pop()
            with os.scandir(self.at(above)) as entries:
                for entry in entries:
                    everything.append(above + entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(above + entry.name)
                        waiting.append(above + entry.name + b"/")
        return sorted(everything), sorted(directories)

    def _content(self, full: bytes, status: os.stat_result) -> bytes | None:
        for file in self.files.values():
            if file.ino == status.st_ino and file.reader is not None:
                return _read_all(file.reader)
        try:
            descriptor = os.open(full, os.O_RDONLY)
        except PermissionError:
            return None
        try:
            return _read_all(descriptor)
        finally:
            os.close(descriptor)


_KINDS: Final[tuple[tuple[str, Callable[["os.DirEntry[bytes]"], bool]], ...]] = (
    ("directory", lambda entry: entry.is_dir(follow_symlinks=False)),
    ("file", lambda entry: entry.is_file(follow_symlinks=False)),
    ("symlink", lambda entry: entry.is_symlink()),
)


def _kind(entry: "os.DirEntry[bytes]") -> str:
    return next((name for name, holds in _KINDS if holds(entry)), "special")


def _times(status: os.stat_result) -> Times:
    return status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns


def _facts(status: os.stat_result, target: bytes | None = None, xattrs: tuple[tuple[str, bytes], ...] = (), content: bytes | None = None) -> Facts:
    mode = status.st_mode
    is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    return Facts(
        mode,
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        None if stat.S_ISDIR(mode) else status.st_size,
        status.st_rdev if is_device else None,
        target,
        xattrs,
        content,
    )


def _read_all(descriptor: int) -> bytes:
    parts: list[bytes] = []
    at = 0
    while part := os.pread(descriptor, _READ_BYTES, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)
