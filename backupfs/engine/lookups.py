"""How often the kernel has looked up each inode, and not taken it back: it may know millions."""

from collections.abc import Iterable
from typing import Final

_GROUP_BITS: Final = 6
_GROUP: Final = 1 << _GROUP_BITS
_MASK: Final = _GROUP - 1
_MOST: Final = 255


class Lookups:
    """Counts by inode number. Numbers that are close together share a few bytes each, where a dictionary takes 75 for each; a count that a byte
    does not hold goes on elsewhere.
    """

    def __init__(self) -> None:
        self._groups: dict[int, bytearray] = {}
        self._beyond: dict[int, int] = {}
        """What counts have above `_MOST`."""

    def __contains__(self, ino: int) -> bool:
        group = self._groups.get(ino >> _GROUP_BITS)
        return group is not None and group[ino & _MASK] > 0

    def add(self, inos: Iterable[int]) -> None:
        """One lookup more of each."""
        groups = self._groups
        for ino in inos:
            group = groups.get(ino >> _GROUP_BITS)
            if group is None:
                group = groups[ino >> _GROUP_BITS] = bytearray(_GROUP)
            count = group[ino & _MASK]
            if count < _MOST:
                group[ino & _MASK] = count + 1
            else:
                self._beyond[ino] = self._beyond.get(ino, 0) + 1

    def take_back(self, forgotten: Iterable[tuple[int, int]]) -> list[int]:
        """The kernel takes so many back of each; what was never counted has none. Those of which none is left."""
        groups, beyond = self._groups, self._beyond
        gone: list[int] = []
        for ino, count in forgotten:
            group = groups.get(ino >> _GROUP_BITS)
            if group is None:
                gone.append(ino)
                continue
            left = group[ino & _MASK] - count
            if beyond:
                left += beyond.pop(ino, 0)
            if left > 0:
                group[ino & _MASK] = min(left, _MOST)
                if left > _MOST:
                    beyond[ino] = left - _MOST
                continue
            gone.append(ino)
            group[ino & _MASK] = 0
            if not any(group):
                del groups[ino >> _GROUP_BITS]
        return gone
