"""Access control lists against the text of acl(5), put down a second time as plain sets of bits."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.rules import acl

USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
NO_ID = 0xFFFF_FFFF
bits = st.integers(0, 7)


@st.composite
def lists(draw: st.DrawFn) -> list[acl.Entry]:
    """A valid list: the three that must be, and named ones only with a mask."""
    users = draw(st.lists(st.integers(0, 5), unique=True, max_size=3))
    groups = draw(st.lists(st.integers(0, 5), unique=True, max_size=3))
    entries = [(USER_OBJ, draw(bits), NO_ID)]
    entries += [(USER, draw(bits), who) for who in sorted(users)]
    entries += [(GROUP_OBJ, draw(bits), NO_ID)]
    entries += [(GROUP, draw(bits), who) for who in sorted(groups)]
    named = users or groups
    if named or draw(st.sampled_from([True, False])):
        entries.append((MASK, draw(bits), NO_ID))
    return [*entries, (OTHER, draw(bits), NO_ID)]


def only(entries: list[acl.Entry], tag: int) -> int | None:
    return next((permissions for t, permissions, _ in entries if t == tag), None)


def group_class(entries: list[acl.Entry]) -> int | None:
    """Where the list has a mask, the mode's group bits are the mask's, else the owning group's."""
    mask = only(entries, MASK)
    return only(entries, GROUP_OBJ) if mask is None else mask


@given(lists())
def test_the_layout_is_the_kernels(entries: list[acl.Entry]) -> None:
    value = acl.encode(entries)
    assert value == struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    assert acl.decode(value) == entries


@pytest.mark.parametrize("value", [b"", b"\2\0\0", b"\1\0\0\0", struct.pack("<I", 3), struct.pack("<I", 2) + bytes(7)])
def test_what_is_no_list_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="version 2"):
        acl.decode(value)


@given(lists(), st.integers(0, 0o177777))
def test_mode_shows_the_three_classes(entries: list[acl.Entry], mode: int) -> None:
    shown = acl.mode_of(entries, mode)
    assert shown & ~0o777 == mode & ~0o777
    assert (shown >> 6 & 7, shown >> 3 & 7, shown & 7) == (only(entries, USER_OBJ), group_class(entries), only(entries, OTHER))


@given(lists(), st.integers(0, 0o7777))
def test_chmod_sets_owner_mask_or_group_and_others(entries: list[acl.Entry], mode: int) -> None:
    changed = acl.with_mode(entries, mode)
    assert acl.mode_of(changed, mode) == mode
    changes = {tag: p for (tag, p, _), (_, old, _) in zip(changed, entries, strict=True) if p != old}
    assert set(changes) <= {USER_OBJ, MASK if only(entries, MASK) is not None else GROUP_OBJ, OTHER}
    assert [(tag, who) for tag, _, who in changed] == [(tag, who) for tag, _, who in entries]


@given(lists(), st.integers(0, 0o7777))
def test_inherited_is_the_default_less_what_create_did_not_ask_for(default: list[acl.Entry], mode: int) -> None:
    entries, shown = acl.inherited(default, mode)
    assert [(tag, who) for tag, _, who in entries] == [(tag, who) for tag, _, who in default]
    for (tag, new, _), (_, old, _) in zip(entries, default, strict=True):
        asked = {USER_OBJ: mode >> 6 & 7, OTHER: mode & 7}.get(tag, 7)
        if tag == (MASK if only(default, MASK) is not None else GROUP_OBJ):
            asked = mode >> 3 & 7
        assert new == old & asked
    assert shown == acl.mode_of(entries, mode)
    assert shown & 0o777 & ~mode == 0, "never more than was asked for"


@given(lists())
def test_minimal_means_nobody_is_named(entries: list[acl.Entry]) -> None:
    assert acl.is_minimal(entries) == ({tag for tag, _, _ in entries} == {USER_OBJ, GROUP_OBJ, OTHER})
