"""What is measured: each system made, mounted and unmounted in the same few steps."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

EMPTYFS: Final = Path(__file__).resolve().parent.parent / "emptyfs.py"
POLL_S: Final = 0.01
MOUNT_TIMEOUT_S: Final = 60.0


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run a program to its end; its output, or an error that carries it."""
    done = subprocess.run(list(command), env={**os.environ, **(environment or {})}, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def _is_mounted(place: Path) -> bool:
    """Also true of a mount whose process has died."""
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    return any(line.split()[4] == str(place.absolute()) for line in mounts.splitlines())


class MountedSystem(ABC):
    """A file system mounted below a directory of its own, which it may use for whatever it keeps."""

    name: str

    def __init__(self, place: Path) -> None:
        self.place = place
        self.tree = place / "mount"
        """Where files go."""
        place.mkdir()
        self.tree.mkdir()

    @abstractmethod
    def start(self) -> None:
        """Make it and mount it."""

    @abstractmethod
    def stop(self) -> None:
        """Returns when everything is durable and nothing is mounted."""

    def discard(self) -> None:
        """Remove everything, whatever state it is in."""
        if _is_mounted(self.tree):
            self.stop()
        shutil.rmtree(self.place)


class EmptyFs(MountedSystem):
    """The floor: it keeps names in memory and throws data away."""

    name = "empty fs"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mount it."""
        self._process = subprocess.Popen([sys.executable, EMPTYFS, self.tree])
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while not _is_mounted(self.tree):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the empty file system did not mount")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """Unmount it; everything in it is gone."""
        run(["fusermount3", "-u", self.tree])
        if self._process is not None:
            self._process.wait()


class Disk(MountedSystem):
    """The file system that everything else lies on."""

    name = "disk"

    def start(self) -> None:
        """It is there."""

    def stop(self) -> None:
        """Nothing is mounted; what is dirty goes to the disk."""
        os.sync()


class BackupFs(MountedSystem):
    """The project, through its command line."""

    name = "backupfs"

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        self._repository = place / "repository"
        self._state = place / "state"
        self._environment = {
            "BACKUPFS_PASSWORD": "benchmark",
            "BACKUPFS_STATE_HOME": str(self._state),
        }
        self.init_s = 0.0

    def start(self) -> None:
        """Make the repository and mount it."""
        began = time.perf_counter()
        self._backupfs("init", self._repository)
        self.init_s = time.perf_counter() - began
        self.mount()

    def mount(self) -> None:
        """Mount it, without a schedule that would take snapshots in between."""
        self._backupfs("mount", self._repository, self.tree, "--every", "off")

    def stop(self) -> None:
        """Returns when everything is durable."""
        self._backupfs("umount", self.tree)

    def snapshot(self) -> None:
        """Take one."""
        self._ask("snapshot-create")

    def settle(self) -> None:
        """Returns when the index has everything: until then a thread is busy with it."""
        while self._ask("status")["engine"]["layers_not_applied"]:
            time.sleep(POLL_S)

    def _ask(self, request: str) -> Any:
        """Over the control socket: starting a Python for each request would be most of what is measured."""
        (path,) = self._state.glob("*/control.sock")
        with socket.socket(socket.AF_UNIX) as connection:
            directory = os.open(path.parent, os.O_PATH)  # the path of a socket has at most 107 bytes
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            os.close(directory)
            connection.sendall(json.dumps({"request": request}).encode() + b"\n")
            with connection.makefile("rb") as replies:
                reply = json.loads(replies.readline())
        if reply["reply"] != "result":
            raise RuntimeError(f"{request}: {reply}")
        return reply["value"]

    def _backupfs(self, *arguments: str | Path) -> None:
        run([sys.executable, "-m", "backupfs", *arguments], self._environment)


class Borg:
    """Borg with its defaults and encryption, through its command line."""

    name = "borg"

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._repository = place / "repository"
        self._environment = {"BORG_PASSPHRASE": "benchmark", "BORG_BASE_DIR": str(place)}

    def init(self) -> None:
        """Make the repository."""
        run(["borg", "init", "-e", "repokey", self._repository], self._environment)

    def create(self, source: Path) -> None:
        """Back `source` up; durable on return."""
        run(["borg", "create", f"{self._repository}::archive", source.name], self._environment, cwd=source.parent)

    def extract(self, target: Path) -> None:
        """Copy it all back, below `target`."""
        run(["borg", "extract", f"{self._repository}::archive"], self._environment, cwd=target)

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.place)
