"""POSIX access control lists as values of extended attributes, written out by hand: nothing of backupfs' own is used."""

import struct
from collections.abc import Mapping
from typing import Final

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
NONE: Final[Mapping[int, int]] = {}


def acl(owner: int, group: int, other: int, *, users: Mapping[int, int] = NONE, groups: Mapping[int, int] = NONE, mask: int | None = None) -> bytes:
    """A list with these permissions (0 to 7); with named users or groups it has a mask, all their permissions if none is given."""
    entries = [(0x01, owner, -1), *((0x02, bits, who) for who, bits in sorted(users.items())), (0x04, group, -1)]
    entries += [(0x08, bits, who) for who, bits in sorted(groups.items())]
    if users or groups or mask is not None:
        everything = group
        for bits in (*users.values(), *groups.values()):
            everything |= bits
        entries.append((0x10, everything if mask is None else mask, -1))
    entries.append((0x20, other, -1))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
