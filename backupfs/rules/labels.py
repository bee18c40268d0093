"""Labels of keys: which may be given, and which kind of key a stored label tells of.

A slot holds one text, sealed: the label, and before that of a recovery key a prefix that no other label may have. So what kind of key a slot
is for shows to nobody who has none.
"""

import enum
import unicodedata
from collections.abc import Container
from typing import Final

from backupfs.errors import UsageError
from backupfs.format.keyslot import LABEL_BYTES

RECOVERY_PREFIX: Final = "recovery:"


class KeyKind(enum.Enum):
    """What opens a slot: a password that somebody chose, or a recovery key, which was drawn."""

    PASSWORD = "password"  # noqa: S105 the name of a kind
    RECOVERY = "recovery"


def normal(label: str) -> str:
    """The one form (NFC) of labels that look the same."""
    return unicodedata.normalize("NFC", label)


def to_store(kind: KeyKind, label: str, taken: Container[str] = ()) -> str:
    """The text that stands in the slot. UsageError when the label will not do or is among those taken."""
    label = normal(label)
    if not label or not label.isprintable():
        raise UsageError("a key's label is a line of printable text, and not empty")
    if label.startswith(RECOVERY_PREFIX):
        raise UsageError(f"a key's label does not begin with {RECOVERY_PREFIX!r}: that marks recovery keys")
    text = RECOVERY_PREFIX + label if kind is KeyKind.RECOVERY else label
    room = LABEL_BYTES - (len(text.encode()) - len(label.encode()))
    if len(label.encode()) > room:
        raise UsageError(f"the label of a {kind.value} key has at most {room} bytes in UTF-8, and this one has {len(label.encode())}")
    if label in taken:
        raise UsageError(f"there is a key labelled {label!r} already: choose another label (`backupfs key list` shows them)")
    return text


def from_store(text: str) -> tuple[KeyKind, str]:
    """The kind of key and its label."""
    if text.startswith(RECOVERY_PREFIX):
        return KeyKind.RECOVERY, text.removeprefix(RECOVERY_PREFIX)
    return KeyKind.PASSWORD, text
