"""Copying what a snapshot shows to a place outside of the mount, with everything that the place can hold.

Nothing that exists is overwritten. Names are followed by directory descriptors, so a path may be longer than PATH_MAX. Everything here blocks.
"""

import errno
import os
import resource
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from backupfs.errors import UsageError
from backupfs.limits import KIB, MIB

BLOCK_BYTES: Final = 1 * MIB
"""So much is read at once: as much as one request to the mount may ask for."""
HOLE_BYTES: Final = 4 * KIB
"""Zeros of a file that has holes stay holes in blocks of this size."""
_ACLS: Final = ("system.posix_acl_access", "system.posix_acl_default")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT: Final = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""The place, or the person, cannot have such an attribute."""
_NO_LINK: Final = (errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
Place = int | bytes
"""What has attributes: a descriptor, or a path below /proc/self/fd, whose last part is not followed."""


@dataclass(frozen=True, slots=True)
class CopyEntry:
    """One name: its path from the top (which is empty), type bits of stat(2), size in bytes."""

    path: bytes
    type: int
    size: int


@dataclass(slots=True)
class CopyPlan:
    """What would be copied: `path` below the directory `top` to `target`. The entries in order, what cannot be read and why, and the bytes in files,
    each counted once.
    """

    top: bytes
    path: bytes
    target: bytes
    entries: list[CopyEntry] = field(default_factory=list)
    unreadable: list[tuple[bytes, str]] = field(default_factory=list)
    total_bytes: int = 0


def plan(top: bytes, path: bytes, target: bytes) -> CopyPlan:
    """What it takes to have what stands at `path` below the directory `top` at `target` as well. UsageError when there is no such thing, something is
    at the target already, or there is no directory for it.
    """
    target = os.path.abspath(target)
    above = os.path.dirname(target)
    if os.path.lexists(target):
        raise UsageError(f"{os.fsdecode(target)!r} exists; choose a place that does not")
    if not os.path.isdir(above):
        raise UsageError(f"there is no directory {os.fsdecode(above)!r}")
    _allow_many_descriptors()
    made = CopyPlan(top, path, target)
    seen: set[tuple[int, int]] = set()
    try:
        opened, name = _above(top, path)
    except OSError as error:
        raise _not_there(path, error) from error
    for at, found in _walk(opened, name):
        if isinstance(found, OSError):
            if not at:
                raise _not_there(path, found)
            made.unreadable.append((at, _said(found)))
            continue
        made.entries.append(CopyEntry(at, stat.S_IFMT(found.st_mode), found.st_size))
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
            made.total_bytes += found.st_size
            if found.st_nlink > 1:
                seen.add((found.st_dev, found.st_ino))
    return made


def _not_there(path: bytes, error: OSError) -> UsageError:
    return UsageError(f"{os.fsdecode(path)!r} is not in that snapshot, or closed to you: {_said(error)}")


def _walk(opened: int, name: bytes) -> Iterator[tuple[bytes, os.stat_result | OSError]]:
    """(path, facts) of an entry in an open directory, which is closed at the end, and of all below it, a directory before what is in it; or why it
    cannot be looked at.
    """
    levels: list[tuple[int, bytes, list[bytes]]] = [(opened, b"", [name])]
    try:
        while levels:
            directory, at, names = levels[-1]
            if not names:
                os.close(directory)
                levels.pop()
                continue
            name = names.pop()
            below = b"" if len(levels) == 1 else _join(at, name)
            try:
                facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    levels.append(_listed(directory, name, below))
            except OSError as error:
                yield below, error
            else:
                yield below, facts
    finally:
        for directory, _, _ in levels:
            os.close(directory)


def _listed(directory: int, name: bytes, path: bytes) -> tuple[int, bytes, list[bytes]]:
    opened = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        return opened, path, _names(opened)
    except OSError:
        os.close(opened)
        raise


def _names(directory: int) -> list[bytes]:
    """To be taken from the end."""
    return sorted(map(os.fsencode, os.listdir(directory)), reverse=True)


def _above(top: bytes, path: bytes) -> tuple[int, bytes]:
    """A descriptor of the directory that an entry stands in, and its name there; `.` for the top itself."""
    *directories, name = path.split(b"/")
    at = os.open(top, _DIRECTORY & ~os.O_NOFOLLOW)
    for step in directories:
        try:
            below = os.open(step, _DIRECTORY, dir_fd=at)
        finally:
            os.close(at)
        at = below
    return at, name or b"."


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _allow_many_descriptors() -> None:
    """Two are open for each level of a tree."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class _Level:
    """A directory that is being copied."""

    path: bytes
    source: int
    target: int
    facts: os.stat_result
    names: list[bytes]


class Copying:
    """Carries out one plan. `not_kept` counts what the place could not hold, by what it is."""

    def __init__(self, plan: CopyPlan, moved: Callable[[int], None]) -> None:
        """`moved` is told of bytes as they are copied."""
        self._plan = plan
        self._moved = moved
        self._firsts: dict[tuple[int, int], bytes] = {}
        """Where the first name of a file that has several was put, from the directory above the target."""
        self._buffer = memoryview(bytearray(BLOCK_BYTES))
        self._zeros = bytes(BLOCK_BYTES)
        self.not_kept: Counter[str] = Counter()

    def run(self) -> Generator[tuple[bytes, str], None, None]:
        """(path, what was wrong or nothing) of each entry when it is done, a directory after what is in it. A file that cannot be copied to its end
        is removed again; when this is closed early, what was done stays, and directories that were begun are open to their owner only.
        """
        above, name = os.path.split(self._plan.target)
        base = os.open(above, _DIRECTORY & ~os.O_NOFOLLOW)
        levels: list[_Level] = []
        try:
            source, source_name = _above(self._plan.top, self._plan.path)
            levels.append(_Level(b"", source, os.dup(base), os.fstat(source), []))
            yield from self._entry(base, levels, source_name, name, b"")
            while len(levels) > 1:
                level = levels[-1]
                if level.names:
                    step = level.names.pop()
                    yield from self._entry(base, levels, step, step, _join(level.path, step))
                else:
                    yield level.path, self._finish(level)
                    _close(levels.pop())
        finally:
            for level in levels:
                _close(level)
            os.close(base)

    def _entry(self, base: int, levels: list[_Level], name: bytes, target_name: bytes, path: bytes) -> Iterator[tuple[bytes, str]]:
        level = levels[-1]
        try:
            facts = os.stat(name, dir_fd=level.source, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                levels.append(self._begin(level, name, target_name, path, facts))
                return
            self._copy(base, level, name, target_name, path, facts)
        except OSError as error:
            yield path, _said(error)
        else:
            yield path, ""

    # directories

    def _begin(self, level: _Level, name: bytes, target_name: bytes, path: bytes, facts: os.stat_result) -> _Level:
        source = os.open(name, _DIRECTORY, dir_fd=level.source)
        try:
            names = _names(source)
            os.mkdir(target_name, 0o700, dir_fd=level.target)
            return _Level(path, source, os.open(target_name, _DIRECTORY, dir_fd=level.target), facts, names)
        except OSError:
            os.close(source)
            raise

    def _finish(self, level: _Level) -> str:
        try:
            self._keep_attributes(level.source, level.target, level.facts)
        except OSError as error:
            return _said(error)
        return ""

    # everything else

    def _copy(self, base: int, level: _Level, name: bytes, target_name: bytes, path: bytes, facts: os.stat_result) -> None:
        identity = facts.st_dev, facts.st_ino
        first = self._firsts.get(identity)
        if first is not None and self._link(base, first, level.target, target_name):
            return
        if stat.S_ISREG(facts.st_mode):
            self._copy_file(level, name, target_name, facts)
        else:
            self._copy_special(level, name, target_name, facts)
        if facts.st_nlink > 1:
            self._firsts.setdefault(identity, _join(os.path.basename(self._plan.target), path))

    def _link(self, base: int, first: bytes, directory: int, name: bytes) -> bool:
        """Whether the place takes another name for a file."""
        above, first_name = _above(b"/proc/self/fd/%d" % base, first)
        try:
            os.link(first_name, name, src_dir_fd=above, dst_dir_fd=directory, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            self.not_kept["hard links"] += 1
            return False
        finally:
            os.close(above)
        return True

    def _copy_file(self, level: _Level, name: bytes, target_name: bytes, facts: os.stat_result) -> None:
        source = os.open(name, _READ, dir_fd=level.source)
        try:
            target = os.open(target_name, _NEW, 0o600, dir_fd=level.target)
            try:
                try:
                    self._copy_content(source, target, facts)
                    self._keep_attributes(source, target, facts)
                finally:
                    os.close(target)  # some file systems tell only here that they could not take it
            except BaseException:
                # What is not whole must not look as if it were.
                os.unlink(target_name, dir_fd=level.target)
                raise
        finally:
            os.close(source)

    def _copy_content(self, source: int, target: int, facts: os.stat_result) -> None:
        has_holes = facts.st_blocks * 512 < facts.st_size
        at = 0
        while count := os.readv(source, [self._buffer]):
            if not has_holes:
                _write(target, self._buffer[:count], at)
            elif self._buffer[:count] != self._zeros[:count]:
                for begin, end in self._with_data(count):
                    _write(target, self._buffer[begin:end], at + begin)
            at += count
            self._moved(count)
        os.ftruncate(target, at)
        if not at == facts.st_size == os.fstat(target).st_size:
            raise OSError(errno.EIO, f"{at} bytes were copied of {facts.st_size}")

    def _with_data(self, count: int) -> Iterator[tuple[int, int]]:
        """The stretches of the buffer that are not zeros alone."""
        begin: int | None = None
        for at in range(0, count, HOLE_BYTES):
            end = min(at + HOLE_BYTES, count)
            if self._buffer[at:end] != self._zeros[: end - at]:
                begin = at if begin is None else begin
            elif begin is not None:
                yield begin, at
                begin = None
        if begin is not None:
            yield begin, count

    def _copy_special(self, level: _Level, name: bytes, target_name: bytes, facts: os.stat_result) -> None:
        if stat.S_ISLNK(facts.st_mode):
            os.symlink(os.readlink(name, dir_fd=level.source), target_name, dir_fd=level.target)
        else:
            os.mknod(target_name, stat.S_IFMT(facts.st_mode) | 0o600, facts.st_rdev, dir_fd=level.target)
        self._keep_attributes(_below(level.source, name), _below(level.target, target_name), facts)

    # attributes

    def _keep_attributes(self, source: Place, target: Place, facts: os.stat_result) -> None:
        mode = stat.S_IMODE(facts.st_mode)
        if not self._keep_owner(target, facts):
            mode &= ~_SET_IDS  # they would be somebody else's rights
        self._keep_xattrs(source, target)
        if not stat.S_ISLNK(facts.st_mode):
            os.chmod(target, mode)
        os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns), follow_symlinks=isinstance(target, int))

    def _keep_owner(self, target: Place, facts: os.stat_result) -> bool:
        """Whether it belongs to whom it did."""
        follow = isinstance(target, int)
        now = os.stat(target, follow_symlinks=follow)
        if (now.st_uid, now.st_gid) == (facts.st_uid, facts.st_gid):
            return True
        try:
            os.chown(target, facts.st_uid, facts.st_gid, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
        else:
            return True
        self.not_kept["owners"] += 1
        with suppress(PermissionError):
            os.chown(target, -1, facts.st_gid, follow_symlinks=follow)
        return False

    def _keep_xattrs(self, source: Place, target: Place) -> None:
        names = os.listxattr(source, follow_symlinks=isinstance(source, int))
        # Access lists last: they may take away what the others need.
        for name in sorted(names, key=lambda name: (name in _ACLS, name)):
            value = os.getxattr(source, name, follow_symlinks=isinstance(source, int))
            try:
                os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                self.not_kept[f"{name} attributes"] += 1
        for name in set(_ACLS) - set(names):
            # A new entry may have got one from the default of its directory.
            try:
                os.removexattr(target, name, follow_symlinks=isinstance(target, int))
            except OSError as error:
                if error.errno not in (errno.ENODATA, *_CANNOT):
                    raise


def _below(directory: int, name: bytes) -> bytes:
    return b"/proc/self/fd/%d/%s" % (directory, name)


def _write(target: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(target, data, at)
        data = data[written:]
        at += written


def _close(level: _Level) -> None:
    os.close(level.source)
    os.close(level.target)


def _said(error: OSError) -> str:
    return error.strerror or str(error)
