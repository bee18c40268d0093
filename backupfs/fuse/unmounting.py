"""Taking mounts away: on request, and what a dead process left behind. All of it blocks, so it runs in a thread beside the serving loop."""

import ctypes
import errno
import os
import subprocess
from pathlib import Path
from typing import Final

from backupfs.errors import BackupfsError
from backupfs.fuse import mount_table
from backupfs.fuse.holders import describe, holders

FUSERMOUNT: Final = "fusermount3"
_MNT_DETACH: Final = 2
_UMOUNT_NOFOLLOW: Final = 8


class MountBusyError(BackupfsError):
    """Somebody uses the mount. `fields["holders"]` says who, as far as it can be seen."""

    kind = "busy"
    errno = errno.EBUSY


def unmount(directory: Path, *, lazy: bool = False) -> None:
    """Unmount the backupfs on this directory, if there is one, or MountBusyError. What the kernel holds is written back first, so the process
    behind the mount must be serving. With `lazy` it leaves the tree at once and ends when its last user lets go.
    """
    entry = mount_table.find(directory, mount_table.read())
    if entry is None or not entry.ours:
        return
    code = _umount2(entry.point, lazy) if os.geteuid() == 0 else errno.EPERM
    if code == errno.EPERM:  # an ordinary user, or root in a container without the right to unmount
        code = _by_command(entry.point, lazy)
    if code == errno.EBUSY:
        found = holders(directory)
        raise MountBusyError(
            f"{directory} is in use by {describe(found)}; everything written to it is safe, it stays mounted",
            holders=[f"{pid} {command}: {what}" for pid, command, what in found],
        )
    if code and entry in mount_table.read():  # otherwise somebody else has unmounted it meanwhile
        raise BackupfsError(f"{directory} cannot be unmounted: {os.strerror(code)}")


def _umount2(point: bytes, lazy: bool) -> int:
    """umount(2): 0 or an errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return ctypes.get_errno() if libc.umount2(ctypes.c_char_p(point), ctypes.c_int(flags)) else 0


def _by_command(point: bytes, lazy: bool) -> int:
    """The set-user-id programs that unmount for an ordinary user: 0 or EBUSY; what the first says is raised when neither could.

    fusermount3 wants /etc/mtab, which a minimal system lacks; umount(8) reads the kernel's table and lets a FUSE mount's owner unmount it.
    """
    option = ["-z"] if lazy else []
    said = _run([FUSERMOUNT, "-u", *option, "--", point])
    if said is None:
        return 0
    if os.strerror(errno.EBUSY) in said:
        return errno.EBUSY
    again = _run(["umount", *(["-l"] if lazy else []), "--", point])
    if again is None:
        return 0
    if "busy" in again:
        return errno.EBUSY
    raise BackupfsError(f"fusermount3 could not unmount: {said}")


def _run(command: list[str | bytes]) -> str | None:
    """None when the command succeeded, else what it said."""
    try:
        # Descriptors are left to be closed by exec. Closing one that leads into the own mount sends a request to this very process, which would
        # stand still, interpreter lock held, until the child has closed them all.
        done = subprocess.run(command, capture_output=True, check=False, close_fds=False)
    except FileNotFoundError:
        return f"{command[0]!s} is missing: install the packages fuse3 and mount"
    return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()


def answers(directory: Path) -> bool:
    """Whether a process serves what is mounted here. Waits for that process. (Only a request without cached answer tells: attributes of a
    dead mount's root are still in the kernel.)
    """
    try:
        os.statvfs(directory)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            return False
        raise
    return True


def clear_stale(directory: Path) -> bool:
    """Unmount a backupfs whose process is dead, and tell whether there was one. Those who still stand in it lose nothing that is not lost
    already, so they do not keep it.
    """
    if not mount_table.is_mounted(directory) or answers(directory):
        return False
    unmount(directory, lazy=True)
    return True
