"""Programs that copy a directory into an encrypted repository when they are called, with their defaults."""

import shutil
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from scripts.benchmark.processes import Processes
from scripts.benchmark.systems import System, disk_bytes

PASSWORD: Final = "benchmark"


class Archiver(System):
    """A repository that directories are copied into. An archive is known by the name it was given."""

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self.repository = place / "repository"

    @property
    @abstractmethod
    def environment(self) -> Mapping[str, str]:
        """Of each call."""

    @abstractmethod
    def init(self) -> None:
        """Make the repository."""

    @abstractmethod
    def create(self, archive: str, source: Path) -> None:
        """Back `source` up; durable on return."""

    @abstractmethod
    def restore(self, archive: str, target: Path) -> None:
        """Copy it all back, below `target`."""

    @abstractmethod
    def diff(self, older: str, newer: str) -> None:
        """Tell what differs."""

    @abstractmethod
    def delete(self, archive: str) -> None:
        """Forget an archive."""

    @abstractmethod
    def collect(self) -> None:
        """Get the space of forgotten archives back."""

    def stored_bytes(self) -> int:
        """Of the repository."""
        return disk_bytes(self.repository)

    def call(self, *command: str | Path, cwd: Path | None = None) -> str:
        """One call of the program; what it said."""
        return self.processes.run(command, self.environment, cwd)


class Borg(Archiver):
    """Borg, `-e repokey`."""

    name = "borg"
    programs = ("borg",)

    @classmethod
    def version(cls) -> str:
        """Its own words."""
        return Processes().run(["borg", "--version"]).strip()

    @property
    def environment(self) -> Mapping[str, str]:
        """Its cache lies beside the repository."""
        return {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(self.place)}

    def init(self) -> None:
        """Make the repository."""
        self.call("borg", "init", "-e", "repokey", self.repository)

    def create(self, archive: str, source: Path) -> None:
        """Back `source` up; durable on return."""
        self.call("borg", "create", f"{self.repository}::{archive}", source.name, cwd=source.parent)

    def restore(self, archive: str, target: Path) -> None:
        """`borg extract`."""
        self.call("borg", "extract", f"{self.repository}::{archive}", cwd=target)

    def diff(self, older: str, newer: str) -> None:
        """`borg diff`."""
        self.call("borg", "diff", f"{self.repository}::{older}", newer)

    def delete(self, archive: str) -> None:
        """`borg delete`."""
        self.call("borg", "delete", f"{self.repository}::{archive}")

    def collect(self) -> None:
        """`borg compact`."""
        self.call("borg", "compact", self.repository)


class BorgMount(Borg):
    """Borg, read through `borg mount`."""

    name = "borg mount"

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self._tree = place / "mount"

    @classmethod
    def missing(cls) -> str:
        """It needs a Python package that Borg's does not always bring along."""
        if reason := super().missing():
            return reason
        said = Processes().run(["sh", "-c", "borg mount --help 2>&1 || true"])
        return "borg was installed without FUSE" if "not available" in said else ""

    @classmethod
    def version(cls) -> str:
        """That of Borg stands for it."""
        return ""

    def mount(self) -> Path:
        """Where archives stand."""
        self._tree.mkdir(exist_ok=True)
        self.call("borg", "mount", self.repository, self._tree)
        return self._tree

    def stop(self) -> None:
        """Unmount it."""
        self.call("borg", "umount", self._tree)
        self.processes.wait_for_daemons()

    def discard(self) -> None:
        """Remove everything."""
        if self._tree.is_mount():
            self.stop()
        shutil.rmtree(self.place)


class Restic(Archiver):
    """restic, with the repository format that it chooses."""

    name = "restic"
    programs = ("restic",)

    def __init__(self, place: Path, processes: Processes) -> None:
        super().__init__(place, processes)
        self._ids: dict[str, str] = {}
        """Of each archive."""

    @classmethod
    def version(cls) -> str:
        """Its own words."""
        return Processes().run(["restic", "version"]).partition(" compiled")[0]

    @property
    def environment(self) -> Mapping[str, str]:
        """Its cache lies beside the repository."""
        cache = str(self.place / "cache")
        return {"RESTIC_PASSWORD": PASSWORD, "RESTIC_REPOSITORY": str(self.repository), "RESTIC_CACHE_DIR": cache}

    def init(self) -> None:
        """Make the repository."""
        self.call("restic", "init")

    def create(self, archive: str, source: Path) -> None:
        """Back `source` up; durable on return."""
        said = self.call("restic", "backup", source.name, cwd=source.parent)
        self._ids[archive] = said.rpartition("snapshot ")[2].split()[0]

    def restore(self, archive: str, target: Path) -> None:
        """`restic restore`."""
        self.call("restic", "restore", self._ids[archive], "--target", target)

    def diff(self, older: str, newer: str) -> None:
        """`restic diff`."""
        self.call("restic", "diff", self._ids[older], self._ids[newer])

    def delete(self, archive: str) -> None:
        """`restic forget`."""
        self.call("restic", "forget", self._ids[archive])

    def collect(self) -> None:
        """`restic prune`."""
        self.call("restic", "prune")
