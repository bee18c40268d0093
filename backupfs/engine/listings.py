"""Directories of the live tree whose names are all in memory: those that were made since the mount, and small ones that somebody has listed.

Such a listing also answers for names that are missing, without a look into the catalog, and of a new directory it knows which names have never been
there. All of them together hold a bounded number of names: those that were used longest ago are forgotten, whole directories at a time.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

from backupfs import limits
from backupfs.format.catalog import Dentry

Known = tuple[bytes, Dentry]
"""(PRF of the name, entry)."""


class Listing:
    """All names of one directory, now. `Namespace` keeps it so."""

    __slots__ = ("_is_new", "_ordered", "names")

    def __init__(self, known: Iterable[Known], is_new: bool) -> None:
        """`is_new`: the directory was made empty just now."""
        self.names: dict[bytes, Known | None] = {each[1].name: each for each in known}
        """None stands for a name that was removed from a new directory."""
        self._is_new = is_new
        self._ordered: list[Any] | None = None
        """`Known`s in the order of their PRFs, once somebody has asked for it."""

    def find(self, name: bytes) -> Dentry | None:
        """The entry of that name, if there is one."""
        known = self.names.get(name)
        return None if known is None else known[1]

    def never_had(self, name: bytes) -> bool:
        """Whether it is certain that this name has never been there, so that no version of its entry exists."""
        return self._is_new and name not in self.names

    def put(self, prf: bytes, entry: Dentry) -> None:
        """A name leads to this entry now."""
        known = self.names[entry.name] = prf, entry
        ordered = self._ordered
        if ordered is not None:
            at = bisect_left(ordered, (prf,))
            ordered[at : at + (at < len(ordered) and ordered[at][0] == prf)] = [known]

    def remove(self, name: bytes) -> None:
        """A name is gone."""
        known = self.names.pop(name)
        if self._is_new:
            self.names[name] = None
        if self._ordered is not None and known is not None:
            del self._ordered[bisect_left(self._ordered, (known[0],))]

    def after(self, prf: bytes, limit: int) -> list[Known]:
        """Up to `limit` entries behind a PRF, in the order of a listing."""
        ordered = self._ordered
        if ordered is None:
            ordered = self._ordered = sorted(filter(None, self.names.values()), key=itemgetter(0))
        first = bisect_left(ordered, (prf + b"\0",)) if prf else 0
        return ordered[first : first + limit]

    def is_empty(self) -> bool:
        """Whether there is no name."""
        return not any(self.names.values())


class Listings:
    """The listings there are, by the directory's number."""

    def __init__(self) -> None:
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        self._names = 0
        """How many names they had when each was counted last."""
        self._counted: dict[int, int] = {}

    def get(self, ino: int) -> Listing | None:
        """A directory's names, if all are known."""
        return self._listings.get(ino)

    def used(self, ino: int) -> None:
        """Somebody lists this directory, whose names are known."""
        self._listings.move_to_end(ino)

    def add(self, ino: int, known: Iterable[Known], *, is_new: bool = False) -> Listing:
        """All names of a directory."""
        listing = self._listings[ino] = Listing(known, is_new)
        self.grown(ino, listing)
        return listing

    def grown(self, ino: int, listing: Listing) -> None:
        """Names were added to a listing, which is the one used last. Others, or itself when it is too large, are forgotten for it."""
        size = len(listing.names) + 1
        self._names += size - self._counted.get(ino, 0)
        self._counted[ino] = size
        self._listings.move_to_end(ino)
        while self._names > limits.LISTED_NAMES_MAX:
            self.forget(next(iter(self._listings)))

    def forget(self, ino: int) -> None:
        """The directory has ended, or nobody remembers its names."""
        if self._listings.pop(ino, None) is not None:
            self._names -= self._counted.pop(ino)
