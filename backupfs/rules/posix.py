"""Attribute rules of POSIX and Linux that are this side's duty: the kernel checks permissions, but the bits change here."""

import stat
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from backupfs import limits
from backupfs.rules import acl

_MOMENT_NS: Final = 1_000_000_000
"""A request takes no longer from the kernel to here, as a rule."""
_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")


def mode_after_write(mode: int, writer_is_root: bool, is_member: bool) -> int:
    """Mode of a regular file after its content or size was changed: set-id bits go, unless root did it. `is_member`: see `is_group_mark`."""
    return mode if writer_is_root else _without_set_id(mode, is_member)


def mode_after_chown(mode: int, is_member: bool) -> int:
    """Mode after the owner or group was set: set-id bits go, root or not, as ext4 has it; directories keep theirs. `is_member` of the group that the
    file had: see `is_group_mark`.
    """
    return mode if stat.S_ISDIR(mode) else _without_set_id(mode, is_member)


def is_group_mark(mode: int) -> bool:
    """Whether this is set-gid without execution by the group: no program, so it stays when a member of the file's group, or root, changes the file,
    and goes with a change by anybody else.
    """
    return not stat.S_ISDIR(mode) and mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID


def new_owner(parent_mode: int, parent_gid: int, mode: int, gid: int) -> tuple[int, int]:
    """(mode, gid) of something made in a directory: a set-gid directory hands on its group, and to directories the bit."""
    if not parent_mode & stat.S_ISGID:
        return mode, gid
    return (mode | stat.S_ISGID if stat.S_ISDIR(mode) else mode), parent_gid


def change_time(now_ns: int, before_ns: int, given_ns: Iterable[int | None]) -> int:
    """The ctime of a change that gives these times, to an inode whose ctime was `before_ns`. For "now" the kernel sends what its clock shows, without
    saying that it is that, and means the ctime too: so a time of the last moment is taken for it, unless the ctime would go back.
    """
    recent = [time for time in given_ns if time is not None and max(before_ns, now_ns - _MOMENT_NS) <= time <= now_ns]
    return max(recent, default=now_ns)


def storable_time(time_ns: int) -> int:
    """The nearest time that a record can say, as ext4 does it with its own range."""
    return min(max(time_ns, limits.TIME_MIN_NS), limits.TIME_MAX_NS)


def is_bare_namespace(name: bytes) -> bool:
    """Whether this is where names of extended attributes begin, and no name."""
    return name in _NAMESPACES


@lru_cache(maxsize=256)
def is_attribute_name(name: bytes) -> bool:
    """Whether an extended attribute may have this name. The kernel checks who may set the named kinds; of `system.` only the access lists are
    anything, and of others it would let anybody do anything.
    """
    return name in (acl.ACCESS, acl.DEFAULT) or (name.startswith(_NAMESPACES) and not is_bare_namespace(name))


def attributes_fit(attributes: Mapping[bytes, bytes]) -> bool:
    """Whether one file may have all of these extended attributes: they stand in one record, and what can be set can be listed."""
    if not attributes:
        return True
    total_bytes = sum(len(name) + len(value) for name, value in attributes.items())
    return total_bytes <= limits.XATTRS_MAX_BYTES and sum(len(name) + 1 for name in attributes) <= limits.XATTR_NAMES_MAX_BYTES


def is_listed(name: bytes, for_root: bool) -> bool:
    """Whether a listing of extended attributes shows this name."""
    return for_root or not name.startswith(b"trusted.")


def _without_set_id(mode: int, is_member: bool) -> int:
    kept = is_member and is_group_mark(mode)
    return mode & ~stat.S_ISUID if kept else mode & ~(stat.S_ISUID | stat.S_ISGID)
