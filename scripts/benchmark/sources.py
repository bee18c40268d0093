"""The data that is copied, the same in every run: made from fixed seeds."""

import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

TREE_DIRECTORIES: Final = 400
TREE_FILES_PER_DIRECTORY: Final = 50
TEXT_BLOCK_BYTES: Final = 8 * MIB


@dataclass(frozen=True)
class Sources:
    """Two trees on the disk's own file system."""

    large: Path
    """1 GiB in eight files: half text, half noise."""
    tree: Path
    """20,000 files in 400 directories, most of them small."""


def make_sources(place: Path, scale: float, kinds: set[str]) -> Sources:
    """Make what `kinds` ("large", "tree") name, at `scale` times the full size."""
    sources = Sources(place / "large", place / "tree")
    if "large" in kinds:
        _make_large(sources.large, max(1, round(128 * MIB * scale)))
    if "tree" in kinds:
        _make_tree(sources.tree, max(2, round(TREE_DIRECTORIES * scale)))
    return sources


class _Prose:
    """Lines of words whose frequencies fall as in a language: zstd -1 makes about a third of them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        weights = [26 - n for n in range(26)]
        words = ["".join(rng.choices(letters, weights, k=rng.randint(2, 10))).encode() for _ in range(20_000)]
        chosen = rng.choices(words, [1 / (n + 1) for n in range(len(words))], k=TEXT_BLOCK_BYTES // 6)
        self._lines = [b" ".join(chosen[n : n + 12]) for n in range(0, len(chosen), 12)]

    def block(self) -> bytes:
        """Some 8 MiB, the lines in an order of their own each time: no 4 KiB of it come twice."""
        self._rng.shuffle(self._lines)
        return b"\n".join(self._lines)


def _make_large(place: Path, file_bytes: int) -> None:
    rng = random.Random(1)
    prose = _Prose(rng)
    place.mkdir()
    for number in range(8):
        with open(place / f"{'text' if number % 2 else 'noise'}-{number}", "wb") as file:
            while (missing := file_bytes - file.tell()) > 0:
                block = prose.block() if number % 2 else rng.randbytes(TEXT_BLOCK_BYTES)
                file.write(block[:missing])


def _make_tree(place: Path, directories: int) -> None:
    rng = random.Random(2)
    block = _Prose(rng).block()
    place.mkdir()
    for number in range(directories):
        directory = place / f"group-{number % 20:02}" / f"directory-{number:03}"
        directory.mkdir(parents=True)
        for n in range(TREE_FILES_PER_DIRECTORY):
            size = min(int(rng.paretovariate(1.1) * 1500), 256 * KIB)
            start = rng.randrange(len(block) - size)
            (directory / f"file-{n:02}.txt").write_bytes(block[start : start + size])


def tree_bytes(place: Path) -> int:
    """Bytes of all files below `place`."""
    return sum(os.lstat(os.path.join(here, name)).st_size for here, _, names in os.walk(place) for name in names)
