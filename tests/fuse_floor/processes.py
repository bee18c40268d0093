"""The fake's server, and programs that use its mount, as processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backupfs.fuse.unmounting import unmount

ROOT: Final = Path(__file__).resolve().parent.parent.parent
NOBODY: Final = 65534
FOR_EVERYBODY: Final = os.path.exists("/dev/fuse") and os.stat("/dev/fuse").st_mode & 0o006 == 0o006
"""Whether ordinary users can mount here."""
MAPPER: Final = """
import mmap, os, sys
os.setgid(os.getgid() if sys.argv[3] == str(os.getuid()) else int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
opened = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, int(sys.argv[2], 8))
os.ftruncate(opened, 3 * 4096)
mapped = mmap.mmap(opened, 3 * 4096)
mapped[4096:4101] = b"dirty"
print("dirty", flush=True)
for line in sys.stdin:
    mapped[0:5] = line.encode()[:5]
    print("again", flush=True)
"""
"""Maps a file, makes a page dirty, keeps it open and mapped; makes another dirty for each line."""


@dataclass
class Process:
    process: subprocess.Popen[str]

    def told(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def ask(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.told()

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait()


@contextmanager
def started(*arguments: str | Path) -> Iterator[Process]:
    """A Python program; dead behind."""
    command = [sys.executable, *(os.fspath(argument) for argument in arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    ) as process:
        try:
            yield Process(process)
        finally:
            process.kill()


@contextmanager
def server(directory: Path, *options: str) -> Iterator[Process]:
    """The fake on `directory`; nothing is left of it behind."""
    with started(ROOT / "tests/fuse_floor/server.py", directory, *options) as process:
        assert process.told() == "mounted"
        try:
            yield process
        finally:
            unmount(directory, lazy=True)
            process.end()


def mapper(path: Path, mode: int = 0o644, user: int | None = None) -> tuple[str, ...]:
    """Arguments for `started`."""
    return "-c", MAPPER, os.fspath(path), oct(mode), str(os.geteuid() if user is None else user)
