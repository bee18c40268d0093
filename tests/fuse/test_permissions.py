"""Who may do what: modes, ACLs, set-id bits, seen by another user through `--allow-other`."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import NOBODY, Repository, python_as
from tests.oracle.awkward import acl

pytestmark = pytest.mark.root

ACCESS: Final = "system.posix_acl_access"
DEFAULT: Final = "system.posix_acl_default"
OTHER_USER: Final = 12345

TRY: Final = """
import errno, os, sys
kind, path = sys.argv[1:]
try:
    if kind == "read":
        open(path, "rb").read()
    elif kind == "write":
        open(path, "ab").write(b"!")
    elif kind == "list":
        os.listdir(path)
    elif kind == "create":
        open(path, "xb").close()
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "chmod":
        os.chmod(path, 0o777)
    elif kind == "utime":
        os.utime(path)
    elif kind == "setxattr":
        os.setxattr(path, "user.x", b"")
    elif kind == "trusted":
        os.setxattr(path, "trusted.x", b"")
    elif kind == "setacl":
        entries = "01000700ffffffff" "04000700ffffffff" "20000700ffffffff"
        os.setxattr(path, "system.posix_acl_access", bytes.fromhex("02000000" + entries))
    print("ok")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def tried(user: int, kind: str, path: Path) -> str:
    return python_as(user, TRY, kind, path).stdout.strip()


def test_another_user_is_held_to_the_modes(place: Path) -> None:
    (place / "open").write_bytes(b"open")
    (place / "closed").write_bytes(b"closed")
    os.chmod(place / "open", 0o644)
    os.chmod(place / "closed", 0o600)
    assert tried(NOBODY, "read", place / "open") == "ok"
    assert tried(NOBODY, "write", place / "open") == "EACCES"
    assert tried(NOBODY, "read", place / "closed") == "EACCES"
    assert tried(NOBODY, "create", place / "new") == "EACCES"
    assert tried(NOBODY, "unlink", place / "open") == "EACCES"
    assert tried(NOBODY, "chmod", place / "open") == "EPERM"
    assert tried(NOBODY, "setxattr", place / "open") == "EACCES"
    assert tried(NOBODY, "utime", place / "open") == "EACCES"
    os.chmod(place, 0o700)
    assert tried(NOBODY, "read", place / "open") == "EACCES"
    assert tried(NOBODY, "list", place) == "EACCES"


def test_what_another_user_makes_is_his(place: Path) -> None:
    os.chmod(place, 0o777)
    assert tried(NOBODY, "create", place / "his") == "ok"
    facts = os.stat(place / "his")
    assert (facts.st_uid, facts.st_gid) == (NOBODY, NOBODY)
    assert tried(NOBODY, "chmod", place / "his") == "ok"
    assert tried(NOBODY, "setxattr", place / "his") == "ok"
    assert tried(NOBODY, "trusted", place / "his") == "EPERM"
    assert tried(OTHER_USER, "setxattr", place / "his") == "ok"
    assert tried(OTHER_USER, "setacl", place / "his") == "EPERM"


def test_the_sticky_bit(place: Path) -> None:
    os.chmod(place, 0o1777)
    assert tried(NOBODY, "create", place / "his") == "ok"
    assert tried(OTHER_USER, "unlink", place / "his") == "EPERM"
    assert tried(NOBODY, "unlink", place / "his") == "ok"


def test_an_acl_lets_a_named_user_in(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.chmod(path, 0o600)
    assert tried(NOBODY, "read", path) == "EACCES"
    os.setxattr(path, ACCESS, acl(6, 0, 0, users={NOBODY: 4}))
    assert tried(NOBODY, "read", path) == "ok"
    assert tried(NOBODY, "write", path) == "EACCES"
    assert tried(OTHER_USER, "read", path) == "EACCES"
    os.setxattr(path, ACCESS, acl(6, 0, 0, groups={NOBODY: 6}))
    assert tried(NOBODY, "write", path) == "ok"
    assert tried(OTHER_USER, "write", path) == "EACCES"
    os.removexattr(path, ACCESS)
    assert tried(NOBODY, "read", path) == "EACCES"


def test_an_acl_keeps_a_named_user_out(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.setxattr(path, ACCESS, acl(6, 4, 4, users={NOBODY: 0}))
    assert tried(NOBODY, "read", path) == "EACCES"
    assert tried(OTHER_USER, "read", path) == "ok"


def test_mode_and_mask_are_one(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.setxattr(path, ACCESS, acl(6, 4, 0, users={NOBODY: 6}))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660, "the group bits show the mask"
    os.chmod(path, 0o600)
    assert tried(NOBODY, "read", path) == "EACCES", "chmod closed the mask"
    os.chmod(path, 0o640)
    assert tried(NOBODY, "read", path) == "ok"
    assert tried(NOBODY, "write", path) == "EACCES"
    value = bytearray(acl(6, 4, 0, users={NOBODY: 6}))
    assert len(os.getxattr(path, ACCESS)) == len(value), "the entries stay"


def test_an_acl_that_says_no_more_than_the_mode_is_the_mode(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.setxattr(path, ACCESS, acl(7, 5, 1))
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o751
    assert os.listxattr(path) == []


def test_a_default_acl_is_inherited(place: Path) -> None:
    directory = place / "directory"
    directory.mkdir()
    default = acl(7, 5, 0, users={NOBODY: 7})
    os.setxattr(directory, DEFAULT, default)
    assert os.listxattr(directory) == [DEFAULT]
    mask = os.umask(0o077)  # which does not apply where there is a default ACL
    try:
        os.close(os.open(directory / "file", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(directory / "below", 0o777)
        os.mkfifo(directory / "fifo", 0o666)
        os.symlink("x", directory / "symlink")
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(directory / "file").st_mode) == 0o660
    assert stat.S_IMODE(os.stat(directory / "fifo").st_mode) == 0o660
    assert os.getxattr(directory / "file", ACCESS) == acl_with_mask(6, 5, 0, NOBODY, 7, mask=6)
    assert os.getxattr(directory / "below", DEFAULT) == default
    assert os.getxattr(directory / "below", ACCESS) == default
    assert stat.S_IMODE(os.stat(directory / "below").st_mode) == 0o770
    assert os.listxattr(directory / "symlink", follow_symlinks=False) == []
    os.chmod(place, 0o755)
    os.chmod(directory, 0o755)
    assert tried(NOBODY, "write", directory / "file") == "ok"
    assert tried(OTHER_USER, "read", directory / "file") == "EACCES"


def acl_with_mask(owner: int, group: int, other: int, user: int, permissions: int, *, mask: int) -> bytes:
    value = bytearray(acl(owner, group, other, users={user: permissions}))
    value[-16 + 2] = mask  # the entry before the last: tag, permissions, id
    return bytes(value)


def test_a_default_acl_of_three_entries_gives_modes_only(place: Path) -> None:
    os.setxattr(place, DEFAULT, acl(7, 0, 0))
    (place / "file").touch(mode=0o666)
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o600
    assert os.listxattr(place / "file") == []


@pytest.mark.parametrize(
    "value",
    [b"", b"\x02\0\0", b"\x03\0\0\0", acl(7, 7, 7)[:-8], acl(7, 7, 7) + b"\0" * 8, acl(7, 7, 7)[:-8] * 2],
    ids=["empty", "short", "version", "no other", "unknown tag", "twice"],
)
def test_a_malformed_acl_is_refused(place: Path, value: bytes) -> None:
    (place / "file").touch(mode=0o640)
    if value == b"":
        os.setxattr(place / "file", ACCESS, value)  # the kernel takes it for a removal
    else:
        with pytest.raises(OSError) as caught:
            os.setxattr(place / "file", ACCESS, value)
        assert caught.value.errno in {errno.EINVAL, errno.EOPNOTSUPP}
    assert stat.S_IMODE(os.stat(place / "file").st_mode) == 0o640
    assert os.listxattr(place / "file") == []


def test_a_default_acl_belongs_to_directories(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(OSError) as caught:
        os.setxattr(place / "file", DEFAULT, acl(7, 5, 5))
    assert caught.value.errno == errno.EACCES


WRITE_AS: Final = """
import os, sys
path, how = sys.argv[1:]
if how == "write":
    with open(path, "ab") as file:
        file.write(b"x")
elif how == "truncate":
    os.truncate(path, 1)
elif how == "chown":
    os.chown(path, -1, os.getgid())
"""


@pytest.mark.parametrize("how", ["write", "truncate", "chown"])
def test_set_id_bits_go_when_another_user_changes_the_file(place: Path, how: str) -> None:
    path = place / "program"
    path.write_bytes(b"content")
    if how == "chown":
        os.chown(path, NOBODY, 0)
    os.chmod(path, 0o6777)
    python_as(NOBODY, WRITE_AS, path, how)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o777


def test_a_capability_goes_when_the_file_is_written(place: Path) -> None:
    path = place / "program"
    path.write_bytes(b"content")
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chmod(path, 0o777)
    python_as(NOBODY, WRITE_AS, path, "write")
    assert os.listxattr(path) == []


def test_chown_by_root_takes_set_id_bits_of_a_program(place: Path) -> None:
    path = place / "program"
    path.write_bytes(b"content")
    os.chmod(path, 0o6755)
    os.chown(path, 1, 1)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o755


def test_trusted_xattrs_are_roots(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.chmod(path, 0o666)
    os.setxattr(path, "trusted.secret", b"value")
    assert os.getxattr(path, "trusted.secret") == b"value"
    code = "import os, sys\ntry: os.getxattr(sys.argv[1], 'trusted.secret')\nexcept OSError as error: print(error.errno)"
    assert python_as(NOBODY, code, path).stdout.strip() in {str(errno.ENODATA), str(errno.EPERM)}


def test_without_allow_other_nobody_else_gets_in(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    root.chmod(0o777)
    (root / "file").touch(mode=0o666)
    assert tried(NOBODY, "read", root / "file") == "EACCES"
    assert tried(NOBODY, "list", root) == "EACCES"
