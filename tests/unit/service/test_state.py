"""A repository's local state: for one user, one process, and a record that may be stale or broken."""

import os
import stat
from pathlib import Path

import pytest

from backupfs.errors import LockedError, UsageError
from backupfs.service.messages import MountRecord
from backupfs.service.state import StateDirectory, known_states
from backupfs.stores.files import SystemFiles

RECORD = MountRecord("/repository", "ab" * 16, "/mount", 4711, 5, read_only=False)


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    made = StateDirectory(tmp_path / "home", "ab" * 16)
    made.make()
    return made


def test_only_its_user_may_look_into_it(state: StateDirectory) -> None:
    state.make()
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_one_where_others_may_write_is_refused(state: StateDirectory) -> None:
    state.path.chmod(0o770)
    with pytest.raises(UsageError, match="nobody else"):
        state.make()


def test_the_record_reads_back_and_goes(state: StateDirectory) -> None:
    assert state.record() is None
    state.note(RECORD)
    assert state.record() == RECORD
    state.forget()
    assert state.record() is None
    state.forget()


def test_a_record_that_is_cut_short_is_none(state: StateDirectory) -> None:
    state.note(RECORD)
    path = state.path / "mount.json"
    path.write_bytes(path.read_bytes()[:-5])
    assert state.record() is None


def test_one_process_at_a_time_and_the_other_is_told_who(state: StateDirectory) -> None:
    with state.locked(SystemFiles()):
        with pytest.raises(LockedError, match="another backupfs process"), state.locked(SystemFiles()):
            pass
        state.note(RECORD)
        with pytest.raises(LockedError, match="mounted on /mount by process 4711"), state.locked(SystemFiles()):
            pass
    with state.locked(SystemFiles()):
        pass


def test_known_states(tmp_path: Path, state: StateDirectory) -> None:
    assert known_states(tmp_path / "missing") == []
    assert [known.path for known in known_states(tmp_path / "home")] == [state.path]


def test_a_directory_of_any_bytes_reads_back(state: StateDirectory) -> None:
    record = MountRecord(os.fsdecode(b"/r\xff"), "ab" * 16, os.fsdecode(b"/m\n\xfe"), 4711, 5, read_only=True)
    state.note(record)
    assert state.record() == record
