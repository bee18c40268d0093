"""Recovery keys: BIP-39's official vectors, and what a slip of the pen is told."""

import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.codec import recovery
from backupfs.codec.recovery import new_words, possible_secrets, refusal, words_of
from backupfs.errors import WrongPasswordError

# Those of 256 bits of https://github.com/trezor/python-mnemonic/blob/master/vectors.json
VECTORS = {
    "00" * 32: "abandon " * 23 + "art",
    "7f" * 32: "legal winner thank year wave sausage worth useful " * 2 + "legal winner thank year wave sausage worth title",
    "80" * 32: "letter advice cage absurd amount doctor acoustic avoid " * 2 + "letter advice cage absurd amount doctor acoustic bless",
    "ff" * 32: "zoo " * 23 + "vote",
    "68a79eaca2324873eacc50cb9c6eca8cc68ea5d936f98787c60c7ebc74e6ce7c": "hamster diagram private dutch cause delay private meat slide toddler razor"
    " book happy fancy gospel tennis maple dilemma loan word shrug inflict delay length",
    "9f6a2878b2520799a44ef18bc7df394e7061a224d2c33cd015b157d746869863": "panda eyebrow bullet gorilla call smoke muffin taste mesh discover soft"
    " ostrich alcohol speed nation flash devote level hobby quick inner drive ghost inside",
    "f585c11aec520db57dd353c69554b21a89b20fb0650966fa0a9d6f74fd989d8f": "void come effort suffer camp survey warrior heavy shoot primary clutch crush"
    " open amazing screen patrol group space point ten exist slush involve unfold",
}


class Fixed:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def draw(self, size_bytes: int) -> bytes:
        assert size_bytes == len(self.data)
        return self.data


@pytest.mark.parametrize(("entropy", "words"), VECTORS.items())
def test_the_official_vectors(entropy: str, words: str) -> None:
    assert words_of(bytes.fromhex(entropy)) == words
    assert new_words(Fixed(bytes.fromhex(entropy))) == words
    assert possible_secrets(words.encode()) == (words.encode(),)


def entropy_of(words: str) -> bytes:
    """Back to 32 bytes, by BIP-39's text: 11 bits a word, the last 8 of them a checksum."""
    listed = recovery._list().wordlist
    number = 0
    for word in words.split(" "):
        number = number << 11 | listed.index(word)
    entropy = (number >> 8).to_bytes(32, "big")
    assert hashlib.sha256(entropy).digest()[0] == number & 0xFF
    return entropy


@given(st.binary(min_size=32, max_size=32))
def test_every_key_has_words_of_its_own(entropy: bytes) -> None:
    words = words_of(entropy)
    assert len(words.split(" ")) == 24
    assert entropy_of(words) == entropy


@given(st.binary(min_size=32, max_size=32), st.randoms(use_true_random=False))
def test_case_and_whitespace_do_not_matter(entropy: bytes, draw: random.Random) -> None:
    words = words_of(entropy)
    typed = draw.choice(["", " ", "\n"])
    for word in words.split():
        typed += draw.choice([word, word.upper(), word.capitalize()]) + draw.choice([" ", "  ", "\n", "\t", "\r\n", " \n ", "\N{NO-BREAK SPACE}"])
    assert possible_secrets(typed.encode()) == (words.encode(), typed.encode())


@given(st.binary(max_size=200))
def test_any_other_password_is_taken_as_it_stands(given_: bytes) -> None:
    assert possible_secrets(given_) == (given_,)
    assert isinstance(refusal(given_), WrongPasswordError)


def test_words_that_do_not_hold_are_a_password_like_any_other() -> None:
    for given_ in (b"abandon " * 24, b"abandon " * 12, b"abandon " * 23 + b"artt"):
        assert possible_secrets(given_) == (given_,)


@given(st.binary(min_size=32, max_size=32), st.sets(st.integers(1, 24), min_size=1, max_size=6))
def test_mistyped_words_are_named_by_their_positions(entropy: bytes, positions: set[int]) -> None:
    words = words_of(entropy).split()
    for position in positions:
        words[position - 1] += "q"
    error = refusal("  ".join(words).upper().encode())
    assert error.fields == {"positions": sorted(positions)}
    assert error.exit_code == 12
    numbers = [int(number) for number in str(error).replace(",", " ").split() if number.isdecimal()]
    assert numbers == sorted(positions)
    assert not any(words[position - 1] in str(error).casefold() for position in positions), "what was typed goes into no log"


def test_what_the_positions_read_like() -> None:
    words = VECTORS["00" * 32].split()
    words[4] = "abandom"
    assert "word 5 of this recovery key is not in the list" in str(refusal(" ".join(words).encode()))
    words[0] = "x"
    assert "words 1 and 5 of this recovery key are not in the list" in str(refusal(" ".join(words).encode()))
    words[23] = "y"
    assert "words 1, 5 and 24 of" in str(refusal(" ".join(words).encode()))


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        (b"abandon " * 24, "do not hold"),
        (b"abandon " * 23, "these are 23"),
        (b"abandon " * 25, "these are 25"),
        (b"abandon " * 6, "these are 6; give all of them"),
        (b"abandon " * 23 + b"art", "another repository's, or its slot was removed"),
    ],
)
def test_other_slips(given_: bytes, told: str) -> None:
    assert told in str(refusal(given_))


@pytest.mark.parametrize("given_", [b"", b"secret", b"abandon " * 5, b"\xff" * 30, b"many words that are in no list, oh dear", b"zoo xx " * 12])
def test_what_resembles_no_recovery_key_is_a_wrong_password(given_: bytes) -> None:
    assert str(refusal(given_)) == "this password opens no key slot of the repository"


def test_two_exchanged_words_are_noticed_nearly_always(seed: int) -> None:
    draw = random.Random(seed)
    noticed = 0
    for _ in range(200):
        words = words_of(draw.randbytes(32)).split()
        one, other = draw.sample(range(24), 2)
        words[one], words[other] = words[other], words[one]
        noticed += "do not hold" in str(refusal(" ".join(words).encode()))
    assert noticed > 190
