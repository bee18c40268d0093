"""Commands around a snapshot: before it, so that programs can bring their files into order, after it, and when something failed.

A hook may use the mount: nothing is held while it runs, and the loop goes on serving. It has a session of its own; when its time is up, or the
mount ends, everything in its process group is ended.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import BackupfsError
from backupfs.rules.policy import SECOND_NS
from backupfs.service import program
from backupfs.service.groups import cause
from backupfs.service.messages import HookFailedError
from backupfs.service.settings import HookCommands

GRACE_S: Final = 5.0
"""Between asking a hook to end and ending it."""
_SECRETS: Final = ("BACKUPFS_PASSWORD", "BACKUPFS_NEW_PASSWORD", "CREDENTIALS_DIRECTORY")
_VARIABLE_CHARS_MAX: Final = 16 * 1024
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What hooks are told of the mount."""

    directory: str
    repository: str
    repository_id: str


class Hooks:
    """Runs the hooks of one mount. `commands` may be replaced at any time; a snapshot that has begun keeps to the ones it began with."""

    def __init__(self, commands: HookCommands, mounted: Mounted, environ: Mapping[str, str], grace_s: float = GRACE_S) -> None:
        self.commands = commands
        self._environ = {name: value for name, value in environ.items() if not name.startswith(_SECRETS)} | {
            "BACKUPFS_DIRECTORY": mounted.directory,
            "BACKUPFS_REPOSITORY": mounted.repository,
            "BACKUPFS_REPOSITORY_ID": mounted.repository_id,
        }
        self._grace_s = grace_s
        self._threads = trio.CapacityLimiter(1)

    async def around(self, take: Callable[[], Awaitable[SnapshotInfo]], why: str, tags: Sequence[str]) -> SnapshotInfo:
        """Take a snapshot between its hooks.

        HookFailedError when the one before it fails: then none is taken. When that one has succeeded, the one after it runs whatever happens,
        cancellation included. `on-failure` runs when the snapshot or another hook has failed.
        """
        commands = self.commands
        about = {"BACKUPFS_WHY": why, "BACKUPFS_TAGS": ",".join(tags), "BACKUPFS_SNAPSHOT": "", "BACKUPFS_STATUS": "", "BACKUPFS_ERROR": ""}
        try:
            await self._run("before-snapshot", commands.before_snapshot, commands, about)
        except BaseException as error:
            await self._tell(commands, about, error)
            raise
        try:
            info = await take()
        except BaseException as error:
            with trio.CancelScope(shield=True):
                failed = about | {"BACKUPFS_STATUS": "failed", "BACKUPFS_ERROR": _said(error)}
                await self._run_anyway("after-snapshot", commands.after_snapshot, commands, failed)
            await self._tell(commands, about, error)
            raise
        with trio.CancelScope(shield=True):
            done = about | {"BACKUPFS_STATUS": "ok", "BACKUPFS_SNAPSHOT": info.name}
            trouble = await self._run_anyway("after-snapshot", commands.after_snapshot, commands, done)
        if trouble is not None:
            await self._tell(commands, done, trouble)
        return info

    async def _tell(self, commands: HookCommands, about: Mapping[str, str], error: BaseException) -> None:
        with trio.CancelScope(shield=True):
            failed = {**about, "BACKUPFS_STATUS": "failed", "BACKUPFS_ERROR": _said(error)}
            await self._run_anyway("on-failure", commands.on_failure, commands, failed)

    async def _run_anyway(self, event: str, command: Sequence[str], commands: HookCommands, about: Mapping[str, str]) -> HookFailedError | None:
        """Its failure is logged and returned."""
        try:
            await self._run(event, command, commands, about)
        except HookFailedError as error:
            return error
        return None

    async def _run(self, event: str, command: Sequence[str], commands: HookCommands, about: Mapping[str, str]) -> None:
        if not command:
            return
        environ = {**self._environ, **{name: _fit(value) for name, value in about.items()}, "BACKUPFS_EVENT": event}
        timeout_s = commands.timeout_ns / SECOND_NS
        try:
            ended = await program.run(command, environ, timeout_s=timeout_s, grace_s=self._grace_s, threads=self._threads)
        except OSError as error:
            _log.error("the hook %s cannot be started: %s", event, error.strerror)
            raise HookFailedError(f"the hook {event} cannot be started: {error.strerror}") from error
        if ended.output:
            _log.info("the hook %s has said:%s", event, _quoted(ended.output))
        if ended.code == 0:
            _log.info("the hook %s is done", event)
            return
        how = f"had not ended after {timeout_s:g} s" if ended.code is None else _how(ended.code)
        _log.error("the hook %s %s", event, how)
        raise HookFailedError(f"the hook {event} {how}; the log has what it said")


def _how(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was ended by signal {-code}"


def _said(error: BaseException) -> str:
    _, other = BaseExceptionGroup("", [error]).split(trio.Cancelled)
    if other is None:
        return "the mount was ended"
    what = cause(other)
    return str(what) if isinstance(what, BackupfsError) else f"{type(what).__name__}: {what}"


def _fit(value: str) -> str:
    """As a variable may be."""
    return value.replace("\0", "?")[:_VARIABLE_CHARS_MAX]


def _quoted(output: bytes) -> str:
    """Lines of their own for the log, in which nothing looks like a record of the log or speaks to a terminal."""
    text = output.decode(errors="backslashreplace").rstrip()
    lines = ["".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in line) for line in text.splitlines()]
    return "".join(f"\n  | {line}" for line in lines)
