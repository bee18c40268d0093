"""A run as JSON, and what is printed and written of it. A report is made of the JSON alone."""

import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from scripts.benchmark.figures import PROJECT, Figure, Found, Ratio, Samples, Verdict, median, number, ratio, spread, verdict
from scripts.benchmark.rows import SYSTEMS, WORKS, Row, Work
from scripts.benchmark.setting import MIB, may_drop_caches
from scripts.benchmark.systems import FloorFs

SCHEMA: Final = 2
MARKER: Final = "<!-- Written by `scripts/bench --write` from here on; what stands above is not. -->"
TITLE: Final = "# Benchmarks\n"

ABOUT: Final = """\
Medians of {rounds}, in which every system does every piece of work, in another order each time; beside them the least and the greatest. A ratio is
backupfs divided by the peer: compare ratios, not figures of different runs.

{facts}

* **CPU** is the user and system time of everything that ran for it: the process that serves the mount, the commands, the loop that makes the
  requests. What the kernel does on threads of its own (btrfs, the disk) is not in it.
* As root in a virtual machine, backupfs and the floor keep idle processors from halting while requests are dense
  ([decision 0010](decisions/0010-processors-kept-awake.md)); the others are served as they come. An idle processor that looks for work is in
  nobody's CPU.
* **Memory** is the most that one process of the system had resident at any time meanwhile; not that of `cp` and its like. Less than what the
  benchmark itself takes, some 30 MiB, is not told apart.
* "Durable" is until `umount`, or the peer's command, has returned. Making the repository does not count. gocryptfs has nothing on the disk then,
  unless the kernel has written it already: therefore the row with the whole disk synced.
* The empty file system (`scripts/emptyfs.py`) keeps names in memory and throws data away: it is what the kernel, libfuse, pyfuse3 and trio cost,
  on the loop that pyfuse3 brings along. It reads zeros.
* "disk" is the file system on which everything lies. btrfs lies in a file on it, on a loop device.
* The size of the repository is what its files take on the disk, the reserve of backupfs (ballast of up to 64 MiB) left out.
* S3QL is in neither Debian 12 nor the Python registry, so it is not run; nor is anything that is not named here.
* A target that is not met stands there as such.
"""

ABOUT_FLOOR: Final = """\
The floor (`scripts/floorfs.py`) serves the same requests on the same loop and puts contents through the same stages in C: boundaries, ids, zstd,
AES-GCM, one file, one `fdatasync` for each `fsync` or for several. It keeps names in memory, stores none, knows no content again and reads nothing
back. A target that it misses as well is out of reach on this loop, as far as a row can be told from its swing; a negative figure says that backupfs
does better than it.
"""
_FLOOR_HEAD: Final = (("what", "target", "backupfs", "the floor", "backupfs takes longer than the floor by"), ("---", "---", "---:", "---:", "---:"))
_MICROSECONDS: Final = {"s": 1e6, "ms": 1e3}


@dataclass(frozen=True)
class Run:
    """What was measured, and under which circumstances."""

    facts: Mapping[str, str | int]
    rounds: int
    scale: float
    files: int
    samples: Samples
    failures: Sequence[str] = ()
    """Pieces of work that came to nothing, and why: a system that is missing from a row is named here, or in the facts, or cannot do that work."""
    parts: Sequence[Samples] = ()
    """What each of several runs found, if this is made of them."""

    def to_json(self) -> dict[str, Any]:
        """Every figure, and the medians, spreads, ratios and verdicts made of them."""
        rows = [self._row_to_json(row, self.samples[row.key]) for work in WORKS for row in work.rows if row.key in self.samples]
        return {
            "schema": SCHEMA,
            "environment": dict(self.facts),
            "rounds": self.rounds,
            "scale": self.scale,
            "files": self.files,
            "failures": list(self.failures),
            "rows": rows,
        }

    def _row_to_json(self, row: Row, found: Found) -> dict[str, Any]:
        systems = {}
        for name, figures in found.items():
            values = asdict(spread([figure.value for figure in figures]))
            cpu_s = spread([figure.cpu_s for figure in figures]).median
            systems[name] = {**values, "cpu_s": cpu_s, "peak_bytes": _peak(figures), "samples": [asdict(figure) for figure in figures]}
        return {
            "key": row.key,
            "title": row.title,
            "unit": row.unit,
            "systems": systems,
            "ratios": {peer: ratio(self.samples, row.key, peer) for peer in systems if peer != PROJECT},
            "targets": [asdict(found) for found in verdicts(row, self.samples)],
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> "Run":
        """ValueError unless this version wrote it."""
        if told.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {told.get('schema')}, not {SCHEMA}: measure anew")
        samples = {
            row["key"]: {name: [Figure(**figure) for figure in system["samples"]] for name, system in row["systems"].items()} for row in told["rows"]
        }
        return cls(told["environment"], told["rounds"], told["scale"], told["files"], samples, told["failures"])


def joined(runs: Sequence[Run]) -> Run:
    """Several runs as one: what was measured in more than one of them has the rounds of all. ValueError unless they are of the same machine and size,
    and every row of one commit.
    """
    first, *others = runs
    for other in others:
        if told := [name for name in first.facts if name not in {"commit", "date"} and other.facts.get(name) != first.facts[name]]:
            raise ValueError(f"these runs differ in {', '.join(told)}: they do not belong in one table")
        if (other.scale, other.files) != (first.scale, first.files):
            raise ValueError("these runs are of different size: they do not belong in one table")
    samples: dict[str, dict[str, list[Figure]]] = {}
    for run in runs:
        for key, found in run.samples.items():
            for system, figures in found.items():
                samples.setdefault(key, {}).setdefault(system, []).extend(figures)
    facts = dict(first.facts)
    if "commit" in facts:
        facts["commit"] = _commits(runs)
    if "date" in facts:
        dates = sorted({str(run.facts["date"]) for run in runs})
        facts["date"] = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    failures = [failure for run in runs for failure in run.failures]
    rounds = max((len(figures) for found in samples.values() for figures in found.values()), default=first.rounds)
    return Run(facts, rounds, first.scale, first.files, samples, failures, [run.samples for run in runs] if others else ())


def _commits(runs: Sequence[Run]) -> str:
    """The commits that were measured, and of those after the first what was. ValueError when a row was measured at several."""
    rows: dict[str, set[str]] = {}
    for run in runs:
        rows.setdefault(str(run.facts["commit"]), set()).update(run.samples)
    if twice := sorted(key for key in set().union(*rows.values()) if sum(key in found for found in rows.values()) > 1):
        raise ValueError(f"these runs are of {' and '.join(rows)} and measured {', '.join(twice)} at both: they do not belong in one table")
    first, *others = rows
    told = [f"{commit} ({', '.join(work.key for work in WORKS if any(row.key in rows[commit] for row in work.rows))})" for commit in others]
    return ", ".join([first, *told])


def _peak(figures: Sequence[Figure]) -> int:
    return max(figure.peak_bytes for figure in figures)


def verdicts(row: Row, samples: Samples) -> list[Verdict]:
    """One for each target."""
    return [verdict(target, samples, row.key, row.unit, more_is_better=row.more_is_better) for target in row.targets]


# --- what a figure depends on -------------------------------------------------------------------------------------


def environment(root: Path, place: Path, missing: Mapping[str, str]) -> dict[str, str | int]:
    """`place` is where it is measured, `missing` says of each system that is not why."""
    facts: dict[str, str | int] = {
        "commit": _first_line(["git", "-C", str(root), "describe", "--always", "--dirty"]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') >> 20} MiB",
        "disk": _first_line(["stat", "--file-system", "--format=%T", str(place)]),
        "Python": platform.python_version(),
        "pyfuse3": _package("pyfuse3"),
        "trio": _package("trio"),
        "caches": "dropped where it says cold" if may_drop_caches() else "never dropped, not even where it says cold: only root may",
    }
    for name, kind in SYSTEMS.items():
        if name in missing:
            facts[f"not measured: {name}"] = missing[name]
        elif told := kind.version():
            facts[name] = told
    return facts


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else "unknown"


# --- for people ---------------------------------------------------------------------------------------------------


def listing(works: Iterable[Work], files: int) -> str:
    """What can be measured, as a table."""
    lines = [("work", "row", "what", "systems", "target"), ("---",) * 5]
    for work in works:
        for row in work.rows:
            targets = "; ".join(found.words for found in verdicts(row, {}))
            lines.append((work.key, row.key, row.title, ", ".join(work.systems), targets or "-"))
    return _with_files(_markdown(lines), files)


def report(run: Run, rows: Iterable[str] | None = None) -> str:
    """Markdown: the targets, then a table for each subject. `rows`: only these."""
    wanted = set(run.samples if rows is None else rows)
    shown = [(work, [row for row in work.rows if row.key in wanted and row.key in run.samples]) for work in WORKS]
    parts = [] if run.scale == 1 else [f"Tried at {number(run.scale)} times the full size: these figures mean nothing.\n"]
    parts += [f"**Failed:** {failure}\n" for failure in run.failures]
    if aimed := [row for _, rows in shown for row in rows if row.targets]:
        parts += ["## Targets\n", _targets(run, aimed)]
        if missed := list(_missed(run, aimed)):
            parts += ["\n## What is missed, and the floor\n", ABOUT_FLOOR, _markdown([*_FLOOR_HEAD, *missed]) + "\n"]
    for subject, pieces in groupby(((work, rows) for work, rows in shown if rows), lambda piece: piece[0].subject):
        parts += [f"\n## {subject}\n", _subject(run, [row for _, rows in pieces for row in rows])]
    return _with_files("\n".join(parts), run.files)


def _with_files(text: str, files: int) -> str:
    return text.replace("{files}", f"{files:,}")


def _targets(run: Run, rows: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = [("what", "backupfs", "target", "measured", "", "in each run"), ("---", "---:", "---", "---:", "---", "---")]
    for row in rows:
        in_parts = zip(*(verdicts(row, part) for part in run.parts), strict=True) if run.parts else [()] * len(row.targets)
        for found, those in zip(verdicts(row, run.samples), in_parts, strict=True):
            lines.append((row.title, _own(run, row), found.words, _measured(found), _met(found), _in_each(those)))
    if not any(line[-1] for line in lines[2:]):
        lines = [line[:-1] for line in lines]
    known = [found for row in rows for found in verdicts(row, run.samples) if found.is_met is not None]
    met = sum(found.is_met is True for found in known)
    return f"{met} of {len(known)} are met.\n\n{_markdown(lines)}\n"


def _missed(run: Run, rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    """A line for each target beside a peer that is not met, where the floor was measured too."""
    for row in rows:
        own, floor = (median(run.samples, row.key, system) for system in (PROJECT, FloorFs.name))
        if own is None or floor is None:
            continue
        for target, found in zip(row.targets, verdicts(row, run.samples), strict=True):
            if found.is_met is False and isinstance(target, Ratio):
                of_floor = target.measured(run.samples, row.key, more_is_better=row.more_is_better, system=FloorFs.name)
                gap_us = 1e6 / own - 1e6 / floor if row.more_is_better else (own - floor) / row.count * _MICROSECONDS[row.unit]
                yield (
                    row.title,
                    found.words,
                    _measured(found),
                    "-" if of_floor is None else number(of_floor),
                    f"{number(gap_us)} µs for each {row.one}",
                )


def _own(run: Run, row: Row) -> str:
    figures = run.samples[row.key].get(PROJECT)
    return f"{number(spread([figure.value for figure in figures]).median)} {row.unit}" if figures else "-"


def _measured(found: Verdict) -> str:
    return "-" if found.measured is None else number(found.measured)


def _in_each(parts: Sequence[Verdict]) -> str:
    """What several runs measured, each by itself; nothing where only one did."""
    measured = [_measured(part) for part in parts if part.measured is not None]
    return " · ".join(measured) if len(measured) > 1 else ""


def _met(found: Verdict) -> str:
    return "not measured" if found.is_met is None else "met" if found.is_met else "**not met**"


def _subject(run: Run, rows: Sequence[Row]) -> str:
    lines: list[tuple[str, ...]] = [
        ("what", "system", "median", "least - greatest", "backupfs / it", "CPU", "memory"),
        ("---", "---", "---:", "---:", "---:", "---:", "---:"),
    ]
    for row in rows:
        lines += _lines_of(run, row)
    return _markdown(lines) + "\n"


def _lines_of(run: Run, row: Row) -> Iterator[tuple[str, ...]]:
    title = row.title
    for system in SYSTEMS:
        if figures := run.samples[row.key].get(system):
            found = spread([figure.value for figure in figures])
            own = ratio(run.samples, row.key, system) if system != PROJECT else None
            cpu_s = spread([figure.cpu_s for figure in figures]).median
            yield (
                title,
                system,
                f"{number(found.median)} {row.unit}",
                f"{number(found.least)} - {number(found.greatest)}",
                "" if own is None else number(own),
                f"{number(cpu_s)} s" if cpu_s else "",
                f"{number(_peak(figures) / MIB)} MiB" if _peak(figures) else "",
            )
            title = ""


def _markdown(lines: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(run: Run, before: str) -> str:
    """docs/benchmarks.md; what is written by hand above the marker stays as it was `before`."""
    by_hand, marker, _ = before.partition(MARKER)
    facts = "\n".join(f"* {name}: {value}" for name, value in run.facts.items())
    lacking = [work.key for work in WORKS if not any(row.key in run.samples for row in work.rows)]
    if lacking:
        facts += f"\n* not measured in this run: {', '.join(lacking)} (`scripts/bench --list` says what that is)"
    head = by_hand if marker else TITLE + "\n"
    return f"{head}{MARKER}\n\n{ABOUT.format(rounds=_rounds(run), facts=facts)}\n{report(run)}"


def _rounds(run: Run) -> str:
    """How often each piece of work was done, as in "medians of ..."; what was done less often is named."""
    counts = {work.key: len(figures) for work in WORKS for row in work.rows if (figures := run.samples.get(row.key, {}).get(PROJECT))}
    words = "one round" if run.rounds == 1 else f"{run.rounds} interleaved rounds"
    others = [f"{key}: {count}" for key, count in counts.items() if count != run.rounds]
    return f"{words} ({', '.join(others)})" if others else words
