"""What a tree is, read with plain system calls: the oracle that a mount and its snapshots are held against.

    python -m tests.oracle.manifest DIR          one JSON line per entry, and the hash of the whole on stderr
    python -m tests.oracle.manifest DIR OTHER    compares; exit code 1 and one line per difference if they differ

It shares no code with backupfs. Two trees are equal when their entries are: path bytes, type, mode, owner, size (not of
directories: each file system has its own idea of that), mtime in nanoseconds, link target, which names are one file,
xattrs with the ACLs among them, device numbers and the SHA-256 of the content. Names are followed by directory
descriptors, so a path may be longer than PATH_MAX. What may not be read is recorded as unreadable, never left out.
"""

import argparse
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

UNREADABLE: Final = "unreadable"

_TYPES: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}

Xattrs = tuple[tuple[bytes, bytes | None], ...]
"""Sorted by name; a value that may not be read is None."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of a tree."""

    path: bytes
    """Relative to the tree's root, which is b"." itself."""
    type: str
    mode: int
    """The twelve permission bits."""
    uid: int
    gid: int
    size: int | None
    mtime_ns: int
    target: bytes | None
    same_file_as: bytes | None
    """The first path (in byte order) of those in the tree that are the same file; None when there is one only."""
    xattrs: Xattrs
    rdev: tuple[int, int] | None
    sha256: str | None

    def as_json(self) -> str:
        """One line; bytes stand as text with surrogate escapes, as Python shows file names."""
        return json.dumps(asdict(self), default=_shown)


Manifest = Mapping[bytes, Entry]


def manifest(root: str | bytes | os.PathLike[str], *, leave_out: Iterable[bytes] = ()) -> Manifest:
    """Everything below `root` and `root` itself, by path; names of the root in `leave_out` are passed over."""
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names_of: dict[tuple[int, int], list[bytes]] = {}
        entries: dict[bytes, Entry] = {}
        passed_over = frozenset(leave_out)
        for entry, identity in _walk(top, b"", passed_over):
            entries[entry.path] = entry
            names_of.setdefault(identity, []).append(entry.path)
        entries[b"."], _ = _entry_at(top, b".", b".")
    finally:
        os.close(top)
    for names in names_of.values():
        if len(names) > 1:
            first = min(names)
            for name in names:
                entries[name] = replace(entries[name], same_file_as=first)
    return dict(sorted(entries.items()))


def differences(expected: Manifest, found: Manifest, *, ignore: Iterable[str] = ()) -> list[str]:
    """One line per entry that is missing, too many or different, in path order; fields in `ignore` do not count."""
    compared = [field.name for field in fields(Entry) if field.name not in frozenset(ignore)]
    lines = []
    for path in sorted(expected.keys() | found.keys()):
        if path not in found:
            lines.append(f"{path!r}: missing")
        elif path not in expected:
            lines.append(f"{path!r}: not expected")
        else:
            pairs = ((name, getattr(expected[path], name), getattr(found[path], name)) for name in compared)
            different = [f"{name} {was!r:.300} is {now!r:.300}" for name, was, now in pairs if was != now]
            if different:
                lines.append(f"{path!r}: {'; '.join(different)}")
    return lines


def assert_same(expected: Manifest, found: Manifest, *, ignore: Iterable[str] = ()) -> None:
    """Raises AssertionError with the first differences."""
    lines = differences(expected, found, ignore=ignore)
    shown = "\n".join(lines[:20])
    assert not lines, f"{len(lines)} of {len(expected)} entries differ:\n{shown}"


def tree_hash(entries: Manifest) -> str:
    """One SHA-256 over all of it: equal manifests have equal hashes."""
    digest = hashlib.sha256()
    for entry in entries.values():
        digest.update(entry.as_json().encode("ascii") + b"\n")
    return digest.hexdigest()


def _walk(directory: int, prefix: bytes, passed_over: frozenset[bytes]) -> Iterator[tuple[Entry, tuple[int, int]]]:
    """Depth first; holds one descriptor per level."""
    for name in sorted(os.fsencode(name) for name in os.listdir(directory)):
        if name in passed_over:
            continue
        path = prefix + name
        entry, status = _entry_at(directory, name, path)
        yield entry, (status.st_dev, status.st_ino)
        if entry.type == "directory":
            try:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            except PermissionError:
                continue  # its entry says so
            try:
                yield from _walk(below, path + b"/", frozenset())
            finally:
                os.close(below)


def _entry_at(directory: int, name: bytes, path: bytes) -> tuple[Entry, os.stat_result]:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    is_device = kind in {stat.S_IFCHR, stat.S_IFBLK}
    entry = Entry(
        path=path,
        type=_TYPES[kind],
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=None if kind == stat.S_IFDIR else status.st_size,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(name, dir_fd=directory) if kind == stat.S_IFLNK else None,
        same_file_as=None,
        xattrs=_xattrs(directory, name),
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else None,
        sha256=_sha256(directory, name, kind),
    )
    return entry, status


def _xattrs(directory: int, name: bytes) -> Xattrs:
    # There is no getxattrat, and a FIFO or a symlink cannot be opened for it: the way through /proc needs neither.
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    try:
        names = sorted(os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False))
    except PermissionError:
        return ((UNREADABLE.encode(), None),)
    values: list[tuple[bytes, bytes | None]] = []
    for attribute in names:
        try:
            values.append((attribute, os.getxattr(path, attribute, follow_symlinks=False)))
        except PermissionError:
            values.append((attribute, None))
    return tuple(values)


def _sha256(directory: int, name: bytes, kind: int) -> str | None:
    """Of a file's content; of a directory only whether it may be listed."""
    if kind not in {stat.S_IFREG, stat.S_IFDIR}:
        return None
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
    except PermissionError:
        return UNREADABLE
    if kind == stat.S_IFDIR:
        os.close(descriptor)
        return None
    with open(descriptor, "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shown(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(type(value).__name__)
    return os.fsdecode(value)


def main(arguments: list[str]) -> int:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="manifest", description="Manifest of a tree, or the differences of two.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--leave-out", action="append", default=[], metavar="NAME", help="pass over this name of the root")
    parser.add_argument("--ignore", action="append", default=[], metavar="FIELD", help="a field that need not be equal")
    options = parser.parse_args(arguments)
    leave_out = [os.fsencode(name) for name in options.leave_out]
    entries = manifest(options.directory, leave_out=leave_out)
    if options.other is None:
        for entry in entries.values():
            print(entry.as_json())
        print(f"{len(entries)} entries, {tree_hash(entries)}", file=sys.stderr)
        return 0
    lines = differences(entries, manifest(options.other, leave_out=leave_out), ignore=options.ignore)
    for line in lines:
        print(line)
    print(f"{len(entries)} entries, {len(lines)} differences", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
