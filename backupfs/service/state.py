"""A repository's directory of local state: the index, the log, the control socket, and the record of who serves it
where.

Its lock belongs to the process that serves the repository, or works on it, from this state: two copies of a repository
share an id and so would share the state. The kernel lets go of it when the process dies.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from backupfs.errors import LockedError, UsageError
from backupfs.service.messages import MountRecord
from backupfs.stores.files import Files


class StateDirectory:
    """One `<state home>/<repository id>`. All functions block, for a moment."""

    def __init__(self, home: Path, repository_id: str) -> None:
        self.path = home / repository_id
        self.repository_id = repository_id

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.path / "control.sock"

    @property
    def log(self) -> Path:
        """The log file."""
        return self.path / "log"

    @property
    def _record(self) -> Path:
        return self.path / "mount.json"

    def make(self) -> None:
        """Make it, for this user only. UsageError when someone else could reach into it."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = os.stat(self.path)
        if facts.st_uid != os.geteuid() or stat.S_IMODE(facts.st_mode) & 0o022:
            raise UsageError(f"{self.path} must belong to you, and nobody else may write there")

    @contextmanager
    def locked(self, files: Files) -> Iterator[None]:
        """Keep everyone else from this state. LockedError says who has it."""
        try:
            handle = files.lock(self.path / "lock")
        except LockedError as error:
            record = self.record()
            if record is None:
                raise LockedError(f"another backupfs process works on this repository (its state is {self.path})") from error
            raise LockedError(
                f"the repository {record.repository} is mounted on {record.directory} by process {record.pid};"
                f" `backupfs umount {record.directory}` ends that",
                directory=record.directory,
                pid=record.pid,
            ) from error
        try:
            yield
        finally:
            files.close(handle)

    def record(self) -> MountRecord | None:
        """Who serves the repository, as far as was noted: the process may have died since. None when nothing readable
        is there.
        """
        try:
            return msgspec.convert(json.loads(self._record.read_bytes()), MountRecord)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValidationError of msgspec is a ValueError, too
            return None

    def note(self, record: MountRecord) -> None:
        """Write the record, whole or not at all. Not synced: it means nothing after a power cut."""
        draft = self._record.with_suffix(".new")
        draft.write_text(json.dumps(msgspec.structs.asdict(record)))  # unlike msgspec, json writes paths that are no UTF-8
        os.replace(draft, self._record)

    def forget(self) -> None:
        """Remove the record and the socket."""
        self._record.unlink(missing_ok=True)
        self.socket.unlink(missing_ok=True)


def known_states(home: Path) -> list[StateDirectory]:
    """All state directories under `home` that this user may look into."""
    try:
        names = sorted(os.listdir(home))
    except (FileNotFoundError, PermissionError):
        return []
    return [StateDirectory(home, name) for name in names if os.access(home / name, os.R_OK | os.X_OK)]
