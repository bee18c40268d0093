"""MessagePack, read only: what one byte string holds, as plain Python values. Written from the MessagePack specification."""

import struct
from typing import Final

from tests.decoder.damage import Damage

Value = None | bool | int | float | str | bytes | list["Value"] | dict[str | bytes | int, "Value"]

_NUMBERS: Final = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_BYTE_STRINGS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXTS: Final = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAYS: Final = {0xDC: 2, 0xDD: 4}
_MAPS: Final = {0xDE: 2, 0xDF: 4}


def decode(encoded: bytes) -> Value:
    """The one value that `encoded` is; Damage when it is anything else."""
    value, end = _value(encoded, 0)
    if end != len(encoded):
        raise Damage(f"{len(encoded) - end} bytes behind a MessagePack value")
    return value


def _value(encoded: bytes, at: int) -> tuple[Value, int]:
    lead = _take(encoded, at, 1)[0]
    at += 1
    if lead < 0x80:
        return lead, at
    if lead >= 0xE0:
        return lead - 0x100, at
    if lead < 0x90:
        return _map(encoded, at, lead & 0x0F)
    if lead < 0xA0:
        return _array(encoded, at, lead & 0x0F)
    if lead < 0xC0:
        return _text(encoded, at, lead & 0x1F)
    return _long(encoded, at, lead)


def _long(encoded: bytes, at: int, lead: int) -> tuple[Value, int]:
    """A value whose lead byte holds nothing but its kind."""
    if lead == 0xC0:
        return None, at
    if lead in {0xC2, 0xC3}:
        return lead == 0xC3, at
    if lead in _NUMBERS:
        form = _NUMBERS[lead]
        raw = _take(encoded, at, struct.calcsize(form))
        number: int | float = struct.unpack(form, raw)[0]
        return number, at + len(raw)
    if lead in _BYTE_STRINGS:
        count, at = _count(encoded, at, _BYTE_STRINGS[lead])
        return _take(encoded, at, count), at + count
    if lead in _TEXTS:
        return _text(encoded, *reversed(_count(encoded, at, _TEXTS[lead])))
    if lead in _ARRAYS:
        return _array(encoded, *reversed(_count(encoded, at, _ARRAYS[lead])))
    if lead in _MAPS:
        return _map(encoded, *reversed(_count(encoded, at, _MAPS[lead])))
    raise Damage(f"MessagePack value of kind {lead:#x}")


def _count(encoded: bytes, at: int, width: int) -> tuple[int, int]:
    return int.from_bytes(_take(encoded, at, width), "big"), at + width


def _take(encoded: bytes, at: int, count: int) -> bytes:
    taken = encoded[at : at + count]
    if len(taken) != count:
        raise Damage("a MessagePack value is cut off")
    return taken


def _text(encoded: bytes, at: int, count: int) -> tuple[str, int]:
    try:
        return _take(encoded, at, count).decode(), at + count
    except UnicodeDecodeError as error:
        raise Damage("text in a MessagePack value is not UTF-8") from error


def _array(encoded: bytes, at: int, count: int) -> tuple[list[Value], int]:
    values = []
    for _ in range(count):
        value, at = _value(encoded, at)
        values.append(value)
    return values, at


def _map(encoded: bytes, at: int, count: int) -> tuple[dict[str | bytes | int, Value], int]:
    entries: dict[str | bytes | int, Value] = {}
    for _ in range(count):
        key, at = _value(encoded, at)
        if not isinstance(key, str | bytes | int) or key in entries:
            raise Damage(f"key {key!r} of a MessagePack map")
        entries[key], at = _value(encoded, at)
    return entries, at
