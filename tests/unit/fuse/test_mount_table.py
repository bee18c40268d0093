"""The mount table is read as the kernel writes it (proc_pid_mountinfo(5))."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backupfs.fuse import mount_table
from backupfs.fuse.mount_table import MountEntry

PATHS = st.lists(st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & {0, ord("/")}), max_size=3).map(
    lambda names: b"/" + b"/".join(names)
)
ENTRIES = st.builds(
    MountEntry,
    mount_id=st.integers(1, 10**6),
    device=st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
    point=PATHS,
    options=st.frozensets(st.sampled_from([b"rw", b"ro", b"nosuid", b"nodev"]), min_size=1),
    type=st.sampled_from([b"ext4", mount_table.TYPE]),
)
TAGS = st.lists(st.sampled_from([b"shared:1", b"master:2", b"propagate_from:3", b"unbindable"]), max_size=3)


def escaped(path: bytes) -> bytes:
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes([byte]) for byte in path)


def line(entry: MountEntry, tags: list[bytes]) -> bytes:
    before = [b"%d" % entry.mount_id, b"1", b"%d:%d" % entry.device, b"/", escaped(entry.point), b",".join(entry.options)]
    return b" ".join([*before, *tags, b"-", entry.type, b"a source - with\\040signs", b"rw"]) + b"\n"


@given(st.lists(st.tuples(ENTRIES, TAGS)))
def test_what_is_written_is_read(written: list[tuple[MountEntry, list[bytes]]]) -> None:
    text = b"".join(line(entry, tags) for entry, tags in written)
    assert mount_table.parse(text) == [entry for entry, _ in written]


def mounted(point: Path, number: int = 1) -> MountEntry:
    return MountEntry(number, (0, number), os.fsencode(point), frozenset(), mount_table.TYPE)


def test_the_last_mount_on_a_directory_is_found(tmp_path: Path) -> None:
    table = [mounted(tmp_path, 1), mounted(tmp_path / "x", 2), mounted(tmp_path, 3)]
    assert mount_table.find(tmp_path, table) == table[2]
    assert mount_table.find(tmp_path / "missing", table) is None


def test_a_directory_is_known_by_any_path(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a/../chain")
    (tmp_path / "chain").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "up").symlink_to("a/b/..")
    (tmp_path / "loop").symlink_to("loop")
    b, a = mounted(tmp_path / "a" / "b"), mounted(tmp_path / "a", 2)
    for path in ("a/b", "a/b/", "a/./b", "a/../a/b", "link", "chain", "up/b"):
        assert mount_table.find(tmp_path / path, [b]) == b
        assert mount_table.find(Path(os.path.relpath(tmp_path)) / path, [b]) == b
    assert mount_table.find(tmp_path / "up", [a]) == a
    assert mount_table.find(tmp_path / "loop", [b]) is None
    assert mount_table.resolved(Path("/"), []) == b"/"


def test_is_mounted_means_a_backupfs(tmp_path: Path) -> None:
    source = tmp_path / "mountinfo"
    for kind, expected in ((mount_table.TYPE, True), (b"ext4", False)):
        source.write_bytes(line(MountEntry(1, (8, 1), os.fsencode(tmp_path), frozenset({b"rw"}), kind), []))
        assert mount_table.is_mounted(tmp_path, source) == expected
    assert mount_table.is_mounted(Path("/proc"), mount_table.MOUNTINFO) is False
