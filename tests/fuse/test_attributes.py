"""The kernel's view never lies: what stat says after a call, a fresh mount says too."""

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.mounted import Repository

OLD_NS: Final = 1_218_364_662_839_476_861
CONTENT: Final = b"content of some length"


def _write(path: Path, offset: int, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, data, offset)
    os.close(descriptor)


def _ftruncate(path: Path, size: int) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.ftruncate(descriptor, size)
    os.close(descriptor)


def _through_a_mapping(path: Path) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[3:6] = b"MAP"


def _second_link(path: Path) -> Path:
    return path.with_name(f"{path.name} once more")


def _link_and_unlink(path: Path) -> None:
    os.link(path, _second_link(path))
    os.unlink(_second_link(path))


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"another")
    os.utime(new, ns=(OLD_NS + 7, OLD_NS + 9))
    os.rename(new, path)


def _then_utime(path: Path, change: Callable[[], None]) -> None:
    change()
    os.utime(path, ns=(OLD_NS, OLD_NS + 5))


def _attribute(path: Path, *, remove: bool = False) -> None:
    os.setxattr(path, "user.one", b"value")
    if remove:
        os.removexattr(path, "user.one")


CALLS: Final[dict[str, Callable[[Path], object]]] = {
    "nothing": lambda path: None,
    "overwrite": lambda path: _write(path, 0, b"CONTENT"),
    "append": lambda path: _write(path, len(CONTENT), b"more"),
    "write behind the end": lambda path: _write(path, 100_000, b"far"),
    "write nothing": lambda path: _write(path, 0, b""),
    "write through a mapping": _through_a_mapping,
    "truncate to less": lambda path: os.truncate(path, 3),
    "truncate to nothing": lambda path: os.truncate(path, 0),
    "truncate to more": lambda path: os.truncate(path, 100_000),
    "truncate to what it is": lambda path: os.truncate(path, len(CONTENT)),
    "ftruncate to what it is": lambda path: _ftruncate(path, len(CONTENT)),
    "ftruncate to less": lambda path: _ftruncate(path, 5),
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
    "open with O_TRUNC and write": lambda path: path.write_bytes(b"anew"),
    "read": lambda path: path.read_bytes(),
    "chmod": lambda path: path.chmod(0o640),
    "chmod to what it is": lambda path: path.chmod(0o644),
    "chown": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "utime": lambda path: os.utime(path, ns=(OLD_NS + 1, OLD_NS + 2)),
    "utime now": os.utime,
    "truncate, then utime": lambda path: _then_utime(path, lambda: os.truncate(path, 4)),
    "write, then utime": lambda path: _then_utime(path, lambda: _write(path, 0, b"X")),
    "link": lambda path: os.link(path, _second_link(path)),
    "link and unlink": _link_and_unlink,
    "rename": lambda path: path.rename(path.with_name(f"{path.name} renamed")),
    "replace": _replace,
    "set an attribute": _attribute,
    "set and remove an attribute": lambda path: _attribute(path, remove=True),
}


def _all_stat(root: Path) -> dict[str, tuple[int, ...]]:
    """Everything that a fresh mount must say as well; blocks only count what is stored by then."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        s = path.lstat()
        found[str(path.relative_to(root))] = (
            s.st_ino,
            s.st_mode,
            s.st_nlink,
            s.st_uid,
            s.st_gid,
            s.st_size,
            s.st_atime_ns,
            s.st_mtime_ns,
            s.st_ctime_ns,
        )
    return found


def test_stat_is_the_same_after_a_remount(mounted_repository: Repository) -> None:
    root = mounted_repository.directory / "tree"
    for name, call in CALLS.items():
        directory = root / name
        directory.mkdir(parents=True)
        for state in ("fresh", "stored"):
            path = directory / state
            path.write_bytes(CONTENT)
            os.utime(path, ns=(OLD_NS, OLD_NS))
            if state == "stored":
                descriptor = os.open(path, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            call(path)
    before = _all_stat(root)
    mounted_repository.remount()
    after = _all_stat(root)
    differing = {name: (before[name], after.get(name)) for name in before if before[name] != after.get(name)}
    assert differing == {}
    assert after.keys() == before.keys()
