"""Runs many seeds of the comparison with ext4, for a night or as long as wanted; what was done so far is kept and gone on from.

    python -m tests.posix.side_by_side FIRST LAST [--progress FILE] [--sequences N] [--small] [--survey] [--calls]

Each seed is N sequences of 100 steps. With `--progress` a run that was ended goes on where it was. It stops at the first difference, which the same
seed finds again; with `--survey` it goes on and tells at the end which kinds of differences there were. A run does not shrink what it finds when it
surveys. The exit code is 1 when there was a difference.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from hypothesis.errors import FlakyStrategyDefinition, Unsatisfiable

from tests.mounted import workspace
from tests.posix.grounds import SMALL, MountGround, compare_recent, ext4, mount
from tests.posix.machine import Counts, Difference, run_sequences


def _load(progress: Path | None) -> tuple[int | None, Counts]:
    """The seed to go on with and what was done before."""
    if progress is None or not progress.exists():
        return None, Counts()
    kept = json.loads(progress.read_text())
    return kept.pop("next_seed"), Counts(**kept)


def _save(progress: Path | None, next_seed: int, counts: Counts) -> None:
    if progress is not None:
        written = progress.with_suffix(".new")
        written.write_text(json.dumps({"next_seed": next_seed} | counts.as_dict()))
        os.replace(written, progress)


def _run(options: argparse.Namespace, base: Path, ground: MountGround, first: int, counts: Counts) -> None:
    begin_s, steps = time.monotonic(), counts.steps
    for seed in range(first, options.last + 1):
        try:
            run_sequences(base, ground, counts, first_seed=seed, sequences=options.sequences)
        except (FlakyStrategyDefinition, Unsatisfiable):
            if counts.survey is None:
                raise
        except Difference:
            print(f"seed {seed}:")
            raise
        _save(options.progress, seed + 1, counts)
        rate = (counts.steps - steps) / (time.monotonic() - begin_s)
        print(f"seed {seed}: {counts.shown()}; {rate:.0f} steps a second", flush=True)
    ground.losing_index()
    counts.snapshots += compare_recent(ground.recent)


def _tell(counts: Counts, with_calls: bool) -> None:
    for kind, (often, first) in (counts.survey or {}).items():
        print(f"\n{often} times {kind}\n{first}")
    if with_calls:
        for call, (done, refused) in sorted(counts.calls.items()):
            print(f"{call}: {done} done, {refused} refused")
    print(counts.shown())


def main(arguments: list[str]) -> int:
    """The command line of the module's docstring."""
    parser = argparse.ArgumentParser(prog="side_by_side", description="The same random calls on ext4 and on a mount, seed after seed.")
    parser.add_argument("first", type=int)
    parser.add_argument("last", type=int)
    parser.add_argument("--progress", type=Path, help="a file that keeps how far it has come")
    parser.add_argument("--sequences", type=int, default=20, help="sequences a seed")
    parser.add_argument("--small", action="store_true", help="with limits at which everything fills up soon")
    parser.add_argument("--survey", action="store_true", help="go on after a difference")
    parser.add_argument("--calls", action="store_true", help="tell how often each call was done and refused")
    options = parser.parse_args(arguments)
    next_seed, counts = _load(options.progress)
    if options.survey:
        counts.survey = {}
    try:
        with workspace() as place, ext4(place) as base, mount(place, SMALL if options.small else {}) as ground:
            _run(options, base, ground, options.first if next_seed is None else next_seed, counts)
    finally:
        _tell(counts, options.calls)
    return 1 if counts.survey else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
