"""Where a mount is not as ext4 is, and why: each test shows what happens instead. On the disk it shows that ext4 differs there, so that a
difference that has gone is noticed. docs/posix.md cites the tests by name.
"""

import os
import shutil
import stat
from pathlib import Path

import pytest

from tests.fuse.conftest import NATIVE
from tests.posix.actors import Actor
from tests.posix.scene import make, mode_of


@pytest.mark.root
def test_a_descriptor_that_root_opened_keeps_set_id_bits_whoever_writes(root: Actor, carol: Actor, place: Path) -> None:
    """A WRITE says whether they are to go (FUSE_WRITE_KILL_SUIDGID); pyfuse3 does not hand that on, so it counts who opened the file."""
    path = make(root, "file", place / "x", 0o6777)
    with path.open("r+b", buffering=0) as file:
        os.setresuid(-1, carol.uid, -1)
        try:
            file.write(b"x")
        finally:
            os.setresuid(-1, 0, -1)
    assert mode_of(path) == (0o777 if NATIVE else 0o6777)


def test_a_running_program_is_emptied_by_a_reader_that_empties(me: Actor, place: Path) -> None:
    """POSIX leaves O_RDONLY | O_TRUNC open. The kernel has OPEN empty the file before it looks whether the file runs; without that (INIT flag
    FUSE_ATOMIC_O_TRUNC) writing a file anew takes more than twice as long.
    """
    shutil.copy("/bin/cat", place / "cat")
    (place / "cat").chmod(0o755)
    gate, way_out = me.call("pipe")
    child = me.call("posix_spawn", str(place / "cat"), ["cat"], {}, file_actions=[(os.POSIX_SPAWN_DUP2, gate, 0)])
    assert me.call("open", place / "cat", os.O_RDONLY | os.O_TRUNC) == "ETXTBSY"
    assert ((place / "cat").stat().st_size == 0) == (not NATIVE)
    me.call("close", way_out)
    me.call("waitpid", child, 0)


def test_there_are_no_files_without_a_name_from_the_start(me: Actor, place: Path) -> None:
    """FUSE_TMPFILE reaches pyfuse3, which knows no such request. The error is the one after which programs make a name and remove it."""
    answer = me.call("open", place, os.O_TMPFILE | os.O_RDWR, 0o600)
    assert isinstance(answer, int) if NATIVE else answer == "ENOTSUP"


def test_one_name_is_taken_in_every_directory(me: Actor, place: Path) -> None:
    """`.snapshots` leads to the past."""
    make(me, "file", place / "x")
    name = place / ".snapshots"
    answers = [
        me.call("mkdir", name, 0o755),
        me.call("open", name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644),
        me.call("symlink", "target", name),
        me.call("link", place / "x", name),
        me.call("rename", place / "x", name),
        me.call("rmdir", name),
        me.call("unlink", name),
    ]
    if NATIVE:
        assert answers[0] is None
        return
    assert answers == ["EEXIST", "EEXIST", "EEXIST", "EEXIST", "EISDIR", "EPERM", "EISDIR"]
    assert stat.S_ISDIR(name.stat().st_mode)
    assert os.listdir(place) == ["x"], "and is not listed"
