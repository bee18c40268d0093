"""Who keeps a mount from being unmounted: processes with something open below it, mounts and loop devices that stand on it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from backupfs.fuse import mount_table
from backupfs.fuse.mount_table import MountEntry

_PROC: Final = Path("/proc")
_LOOPS: Final = Path("/sys/block")

Holder = tuple[int, str, str]
"""(pid, command, what). The pid is 0 where the kernel itself holds it."""


def holders(directory: Path, proc: Path = _PROC, loops: Path = _LOOPS) -> list[Holder]:
    """All that this process may see: another user's processes stay hidden from an ordinary one. Never waits for the mount."""
    table = mount_table.read(proc / "self/mountinfo")
    mount = mount_table.find(directory, table)
    if mount is None:
        return []
    return [*_processes(mount, proc), *_mounts(mount, table), *_loop_devices(mount, loops)]


def describe(found: list[Holder]) -> str:
    """The holders in one line."""
    named = (f"{command} ({pid}: {what})" if pid else f"{command} ({what})" for pid, command, what in found)
    return ", ".join(named) or "a process that may not be looked at"


def _processes(mount: MountEntry, proc: Path) -> Iterator[Holder]:
    for pid in sorted(int(entry) for entry in os.listdir(proc) if entry.isdigit()):
        process = proc / str(pid)
        try:
            command = (process / "comm").read_text(errors="replace").strip()
            uses = list(_uses(process, mount))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
            continue
        yield from ((pid, command, use) for use in uses)


def _uses(process: Path, mount: MountEntry) -> Iterator[str]:
    for name in ("cwd", "root", "exe"):
        target = _link(process / name)
        if _below(target, mount.point):
            yield f"{name} {os.fsdecode(target)}"
    for descriptor in os.listdir(process / "fd"):
        if _mount_id(process / "fdinfo" / descriptor) == mount.mount_id:
            yield f"open {os.fsdecode(_link(process / 'fd' / descriptor))}"
    yield from (f"mapped {os.fsdecode(path)}" for path in _mapped(process / "maps", mount.device))


def _link(path: Path) -> bytes:
    try:
        return os.readlink(os.fsencode(path))
    except FileNotFoundError:  # kernel threads have no exe; a descriptor may have been closed
        return b""


def _below(path: bytes, point: bytes) -> bool:
    return path == point or path.startswith(point.rstrip(b"/") + b"/")


def _mount_id(fdinfo: Path) -> int | None:
    try:
        text = fdinfo.read_bytes()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"mnt_id:")), None)


def _mapped(maps: Path, device: tuple[int, int]) -> list[bytes]:
    """Files of the device, each once."""
    paths: dict[bytes, None] = {}
    for line in maps.read_bytes().split(b"\n")[:-1]:
        fields = line.split(maxsplit=5)
        major, minor = fields[3].split(b":")
        if (int(major, 16), int(minor, 16)) == device:
            paths[fields[5] if len(fields) > 5 else b""] = None
    return list(paths)


def _mounts(mount: MountEntry, table: list[MountEntry]) -> Iterator[Holder]:
    for entry in table:
        if entry is not mount and entry.point.startswith(mount.point.rstrip(b"/") + b"/"):
            yield 0, "mount", f"{os.fsdecode(entry.type)} on {os.fsdecode(entry.point)}"


def _loop_devices(mount: MountEntry, loops: Path) -> Iterator[Holder]:
    for backing in sorted(loops.glob("loop*/loop/backing_file")):
        try:
            path = backing.read_bytes().rstrip(b"\n")
        except FileNotFoundError:  # detached meanwhile
            continue
        if _below(path, mount.point):
            yield 0, backing.parent.parent.name, f"loop device on {os.fsdecode(path)}"
