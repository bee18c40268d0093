"""One cause out of whatever trio wraps around it."""

from backupfs.errors import StoreError
from backupfs.service.groups import cause


def test_a_plain_error_is_its_own_cause() -> None:
    error = ValueError("x")
    assert cause(error) is error


def test_one_error_however_deep() -> None:
    error = KeyboardInterrupt()
    assert cause(BaseExceptionGroup("a", [BaseExceptionGroup("b", [error])])) is error


def test_of_several_the_one_that_says_something_to_a_user() -> None:
    error = StoreError("no space")
    assert cause(ExceptionGroup("a", [ValueError("x"), ExceptionGroup("b", [error])])) is error


def test_several_faults_stay_together() -> None:
    group = ExceptionGroup("a", [ValueError("x"), TypeError("y")])
    assert cause(group) is group
