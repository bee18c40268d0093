"""One damaged byte, anywhere: in a pack it costs the files that have a blob there and names them; elsewhere it costs nothing."""

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mounted import Repository
from tests.oracle.awkward import noise, text
from tests.oracle.manifest import manifest, tree_hash

pytestmark = pytest.mark.slow

FINDINGS = 3


@dataclass
class Content:
    """What was written, by path below the root."""

    files: dict[str, bytes]

    def read(self, root: Path) -> tuple[set[str], set[str]]:
        """(paths that read right, paths that read EIO). Anything else is wrong."""
        right, refused = set(), set()
        for path, expected in self.files.items():
            try:
                found = (root / path).read_bytes()
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                refused.add(path)
                continue
            if found != expected:
                raise ValueError(f"{path} reads wrong bytes")
            right.add(path)
        return right, refused


def filled(repository: Repository, seed: int) -> Content:
    """Small and large files, some of them several times, in two snapshots and the live tree."""
    rng = random.Random(seed)
    root = repository.directory
    files = {f"small-{n}": noise(rng, rng.randrange(1, 3000)) for n in range(30)}
    files |= {f"large-{n}": (noise if n % 2 else text)(rng, 700_000 + n) for n in range(6)}
    files["twin"] = files["large-1"]
    for name, content in files.items():
        (root / name).write_bytes(content)
    repository.snapshot()
    files["small-0"] = b"another content, after the snapshot"
    (root / "small-0").write_bytes(files["small-0"])
    repository.remount()
    return Content(files)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 0x41]), offset)
        os.fsync(file.fileno())


def stored(repository: Repository, part: str) -> list[Path]:
    """Files of one part of the repository, those still in `open/` among them for packs and journal."""
    return sorted(path for path in (repository.path / part).rglob("*") if path.is_file())


def checked(repository: Repository, expect: int | None) -> list[dict[str, Any]]:
    where = repository.directory if repository.is_mounted() else repository.path
    (told,) = repository.json("check", where, "--read-data", expect=expect)
    findings: list[dict[str, Any]] = told["findings"]
    assert bool(findings) == (expect == FINDINGS)
    return findings


def live_paths(findings: list[dict[str, Any]], content: Content) -> set[str]:
    """Of the paths that findings name, those in the live tree."""
    named = {path.lstrip("/") for finding in findings for path in finding["paths"]}
    return named & content.files.keys()


def fresh_mount(repository: Repository) -> None:
    """Nothing of the content is in the memory of the kernel or of the process."""
    if repository.is_mounted():
        repository.unmount()
    repository.mount()


@pytest.mark.parametrize("seed", range(2))
def test_a_byte_of_a_pack(mounted_repository: Repository, seed: int) -> None:
    repository = mounted_repository
    repository.expect_trouble(".")
    content = filled(repository, seed)
    repository.unmount()
    rng = random.Random(seed)
    hit = []
    for turn in range(3):
        packs = stored(repository, "packs")
        # The middle of the largest is a byte of a large file; any other may be one of a trailer, or of nothing that lives: which blobs share a pack
        # is another in each run.
        pack = rng.choice(packs) if turn else max(packs, key=lambda path: path.stat().st_size)
        offset = rng.randrange(pack.stat().st_size) if turn else pack.stat().st_size // 2
        flip(pack, offset)
        fresh_mount(repository)
        right, refused = content.read(repository.directory)
        assert len(refused) < len(content.files), "most of it is unharmed"
        hit.append(bool(refused))
        findings = checked(repository, FINDINGS)
        assert live_paths(findings, content) == refused, f"byte {offset} of {pack.name}"
        assert right.isdisjoint(live_paths(findings, content))
        repository.unmount()
        checked(repository, FINDINGS)
        flip(pack, offset)
    fresh_mount(repository)
    assert content.read(repository.directory)[1] == set()
    checked(repository, 0)
    assert hit[0], "a byte of a large file costs that file"


def test_a_pack_damaged_while_mounted(mounted_repository: Repository) -> None:
    repository = mounted_repository
    repository.expect_trouble(".")
    content = filled(repository, 10)
    pack = max(stored(repository, "packs"), key=lambda path: path.stat().st_size)
    offset = pack.stat().st_size // 2
    flip(pack, offset)
    content.read(repository.directory)
    named = live_paths(checked(repository, FINDINGS), content)
    fresh_mount(repository)
    assert content.read(repository.directory)[1] == named
    (repository.directory / "new").write_bytes(b"life goes on")
    repository.remount()
    assert (repository.directory / "new").read_bytes() == b"life goes on"
    repository.is_damaged = True


def test_a_pack_that_is_gone_costs_its_files_only(mounted_repository: Repository) -> None:
    repository = mounted_repository
    repository.expect_trouble(".")
    content = filled(repository, 11)
    repository.unmount()
    pack = random.Random(1).choice(stored(repository, "packs"))
    pack.rename(repository.base / "taken away")
    fresh_mount(repository)
    _, refused = content.read(repository.directory)
    assert live_paths(checked(repository, FINDINGS), content) == refused
    repository.unmount()
    (repository.base / "taken away").rename(pack)
    fresh_mount(repository)
    assert content.read(repository.directory)[1] == set()


@pytest.mark.parametrize("seed", range(3))
def test_a_byte_of_the_journal(mounted_repository: Repository, seed: int) -> None:
    """Named by check; harmless while the index stands; without the index refused, never shortened in silence."""
    repository = mounted_repository
    repository.expect_trouble(".")
    content = filled(repository, 20 + seed)
    before = tree_hash(manifest(repository.directory))
    repository.unmount()
    rng = random.Random(seed)
    segment = rng.choice(stored(repository, "journal"))
    offset = rng.randrange(segment.stat().st_size)
    flip(segment, offset)
    fresh_mount(repository)
    assert tree_hash(manifest(repository.directory)) == before
    assert content.read(repository.directory)[1] == set()
    findings = checked(repository, FINDINGS)
    assert any(segment.name in finding["object"] for finding in findings)
    repository.unmount()
    checked(repository, FINDINGS)
    aside = repository.base / "index aside"
    repository.index.rename(aside)
    done = repository.command("mount", repository.path, repository.directory, expect=None)
    if done.returncode == 0:
        assert tree_hash(manifest(repository.directory)) == before, "shortened in silence"
        repository.unmount()
    else:
        assert done.stderr
        assert "Traceback" not in done.stderr
    flip(segment, offset)
    fresh_mount(repository)
    assert tree_hash(manifest(repository.directory)) == before


@pytest.mark.parametrize("part", ["config", "keys"])
def test_every_byte_of_what_stands_twice(make_repository: Callable[..., Repository], part: str) -> None:
    """Of `config` and of a key slot: whichever byte is damaged, the other copy serves."""
    repository = make_repository()
    repository.expect_trouble(".")
    (repository.directory / "file").write_bytes(b"content")
    repository.unmount()
    files = [repository.path / "config"] if part == "config" else stored(repository, "keys")
    for path in files:
        size = path.stat().st_size
        # some from each stretch of the file, its first and last byte among them
        for offset in (0, size // 3, size * 2 // 3, size - 1):
            flip(path, offset)
            repository.mount()
            assert (repository.directory / "file").read_bytes() == b"content", f"byte {offset} of {path.name}"
            repository.unmount()
            checked(repository, FINDINGS)
            flip(path, offset)
    checked(repository, 0)
    repository.mount()
