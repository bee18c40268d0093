"""Names of whole directories in memory, held against a dictionary."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs import limits
from backupfs.engine.listings import Listing, Listings
from backupfs.format.catalog import Dentry

NAMES = st.binary(min_size=1, max_size=2)


def prf(name: bytes) -> bytes:
    """An order that is not that of the names."""
    return name[::-1].rjust(16, b"\xff")


def known(name: bytes, ino: int = 1) -> tuple[bytes, Dentry]:
    return prf(name), Dentry(ino, 8, name)


def in_order(listing: Listing, run: int) -> Iterator[Dentry]:
    """As a listing is read: a run at a time, each behind the one before."""
    behind = b""
    while found := listing.after(behind, run):
        assert len(found) <= run
        yield from (entry for _, entry in found)
        behind = found[-1][0]


@given(st.sets(NAMES), st.booleans(), st.lists(st.tuples(NAMES, st.booleans(), st.sampled_from([0, 3, None]))), st.integers(1, 4))
def test_against_a_dictionary(begun_with: set[bytes], listed_first: bool, changes: list[tuple[bytes, bool, int | None]], run: int) -> None:
    listing = Listing([known(name) for name in begun_with], is_new=False)
    model = dict.fromkeys(begun_with, 1)
    if listed_first:
        list(in_order(listing, run))
    for ino, (name, stays, epoch) in enumerate(changes, 2):
        if stays:
            listing.put(name, *known(name, ino), epoch)
            model[name] = ino
        elif name in model:
            listing.put(name, prf(name), None, epoch)
            del model[name]
        found = listing.find(name)
        assert (found and found.ino) == model.get(name)
        assert listing.only_epoch(name) is None, "of an old directory that is not known"
    assert [(entry.name, entry.ino) for entry in in_order(listing, run)] == sorted(model.items(), key=lambda item: prf(item[0]))
    assert (len(listing), listing.is_empty()) == (len(model), not model)


@given(st.lists(st.tuples(NAMES, st.sampled_from([0, 3, 4, None]))))
def test_what_a_new_directory_knows_of_versions(changes: list[tuple[bytes, int | None]]) -> None:
    listing = Listing([], is_new=True)
    model: dict[bytes, int | None] = {}
    for name, epoch in changes:
        assert listing.only_epoch(name) == model.get(name, 0)
        listing.put(name, *known(name), 3)
        listing.put(name, prf(name), None, epoch)
        assert listing.find(name) is None
        model[name] = epoch
        assert listing.only_epoch(name) == epoch
    assert listing.is_empty()
    assert len(listing) == sum(epoch != 0 for epoch in model.values()), "names that never were take no room"


def test_no_more_than_so_many_names_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTED_NAMES_MAX", 20)
    listings = Listings()
    for ino in (1, 2, 3):
        listings.add(ino, [known(b"%d" % n) for n in range(4)])
    listings.used(1)
    listings.add(4, (), is_new=True)
    assert [listings.get(ino) is not None for ino in (1, 2, 3, 4)] == [True] * 4
    new = listings.get(4)
    assert new is not None
    for n in range(10):
        new.put(b"%d" % n, *known(b"%d" % n), 1)
        listings.grown(4, new)
    assert [listings.get(ino) is not None for ino in (1, 2, 3, 4)] == [True, False, False, True], "the one used longest ago goes first"
    for n in range(10, 30):
        new.put(b"%d" % n, *known(b"%d" % n), 1)
        if listings.get(4) is not None:
            listings.grown(4, new)
    assert [listings.get(ino) for ino in (1, 2, 3, 4)] == [None] * 4, "one that is too large is not held either"
    listings.forget(4)
    listings.add(5, [known(b"%d" % n) for n in range(19)])
    assert listings.get(5) is not None
