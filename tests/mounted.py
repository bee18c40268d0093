"""Real mounts for tests: repositories made, mounted, killed and unmounted through the command line.

A `Repository` has everything below one directory: the repository, the state home, the mount point. Keys are derived
cheaply, and nothing of the caller's own configuration is seen. What it started is gone after
`close`, whatever a test did, and a log record of level WARNING or above that the test did not expect fails it there.
"""

import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests import warm
from tests.oracle.manifest import assert_same, manifest
from tests.warm import ROOT

PASSWORD: Final = "correct horse battery staple"
HANG_S: Final = 300
"""No command takes so long: one that does hangs, and the test says so instead of hanging with it."""
NOBODY: Final = 65534
SNAPSHOTS: Final = ".snapshots"

_CHEAP_KEYS: Final = {"KDF_MEMORY_MIN_KIB": 1024}
"""Most of what a mount takes would be the work on the password, and nothing that is looked at depends on how much that is."""
_TROUBLE: Final = re.compile(rb"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) .*", re.MULTILINE)
_OWN_VARIABLES: Final = re.compile("BACKUPFS_|XDG_|CREDENTIALS_DIRECTORY|JOURNAL_STREAM|NOTIFY_SOCKET|BORG_")


def is_own_variable(name: str) -> bool:
    """Whether a variable of the caller's environment would change what backupfs does."""
    return _OWN_VARIABLES.match(name) is not None


class CommandFailedError(AssertionError):
    """A command ended with another exit code than the test expects."""

    def __init__(self, command: Sequence[object], done: subprocess.CompletedProcess[str]) -> None:
        shown = " ".join(str(part) for part in command)
        super().__init__(f"{shown}: exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        self.done = done


def run(
    command: Sequence[str | bytes | Path],
    *,
    expect: int | None = 0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    user: int | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, as another user if one is named (only root may); `expect=None` takes any exit code."""
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env=None if env is None else dict(env),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=HANG_S,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        pass_fds=pass_fds,
    )
    if expect is not None and done.returncode != expect:
        raise CommandFailedError(command, done)
    return done


def unmounting(directory: Path, *, lazy: bool = False) -> list[str]:
    """The command that unmounts from outside: fusermount3, for which a minimal system lacks /etc/mtab, or umount."""
    if os.path.lexists("/etc/mtab"):
        return ["fusermount3", "-u", *(["-z", "-q"] if lazy else []), os.fspath(directory)]
    return ["umount", *(["-l", "-q"] if lazy else []), os.fspath(directory)]


def python_as(user: int, code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python code as another user, with the system's interpreter: the one of the tests may lie in a closed home."""
    return run(["/usr/bin/python3", "-I", "-c", code, *arguments], user=user, cwd=Path("/"))


class Repository:
    """One repository with its state, its mount point and whatever serves it. Not for two threads at once."""

    def __init__(self, base: Path, *, password: str = PASSWORD, user: int | None = None) -> None:
        self.base = base
        self.path = base / "repository"
        self.state_home = base / "state"
        self.directory = base / "mount"
        self.password = password
        self.user = user
        self.limits: dict[str, float] = {}
        """See `limit`."""
        self.is_damaged = False
        """Set by a test that has left the repository so that it cannot be read in full, or not without its index."""
        self._expected: list[str] = []
        self._foreground: list[subprocess.Popen[bytes]] = []
        base.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir()
        if user is not None:
            for place in (base, self.directory):
                os.chown(place, user, user)

    # --- commands ---

    def limit(self, **limits: float) -> None:
        """From now on commands, and the process of a mount, go by these instead of what `backupfs.limits` says; without any, by that."""
        self.limits = limits

    @property
    def program(self) -> list[str]:
        """What a command is started with as a program of its own."""
        words = ["tests.limited", *(f"{name}={value}" for name, value in self.limits.items()), "--"] if self.limits else ["backupfs"]
        return [sys.executable, "-m", *words]

    def environment(self, **more: str) -> dict[str, str]:
        """What a command is started with."""
        kept = {name: value for name, value in os.environ.items() if not is_own_variable(name)}
        return kept | {
            "PYTHONPATH": str(ROOT),
            "HOME": str(self.base),
            "BACKUPFS_PASSWORD": self.password,
            "BACKUPFS_STATE_HOME": str(self.state_home),
            "BACKUPFS_KDF_SECONDS": "0",
            **more,
        }

    def command(
        self,
        *arguments: str | Path,
        expect: int | None = 0,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run `backupfs ARGUMENTS` to its end: in an interpreter of its own when it needs one, else in a warm one."""
        environment = self.environment() if env is None else env
        if self.user is None and stdin is None and not pass_fds and warm.may_run(environment):
            words = [os.fspath(argument) for argument in arguments]
            done = warm.runner(self.limits).run(words, environment, self.base, HANG_S)
            if expect is not None and done.returncode != expect:
                raise CommandFailedError(["backupfs", *words], done)
            return done
        return run(
            [*self.program, *arguments],
            expect=expect,
            cwd=self.base,
            env=environment,
            stdin=stdin,
            user=self.user,
            pass_fds=pass_fds,
        )

    def json(self, *arguments: str | Path, expect: int | None = 0) -> list[Any]:
        """The JSON lines that a command prints."""
        return [json.loads(line) for line in self.command(*arguments, "--json", expect=expect).stdout.splitlines()]

    def init(self, *options: str) -> None:
        """Make the repository."""
        usual = self.limits
        self.limits = {**usual, **_CHEAP_KEYS}
        try:
            self.command("init", self.path, *options)
        finally:
            self.limits = usual

    def mount(self, *options: str | Path, directory: Path | None = None, expect: int | None = 0) -> str:
        """Mount it and return when the mount answers; what the command said on stderr."""
        return self.command("mount", self.path, directory or self.directory, *options, expect=expect).stderr

    def status(self) -> Any:
        """What the daemon says of itself."""
        (told,) = self.json("status", self.directory)
        return told

    def unmount(self, directory: Path | None = None) -> None:
        """Returns when everything is durable."""
        self.command("umount", directory or self.directory)

    def remount(self, *options: str) -> None:
        """Unmount and mount again."""
        self.unmount()
        self.mount(*options)

    def snapshot(self, *options: str) -> Path:
        """Take one; the directory that shows it."""
        before = set(self.snapshot_names())
        self.command("snapshot", "create", self.directory, *options)
        (name,) = set(self.snapshot_names()) - before
        return self.directory / SNAPSHOTS / name

    def snapshot_names(self) -> list[str]:
        """As the root's `.snapshots` lists them, oldest first."""
        return sorted(name for name in os.listdir(self.directory / SNAPSHOTS) if name != "latest")

    def end_without_index(self, *options: str) -> None:
        """Unmount, lose the index, look whether everything in present and past is still the same (mounted with `options`), unmount again."""
        if self.is_damaged or self.user is not None:
            self.unmount()
            return
        before = manifest(self.directory)
        self.unmount()
        shutil.rmtree(self.index)
        self.mount("--every", "off", *options)
        assert_same(before, manifest(self.directory))
        self.unmount()

    # --- the process ---

    @property
    def state(self) -> Path:
        """The repository's own directory in the state home."""
        (found,) = [path for path in self.state_home.iterdir() if re.fullmatch("[0-9a-f]{16,}", path.name)]
        return found

    @property
    def index(self) -> Path:
        """The directory of the index."""
        return self.state / "index"

    def is_mounted(self, directory: Path | None = None) -> bool:
        """Whether something is mounted there, be its process dead or alive."""
        wanted = str(directory or self.directory)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            return any(line.split()[4] == wanted for line in mounts)

    def pid(self) -> int:
        """The process that serves the mount: the one that listens at the control socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            directory = os.open(self.state, os.O_PATH | os.O_DIRECTORY)
            try:
                connection.connect(f"/proc/self/fd/{directory}/control.sock")
            finally:
                os.close(directory)
            size = struct.calcsize("3i")
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return int(pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        os.kill(self.pid(), number)

    def stop_with(self, number: signal.Signals) -> None:
        """Send a signal and return when the process is gone."""
        process = os.pidfd_open(self.pid())
        try:
            signal.pidfd_send_signal(process, number)
            if not select.select([process], [], [], HANG_S)[0]:
                raise AssertionError(f"the process has not ended {HANG_S} s after {number.name}")
        finally:
            os.close(process)

    def kill(self) -> None:
        """With kill -9: nothing is flushed, nothing is unmounted. Returns when the process is gone."""
        self.stop_with(signal.SIGKILL)

    # --- trouble ---

    def expect_trouble(self, pattern: str) -> None:
        """Log records of level WARNING or above that match are what the test is about."""
        self._expected.append(pattern)

    def trouble(self) -> list[str]:
        """Log records of level WARNING or above that nothing expected."""
        if not self.state_home.is_dir():
            return []
        logs = b"".join(path.read_bytes() for path in sorted(self.state_home.glob("*/log*")))
        lines = [line.decode(errors="backslashreplace") for line in _TROUBLE.findall(logs)]
        return [line for line in lines if not any(re.search(pattern, line) for pattern in self._expected)]

    def close(self) -> None:
        """Nothing of it runs, nothing is mounted. Leaves the files; raises nothing."""
        run(unmounting(self.directory, lazy=True), expect=None)
        for record in self.state_home.glob("*/mount.json") if self.state_home.is_dir() else []:
            with suppress(FileNotFoundError):  # it has ended meanwhile, for want of a mount
                _end(json.loads(record.read_bytes())["pid"], str(self.path))
        for process in self._foreground:
            process.kill()
            process.communicate()

    def start_foreground(self, *options: str) -> subprocess.Popen[bytes]:
        """Run `mount --foreground` as a child; it may not answer yet. Ended by `close` at the latest."""
        process = subprocess.Popen(
            [*self.program, "mount", self.path, self.directory, "--foreground", *options],
            cwd=self.base,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self._foreground.append(process)
        return process


def until(condition: Callable[[], object], what: str, timeout_s: float = HANG_S) -> None:
    """Wait for something that nothing can be asked to announce. The time-out ends a hang, it measures nothing."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain: {what}")
        select.select([], [], [], 0.02)


def _end(pid: int, repository: str) -> None:
    """Kill a process that a failed test left, if its number still means that process."""
    try:
        if warm.serves(pid) or os.fsencode(repository) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return  # it has ended by itself


@contextmanager
def workspace() -> Iterator[Path]:
    """A directory below TMPDIR that other users can reach; pytest's own are closed to them. Removed afterwards."""
    place = Path(tempfile.mkdtemp(prefix="backupfs-test-"))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place)


@contextmanager
def repository(base: Path, *options: str, mounted: bool = True, init: Sequence[str] = (), user: int | None = None) -> Iterator[Repository]:
    """A new repository below `base`, mounted with `options`. A test that passes must not leave trouble in the log, and what it has made must
    be the same once the index is lost.
    """
    made = Repository(base, user=user)
    try:
        made.init(*init)
        if mounted:
            made.mount(*options)
        yield made
        unexpected = made.trouble()
        assert not unexpected, "\n".join(unexpected)
        if mounted and made.is_mounted():
            made.end_without_index(*(option for option in options if option in ("--suid", "--dev")))
            unexpected = made.trouble()
            assert not unexpected, "\n".join(unexpected)
    finally:
        made.close()
