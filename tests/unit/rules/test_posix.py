"""Mode bits that change on this side, as ext4 changes them."""

import stat

import pytest

from backupfs.rules import posix

REGULAR = stat.S_IFREG


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (0o644, 0o644),
        (0o4755, 0o755),
        (0o2755, 0o755),
        (0o2745, 0o2745),  # without group execution it is no set-group-id program
        (0o6777, 0o777),
        (0o1777, 0o1777),
    ],
)
def test_set_id_goes_when_content_or_owner_changes(mode: int, expected: int) -> None:
    assert posix.mode_after_write(REGULAR | mode, writer_is_root=False, is_member=True) == REGULAR | expected
    assert posix.mode_after_chown(REGULAR | mode, is_member=True) == REGULAR | expected


def test_set_gid_that_nobody_executes_stays_for_members_of_the_group() -> None:
    assert posix.is_group_mark(REGULAR | 0o2745)
    for mode in (REGULAR | 0o2755, REGULAR | 0o745, stat.S_IFDIR | 0o2745):
        assert not posix.is_group_mark(mode)
    assert posix.mode_after_write(REGULAR | 0o6745, writer_is_root=False, is_member=False) == REGULAR | 0o745
    assert posix.mode_after_chown(REGULAR | 0o6745, is_member=False) == REGULAR | 0o745


def test_root_writes_without_losing_bits() -> None:
    assert posix.mode_after_write(REGULAR | 0o6755, writer_is_root=True, is_member=False) == REGULAR | 0o6755


def test_directories_keep_theirs_and_nothing_else_does() -> None:
    assert posix.mode_after_chown(stat.S_IFDIR | 0o6777, is_member=False) == stat.S_IFDIR | 0o6777
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
        assert posix.mode_after_chown(kind | 0o6777, is_member=True) == kind | 0o777


def test_a_set_gid_directory_hands_its_group_on() -> None:
    parent = stat.S_IFDIR | 0o2775
    assert posix.new_owner(parent, 50, REGULAR | 0o644, 7) == (REGULAR | 0o644, 50)
    assert posix.new_owner(parent, 50, stat.S_IFDIR | 0o755, 7) == (stat.S_IFDIR | 0o2755, 50)
    assert posix.new_owner(stat.S_IFDIR | 0o775, 50, stat.S_IFDIR | 0o755, 7) == (stat.S_IFDIR | 0o755, 7)


def test_a_namespace_alone_is_no_name() -> None:
    for namespace in (b"user.", b"trusted.", b"security."):
        assert posix.is_bare_namespace(namespace)
        assert not posix.is_attribute_name(namespace)
        assert not posix.is_bare_namespace(namespace + b"x")
        assert posix.is_attribute_name(namespace + b"x")
    assert not posix.is_bare_namespace(b"user")
    assert not posix.is_attribute_name(b"user")


def test_attributes_fit_while_they_can_be_listed_and_stand_in_a_record() -> None:
    names = {b"user.%0250d" % n: b"" for n in range(256)}
    assert sum(len(name) + 1 for name in names) == 64 << 10
    assert posix.attributes_fit(names)
    assert not posix.attributes_fit({**names, b"user.more": b""})
    assert posix.attributes_fit({b"user.%d" % n: bytes(65_530) for n in range(4)})
    assert not posix.attributes_fit({b"user.%d" % n: bytes(65_530) for n in range(5)})


NOW_NS = 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), NOW_NS),
        ((NOW_NS - 7, NOW_NS - 7), NOW_NS - 7),  # what the kernel's clock showed when it sent the request
        ((None, NOW_NS - 7), NOW_NS - 7),
        ((NOW_NS - 7, 5), NOW_NS - 7),
        ((5, 5), NOW_NS),
        ((NOW_NS - 2_000_000_000, None), NOW_NS),
        ((NOW_NS + 1, None), NOW_NS),
        ((NOW_NS - 500_000, None), NOW_NS),  # the ctime would go back
    ],
)
def test_now_is_one_time_for_all_three(given: tuple[int | None, int | None], expected: int) -> None:
    assert posix.change_time(NOW_NS, NOW_NS - 400_000, given) == expected
