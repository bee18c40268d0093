"""POSIX access control lists, as the kernel hands them over in `system.posix_acl_access` and `_default`.

Layout: a 32-bit version (2), then entries of tag, permissions (16 bits each) and id (32 bits), little-endian; include/uapi/linux/posix_acl_xattr.h.
The algorithms are those of acl(5), "Object creation and default ACLs" and "Correspondence between ACL entries and file permission bits".
"""

import struct
from functools import lru_cache
from typing import Final

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
_VERSION = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

Entry = tuple[int, int, int]
"""(tag, permissions, id)"""


def decode(value: bytes) -> list[Entry]:
    """The entries; ValueError when this is no list of version 2."""
    if len(value) < _VERSION.size or (len(value) - _VERSION.size) % _ENTRY.size or _VERSION.unpack_from(value)[0] != 2:
        raise ValueError("not a POSIX ACL of version 2")
    return [_ENTRY.unpack_from(value, at) for at in range(_VERSION.size, len(value), _ENTRY.size)]


def encode(entries: list[Entry]) -> bytes:
    """The xattr's value."""
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


@lru_cache(maxsize=256)
def summary(value: bytes) -> tuple[int, bool]:
    """(the permission bits of the mode of a file with this list, `is_minimal`); ValueError as `decode`. Copying programs set the same few again and
    again.
    """
    entries = decode(value)
    return mode_of(entries, 0), is_minimal(entries)


def is_minimal(entries: list[Entry]) -> bool:
    """Whether the mode bits say it all: no named users or groups, no mask."""
    return all(tag in (_USER_OBJ, _GROUP_OBJ, _OTHER) for tag, _, _ in entries)


def mode_of(entries: list[Entry], mode: int) -> int:
    """`mode` with its permission bits as the list has them: the group's are the mask's where there is one."""
    bits = {tag: permissions for tag, permissions, _ in entries}
    group = bits.get(_MASK, bits.get(_GROUP_OBJ, 0))
    return mode & ~0o777 | bits.get(_USER_OBJ, 0) << 6 | group << 3 | bits.get(_OTHER, 0)


def with_mode(entries: list[Entry], mode: int) -> list[Entry]:
    """The list after chmod(2): owner, mask (else the group) and others take their bits from `mode`."""
    has_mask = any(tag == _MASK for tag, _, _ in entries)
    group_tag = _MASK if has_mask else _GROUP_OBJ
    new = {_USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, _OTHER: mode & 7}
    return [(tag, new.get(tag, permissions), who) for tag, permissions, who in entries]


def inherited(default: list[Entry], mode: int) -> tuple[list[Entry], int]:
    """Access list and mode of an object made with `mode` (umask not applied) in a directory with this default list."""
    has_mask = any(tag == _MASK for tag, _, _ in default)
    group_tag = _MASK if has_mask else _GROUP_OBJ
    limit = {_USER_OBJ: mode >> 6 & 7, group_tag: mode >> 3 & 7, _OTHER: mode & 7}
    entries = [(tag, permissions & limit.get(tag, 7), who) for tag, permissions, who in default]
    return entries, mode_of(entries, mode)
