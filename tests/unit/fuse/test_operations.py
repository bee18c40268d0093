"""No handler lets anything but an errno out."""

import errno
import inspect
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import pyfuse3
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from backupfs.engine.attributes import Attributes
from backupfs.errors import DamageError, FileSystemError, ReadOnlyError
from backupfs.fuse.operations import FOREVER_S, Operations, entry
from tests.conftest import LogRule

HANDLERS = sorted(
    name for name, member in inspect.getmembers(Operations, inspect.iscoroutinefunction) if name not in ("access", "poll")
)  # those two are not handled
UINT32 = st.integers(0, 2**32 - 1)
TIMES = st.integers(-(2**40), 2**40).flatmap(lambda second: st.integers(0, 10**9 - 1).map(lambda ns: second * 10**9 + ns))
ATTRIBUTES = st.builds(
    Attributes,
    ino=st.integers(1, 2**63 - 1),
    mode=UINT32,
    nlink=UINT32,
    uid=UINT32,
    gid=UINT32,
    rdev=st.integers(0, 2**63 - 1),
    size=st.integers(0, 2**63 - 1),
    atime_ns=TIMES,
    mtime_ns=TIMES,
    ctime_ns=TIMES,
    blocks=st.integers(0, 2**54),
    cacheable=st.booleans(),
)


class Failing:
    """A file system that does nothing but fail."""

    umask_applied = True

    def __init__(self, failure: BaseException) -> None:
        self.failure = failure
        self.groups_of: Callable[[int], AbstractSet[int]] = lambda _: frozenset()

    def negative_cacheable(self, parent: int, name: bytes) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        raise self.failure


async def call(name: str, failure: BaseException) -> object:
    handler = getattr(Operations(Failing(failure)), name)
    arguments = [
        [(1, 1)] if name == "forget" else pyfuse3.SetattrFields() if parameter == "fields" else 1
        for parameter in inspect.signature(handler).parameters
    ]
    return await handler(*arguments)


def test_every_request_is_handled() -> None:
    base = {name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)}
    assert base - set(HANDLERS) == {"access", "poll"}
    assert set(HANDLERS) <= set(vars(Operations))


@pytest.mark.parametrize("name", sorted(set(HANDLERS) - {"forget"}))
@pytest.mark.parametrize(
    ("failure", "code", "logged"),
    [
        (FileSystemError(errno.ESTALE), errno.ESTALE, None),
        (pyfuse3.FUSEError(errno.ENOSYS), errno.ENOSYS, None),
        (DamageError("pack 7 is torn"), errno.EIO, "pack 7 is torn"),
        (ReadOnlyError("a disk failed"), errno.EROFS, "a disk failed"),
        (ZeroDivisionError("a fault"), errno.EIO, "failed"),
        (OSError(errno.EPERM, "not meant for the caller"), errno.EIO, "failed"),
    ],
)
async def test_failures_are_answered(name: str, failure: Exception, code: int, logged: str | None, log_rule: LogRule) -> None:
    if logged is not None:
        log_rule.expect(f"{name}.*{logged}")
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await call(name, failure)
    assert answer.value.errno == code


async def test_a_failing_forget_is_logged(log_rule: LogRule) -> None:
    log_rule.expect("forget failed")
    await call("forget", ZeroDivisionError())


@pytest.mark.parametrize("name", HANDLERS)
async def test_cancellation_passes(name: str) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as cancelled:
            with pytest.raises(trio.Cancelled):
                await call(name, cancelled)
            raise
    assert scope.cancelled_caught


@given(ATTRIBUTES)
def test_attributes_are_told_whole(attributes: Attributes) -> None:
    answer = entry(attributes)
    for name in ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "blocks", "atime_ns", "mtime_ns", "ctime_ns"):
        assert getattr(answer, f"st_{name}") == getattr(attributes, name)
    assert answer.generation == 0
    assert (answer.entry_timeout, answer.attr_timeout) == ((FOREVER_S,) * 2 if attributes.cacheable else (0, 0))


@given(ATTRIBUTES)
def test_an_answer_is_made_once(attributes: Attributes) -> None:
    """Who lists a directory again, or looks up what was listed, is answered with what is there."""
    assert entry(attributes) is entry(attributes)
    assert entry(structs.replace(attributes, answer=None)) is not entry(attributes)
