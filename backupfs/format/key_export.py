"""An export of keys: the configuration and the key slots of a repository as text, to be printed, or kept on another disk, and to be typed in again.

It holds what `config` and `keys/` hold, so nothing in it is secret that was not sealed there. Layout, in lines; blank ones and those that
begin with `#` do not count, case and the number of blanks do not matter:

    backupfs keys 1
    config
    1: 4246 5343 4f4e 4600 0001 0100 0000 0000 - 5d0c
    …
    crc: 8f6ed8aa
    slot
    …
    end 2

`config` and each `slot` begin a section: the bytes of the file without its last four (a CRC-32, which stands in the line `crc`) and without
the zeros before those, 16 in a line, in hexadecimal. Lines are numbered in each section and end in a CRC-16 (CCITT, `binascii.crc_hqx`) of the
section's and the line's number (a byte each) and the line's bytes. `end` says how many sections there are.
"""

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from backupfs.errors import DamageError, UsageError
from backupfs.format import config as config_format
from backupfs.format import keyslot
from backupfs.format.config import Config
from backupfs.format.keyslot import KeySlot
from backupfs.format.layout import CHECKSUM

TITLE: Final = "backupfs keys"
VERSION: Final = 1
_LINE_BYTES: Final = 16
_CONFIG: Final = "config"
_SLOT: Final = "slot"
_DATA: Final = re.compile(r"(\d{1,3}) ?: ?((?:[0-9a-f]{2} ?)+)- ?([0-9a-f]{4})")
_CRC: Final = re.compile(r"crc ?: ?([0-9a-f]{8})")
_END: Final = re.compile(r"end (\d{1,3})")


@dataclass(frozen=True, slots=True)
class KeyExport:
    """Parsed, not verified: only a password shows whether it opens."""

    config: Config
    mac: bytes
    slots: Sequence[KeySlot]


def encode(export: KeyExport, comments: Sequence[str]) -> str:
    """The whole text."""
    lines = [*(f"# {comment}" for comment in comments), f"{TITLE} {VERSION}"]
    sections = [(_CONFIG, config_format.encode(export.config, export.mac)), *((_SLOT, keyslot.encode(slot)) for slot in export.slots)]
    for number, (kind, data) in enumerate(sections, 1):
        lines += [kind, *_section(number, data)]
    return "\n".join([*lines, f"end {len(sections)}"]) + "\n"


def decode(text: str) -> KeyExport:
    """Raises UsageError when it is something else, DamageError that names the line when a line is not what was written."""
    lines = _significant(text)
    number, title = next(lines, (0, ""))
    if title != f"{TITLE} {VERSION}":
        raise UsageError(f"this is no export of keys: it begins with {title[:40]!r} and not with '{TITLE} {VERSION}'")
    sections: list[tuple[str, bytes]] = []
    for number, line in lines:
        if end := _END.fullmatch(line):
            if int(end[1]) != len(sections):
                raise DamageError(f"export of keys: it had {end[1]} sections, and {len(sections)} of them are here")
            break
        if line not in (_CONFIG, _SLOT):
            raise DamageError(f"export of keys, line {number}: here should begin a section ('{_CONFIG}', '{_SLOT}') or the end")
        sections.append((line, _read_section(len(sections) + 1, line, lines)))
    else:
        raise DamageError(f"export of keys: it breaks off after line {number}")
    if [kind for kind, _ in sections] != [_CONFIG] + [_SLOT] * (len(sections) - 1):
        raise DamageError("export of keys: it has to have one configuration, and slots behind it")
    config, mac = config_format.decode(sections[0][1])
    return KeyExport(config, mac, [keyslot.decode(data) for _, data in sections[1:]])


def _section(number: int, data: bytes) -> Iterator[str]:
    body = data[: -CHECKSUM.size].rstrip(b"\0")
    for line, at in enumerate(range(0, len(body), _LINE_BYTES), 1):
        part = body[at : at + _LINE_BYTES]
        yield f"{line}: {part.hex(' ', -2)} - {_checksum(number, line, part)}"
    yield f"crc: {data[-CHECKSUM.size :].hex()}"


def _read_section(section: int, kind: str, lines: Iterator[tuple[int, str]]) -> bytes:
    size_bytes = config_format.SIZE_BYTES if kind == _CONFIG else keyslot.SIZE_BYTES
    body = b""
    expected = 1
    for number, line in lines:
        if crc := _CRC.fullmatch(line):
            return body.ljust(size_bytes - CHECKSUM.size, b"\0") + bytes.fromhex(crc[1])
        found = _DATA.fullmatch(line)
        if found is None:
            raise DamageError(f"export of keys, line {number}: this should be '{expected}: … - …' or 'crc: …'")
        part = bytes.fromhex(found[2].replace(" ", ""))
        if int(found[1]) != expected:
            raise DamageError(f"export of keys, line {number}: here line {expected} of this {kind} should stand, and not line {found[1]}")
        if _checksum(section, expected, part) != found[3]:
            raise DamageError(f"export of keys, line {number}: its checksum does not fit; look for a slip there")
        body += part
        expected += 1
    raise DamageError(f"export of keys: it breaks off in a {kind}")


def _checksum(section: int, line: int, part: bytes) -> str:
    return f"{binascii.crc_hqx(bytes([section & 0xFF, line & 0xFF]) + part, 0):04x}"


def _significant(text: str) -> Iterator[tuple[int, str]]:
    """Lines that count, in one writing, with their numbers in the text from 1."""
    for number, line in enumerate(text.splitlines(), 1):
        plain = " ".join(line.lower().split())
        if plain and not plain.startswith("#"):
            yield number, plain
