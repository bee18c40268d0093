"""Supplementary groups, as /proc tells them."""

import os
import threading

from backupfs.fuse.groups import groups_of


def test_the_groups_of_a_process_and_of_its_threads() -> None:
    own = set(os.getgroups())
    assert set(groups_of(os.getpid())) == own
    told: list[set[int]] = []
    thread = threading.Thread(target=lambda: told.append(set(groups_of(threading.get_native_id()))))
    thread.start()
    thread.join()
    assert told == [own]


def test_whoever_cannot_be_looked_at_is_in_no_group() -> None:
    assert groups_of(0) == ()
    assert groups_of(2**31 - 1) == ()
