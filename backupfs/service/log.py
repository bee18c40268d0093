"""Where log records go: a bounded file in the state directory, or the journal; the last warnings and errors also stay
in memory.

The log lies outside the repository and in the clear: nothing that names or quotes the mount's content may be logged.
"""

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from backupfs import limits
from backupfs.service.messages import Trouble, shown

_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECOND_NS: Final = 1_000_000_000
_STDOUT: Final = 1
_STDERR: Final = 2


class RecentTrouble(logging.Handler):
    """Keeps the last `limits.STATUS_ERRORS_MAX` records of level WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kept: deque[Trouble] = deque(maxlen=limits.STATUS_ERRORS_MAX)

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self._kept.append(Trouble(int(record.created * _SECOND_NS), record.levelname, record.name, shown(record.getMessage())))

    def kept(self) -> list[Trouble]:
        """Oldest first."""
        return list(self._kept)


class BoundedFile(RotatingFileHandler):
    """A log file and the one before it, together at most `limits.LOG_BYTES_MAX`.

    With `take_stdio` whatever else the process or a library prints goes there, too.
    """

    def __init__(self, path: Path, take_stdio: bool, bytes_max: int = limits.LOG_BYTES_MAX) -> None:
        super().__init__(path, maxBytes=bytes_max // 2, backupCount=1, encoding="utf-8", errors="backslashreplace")
        self._take_stdio = take_stdio
        self._redirect()

    def doRollover(self) -> None:  # noqa: N802 the base class's name
        """See `RotatingFileHandler`."""
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self._take_stdio and self.stream is not None:
            os.dup2(self.stream.fileno(), _STDOUT)
            os.dup2(self.stream.fileno(), _STDERR)


class JournalFormatter(logging.Formatter):
    """Each line begins with its level, as systemd reads it (sd-daemon(3)); time and process the journal knows itself."""

    def __init__(self) -> None:
        super().__init__("%(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        prefix = f"<{_syslog_level(record.levelno)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _syslog_level(level: int) -> int:
    for at_least, syslog in ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6)):
        if level >= at_least:
            return syslog
    return 7


def goes_to_journal(environ: Mapping[str, str]) -> bool:
    """Whether standard error is a stream of systemd's journal."""
    facts = os.fstat(_STDERR)
    return environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


@contextmanager
def logging_to(path: Path, detached: bool, environ: Mapping[str, str]) -> Iterator[RecentTrouble]:
    """Send this process's log records where they belong while the context lasts, and give what keeps the last bad ones.

    A detached process's standard output and error go to the file as well and stay with it.
    """
    recent = RecentTrouble()
    handlers: list[logging.Handler] = [recent]
    if not detached and goes_to_journal(environ):
        journal = logging.StreamHandler()
        journal.setFormatter(JournalFormatter())
        handlers.append(journal)
    else:
        file = BoundedFile(path, take_stdio=detached)
        file.setFormatter(logging.Formatter(_LINE))
        handlers.append(file)
        if not detached:
            terminal = logging.StreamHandler()
            terminal.setLevel(logging.WARNING)
            terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
            handlers.append(terminal)
    root = logging.getLogger()
    level_before = root.level
    root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield recent
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level_before)
