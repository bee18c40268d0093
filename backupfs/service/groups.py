"""trio reports what went wrong in exception groups; a command ends with one cause."""

from backupfs.errors import BackupfsError


def cause(error: BaseException) -> BaseException:
    """The one error in a group, however deep; of several the first that says something to a user, or else the group."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    causes = [cause(inner) for inner in error.exceptions]
    if len(causes) == 1:
        return causes[0]
    return next((inner for inner in causes if isinstance(inner, BackupfsError)), error)
