"""What a mount finds out about those who ask."""

import os
import subprocess
import sys

import pytest

from backupfs.fuse.mount import supplementary_groups


def test_groups_of_this_process() -> None:
    assert supplementary_groups(os.getpid()) == set(os.getgroups())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_groups_of_another() -> None:
    many = list(range(40_000, 40_300))
    with subprocess.Popen([sys.executable, "-c", "input()"], extra_groups=many, stdin=subprocess.PIPE) as other:
        assert supplementary_groups(other.pid) == set(many)
        other.communicate(b"\n")


def test_what_cannot_be_seen_has_none() -> None:
    """The number of a process in another PID namespace is 0."""
    assert supplementary_groups(0) == frozenset()
