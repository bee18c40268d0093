"""Small counts by number, for millions of numbers: how often the kernel has looked up an inode, how many refer to a blob."""

from collections.abc import Iterable, Iterator
from typing import Final

_GROUP_BITS: Final = 6
_GROUP: Final = 1 << _GROUP_BITS
_MASK: Final = _GROUP - 1
_MOST: Final = 255


class Counts:
    """Numbers that are close together share a few bytes each, where a dictionary takes 75 for each; a count that a byte does not hold goes on
    elsewhere.
    """

    NEIGHBOURS: Final = _GROUP
    """So many numbers in a row are held together."""

    def __init__(self) -> None:
        self._groups: dict[int, bytearray] = {}
        self._beyond: dict[int, int] = {}
        """What counts have above `_MOST`."""

    def __contains__(self, number: int) -> bool:
        group = self._groups.get(number >> _GROUP_BITS)
        return group is not None and group[number & _MASK] > 0

    @property
    def groups(self) -> int:
        """How many groups of `NEIGHBOURS` there are, each of which takes some 200 bytes."""
        return len(self._groups)

    def items(self) -> Iterator[tuple[int, int]]:
        """(number, count) of each that has any."""
        beyond = self._beyond
        for place, group in self._groups.items():
            for number, count in enumerate(group, place << _GROUP_BITS):
                if count:
                    yield number, count + beyond.get(number, 0)

    def add(self, numbers: Iterable[int]) -> None:
        """One more of each."""
        groups = self._groups
        for number in numbers:
            group = groups.get(number >> _GROUP_BITS)
            if group is None:
                group = groups[number >> _GROUP_BITS] = bytearray(_GROUP)
            count = group[number & _MASK]
            if count < _MOST:
                group[number & _MASK] = count + 1
            else:
                self._beyond[number] = self._beyond.get(number, 0) + 1

    def take_back(self, fewer: Iterable[tuple[int, int]]) -> list[int]:
        """So many fewer of each; what was never counted has none. Those of which none is left."""
        groups, beyond = self._groups, self._beyond
        gone: list[int] = []
        for number, count in fewer:
            group = groups.get(number >> _GROUP_BITS)
            if group is None:
                gone.append(number)
                continue
            left = group[number & _MASK] - count
            if beyond:
                left += beyond.pop(number, 0)
            if left > 0:
                group[number & _MASK] = min(left, _MOST)
                if left > _MOST:
                    beyond[number] = left - _MOST
                continue
            gone.append(number)
            group[number & _MASK] = 0
            if not any(group):
                del groups[number >> _GROUP_BITS]
        return gone
