"""The figures as a table and as JSON."""

import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from scripts.benchmark.rows import Group, Row, may_drop_caches

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Row key -> system -> one figure per round."""

SYSTEMS: Final = ("backupfs", "empty fs", "borg", "disk")
SCHEMA: Final = 1

ABOUT: Final = """\
# Benchmarks

Written by `scripts/bench --write`. Medians of {rounds} interleaved rounds, in brackets the least and the greatest; a
ratio is backupfs divided by the peer. All sides ran in one go on one machine: compare ratios, not figures of different
runs.

{facts}
* "Durable" is until `umount`, or Borg's command, has returned. Borg's time includes `borg init -e repokey`; the time of
  `backupfs init` is not included, since its key derivation is calibrated to last half a second.
* The empty file system (`scripts/emptyfs.py`) keeps names in memory and throws data away: it is what the kernel,
  libfuse, pyfuse3 and trio cost. It reads zeros.
* A target that is not met stands in the table as such.

{table}
"""


def environment(root: Path) -> dict[str, str | int]:
    """What a figure depends on."""
    return {
        "commit": _first_line(["git", "-C", str(root), "describe", "--always", "--dirty"]),
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20,
        "python": platform.python_version(),
        "pyfuse3": _package("pyfuse3"),
        "trio": _package("trio"),
        "borg": _first_line(["borg", "--version"]) if shutil.which("borg") else "not installed",
        "cold_caches": "dropped" if may_drop_caches() else "not dropped: only root may",
    }


def _package(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0] if done.returncode == 0 else "unknown"


def table(groups: Iterable[Group], samples: Samples) -> str:
    """Markdown, one line per row that was measured."""
    rows = [row for group in groups for row in group.rows if row.key in samples]
    systems = [name for name in SYSTEMS if any(name in samples[row.key] for row in rows)]
    peers = [name for name in systems if name != "backupfs"] if "backupfs" in systems else []
    lines = [["", *systems, *(f"/ {peer}" for peer in peers), "target"]]
    for row in rows:
        found = samples[row.key]
        figures = [_figure(found[name], row.unit) if name in found else "-" for name in systems]
        ratios = [_shown(ratio(found, peer)) for peer in peers]
        lines.append([row.title, *figures, *ratios, "; ".join(_verdicts(row, found))])
    lines.insert(1, ["---", *("---:" for _ in lines[0][1:-1]), "---"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio(found: Mapping[str, Sequence[float]], peer: str) -> float | None:
    """The project's median divided by the peer's; None unless both were measured."""
    if "backupfs" not in found or peer not in found:
        return None
    return statistics.median(found["backupfs"]) / statistics.median(found[peer])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _verdicts(row: Row, found: Mapping[str, Sequence[float]]) -> Iterable[str]:
    for target in row.targets:
        value = ratio(found, target.peer)
        words = f"{'at most' if row.lower_is_better else 'at least'} {target.ratio} x {target.peer}"
        if value is None:
            yield words
        else:
            met = value <= target.ratio if row.lower_is_better else value >= target.ratio
            yield f"{words}: {'met' if met else '**not met**'}"


def _figure(values: Sequence[float], unit: str) -> str:
    least, middle, greatest = min(values), statistics.median(values), max(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:,.{digits}f} {unit} ({least:,.{digits}f}-{greatest:,.{digits}f})"


def as_json(groups: Iterable[Group], samples: Samples, facts: Mapping[str, object], scale: float) -> dict[str, object]:
    """Every figure, and the medians, spreads and ratios made of them."""
    rows = []
    for row in (row for group in groups for row in group.rows if row.key in samples):
        systems = {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": list(values)}
            for name, values in samples[row.key].items()
        }
        ratios = {peer: ratio(samples[row.key], peer) for peer in systems if peer != "backupfs"}
        rows.append({"key": row.key, "title": row.title, "unit": row.unit, "systems": systems, "ratios": ratios})
    return {"schema": SCHEMA, "environment": dict(facts), "scale": scale, "rows": rows}


def document(groups: Iterable[Group], samples: Samples, facts: Mapping[str, object], rounds: int) -> str:
    """docs/benchmarks.md."""
    lines = "\n".join(f"* {name.replace('_', ' ')}: {value}" for name, value in facts.items())
    return ABOUT.format(rounds=rounds, facts=lines, table=table(groups, samples))


def complain(words: str) -> None:
    """To the person who waits."""
    print(words, file=sys.stderr, flush=True)
