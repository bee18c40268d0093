"""Makes the golden repositories: `python -m tests.compat.make_golden`, as root. One that is there is never made again.

Directories below `tests/compat/golden/`, each with `repository/` as it lay on the disk and a manifest for the present and every snapshot that is
kept. The manifests are what the mounted tree showed; every later version has to show the same.

* `clean` was unmounted.
* `crashed` was copied while it was mounted, with packs and a journal segment still open.
* `checkpointed` has two checkpoints, the newer in parts, and no journal before the older one; a pack that was rewritten; snapshots that were purged,
  and one that is only marked deleted.
"""

import os
import random
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from backupfs.limits import KIB
from tests.mounted import Repository, until, workspace
from tests.oracle.awkward import acl
from tests.oracle.manifest import manifest

GOLDEN: Final = Path(__file__).parent / "golden"
PASSWORD: Final = "golden"
SNAPSHOTS: Final = b".snapshots"
SMALL: Final = {
    "CHECKPOINT_MIN_BYTES": 16 * KIB,
    "CHECKPOINT_LOOK_S": 0.05,
    "CHECKPOINT_PART_BYTES": 6 * KIB,
    "JOURNAL_SEGMENT_TARGET_BYTES": 16 * KIB,
}
"""With these a few changes make what otherwise takes megabytes of them."""


def save(place: Path, name: str, tree: Path) -> None:
    """Write a manifest as lines of JSON."""
    leave_out = [SNAPSHOTS] if name == "present" else []
    entries = manifest(tree, leave_out=leave_out)
    (place / f"{name}.jsonl").write_text("".join(entry.as_json() + "\n" for entry in entries.values()))


def first(root: Path, rng: random.Random) -> None:
    """All types, links within the record and beyond, regions, holes, xattrs, lists."""
    (root / "plain").write_bytes(b"golden\n")
    (root / "empty").touch()
    os.symlink("nowhere/at all", root / "dangling")
    os.mkfifo(root / "fifo")
    os.mknod(root / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    (root / "deep" / "er").mkdir(parents=True)
    for number in range(12):
        os.link(root / "plain", root / "deep" / f"link {number}")
    Path(os.fsdecode(os.fsencode(root) + b"/new\nline \xff")).write_bytes(b"any bytes are a name")
    with (root / "sparse").open("wb") as file:
        for block in (0, 5, 9, 4097):
            file.seek(block * 4096 * 3)
            file.write(rng.randbytes(100))
        file.truncate(1 << 30)
    (root / "fragmented").write_bytes(b"a line of text\n" * 6000)
    with (root / "fragmented").open("r+b") as file:
        for at in range(1000, 80_000, 9000):
            file.seek(at)
            file.write(rng.randbytes(40))
            file.flush()
            os.fsync(file.fileno())
    os.setxattr(root / "plain", "user.colour", b"gold")
    os.setxattr(root / "deep", "system.posix_acl_default", acl(7, 5, 0, users={1234: 6}))
    (root / "deep" / "inherits").write_bytes(b"x")
    (root / "set-id").touch()
    (root / "set-id").chmod(0o6755)
    os.chown(root / "empty", 1234, 4321)
    os.utime(root / "empty", ns=(-5, 123_456_789_012_345_678))


def second(root: Path, rng: random.Random) -> None:
    """Every kind of change to what a snapshot keeps."""
    (root / "plain").write_bytes(b"changed\n")
    (root / "dangling").unlink()
    (root / "deep" / "er").rmdir()
    (root / "fragmented").rename(root / "deep" / "moved")
    os.truncate(root / "sparse", 50_000)
    os.removexattr(root / "plain", "user.colour")
    (root / "more").write_bytes(rng.randbytes(9000))


def short_life(made: Repository, rng: random.Random) -> None:
    """Three snapshots, one of them purged."""
    made.mount("--every", "off")
    first(made.directory, rng)
    made.snapshot("--message", "first")
    second(made.directory, rng)
    doomed = made.snapshot("--tag", "doomed")
    (made.directory / "deep" / "inherits").unlink()
    made.snapshot("--message", "last", "--tag", "a", "--tag", "b")
    made.command("snapshot", "delete", made.directory, doomed.name)
    made.command("gc", made.directory, "--now")
    (made.directory / "after").write_bytes(rng.randbytes(3000))


def long_life(made: Repository, rng: random.Random) -> None:
    """Checkpoints come and go; behind the newest one nothing of this is in the way of what else can happen."""
    root = made.directory
    made.limit(**SMALL)
    made.mount("--every", "off")
    first(root, rng)
    made.snapshot("--message", "first")
    second(root, rng)
    (root / "big").write_bytes(rng.randbytes(20_000))
    doomed = made.snapshot("--tag", "doomed")
    made.remount("--every", "off")
    (root / "big").unlink()
    doomed_too = made.snapshot()
    made.command("snapshot", "delete", root, doomed.name, doomed_too.name)
    made.command("gc", root, "--now")
    for number in range(10):
        change(root / f"often {number % 4}", rng.randbytes(30 + number))
    made.snapshot("--tag", "a", "--tag", "b")
    for number in range(4):
        (root / f"often {number}").rename(root / "deep" / f"often {number}")
    until(lambda: len(checkpoints(made)) == 2 and min(checkpoints(made)) > 1, "the first checkpoint has gone")
    made.unmount()
    made.limit()
    made.mount("--every", "off")
    (root / "deep" / "often 0").unlink()
    change(root / "deep" / "often 1", rng.randbytes(200))
    marked = made.snapshot("--message", "marked deleted")
    made.snapshot("--message", "last")
    made.command("snapshot", "delete", root, marked.name)
    change(root / "after", rng.randbytes(500))


def change(path: Path, content: bytes) -> None:
    """Each a batch of its own."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def checkpoints(made: Repository) -> list[int]:
    """Numbers of those that have a manifest."""
    return sorted(int(path.name, 16) for path in (made.path / "checkpoints").glob("*") if len(path.name) == 16)


LIVES: Final[dict[str, Callable[[Repository, random.Random], None]]] = {"clean": short_life, "crashed": short_life, "checkpointed": long_life}


def make(base: Path, kind: str, place: Path) -> None:
    """One golden repository, in a directory that is not there yet."""
    place.mkdir(parents=True)
    rng = random.Random(kind)
    made = Repository(base, password=PASSWORD)
    made.init("--label", "golden")
    try:
        LIVES[kind](made, rng)
        for path in sorted(made.directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and SNAPSHOTS.decode() not in path.parts:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        save(place, "present", made.directory)
        for snapshot in made.snapshot_names():
            save(place, snapshot, made.directory / SNAPSHOTS.decode() / snapshot)
        if kind != "crashed":
            made.unmount()
        shutil.copytree(made.path, place / "repository", ignore=shutil.ignore_patterns("reserve", "lock"))
        if kind == "crashed":
            made.unmount()
    finally:
        made.close()


def main() -> int:
    with workspace() as base:
        for kind in LIVES:
            if not (GOLDEN / kind).exists():
                make(base / kind, kind, GOLDEN / kind)
    return 0


if __name__ == "__main__":
    sys.exit(main())
