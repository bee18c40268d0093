"""Whether this machine and this directory take a mount: one clear sentence for everything that would not work."""

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Final

from backupfs.errors import UnsupportedError, UsageError
from backupfs.fuse import mount_table
from backupfs.fuse.unmounting import FUSERMOUNT

_DEVICE: Final = Path("/dev/fuse")
_FUSE_CONF: Final = Path("/etc/fuse.conf")


def check_machine(
    uid: int,
    *,
    allow_other: bool,
    suid: bool,
    dev: bool,
    device: Path = _DEVICE,
    fuse_conf: Path = _FUSE_CONF,
    search: str | None = None,
) -> None:
    """Raise UnsupportedError when user `uid` cannot mount anything here, UsageError when these options are not for him. `search` stands in for
    PATH.
    """
    _check_device(device)
    if uid == 0:
        return
    fusermount = shutil.which(FUSERMOUNT, path=search)
    if fusermount is None:
        raise UnsupportedError("fusermount3 is missing: install the package fuse3 (apt install fuse3)")
    found = os.stat(fusermount)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        raise UnsupportedError(f"{fusermount} is not set-uid root, so only root can mount: reinstall the package fuse3")
    if suid or dev:
        raise UsageError(f"--{'suid' if suid else 'dev'} is for root: whoever serves a file system could make himself anybody by it")
    if allow_other and not _user_allow_other(fuse_conf):
        raise UsageError(f"--allow-other needs the line user_allow_other in {fuse_conf}, which only root can add")


def _check_device(device: Path) -> None:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise UnsupportedError(
                f"there is no {device}: load the kernel module (modprobe fuse); a container must be given it (--device {device} --cap-add SYS_ADMIN)"
            ) from None
        if error.errno == errno.EACCES:
            raise UnsupportedError(
                f"you may not open {device}: root has to make it accessible (chmod 666 {device}, which udev does elsewhere)"
            ) from None
        raise UnsupportedError(f"{device} cannot be opened: {error.strerror}; a container must be allowed to use it") from None


def _user_allow_other(fuse_conf: Path) -> bool:
    try:
        text = fuse_conf.read_text(errors="replace")
    except FileNotFoundError:
        return False
    return any(line.strip() == "user_allow_other" for line in text.splitlines())


def check_directory(directory: Path, uid: int) -> None:
    """Raise UsageError when user `uid` cannot mount on this directory, or would hide something by it."""
    entry = mount_table.find(directory, mount_table.read())
    if entry is not None and entry.ours:
        raise UsageError(f"{directory} is a backupfs mount already", mounted=True)
    try:
        found = os.stat(directory)
    except FileNotFoundError:
        raise UsageError(f"{directory} does not exist: make it first (mkdir -p {directory})") from None
    except OSError as error:
        raise UsageError(f"{directory} cannot be used as a mount point: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise UsageError(f"{directory} is not a directory, so nothing can be mounted on it")
    _check_owner(directory, found, uid)
    _check_empty(directory)


def _check_owner(directory: Path, found: os.stat_result, uid: int) -> None:
    if uid == 0:
        return
    if found.st_mode & stat.S_ISVTX and found.st_uid != uid:
        raise UsageError(f"{directory} belongs to somebody else: mount on a directory of your own")
    if not os.access(directory, os.W_OK):
        raise UsageError(f"you may not write to {directory}: mount on a directory of your own")


def _check_empty(directory: Path) -> None:
    try:
        with os.scandir(directory) as entries:
            first = next(entries, None)
    except PermissionError:
        raise UsageError(f"you may not list {directory}: mount on a directory of your own") from None
    if first is not None:
        aside = f"{directory}.before"
        raise UsageError(
            f"{directory} is not empty, and a mount would hide what is in it. To bring it in: mv {directory} {aside} && mkdir {directory}, "
            f"mount again, then cp -a {aside}/. {directory}/"
        )
