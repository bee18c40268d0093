"""Directories of the live tree whose names are all in memory: those that were made since the mount, and small ones that somebody has listed.

Such a listing also answers for names that are missing, without a look into the catalog, and of a new directory it knows what versions of its entries
there are. All of them together hold a bounded number of names: those that were used longest ago are forgotten, whole directories at a time.
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

    __slots__ = ("_epochs", "_names", "_ordered")

    def __init__(self, known: Iterable[Known], is_new: bool) -> None:
        """`is_new`: the directory was made empty just now."""
        self._names: dict[bytes, Known] = {each[1].name: each for each in known}
        self._epochs: dict[bytes, int | None] | None = {} if is_new else None
        """Of a new directory, what `only_epoch` answers for names that do, or did, stand in it."""
        self._ordered: list[Any] | None = None
        """`Known`s in the order of their PRFs, once somebody has asked for it."""

    def __len__(self) -> int:
        return len(self._names if self._epochs is None else self._epochs)

    def find(self, name: bytes) -> Dentry | None:
        """The entry of that name, if there is one."""
        known = self._names.get(name)
        return None if known is None else known[1]

    def only_epoch(self, name: bytes) -> int | None:
        """The epoch of the only version that there is of the name's entry; 0: there is none; None: that is not known, or there are several."""
        return None if self._epochs is None else self._epochs.get(name, 0)

    def put(self, name: bytes, prf: bytes, entry: Dentry | None, only_epoch: int | None) -> None:
        """A name leads to this entry now, or is gone. `only_epoch`: see there."""
        ordered = self._ordered
        if ordered is not None:
            at = bisect_left(ordered, (prf,))
            stands_there = at < len(ordered) and ordered[at][0] == prf
            ordered[at : at + stands_there] = [] if entry is None else [(prf, entry)]
        if entry is None:
            del self._names[name]
        else:
            self._names[name] = prf, entry
        if self._epochs is not None:
            if only_epoch == 0:
                self._epochs.pop(name, None)
            else:
                self._epochs[name] = only_epoch

    def after(self, prf: bytes, limit: int) -> list[Known]:
        """Up to `limit` entries behind a PRF, in the order of a listing."""
        ordered = self._ordered
        if ordered is None:
            ordered = self._ordered = sorted(self._names.values(), key=itemgetter(0))
        first = bisect_left(ordered, (prf + b"\0",)) if prf else 0
        return ordered[first : first + limit]

    def is_empty(self) -> bool:
        """Whether there is no name."""
        return not self._names


class Listings:
    """The listings there are, by the directory's number."""

    def __init__(self) -> None:
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        self._counted: dict[int, int] = {}
        """How much room each took when it was looked at last."""
        self._names = 0
        """The sum of those."""

    def get(self, ino: int) -> Listing | None:
        """A directory's names, if all are known."""
        return self._listings.get(ino)

    def used(self, ino: int) -> None:
        """Somebody lists this directory, whose names are known."""
        self._listings.move_to_end(ino)

    def add(self, ino: int, known: Iterable[Known], *, is_new: bool = False) -> None:
        """All names of a directory."""
        listing = self._listings[ino] = Listing(known, is_new)
        self.grown(ino, listing)

    def grown(self, ino: int, listing: Listing) -> None:
        """A name was added to a listing, which is the one used last. Others, or itself when it is too large, are forgotten for it."""
        size = len(listing) + 1
        self._names += size - self._counted.get(ino, 0)
        self._counted[ino] = size
        self._listings.move_to_end(ino)
        while self._names > limits.LISTED_NAMES_MAX:
            self.forget(next(iter(self._listings)))

    def forget(self, ino: int) -> None:
        """The directory has ended, or its names are not to be remembered."""
        if self._listings.pop(ino, None) is not None:
            self._names -= self._counted.pop(ino)
