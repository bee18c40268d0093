"""The actors themselves: who they are, and what their calls answer."""

import os
from collections.abc import Callable
from pathlib import Path

from tests.posix.actors import Actor
from tests.posix.conftest import ALICE, TEAM


def test_an_actor_is_who_it_is_said_to_be(alice: Actor, place: Path) -> None:
    place.chmod(0o777)
    assert alice.call("getresuid") == (ALICE, ALICE, ALICE)
    assert alice.call("getresgid") == (ALICE, ALICE, ALICE)
    assert alice.call("getgroups") == [TEAM]
    alice.call("create", place / "hers", 0o666)
    shown = (place / "hers").stat()
    assert (shown.st_uid, shown.st_gid, shown.st_mode & 0o7777) == (ALICE, ALICE, 0o644)


def test_a_call_gives_its_value_or_the_name_of_its_error(me: Actor, place: Path) -> None:
    assert me.call("mkdir", place / "d", 0o700) is None
    assert me.call("mkdir", place / "d", 0o700) == "EEXIST"
    assert me.call("c", "mkdir", 1, 0o700) == "EFAULT"
    assert me.call("lstat", place / "d").st_ino == (place / "d").stat().st_ino
    assert me.call("access", place / "none", os.F_OK) == "ENOENT"


def test_what_a_test_left_open_is_closed_after_it(actor: Callable[..., Actor], place: Path) -> None:
    me = actor(os.geteuid(), os.getegid())
    me.call("chdir", place)
    me.call("umask", 0)
    descriptor = me.call("open", ".", os.O_RDONLY)
    me.reset()
    assert me.call("fstat", descriptor) == "EBADF"
    assert me.call("getcwd") == "/"
    assert me.call("umask", 0o022) == 0o022
