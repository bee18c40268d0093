"""A tree of everything that copying gets wrong, made from a seed.

    python -m tests.oracle.awkward DIR [--seed N] [--files N]

As root it holds devices, foreign owners, trusted xattrs and unreadable modes too; otherwise what an ordinary user may
make. The same seed makes the same tree (as the same kind of user). Everything in it exists on ext4, so it can be made
there and copied.
"""

import argparse
import os
import random
import socket
import stat
import struct
import sys
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

_ACL_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID: Final = 0xFFFF_FFFF

# What ext4 with 256-byte inodes can hold: 1901 to 2446.
_EARLIEST_S: Final = -(2**31)
_LATEST_S: Final = 15_032_385_534

_WORDS: Final = (
    b"the quick brown fox jumps over a lazy dog while lorem ipsum dolor sit amet consectetur adipiscing elit sed do "
    b"eiusmod tempor incididunt ut labore et dolore magna aliqua"
).split()


def acl(owner: int, group: int, other: int, *, users: dict[int, int] | None = None, groups: dict[int, int] | None = None) -> bytes:
    """A POSIX ACL as the kernel's xattr carries it; the mask is the union of what it bounds."""
    users, groups = users or {}, groups or {}
    named = sorted(users.items()), sorted(groups.items())
    entries = [(_USER_OBJ, owner, _NO_ID)]
    entries += [(_USER, permissions, uid) for uid, permissions in named[0]]
    entries.append((_GROUP_OBJ, group, _NO_ID))
    entries += [(_GROUP, permissions, gid) for gid, permissions in named[1]]
    if users or groups:
        mask = group
        for permissions in (*users.values(), *groups.values()):
            mask |= permissions
        entries.append((_MASK, mask, _NO_ID))
    entries.append((_OTHER, other, _NO_ID))
    return struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def noise(rng: random.Random, size: int) -> bytes:
    """Bytes that compress to nothing less."""
    return rng.randbytes(size)


def text(rng: random.Random, size: int) -> bytes:
    """Bytes that compress as prose does."""
    words = b" ".join(rng.choices(_WORDS, k=max(1, min(size, 64 * KIB) // 5)))
    return (words * (size // len(words) + 1))[:size]


class _Maker:
    """Makes the tree below one root; every random choice comes from its seed."""

    def __init__(self, root: bytes, seed: int, *, privileged: bool) -> None:
        self._root = root
        self._rng = random.Random(seed)
        self._privileged = privileged
        self._modes_at_last: dict[bytes, int] = {}

    def make(self, files: int) -> None:
        os.makedirs(self._root, exist_ok=True)
        self._sizes()
        self._sparse_files()
        self._names()
        self._depth()
        self._hard_links()
        self._symlinks()
        self._special_files()
        self._xattrs()
        self._acls()
        self._ordinary(files)
        self._modes()
        if self._privileged:
            self._owners()
        # From here on nothing is added; a mode that closes a directory to its owner comes last.
        self._times()
        for path, mode in self._modes_at_last.items():
            os.chmod(path, mode)

    def _at(self, *parts: bytes) -> bytes:
        return b"/".join((self._root, *parts))

    def _directory(self, *parts: bytes) -> bytes:
        path = self._at(*parts)
        os.makedirs(path, exist_ok=True)
        return path

    def _file(self, path: bytes, content: bytes) -> bytes:
        with open(path, "xb") as file:
            file.write(content)
        return path

    def _sizes(self) -> None:
        """Empty, one byte, and both sides of every power of two up to 2 MiB: block, chunk and request sizes."""
        place = self._directory(b"sizes")
        sizes = {0, 1, 2, 3}
        for power in range(9, 22):
            sizes |= {2**power - 1, 2**power, 2**power + 1}
        for size in sorted(sizes):
            make = text if self._rng.random() < 0.5 else noise
            self._file(b"%s/%d" % (place, size), make(self._rng, size))
        self._file(place + b"/many-chunks", noise(self._rng, 3 * MIB) + text(self._rng, 3 * MIB + 12345))
        self._file(place + b"/all-zero", bytes(1 * MIB + 1))
        twin = noise(self._rng, 700 * KIB)
        for name in (b"twin-a", b"twin-b"):
            self._file(place + b"/" + name, twin)

    def _sparse_files(self) -> None:
        place = self._directory(b"sparse")
        layouts: dict[bytes, tuple[int, list[tuple[int, int]]]] = {
            b"only-a-hole": (17 * MIB + 5, []),
            b"hole-first": (9 * MIB, [(9 * MIB - 10, 10)]),
            b"hole-last": (8 * MIB + 1, [(0, 5000)]),
            b"holes-between": (20 * MIB, [(n * 3 * MIB + 100, 70_000) for n in range(6)]),
        }
        for name, (size, pieces) in layouts.items():
            with open(place + b"/" + name, "xb") as file:
                for offset, length in pieces:
                    file.seek(offset)
                    file.write(noise(self._rng, length))
                file.truncate(size)

    def _names(self) -> None:
        place = self._directory(b"names")
        names = [bytes([value]) for value in range(1, 256) if value not in b"/."]
        names += [
            b"...",
            b".hidden",
            b"..a",
            b"-rf",
            b"--help",
            b" ",
            b"  leading and trailing  ",
            b"tab\tand\nnew\nline",
            b"\n",
        ]
        names += [
            b"invalid \xff\xfe\x80 utf-8",
            b"\xed\xa0\x80",
            b"caf\xc3\xa9",
            b"cafe\xcc\x81",
            b"\xf0\x9f\x92\xbe" * 60,
        ]
        names += [
            b"x" * 255,
            b"\xff" * 255,
            b"*",
            b"$(true)",
            b"`true`",
            b"a\\b",
            b"'\"",
            b"CON",
            b"@GMT",
            b".snapshot",
            b".snapshotss",
        ]
        names += [bytes(self._rng.choices([c for c in range(1, 256) if c != ord("/")], k=40)) for _ in range(40)]
        for number, name in enumerate(dict.fromkeys(names)):
            path = place + b"/" + name
            if number % 17 == 3:
                os.mkdir(path)
                self._file(path + b"/" + name, name)
            else:
                self._file(path, name * (number % 5))

    def _depth(self) -> None:
        """200 levels, with something on the way and at the bottom."""
        here = self._directory(b"deep")
        for level in range(200):
            here += b"/%03d" % level
            os.mkdir(here)
            if level % 20 == 0:
                self._file(here + b"/file", noise(self._rng, level))
        self._file(here + b"/bottom", b"the bottom")

    def _hard_links(self) -> None:
        place = self._directory(b"links")
        other = self._directory(b"links", b"elsewhere")
        for group, count in enumerate((2, 3, 9, 20)):
            first = self._file(b"%s/group-%d" % (place, group), noise(self._rng, 100 * group + 1))
            for n in range(1, count):
                os.link(first, b"%s/group-%d-%d" % (other if n % 2 else place, group, n))
        os.mkfifo(place + b"/fifo")
        os.link(place + b"/fifo", other + b"/fifo")
        os.symlink(b"nowhere", place + b"/symlink")
        os.link(place + b"/symlink", other + b"/symlink", follow_symlinks=False)

    def _symlinks(self) -> None:
        place = self._directory(b"symlinks")
        targets = {
            b"dangling": b"does/not/exist",
            b"absolute": b"/etc/passwd",
            b"directory": b"../names",
            b"file": b"../sizes/4096",
            b"itself": b"itself",
            b"up": b"../../../../../../../..",
            b"newline": b"line\nline",
            b"not utf-8": b"\xff\xfe\x00"[:2],
            b"one": b"x",
            b"long": b"y" * 1000,
            b"longest": (b"z" * 250 + b"/") * 16 + b"q" * 79,
        }
        for name, target in targets.items():
            os.symlink(target, place + b"/" + name)

    def _special_files(self) -> None:
        place = self._directory(b"special")
        os.mkfifo(place + b"/fifo", 0o640)
        bind_socket(place + b"/socket")
        if not self._privileged:
            return
        for name, kind, major, minor in (
            (b"null", stat.S_IFCHR, 1, 3),
            (b"zero-zero", stat.S_IFCHR, 0, 0),
            (b"big-character", stat.S_IFCHR, 4095, 1_048_575),
            (b"block", stat.S_IFBLK, 8, 1),
            (b"big-block", stat.S_IFBLK, 259, 70_000),
        ):
            os.mknod(place + b"/" + name, kind | 0o604, os.makedev(major, minor))

    def _xattrs(self) -> None:
        place = self._directory(b"xattrs")
        namespaces = [b"user"] + ([b"trusted"] if self._privileged else [])
        for namespace in namespaces:
            path = self._file(place + b"/many-" + namespace, b"content")
            for n in range(20):
                os.setxattr(path, b"%s.attribute-%d" % (namespace, n), noise(self._rng, self._rng.randrange(60)))
            odd = self._file(place + b"/odd-" + namespace, b"")
            os.setxattr(odd, namespace + b".empty", b"")
            os.setxattr(odd, namespace + b".\xff not utf-8 \n", b"\x00\x01\n\xff")
            os.setxattr(odd, namespace + b"." + b"n" * 200, b"long name")
            large = self._file(place + b"/large-" + namespace, b"")
            os.setxattr(large, namespace + b".large", noise(self._rng, 3000))
            directory = self._directory(b"xattrs", b"directory-" + namespace)
            os.setxattr(directory, namespace + b".on.a.directory", b"value")
        if self._privileged:
            path = place + b"/symlink"
            os.symlink(b"dangling", path)
            os.setxattr(path, b"trusted.on.a.symlink", b"value", follow_symlinks=False)
            os.mkfifo(place + b"/fifo")
            os.setxattr(place + b"/fifo", b"trusted.on.a.fifo", b"value")
            capable = self._file(place + b"/capable", b"#!/bin/true\n")
            # version 2, effective, CAP_NET_BIND_SERVICE permitted: what `setcap` writes
            os.setxattr(capable, b"security.capability", struct.pack("<IIIII", 0x0200_0001, 1 << 10, 0, 0, 0))

    def _acls(self) -> None:
        place = self._directory(b"acls")
        file = self._file(place + b"/file", b"content")
        os.setxattr(file, b"system.posix_acl_access", acl(6, 4, 0, users={65534: 4, 12345: 6}, groups={54321: 5}))
        masked = self._file(place + b"/masked", b"content")
        os.setxattr(masked, b"system.posix_acl_access", acl(7, 0, 0, users={n: n % 8 for n in range(1000, 1030)}))
        directory = self._directory(b"acls", b"directory")
        os.setxattr(directory, b"system.posix_acl_access", acl(7, 5, 5, users={65534: 7}))
        os.setxattr(directory, b"system.posix_acl_default", acl(7, 5, 0, users={65534: 6}, groups={100: 7}))
        self._file(directory + b"/inherits", b"content")
        os.mkdir(directory + b"/inherits-too")
        minimal = self._directory(b"acls", b"minimal-default")
        os.setxattr(minimal, b"system.posix_acl_default", acl(7, 0, 0))

    def _ordinary(self, files: int) -> None:
        """A little of everything, and one directory of more entries than one listing request carries."""
        for n in range(files):
            directory = self._directory(b"ordinary", b"%d" % (n % 7), b"%d" % (n % 3))
            size = int(self._rng.paretovariate(0.6) * 50) % (200 * KIB)
            self._file(b"%s/file %d" % (directory, n), (text if n % 2 else noise)(self._rng, size))
        many = self._directory(b"many")
        for n in range(400):
            self._file(b"%s/entry number %d %s" % (many, n, b"-" * (n % 150)), b"%d" % n)
        self._directory(b"empty")
        self._directory(b"empties", b"a", b"b")

    def _owners(self) -> None:
        place = self._directory(b"owners")
        for uid, gid in (
            (0, 0),
            (1, 2),
            (65534, 65534),
            (1000, 0),
            (0, 1000),
            (2**31, 2**31 + 1),
            (2**32 - 2, 2**32 - 2),
        ):
            path = self._file(b"%s/%d-%d" % (place, uid, gid), b"owned")
            os.chown(path, uid, gid)
            os.symlink(b"target", path + b".symlink")
            os.chown(path + b".symlink", uid, gid, follow_symlinks=False)
            os.mkdir(path + b".directory")
            os.chown(path + b".directory", uid, gid)

    def _modes(self) -> None:
        """Files of every kind of mode, set-id among them; what an ordinary user could not read back is left to root."""
        place = self._directory(b"modes")
        modes = [
            0o000,
            0o001,
            0o111,
            0o200,
            0o222,
            0o400,
            0o444,
            0o644,
            0o666,
            0o755,
            0o777,
            0o4755,
            0o2755,
            0o6755,
            0o2644,
            0o4600,
        ]
        modes += [0o1777, 0o1644, 0o7777, 0o7000]
        for mode in modes:
            path = self._file(b"%s/%04o" % (place, mode), b"%o" % mode)
            self._modes_at_last[path] = mode if self._privileged else mode | 0o400
            path += b".directory"
            os.mkdir(path)
            self._file(path + b"/within", b"")
            self._modes_at_last[path] = mode if self._privileged else mode | 0o700

    def _times(self) -> None:
        paths = [self._root]
        for here, directories, names in os.walk(self._root):
            paths += (here + b"/" + name for name in directories + names)
        for path in sorted(paths):
            self._set_time(path)

    def _set_time(self, path: bytes) -> None:
        kind = self._rng.random()
        if kind < 0.05:
            seconds = self._rng.randrange(_EARLIEST_S, 0)
        elif kind < 0.10:
            seconds = self._rng.randrange(2**32, _LATEST_S)
        elif kind < 0.12:
            seconds = self._rng.choice([-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, _LATEST_S])
        else:
            seconds = self._rng.randrange(10**9, 2 * 10**9)
        time_ns = seconds * 10**9 + self._rng.choice([0, 1, 999_999_999, self._rng.randrange(10**9)])
        os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


def bind_socket(path: bytes) -> None:
    """A socket file at `path`, whatever its length: the address of a socket may have 107 bytes only."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(b"/proc/self/fd/%d/%s" % (directory, os.path.basename(path)))
    finally:
        os.close(directory)


def make_awkward(root: str | os.PathLike[str], *, seed: int = 0, files: int = 300, privileged: bool | None = None) -> None:
    """Makes the tree below `root`, which is empty or not there yet: some 1,500 entries, 27 MB of data, 70 MB nominal.

    `privileged` (default: whether this process is root) adds what only root may make.
    """
    as_root = os.geteuid() == 0 if privileged is None else privileged
    mask = os.umask(0o022)
    try:
        _Maker(os.fsencode(root), seed, privileged=as_root).make(files)
    finally:
        os.umask(mask)


def main(arguments: list[str]) -> None:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="awkward", description="Make an awkward tree.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=300, help="ordinary files beside the awkward ones")
    options = parser.parse_args(arguments)
    make_awkward(options.directory, seed=options.seed, files=options.files)


if __name__ == "__main__":
    main(sys.argv[1:])
