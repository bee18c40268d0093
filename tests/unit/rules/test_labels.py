"""Labels of keys: what fits, what is taken, and the kind that they tell."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.labels import KeyKind, from_store, normal, to_store


@given(st.text(max_size=70), st.sampled_from(KeyKind))
def test_what_is_stored_gives_label_and_kind_back_or_is_refused(label: str, kind: KeyKind) -> None:
    try:
        text = to_store(kind, label)
    except UsageError:
        room = {KeyKind.PASSWORD: 64, KeyKind.RECOVERY: 55}[kind]
        shown = normal(label)
        assert not shown or not shown.isprintable() or shown.startswith("recovery:") or len(shown.encode()) > room
    else:
        assert from_store(text) == (kind, normal(label))
        assert len(text.encode()) <= 64


@pytest.mark.parametrize(
    ("kind", "label", "told"),
    [
        (KeyKind.PASSWORD, "", "not empty"),
        (KeyKind.PASSWORD, "two\nlines", "printable"),
        (KeyKind.PASSWORD, "a\0b", "printable"),
        (KeyKind.PASSWORD, "\udcff", "printable"),
        (KeyKind.PASSWORD, "recovery:x", "marks recovery keys"),
        (KeyKind.PASSWORD, "x" * 65, "at most 64 bytes in UTF-8, and this one has 65"),
        (KeyKind.PASSWORD, "\N{SNOWMAN}" * 22, "this one has 66"),
        (KeyKind.RECOVERY, "x" * 56, "at most 55"),
        (KeyKind.PASSWORD, "taken", "already"),
        (KeyKind.RECOVERY, "taken", "already"),
        (KeyKind.PASSWORD, "e\N{COMBINING ACUTE ACCENT}", "already"),
    ],
)
def test_what_is_refused(kind: KeyKind, label: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        to_store(kind, label, {"taken", "\N{LATIN SMALL LETTER E WITH ACUTE}"})


def test_the_longest_labels() -> None:
    assert to_store(KeyKind.PASSWORD, "x" * 64) == "x" * 64
    assert to_store(KeyKind.RECOVERY, "x" * 55) == "recovery:" + "x" * 55
