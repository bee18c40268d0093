"""The way back on a real mount: the kernel had everything cached, and shows what was restored; whoever had it open keeps what they had."""

import mmap
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuse.test_copy import change_half
from tests.mounted import SNAPSHOTS, Repository
from tests.oracle.awkward import acl, make_awkward
from tests.oracle.manifest import Manifest, assert_same, manifest

GIB = 1 << 30
PAGE = 4096


def live(repository: Repository) -> Manifest:
    return manifest(repository.directory, leave_out=[os.fsencode(SNAPSHOTS)])


def looked_at(root: Path, *missing: str) -> Manifest:
    """Everything is in the kernel's memory now, also that these names are missing."""
    for name in missing:
        assert not os.path.lexists(root / name)
    return manifest(root)


def test_a_directory_comes_back_under_the_eyes_of_the_kernel(mounted_repository: Repository) -> None:
    repository = mounted_repository
    docs = repository.directory / "docs"
    (docs / "closed" / "deep").mkdir(parents=True)
    for name in ("changed", "gone", "open", "mapped", "closed/deep/file", "was-file"):
        (docs / name).write_bytes(f"{name} of then\n".encode() * 1000)
    os.link(docs / "gone", docs / "also gone")
    (docs / "link").symlink_to("changed")
    os.mkfifo(docs / "fifo")
    os.setxattr(docs / "changed", "user.note", b"then")
    os.setxattr(docs / "closed", "system.posix_acl_access", acl(7, 5, 0, users={1234: 5}))
    os.chmod(docs / "closed", 0o750)
    past = repository.snapshot()
    then = manifest(past / "docs")

    (docs / "changed").write_bytes(b"now")
    (docs / "gone").unlink()
    (docs / "also gone").unlink()
    (docs / "was-file").unlink()
    (docs / "was-file").mkdir()
    (docs / "was-file" / "inside").touch()
    (docs / "closed" / "deep" / "file").unlink()
    (docs / "closed" / "deep").rmdir()
    os.chmod(docs / "closed", 0o700)
    (docs / "new").write_bytes(b"new")
    (docs / "link").unlink()
    (docs / "link").symlink_to("new")
    opened = os.open(docs / "open", os.O_RDWR)
    os.pwrite(opened, b"dirty", 0)
    with (docs / "mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), PAGE)
    mapped[:6] = b"mapped"
    before = looked_at(docs, "gone", "also gone", "closed/deep", "closed/deep/file")

    (shown,) = repository.json("restore", docs, "--at", past.name, "--overwrite", "--delete")
    assert (shown["failed"], shown["skipped"], shown["held"]) == ([], [], 0)
    assert {(step["action"], step["path"]) for step in shown["planned"]} >= {
        ("add", "docs/gone"),
        ("replace", "docs/changed"),
        ("remove", "docs/new"),
        ("replace", "docs/was-file"),
        ("attributes", "docs/closed"),
    }
    assert_same(then, manifest(docs))
    assert sorted(os.listdir(docs)) == sorted(os.listdir(past / "docs"))

    # Whoever has the old ones open goes on with them, and nobody else sees that.
    assert os.pread(opened, 5, 0) == b"dirty"
    assert os.pwrite(opened, b"later", 0) == 5
    os.fsync(opened)
    assert os.fstat(opened).st_nlink == 0
    os.close(opened)
    mapped[:6] = b"LATER!"
    mapped.flush()
    mapped.close()
    assert_same(then, manifest(docs))

    # What came back is an ordinary file, and the snapshot is what it was.
    with (docs / "changed").open("r+b") as file:
        file.write(b"overwritten")
        file.truncate(5000)
    (docs / "gone").unlink()
    os.chmod(docs / "closed" / "deep", 0o700)
    assert (docs / "changed").read_bytes() == b"overwritten" + (past / "docs" / "changed").read_bytes()[11:5000]
    assert_same(then, manifest(past / "docs"))

    # Undone, it is as it was before; what was dirty then is in it.
    repository.command("restore", "--undo", repository.directory)
    after = manifest(docs)
    assert_same(before, after)
    assert (docs / "open").read_bytes()[:5] == b"dirty"
    assert (docs / "mapped").read_bytes()[:6] == b"mapped"
    versions = repository.json("versions", docs / "gone")[0]["versions"]
    assert {version["size"] for version in versions} == {len("gone of then\n") * 1000}
    assert versions[-1]["first"] == past.name
    (difference,) = repository.json("diff", docs, past.name)
    assert {(change["kind"], change["path"]) for change in difference["changes"]} >= {("-", "docs/gone"), ("+", "docs/new"), ("T", "docs/was-file")}
    (found,) = repository.json("find", repository.directory, "*gone")
    assert [entry["path"] for entry in found["found"]] == ["docs/also gone", "docs/gone"]


@pytest.mark.slow
def test_everything_comes_back_there_and_elsewhere(mounted_repository: Repository, base: Path) -> None:
    repository = mounted_repository
    root = repository.directory
    make_awkward(root / "tree", files=10)
    os.chmod(root, 0o751)
    past = repository.snapshot()
    then = manifest(past)
    change_half(root / "tree", random.Random(1))
    os.chmod(root, 0o700)
    before = live(repository)
    (shown,) = repository.json("restore", root / "tree", "--at", "latest", "--to", base / "out")
    assert (shown["failed"], shown["not_kept"]) == ([], {})
    assert_same(then, as_below(then, manifest(base / "out")))
    repository.command("restore", root, "--at", "latest", "--overwrite", "--delete")
    assert_same(then, live(repository))
    repository.command("restore", "--undo", root)
    assert_same(before, live(repository))
    repository.unmount()


def as_below(whole: Manifest, part: Manifest) -> Manifest:
    """What stands in `whole` beside the directory `tree`, and `part` in place of that."""
    moved = {b"tree" if path == b"." else b"tree/" + path: entry for path, entry in part.items()}
    named = {
        path: replace(entry, path=path, same_file_as=b"tree/" + entry.same_file_as if entry.same_file_as else None) for path, entry in moved.items()
    }
    return {b".": whole[b"."], **named}


def test_a_vast_file_comes_back_without_being_copied(mounted_repository: Repository) -> None:
    repository = mounted_repository
    vast = repository.directory / "vast"
    places = (0, GIB - 7, 2 * GIB - 14)
    with vast.open("xb") as file:
        for at in places:
            file.seek(at)
            file.write(b"content" * 2)
    assert not os.path.lexists(repository.directory / "beside")
    past = repository.snapshot()
    os.truncate(vast, GIB)
    with vast.open("r+b") as file:
        file.write(b"spoilt")
    repository.command("restore", vast, "--at", past.name, "--overwrite")
    repository.command("restore", vast, "--at", past.name, "--to", repository.directory / "beside")
    for found in (vast, repository.directory / "beside"):
        facts = found.stat()
        assert (facts.st_size, facts.st_blocks) == (2 * GIB, (past / "vast").stat().st_blocks)
        with found.open("rb") as file:
            assert [os.pread(file.fileno(), 14, at) for at in places] == [b"content" * 2] * 3
            assert os.pread(file.fileno(), PAGE, GIB // 2) == bytes(PAGE)
    with vast.open("r+b") as file:
        file.write(b"overwritten")
    os.truncate(vast, 5)
    with (past / "vast").open("rb") as file:
        assert os.pread(file.fileno(), 14, 0) == b"content" * 2
    repository.unmount()
