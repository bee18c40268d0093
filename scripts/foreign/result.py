"""What a test comes to, and the place in which it runs."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

PASSES: Final = "passes"
FAILS: Final = "fails"
SKIPS: Final = "skips"
PATIENCE_S: Final = 1800
"""No program takes so long: one that does hangs."""
SHOWN_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Result:
    """`details` are what went wrong or was left out, one sentence or one test's name each, without anything that differs from run to run."""

    status: str
    details: frozenset[str] = frozenset()
    output: str = ""
    """What the program said, for whoever looks into a difference; not compared."""

    def is_like(self, other: Self) -> bool:
        """Whether both have come to the same."""
        return (self.status, self.details) == (other.status, other.details)


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    code: int
    output: str


@dataclass(frozen=True, slots=True)
class Place:
    """An empty directory that everybody may write to, on one of the file systems; a second one that is on the disk for both."""

    directory: Path
    scratch: Path
    seconds: int
    """How long a stressor runs."""
    user: int | None = None
    """Whose rights the programs have; None: the caller's."""

    def as_user(self, user: int) -> "Place":
        """The same place for a program of this user; only for root."""
        os.chown(self.directory, user, user)
        return replace(self, user=user)

    def run(self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Done:
        """Run a program to its end, whatever it ends with."""
        done = subprocess.run(
            list(command),
            cwd=cwd or self.directory,
            env={**os.environ, "TMPDIR": str(self.directory), "HOME": str(self.directory), "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
            timeout=PATIENCE_S,
            check=False,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
        )
        return Done(done.returncode, done.stdout)

    def must(self, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """The output of a program that has to end well; FailedError otherwise."""
        done = self.run(command, environment=environment, cwd=cwd)
        if done.code:
            raise FailedError(f"{Path(command[0]).name} {command[1] if len(command) > 1 else ''} ends with {done.code}", done.output)
        return done.output


class FailedError(Exception):
    """A step of a test went wrong: the test fails for this reason."""

    def __init__(self, reason: str, output: str = "") -> None:
        super().__init__(reason)
        self.output = output


@dataclass(frozen=True, slots=True)
class Suite:
    """Some rows of the table that are run together. `rows` gives them by name."""

    key: str
    rows: Callable[[Place], Mapping[str, Result]]


def single(name: str, test: Callable[[Place], None]) -> Callable[[Place], Mapping[str, Result]]:
    """A row that passes when `test` raises no FailedError."""

    def rows(place: Place) -> Mapping[str, Result]:
        try:
            test(place)
        except FailedError as failed:
            return {name: Result(FAILS, frozenset({str(failed)}), failed.output[-SHOWN_CHARACTERS:])}
        return {name: Result(PASSES)}

    return rows
