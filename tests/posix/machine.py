"""The same random calls on ext4 and on a mount, compared after each step. Hypothesis decides which, and finds a short sequence that differs."""

import os
import random
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from hypothesis import HealthCheck, Phase, reject, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from tests.oracle.awkward import acl
from tests.oracle.manifest import assert_same, manifest
from tests.posix.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Time
from tests.posix.comparing import ALL, KNOWN, SET_NS, WITHOUT_ATIME, Moment, seen_faults, tree_faults
from tests.posix.grounds import Ground, KeptSnapshot, is_noatime
from tests.posix.identities import ALICE, BOB, COMMON, EVERYBODY, NOBODY, ROOT, Identity, acting_as
from tests.posix.side import Before, Seen, Side, Stream

CLOCK_REALTIME_COARSE: Final = 5
"""Linux: the time of the last tick."""
KIB: Final = 1024
STEPS: Final = 100
SLOTS: Final = 6
CROWD: Final = 450
TREE_EVERY: Final = 40
"""Steps between two comparisons of the whole tree."""
NOISE: Final = random.Random(0).randbytes(4 << 20)

WHO: Final = EVERYBODY
NAMES: Final = (b"a", b"b", b"c", b"d", b"\xff\x80 \n\\", "cafe\u0301".encode(), b"n" * 255)
AWKWARD_NAMES: Final = (b"n" * 256, b".", b"..", b"a/", b"b/.", b"...", b"-\x01")
TARGETS: Final = (b"a", b"b", b"c", b"d", b"a/b", b"b/a", b"../a", b"nowhere", b"/nonexistent/x", b"t" * 4095, b"n" * 256)
MODES: Final = (0o644, 0o755, 0o777, 0o600, 0o000, 0o4755, 0o2755, 0o2644, 0o6777, 0o1777, 0o2770, 0o1644, 0o070, 0o007, 0o444, 0o111, 0o7000)
UMASKS: Final = (0o022, 0, 0o077, 0o777)
IDS: Final = (-1, 0, ALICE.uid, BOB.uid, NOBODY.uid, COMMON)
SIZES: Final = (
    0, 1, 2, 100, 511, 4095, 4096, 4097, 8191, 12289,
    64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB + 1, 256 * KIB + 3, 1024 * KIB, 1024 * KIB + 1,
)  # fmt: skip
"""Around the borders of pages and of the smallest, the middle and the largest chunk. Small ones come first, as Hypothesis prefers them."""
OFFSETS: Final = SIZES
CREATE: Final = os.O_CREAT
FLAGS: Final = (
    os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC,
    os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_SYNC, os.O_RDWR | os.O_DSYNC, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW,
    os.O_RDWR | os.O_NOFOLLOW, os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY | os.O_NOATIME, os.O_RDWR | os.O_DIRECTORY,
    os.O_WRONLY | os.O_APPEND | os.O_TRUNC, os.O_RDWR | os.O_NOATIME,
)  # fmt: skip
CREATING_FLAGS: Final = (
    os.O_RDWR, os.O_RDWR | os.O_EXCL, os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_RDONLY, os.O_RDWR | os.O_APPEND,
    os.O_RDWR | os.O_EXCL | os.O_TRUNC, os.O_RDWR | os.O_NOFOLLOW, os.O_RDWR | os.O_DIRECTORY, os.O_RDONLY | os.O_TRUNC, os.O_RDWR | os.O_SYNC,
    os.O_WRONLY | os.O_EXCL | os.O_NOFOLLOW,
)  # fmt: skip
BELOW: Final = ("openat", "mkdirat", "symlinkat", "unlinkat", "rmdirat", "statat")
INTO: Final = ("rename_into", "link_into", "rename_out")
REOPEN_FLAGS: Final = tuple(flags for flags in FLAGS if not flags & os.O_NOFOLLOW)
"""What is opened by the link in /proc; not the link, whose mode is that of whatever has the number now."""
RENAME_FLAGS: Final = (RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, RENAME_EXCHANGE | RENAME_NOREPLACE, RENAME_NOREPLACE | RENAME_WHITEOUT, 8)
SECOND_NS: Final = 1_000_000_000
TIMES: Final[tuple[Time, ...]] = (
    "now", "omit", 0, 1, 1_000_000_000_123_456_789, 1_500_000_000 * SECOND_NS, -1, -(2**31) * SECOND_NS, 2**31 * SECOND_NS,
    (2**32 + 5) * SECOND_NS + 999_999_999,
)  # fmt: skip
ATTRIBUTES: Final = ("user.a", "user.b", "user.caf\u00e9", "trusted.t", "user.", "bogus.a", "user." + "n" * 250, "user." + "n" * 251)
VALUES: Final = (b"", b"x", b"value\0with\xff", b"v" * 200)
LISTS: Final = (
    acl(7, 5, 5), acl(6, 0, 0), acl(7, 5, 0, users={ALICE.uid: 7}), acl(6, 4, 4, users={BOB.uid: 0}), acl(7, 0, 0, groups={COMMON: 7}),
    acl(7, 7, 7, users={ALICE.uid: 4, NOBODY.uid: 2}, groups={COMMON: 1}), acl(0, 0, 0), b"", b"\2\0\0\0", b"\1\0\0\0", acl(7, 5, 5)[:-1],
)  # fmt: skip
ALIGNED: Final = frozenset().union(*(known.calls for known in KNOWN if known.kept))
ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"


@dataclass(slots=True)
class Counts:
    """What has been done."""

    sequences: int = 0
    steps: int = 0
    trees: int = 0
    snapshots: int = 0
    remounts: int = 0
    survey: dict[str, tuple[int, str]] | None = None
    """When it is a dictionary, a difference ends its sequence only, and is kept here: how often there was one of its kind, and the first of them."""
    calls: dict[str, list[int]] = field(default_factory=dict)
    """For each call how often it succeeded and how often it was refused."""

    def count(self, call: str, refused: bool) -> None:
        """One call was made."""
        self.calls.setdefault(call, [0, 0])[refused] += 1

    def as_dict(self) -> dict[str, Any]:
        """All of it but the survey."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "survey"}

    def shown(self) -> str:
        """In one line."""
        compared = f"{self.trees} trees and {self.snapshots} snapshots compared"
        return f"{self.sequences} sequences, {self.steps} steps, {compared}, {self.remounts} remounts"


def existing() -> st.SearchStrategy[bytes]:
    """A path that leads to something."""
    return st.runner().flatmap(lambda machine: st.sampled_from(machine.paths))


def place() -> st.SearchStrategy[bytes]:
    """A path below a directory, there or not; seldom one that is wrong."""
    name = st.one_of(st.sampled_from(NAMES), st.sampled_from(NAMES + AWKWARD_NAMES))
    directory = st.runner().flatmap(lambda machine: st.sampled_from(machine.directories))
    return st.builds(_join, directory, name)


def _through() -> st.SearchStrategy[bytes]:
    return st.builds(_join, existing(), st.sampled_from(NAMES))


def _join(above: bytes, name: bytes) -> bytes:
    return name if above == b"." else above + b"/" + name


def slot() -> st.SearchStrategy[int]:
    """A descriptor that is open."""
    return st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.expected.files)))


def open_directory_slot() -> st.SearchStrategy[int]:
    return st.runner().flatmap(lambda machine: st.sampled_from(machine.open_directories()))


def mapping() -> st.SearchStrategy[int]:
    return st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.expected.maps)))


def stream() -> st.SearchStrategy[int]:
    return st.runner().flatmap(lambda machine: st.sampled_from(sorted(machine.expected.streams)))


anything = st.one_of(existing(), existing(), existing(), existing(), existing(), place(), _through())
new = st.one_of(place(), place(), place(), place(), place(), existing(), _through())
who = st.sampled_from(WHO[:2] * 3 + WHO)
mostly_root = st.sampled_from(WHO[:1] * 4 + WHO)
umasks = st.sampled_from(UMASKS)
modes = st.one_of(st.sampled_from(MODES[:3]), st.sampled_from(MODES), st.integers(0, 0o7777))
sizes = st.one_of(st.sampled_from(SIZES), st.integers(0, 20_000))
datas = st.builds(lambda start, size: NOISE[start * 4099 : start * 4099 + size], st.integers(0, 255), sizes)
times = st.one_of(st.sampled_from(TIMES), st.sampled_from(TIMES[:2]))
ids = st.sampled_from(IDS)
follows = st.booleans()
xattr_flags = st.sampled_from((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
has_files = precondition(lambda machine: machine.expected.files)
has_directories = precondition(lambda machine: machine.open_directories())
has_maps = precondition(lambda machine: machine.expected.maps)
has_streams = precondition(lambda machine: machine.expected.streams)


class Difference(AssertionError):
    """The two sides are not alike."""


class SideBySide(RuleBasedStateMachine):
    """One sequence: a directory on each side, and the calls below it. `found` makes the side that is held against ext4."""

    def __init__(self, base: Path, ground: Ground, counts: Counts, found: type[Side] = Side) -> None:
        super().__init__()
        self._ground = ground
        self.counts = counts
        counts.sequences += 1
        self._name = f"q{counts.sequences}"
        self._bases = base / self._name, ground.root / self._name
        for directory in self._bases:
            (directory / "t").mkdir(parents=True)
        self.expected, self.found = Side(os.fsencode(self._bases[0] / "t")), found(os.fsencode(self._bases[1] / "t"))
        self._sides = self.expected, self.found
        self._compared = ALL if is_noatime(base) else WITHOUT_ATIME
        self._openers: dict[int, Identity] = {}
        self._steps = 0
        self._differs = False
        self._made: list[str] = []
        self._snapshot_at = self._remount_at = 0
        self._kept: list[KeptSnapshot] = []
        self.paths: list[bytes] = [b"."]
        self.directories: list[bytes] = [b"."]

    @initialize(
        mode=st.sampled_from((0o777, 0o777, 0o1777, 0o3777, 0o2777)),
        furnished=st.sampled_from((False, True, True, True, True)),
        crowded=st.integers(0, 24).map(lambda n: n == 24),
        snapshot_at=st.integers(1, STEPS - 10),
        remount_at=st.integers(1, STEPS - 1),
    )
    def begin(self, mode: int, furnished: bool, crowded: bool, snapshot_at: int, remount_at: int) -> None:
        for directory in self._bases:
            os.chmod(directory / "t", mode)
        if furnished:
            self._furnish()
        if crowded:
            self._crowd()
        self._snapshot_at, self._remount_at = self._steps + snapshot_at, self._steps + remount_at

    def _furnish(self) -> None:
        """Something to begin with: half of all calls would meet nothing for long."""
        owner, other = ALICE, BOB
        self._step("mkdir", b"a", 0o777, who=owner, paths=(b"a",), names=True)
        self._step("mkdir", b"a/d", 0o2775, who=other, paths=(b"a/d",), names=True)
        for number, path, by in ((0, b"b", owner), (1, b"a/b", other)):
            self._step("open", number, path, os.O_RDWR | CREATE, 0o666, who=by, paths=(path,), names=True)
            self._step("write", number, NOISE[:5000], who=by, slots=(number,))
        self._step("link", b"b", b"a/c", False, who=owner, paths=(b"b", b"a/c"), names=True)
        self._step("symlink", b"a/b", b"c", who=owner, paths=(b"c",), names=True)

    def _crowd(self) -> None:
        """A directory of more names than one answer to a listing holds."""
        for side in self._sides:
            side.mkdir(b"crowd", 0o777)
            for n in range(CROWD):
                os.mknod(side.at(b"crowd/%d" % n), 0o644)
        self.paths, self.directories = self.expected.paths()

    # --- descriptors ---

    @rule(path=anything, flags=st.sampled_from(FLAGS), number=st.integers(0, SLOTS - 1), who=who)
    def open_existing(self, path: bytes, flags: int, number: int, who: Identity) -> None:
        self._open(number, path, flags, 0, who, 0)

    @rule(path=new, flags=st.sampled_from(CREATING_FLAGS), mode=modes, number=st.integers(0, SLOTS - 1), who=who, umask=umasks)
    def open_new(self, path: bytes, flags: int, mode: int, number: int, who: Identity, umask: int) -> None:
        self._open(number, path, flags | CREATE, mode, who, umask)

    def _open(self, number: int, path: bytes, flags: int, mode: int, who: Identity, umask: int) -> None:
        if number in self.expected.files:
            self._step("close", number, who=who)
        self._step("open", number, path, flags, mode, who=who, umask=umask, paths=(path,), names=bool(flags & CREATE))

    @has_files
    @rule(number=slot())
    def close(self, number: int) -> None:
        self._step("close", number, who=self._openers[number])

    @rule(path=place(), who=who)
    def add_file(self, path: bytes, who: Identity) -> None:
        """With `append` the simplest rule of all, since Hypothesis draws that more often than others."""
        number = next((number for number in range(SLOTS) if number not in self.expected.files), 0)
        self._open(number, path, os.O_RDWR | CREATE, 0o666, who, 0o022)

    @has_files
    @rule(number=slot())
    def append(self, number: int) -> None:
        self._step("write", number, NOISE[:100], who=self._openers[number], slots=(number,))

    @has_files
    @rule(number=slot(), data=datas, who=who)
    def write(self, number: int, data: bytes, who: Identity) -> None:
        self._step("write", number, data, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), data=datas, offset=sizes, who=who)
    def pwrite(self, number: int, data: bytes, offset: int, who: Identity) -> None:
        self._step("pwrite", number, data, offset, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), size=sizes)
    def read(self, number: int, size: int) -> None:
        self._step("read", number, size, who=self._openers[number], slots=(number,))

    @has_files
    @rule(number=slot(), size=sizes, offset=sizes)
    def pread(self, number: int, size: int, offset: int) -> None:
        self._step("pread", number, size, offset, who=self._openers[number], slots=(number,))

    @has_files
    @rule(number=slot(), offset=sizes, whence=st.sampled_from((os.SEEK_SET, os.SEEK_CUR, os.SEEK_END)), backwards=st.booleans())
    def lseek(self, number: int, offset: int, whence: int, backwards: bool) -> None:
        if not self._is_directory(number):  # a place in one is its file system's own
            self._step("lseek", number, -offset if backwards else offset, whence, who=self._openers[number], slots=(number,))

    def _is_directory(self, number: int) -> bool:
        return stat.S_ISDIR(os.fstat(self.expected.files[number].descriptor).st_mode)

    @has_files
    @rule(number=slot(), size=sizes, who=who)
    def ftruncate(self, number: int, size: int, who: Identity) -> None:
        self._step("ftruncate", number, size, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), only_data=st.booleans())
    def fsync(self, number: int, only_data: bool) -> None:
        self._step("fdatasync" if only_data else "fsync", number, who=self._openers[number], slots=(number,))

    @has_files
    @rule(number=slot(), mode=modes, who=who)
    def fchmod(self, number: int, mode: int, who: Identity) -> None:
        self._step("fchmod", number, mode, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), uid=ids, gid=ids, who=who)
    def fchown(self, number: int, uid: int, gid: int, who: Identity) -> None:
        self._step("fchown", number, uid, gid, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), atime=times, mtime=times, who=who)
    def futimens(self, number: int, atime: Time, mtime: Time, who: Identity) -> None:
        self._step("futimens", number, atime, mtime, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), path=new, who=who)
    def link_open(self, number: int, path: bytes, who: Identity) -> None:
        self._step("link_open", number, path, who=who, slots=(number,), paths=(path,), names=True)

    @has_files
    @rule(number=slot(), name=st.sampled_from(ATTRIBUTES), value=st.sampled_from(VALUES), flags=xattr_flags, who=who)
    def fsetxattr(self, number: int, name: str, value: bytes, flags: int, who: Identity) -> None:
        self._step("fsetxattr", number, name, value, flags, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), name=st.sampled_from((*ATTRIBUTES, ACCESS, DEFAULT)), who=who)
    def fremovexattr(self, number: int, name: str, who: Identity) -> None:
        self._step("fremovexattr", number, name, who=who, slots=(number,))

    @has_files
    @rule(number=slot(), number_of_new=st.integers(0, SLOTS - 1), flags=st.sampled_from(REOPEN_FLAGS))
    def reopen(self, number: int, number_of_new: int, flags: int) -> None:
        """Also what has no name any more. As root: whoever has taken other ids may not look into /proc."""
        if number_of_new not in self.expected.files:
            self._step("reopen", number_of_new, number, flags, who=ROOT, slots=(number,))

    # --- below an open directory ---

    @rule(path=st.runner().flatmap(lambda machine: st.sampled_from(machine.directories)), number=st.integers(0, SLOTS - 1), who=who)
    def open_directory(self, path: bytes, number: int, who: Identity) -> None:
        self._open(number, path, os.O_RDONLY | os.O_DIRECTORY, 0, who, 0)

    def open_directories(self) -> list[int]:
        """Their numbers."""
        return [number for number in sorted(self.expected.files) if self._is_directory(number)]

    @has_directories
    @rule(number=open_directory_slot(), call=st.sampled_from(BELOW), name=st.sampled_from(NAMES + AWKWARD_NAMES), who=mostly_root)
    def below(self, number: int, call: str, name: bytes, who: Identity) -> None:
        self._step(call, number, name, who=who, slots=(number,), names=True)

    @has_directories
    @rule(number=open_directory_slot(), call=st.sampled_from(INTO), name=st.sampled_from(NAMES), path=existing(), who=mostly_root)
    def into(self, number: int, call: str, name: bytes, path: bytes, who: Identity) -> None:
        self._step(call, number, name, path, who=who, slots=(number,), paths=(path,), names=True)

    # --- mappings ---

    @has_files
    @rule(number=slot(), key=st.integers(0, 1))
    def map_file(self, number: int, key: int) -> None:
        if not self._is_directory(number):  # of a size that is its file system's own
            self._step("map", number, key, who=self._openers[number], slots=(number,))

    @has_maps
    @rule(key=mapping(), data=datas, offset=sizes)
    def store(self, key: int, data: bytes, offset: int) -> None:
        self._step("store", key, data, offset, who=ROOT, maps=(key,))

    @has_maps
    @rule(key=mapping(), size=sizes, offset=sizes)
    def load(self, key: int, size: int, offset: int) -> None:
        self._step("load", key, size, offset, who=ROOT)

    # --- names ---

    @rule(path=anything, size=sizes, who=who)
    def truncate(self, path: bytes, size: int, who: Identity) -> None:
        self._step("truncate", path, size, who=who, paths=(path,))

    @rule(path=new, mode=modes, who=who, umask=umasks)
    def mkdir(self, path: bytes, mode: int, who: Identity, umask: int) -> None:
        self._step("mkdir", path, mode, who=who, umask=umask, paths=(path,), names=True)

    @rule(path=st.one_of(anything, st.runner().flatmap(lambda machine: st.sampled_from(machine.directories))), who=who)
    def rmdir(self, path: bytes, who: Identity) -> None:
        self._step("rmdir", path, who=who, paths=(path,), names=True)

    @rule(path=anything, who=who)
    def unlink(self, path: bytes, who: Identity) -> None:
        self._step("unlink", path, who=who, paths=(path,), names=True)

    @rule(old=anything, path=new, who=who)
    def rename(self, old: bytes, path: bytes, who: Identity) -> None:
        self._step("rename", old, path, who=who, paths=(old, path), names=True)

    @rule(old=anything, path=new, flags=st.sampled_from(RENAME_FLAGS), who=who)
    def renameat2(self, old: bytes, path: bytes, flags: int, who: Identity) -> None:
        self._step("renameat2", old, path, flags, who=who, paths=(old, path), names=True)

    @rule(old=existing(), other=existing(), who=who)
    def exchange(self, old: bytes, other: bytes, who: Identity) -> None:
        self._step("renameat2", old, other, RENAME_EXCHANGE, who=who, paths=(old, other), names=True)

    @rule(old=anything, path=new, follow=follows, who=who)
    def link(self, old: bytes, path: bytes, follow: bool, who: Identity) -> None:
        self._step("link", old, path, follow, who=who, paths=(old, path), names=True)

    @rule(leads_to=st.sampled_from(TARGETS), path=new, who=who, umask=umasks)
    def symlink(self, leads_to: bytes, path: bytes, who: Identity, umask: int) -> None:
        self._step("symlink", leads_to, path, who=who, umask=umask, paths=(path,), names=True)

    @rule(path=anything, who=who)
    def readlink(self, path: bytes, who: Identity) -> None:
        self._step("readlink", path, who=who, paths=(path,))

    @rule(
        path=new, kind=st.sampled_from((stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFREG, 0)), mode=modes, who=who, umask=umasks
    )
    def mknod(self, path: bytes, kind: int, mode: int, who: Identity, umask: int) -> None:
        device = os.makedev(1, 3) if kind in {stat.S_IFCHR, stat.S_IFBLK} else 0
        self._step("mknod", path, kind | mode, device, who=who, umask=umask, paths=(path,), names=True)

    # --- attributes ---

    @rule(path=anything, mode=modes, who=who)
    def chmod(self, path: bytes, mode: int, who: Identity) -> None:
        self._step("chmod", path, mode, who=who, paths=(path,))

    @rule(path=anything, uid=ids, gid=ids, follow=follows, who=who)
    def chown(self, path: bytes, uid: int, gid: int, follow: bool, who: Identity) -> None:
        self._step("chown", path, uid, gid, follow, who=who, paths=(path,))

    @rule(path=anything, atime=times, mtime=times, follow=follows, who=who)
    def utimens(self, path: bytes, atime: Time, mtime: Time, follow: bool, who: Identity) -> None:
        self._step("utimens", path, atime, mtime, follow, who=who, paths=(path,))

    @rule(path=anything, name=st.sampled_from(ATTRIBUTES), value=st.sampled_from(VALUES), flags=xattr_flags, follow=follows, who=who)
    def setxattr(self, path: bytes, name: str, value: bytes, flags: int, follow: bool, who: Identity) -> None:
        self._step("setxattr", path, name, value, flags, follow, who=who, paths=(path,))

    @rule(path=anything, name=st.sampled_from((ACCESS, DEFAULT)), value=st.sampled_from(LISTS), who=who)
    def set_list(self, path: bytes, name: str, value: bytes, who: Identity) -> None:
        self._step("setxattr", path, name, value, 0, True, who=who, paths=(path,))

    @rule(path=anything, name=st.sampled_from((*ATTRIBUTES, ACCESS, DEFAULT)), follow=follows, who=who)
    def getxattr(self, path: bytes, name: str, follow: bool, who: Identity) -> None:
        self._step("getxattr", path, name, follow, who=who, paths=(path,))

    @rule(path=anything, follow=follows, who=who)
    def listxattr(self, path: bytes, follow: bool, who: Identity) -> None:
        self._step("listxattr", path, follow, who=who, paths=(path,))

    @rule(path=anything, name=st.sampled_from((*ATTRIBUTES, ACCESS, DEFAULT)), follow=follows, who=who)
    def removexattr(self, path: bytes, name: str, follow: bool, who: Identity) -> None:
        self._step("removexattr", path, name, follow, who=who, paths=(path,))

    # --- looking as somebody ---

    @rule(path=anything, mode=st.sampled_from((os.R_OK, os.W_OK, os.X_OK, os.R_OK | os.W_OK | os.X_OK, os.F_OK)), who=who)
    def access(self, path: bytes, mode: int, who: Identity) -> None:
        self._step("access", path, mode, who=who)

    @rule(path=anything, who=who)
    def stat_path(self, path: bytes, who: Identity) -> None:
        self._step("stat", path, who=who)

    @rule(path=anything, who=who)
    def list_directory(self, path: bytes, who: Identity) -> None:
        self._step("listdir", path, who=who)

    # --- directories that are being read ---

    @rule(path=st.runner().flatmap(lambda machine: st.sampled_from(machine.directories)), key=st.integers(0, 1))
    def opendir(self, path: bytes, key: int) -> None:
        if key in self.expected.streams:
            self._step("closedir", key, who=ROOT)
        self._step("opendir", key, path, who=ROOT)

    @has_streams
    @rule(key=stream(), to_the_end=st.booleans())
    def readdir(self, key: int, to_the_end: bool) -> None:
        self._step("readdir", key, to_the_end, who=ROOT)

    @has_streams
    @rule(key=stream())
    def rewinddir(self, key: int) -> None:
        self._step("rewinddir", key, who=ROOT)

    def _follow(self, key: int) -> None:
        """Read from the start: what stands there now is what must be read."""
        names = self._listed(self.expected.streams[key])
        for side in self._sides:
            kept = side.streams[key]
            kept.standing, kept.possible = set(names), set(names)
            kept.read.clear()

    def _listed(self, kept: Stream) -> set[bytes]:
        try:
            return {os.fsencode(name) for name in os.listdir(f"/proc/self/fd/{kept.descriptor}")}
        except FileNotFoundError:  # it was removed
            return set()

    # --- a step ---

    def _step(
        self,
        call: str,
        *arguments: Any,
        who: Identity,
        umask: int = 0,
        paths: tuple[bytes, ...] = (),
        slots: tuple[int, ...] = (),
        maps: tuple[int, ...] = (),
        names: bool = False,
    ) -> object:
        """Make a call on both sides, compare what it gives and what it touched; what it gives."""
        self._steps += 1
        self.counts.steps += 1
        parents = tuple(sorted({os.path.dirname(path.rstrip(b"/")) or b"." for path in paths} - set(paths)))
        before = tuple(self._before(side, (*paths, *parents), side.open_ones(slots, maps)) for side in self._sides)
        begin = time.clock_gettime_ns(CLOCK_REALTIME_COARSE), time.time_ns()
        results = []
        for side in self._sides:
            with acting_as(who, umask):
                results.append(side.attempt(call, *arguments))
        moment = Moment(*begin, time.time_ns())
        expected, found = results
        self._made.append(f"{call}({', '.join(map(_shown, arguments))}) by {who}, umask {umask:03o}: {_shown(expected)}")
        faults = [] if expected == found else [f"{call} gives {_shown(expected)} on ext4 and {_shown(found)}"]
        if expected is None and found is None:
            self._keep(call, arguments, who)
        fails = isinstance(expected, str) and expected.isupper()
        self.counts.count(call, fails)
        faults += self._look(f"{call}: {expected}" if fails else call, before, moment, paths, parents, slots, maps, names)
        if faults:
            self._differ(f"{call}{arguments!r:.400} by {who}", faults)
        if names:
            self.paths, self.directories = self.expected.paths()
            for key, kept in self.expected.streams.items():
                standing = self._listed(kept)
                for side in self._sides:
                    side.streams[key].update(standing)
        if call in ALIGNED:
            self._align(paths, slots)
        self._now_and_then()
        return expected

    def _align(self, paths: Iterable[bytes], slots: Iterable[int]) -> None:
        """A time that was set and then changed on ext4 only, for a reason that is known, is set anew: later steps compare what is set."""
        pairs: list[tuple[bytes | int, bytes | int]] = [
            *((self.expected.at(path), self.found.at(path)) for path in paths),
            *((self.expected.files[number].descriptor, self.found.files[number].descriptor) for number in slots),
        ]
        for expected, found in pairs:
            try:
                was, now = os.stat(expected), os.stat(found)
            except OSError:
                continue
            if now.st_mtime_ns != was.st_mtime_ns and abs(now.st_mtime_ns - time.time_ns()) > SET_NS:
                for each in (expected, found):
                    os.utime(each, ns=(was.st_atime_ns, now.st_mtime_ns))

    def _keep(self, call: str, arguments: tuple[Any, ...], who: Identity) -> None:
        """Something is open now that later steps use."""
        if call in {"open", "reopen"}:
            self._openers[arguments[0]] = who
            for side in self._sides:
                side.opened(arguments[0])
        elif call in {"opendir", "rewinddir"}:
            self._follow(arguments[0])

    def _before(self, side: Side, paths: Iterable[bytes], opened: Mapping[str, tuple[int, int | None]]) -> dict[int, Before]:
        seen = [side.before_open(descriptor) for descriptor, _ in opened.values()]
        for path in paths:
            seen += side.before(path)
        return dict(seen)

    def _look(
        self,
        call: str,
        before: tuple[dict[int, Before], ...],
        moment: Moment,
        paths: Iterable[bytes],
        parents: Iterable[bytes],
        slots: Iterable[int],
        maps: Iterable[int],
        names: bool,
    ) -> list[str]:
        faults: list[str] = []

        def compare(what: str, look: Callable[[Side], Seen | str]) -> Seen | str:
            expected, found = look(self.expected), look(self.found)
            faults.extend(seen_faults(what, expected, found, (before[0], before[1]), moment, self._compared, call))
            return expected

        for path in paths:
            seen = compare(repr(path), lambda side, path=path: side.look(path))  # type: ignore[misc]
            if isinstance(seen, Seen) and stat.S_ISLNK(seen.facts.mode):
                compare(f"what {path!r} leads to", lambda side, path=path: side.look(path, follow=True))  # type: ignore[misc]
        for path in parents:
            compare(f"the directory {path!r}", lambda side, path=path: side.look_briefly(path))  # type: ignore[misc]
            if names:
                expected, found = self.expected.names(path), self.found.names(path)
                if expected != found:
                    faults.append(f"{path!r} lists {expected!r} on ext4 and {found!r}")
        for what in self.expected.open_ones(slots, maps):
            compare(what, lambda side, what=what: side.look_open(*side.open_ones(slots, maps)[what]))  # type: ignore[misc]
        return faults

    def _now_and_then(self) -> None:
        if self._steps == self._snapshot_at:
            self._snapshot()
        if self._steps == self._remount_at:
            self._remount()
        if self._steps % TREE_EVERY == 0:
            self._compare_trees()

    def _compare_trees(self) -> dict[bytes, Seen]:
        moment = Moment(0, 0, time.time_ns())
        found: dict[bytes, Seen] = self.found.tree()
        faults = tree_faults(self.expected.tree(), found, moment, self._compared)
        if faults:
            self._differ("the whole tree", faults)
        self.counts.trees += 1
        return found

    def _snapshot(self) -> None:
        """Take one, and see that it has what ext4 has, and to the last time what the mount has."""
        expected = manifest(self._bases[0])
        present = manifest(self._bases[1])
        assert_same(expected, present, ignore=["mtime_ns"])
        kept = KeptSnapshot(self._ground.snapshot() / self._name, present)
        kept.compare(self._bases[1])
        self.counts.snapshots += 1
        self._kept.append(kept)
        self._ground.recent.append(kept)

    def _remount(self) -> None:
        """Nothing is open then; everything is as before, times and inode numbers included."""
        for side in self._sides:
            side.close_all()
        before = self._compare_trees()
        self._ground.remount()
        self.counts.remounts += 1
        after = self._compare_trees()
        faults = [f"{path!r}: {seen} is {after[path]}" for path, seen in before.items() if seen != after[path]]
        if faults:
            self._differ("mounted anew", faults)

    def _differ(self, what: str, faults: list[str]) -> None:
        shown = f"step {self._steps}: {what}:\n  " + "\n  ".join(faults[:20])
        if self.counts.survey is None:
            raise Difference(shown)
        kind = what.split("(", maxsplit=1)[0] + ": " + re.sub(r"-?[0-9]+|b'.*?'|b\".*?\"", "_", faults[0])[:120]
        if kind not in self.counts.survey:
            print(f"a difference: {shown}", flush=True)
        often, first = self.counts.survey.get(kind, (0, shown + "\nafter\n  " + "\n  ".join(self._made)))
        self.counts.survey[kind] = often + 1, first
        self._differs = True
        reject()

    def teardown(self) -> None:
        try:
            if self._differs:
                return
            self._compare_trees()
            for side in self._sides:
                side.close_all()
            for kept in self._kept:
                kept.compare()
                self.counts.snapshots += 1
        finally:
            for side in self._sides:
                side.close_all()
            for directory in self._bases:
                shutil.rmtree(directory)


def _shown(result: object) -> str:
    if isinstance(result, bytes | str) and len(result) > 60:
        return f"{result[:20]!r}... ({len(result)})"
    return repr(result)


def run_sequences(
    base: Path,
    ground: Ground,
    counts: Counts,
    *,
    first_seed: int,
    sequences: int,
    found: type[Side] = Side,
    shrink: bool = True,
) -> None:
    """So many sequences; Difference with the shortest sequence that Hypothesis finds."""

    def made() -> SideBySide:
        return SideBySide(base, ground, counts, found)

    run_state_machine_as_test(
        seed(first_seed)(made),  # type: ignore[arg-type]
        settings=settings(
            max_examples=sequences,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=False,
            database=None,
            phases=[Phase.generate, Phase.shrink] if shrink and counts.survey is None else [Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
        _min_steps=STEPS,
    )
