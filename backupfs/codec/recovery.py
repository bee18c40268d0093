"""Recovery keys: 32 random bytes, written as 24 words of the English list of BIP-39.

The words are the password of a key slot: in lower case, one space between them. Whoever has them written down needs no list and no
checksum to open the slot; those serve to notice a slip and to say where it is.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Final

from mnemonic import Mnemonic

from backupfs.errors import WrongPasswordError
from backupfs.randomness import Randomness

WORDS: Final = 24
_ENTROPY_BYTES: Final = 32
_FEW_WORDS: Final = 6
"""Fewer words than this are never taken for a part of a recovery key."""
_WRONG: Final = "this password opens no key slot of the repository"


def new_words(randomness: Randomness) -> str:
    """A fresh recovery key."""
    return words_of(randomness.draw(_ENTROPY_BYTES))


def words_of(entropy: bytes) -> str:
    """32 bytes as words, the last of which holds a checksum."""
    assert len(entropy) == _ENTROPY_BYTES
    return _list().to_mnemonic(entropy)


def possible_secrets(given: bytes) -> tuple[bytes, ...]:
    """What somebody may mean who gives this as a password, the likeliest first: a whole recovery key in its own writing, whatever case and
    whitespace it was typed in; and what was given as it stands.
    """
    words = _words(given)
    if len(words) != WORDS or not _list().check(" ".join(words)):
        return (given,)
    canonical = " ".join(words).encode()
    return (given,) if given == canonical else (canonical, given)


def refusal(given: bytes) -> WrongPasswordError:
    """What to tell whose password opened nothing. Of what resembles a recovery key it is said what is wrong with it, by the positions of words
    (counted from 1): never a word, for errors are logged.
    """
    words = _words(given)
    unknown = [position for position, word in enumerate(words, 1) if word not in _known()]
    if len(words) < _FEW_WORDS or 4 * len(unknown) > len(words):
        return WrongPasswordError(_WRONG)
    if len(words) != WORDS:
        slip = f"a recovery key has {WORDS} words, and these are {len(words)}; give all of them, on the terminal in one line"
    elif unknown:
        slip = f"{_positions(unknown)} of this recovery key {'is' if len(unknown) == 1 else 'are'} not in the list of words; look for a slip there"
    elif not _list().check(" ".join(words)):
        slip = "each word of this recovery key is in the list, but together they do not hold: one stands for another, or two are exchanged"
    else:
        slip = "this recovery key is whole: it is another repository's, or its slot was removed"
    return WrongPasswordError(f"{_WRONG}: {slip}", positions=unknown)


def _words(given: bytes) -> list[str]:
    """As text without case and whitespace; none when it is no text."""
    try:
        return unicodedata.normalize("NFKD", given.decode()).casefold().split()
    except UnicodeDecodeError:
        return []


def _positions(positions: Sequence[int]) -> str:
    if len(positions) == 1:
        return f"word {positions[0]}"
    return f"words {', '.join(map(str, positions[:-1]))} and {positions[-1]}"


@functools.cache
def _list() -> Mnemonic:
    return Mnemonic("english")


@functools.cache
def _known() -> frozenset[str]:
    return frozenset(_list().wordlist)
