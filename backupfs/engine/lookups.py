"""How often the kernel has looked up each inode, and not taken it back: it may know millions."""

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

    def add(self, ino: int) -> None:
        """One lookup more."""
        group = self._groups.get(ino >> _GROUP_BITS)
        if group is None:
            group = self._groups[ino >> _GROUP_BITS] = bytearray(_GROUP)
        count = group[ino & _MASK]
        if count < _MOST:
            group[ino & _MASK] = count + 1
        else:
            self._beyond[ino] = self._beyond.get(ino, 0) + 1

    def take_back(self, ino: int, count: int) -> bool:
        """The kernel takes so many back; one that was never counted has none. Whether none is left."""
        number = ino >> _GROUP_BITS
        group = self._groups.get(number)
        if group is None:
            return True
        left = group[ino & _MASK] + self._beyond.pop(ino, 0) - count
        if left > 0:
            group[ino & _MASK] = min(left, _MOST)
            if left > _MOST:
                self._beyond[ino] = left - _MOST
            return False
        group[ino & _MASK] = 0
        if group.count(0) == _GROUP:
            del self._groups[number]
        return True
