"""Where things lie on this machine unless someone says otherwise. Decided from the environment that is handed in."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, tzinfo
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from backupfs.errors import UsageError

SYSTEM_STATE: Final = Path("/var/lib/backupfs")
SYSTEM_CONFIGURATION: Final = Path("/etc/backupfs")


def state_home(environ: Mapping[str, str], uid: int) -> Path:
    """The directory that holds one directory of local state for each repository. Absolute."""
    if given := environ.get("BACKUPFS_STATE_HOME"):
        return Path(os.path.abspath(given))
    if uid == 0:
        return SYSTEM_STATE
    return _user_directory(environ, "XDG_STATE_HOME", ".local/state") / "backupfs"


def default_repository(environ: Mapping[str, str]) -> Path:
    """Where a repository lies when none is named: `BACKUPFS_REPOSITORY`, or a directory of the user's. Absolute."""
    if given := environ.get("BACKUPFS_REPOSITORY"):
        return Path(os.path.abspath(given))
    return _user_directory(environ, "XDG_DATA_HOME", ".local/share") / "backupfs" / "repository"


def configuration_files(name: str, environ: Mapping[str, str]) -> list[Path]:
    """Where the configuration file of this name is looked for, in this order. Absolute."""
    directories = [SYSTEM_CONFIGURATION]
    with suppress(UsageError):  # a service without a home has the system's
        directories.insert(0, _user_directory(environ, "XDG_CONFIG_HOME", ".config") / "backupfs")
    return [directory / f"{name}.toml" for directory in directories]


def _user_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    given = environ.get(variable, "")
    if os.path.isabs(given):  # the XDG specification has relative ones ignored
        return Path(given)
    home = environ.get("HOME") or os.path.expanduser("~")
    if not os.path.isabs(home):
        raise UsageError(f"HOME is not set: set it, or {variable}, to an absolute path")
    return Path(home) / below_home


def refuse_overlap(directory: Path, others: Mapping[str, Path]) -> None:
    """Raise UsageError when the mount point lies inside one of `others` (what it is -> where), or one of them inside
    it.

    What does not exist is nowhere. Links are followed, and a directory is known by its inode, whatever path leads to it.
    """
    for what, other in others.items():
        if _inside(directory, other):
            raise UsageError(f"the mount point {directory} lies inside the {what} {other}: choose another directory")
        if _inside(other, directory):
            raise UsageError(f"the {what} {other} would lie inside the mount: choose another directory than {directory}")


def _inside(inner: Path, outer: Path) -> bool:
    if not outer.exists():
        return False
    real = Path(os.path.realpath(inner))
    goal = os.stat(outer)
    return any(os.path.samestat(os.stat(step), goal) for step in (real, *real.parents) if step.exists())


LOCAL_TIME: Final = Path("/etc/localtime")


def local_zone(environ: Mapping[str, str]) -> tzinfo:
    """The time zone in which this user names an hour: `TZ`, or else the machine's; UTC when neither says."""
    name = environ.get("TZ", "").removeprefix(":")
    try:
        if name:
            return ZoneInfo(name)
        with LOCAL_TIME.open("rb") as file:
            return ZoneInfo.from_file(file)
    except (OSError, ValueError, ZoneInfoNotFoundError):
        return UTC
