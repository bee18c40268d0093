"""INIT messages are changed in the flags and nowhere else; what is not INIT is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.fuse.handshake import HandshakeError, offered, with_flags

UINT32 = st.integers(0, 2**32 - 1)


def request(opcode: int = 26, major: int = 7, flags: int = 0, tail: bytes = bytes(48)) -> bytes:
    body = struct.pack("<IIII", major, 45, 131072, flags) + tail
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 2, 0, 0, 0, 0, 0, 0) + body


def answer(error: int = 0, major: int = 7, flags: int = 0, tail: bytes = bytes(48), length: int | None = None) -> bytes:
    body = struct.pack("<IIII", major, 31, 131072, flags) + tail
    return struct.pack("<IiQ", 16 + len(body) if length is None else length, error, 2) + body


@given(UINT32, st.binary(max_size=64))
def test_what_the_kernel_offers(flags: int, tail: bytes) -> None:
    assert offered(request(flags=flags, tail=tail)) == flags


@given(UINT32, UINT32, st.binary(max_size=64))
def test_flags_are_added(flags: int, wanted: int, tail: bytes) -> None:
    assert with_flags(answer(flags=flags, tail=tail), wanted) == answer(flags=flags | wanted, tail=tail)


@pytest.mark.parametrize("strange", [b"", request()[:50], request(opcode=1), request(major=8)])
def test_strange_requests(strange: bytes) -> None:
    with pytest.raises(HandshakeError):
        offered(strange)


@pytest.mark.parametrize("strange", [b"", answer()[:20], answer(error=-71), answer(major=6), answer(length=24)])
def test_strange_answers(strange: bytes) -> None:
    with pytest.raises(HandshakeError):
        with_flags(strange, 1)
