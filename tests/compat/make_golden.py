"""Makes the golden repositories: `python -m tests.compat.make_golden`, as root, once for each format version and never again.

Two directories below `tests/compat/golden/`, each with `repository/` as it lay on the disk and a manifest for the present and every snapshot:
`clean` was unmounted, `crashed` was copied while it was mounted, with packs and a journal segment still open. The manifests are what the
mounted tree showed; every later version has to show the same.
"""

import os
import random
import shutil
import stat
import sys
import time
from pathlib import Path
from typing import Final

from tests.mounted import Repository, workspace
from tests.oracle.awkward import acl
from tests.oracle.manifest import manifest

GOLDEN: Final = Path(__file__).parent / "golden"
PASSWORD: Final = "golden"
SNAPSHOTS: Final = b".snapshots"


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


def make(base: Path, name: str) -> None:
    """One golden repository."""
    place = GOLDEN / name
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    rng = random.Random(name)
    made = Repository(base, password=PASSWORD)
    made.init("--label", "golden")
    made.mount("--every", "off")
    try:
        first(made.directory, rng)
        made.snapshot("--message", "first")
        second(made.directory, rng)
        doomed = made.snapshot("--tag", "doomed")
        (made.directory / "deep" / "inherits").unlink()
        made.snapshot("--message", "last", "--tag", "a", "--tag", "b")
        made.command("snapshot", "delete", made.directory, doomed.name)
        while made.status()["engine"]["purging"]:
            time.sleep(0.1)
        (made.directory / "after").write_bytes(rng.randbytes(3000))
        for path in sorted(made.directory.rglob("*")):
            if path.is_file() and not path.is_symlink() and SNAPSHOTS.decode() not in path.parts:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        save(place, "present", made.directory)
        for snapshot in made.snapshot_names():
            save(place, snapshot, made.directory / SNAPSHOTS.decode() / snapshot)
        if name == "clean":
            made.unmount()
        shutil.copytree(made.path, place / "repository", ignore=shutil.ignore_patterns("reserve", "lock"))
        if name == "crashed":
            made.unmount()
    finally:
        made.close()


def main() -> int:
    with workspace() as base:
        for name in ("clean", "crashed"):
            make(base / name, name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
