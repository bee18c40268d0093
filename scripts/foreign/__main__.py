"""The command line: `scripts/foreign-tests --help`."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from scripts.foreign import keepers, python_tests, stressors
from scripts.foreign.known import KNOWN
from scripts.foreign.report import EQUAL, document, rows_of
from scripts.foreign.result import FAILS, PASSES, SHOWN_CHARACTERS, Place, Result, Suite

ROOT: Final = Path(__file__).resolve().parent.parent.parent
SUITES: Final[Sequence[Suite]] = (*stressors.SUITES, *keepers.SUITES, *python_tests.SUITES)
SECONDS: Final = 3
ITSELF: Final = "backupfs itself: its log, `check --read-data`"


def complain(text: str) -> None:
    """On stderr: stdout is the table's."""
    print(text, file=sys.stderr, flush=True)


def _arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/foreign-tests",
        description="Runs tests that others wrote on backupfs and on the disk, and prints what they come to. "
        "Ends with 1 when a row differs for no known reason.",
    )
    keys = [suite.key for suite in SUITES]
    parser.add_argument("--only", default=",".join(keys), help=f"of: {', '.join(keys)}")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="how long each stressor runs on each side")
    parser.add_argument("--directory", type=Path, help="where to work: a disk with 10 GiB free (default: TMPDIR)")
    parser.add_argument("--write", action="store_true", help="write docs/foreign-tests.md (needs all of them)")
    options = parser.parse_args(arguments)
    options.only = options.only.split(",")
    if unknown := set(options.only) - set(keys):
        parser.error(f"no such tests: {', '.join(sorted(unknown))}")
    if options.write and set(options.only) != set(keys):
        parser.error("--write is for all of them")
    return options


class BackupFs:
    """A repository of its own, mounted for everybody if root does it."""

    def __init__(self, place: Path) -> None:
        self.directory = place / "mount"
        self.directory.mkdir()
        self._repository = place / "repository"
        self._state = place / "state"

    def _command(self, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "BACKUPFS_PASSWORD": "foreign", "BACKUPFS_STATE_HOME": str(self._state), "BACKUPFS_KDF_SECONDS": "0"}
        return subprocess.run(
            [sys.executable, "-m", "backupfs", *words], env=environment, capture_output=True, text=True, errors="backslashreplace", check=False
        )

    def _must(self, *words: str | Path) -> None:
        done = self._command(*words)
        if done.returncode:
            raise RuntimeError(f"backupfs {words[0]} ended with {done.returncode}: {done.stderr or done.stdout}")

    def start(self) -> None:
        """Make it and mount it."""
        self._must("init", self._repository)
        self._must("mount", self._repository, self.directory, "--every", "15m", *(["--allow-other"] if os.geteuid() == 0 else []))

    def stop(self) -> Result:
        """Unmount, check every byte, and see what the log has to say."""
        self._must("umount", self.directory)
        checked = self._command("check", self._repository, "--read-data")
        logs = "".join(path.read_text(errors="backslashreplace") for path in sorted(self._state.glob("*/log*")))
        trouble = [line for line in logs.splitlines() if line.split()[2:3] and line.split()[2] in ("WARNING", "ERROR", "CRITICAL")]
        details = {line.split(maxsplit=3)[3] for line in trouble} | ({"check finds something"} if checked.returncode else set())
        return Result(FAILS if details else PASSES, frozenset(details), (checked.stdout + checked.stderr)[-SHOWN_CHARACTERS:])

    def detach(self) -> None:
        """It is not mounted any more, whatever happened."""
        subprocess.run(["fusermount3", "-u", "-z", "-q", self.directory], check=False)


@contextmanager
def _workplace(options: argparse.Namespace) -> Iterator[Path]:
    """Taken away again, also when the script is ended by a signal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = Path(tempfile.mkdtemp(prefix="backupfs-foreign-", dir=options.directory))
    place.chmod(0o755)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _run(suite: Suite, tops: Mapping[str, Path], scratch: Path, seconds: int) -> dict[str, Mapping[str, Result]]:
    results = {}
    for system, top in tops.items():
        complain(f"{suite.key} on {system}")
        directory, beside = top / suite.key, scratch / f"{suite.key}-{system}"
        for path in (directory, beside):
            path.mkdir()
            path.chmod(0o1777)
        began = time.monotonic()
        results[system] = suite.rows(Place(directory, beside, seconds))
        complain(f"  {time.monotonic() - began:.0f} s")
        shutil.rmtree(directory)
        shutil.rmtree(beside)
    return results


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    options = _arguments(arguments)
    disk: dict[str, Result] = {}
    backupfs: dict[str, Result] = {}
    with _workplace(options) as place:
        kind = subprocess.run(["stat", "--file-system", "--format=%T", place], capture_output=True, text=True, check=True).stdout.strip()
        kind = "ext4" if kind == "ext2/ext3" else kind
        tops = {kind: place / "disk", "backupfs": place / "mount"}
        tops[kind].mkdir()
        mounted = BackupFs(place)
        try:
            mounted.start()
            for suite in SUITES:
                if suite.key in options.only:
                    results = _run(suite, tops, place, options.seconds)
                    disk |= results[kind]
                    backupfs |= results["backupfs"]
            disk[ITSELF], backupfs[ITSELF] = Result(PASSES), mounted.stop()
        finally:
            mounted.detach()
    rows = rows_of(disk, backupfs)
    text = document(rows, kind, options.seconds)
    print(text)
    for row in rows:
        if not row.verdict or FAILS in (row.disk.status, row.backupfs.status):
            sides = ((kind, row.disk), ("backupfs", row.backupfs))
            complain("\n".join([f"== {row.name}", *(f"{name}: {side.status} {sorted(side.details)}\n{side.output}" for name, side in sides)]))
    for name in KNOWN.keys() & {row.name for row in rows if row.verdict == EQUAL}:
        complain(f"{name} is listed as different and is equal")
    if options.write:
        (ROOT / "docs" / "foreign-tests.md").write_text(text, encoding="utf-8")
    return int(not all(row.verdict for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
