"""What running side by side with ext4 has found, each in the fewest calls."""

import os
from pathlib import Path

import pytest

from tests.oracle.awkward import acl
from tests.posix import calls


@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "fifo"])
def test_a_touch_gives_one_time_to_all_three(place: Path, kind: str) -> None:
    path = place / kind
    {
        "file": path.touch,
        "directory": path.mkdir,
        "symlink": lambda: path.symlink_to("nowhere"),
        "fifo": lambda: os.mkfifo(path),
    }[kind]()
    calls.utimensat(os.fsencode(path), "now", "now", follow=False)
    facts = os.lstat(path)
    assert facts.st_atime_ns == facts.st_mtime_ns == facts.st_ctime_ns


def test_an_attribute_that_is_set_to_what_it_is_changes_no_ctime(place: Path) -> None:
    """Of regular files the kernel changes it, once the answer is that it was done."""
    (place / "directory").mkdir()
    settings = (("user.a", b"value"), ("system.posix_acl_access", acl(7, 5, 5, users={1001: 7})), ("system.posix_acl_default", acl(7, 0, 0)))
    for name, value in settings:
        os.setxattr(place / "directory", name, value)
    before = os.stat(place / "directory").st_ctime_ns
    for name, value in settings:
        os.setxattr(place / "directory", name, value)
    assert os.stat(place / "directory").st_ctime_ns == before
    os.setxattr(place / "directory", "user.a", b"other")
    assert os.stat(place / "directory").st_ctime_ns > before
