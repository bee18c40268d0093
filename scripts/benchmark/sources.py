"""The data that is copied, the same in every run: made from fixed seeds.

`python -m scripts.benchmark.sources PLACE SCALE FILES KIND...` makes it, in a process of its own: a large parent would lend its size to every program
that is measured.
"""

import os
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

TREE_DIRECTORIES: Final = 400
TREE_FILES_PER_DIRECTORY: Final = 50
TEXT_BLOCK_BYTES: Final = 8 * MIB
CODE_VERSIONS: Final = 10
CODE_EDITED: Final = 0.05
"""Of the files, from one version to the next."""
DUMP_BYTES: Final = 256 * MIB
DUMP_VERSIONS: Final = 3
DUMP_CLUSTERS: Final = 100
DUMP_CLUSTER_ROWS: Final = 50
IMAGE_BYTES: Final = 2048 * MIB
IMAGE_VERSIONS: Final = 2
IMAGE_UUID: Final = "b1f3f3a4-5d1c-4f43-9a62-0c4c4e3f0a01"


@dataclass(frozen=True)
class Sources:
    """Where each kind lies, on the disk's own file system."""

    place: Path

    @property
    def large(self) -> Path:
        """1 GiB in eight files: half text, half noise."""
        return self.place / "large"

    @property
    def tree(self) -> Path:
        """20,000 files in 400 directories, most of them small."""
        return self.place / "tree"

    @property
    def many(self) -> Path:
        """As many empty files as are asked for, a thousand in a directory."""
        return self.place / "many"

    @property
    def code(self) -> Path:
        """The Python sources of this machine's Python: the first of ten versions, see `edit`."""
        return self.place / "code"

    @property
    def dump(self) -> Path:
        """Three versions of a database dump, named by their number: rows are inserted in places all over it."""
        return self.place / "dump"

    @property
    def image(self) -> Path:
        """Two versions of an image of an ext4 file system with the code and the tree in it, named by their number: a twentieth of the code is
        written anew.
        """
        return self.place / "image"


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


def _make_large(sources: Sources, scale: float, files: int) -> None:  # noqa: ARG001 as the others
    rng = random.Random(1)
    prose = _Prose(rng)
    file_bytes = max(1, round(128 * MIB * scale))
    sources.large.mkdir()
    for number in range(8):
        with open(sources.large / f"{'text' if number % 2 else 'noise'}-{number}", "wb") as file:
            while (missing := file_bytes - file.tell()) > 0:
                block = prose.block() if number % 2 else rng.randbytes(TEXT_BLOCK_BYTES)
                file.write(block[:missing])


def _make_tree(sources: Sources, scale: float, files: int) -> None:  # noqa: ARG001 as the others
    rng = random.Random(2)
    block = _Prose(rng).block()
    for number in range(max(2, round(TREE_DIRECTORIES * scale))):
        directory = sources.tree / f"group-{number % 20:02}" / f"directory-{number:03}"
        directory.mkdir(parents=True)
        for n in range(TREE_FILES_PER_DIRECTORY):
            size = min(int(rng.paretovariate(1.1) * 1500), 256 * KIB)
            start = rng.randrange(len(block) - size)
            (directory / f"file-{n:02}.txt").write_bytes(block[start : start + size])


def make_many(place: Path, files: int) -> None:
    """Make so many empty files below a directory that is there, a thousand in a directory."""
    for n in range(files):
        directory = f"{place}/{n // 1000}"
        if n % 1000 == 0:
            os.mkdir(directory)
        os.close(os.open(f"{directory}/{n}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _make_many(sources: Sources, scale: float, files: int) -> None:  # noqa: ARG001 as the others
    sources.many.mkdir()
    make_many(sources.many, files)


def _make_code(sources: Sources, scale: float, files: int) -> None:  # noqa: ARG001 as the others
    library = Path(sysconfig.get_path("stdlib"))
    found = sorted(path.relative_to(library) for path in library.rglob("*.py") if path.is_file() and not path.is_symlink())
    for path in found[:: max(1, round(1 / scale))]:
        (sources.code / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / path, sources.code / path)


def edit(tree: Path, version: int) -> list[Path]:
    """Make the next version of a directory of texts out of the one before: lines are added, removed and changed in one file of twenty, one file goes,
    one comes, one gets another name. The paths that were edited, below `tree`. What happens depends on what is there and on the number alone.
    """
    rng = random.Random(1000 + version)
    names = sorted(Path(here, name).relative_to(tree) for here, _, found in os.walk(tree) for name in found)
    chosen = rng.sample(names, max(4, round(len(names) * CODE_EDITED)))
    gone, renamed, copied, *edited = chosen
    (tree / gone).unlink()
    (tree / renamed).rename(tree / renamed.with_name(f"v{version}_{renamed.name}"))
    text = (tree / copied).read_bytes()
    (tree / copied).with_name(f"new{version}_{copied.name}").write_bytes(b"# a new file\n" + text[: len(text) // 2])
    for path in edited:
        lines = (tree / path).read_bytes().splitlines(keepends=True)
        for _ in range(rng.randint(1, 5)):
            at = rng.randint(0, len(lines))
            lines[at : at + rng.choice((0, 0, 1, 2))] = [b"    changed_%d = %d\n" % (version, rng.getrandbits(60))] * rng.randint(0, 3)
        aside = tree / path.with_name(path.name + ".new")
        aside.write_bytes(b"".join(lines))
        aside.replace(tree / path)
    return edited


def _dump_row(rng: random.Random, number: int) -> bytes:
    name, amount, token = rng.choice(_NAMES), rng.randrange(100_000), rng.getrandbits(64)
    price, day = f"{amount // 100}.{amount % 100:02}", f"2026-{1 + token % 12:02}-{1 + token % 28:02}"
    time = f"{token % 24:02}:{token % 60:02}:{token % 59:02}"
    return f"INSERT INTO `orders` VALUES ({number},'{name}','{name.lower()}@example.org',{price},'{day} {time}','{token:016x}');\n".encode()


_NAMES: Final = tuple(
    f"{first}{last}" for first in ("Ada", "Alan", "Edsger", "Grace", "Kurt") for last in ("Byron", "Dijk", "Hopper", "Moore", "Wirth")
)


def _make_dump(sources: Sources, scale: float, files: int) -> None:  # noqa: ARG001 as the others
    rng = random.Random(3)
    sources.dump.mkdir()
    rows: list[bytes] = []
    made_bytes = 0
    while made_bytes < DUMP_BYTES * scale:
        rows.append(_dump_row(rng, 10 * len(rows)))
        made_bytes += len(rows[-1])
    for version in range(DUMP_VERSIONS):
        (sources.dump / str(version)).write_bytes(b"".join(rows))
        for _ in range(DUMP_CLUSTERS):
            at = rng.randint(0, len(rows))
            rows[at:at] = [_dump_row(rng, 10 * at + n) for n in range(DUMP_CLUSTER_ROWS)]


def _make_image(sources: Sources, scale: float, files: int) -> None:
    content = sources.place / "image-content"
    content.mkdir()
    inside = Sources(content)
    _make_code(inside, scale, files)
    _make_tree(inside, scale, files)
    sources.image.mkdir()
    first, second = sources.image / "0", sources.image / "1"
    fixed = f"hash_seed={IMAGE_UUID},root_owner=0:0"
    with open(first, "wb") as file:
        file.truncate(max(64 * MIB, round(IMAGE_BYTES * scale)))
    _run("mkfs.ext4", "-q", "-F", "-U", IMAGE_UUID, "-E", fixed, "-d", str(content), str(first))
    _run("cp", "--sparse=always", str(first), str(second))
    commands = [line for path in edit(inside.code, 0) for line in (f'rm "/code/{path}"', f'write "{inside.code / path}" "/code/{path}"')]
    script = content / "commands"
    script.write_text("\n".join(commands) + "\n", encoding="utf-8")
    _run("debugfs", "-w", "-f", str(script), str(second))
    shutil.rmtree(content)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


_MAKERS: Final[dict[str, Callable[[Sources, float, int], None]]] = {
    "large": _make_large,
    "tree": _make_tree,
    "many": _make_many,
    "code": _make_code,
    "dump": _make_dump,
    "image": _make_image,
}


def main(place: str, scale: str, files: str, *kinds: str) -> None:
    """Make what is named."""
    for kind in kinds:
        _MAKERS[kind](Sources(Path(place)), float(scale), int(files))


if __name__ == "__main__":
    main(*sys.argv[1:])
