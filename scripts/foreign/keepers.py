"""Programs that keep people's work in files, and their own checks of it: git, SQLite, rsync, PostgreSQL."""

import os
import pwd
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import IO, Final

from scripts.foreign.result import SHOWN_CHARACTERS, FailedError, Place, Result, Suite, single
from tests.oracle.awkward import make_awkward
from tests.oracle.manifest import differences, manifest

ROOT: Final = Path(__file__).resolve().parent.parent.parent
POLL_S: Final = 0.02
ACCOUNTS: Final = 50
BALANCE: Final = 1000
WRITTEN_BYTES: Final = 400
"""Of the numbers of committed transactions, one a line, before the writers are killed."""
POSTGRESQL: Final = Path("/usr/lib/postgresql")

SQLITE_WRITER: Final = """
import random, sqlite3, sys
path, number = sys.argv[1], int(sys.argv[2])
rng = random.Random(number)
db = sqlite3.connect(path, timeout=120, isolation_level=None)
db.execute("PRAGMA synchronous = FULL")
for n in range(1_000_000):
    db.execute("BEGIN IMMEDIATE")
    source, target = rng.sample(range(50), 2)
    db.execute("UPDATE accounts SET balance = balance - 1 WHERE id = ?", (source,))
    db.executemany("INSERT INTO done VALUES (?, ?, ?)", [(number, n, rng.randbytes(rng.randrange(8000)))])
    db.execute("UPDATE accounts SET balance = balance + 1 WHERE id = ?", (target,))
    if n % 7 == 3:
        db.execute("DELETE FROM done WHERE writer = ? AND n < ? AND n % 5 > 0", (number, n - 20))
    db.execute("COMMIT")
    print(n, flush=True)
"""


# --- git ----------------------------------------------------------------------------------------------------------


def _git(place: Place) -> None:
    """A repository made there, worked on, checked, collected, and cloned out and in again: the same objects everywhere."""
    environment = {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        **{f"GIT_{who}_{what}": "x@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        **{f"GIT_{who}_DATE": "2026-01-01T00:00:00Z" for who in ("AUTHOR", "COMMITTER")},
    }

    def git(directory: Path, *words: str | Path) -> str:
        return place.must(["git", "-c", "safe.directory=*", "-c", "core.fsync=all", "-C", directory, *words], environment=environment)

    rng = random.Random(11)
    made = place.directory / "made"
    made.mkdir()
    git(made, "init", "-q", "-b", "main")
    for commit in range(12):
        for n in rng.sample(range(400), 120):
            file = made / f"d{n % 20}" / f"e{n % 7}" / f"file {n}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"\n".join(rng.randbytes(20).hex().encode() for _ in range(rng.randrange(300))))
        git(made, "add", "-A")
        git(made, "commit", "-q", "-m", f"commit {commit}")
        if commit % 4 == 3:
            git(made, "branch", f"b{commit}")
            git(made, "repack", "-q", "-d")
    head = git(made, "rev-parse", "HEAD")
    for step in (("fsck", "--full", "--strict"), ("gc", "-q", "--aggressive", "--prune=now"), ("fsck", "--full", "--strict")):
        git(made, *step)
    out = place.scratch / "out"
    git(place.directory, "clone", "-q", "--no-local", made, out)
    git(place.directory, "clone", "-q", "--no-local", out, "in")
    git(place.directory, "clone", "-q", "--local", made, "linked")
    git(place.directory / "in", "checkout", "-q", "HEAD~5")
    git(place.directory / "in", "checkout", "-q", "main")
    for clone in (out, place.directory / "in", place.directory / "linked"):
        git(clone, "fsck", "--full", "--strict")
        if git(clone, "rev-parse", "HEAD") != head or git(clone, "status", "--porcelain"):
            raise FailedError(f"{clone.name} is not what was cloned")


# --- SQLite -------------------------------------------------------------------------------------------------------


def _sqlite(journal: str, place: Place) -> None:
    """Three writers, killed in the middle of it, four times; what was committed is there, and nothing that was not."""
    path = place.directory / f"{journal}.db"
    with closing(sqlite3.connect(path)) as database:
        if database.execute(f"PRAGMA journal_mode = {journal}").fetchone()[0].upper() != journal:
            raise FailedError(f"{journal} cannot be used here")
        database.execute("CREATE TABLE accounts (id INTEGER PRIMARY KEY, balance INTEGER)")
        database.execute("CREATE TABLE done (writer INTEGER, n INTEGER, what BLOB, PRIMARY KEY (writer, n))")
        database.executemany("INSERT INTO accounts VALUES (?, ?)", [(n, BALANCE) for n in range(ACCOUNTS)])
        database.commit()
    for turn in range(4):
        numbers = range(turn * 3, turn * 3 + 3)
        told = {number: place.directory / f"{journal}-{number}" for number in numbers}
        writers = []
        for number in numbers:
            with open(told[number], "wb") as output:
                writers.append(subprocess.Popen([sys.executable, "-I", "-c", SQLITE_WRITER, path, str(number)], stdout=output))
        # Together: SQLite lets one of several wait for as long as it likes.
        _wait_until(lambda told=told: sum(len(file.read_bytes()) for file in told.values()) > WRITTEN_BYTES, "nothing is committed")  # type: ignore[misc]
        for writer in writers:
            writer.kill()
            writer.wait()
        lines = {number: file.read_bytes().rpartition(b"\n")[0].split() for number, file in told.items()}
        _check_sqlite(path, {number: int(numbers[-1]) for number, numbers in lines.items() if numbers})


def _check_sqlite(path: Path, committed: dict[int, int]) -> None:
    with closing(sqlite3.connect(path)) as database:
        if (told := database.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
            raise FailedError("PRAGMA integrity_check finds damage", told)
        if database.execute("SELECT sum(balance) FROM accounts").fetchone()[0] != ACCOUNTS * BALANCE:
            raise FailedError("half a transaction is there")
        for number, last in committed.items():
            if database.execute("SELECT max(n) FROM done WHERE writer = ?", (number,)).fetchone()[0] not in (last, last + 1):
                raise FailedError("a committed transaction is gone")
        database.execute("VACUUM")


def sqlite(place: Place) -> dict[str, Result]:
    """A row for each kind of journal."""
    rows: dict[str, Result] = {}
    for journal in ("WAL", "DELETE", "TRUNCATE", "PERSIST"):
        rows |= single(f"SQLite, killed, journal {journal}", lambda where, journal=journal: _sqlite(journal, where))(place)  # type: ignore[misc]
    return rows


# --- rsync --------------------------------------------------------------------------------------------------------


def _rsync(place: Place) -> None:
    """A tree of everything that copying gets wrong, in and out, and nothing left to be done."""
    source, back = place.scratch / "source", place.scratch / "back"
    make_awkward(source, seed=21, files=200)
    options = ["-aHAX", "--numeric-ids", "--delete", "--checksum"]
    for here, there in ((source, place.directory / "copy"), (place.directory / "copy", back)):
        place.must(["rsync", *options, f"{here}/", f"{there}/"])
        if left := place.must(["rsync", *options, "--dry-run", "--itemize-changes", f"{here}/", f"{there}/"]):
            raise FailedError("rsync is not content with its copy", left)
    if lines := differences(manifest(source), manifest(back)):
        raise FailedError("what comes back is not what went in", "\n".join(lines))


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


class _Cluster:
    """A database server of its own, with data checksums, reached by a socket only."""

    def __init__(self, place: Place) -> None:
        self._place = place.as_user(pwd.getpwnam("postgres").pw_uid) if os.geteuid() == 0 else place
        self._programs = max(POSTGRESQL.glob("*/bin"), key=lambda path: int(path.parent.name))
        self.data = place.directory / "data"
        self.sockets = place.scratch / "sockets"
        self.sockets.mkdir()
        self.sockets.chmod(0o777)
        self._server: subprocess.Popen[bytes] | None = None
        self.must("initdb", "--data-checksums", "-A", "trust", "-D", self.data)

    def must(self, program: str, *words: str | Path) -> str:
        return self._place.must([self._programs / program, *words])

    def ask(self, query: str) -> str:
        return self.must("psql", "-X", "-A", "-t", "-h", self.sockets, "-d", "postgres", "-c", query).strip()

    def start(self) -> None:
        """As a child of this process, which is told of its end: a dead server that nobody has fetched counts as running."""
        settings = ("listen_addresses=", f"unix_socket_directories={self.sockets}", "checkpoint_timeout=30s", "max_wal_size=64MB")
        with open(self._place.scratch / "log", "ab") as log:
            self._server = self._begin("postgres", log, "-D", self.data, *(word for setting in settings for word in ("-c", setting)))
        _wait_until(self._answers, "the server does not answer")

    def _answers(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            raise FailedError("the server does not start", (self._place.scratch / "log").read_text()[-SHOWN_CHARACTERS:])
        return self._place.run([self._programs / "pg_isready", "-q", "-h", self.sockets]).code == 0

    def _begin(self, program: str, output: IO[bytes] | int, *words: str | Path) -> subprocess.Popen[bytes]:
        user = self._place.user
        return subprocess.Popen(
            [self._programs / program, *words],
            stdout=output, stderr=output, cwd=self._place.directory, user=user, group=user, extra_groups=None if user is None else [],
        )  # fmt: skip

    def stop(self) -> None:
        self.must("pg_ctl", "stop", "-w", "-m", "fast", "-D", self.data)
        self.kill()

    def kill(self) -> None:
        """The server, if there is one, and everything it has started, at once."""
        server, self._server = self._server, None
        if server is None or server.poll() is not None:
            return
        children = [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
        server.kill()
        held = []
        for pid in children:
            with suppress(ProcessLookupError):  # it has ended by itself
                held.append(os.pidfd_open(pid))
                signal.pidfd_send_signal(held[-1], signal.SIGKILL)
        server.wait()
        for process in held:
            select.select([process], [], [])
            os.close(process)

    def start_load(self) -> subprocess.Popen[bytes]:
        """Transactions by four clients, until the server is gone."""
        return self._begin("pgbench", subprocess.DEVNULL, "-h", self.sockets, "-n", "-c", "4", "-T", "300", "postgres")


def _postgresql(place: Place) -> None:
    """Under load it is killed, twice; it recovers, no transaction is there in part, and every page has its checksum."""
    cluster = _Cluster(place)
    try:
        cluster.start()
        cluster.must("pgbench", "-h", cluster.sockets, "-i", "-q", "-s", "4", "postgres")
        for _ in range(2):
            done = int(cluster.ask("SELECT count(*) FROM pgbench_history"))
            load = cluster.start_load()
            _wait_until(lambda done=done: int(cluster.ask("SELECT count(*) FROM pgbench_history")) > done + 300, "nothing is committed")  # type: ignore[misc]
            least = int(cluster.ask("SELECT count(*) FROM pgbench_history"))
            cluster.kill()
            load.wait()
            cluster.start()
            sums = {cluster.ask(f"SELECT coalesce(sum({what}), 0) FROM pgbench_{where}") for what, where in _SUMS}
            if len(sums) > 1:
                raise FailedError("a transaction is there in part")
            if int(cluster.ask("SELECT count(*) FROM pgbench_history")) < least:
                raise FailedError("a committed transaction is gone")
        cluster.must("pg_amcheck", "-h", cluster.sockets, "--install-missing", "--heapallindexed", "postgres")
        cluster.must("vacuumdb", "-h", cluster.sockets, "--full", "postgres")
        cluster.stop()
        cluster.must("pg_checksums", "--check", "-D", cluster.data)
    finally:
        cluster.kill()


_SUMS: Final = (("abalance", "accounts"), ("tbalance", "tellers"), ("bbalance", "branches"), ("delta", "history"))


def _wait_until(condition: Callable[[], object], otherwise: str, patience_s: float = 300) -> None:
    """Asks again and again: a server that somebody else wrote announces nothing. FailedError when it does not come about."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise FailedError(otherwise)
        time.sleep(POLL_S)


SUITES: Final = (
    Suite("git", single("git: init, commit, repack, gc, fsck, clone", _git)),
    Suite("sqlite", sqlite),
    Suite("rsync", single("rsync -aHAX, in and out", _rsync)),
    Suite("postgresql", single("PostgreSQL: initdb -k, pgbench, kill -9, recovery, pg_amcheck, pg_checksums", _postgresql)),
)
