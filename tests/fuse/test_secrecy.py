"""What a repository and its state give away to someone without the password: no name, no content, no link target, no xattr."""

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted import Repository
from tests.oracle.awkward import text

pytestmark = pytest.mark.slow

MARK_BYTES = 24


class Secrets:
    """Things put into a tree that must not be seen outside it, by what they are."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.known: dict[str, bytes] = {}

    def mark(self, what: str) -> bytes:
        """A word of its own that compresses badly and is nowhere by chance."""
        word = self.rng.randbytes(MARK_BYTES // 2).hex().encode()
        self.known[what] = word
        return word

    def fill(self, root: Path) -> None:
        place = os.fsencode(root)
        os.mkdir(place + b"/" + self.mark("a directory's name"))
        small = place + b"/" + self.mark("a file's name")
        with open(small, "wb") as file:
            file.write(self.mark("a small file's content"))
        os.setxattr(small, b"user." + self.mark("an xattr's name"), self.mark("an xattr's value"))
        os.symlink(self.mark("a link's target"), place + b"/" + self.mark("a link's name"))
        with open(place + b"/large", "wb") as file:
            file.write(text(self.rng, 1 << 20) + self.mark("a large file's content") + text(self.rng, 1 << 20))
        with open(place + b"/repeated", "wb") as file:
            file.write((self.mark("a repeating file's content") + b"\n") * 20_000)
        os.rename(place + b"/repeated", place + b"/" + self.mark("a name given later"))
        gone = place + b"/" + self.mark("a name that was removed")
        with open(gone, "wb") as file:
            file.write(self.mark("content that was removed") * 10)
            file.flush()
            os.fsync(file.fileno())
        os.unlink(gone)


def files_below(*places: Path) -> Iterator[Path]:
    for place in places:
        for here, _, names in os.walk(place):
            for name in names:
                path = Path(here, name)
                if path.is_file() and not path.is_symlink():
                    yield path


@pytest.mark.parametrize("init", [[], ["--no-compression"]], ids=["compressed", "uncompressed"])
def test_nothing_known_is_found_in_any_byte(make_repository: Callable[..., Repository], init: list[str]) -> None:
    repository = make_repository(init=init)
    secrets = Secrets(1)
    secrets.fill(repository.directory)
    # the search itself must be able to find: in the mount everything is there, in content, names, targets or xattrs
    visible = b"".join(path.read_bytes() for path in files_below(repository.directory))
    assert secrets.known["a large file's content"] in visible
    assert secrets.known["a small file's content"] in visible

    def nothing_is_found(when: str) -> None:
        searched = 0
        for path in files_below(repository.path, repository.state_home):
            data = path.read_bytes()
            searched += len(data)
            found = [what for what, word in secrets.known.items() if word in data or word in os.fsencode(path)]
            assert not found, f"{when}: {path} shows {found}"
        assert searched > 50_000

    nothing_is_found("mounted")
    repository.snapshot("-m", "a message")
    nothing_is_found("after a snapshot")
    repository.unmount()
    nothing_is_found("unmounted")
    repository.mount()
    for word in secrets.known.values():
        (repository.directory / os.fsdecode(word)).exists()
    repository.kill()
    nothing_is_found("killed")
    repository.mount()


def test_a_snapshots_message_and_tags_are_not_readable(mounted_repository: Repository) -> None:
    secrets = Secrets(2)
    (mounted_repository.directory / "file").touch()
    message, tag = (secrets.mark(what).decode() for what in ("a message", "a tag"))
    mounted_repository.snapshot("-m", message, "--tag", tag)
    mounted_repository.unmount()
    for path in files_below(mounted_repository.path, mounted_repository.state_home):
        data = path.read_bytes()
        assert [what for what, word in secrets.known.items() if word in data] == [], path
    mounted_repository.mount()


def shared_runs(first: bytes, second: bytes, length: int) -> list[bytes]:
    """Runs of that many bytes that are in both. Every one of them holds an aligned block of half its length."""
    half = length // 2
    blocks = {first[start : start + half] for start in range(0, len(first) - half + 1, half)}
    near = (start for start in range(len(second) - half + 1) if second[start : start + half] in blocks)
    around = {begin for start in near for begin in range(max(0, start - half), start + 1)}
    runs = (second[begin : begin + length] for begin in sorted(around))
    return [run for run in runs if len(run) == length and run in first]


def test_the_search_for_shared_runs_finds_them() -> None:
    rng = random.Random(1)
    run = rng.randbytes(32)
    for offset in range(40):
        first = rng.randbytes(1000) + run + rng.randbytes(100)
        second = rng.randbytes(777 + offset) + run + rng.randbytes(9)
        assert run in shared_runs(first, second, 32)
        assert not shared_runs(first, second.replace(run[:31], rng.randbytes(31)), 32)


def test_equal_plaintext_in_two_repositories_has_nothing_in_common(make_repository: Callable[..., Repository]) -> None:
    stored = []
    for _ in range(2):
        repository = make_repository("--every", "off")
        Secrets(3).fill(repository.directory)
        (repository.directory / "noise").write_bytes(random.Random(4).randbytes(600_000))
        repository.unmount()
        # the reserve is zeros and nothing else, config and key slots are filled up with zeros to a fixed size: that tells nothing
        sealed = b"".join(path.read_bytes() for part in ("packs", "journal") for path in sorted(files_below(repository.path / part)))
        small = b"".join(path.read_bytes() for path in [repository.path / "config", *files_below(repository.path / "keys")])
        stored.append(sealed + re.sub(rb"\0{8,}", b"", small))
        repository.mount()
    assert min(map(len, stored)) > 600_000
    found = shared_runs(stored[0], stored[1], 32)
    assert found == [], f"{len(found)} runs of 32 bytes, the first {found[0].hex()}"


def test_the_same_file_twice_in_one_repository_shows_as_nothing(mounted_repository: Repository) -> None:
    """Neither as a repetition nor as an object of its own size: a second copy adds nothing but metadata."""
    content = random.Random(5).randbytes(2 << 20)
    (mounted_repository.directory / "first").write_bytes(content)
    mounted_repository.remount()
    before = sum(path.stat().st_size for path in files_below(mounted_repository.path / "packs"))
    (mounted_repository.directory / "second").write_bytes(content)
    mounted_repository.remount()
    after = sum(path.stat().st_size for path in files_below(mounted_repository.path / "packs"))
    assert after - before < len(content) // 20
