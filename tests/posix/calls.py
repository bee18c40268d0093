"""System calls that Python has no name for."""

import ctypes
import os
import struct
from typing import Final

NOWHERE: Final = -100
SYMLINK_NOFOLLOW: Final = 0x100
SYMLINK_FOLLOW: Final = 0x400
UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2
RENAME_WHITEOUT: Final = 4

_SECOND_NS: Final = 1_000_000_000
_DIRENT: Final = struct.Struct("=QqHB")
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
_libc.linkat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
_libc.futimens.argtypes = [ctypes.c_int, ctypes.c_char_p]
_libc.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_libc.getdents64.restype = ctypes.c_ssize_t

Time = int | str
"""Nanoseconds since 1970, or "now", or "omit"."""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    _checked(_libc.renameat2(NOWHERE, old, NOWHERE, new, flags))


def linkat(old: bytes, new: bytes, *, follow: bool) -> None:
    """`os.link` never follows a symlink on Linux, whatever it is told."""
    _checked(_libc.linkat(NOWHERE, old, NOWHERE, new, SYMLINK_FOLLOW if follow else 0))


def _timespec(time: Time) -> bytes:
    if isinstance(time, str):
        return struct.pack("=qq", 0, {"now": UTIME_NOW, "omit": UTIME_OMIT}[time])
    return struct.pack("=qq", *divmod(time, _SECOND_NS))


def utimensat(path: bytes, atime: Time, mtime: Time, *, follow: bool) -> None:
    _checked(_libc.utimensat(NOWHERE, path, _timespec(atime) + _timespec(mtime), 0 if follow else SYMLINK_NOFOLLOW))


def futimens(descriptor: int, atime: Time, mtime: Time) -> None:
    _checked(_libc.futimens(descriptor, _timespec(atime) + _timespec(mtime)))


def getdents(descriptor: int, size: int) -> list[bytes]:
    """The next names of a directory, as many as this many bytes hold; none at the end. EINVAL when not even one fits."""
    buffer = ctypes.create_string_buffer(size)
    filled = _checked(_libc.getdents64(descriptor, buffer, size))
    raw, names, at = buffer.raw, [], 0
    while at < filled:
        _, _, length, _ = _DIRENT.unpack_from(raw, at)
        names.append(raw[at + _DIRENT.size : at + length].split(b"\0", 1)[0])
        at += length
    return names
