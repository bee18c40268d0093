"""What the kernel says of a file, from several sides, and short random histories of files that try to make it say something untrue.

A history has a directory of its own with one file that is watched, under one or more names, and one file beside it. After each step everybody who
can be asked is asked: the descriptors, the names, the listing, statx with and without a question to the file system. All have to say the same, and
the times have to be those of the step.
"""

import ctypes
import mmap
import os
import random
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from tests.oracle.awkward import acl

AT_EMPTY_PATH: Final = 0x1000
AT_STATX_FORCE_SYNC: Final = 0x2000
AT_STATX_DONT_SYNC: Final = 0x4000
_BASIC_STATS: Final = 0x7FF
_REALTIME_COARSE: Final = 5
_STATX: Final = struct.Struct("=IIQ IIIH2xQQQQ qI4x qI4x qI4x qI4x")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_PAST_NS: Final = 1_500_000_000_123_456_789
LISTED: Final = {"user.one", "user.two", "user.three", "system.posix_acl_access"}


class UntrueError(AssertionError):
    """The kernel says something of a file that is not so, or says two things."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What stat(2) says, but for what each file system may see differently (blocks, block size)."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


ALL: Final = tuple(field.name for field in fields(Facts))
IN_A_SNAPSHOT: Final = tuple(name for name in ALL if name != "ino")
"""What a file keeps there."""
ELSEWHERE: Final = ("mode", "nlink", "uid", "gid", "size")
"""What a file has in common with another one that has been through the same at another time."""


@dataclass(frozen=True, slots=True)
class FileView:
    """All that can be learnt of a regular file."""

    facts: Facts
    xattrs: Mapping[str, bytes]
    content: bytes


@dataclass(frozen=True, slots=True)
class View:
    """A history's directory, and the file behind each name in it."""

    directory: Facts
    listing: Mapping[str, tuple[int, bool]]
    """The inode number of each name as readdir gives it, and whether it is given as a regular file."""
    files: Mapping[str, FileView]


def facts_of(found: os.stat_result) -> Facts:
    return Facts(
        found.st_ino,
        found.st_mode,
        found.st_nlink,
        found.st_uid,
        found.st_gid,
        0 if stat.S_ISDIR(found.st_mode) else found.st_size,
        found.st_atime_ns,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def statx(descriptor: int, flags: int) -> Facts:
    """What an open file is, as the system call of that name has it."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(descriptor, b"", AT_EMPTY_PATH | flags, _BASIC_STATS, buffer):
        raise OSError(ctypes.get_errno(), "statx")
    (_, _, _, nlink, uid, gid, mode, ino, size, _, _, a_s, a_ns, _, _, c_s, c_ns, m_s, m_ns) = _STATX.unpack_from(buffer.raw)
    times = (seconds * 10**9 + nanoseconds for seconds, nanoseconds in ((a_s, a_ns), (m_s, m_ns), (c_s, c_ns)))
    return Facts(ino, mode, nlink, uid, gid, 0 if stat.S_ISDIR(mode) else size, *times)


def xattrs_of(file: int | Path) -> dict[str, bytes]:
    return {name: os.getxattr(file, name) for name in os.listxattr(file) if name in LISTED}


def file_view(file: int | Path) -> FileView:
    if isinstance(file, Path):
        descriptor = os.open(file, os.O_RDONLY | os.O_NOATIME)
        try:
            content = os.pread(descriptor, 1 << 22, 0)
        finally:
            os.close(descriptor)
        return FileView(facts_of(os.lstat(file)), xattrs_of(file), content)
    content = os.pread(file, 1 << 22, 0)
    return FileView(facts_of(os.fstat(file)), xattrs_of(file), content)


def view(directory: Path) -> View:
    """By name, as somebody sees it who has nothing open."""
    with os.scandir(directory) as entries:
        listing = {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False)) for entry in entries}
    return View(facts_of(os.stat(directory)), listing, {name: file_view(directory / name) for name in listing})


def differences(expected: View, found: View, compared: Sequence[str] = ALL) -> list[str]:
    """One line for each thing that differs, of the facts that are named."""
    lines = _differing("directory", expected.directory, found.directory, compared)
    if expected.listing.keys() != found.listing.keys() or ("ino" in compared and expected.listing != found.listing):
        lines.append(f"listing: {dict(expected.listing)} is {dict(found.listing)}")
    for name in sorted(expected.files.keys() & found.files.keys()):
        was, now = expected.files[name], found.files[name]
        lines += _differing(name, was.facts, now.facts, compared)
        if was.xattrs != now.xattrs:
            lines.append(f"{name}: xattrs {dict(was.xattrs)} are {dict(now.xattrs)}")
        if was.content != now.content:
            at = next((i for i, (a, b) in enumerate(zip(was.content, now.content, strict=False)) if a != b), min(len(was.content), len(now.content)))
            lines.append(f"{name}: {len(was.content)} bytes are {len(now.content)}, the first that differs at {at}")
    return lines


def _differing(what: str, was: Facts, now: Facts, names: Sequence[str]) -> list[str]:
    return [f"{what}: {name} {getattr(was, name)} is {getattr(now, name)}" for name in names if getattr(was, name) != getattr(now, name)]


@dataclass(frozen=True, slots=True)
class Touched:
    """Which times a step sets to now, of the watched file and of its directory."""

    modified: bool = False
    changed: bool = False
    directory: bool = False


NOTHING: Final = Touched()
CONTENT: Final = Touched(modified=True, changed=True)
ATTRIBUTES: Final = Touched(changed=True)
NAMES: Final = Touched(changed=True, directory=True)
BESIDE: Final = Touched(directory=True)


class Clock:
    """The order of time stamps: none is older than one that was given before it."""

    def __init__(self) -> None:
        self._newest_ns = self._older_ns = 0

    def next_call(self) -> None:
        """What is given from now on is given by one call: within it, there is no order."""
        self._older_ns = self._newest_ns

    def check(self, what: str, stamp_ns: int, before_ns: int) -> str:
        """What is wrong with a time stamp that was given after `before_ns`; nothing: it is right."""
        now_ns = time.time_ns()
        self._newest_ns = max(self._newest_ns, stamp_ns)
        if stamp_ns > now_ns:
            return f"{what} lies {stamp_ns - now_ns} ns in the future"
        if stamp_ns < before_ns:
            return f"{what} is {before_ns - stamp_ns} ns older than the call"
        if stamp_ns < self._older_ns:
            return f"{what} is {self._older_ns - stamp_ns} ns older than a time that was given before"
        return ""


class History:
    """One watched file and what is done to it. `synced`: after each step the file is fsynced and its pages are dropped."""

    def __init__(self, directory: Path, seed: str, clock: Clock, *, synced: bool) -> None:
        directory.mkdir()
        self.directory = directory
        self.steps: list[str] = []
        self._rng = random.Random(seed)
        self._clock = clock
        self._synced = synced
        self._is_root = os.geteuid() == 0
        self._serial = 0
        self._names = [self._new_name()]
        self._beside: set[str] = set()
        self._content = bytearray()
        self._fds = [os.open(self._path(), os.O_CREAT | os.O_RDWR | os.O_NOATIME, 0o644)]

    def run(self, steps: int) -> None:
        """So many random steps. UntrueError as soon as somebody says something untrue."""
        offered: tuple[tuple[Callable[[], Touched], int], ...] = (
            (self._write, 6), (self._append, 3), (self._write_mapped, 3), (self._truncate, 4), (self._chmod, 3), (self._chown, 2), (self._utime, 3),
            (self._set_xattr, 3), (self._remove_xattr, 2), (self._set_acl, 1), (self._link, 2), (self._unlink, 2), (self._rename, 2),
            (self._rename_over, 1), (self._write_beside, 1), (self._fsync, 1), (self._read, 2), (self._open, 2), (self._close, 2), (self._empty, 1),
            (self._write_directly, 1), (self._copy, 1),
        )  # fmt: skip
        actions, weights = [action for action, _ in offered], [weight for _, weight in offered]
        for _ in range(steps):
            self._step(self._rng.choices(actions, weights)[0])

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def see(self) -> View:
        """What stands at the end of the history, the file still open: names without a file of theirs are gone."""
        return view(self.directory)

    def _step(self, action: Callable[[], Touched]) -> None:
        old, old_directory = facts_of(os.fstat(self._fd())), facts_of(os.stat(self.directory))
        self._clock.next_call()
        before_ns = time.clock_gettime_ns(_REALTIME_COARSE)
        self.steps.append(action.__name__.strip("_"))
        touched = action()
        new, new_directory = facts_of(os.fstat(self._fd())), facts_of(os.stat(self.directory))
        lines = [
            self._stamp("mtime", touched.modified, old.mtime_ns, new.mtime_ns, before_ns) if action != self._utime else "",
            self._stamp("ctime", touched.changed, old.ctime_ns, new.ctime_ns, before_ns),
            self._stamp("mtime of the directory", touched.directory, old_directory.mtime_ns, new_directory.mtime_ns, before_ns),
            self._stamp("ctime of the directory", touched.directory, old_directory.ctime_ns, new_directory.ctime_ns, before_ns),
        ]
        self._complain([line for line in lines if line])
        self._complain(self._contradictions(new))
        if self._synced:
            os.fsync(self._fd())
            os.posix_fadvise(self._fd(), 0, 0, os.POSIX_FADV_DONTNEED)
            self._complain(self._contradictions(new))

    def _stamp(self, what: str, is_set: bool, old_ns: int, new_ns: int, before_ns: int) -> str:
        if is_set:
            return self._clock.check(what, new_ns, before_ns)
        return "" if old_ns == new_ns else f"{what} has changed by {new_ns - old_ns} ns"

    def _contradictions(self, facts: Facts) -> list[str]:
        """What others say that differs from `facts`, and what is not as the content is."""
        said = {f"fstat of descriptor {fd}": facts_of(os.fstat(fd)) for fd in self._fds}
        said |= {f"stat of {name}": facts_of(os.stat(self.directory / name)) for name in self._names}
        for flags in (0, AT_STATX_DONT_SYNC, AT_STATX_FORCE_SYNC):
            said[f"statx with {flags:#x}"] = statx(self._fd(), flags)
        lines = [line for who, told in said.items() for line in _differing(who, facts, told, ALL)]
        if (facts.size, facts.nlink) != (len(self._content), len(self._names)):
            lines.append(f"size and links {facts.size}, {facts.nlink} instead of {len(self._content)}, {len(self._names)}")
        if os.pread(self._fd(), len(self._content) + 1, 0) != self._content:
            lines.append("the content is another")
        if (listing := set(os.listdir(self.directory))) != {*self._names, *self._beside}:
            lines.append(f"the listing is {sorted(listing)}")
        return lines

    def _complain(self, lines: list[str]) -> None:
        if lines:
            raise UntrueError("\n".join([f"after {', '.join(self.steps)} in {self.directory.name}:", *lines]))

    # --- what to take ---

    def _fd(self) -> int:
        return self._fds[0]

    def _path(self) -> Path:
        return self.directory / self._names[0]

    def _new_name(self) -> str:
        self._serial += 1
        return f"name-{self._serial}"

    def _file(self) -> int | Path:
        """The file by name, if it has one, or by descriptor."""
        return self._path() if self._names and self._rng.random() < 0.5 else self._rng.choice(self._fds)

    def _data(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((1, 10, 4000, 4096, 10_000, 70_000)))

    def _put(self, offset: int, data: bytes) -> Touched:
        if offset > len(self._content):
            self._content.extend(bytes(offset - len(self._content)))
        self._content[offset : offset + len(data)] = data
        return CONTENT

    # --- steps ---

    def _write(self) -> Touched:
        data, offset = self._data(), self._rng.choice((0, 100, 5000, 100_000, len(self._content)))
        os.pwrite(self._rng.choice(self._fds), data, offset)
        return self._put(offset, data)

    def _append(self) -> Touched:
        data = self._data()
        descriptor = os.open(f"/proc/self/fd/{self._fd()}", os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, data)
        os.close(descriptor)
        return self._put(len(self._content), data)

    def _write_mapped(self) -> Touched:
        if not self._content:
            return NOTHING
        offset = self._rng.randrange(len(self._content))
        data = self._data()[: len(self._content) - offset]
        with mmap.mmap(self._fd(), len(self._content)) as pages:
            pages[offset : offset + len(data)] = data
        return self._put(offset, data)

    def _write_directly(self) -> Touched:
        with mmap.mmap(-1, 8192) as block:
            block[:] = data = self._rng.randbytes(8192)
            descriptor = os.open(f"/proc/self/fd/{self._fd()}", os.O_WRONLY | os.O_DIRECT)
            os.pwritev(descriptor, [block], 4096)
            os.close(descriptor)
        return self._put(4096, data)

    def _copy(self) -> Touched:
        length = min(len(self._content), 20_000)
        if not length:
            return NOTHING
        os.copy_file_range(self._fd(), self._fd(), length, 0, len(self._content))
        return self._put(len(self._content), bytes(self._content[:length]))

    def _truncate(self) -> Touched:
        size = self._rng.choice((0, 1, 4095, 5000, 60_000, max(len(self._content) - 10, 0), len(self._content) + 10))
        return self._resize(size, lambda: os.truncate(self._file(), size))

    def _empty(self) -> Touched:
        return self._resize(0, lambda: os.close(os.open(f"/proc/self/fd/{self._fd()}", os.O_WRONLY | os.O_TRUNC)))

    def _resize(self, size: int, resize: Callable[[], None]) -> Touched:
        """To the size that it has it is not given again: what that changes, test_fuse_differences says."""
        if size == len(self._content):
            return NOTHING
        resize()
        if size < len(self._content):
            del self._content[size:]
        else:
            self._content.extend(bytes(size - len(self._content)))
        return CONTENT

    def _chmod(self) -> Touched:
        os.chmod(self._file(), self._rng.choice((0o600, 0o644, 0o755, 0o4755, 0o2711, 0o640)))
        return ATTRIBUTES

    def _chown(self) -> Touched:
        if not self._is_root:
            return NOTHING
        os.chown(self._file(), self._rng.choice((0, 1000, -1)), self._rng.choice((0, 1234)))
        return ATTRIBUTES

    def _utime(self) -> Touched:
        at_ns = _PAST_NS + self._rng.randrange(10**12)
        os.utime(self._file(), ns=(at_ns + 1, at_ns))
        facts = os.fstat(self._fd())
        self._complain([] if (facts.st_atime_ns, facts.st_mtime_ns) == (at_ns + 1, at_ns) else [f"times are not those that were set: {facts}"])
        return ATTRIBUTES

    def _set_xattr(self) -> Touched:
        os.setxattr(self._file(), self._rng.choice(("user.one", "user.two", "user.three")), self._rng.randbytes(self._rng.randrange(200)))
        return ATTRIBUTES

    def _remove_xattr(self) -> Touched:
        names = sorted(name for name in os.listxattr(self._fd()) if name.startswith("user."))
        if not names:
            return NOTHING
        os.removexattr(self._file(), self._rng.choice(names))
        return ATTRIBUTES

    def _set_acl(self) -> Touched:
        value = acl(6, self._rng.choice((4, 6)), 0, users={1000: self._rng.choice((0, 4, 7))})
        os.setxattr(self._file(), "system.posix_acl_access", value)
        return ATTRIBUTES

    def _link(self) -> Touched:
        if not self._names:
            return NOTHING
        name = self._new_name()
        os.link(self._path(), self.directory / name)
        self._names.append(name)
        return NAMES

    def _unlink(self) -> Touched:
        """Its last name too: what is open goes on."""
        if not self._names or (len(self._names) == 1 and self._rng.random() < 0.7):
            return NOTHING
        os.unlink(self.directory / self._names.pop())
        return NAMES

    def _rename(self) -> Touched:
        if not self._names:
            return NOTHING
        name = self._new_name()
        os.rename(self._path(), self.directory / name)
        self._names[0] = name
        return NAMES

    def _rename_over(self) -> Touched:
        if not self._names:
            return NOTHING
        (self.directory / "beside").write_bytes(b"will be replaced")
        self._beside.clear()
        os.rename(self._path(), self.directory / "beside")
        os.rename(self.directory / "beside", self._path())
        return NAMES

    def _write_beside(self) -> Touched:
        is_new = not self._beside
        self._beside = {"beside"}
        (self.directory / "beside").write_bytes(self._data())
        return BESIDE if is_new else NOTHING

    def _fsync(self) -> Touched:
        os.fsync(self._rng.choice(self._fds))
        return NOTHING

    def _read(self) -> Touched:
        os.pread(self._rng.choice(self._fds), 5000, self._rng.choice((0, 4096)))
        return NOTHING

    def _open(self) -> Touched:
        self._fds.append(os.open(f"/proc/self/fd/{self._fd()}", os.O_RDWR | os.O_NOATIME))
        return NOTHING

    def _close(self) -> Touched:
        if len(self._fds) > 1:
            os.close(self._fds.pop(0))
        return NOTHING
