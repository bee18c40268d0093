"""What the rules are played with: objects of every kind, and what of them a call has changed."""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.posix.actors import Actor

DEVICES: Final = ("block", "char")
FILES: Final = ("file", "fifo", "socket", "symlink", *DEVICES)
"""Every kind but a directory."""
KINDS: Final = (*FILES, "directory")
BAD_ADDRESS: Final = 0xDEAD_C0DE
NAME_MAX: Final = 255
PATH_MAX: Final = 4096
"""Bytes of the longest path, with the zero at its end."""

_TYPES: Final = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFLNK: "symlink", stat.S_IFBLK: "block",
    stat.S_IFCHR: "char",
}  # fmt: skip
_NODES: Final = {"block": stat.S_IFBLK, "char": stat.S_IFCHR}
_COARSE: Final = 5
"""The clock that file systems read: CLOCK_REALTIME_COARSE."""
_SEEN: Final = ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "mtime", "ctime")


def each(kinds: tuple[str, ...]) -> list[Any]:
    """Parameters of a test, one for each kind; devices can be made by root only."""
    return [pytest.param(kind, marks=pytest.mark.root) if kind in DEVICES else kind for kind in kinds]


def make(actor: Actor, kind: str, path: Path, mode: int | None = None, owner: tuple[int, int] | None = None) -> Path:
    """A new object, made by somebody, with exactly this mode; then given away, if an owner is named."""
    usual = 0o755 if kind == "directory" else 0o644
    call, *arguments = {
        "file": ("create", path, usual),
        "directory": ("mkdir", path, usual),
        "fifo": ("mkfifo", path, usual),
        "socket": ("bind", path),
        "symlink": ("symlink", "nowhere", path),
    }.get(kind) or ("mknod", path, _NODES[kind] | usual, os.makedev(1, 2))
    assert actor.call(str(call), *arguments) is None, kind
    if mode is not None and kind != "symlink":
        assert actor.call("chmod", path, mode) is None
    if owner is not None:
        assert actor.call("lchown", path, *owner) is None
    return path


def remove(actor: Actor, kind: str, path: Path) -> Any:
    """Take an object's name away."""
    return actor.call("rmdir" if kind == "directory" else "unlink", path)


def kind_of(path: Path) -> str:
    """What stands there; "none" when nothing does."""
    return _TYPES[stat.S_IFMT(path.lstat().st_mode)] if os.path.lexists(path) else "none"


def mode_of(path: Path) -> int:
    """The permission bits of what stands there, of a link itself."""
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    """User and group."""
    shown = path.lstat()
    return shown.st_uid, shown.st_gid


def tick() -> None:
    """Wait until whatever happens next gets a later time than everything before: a file system's clock goes in steps of some milliseconds."""
    now = time.time_ns()
    while time.clock_gettime_ns(_COARSE) <= now:
        os.sched_yield()


class Watch:
    """What a call changes of some objects. The access time is left out: looking changes it, on some file systems."""

    def __init__(self, *, wait: bool = True, **paths: Path) -> None:
        """Look now, and wait until a change gives another time; not when many are made, after which one `tick` is enough."""
        self._paths = paths
        self._before = {name: _seen(path) for name, path in paths.items()}
        if wait:
            tick()

    def changes(self, **moved: Path) -> dict[str, str]:
        """The names of changed attributes in alphabetical order, for each object that has some; those given have another path now. "gone" and
        "made" for what has no name any more, or had none.
        """
        now = {name: _seen(path) for name, path in (self._paths | moved).items()}
        return {name: told for name, before in self._before.items() if (told := _difference(before, now[name]))}


@contextmanager
def nothing_changes(**paths: Path) -> Iterator[None]:
    """A call that fails leaves no trace."""
    watch = Watch(**paths)
    yield
    changes = watch.changes()
    assert not changes, changes


def _seen(path: Path) -> dict[str, int] | None:
    try:
        shown = path.lstat()
    except FileNotFoundError:
        return None
    return {name: _value(shown, name) for name in _SEEN if name != "size" or not stat.S_ISDIR(shown.st_mode)}


def _value(shown: os.stat_result, name: str) -> int:
    return int(getattr(shown, f"st_{name}_ns" if name.endswith("time") else f"st_{name}"))


def _difference(before: dict[str, int] | None, now: dict[str, int] | None) -> str:
    if before is None or now is None:
        return "" if before is now else "made" if before is None else "gone"
    return " ".join(sorted(name for name in before if before[name] != now[name]))
