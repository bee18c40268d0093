"""The command line: `scripts/bench --help`."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from scripts.benchmark.report import SYSTEMS, as_json, complain, document, environment, table
from scripts.benchmark.rows import GROUPS, Group, Setting
from scripts.benchmark.sources import MIB, Sources, make_sources

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WARM_UP_SCALE: Final = 0.01


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Times backupfs and its peers in one run, interleaved, and prints medians, spreads and ratios.",
    )
    keys = [group.key for group in GROUPS]
    parser.add_argument("--rows", default=",".join(keys), help=f"groups of rows, of: {', '.join(keys)}")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a try: its figures mean nothing")
    parser.add_argument("--directory", type=Path, help="where to work: a disk with 10 GiB free (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md (needs all rows at full scale)")
    options = parser.parse_args(arguments)
    options.rows = options.rows.split(",")
    options.systems = options.systems.split(",")
    if unknown := [key for key in options.rows if key not in keys] + [n for n in options.systems if n not in SYSTEMS]:
        parser.error(f"no such rows or systems: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("at least one round")
    if options.write and (options.scale != 1 or set(options.rows) != set(keys)):
        parser.error("--write is for all rows at full scale")
    if "borg" in options.systems and not shutil.which("borg"):
        complain("borg is not installed: measured without it")
        options.systems.remove("borg")
    return options


def _warm_memory() -> None:
    """The first touch of a machine's memory is slow; after this a run finds it as the next one will."""
    block = bytearray(1024 * MIB)
    block[::4096] = b"x" * len(range(0, len(block), 4096))


def _measure(group: Group, system: str, setting: Setting, samples: dict[str, dict[str, list[float]]]) -> None:
    for key, figure in group.systems[system](setting).items():
        samples.setdefault(key, {}).setdefault(system, []).append(figure)


def _measure_all(
    groups: list[Group], systems: list[str], rounds: int, scale: float, sources: Sources, place: Path
) -> dict[str, dict[str, list[float]]]:
    """In each round every system does every group, the systems in another order each time."""
    samples: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for group in groups:
            taking_part = [system for system in systems if system in group.systems]
            turn = number % max(1, len(taking_part))
            for system in taking_part[turn:] + taking_part[:turn]:
                complain(f"round {number + 1} of {rounds}: {group.key}, {system}")
                run_place = Path(tempfile.mkdtemp(dir=place))
                _measure(group, system, Setting(sources, run_place, scale), samples)
                shutil.rmtree(run_place)
    return samples


def main(arguments: list[str]) -> int:
    """The exit code."""
    options = _arguments(arguments)
    groups = [group for group in GROUPS if group.key in options.rows]
    kinds = {kind for group in groups for kind in group.needs}
    place = Path(tempfile.mkdtemp(prefix="backupfs-bench-", dir=options.directory))
    try:
        complain(f"working below {place}")
        for name in ("small", "full"):
            (place / name).mkdir()
        complain("warming up")
        _warm_memory()
        small = make_sources(place / "small", WARM_UP_SCALE, kinds)
        _measure_all(groups, options.systems, 1, WARM_UP_SCALE, small, place)
        complain("making the sources")
        sources = make_sources(place / "full", options.scale, kinds)
        samples = _measure_all(groups, options.systems, options.rounds, options.scale, sources, place)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    facts = environment(ROOT)
    print(table(groups, samples))
    result = as_json(groups, samples, facts, options.scale)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.write:
        target = ROOT / "docs" / "benchmarks.md"
        target.write_text(document(groups, samples, facts, options.rounds), encoding="utf-8")
        complain(f"wrote {os.path.relpath(target)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
