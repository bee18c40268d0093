"""A copy out of a snapshot is the same tree, as far as the place can hold it; nothing that exists is touched, and what failed is named."""

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from backupfs.errors import UsageError
from backupfs.service import copying
from backupfs.service.copying import HOLE_BYTES, Copying, CopyPlan
from tests.oracle.awkward import acl, make_awkward
from tests.oracle.manifest import assert_same, manifest

MIB = 1 << 20


def planned(top: Path, target: Path, path: bytes = b"") -> CopyPlan:
    return copying.plan(os.fsencode(top), path, os.fsencode(target))


def copied(plan: CopyPlan) -> tuple[Copying, list[tuple[bytes, str]]]:
    """The copy, and what it said of each entry. No descriptor stays open."""
    before = len(os.listdir("/proc/self/fd"))
    moved: list[int] = []
    work = Copying(plan, moved.append)
    done = list(work.run())
    assert len(os.listdir("/proc/self/fd")) == before
    return work, done


def failing(monkeypatch: pytest.MonkeyPatch, name: str, code: int, when: Callable[..., object] = lambda *_, **__: True) -> None:
    """A function of the system that fails with this error for some arguments."""
    real = getattr(os, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        if when(*args, **kwargs):
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, function)


def belonging_to_somebody(monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """Everything of this name seems to be user 4711's."""
    real = os.stat

    def foreign(*args: Any, **kwargs: Any) -> Any:
        facts = real(*args, **kwargs)
        if args[0] != name:
            return facts
        return os.stat_result([*facts[:4], 4711, *facts[5:]], {field: getattr(facts, field) for field in ("st_atime_ns", "st_mtime_ns", "st_blocks")})

    monkeypatch.setattr(os, "stat", foreign)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made = tmp_path / "source"
    made.mkdir()
    return made


def test_an_awkward_tree_is_the_same_at_the_other_place(source: Path, tmp_path: Path, seed: int) -> None:
    make_awkward(source, seed=seed, files=40)
    before = manifest(source)
    plan = planned(source, tmp_path / "copy")
    assert {entry.path for entry in plan.entries} == {b"" if path == b"." else path for path in before}
    assert plan.unreadable == []
    work, done = copied(plan)
    assert [entry for entry in done if entry[1]] == []
    assert sorted(path for path, _ in done) == sorted(entry.path for entry in plan.entries)
    assert not work.not_kept
    assert_same(before, manifest(tmp_path / "copy"))
    assert_same(before, manifest(source))


def test_holes_stay_holes(source: Path, tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    size = 5 * MIB + 123
    with (source / "file").open("xb") as file:
        for at in (0, MIB - 10, 3 * MIB + HOLE_BYTES, size - 5):
            file.seek(at)
            file.write(draw.randbytes(5))
        file.truncate(size + MIB)
    plan = planned(source, tmp_path / "copy", b"file")
    assert plan.total_bytes == size + MIB
    copied(plan)
    copy = tmp_path / "copy"
    assert copy.read_bytes() == (source / "file").read_bytes()
    assert copy.stat().st_blocks * 512 <= 16 * HOLE_BYTES


def test_one_entry_of_any_kind(source: Path, tmp_path: Path) -> None:
    below = source / "a" / "b"
    below.mkdir(parents=True)
    (below / "file").write_bytes(b"content")
    os.link(below / "file", below / "second")
    (below / "link").symlink_to("nowhere")
    os.mkfifo(below / "fifo", 0o640)
    os.utime(below / "link", ns=(5, 6), follow_symlinks=False)
    for name in ("file", "link", "fifo"):
        _, done = copied(planned(source, tmp_path / name, b"a/b/" + name.encode()))
        assert done == [(b"", "")]
        was, is_ = os.lstat(below / name), os.lstat(tmp_path / name)
        assert (was.st_mode, was.st_size, was.st_mtime_ns) == (is_.st_mode, is_.st_size, is_.st_mtime_ns)
    assert os.readlink(tmp_path / "link") == "nowhere"


def test_what_is_refused_before_anything_is_written(source: Path, tmp_path: Path) -> None:
    (source / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = manifest(tmp_path)
    for target, path, message in (
        ("source", b"file", "exists; choose"),
        ("dangling", b"file", "exists; choose"),
        ("missing/copy", b"file", "there is no directory"),
        ("copy", b"other", "not in that snapshot"),
        ("copy", b"other/file", "not in that snapshot"),
        ("copy", b"file/other", "not in that snapshot"),
    ):
        with pytest.raises(UsageError, match=message):
            planned(source, tmp_path / target, path)
    assert_same(before, manifest(tmp_path))


def test_what_comes_to_the_place_meanwhile_is_left_alone(source: Path, tmp_path: Path) -> None:
    (source / "d").mkdir()
    (source / "d" / "file").write_bytes(b"then")
    plan = planned(source, tmp_path / "copy")
    (tmp_path / "copy").write_bytes(b"somebody else's")
    _, done = copied(plan)
    assert done == [(b"", "File exists")]
    assert (tmp_path / "copy").read_bytes() == b"somebody else's"


def test_what_cannot_be_read_is_named_and_the_rest_copied(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("closed", "failing"):
        (source / name).mkdir()
        (source / name / "file").touch()
    (source / "secret").touch()
    (source / "open").touch()
    failing(monkeypatch, "open", errno.EACCES, lambda name, *_, **__: name in (b"closed", b"secret"))
    failing(
        monkeypatch,
        "listdir",
        errno.EIO,
        lambda directory: isinstance(directory, int) and os.readlink(f"/proc/self/fd/{directory}").endswith("failing"),
    )
    plan = planned(source, tmp_path / "copy")
    assert plan.unreadable == [(b"closed", "Permission denied"), (b"failing", os.strerror(errno.EIO))]
    assert [entry.path for entry in plan.entries] == [b"", b"open", b"secret"]
    _, done = copied(plan)
    assert done == [
        (b"closed", "Permission denied"),
        (b"failing", os.strerror(errno.EIO)),
        (b"open", ""),
        (b"secret", "Permission denied"),
        (b"", ""),
    ]


def test_a_place_without_hard_links(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "a").write_bytes(b"same")
    os.link(source / "a", source / "b")
    plan = planned(source, tmp_path / "copy")
    assert plan.total_bytes == 4
    failing(monkeypatch, "link", errno.EPERM)
    work, done = copied(plan)
    assert work.not_kept == {"hard links": 1}
    assert [entry for entry in done if entry[1]] == []
    assert (tmp_path / "copy" / "b").read_bytes() == b"same"
    failing(monkeypatch, "link", errno.EDQUOT)
    _, done = copied(planned(source, tmp_path / "copy2"))
    assert done == [(b"a", ""), (b"b", os.strerror(errno.EDQUOT)), (b"", "")]


def test_owners_that_cannot_be_had_take_their_rights_along(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "file").touch()
    os.chmod(source / "file", 0o6755)
    belonging_to_somebody(monkeypatch, b"file")
    failing(monkeypatch, "chown", errno.EPERM)
    work, done = copied(planned(source, tmp_path / "copy"))
    monkeypatch.undo()
    assert done == [(b"file", ""), (b"", "")]
    assert work.not_kept == {"owners": 1}
    assert stat.S_IMODE((tmp_path / "copy" / "file").stat().st_mode) == 0o755


def test_owners_are_kept_where_that_is_allowed(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "file").touch()
    asked: list[tuple[int, int]] = []

    def chown(_: object, uid: int, gid: int, **__: object) -> None:
        asked.append((uid, gid))

    belonging_to_somebody(monkeypatch, b"file")
    monkeypatch.setattr(os, "chown", chown)
    work, _ = copied(planned(source, tmp_path / "copy"))
    assert asked == [(4711, os.getgid())]
    assert not work.not_kept
    failing(monkeypatch, "chown", errno.EIO)
    _, done = copied(planned(source, tmp_path / "copy2"))
    assert done == [(b"file", os.strerror(errno.EIO)), (b"", "")]
    assert not (tmp_path / "copy2" / "file").exists()


@pytest.mark.parametrize(("code", "trouble"), [(errno.ENOTSUP, ""), (errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_attributes_that_the_place_does_not_hold(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, trouble: str) -> None:
    (source / "file").touch()
    os.setxattr(source / "file", "user.note", b"x")
    os.setxattr(source, "user.note", b"x")
    failing(monkeypatch, "setxattr", code)
    work, done = copied(planned(source, tmp_path / "copy"))
    assert done == [(b"file", trouble), (b"", trouble)]
    assert (tmp_path / "copy" / "file").exists() == (not trouble)
    assert work.not_kept == ({} if trouble else {"user.note attributes": 2})


def test_the_defaults_of_the_place_do_not_show(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    os.setxattr(place, "system.posix_acl_default", acl(7, 7, 0, users={1234: 7}))
    (source / "d").mkdir()
    (source / "d" / "file").touch()
    copied(planned(source, place / "copy"))
    assert_same(manifest(source), manifest(place / "copy"))
    failing(monkeypatch, "removexattr", errno.EIO)
    _, done = copied(planned(source, place / "copy2", b"d/file"))
    assert done == [(b"", os.strerror(errno.EIO))]


def test_a_file_that_does_not_come_to_its_end_is_not_left_behind(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "file").write_bytes(b"x" * 10)
    plan = planned(source, tmp_path / "copy", b"file")
    monkeypatch.setattr(os, "readv", lambda *_: 0)
    _, done = copied(plan)
    assert done == [(b"", "0 bytes were copied of 10")]
    assert not (tmp_path / "copy").exists()


def test_a_write_that_takes_less_is_continued(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    content = random.Random(seed).randbytes(3 * MIB)
    (source / "file").write_bytes(content)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda target, data, at: real(target, data[: 300_000 + at % 7], at))
    copied(planned(source, tmp_path / "copy", b"file"))
    assert (tmp_path / "copy").read_bytes() == content


def test_an_interruption_leaves_whole_files_only(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (source / name).write_bytes(name.encode() * (2 * MIB))
    moved: list[int] = []

    def interrupt(count: int) -> None:
        moved.append(count)
        if len(moved) == 3:
            raise KeyboardInterrupt

    before = len(os.listdir("/proc/self/fd"))

    def until_interrupted() -> Iterator[bytes]:
        with closing(Copying(planned(source, tmp_path / "copy"), interrupt).run()) as steps:
            for path, _ in steps:
                yield path

    done = until_interrupted()
    assert next(done) == b"a"
    with pytest.raises(KeyboardInterrupt):
        next(done)
    assert os.listdir(tmp_path / "copy") == ["a"]
    assert len(os.listdir("/proc/self/fd")) == before
