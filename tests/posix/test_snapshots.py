"""The past is a read-only part of the same file system: nothing in it changes, nothing goes in or out."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fuse.conftest import NATIVE, place_on
from tests.posix.actors import Actor
from tests.posix.conftest import ALICE
from tests.posix.scene import DEVICES, KINDS, make, nothing_changes

pytestmark = pytest.mark.skipif(NATIVE, reason="there are no snapshots on the disk")

MAKING: Final[dict[str, tuple[Any, ...]]] = {
    "open": ("open", "new", os.O_CREAT | os.O_WRONLY, 0o644),
    "mkdir": ("mkdir", "new", 0o755),
    "mkfifo": ("mkfifo", "new", 0o644),
    "mknod": ("mknod", "new", 0o010644),
    "symlink": ("symlink", "target", "new"),
    "bind": ("bind", "new"),
}


@pytest.fixture(scope="module")
def live(posix_mount: Path) -> Iterator[Path]:
    """A directory with something of each kind, everything alice's and open to all, of which there is a snapshot."""
    with place_on(posix_mount, "snapshots") as made:
        maker = Actor(os.geteuid(), os.getegid())
        for kind in KINDS:
            if kind not in DEVICES or maker.uid == 0:
                make(maker, kind, made / kind, 0o777, (ALICE, ALICE) if maker.uid == 0 else None)
        (made / "file").write_bytes(b"then")
        (posix_mount / ".snapshots/rules").mkdir()
        maker.close()
        yield made


@pytest.fixture
def past(posix_mount: Path, live: Path) -> Path:
    """It, as it was."""
    return posix_mount / ".snapshots/rules" / live.name


@pytest.mark.parametrize("how", MAKING)
@pytest.mark.parametrize("below", ["", "directory"])
def test_nothing_is_made(me: Actor, past: Path, how: str, below: str) -> None:
    directory = past / below
    me.call("chdir", directory)
    with nothing_changes(directory=directory):
        assert me.call(*MAKING[how]) == "EROFS"


def test_nothing_changes(me: Actor, past: Path) -> None:
    for path in sorted(past.iterdir()):
        with nothing_changes(x=path, past=past):
            if not path.is_symlink():
                assert me.call("chmod", path, 0o700) == "EROFS", path.name
                assert me.call("utime", path) == "EROFS"
            assert me.call("lchown", path, -1, os.getegid()) == "EROFS"
            assert me.call("rmdir" if path.is_dir() else "unlink", path) == "EROFS"
            assert me.call("rename", path, path.with_name("new")) == "EROFS"
            if path.is_file():
                assert me.call("truncate", path, 0) == "EROFS"
                assert me.call("setxattr", path, "user.x", b"") == "EROFS"
                for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
                    assert me.call("open", path, flags) == "EROFS"
                assert isinstance(me.call("open", path, os.O_RDONLY), int)
                assert path.read_bytes() == b"then"


def test_for_others_it_is_the_same(alice: Actor, past: Path) -> None:
    with nothing_changes(x=past / "file", directory=past / "directory"):
        assert alice.call("chmod", past / "file", 0o700) == "EROFS"
        assert alice.call("create", past / "directory/new", 0o644) == "EROFS"
        assert alice.call("open", past / "file", os.O_WRONLY) == "EROFS"
        assert alice.call("unlink", past / "file") in {"EROFS", "EACCES"}


def test_nothing_goes_in_or_out(me: Actor, live: Path, past: Path) -> None:
    with nothing_changes(live=live, now=live / "file", then=past / "file", d=live / "directory", past_d=past / "directory"):
        for source, target in ((live / "file", past / "new"), (past / "file", live / "new"), (past / "directory", live / "new")):
            assert me.call("rename", source, target) == "EROFS"
            assert me.call("renameat2", source, target, 1) == "EROFS"
        assert me.call("link", live / "file", past / "new") == "EROFS"
        assert me.call("link", past / "file", live / "new") == "EROFS"
        assert me.call("link", past / "file", past / "directory/new") == "EROFS"


def test_the_way_to_the_past_is_a_name_that_nobody_else_has(me: Actor, live: Path) -> None:
    top = live / "directory"
    name = top / ".snapshots"
    with nothing_changes(top=top, file=live / "file"):
        assert me.call("mkdir", name, 0o755) == "EEXIST"
        assert me.call("open", name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644) == "EEXIST"
        assert me.call("symlink", "target", name) == "EEXIST"
        assert me.call("link", live / "file", name) == "EEXIST"
        assert me.call("rename", live / "file", name) == "EISDIR"
        assert me.call("rmdir", name) == "EPERM"
        assert me.call("unlink", name) == "EISDIR"
        assert me.call("chmod", name, 0o700) == "EROFS"
    assert me.call("listdir", top) == [], "and it is not listed"
    assert isinstance(me.call("listdir", name), list)
