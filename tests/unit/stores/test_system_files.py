"""What the operating system may do to a call: short writes and reads, errors."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from backupfs.errors import StoreError, StoreFullError
from backupfs.stores.files import SystemFiles


def test_a_short_write_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    sizes = iter([1, 2, 0, 5, 3, 1, 1, 100])

    def short(handle: int, parts: Sequence[memoryview], offset: int) -> int:
        return real(handle, b"".join(parts)[: next(sizes)], offset)

    monkeypatch.setattr(os, "pwritev", short)
    files = SystemFiles()
    handle = files.create(tmp_path / "a")
    files.write_at(handle, 2, [b"ab", b"cdefg", b"h", b"ijklm"])
    assert files.read_at(handle, 0, 100) == b"\0\0abcdefghijklm"
    files.close(handle)


def test_a_short_read_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: real(handle, min(size, 3), offset))
    files = SystemFiles()
    handle = files.open(tmp_path / "a")
    assert files.read_at(handle, 1, 100) == b"123456789"
    assert files.read_at(handle, 1, 5) == b"12345"
    files.close(handle)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EIO, StoreError), (errno.EROFS, StoreError)],
)
def test_errors_are_told_by_what_can_be_done_about_them(code: int, kind: type[StoreError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = SystemFiles()
    handle = files.create(tmp_path / "a")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    for function in ("pwritev", "fdatasync"):
        monkeypatch.setattr(os, function, fail)
    asks: list[Callable[[], None]] = [lambda: files.write_at(handle, 0, [b"x"]), lambda: files.sync(handle)]
    for ask in asks:
        with pytest.raises(StoreError) as caught:
            ask()
        assert type(caught.value) is kind
    files.close(handle)


def test_a_directorys_sync_leaves_no_descriptor_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = SystemFiles()
    files.sync_directory(tmp_path)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError):
        files.sync_directory(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_lock_is_free_when_its_process_has_died(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from backupfs.stores.files import SystemFiles\n"
        "SystemFiles().lock(Path(sys.argv[1])); print('locked', flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "lock")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.stdout == "locked\n"
    files = SystemFiles()
    files.close(files.lock(tmp_path / "lock"))


def test_a_lock_that_cannot_be_taken_leaves_no_descriptor_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    files = SystemFiles()
    held = files.lock(tmp_path / "lock")
    with pytest.raises(Exception, match="in use"):
        files.lock(tmp_path / "lock")
    files.close(held)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(StoreError):
        files.lock(tmp_path / "lock")
    assert len(os.listdir("/proc/self/fd")) == before
