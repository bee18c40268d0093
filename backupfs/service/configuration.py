"""Finding and reading configuration: options of the command, environment, file, and the policy of the repository, the strongest first."""

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from backupfs.errors import UsageError
from backupfs.limits import CONFIGURATION_BYTES_MAX
from backupfs.rules.policy import Schedule
from backupfs.rules.quantities import CENTURY_NS, parse_interval
from backupfs.service import vocabulary
from backupfs.service.places import configuration_files
from backupfs.service.settings import NOTHING, Effective, Layer, Settings, effective

DEFAULT_NAME: Final = "default"
POLICY: Final = "policy of the repository"
_UNREADABLE: Final = Layer(
    f"{POLICY}, which this version cannot read: so nothing is deleted",
    Settings(keep_last=999_999_999, space_limit_bytes=0, free_limit=0, undelete_ns=CENTURY_NS),
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What was read. `path` is the file, if there is one; `looked_for` are the places where it may be, and `named` says that it must be."""

    above: tuple[Layer, ...]
    looked_for: tuple[Path, ...]
    named: bool
    path: Path | None = None
    file: Settings = NOTHING

    def reread(self) -> "Configuration":
        """The same with the file as it is now. Blocks. UsageError says what is wrong with it."""
        for path in self.looked_for:
            if os.path.exists(path):
                return replace(self, path=path, file=read_file(path))
        if self.named:
            raise UsageError(f"there is no configuration file {' or '.join(map(str, self.looked_for))}")
        return replace(self, path=None, file=NOTHING)

    def layers(self, policy: bytes = b"") -> list[Layer]:
        """All but the defaults, with the policy that the repository keeps. One that is not understood is logged, and stands above all others: it
        keeps every snapshot.
        """
        own = [*self.above, *([Layer(str(self.path), self.file)] if self.path else [])]
        if not policy:
            return own
        try:
            return [*own, Layer(POLICY, vocabulary.from_json(policy, POLICY))]
        except UsageError as error:
            _log.error("%s; until it is set anew, no snapshot is deleted", error)
            return [_UNREADABLE, *own]

    def effective(self, policy: bytes = b"") -> Effective:
        """What is in force, with that policy."""
        return effective(self.layers(policy))


def read_configuration(options: Sequence[Layer], named: str | None, environ: Mapping[str, str]) -> Configuration:
    """What `--config`, or else `BACKUPFS_CONFIG`, names: a path, or the name of a file in the user's directory or the system's. Blocks.

    Without a name that is `default`, which need not be there. UsageError says what is wrong.
    """
    above = (*options, *from_environment(environ))
    named = named or environ.get("BACKUPFS_CONFIG")
    name = named or DEFAULT_NAME
    is_path = "/" in name or name.endswith(".toml")
    looked_for = [Path(os.path.abspath(name))] if is_path else configuration_files(name, environ)
    return Configuration(above, tuple(looked_for), bool(named)).reread()


def read_file(path: Path) -> Settings:
    """What the file says. UsageError: it cannot be read or understood, or it has hooks, and others than its user and root could change it."""
    try:
        with path.open("rb") as stream:
            facts = os.fstat(stream.fileno())
            data = stream.read(CONFIGURATION_BYTES_MAX + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    if len(data) > CONFIGURATION_BYTES_MAX:
        raise UsageError(f"{path}: a configuration file has at most {CONFIGURATION_BYTES_MAX} bytes")
    try:
        settings = vocabulary.parse(data.decode(), str(path))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this is no UTF-8: {error.reason} at byte {error.start}") from error
    is_open_to_others = facts.st_uid not in (0, os.geteuid()) or bool(stat.S_IMODE(facts.st_mode) & 0o022)
    if is_open_to_others and (settings.before_snapshot or settings.after_snapshot or settings.on_failure):
        raise UsageError(f"{path} has hooks, so it must belong to you or root, and nobody else may write it: `chmod go-w` does that")
    return settings


# --- options and environment --------------------------------------------------------------------------------------


def from_option(field: str, word: str, origin: str) -> Layer:
    """What an option or a variable, which `origin` names, says about one field: an interval for `schedules`, else as in a file."""
    if field == "schedules":
        try:
            every_ns = parse_interval(word)
        except UsageError as error:
            raise UsageError(f"{origin}: {error}") from error
        value: Any = () if every_ns is None else (Schedule(every_ns=every_ns),)
    else:
        kind = next(key.kind for key in vocabulary.KEYS if key.field == field)
        value = vocabulary.read_value(kind, origin, kind.typed(word))
    return Layer(origin, replace(NOTHING, **{field: value}))


def from_environment(environ: Mapping[str, str]) -> list[Layer]:
    """What the variables say that stand for options of `mount`."""
    variables = {
        "BACKUPFS_EVERY": "schedules",
        "BACKUPFS_READ_ONLY": "read_only",
        "BACKUPFS_ALLOW_OTHER": "allow_other",
        "BACKUPFS_SUID": "suid",
        "BACKUPFS_DEV": "dev",
        "BACKUPFS_KEEP_AWAKE": "keep_awake",
        "BACKUPFS_SNAPDIR": "snapdir",
    }
    return [from_option(field, environ[name], name) for name, field in variables.items() if environ.get(name)]
