"""Errors, grouped by what the caller does about them.

Each carries a stable `kind` (for logs and JSON), the `exit_code` a command ends with and the `errno` a request on the mount is answered
with. Facts go into `fields`, so that a reader does not have to parse the sentence.
"""

import errno as _errno
from typing import ClassVar, TypeVar

E = TypeVar("E", bound=BaseException)


class BackupfsError(Exception):
    """Something a caller must know about; the message names the cause and the way out."""

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str, **fields: object) -> None:
        super().__init__(message)
        self.fields = fields


class UsageError(BackupfsError):
    """The request makes no sense as it stands; nothing was done."""

    kind = "usage"
    exit_code = 2
    errno = _errno.EINVAL


class RepositoryMissingError(BackupfsError):
    """There is no repository where one was named."""

    kind = "no-repository"
    exit_code = 10


class LockedError(BackupfsError):
    """Another process writes to this repository."""

    kind = "locked"
    exit_code = 11
    errno = _errno.EBUSY


class WrongPasswordError(BackupfsError):
    """No key slot opens with this password."""

    kind = "wrong-password"
    exit_code = 12
    errno = _errno.EACCES


class DamageError(BackupfsError):
    """Stored bytes are not what was written: parsed or authenticated data does not hold."""

    kind = "damage"
    exit_code = 3


class RollbackError(DamageError):
    """The store shows an older or another history than this host has seen."""

    kind = "rollback"
    exit_code = 1


class UnsupportedError(BackupfsError):
    """The repository was written by a newer backupfs, or this machine lacks something that is needed."""

    kind = "unsupported"


class StoreError(BackupfsError):
    """The store failed to do what it was asked; it may work later."""

    kind = "store"


class MissingObjectError(DamageError, StoreError):
    """An object that something refers to is not in the store."""

    kind = "missing-object"


class StoreFullError(StoreError):
    """No space is left where the repository or its state lies."""

    kind = "store-full"
    errno = _errno.ENOSPC


class ReadOnlyError(BackupfsError):
    """Writing has stopped for good in this process, because a write or a sync failed and could not be made good elsewhere."""

    kind = "read-only"
    errno = _errno.EROFS


class FileSystemError(Exception):
    """An ordinary answer to a request: an errno, as `open(2)` and its like give it. Not a fault of backupfs."""

    def __init__(self, code: int) -> None:
        self.errno = code

    def __str__(self) -> str:
        return _errno.errorcode.get(self.errno, str(self.errno))


def again(error: E) -> E:
    """The same error, to be kept, or to be raised where it has been kept: without the frames that it came through.

    An error that a frame keeps while it passes through it keeps this frame, with whatever was to be stored, until cycles are looked for.
    """
    made = type(error).__new__(type(error), *error.args)
    made.__dict__.update(error.__dict__)
    return made
