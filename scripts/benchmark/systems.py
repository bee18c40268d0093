"""File systems that are measured: each made, mounted and unmounted in the same few steps."""

import base64
import json
import os
import shutil
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from scripts.benchmark.processes import Cost, Processes

POLL_S: Final = 0.01
MOUNT_TIMEOUT_S: Final = 60.0
IMAGE_BYTES: Final = 32 << 30
"""Of a file system in a file. The file is sparse."""


def is_mounted(place: Path) -> bool:
    """Also true of a mount whose process has died."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return any(line.split()[4] == str(place.absolute()) for line in mounts.splitlines())


def disk_bytes(place: Path) -> int:
    """What all files below it take on the disk."""
    return sum(os.lstat(os.path.join(here, name)).st_blocks << 9 for here, _, names in os.walk(place) for name in names)


class System(ABC):
    """What is measured, in a directory of its own, which it may use for whatever it keeps."""

    name: str
    programs: tuple[str, ...] = ()
    """What must be installed."""
    is_process = True
    """Its memory is that of a process."""

    def __init__(self, place: Path, processes: Processes) -> None:
        self.place = place
        self.processes = processes
        place.mkdir()

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be measured here, or nothing."""
        found = [program for program in cls.programs if not shutil.which(program)]
        return f"{' and '.join(found)} not installed" if found else ""

    @classmethod
    def version(cls) -> str:
        """What it calls itself, or nothing."""
        return ""

    def measure(self, action: Callable[[], object]) -> Cost:
        """See `Processes.measure`."""
        cost = self.processes.measure(action)
        return cost if self.is_process else Cost(cost.elapsed_s, cost.cpu_s, 0)

    def tool(self, *command: str | Path) -> None:
        """Run a program that is not the system's: its memory does not count."""
        self.processes.run(command, counts=False)

    @abstractmethod
    def stored_bytes(self) -> int:
        """What is on the disk of it when everything is durable."""

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.place)


class MountedSystem(System):
    """A file system that is mounted."""

    keeps = True
    """What was written is there after an unmount."""

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self.tree = place / "mount"
        """Where files go."""
        self.tree.mkdir()

    @abstractmethod
    def make(self) -> None:
        """Make it, without mounting it."""

    @abstractmethod
    def mount(self) -> None:
        """Returns when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """Returns when everything is durable and nothing is mounted."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Made and mounted inside; whatever happens, nothing is left of it."""
        try:
            self.make()
            self.mount()
            yield
        finally:
            self.discard()

    def past(self, name: str) -> Path:
        """Where that directory of the tree stands as it is now, in a snapshot if the system has them."""
        return self.tree / name

    def settle(self) -> None:
        """Returns when nothing is done in the background any more that was begun by what was written."""

    def discard(self) -> None:
        """Remove everything, whatever state it is in."""
        if is_mounted(self.tree):
            self.stop()
        super().discard()


class FuseSystem(MountedSystem):
    """A process serves it."""

    def stop(self) -> None:
        """Returns when the process has ended."""
        self.tool("fusermount3", "-u", self.tree)
        self.processes.wait_for_daemons()


class EmptyFs(FuseSystem):
    """It keeps names in memory and throws data away."""

    name = "empty fs"
    keeps = False

    def command(self) -> list[str | Path]:
        """What serves the mount."""
        return [sys.executable, "-m", "scripts.emptyfs", self.tree]

    def make(self) -> None:
        """There is nothing to be made."""

    def mount(self) -> None:
        """It begins empty each time."""
        pid = self.processes.start(self.command())
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not is_mounted(self.tree):
            if not self.processes.is_running(pid) or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not mount")
            time.sleep(POLL_S)  # nothing announces a mount that holds no repository

    def stored_bytes(self) -> int:
        """Nothing."""
        return 0


class FloorFs(EmptyFs):
    """The floor with contents: the same on the loop of backupfs, and the stages in C that contents go through."""

    name = "floor"

    def command(self) -> list[str | Path]:
        """What serves the mount."""
        return [sys.executable, "-m", "scripts.floorfs", self.tree, self.place / "contents"]


class Gocryptfs(FuseSystem):
    """gocryptfs with its defaults."""

    name = "gocryptfs"
    programs = ("gocryptfs",)

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self._cipher = place / "cipher"
        self._password = place / "password"

    @classmethod
    def version(cls) -> str:
        """Its own words."""
        return Processes().run(["gocryptfs", "--version"]).partition(";")[0]

    def make(self) -> None:
        """With a password in a file."""
        self._cipher.mkdir()
        self._password.write_text("benchmark\n", encoding="ascii")
        self.processes.run(["gocryptfs", "-q", "-init", "-passfile", self._password, self._cipher])

    def mount(self) -> None:
        """It goes into the background when it answers."""
        self.processes.run(["gocryptfs", "-q", "-passfile", self._password, self._cipher, self.tree])

    def stored_bytes(self) -> int:
        """Of the encrypted files."""
        return disk_bytes(self._cipher)


class Disk(MountedSystem):
    """The file system that everything else lies on."""

    name = "disk"
    is_process = False

    def make(self) -> None:
        """It is there."""

    def mount(self) -> None:
        """It is there."""

    def stop(self) -> None:
        """Nothing is mounted; what is dirty goes to the disk."""
        os.sync()

    def stored_bytes(self) -> int:
        """Of the files."""
        return disk_bytes(self.tree)


class Btrfs(MountedSystem):
    """btrfs with its defaults, in a file on the disk. What its threads in the kernel take is not in the processor time."""

    name = "btrfs"
    programs = ("mkfs.btrfs", "btrfs", "mount")
    is_process = False

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self._image = place / "image"
        self._root = place / "root"
        self.tree = self._root / "tree"

    @classmethod
    def missing(cls) -> str:
        """Only root may mount it."""
        if os.geteuid():
            return "only root may mount it"
        if "\tbtrfs" not in Path("/proc/filesystems").read_text(encoding="ascii"):
            return "this kernel does not have it"
        return super().missing()

    @classmethod
    def version(cls) -> str:
        """Of its programs."""
        return Processes().run(["btrfs", "--version"]).partition("\n")[0]

    def make(self) -> None:
        """`tree` is a subvolume, for only those have snapshots."""
        self._root.mkdir()
        with open(self._image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        self.tool("mkfs.btrfs", "-q", self._image)
        self.mount()
        self.tool("btrfs", "subvolume", "create", self.tree)
        self.stop()

    def mount(self) -> None:
        """Through a loop device."""
        self.tool("mount", "-o", "loop,noatime", self._image, self._root)

    def stop(self) -> None:
        """An unmount writes everything."""
        self.tool("umount", self._root)

    def snapshot(self, name: str) -> Path:
        """Take one, read-only; where it is."""
        place = self._root / name
        self.processes.run(["btrfs", "-q", "subvolume", "snapshot", "-r", self.tree, place])
        return place

    def diff(self, older: Path, newer: Path) -> None:
        """What differs, as `btrfs send` finds it, without the data."""
        self.processes.run(["btrfs", "-q", "send", "--no-data", "-p", older, "-f", "/dev/null", newer])

    def delete(self, snapshot: Path) -> None:
        """Durable on return; the space comes back later."""
        self.processes.run(["btrfs", "-q", "subvolume", "delete", "-c", snapshot])

    def collect(self) -> None:
        """Returns when nothing is left of deleted snapshots."""
        self.processes.run(["btrfs", "subvolume", "sync", self._root])

    def stored_bytes(self) -> int:
        """Of the image."""
        return disk_bytes(self._image.parent) if not is_mounted(self._root) else self._image.stat().st_blocks << 9

    def discard(self) -> None:
        """Remove everything, whatever state it is in."""
        if is_mounted(self._root):
            self.stop()
        shutil.rmtree(self.place)


class BackupFs(MountedSystem):
    """The project, through its command line."""

    name = "backupfs"

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self.repository = place / "repository"
        self._state = place / "state"
        self._environment = {
            "BACKUPFS_PASSWORD": "benchmark",
            "BACKUPFS_STATE_HOME": str(self._state),
        }

    def make(self) -> None:
        """Make the repository."""
        self._backupfs("init", self.repository)

    def mount(self) -> None:
        """Without a schedule that would take snapshots in between."""
        self._backupfs("mount", self.repository, self.tree, "--every", "off")

    def mount_with_defaults(self) -> None:
        """As a user has it."""
        self._backupfs("mount", self.repository, self.tree)

    def stop(self) -> None:
        """Returns when everything is durable."""
        self._backupfs("umount", self.tree)
        self.processes.wait_for_daemons()

    def kill(self) -> None:
        """End its process without any chance to do something about it, and take away what is left of the mount."""
        self.processes.kill(self.pid)
        self.tool("fusermount3", "-u", "-z", self.tree)

    def discard(self) -> None:
        """Remove everything, also when its process has died."""
        if is_mounted(self.tree):
            try:
                self.stop()
            except Exception:
                self.tool("fusermount3", "-u", "-z", self.tree)
                raise
        super().discard()

    @property
    def pid(self) -> int:
        """The process that serves the mount."""
        return int(self.ask("status")["pid"])

    def snapshot(self) -> int:
        """Take one; its number."""
        return int(self.ask("snapshot-create")["serial"])

    def past(self, name: str) -> Path:
        """In a snapshot that is taken now."""
        self.snapshot()
        return self.tree / ".snapshots" / "latest" / name

    def diff(self, older: int, newer: int) -> int:
        """How many differences there are; they are all told."""
        return sum(self.ask("diff", older=older, newer=newer)["counts"].values())

    def versions(self, path: str) -> int:
        """How many versions of that file there are; they are all told."""
        return int(self.ask("versions", path=base64.b64encode(path.encode()).decode())["versions"])

    def delete(self, snapshot: int) -> None:
        """Mark it deleted."""
        self.ask("snapshot-delete", names=[str(snapshot)])

    def collect(self) -> None:
        """Purge what is deleted and get all space back."""
        self.ask("gc", now=True)

    def settle(self) -> None:
        """Returns when the index has everything: until then a thread is busy with it."""
        while self.ask("status")["engine"]["layers_not_applied"]:
            time.sleep(POLL_S)  # the daemon tells when it is asked, not by itself

    @property
    def journal_bytes(self) -> int:
        """Since the last checkpoint."""
        return int(self.ask("status")["engine"]["journal_since_checkpoint_bytes"])

    @property
    def index(self) -> Path:
        """The directory of the index."""
        (found,) = self._state.glob("*/index")
        return found

    def lose_index(self) -> None:
        """As if the host's disk had lost it."""
        shutil.rmtree(self.index)

    def rebuild_index(self) -> None:
        """By the command for it."""
        self._backupfs("rebuild-index", self.repository)

    def stored_bytes(self) -> int:
        """Of the repository, but for the reserve, which is ballast, and locks."""
        reserve = self.repository / "open" / "reserve"
        return disk_bytes(self.repository) - (reserve.stat().st_blocks << 9 if reserve.exists() else 0)

    def ask(self, request: str, **fields: object) -> Any:
        """Over the control socket: starting a Python for each request would be most of what is measured."""
        (path,) = self._state.glob("*/control.sock")
        with socket.socket(socket.AF_UNIX) as connection:
            directory = os.open(path.parent, os.O_PATH)  # the path of a socket has at most 107 bytes
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            os.close(directory)
            connection.sendall(json.dumps({"request": request, **fields}).encode() + b"\n")
            with connection.makefile("rb") as replies:
                for line in replies:
                    if line.startswith(b'{"reply":"item"'):
                        continue
                    reply = json.loads(line)
                    if reply["reply"] == "result":
                        return reply["value"]
                    if reply["reply"] == "failure":
                        raise RuntimeError(f"{request}: {reply}")
        raise RuntimeError(f"{request}: no answer")

    def _backupfs(self, *arguments: str | Path) -> None:
        self.processes.run([sys.executable, "-m", "backupfs", *arguments], self._environment)
