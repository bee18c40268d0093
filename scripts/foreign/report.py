"""The rows held against each other, and the table."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.foreign.known import KNOWN
from scripts.foreign.result import FAILS, PASSES, Result

EQUAL: Final = "equal"
_DETAILS_SHOWN: Final = 3

ABOUT: Final = """\
# Tests that others wrote

Written by `scripts/foreign-tests --write`: the same tests, as Debian ships them, on a backupfs mount and on {disk} beside it; {machine}. The
script installs what it needs. `--only stress-ng,git` runs some, `--seconds N` says how long each stressor runs on each side ({seconds} s below), and
the repository takes a snapshot every 15 minutes meanwhile.

* **stress-ng:** each stressor of its class "filesystem" that uses the directory it is given, two processes, with `--verify`.
  What fsize does is drawn at random: without FALLOCATE it fails in most runs, not in all.
* **fio** writes at random and compares each block's checksum afterwards. **dbench** plays a file server's load, **bonnie++** its own.
* **git** makes a repository, repacks it, collects it, and clones it out and in; every copy passes `git fsck --full --strict`.
* **SQLite:** three writers are killed with SIGKILL in the middle of their transactions, four times for each kind of journal; `PRAGMA integrity_check`
  passes, what was committed is there, and nothing in part.
* **rsync** copies a tree of everything that copying gets wrong in and out, and finds nothing left to do; what comes back is what went in.
* **PostgreSQL** with data checksums: under the load of pgbench the server is killed with SIGKILL, twice. It recovers, no transaction is gone or there
  in part, and `pg_amcheck --heapallindexed`, `vacuumdb --full` and `pg_checksums` pass.
* **Python:** the tests of its library that are about files, and some once more with the rights of an ordinary user.

A row is equal when both sides end alike and the same cases fail or are left out; a case that fails on the disk as well is named with it. A row that
is not equal names its reason, and the script ends with 1 when one has none.

{summary}

| test | {disk} | backupfs | |
|---|---|---|---|
{rows}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One test on both."""

    name: str
    disk: Result
    backupfs: Result

    @property
    def verdict(self) -> str:
        """Equal, a known reason, or nothing: then nobody knows why they differ."""
        if self.disk.is_like(self.backupfs):
            return EQUAL
        known = KNOWN.get(self.name)
        if known is None or known.status != self.backupfs.status or not self.backupfs.details ^ self.disk.details <= known.details:
            return ""
        return known.reason


def rows_of(disk: Mapping[str, Result], backupfs: Mapping[str, Result]) -> list[Row]:
    """In the order in which they ran."""
    return [Row(name, disk[name], backupfs[name]) for name in disk]


def document(rows: Sequence[Row], disk: str, seconds: int) -> str:
    """docs/foreign-tests.md."""
    equal = sum(row.verdict == EQUAL for row in rows)
    failing = sum(row.verdict == EQUAL and row.disk.status == FAILS for row in rows)
    known = sum(row.verdict not in ("", EQUAL) for row in rows)
    summary = f"{len(rows)} rows: {equal} equal ({failing} of them fail on both), {known} different for a known reason, "
    summary += f"{len(rows) - equal - known} different without one."
    machine = f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}"
    shown = "\n".join(_line(row) for row in rows)
    return ABOUT.format(disk=disk, machine=machine, seconds=seconds, summary=summary, rows=shown)


def _line(row: Row) -> str:
    verdict = row.verdict or "**different**"
    if row.verdict == EQUAL and row.disk.status == FAILS:
        verdict = f"equal: {_shown(row.disk)}"
    elif not row.verdict:
        verdict += f": {_shown(Result('', row.disk.details ^ row.backupfs.details))}"
    return f"| {row.name} | {_cell(row.disk)} | {_cell(row.backupfs)} | {verdict} |"


def _cell(result: Result) -> str:
    left_out = sum(detail.startswith("skipped") for detail in result.details)
    return f"{result.status}, {left_out} left out" if left_out and result.status == PASSES else result.status


def _shown(result: Result) -> str:
    details = sorted(detail for detail in result.details if not (result.status and detail.startswith("skipped")))
    more = len(details) - _DETAILS_SHOWN
    text = "; ".join(details[:_DETAILS_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    return text.replace("|", "\\|")
