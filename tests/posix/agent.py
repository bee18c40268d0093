"""What runs in the child process of an `Actor`: takes calls from stdin, makes them as somebody else, answers on stdout.

It is handed to the system's interpreter as text, so that an identity that may read nothing of the tests can run it; hence only the standard
library, and nothing newer than Python 3.10. Calls and answers are pickles: `(name, positional, named)` gives `(errno, value)`, errno 0 for success.
"""

import ctypes
import fcntl
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def _native(value: Any) -> Any:
    """An argument as C takes it: numbers as wide as a pointer, so that an address may be given as one."""
    return ctypes.c_long(value) if isinstance(value, int) else os.fsencode(value) if isinstance(value, str) else value


def c(name: str, *arguments: Any) -> int:
    """Call a function of the C library by its name: numbers, strings, bytes and None for NULL; a number in place of a path is an address."""
    function = getattr(_LIBC, name)
    function.restype = ctypes.c_long
    ctypes.set_errno(0)
    result = ctypes.c_int(function(*map(_native, arguments))).value
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def utimensat(path: str | None, access: tuple[int, int], change: tuple[int, int], flags: int = 0, directory: int = AT_FDCWD) -> None:
    """Two times as (seconds, nanoseconds); UTIME_NOW and UTIME_OMIT go into the nanoseconds."""
    c("utimensat", directory, path, (ctypes.c_long * 4)(*access, *change), flags)


def renameat2(source: str, target: str, flags: int) -> None:
    c("renameat2", AT_FDCWD, source, AT_FDCWD, target, flags)


def access(path: str, mode: int, flags: int = 0) -> None:
    """What may be done with it, by the real ids; flags are those of faccessat(2): AT_EACCESS and AT_SYMLINK_NOFOLLOW."""
    c("faccessat", AT_FDCWD, path, mode, flags)


def fchmodat(path: str, mode: int, flags: int = 0, directory: int = AT_FDCWD) -> None:
    c("fchmodat", directory, path, mode, flags)


def linkat(source: str, target: str, flags: int = 0, directory: int = AT_FDCWD) -> None:
    c("linkat", directory, source, AT_FDCWD, target, flags)


def bind(path: str) -> None:
    """Make a socket's name; the socket itself is closed again. An address is shorter than a path may be, hence the way through /proc."""
    above, name = os.path.split(path)
    directory = os.open(above or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{directory}/{name}")
    finally:
        os.close(directory)


def create(path: str, mode: int = 0o644) -> None:
    """An empty regular file that was not there before."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def lease(descriptor: int, kind: int) -> None:
    """Take a lease on an open file, or give it back; nobody is to be signalled."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, kind)


def effective(uid: int, gid: int) -> None:
    """Take other effective ids than the real ones; needs root as the real user."""
    os.setegid(gid)
    os.seteuid(uid)


def reset(umask: int) -> None:
    """As at the start: nothing open, in the root directory, with the umask of then."""
    os.chdir("/")
    os.closerange(3, 256)
    os.umask(umask)


_OWN: dict[str, Callable[..., Any]] = {
    made.__name__: made for made in (access, bind, c, create, effective, fchmodat, lease, linkat, renameat2, reset, utimensat)
}


def main(uid: int, gid: int, groups: tuple[int, ...], umask: int) -> None:
    """Become somebody, then answer calls until stdin ends."""
    if os.geteuid() == 0:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    os.umask(umask)
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            name, positional, named = pickle.load(calls)
        except EOFError:
            return
        answer: tuple[int | None, Any]
        try:
            answer = (0, (_OWN.get(name) or getattr(os, name))(*positional, **named))
        except OSError as error:
            if not error.errno:
                raise
            answer = (error.errno, None)
        pickle.dump(answer, answers, 4)
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), tuple(map(int, sys.argv[3].split(","))) if sys.argv[3] else (), int(sys.argv[4]))
