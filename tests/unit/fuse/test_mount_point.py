"""What is in the way of a mount is said in one sentence that names the way out."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from backupfs.errors import UnsupportedError, UsageError
from backupfs.fuse import mount_point
from backupfs.fuse.mount import MountOptions
from backupfs.fuse.mount_point import check_directory, check_machine

USER = 12345


def program(directory: Path, mode: int) -> str:
    directory.mkdir(exist_ok=True)
    made = directory / "fusermount3"
    made.touch()
    made.chmod(mode)
    return os.fspath(directory)


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., None]:
    """Checks a machine where everything is as it should be, but for what is said otherwise."""
    device, conf = tmp_path / "fuse", tmp_path / "fuse.conf"
    device.touch()
    search = program(tmp_path / "bin", 0o755)

    def check(uid: int = 0, allow_other: bool = False, device: Path = device, fuse_conf: Path = conf, search: str = search) -> None:
        check_machine(uid, allow_other, device, fuse_conf, search)

    return check


def test_root_needs_the_device_only(machine: Callable[..., None], tmp_path: Path) -> None:
    machine()
    machine(allow_other=True, search="/nonexistent")
    with pytest.raises(UnsupportedError, match="modprobe fuse"):
        machine(device=tmp_path / "missing")
    with pytest.raises(UnsupportedError, match="cannot be opened: Is a directory"):
        machine(device=tmp_path)


def test_a_device_that_others_may_not_open(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(mount_point.os, "open", refuse)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedError, match="chmod 666"):
        machine(USER)


def test_a_user_needs_fusermount(machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="apt install fuse3"):
        machine(USER, search="/nonexistent")
    with pytest.raises(UnsupportedError, match="set-uid"):
        machine(USER)
    as_root = os.stat_result((0o104755, 1, 1, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(mount_point.os, "stat", lambda path: as_root)  # type: ignore[attr-defined]
    machine(USER)


@pytest.mark.parametrize(
    ("text", "allowed"), [("#user_allow_other\n", False), ("mount_max = 9\n user_allow_other \n", True), (None, False), ("user_allow_others", False)]
)
def test_allow_other_is_roots_to_give(
    machine: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, allowed: bool
) -> None:
    conf = tmp_path / "fuse.conf"
    if text is not None:
        conf.write_text(text)
    as_root = os.stat_result((0o104755, 1, 1, 1, 0, 0, 0, 0, 0, 0))
    monkeypatch.setattr(mount_point.os, "stat", lambda path: as_root)  # type: ignore[attr-defined]
    machine(0, allow_other=True)
    machine(USER)
    if allowed:
        machine(USER, allow_other=True)
    else:
        with pytest.raises(UsageError, match="user_allow_other in"):
            machine(USER, allow_other=True)


def test_an_empty_directory_will_do(tmp_path: Path) -> None:
    check_directory(tmp_path, os.geteuid())


def test_other_things_will_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name, said in (("file", "not a directory"), ("missing", "mkdir -p"), ("file/below", "Not a directory"), ("full", "cp -a .*full.before/. ")):
        with pytest.raises(UsageError, match=said):
            check_directory(tmp_path / name, os.geteuid())


def test_somebody_elses_directory_will_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        check_directory(tmp_path, USER)
    tmp_path.chmod(0o777)
    check_directory(tmp_path, USER)
    monkeypatch.setattr(mount_point.os, "access", lambda path, mode: False)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="may not write"):
        check_directory(tmp_path, USER)


def test_a_directory_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(mount_point.os, "scandir", refuse)  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="may not list"):
        check_directory(tmp_path, os.geteuid())


def test_options_are_safe_ones() -> None:
    assert {"default_permissions", "nosuid", "nodev", "noatime", "subtype=backupfs"} <= set(MountOptions().names())
    assert not {"auto_unmount", "allow_other", "ro"} & set(MountOptions().names())
    assert {"allow_other", "ro"} <= set(MountOptions(allow_other=True, read_only=True).names())
