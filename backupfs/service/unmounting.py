"""Unmounting as commands see it."""

import logging
from dataclasses import dataclass
from pathlib import Path

from backupfs.fuse.unmounting import clear_stale
from backupfs.service.client import connected
from backupfs.service.locate import at_directory
from backupfs.service.messages import NotRunningError, UnmountRequest

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unmounted:
    """What was unmounted. `was_dead`: its process had died before, only the mount was left."""

    directory: str
    repository: str | None
    was_dead: bool


def unmount(directory: Path, home: Path) -> Unmounted:
    """End the mount on this directory: everything is durable, the process gone and its locks free when this returns.

    Raises MountBusyError when someone uses it (everything written so far is durable all the same), NotRunningError when
    there is none.
    """
    place = at_directory(directory, home)
    if place is not None:
        try:
            with connected(place.state.socket) as client, client.hold_process() as process:
                client.ask(UnmountRequest())
                client.wait_until_gone(process)
            return Unmounted(str(directory), str(place.repository), was_dead=False)
        except NotRunningError:
            _log.info("no process answers for %s", directory)
    if clear_stale(directory):
        if place is not None:
            place.state.forget()
        return Unmounted(str(directory), str(place.repository) if place else None, was_dead=True)
    raise NotRunningError(f"no backupfs of yours is mounted on {directory}")
