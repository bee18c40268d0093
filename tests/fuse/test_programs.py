"""Programs people use, on a real mount: as on any other file system."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from tests.mounted import run
from tests.oracle.awkward import make_awkward
from tests.oracle.manifest import assert_same, manifest

pytestmark = pytest.mark.slow

TRANSFERS: Final = """
import random, sqlite3, sys
path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
db = sqlite3.connect(path, timeout=60, isolation_level=None)
for n in range(80):
    db.execute("BEGIN IMMEDIATE")
    source, target = rng.sample(range(50), 2)
    amount = rng.randrange(100)
    db.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
    db.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
    db.execute("INSERT INTO transfers (source, target, amount, note) VALUES (?, ?, ?, ?)",
               (source, target, amount, rng.randbytes(rng.randrange(3000))))
    db.execute("COMMIT" if n % 10 else "ROLLBACK")
"""


def needed(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("journal", ["WAL", "DELETE"])
def test_sqlite_with_several_writers(place: Path, journal: str) -> None:
    path = place / "accounts.db"
    with closing(sqlite3.connect(path)) as database:
        assert database.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0].upper() == journal
        database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER)")
        database.execute("CREATE TABLE transfers (source INTEGER, target INTEGER, amount INTEGER, note BLOB)")
        database.executemany("INSERT INTO accounts VALUES (?, 1000)", [(n,) for n in range(50)])
        database.commit()
    writers = [subprocess.Popen([sys.executable, "-I", "-c", TRANSFERS, path, str(n)]) for n in range(3)]
    with closing(sqlite3.connect(path, timeout=60)) as reader:
        while any(writer.poll() is None for writer in writers):
            assert reader.execute("SELECT sum(balance) FROM accounts").fetchone()[0] == 50_000
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert database.execute("SELECT count(*) FROM transfers").fetchone()[0] == 3 * 72
        assert database.execute("SELECT sum(balance) FROM accounts").fetchone()[0] == 50_000


def test_git(base: Path, place: Path) -> None:
    """A repository made on the disk is cloned into the mount, worked on there, collected, checked and cloned back."""
    needed("git")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "HOME": str(base),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }

    def git(directory: Path, *arguments: str | Path) -> str:
        return run(["git", "-c", "safe.directory=*", "-C", directory, *arguments], env=environment).stdout

    rng = random.Random(5)
    origin = base / "origin"
    origin.mkdir()
    git(origin, "init", "-q")
    for commit in range(8):
        for n in rng.sample(range(60), 25):
            file = origin / f"d{n % 5}" / f"file {n}.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(b"\n".join(rng.randbytes(20).hex().encode() for _ in range(rng.randrange(200))))
        git(origin, "add", "-A")
        git(origin, "commit", "-q", "-m", f"commit {commit}")
    git(place, "clone", "-q", "--no-local", origin, "clone")
    clone = place / "clone"
    assert git(clone, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
    assert git(clone, "status", "--porcelain") == ""
    (clone / "d0" / "new").write_bytes(b"made in the mount")
    git(clone, "add", "-A")
    git(clone, "commit", "-q", "-m", "in the mount")
    git(clone, "gc", "-q", "--prune=now")
    assert git(clone, "fsck", "--full", "--strict") == ""
    git(base, "clone", "-q", "--no-local", clone, "back")
    assert (base / "back" / "d0" / "new").read_bytes() == b"made in the mount"
    assert git(base / "back", "log", "--format=%H") == git(clone, "log", "--format=%H")


def test_tar_in_and_out(base: Path, place: Path) -> None:
    source = base / "source"
    make_awkward(source, seed=7, files=60)
    (source / "special" / "socket").unlink()  # tar stores no sockets
    (source / "links" / "elsewhere" / "fifo").unlink()  # and knows hard links of files only
    options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse"]
    extract = ["tar", "-x", *options, "-p", "--same-owner" if os.geteuid() == 0 else "--no-same-owner"]
    expected = manifest(source)
    run(["tar", "-c", *options, "-f", place / "archive.tar", "-C", source, "."])
    (place / "unpacked").mkdir()
    run([*extract, "-f", place / "archive.tar", "-C", place / "unpacked"])
    assert_same(expected, manifest(place / "unpacked"))
    run(["tar", "-c", *options, "-f", base / "archive.tar", "-C", place / "unpacked", "."])
    (base / "unpacked").mkdir()
    run([*extract, "-f", base / "archive.tar", "-C", base / "unpacked"])
    assert_same(expected, manifest(base / "unpacked"))


def test_rsync_in_again_and_out(base: Path, place: Path) -> None:
    needed("rsync")
    source = base / "source"
    make_awkward(source, seed=8, files=60)
    options = ["-aHAX", "--numeric-ids", "--delete"]
    run(["rsync", *options, f"{source}/", f"{place}/copy/"])
    assert_same(manifest(source), manifest(place / "copy"))
    again = run(["rsync", *options, "--itemize-changes", f"{source}/", f"{place}/copy/"])
    assert again.stdout == "", "everything is as it was, so nothing is to be done"
    run(["rsync", *options, f"{place}/copy/", f"{base}/back/"])
    assert_same(manifest(source), manifest(base / "back"))


def test_building_a_program(place: Path) -> None:
    """What a compiler and `make` do with files: temporary ones, renames, time stamps that decide, an executable mapped."""
    needed("gcc")
    needed("make")
    (place / "main.c").write_text('#include <stdio.h>\nint value(void);\nint main(void) { printf("%d\\n", value()); return 0; }\n')
    (place / "value.c").write_text("int value(void) { return 41; }\n")
    (place / "Makefile").write_text("program: main.o value.o\n\tgcc -o $@ $^\n")
    run(["make", "-s", "-C", place])
    assert run([place / "program"]).stdout == "41\n"
    assert "up to date" in run(["make", "-C", place]).stdout
    (place / "value.c").write_text("int value(void) { return 42; }\n")
    newer = os.stat(place / "value.o").st_mtime_ns + 1
    os.utime(place / "value.c", ns=(newer, newer))
    run(["make", "-s", "-C", place])
    assert run([place / "program"]).stdout == "42\n"


def test_locks_between_processes(place: Path) -> None:
    """The kernel keeps them itself: a counter that several processes raise under a lock misses nothing."""
    (place / "counter").write_text("0")
    code = (
        "import fcntl, sys\n"
        "for n in range(100):\n"
        "    with open(sys.argv[1], 'r+') as file:\n"
        "        fcntl.lockf(file, fcntl.LOCK_EX) if sys.argv[2] == 'posix' else fcntl.flock(file, fcntl.LOCK_EX)\n"
        "        value = int(file.read()) + 1\n"
        "        file.seek(0)\n"
        "        file.write(str(value))\n"
        "        file.flush()\n"
    )
    for kind in ("posix", "flock"):
        workers = [subprocess.Popen([sys.executable, "-I", "-c", code, place / "counter", kind]) for _ in range(3)]
        assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert (place / "counter").read_text() == "600"
