"""Errors that are kept."""

import traceback

import pytest

from backupfs.errors import FileSystemError, LockedError, StoreFullError, again


@pytest.mark.parametrize("error", [LockedError("in use", pid=3), StoreFullError("full"), FileSystemError(28)])
def test_the_same_error_again_has_come_through_nothing(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raise error
    made = again(caught.value)
    assert made is not caught.value
    assert made.__traceback__ is None
    assert (type(made), str(made), made.args, vars(made)) == (type(error), str(error), error.args, vars(error))
    assert traceback.format_exception_only(made) == traceback.format_exception_only(error)
