"""What a command shows: for people with rich, for programs as one JSON object.

Fields of the JSON object are only ever added. Sizes are in bytes; a field of the service that ends in `_ns` is a time
and becomes RFC 3339 in UTC, without the ending.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from backupfs.errors import BackupfsError

SCHEMA: Final = 1
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
STAGES: Final = {
    "reckoning": ("reckoning what is freed", False),
    "surveying": ("looking at packs", False),
    "purging": ("purging snapshots", False),
    "copying": ("rewriting packs", True),
}
"""What the progress of each stage is called, and whether it is in bytes."""
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def rfc3339(time_ns: int) -> str:
    """`2026-10-04T12:00:00.000000Z`."""
    return (_EPOCH + timedelta(microseconds=time_ns // 1000)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def public(value: object) -> Any:
    """A value of the service as it stands in JSON: structs are objects, `…_ns` are times."""
    plain = msgspec.to_builtins(value)
    return _public(plain)


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return dict(_public_field(name, inner) for name, inner in value.items())
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return value


def _public_field(name: str, value: Any) -> tuple[str, Any]:
    if name.endswith("_ns") and (value is None or isinstance(value, int)):
        return name.removesuffix("_ns"), None if value is None else rfc3339(value)
    return name, _public(value)


def readable_size(size_bytes: int) -> str:
    """`1.5 GiB`."""
    size = float(size_bytes)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size_bytes} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError(size_bytes)


def printable(text: str) -> str:
    """One line in which nothing speaks to the terminal: what cannot be printed is written as Python would write it."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode() for sign in text)


class Show(Protocol):
    """Takes how far it is, and in which stage."""

    def __call__(self, done: int, total: int, stage: str = "") -> None:
        """So many of so many are done."""
        ...


class Output:
    """Where one command's results go."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def json(self, fields: Mapping[str, object]) -> None:
        """The result as one object, when JSON is asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps({"schema": SCHEMA, **public(dict(fields))}) + "\n")
            sys.stdout.flush()

    def say(self, *lines: str) -> None:
        """The result in words, when they are asked for."""
        if not self.as_json:
            for line in lines:
                self._out.print(Text(printable(line)))

    def paint(self, lines: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Lines of (text, style); the styles show on a terminal only."""
        if not self.as_json:
            for line in lines:
                self._out.print(Text.assemble(*((printable(text), style) for text, style in line)))

    def facts(self, fields: Mapping[str, object], title: str = "") -> None:
        """Names and values, one a line."""
        if self.as_json:
            return
        if title:
            self._out.print(Text(title, style="bold"))
        width = max((len(name) for name in fields), default=0)
        for name, value in fields.items():
            self._out.print(Text(f"{_words(name):<{width}}  {printable(_shown(name, value))}"))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows under a heading, in columns as wide as they need to be: nothing is cut off."""
        if self.as_json:
            return
        lines = [list(columns), *([printable(cell) for cell in row] for row in rows)]
        widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
        for number, line in enumerate(lines):
            text = "  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
            self._out.print(Text(text.rstrip(), style="" if number else "bold"))

    def error(self, error: BackupfsError) -> None:
        """Why it was not done: in words on standard error, and as an object when JSON is asked for."""
        self._err.print(Text(f"backupfs: {printable(str(error))}"))
        self.json({"error": {"kind": error.kind, "message": str(error), "exit_code": error.exit_code}})

    @contextmanager
    def progress(self, what: str, *, in_bytes: bool = True) -> Iterator[Show]:
        """A bar with rate and time left on standard error, when that is a terminal; one line on SIGUSR1. What is done is counted in bytes or in
        something else until `show` is told of a stage of `STAGES`.
        """
        columns = (TextColumn("{task.description}"), BarColumn(), _AmountColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._err, transient=True, disable=not self._err.is_terminal) as bar:
            number = bar.add_task(what, total=None, in_bytes=in_bytes)
            task = bar.tasks[0]
            under_way = ""

            def show(done: int, total: int, stage: str = "") -> None:
                nonlocal under_way
                if stage != under_way or done < task.completed:
                    under_way = stage
                    title, counts_bytes = STAGES.get(stage, (what, in_bytes))
                    bar.reset(number, description=title, in_bytes=counts_bytes)
                bar.update(number, completed=done, total=total)

            before = signal.signal(signal.SIGUSR1, lambda *_: self._err.print(Text(f"{task.description}: {amount(task)}{_left(task)}")))
            try:
                yield show
            finally:
                signal.signal(signal.SIGUSR1, before)


class _AmountColumn(ProgressColumn):
    """How much of how much, and how fast."""

    def render(self, task: Task) -> Text:
        return Text(amount(task))


def amount(task: Task) -> str:
    """`1.5 GiB of 3.0 GiB, 200.0 MiB/s`, or `12 of 50, 3/s`; without what is not known yet."""
    shown: Callable[[int], str] = readable_size if task.fields["in_bytes"] else str
    total = "" if task.total is None else f" of {shown(int(task.total))}"
    rate = "" if task.speed is None else f", {shown(round(task.speed))}/s"
    return f"{shown(int(task.completed))}{total}{rate}"


def _left(task: Task) -> str:
    return "" if task.time_remaining is None else f", {timedelta(seconds=round(task.time_remaining))} left"


def _words(name: str) -> str:
    for unit in ("_bytes", "_ns", "_s"):
        name = name.removesuffix(unit)
    return name.replace("_", " ")


def _shown(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value == "":
        return "-"
    if isinstance(value, int) and name.endswith("_bytes"):
        return readable_size(value)
    if isinstance(value, int) and name.endswith("_ns"):
        return rfc3339(value)
    return str(value)
