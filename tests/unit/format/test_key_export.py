"""The text of an export: what comes back of it, and what each slip is told."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import BackupfsError, DamageError, UsageError
from backupfs.format import keyslot
from backupfs.format.config import CIPHER_AES_256_GCM, COMPRESSION_ZSTD, Config
from backupfs.format.key_export import KeyExport, decode, encode
from backupfs.format.keyslot import KdfParameters, KeySlot

CONFIG = Config(bytes(range(16)), 2**60 + 1, 65536, 262144, 1048576, CIPHER_AES_256_GCM, COMPRESSION_ZSTD, 1)


def slot(number: int, label: bytes = b"\xee" * 80) -> KeySlot:
    return KeySlot(CONFIG.repository_id, bytes([number]) * 16, number, KdfParameters(3, 4, 65536), b"s" * 32, b"c" * 32, b"m" * 48, label)


EXPORT = KeyExport(CONFIG, b"\xaa" * 32, [slot(1), slot(2, b"\0" * 80)])
TEXT = encode(EXPORT, ["a comment"])
LINES = TEXT.splitlines()


def crc16(data: bytes) -> int:
    """CCITT's, bit by bit."""
    value = 0
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ (0x1021 if value & 0x8000 else 0)) & 0xFFFF
    return value


def test_what_it_looks_like() -> None:
    assert LINES[:4] == ["# a comment", "backupfs keys 1", "config", "1: 4246 5343 4f4e 4600 0001 0100 0000 0000 - 0006"]
    assert crc16(b"\x01\x01BFSCONF\0\0\1\1\0\0\0\0\0") == 0x0006
    assert LINES[-1] == "end 3"
    assert len(LINES) == 2 + (1 + 6 + 1) + (1 + 17 + 1) + (1 + 12 + 1) + 1, "zeros at the end are left out"
    assert max(map(len, LINES)) < 80
    assert decode(TEXT) == EXPORT


@given(st.lists(st.tuples(st.binary(min_size=80, max_size=80), st.integers(0, 2**64 - 1)), max_size=5), st.binary(min_size=32, max_size=32))
def test_what_was_written_comes_back(slots: list[tuple[bytes, int]], mac: bytes) -> None:
    made = [KeySlot(CONFIG.repository_id, bytes(16), time, KdfParameters(1, 1, 8), label[:32], mac, label[:48], label) for label, time in slots]
    export = KeyExport(CONFIG, mac, made)
    assert decode(encode(export, [])) == export


@given(st.randoms(use_true_random=False))
def test_it_may_be_typed_with_other_blanks_and_case(draw: object) -> None:
    choice = draw.choice  # type: ignore[attr-defined] # Hypothesis's Random
    text = ""
    for line in LINES:
        written = line if line.startswith("#") else re.sub(" ", lambda _: choice([" ", "  ", "\t"]), choice([line, line.upper()]))
        text += choice(["", " ", "\n", "# a note\n"]) + written + choice(["", "  "]) + choice(["\n", "\r\n"])
    assert decode(text) == EXPORT


@given(st.data())
def test_every_changed_digit_is_noticed_and_its_line_named(data: st.DataObject) -> None:
    number = data.draw(st.sampled_from([n for n, line in enumerate(LINES) if re.match(r"\d+: ", line)]))
    places = [match.start() for match in re.finditer(r"[0-9a-f]", LINES[number])]
    at = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from(sorted(set("0123456789abcdef") - {LINES[number][at]})))
    changed = [*LINES[:number], LINES[number][:at] + digit + LINES[number][at + 1 :], *LINES[number + 1 :]]
    with pytest.raises(DamageError, match=f"line {number + 1}[:,]"):
        decode("\n".join(changed))


@given(st.integers(0, len(TEXT) - 1))
def test_a_text_that_breaks_off_is_noticed(length: int) -> None:
    if not TEXT[:length].rstrip().endswith("end 3"):
        with pytest.raises(BackupfsError):
            decode(TEXT[:length])


@given(st.integers(1, len(LINES) - 1), st.integers(1, len(LINES) - 1))
def test_lines_left_out_doubled_or_exchanged_are_noticed(one: int, other: int) -> None:
    left_out = LINES[:one] + LINES[one + 1 :]
    doubled = [*LINES[:one], LINES[one], *LINES[one:]]
    exchanged = list(LINES)
    exchanged[one], exchanged[other] = LINES[other], LINES[one]
    for lines in (left_out, doubled, exchanged):
        try:
            assert decode("\n".join(lines)) == EXPORT
            assert lines == LINES or lines[:-1] == LINES, "the same, or its end twice"
        except (DamageError, UsageError):
            assert lines != LINES


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        ("", UsageError, "begins with ''"),
        ("backupfs keys 2\n", UsageError, "'backupfs keys 2' and not with 'backupfs keys 1'"),
        ("# only a comment", UsageError, "no export of keys"),
        ("backupfs keys 1", DamageError, "breaks off after line 1"),
        ("backupfs keys 1\nend 0", DamageError, "has to have one configuration"),
        ("backupfs keys 1\nend 1", DamageError, "it had 1 sections, and 0"),
        ("backupfs keys 1\nnonsense", DamageError, "line 2: here should begin a section"),
        ("backupfs keys 1\nconfig", DamageError, "breaks off in a config"),
        ("backupfs keys 1\nconfig\nnonsense", DamageError, "line 3: this should be '1: "),
        ("backupfs keys 1\nslot\ncrc: 00000000\nend 1", DamageError, "one configuration"),
        ("backupfs keys 1\nconfig\ncrc: 00000000\nend 1", DamageError, "the checksum does not match"),
    ],
)
def test_other_texts(text: str, error: type[BackupfsError], told: str) -> None:
    with pytest.raises(error, match=told):
        decode(text)


def test_sections_of_any_length_are_no_reason_to_break() -> None:
    """More lines than a number of one byte counts, each with a checksum that fits."""
    data = bytes(16 * 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyslot, "SIZE_BYTES", len(data))
        patch.setattr(keyslot, "encode", lambda _slot: b"x" * len(data))
        long = encode(KeyExport(CONFIG, b"\xaa" * 32, [slot(1)]), []).splitlines()
    with pytest.raises(DamageError, match="instead of 512"):
        decode("\n".join(long))
