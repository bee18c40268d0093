"""Documents that run: what a reader is shown is done, in order, and what follows each command is what it prints.

A document is Markdown. These parts of it are run, in one bash, in a scratch directory that stands for `/`:

* ```` ```console ````: a line that begins with `$ ` is a command, `> ` continues it; the lines after it are what it prints, on either stream. It
  must succeed, unless the next command is `echo $?`.
* a block of another kind with a comment among its first two lines that is a path, `# ~/.config/backupfs/web.toml`: it is written to that file.
* `<!-- run`, lines, `-->`: what a reader does not see; it must succeed.

`<!-- document`, lines `name: words`, `-->` says what the document needs: `home` (/home/ada), `places` (other paths that are made in the scratch
directory and meant whenever they are named), `needs` (`root`, `postgresql`, names of programs), `log` (a regular expression of warnings that are what
the document is about). All other blocks are left alone.

What differs from run to run is normalised before it is compared, in the document and in what was printed alike: see `Normaliser`.

`python -m tests.documents [DOCUMENT...]` runs them, and writes what the commands print now into those that say something else.
"""

import difflib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mnemonic import Mnemonic

from tests import mounted
from tests.mounted import HANG_S, run, unmounting, workspace
from tests.warm import ROOT

_FENCE: Final = re.compile(r"^(`{3,})(.*)$")
_NAMED_FILE: Final = re.compile(r"^# ((?:~|/)\S+)$")
_WARNING: Final = re.compile(r"^\S+ \S+ (?:WARNING|ERROR|CRITICAL) .*", re.MULTILINE)
_MARK: Final = "-- end of a step --"


@dataclass(frozen=True, slots=True)
class Command:
    """A command that is shown. What it prints stands in the lines `output` of the document, a half-open range."""

    line: int
    text: str
    output: range


@dataclass(frozen=True, slots=True)
class Hidden:
    """Commands that are not shown."""

    line: int
    text: str


@dataclass(frozen=True, slots=True)
class File:
    """A file that the reader writes."""

    line: int
    path: str
    text: str


Step = Command | Hidden | File


@dataclass(frozen=True, slots=True)
class Document:
    """A document, by lines, and what is to be done in it."""

    path: Path
    lines: tuple[str, ...]
    steps: tuple[Step, ...]
    home: str
    places: tuple[str, ...]
    needs: tuple[str, ...]
    log: str

    @property
    def commands(self) -> list[Command]:
        """Those that are shown."""
        return [step for step in self.steps if isinstance(step, Command)]


# --- reading --------------------------------------------------------------------------------------------------------


def documents() -> list[Path]:
    """Those of this project that show commands and what they print."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in paths if "\n```console\n" in path.read_text()]


def parse(path: Path, text: str) -> Document:
    """Raises ValueError where something is begun and not ended, and where a block of commands does not begin with one."""
    lines = text.splitlines()
    steps: list[Step] = []
    header: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        fence = _FENCE.match(line)
        if fence is not None:
            end = _end(lines, at, fence[1], path)
            steps += _fenced(lines, range(at + 1, end), fence[2], path)
        elif line in {"<!-- run", "<!-- document"}:
            end = _end(lines, at, "-->", path)
            if line == "<!-- run":
                steps.append(Hidden(at + 1, "\n".join(lines[at + 1 : end])))
            else:
                header |= {name: value.strip() for name, _, value in (entry.partition(":") for entry in lines[at + 1 : end])}
        else:
            end = at
        at = end + 1
    home = header.pop("home", "/home/ada")
    places = (home, *header.pop("places", "").split())
    document = Document(path, tuple(lines), tuple(steps), home, places, tuple(header.pop("needs", "").split()), header.pop("log", ""))
    if header:
        raise ValueError(f"{path}: unknown in the comment `document`: {', '.join(header)}")
    for step in steps:
        if isinstance(step, File) and not step.path.startswith(("~/", *(f"{place}/" for place in places))):
            raise ValueError(f"{path}:{step.line}: {step.path} lies in none of the document's places, so it would be written for real")
    return document


def _end(lines: Sequence[str], begin: int, mark: str, path: Path) -> int:
    for at in range(begin + 1, len(lines)):
        if lines[at] == mark:
            return at
    raise ValueError(f"{path}:{begin + 1}: this has no end")


def _fenced(lines: Sequence[str], inside: range, kind: str, path: Path) -> Iterator[Step]:
    if kind != "console":
        named = [match[1] for line in lines[inside.start : min(inside.stop, inside.start + 2)] if (match := _NAMED_FILE.match(line))]
        yield from (File(inside.start, name, "".join(f"{line}\n" for line in lines[inside.start : inside.stop])) for name in named)
        return
    at = inside.start
    while at < inside.stop:
        begin = at
        if not lines[at].startswith("$ "):
            raise ValueError(f"{path}:{at + 1}: a block of commands begins with one")
        words = [lines[at].removeprefix("$ ")]
        at += 1
        while at < inside.stop and lines[at].startswith("> "):
            words.append(lines[at].removeprefix("> "))
            at += 1
        output = at
        while at < inside.stop and not lines[at].startswith("$ "):
            at += 1
        yield Command(begin, "\n".join(words), range(output, at))


_CALL: Final = re.compile(r"(?<![\w/.-])backupfs ((?:[a-z-]+ ?)+)([^|&;<>)\n]*)")


def shown_verbs(document: Document, verbs: Container[tuple[str, ...]]) -> set[tuple[tuple[str, ...], bool]]:
    """The verbs that the document shows together with what they print, and whether that is JSON."""
    found: set[tuple[tuple[str, ...], bool]] = set()
    for command in document.commands:
        for call in _CALL.finditer(command.text) if command.output else ():
            words = tuple(call[1].split())
            found |= {(words[:count], "--json" in call[0].split()) for count in (1, 2) if words[:count] in verbs}
    return found


# --- running --------------------------------------------------------------------------------------------------------


class FailedError(AssertionError):
    """A document did not run as far as its end, or left something that it must not."""


@dataclass(slots=True)
class Outcome:
    """What each command has printed, in lines; with paths as the document has them."""

    printed: dict[int, list[str]] = field(default_factory=dict)


def execute(document: Document) -> Outcome:
    """Do all that the document says, and see that its repositories end in order. Raises FailedError."""
    with workspace() as root, _ended(root):
        environment = _environment(document, root)
        said = _session(document, root, environment)
        outcome = _outcome(document, said.replace(str(root), ""))
        for directory in _mounts(root):
            run(["backupfs", "umount", directory], env=environment)
        warnings = [line for line in _warnings(root) if not (document.log and re.search(document.log, line))]
        if warnings:
            raise FailedError(f"{document.path}: in the log, and not expected:\n" + "\n".join(warnings))
        return outcome


def within_an_hour(document: Document) -> Outcome:
    """As `execute`; done again if an hour, and so a period of retention, began meanwhile, for then other rules keep what was taken."""
    begun = time.time() // 3600
    outcome = execute(document)
    return outcome if time.time() // 3600 == begun else execute(document)


def _environment(document: Document, root: Path) -> dict[str, str]:
    """Nothing of the caller's own configuration; `backupfs` is the one of this tree."""
    programs = root / "bin"
    programs.mkdir()
    program = programs / "backupfs"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m backupfs "$@"\n')
    program.chmod(0o755)
    for place in document.places:
        (root / place[1:]).mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not mounted.is_own_variable(name)}
    home = root / document.home[1:]
    if kept.pop("PYTHONDONTWRITEBYTECODE", ""):  # every command would compile the program anew
        kept["PYTHONPYCACHEPREFIX"] = str(root / "bytecode")
    return kept | {
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
        "HOME": str(home),
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
        "BACKUPFS_STATE_HOME": str(home / ".local/state/backupfs"),
        "BACKUPFS_KDF_SECONDS": "0",
    }


def _session(document: Document, root: Path, environment: dict[str, str]) -> str:
    """What bash has printed: of each step, and after it a line with the mark, the step's number and its exit code."""
    place = root / "steps"
    place.mkdir()
    script = [f"mark() {{ local code=$?; printf '\\n{_MARK} %d %d\\n' \"$1\" $code; return $code; }}", "cd"]
    for number, step in enumerate(document.steps):
        (place / str(number)).write_text(_script(document, root, step, place / f"{number}.file"))
        script.append(f". {place / str(number)}\nmark {number}")
    (place / "all").write_text("\n".join(script) + "\n")
    with open(place / "output", "w+b") as output:  # not a pipe: what runs on in the background would keep it open
        process = subprocess.Popen(
            ["bash", "--norc", place / "all"], env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, umask=0o022
        )
        try:
            process.wait(HANG_S)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        return output.read().decode(errors="backslashreplace")


def _script(document: Document, root: Path, step: Step, copy: Path) -> str:
    moved = _relocated(document, root, step.text)
    if isinstance(step, Command):
        return f"{moved}\n"
    if isinstance(step, Hidden):
        return f"set -e\n{moved}\nset +e\n"
    copy.write_text(moved)
    target = _relocated(document, root, step.path)
    return f"mkdir -p $(dirname {target}) && install -m 644 {copy} {target}\n"


def _relocated(document: Document, root: Path, text: str) -> str:
    """With the document's places in the scratch directory."""
    places = "|".join(re.escape(place) for place in sorted(document.places, key=len, reverse=True))
    return re.sub(rf"(?<![\w/.~-])(?:{places})(?![\w.-])", lambda match: f"{root}{match[0]}", text)


def _outcome(document: Document, said: str) -> Outcome:
    outcome = Outcome()
    parts = re.split(rf"\n{_MARK} (\d+) (\d+)\n", said)
    done = dict(zip(map(int, parts[1::3]), zip(parts[0::3], map(int, parts[2::3]), strict=False), strict=True))
    for number, step in enumerate(document.steps):
        where = f"{document.path}:{step.line + 1}: {step.text.splitlines()[0]}"
        if number not in done:
            raise FailedError(f"{where}\nended the session:\n{parts[-1]}")
        text, code = done[number]
        following = document.steps[number + 1] if number + 1 < len(document.steps) else None
        if code and not (isinstance(step, Command) and isinstance(following, Command) and following.text == "echo $?"):
            raise FailedError(f"{where}\nexit code {code}:\n{text}")
        if isinstance(step, Command):
            outcome.printed[number] = [line.rstrip() for line in text.splitlines()]
    return outcome


def _warnings(root: Path) -> list[str]:
    logs = [path for path in sorted(root.rglob("log*")) if path.is_file() and re.fullmatch("[0-9a-f]{16,}", path.parent.name)]
    return [line for path in logs for line in _WARNING.findall(path.read_text(errors="backslashreplace"))]


def _mounts(root: Path) -> list[Path]:
    """What is mounted below, the last first."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
        return [Path(words[4]) for words in reversed([line.split() for line in mounts]) if words[4].startswith(f"{root}/")]


@contextmanager
def _ended(root: Path) -> Iterator[None]:
    """Afterwards nothing that was started runs any more, whatever has happened."""
    try:
        yield
    finally:
        for directory in _mounts(root):
            run(unmounting(directory, lazy=True), expect=None)
        for pid in _processes(root):
            with suppress(ProcessLookupError):  # it may have ended by itself
                _kill(os.pidfd_open(pid))


def _kill(process: int) -> None:
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], HANG_S)
    finally:
        os.close(process)


def _processes(root: Path) -> Iterator[int]:
    """Those that were started with a path below `root`, or are in it."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            started, inside = (entry / "cmdline").read_bytes(), os.readlink(entry / "cwd")
        except OSError:  # gone, or somebody else's
            continue
        if os.fsencode(root) in started or inside.startswith(f"{root}/"):
            yield int(entry.name)


def lacking(document: Document) -> str:
    """Why it cannot run here; empty if it can."""
    for need in document.needs:
        if need == "root":
            if os.geteuid() != 0:
                return "needs root"
        elif need == "postgresql":
            if not any(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
                return "the package postgresql is not installed"
        elif shutil.which(need) is None:
            return f"{need} is not installed"
    return ""


# --- comparing ------------------------------------------------------------------------------------------------------

_WORD_LIST: Final = frozenset(Mnemonic("english").wordlist)
_SNAPSHOT: Final = re.compile(r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{6}Z(?:-[0-9]{3,})?")
_FORECAST: Final = (
    (re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?: +[0-9]+){3} +[0-9.]+ [KMGTPE]?i?B  h*d*m*y*"), "<forecast row>"),
    (re.compile(r"  (?:last [a-z0-9 ]+|older) +[0-9]+(?:  [.|#]+)?"), "<forecast timeline>"),
    (re.compile(r"What stands at the end, [0-9]+ snapshots; older on the left"), "<forecast's end>"),
)
_COUNTED: Final = "|".join(
    (
        *("pid", "process", "uid", "gid", "python"),
        *("packs", "batches", "segment", "inodes made", "blobs made"),
        *("changes", "changes since snapshot", "uncommitted records", "layers not applied", "open files"),
    )
)
"""What counts how the engine happens to have worked, or says on what machine."""
_RULES: Final = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?Z", "<time>"),
        (r"\b[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?: UTC)?", "<time>"),
        (r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}\b", "<day>"),
        (r"\b[0-9a-f]{32,64}\b", "<id>"),
        (r"^[0-9a-f]{8}(?= )", "<id>"),
        (r"[0-9.]+ [KMGT]iB of [0-9.]+ [KMGT]iB are free on its disk", "<size> of <size> are free on its disk"),
        (r"\b[0-9]+ x [0-9]+ MiB, ([0-9]+) lanes", r"<n> x <n> MiB, \1 lanes"),
        (r"\b(?!0 B)[0-9]+(?:\.[0-9]+)? ([KMGT]?i?B)\b", r"<n> \1"),
        (r'("(?:\w+_)?(?:bytes|pid|time|size|memory_kib)": )[1-9][0-9]*', r"\1<n>"),
        (rf"\b({_COUNTED}) +[0-9.]+", r"\1 <n>"),
        (rf'"({_COUNTED.replace(" ", "_")})": [0-9]+', r'"\1": <n>'),
        (r"\b[0-9]+ (packs|batches|inodes|blobs)\b", r"<n> \1"),
        (r'"python": "[0-9.]+"', '"python": "<n>"'),
    )
)


class Normaliser:
    """Turns printed lines into what is the same in every run. One for each document, as snapshots are numbered in the order in which they appear:

    * names of snapshots made of times: `<snapshot 1>`; the same one has the same number everywhere
    * times in UTC, days, ids: a word for each; likewise the counts of `_COUNTED`, and what a password costs
    * sizes keep their unit, and 0 stays 0; numbers of bytes in JSON likewise
    * the six words of a line of a recovery key: one word
    * blanks between columns: one
    * a forecast, which depends on the calendar of the day: one word for all its rows, one for all its timelines
    """

    def __init__(self) -> None:
        self._snapshots: dict[str, str] = {}

    def line(self, text: str) -> str:
        """One line."""
        words = text.split()
        for pattern, replacement in _FORECAST:
            if pattern.fullmatch(text):
                return replacement
        if len(words) == 6 and _WORD_LIST.issuperset(words):
            return "<six words>"
        text = _SNAPSHOT.sub(lambda match: self._snapshots.setdefault(match[0], f"<snapshot {len(self._snapshots) + 1}>"), text)
        for pattern, replacement in _RULES:
            text = pattern.sub(replacement, text)
        return " ".join(text.split())

    def lines(self, texts: Sequence[str]) -> list[str]:
        """Several lines, without empty ones at the end."""
        made = [self.line(text) for text in texts]
        while made and not made[-1]:
            made.pop()
        return [line for at, line in enumerate(made) if not (line.startswith("<forecast") and at and made[at - 1] == line)]


def differing(document: Document, outcome: Outcome) -> dict[int, str]:
    """The numbers of the steps that print something else than the document says, each with a diff."""
    said, done = Normaliser(), Normaliser()
    found: dict[int, str] = {}
    for number, step in enumerate(document.steps):
        if not isinstance(step, Command):
            continue
        shown, printed = document.lines[step.output.start : step.output.stop], outcome.printed[number]
        wanted, got = said.lines(shown), done.lines(printed)
        if wanted != got:
            diff = difflib.unified_diff(wanted, got, "as the document says", "as it is", lineterm="", n=1000)
            printed_text = "\n".join(printed)
            found[number] = f"{document.path}:{step.line + 1}: $ {step.text}\n" + "\n".join(diff) + f"\nprinted:\n{printed_text}\n"
    return found


def rewritten(document: Document, outcome: Outcome) -> str:
    """The document with what was printed, all of it from the one run, if any of it says something else."""
    lines = list(document.lines)
    if differing(document, outcome):
        for number, step in reversed(list(enumerate(document.steps))):
            if isinstance(step, Command):
                lines[step.output.start : step.output.stop] = outcome.printed[number]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the top."""
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else documents():
        document = parse(path, path.read_text())
        reason = lacking(document)
        if reason:
            print(f"{path}: left alone: {reason}")
            continue
        outcome = within_an_hour(document)
        changed = differing(document, outcome)
        path.write_text(rewritten(document, outcome))
        print(f"{path}: {len(changed)} of {len(document.commands)} outputs differed")


if __name__ == "__main__":
    main()
