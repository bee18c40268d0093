"""The reserve: taken, given up, taken again."""

import errno
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine.space import Space
from backupfs.errors import StoreError
from tests.conftest import LogRule
from tests.crash.disk import SimulatedDisk
from tests.crash.faults import FaultyFiles

OPEN = Path("/open")
RESERVE = OPEN / "reserve"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RESERVE_BYTES", 1000)


def disk(capacity: int) -> SimulatedDisk:
    made = SimulatedDisk(capacity_bytes=capacity)
    made.make_directory(OPEN)
    return made


def fill(where: SimulatedDisk, size: int, name: str = "data") -> None:
    handle = where.create(OPEN / name)
    where.write_at(handle, 0, [bytes(size)])
    where.close(handle)


def test_the_reserve_is_real_and_never_a_large_part_of_the_disk() -> None:
    for capacity, expected in ((100_000, 1000), (8000, 500)):
        where = disk(capacity)
        space = Space(OPEN, where)
        space.refresh(0)
        handle = where.open(RESERVE)
        assert where.size(handle) == expected
        assert space.free_bytes == capacity - expected
        assert space.margin_bytes == expected // 2


def test_what_was_accepted_and_what_waits_count() -> None:
    space = Space(OPEN, disk(20_000))
    space.refresh(0)
    assert not space.is_short()
    assert not space.accept(200)
    assert space.accept(100), "time to look again"
    space.refresh(18_400)
    assert not space.is_short()
    assert not space.accept(100)
    space.accept(1)
    assert space.is_short()
    space.refresh(0)
    assert not space.is_short()


def test_what_the_kernel_may_hold_counts_as_far_as_there_is_room() -> None:
    space = Space(OPEN, disk(20_000))
    space.refresh(0)
    margin_bytes = space.margin_bytes
    assert space.room_for_pages(500) == 500
    assert space.margin_bytes == margin_bytes + 500
    space.refresh(17_900)
    assert not space.is_short()
    space.accept(101)
    assert space.is_short()
    assert space.room_for_pages(1 << 40) == 20_000 // 32
    assert space.room_for_pages(0) == 0
    assert not space.is_short()


def test_given_up_once_and_taken_again_when_there_is_room(log_rule: LogRule) -> None:
    log_rule.expect("the reserve of 1000 bytes has been given up")
    where = disk(20_000)
    space = Space(OPEN, where)
    space.refresh(0)
    fill(where, 19_000)
    assert space.release()
    assert not space.release()
    space.refresh(0)
    assert not where.exists(RESERVE)
    where.unlink(OPEN / "data")
    space.refresh(0)
    assert where.exists(RESERVE)


def test_a_reserve_that_cannot_be_had(log_rule: LogRule) -> None:
    log_rule.expect("no room for the reserve")
    where = disk(20_000)
    files = FaultyFiles(where, lambda operation, _number: errno.ENOSPC if operation == "allocate" else None)
    space = Space(OPEN, files)
    space.refresh(0)
    assert not where.exists(RESERVE)
    broken = FaultyFiles(where, lambda operation, _number: errno.EIO if operation == "allocate" else None)
    with pytest.raises(StoreError):
        Space(OPEN, broken).refresh(0)


def test_a_reserve_that_cannot_be_given_up(log_rule: LogRule) -> None:
    log_rule.expect("could not be given up")
    where = disk(20_000)
    Space(OPEN, where).refresh(0)
    files = FaultyFiles(where, lambda operation, _number: errno.EIO if operation == "unlink" else None)
    assert not Space(OPEN, files).release()
