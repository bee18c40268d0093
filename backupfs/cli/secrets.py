"""Where a password comes from: never from the arguments, which everyone on the machine can read.

The first that is given: a file descriptor, a file (`…_FILE`), a command's output (`…_COMMAND`), a variable, systemd's
credential, the terminal. One line end at the end of a descriptor, a file or an output does not belong to the password.
"""

import getpass
import os
import shlex
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from backupfs.errors import BackupfsError, UsageError

PASSWORD_BYTES_MAX: Final = 64 * 1024
CREDENTIAL: Final = "backupfs.password"
Prompt = Callable[[str], str]
"""Asks on the terminal, without echo."""


def password(
    environ: Mapping[str, str],
    fd: int | None,
    *,
    variable: str = "BACKUPFS_PASSWORD",
    what: str = "password",
    twice: bool = False,
    ask: Prompt = getpass.getpass,
) -> bytes:
    """The password. `twice`: one that is made now; the terminal asks for it again, and it may not be empty.

    Raises UsageError when there is none or its file is open to others, BackupfsError when a source fails.
    """
    given = _given(environ, fd, variable)
    if given is None:
        given = _from_terminal(what, twice, ask, variable)
    if not given:
        raise UsageError(f"the {what} is empty")
    return given


def _given(environ: Mapping[str, str], fd: int | None, variable: str) -> bytes | None:
    if fd is not None:
        return _from_descriptor(fd)
    if path := environ.get(f"{variable}_FILE"):
        return _from_file(Path(path), f"{variable}_FILE")
    if command := environ.get(f"{variable}_COMMAND"):
        return _from_command(command, f"{variable}_COMMAND")
    if value := environ.get(variable):
        return os.fsencode(value)
    if variable == "BACKUPFS_PASSWORD" and (directory := environ.get("CREDENTIALS_DIRECTORY")):
        credential = Path(directory) / CREDENTIAL
        if credential.exists():
            return _line(credential.read_bytes())
    return None


def _from_descriptor(fd: int) -> bytes:
    try:
        with os.fdopen(fd, "rb") as stream:
            return _line(stream.read(PASSWORD_BYTES_MAX + 1))
    except OSError as error:
        raise UsageError(f"the password cannot be read from descriptor {fd}: {error.strerror}") from error


def _from_file(path: Path, variable: str) -> bytes:
    try:
        with path.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o077:
                raise UsageError(f"{variable}: {path} must belong to you and be closed to others; `chmod 600` does that")
            return _line(stream.read(PASSWORD_BYTES_MAX + 1))
    except OSError as error:
        raise BackupfsError(f"{variable}: {path}: {error.strerror}") from error


def _from_command(command: str, variable: str) -> bytes:
    try:
        done = subprocess.run(shlex.split(command), stdout=subprocess.PIPE, check=True)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise BackupfsError(f"{variable}: {error}") from error
    return _line(done.stdout)


def has_terminal() -> bool:
    """Whether someone can be asked. (getpass would read a password from standard input otherwise, with a warning.)"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _from_terminal(what: str, twice: bool, ask: Prompt, variable: str) -> bytes:
    if not has_terminal():
        raise UsageError(f"there is no terminal to ask for the {what}: use --password-fd, {variable}_FILE, {variable}_COMMAND or {variable}")
    given = ask(f"{what.capitalize()}: ")
    if twice and given and ask(f"{what.capitalize()} again: ") != given:
        raise UsageError("the two passwords differ")
    return given.encode("utf-8", "surrogateescape")


def _line(data: bytes) -> bytes:
    if len(data) > PASSWORD_BYTES_MAX:
        raise UsageError(f"a password has at most {PASSWORD_BYTES_MAX} bytes")
    return data.removesuffix(b"\n").removesuffix(b"\r")
