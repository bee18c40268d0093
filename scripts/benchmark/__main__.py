"""The command line: `scripts/bench --help`."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from scripts.benchmark.figures import Figure
from scripts.benchmark.processes import Processes
from scripts.benchmark.report import Run, document, environment, joined, listing, report
from scripts.benchmark.rows import SYSTEMS, WORKS, Work
from scripts.benchmark.setting import Setting
from scripts.benchmark.sources import Sources

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WARM_UP_SCALE: Final = 0.01
FILES: Final = 1_000_000


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures backupfs and its peers in one run, interleaved: medians, spreads, ratios, targets, processor time and memory.",
    )
    parser.add_argument("--list", action="store_true", help="say what can be measured, and end")
    parser.add_argument("--rows", default="", metavar="A,B", help="works or single rows (default: all; `day` takes an hour or two a round)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), metavar="A,B", help=f"of: {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="less than 1 for a try: its figures mean nothing")
    parser.add_argument(
        "--files", type=int, default=FILES, help=f"how many files are many (default: {FILES:,}, which takes a quarter of an hour a round)"
    )
    parser.add_argument("--directory", type=Path, help="where to work: a disk with 20 GiB free (default: TMPDIR)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too, after each piece of work")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="sources", action="append", help="measure nothing: report what --json wrote; may be given again"
    )
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md (needs full scale)")
    options = parser.parse_args(arguments)
    known = {work.key for work in WORKS} | {row.key for work in WORKS for row in work.rows}
    options.rows = options.rows.split(",") if options.rows else [work.key for work in WORKS]
    options.systems = options.systems.split(",")
    if unknown := [key for key in options.rows if key not in known] + [n for n in options.systems if n not in SYSTEMS]:
        parser.error(f"no such rows or systems: {', '.join(unknown)}")
    if options.rounds < 1:
        parser.error("at least one round")
    if not 0 < options.scale <= 1 or options.files < 1:
        parser.error("--scale is above 0 and at most 1, --files at least 1")
    return options


def _complain(words: str) -> None:
    """To the person who waits."""
    print(words, file=sys.stderr, flush=True)


class _Measuring:
    """One run. Figures are written after each piece of work, so that an interruption costs only that one."""

    def __init__(self, works: Sequence[Work], systems: Sequence[str], place: Path) -> None:
        self._works = works
        self._systems = systems
        self._place = place
        self._processes = Processes()
        self.samples: dict[str, dict[str, list[Figure]]] = {}
        self.failures: list[str] = []

    def warm_up(self) -> None:
        """The first touch of a machine's memory is slow, and so is the first call of each program: each system does one piece of work."""
        code = f"block = bytearray({1 << 30}); block[::4096] = b'x' * ({1 << 30} // 4096)"
        self._processes.run([sys.executable, "-c", code])
        setting = self._setting(WARM_UP_SCALE, 1000, "small")
        for system in self._systems:
            for work in self._works:
                if system in work.systems:
                    self._measure(work, system, setting)
                    break
        self.samples.clear()

    def full(self, scale: float, files: int) -> Setting:
        """What is to be measured."""
        _complain("making the sources")
        return self._setting(scale, max(20, round(files * scale)), "full")

    def _setting(self, scale: float, files: int, name: str) -> Setting:
        place = self._place / name
        place.mkdir()
        kinds = sorted({kind for work in self._works for kind in work.needs})
        self._processes.run([sys.executable, "-m", "scripts.benchmark.sources", place, str(scale), str(files), *kinds])
        return Setting(Sources(place), self._place, scale, files, self._processes)

    def rounds(self, count: int, setting: Setting, note: Callable[[], None]) -> None:
        """In each round every system does every piece of work, the systems in another order each time."""
        for number in range(count):
            for work in self._works:
                taking_part = [system for system in self._systems if system in work.systems]
                turn = number % max(1, len(taking_part))
                for system in taking_part[turn:] + taking_part[:turn]:
                    began = time.monotonic()
                    what = f"round {number + 1} of {count}: {work.key}, {system}"
                    try:
                        self._measure(work, system, setting)
                    except Exception as error:  # an hour of measuring is not thrown away: the report and the exit code tell it
                        if _was_ended(error):
                            raise
                        self.failures.append(f"{what}: {type(error).__name__}: {error}")
                        _complain(traceback.format_exc())
                    _complain(f"{what}: {time.monotonic() - began:.0f} s")
                    note()

    def _measure(self, work: Work, system: str, setting: Setting) -> None:
        place = Path(tempfile.mkdtemp(dir=self._place))
        here = Setting(setting.sources, place, setting.scale, setting.files, setting.processes)
        try:
            for key, figure in work.systems[system].measure(here).items():
                self.samples.setdefault(key, {}).setdefault(system, []).append(figure)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _was_ended(error: BaseException) -> bool:
    """Whether it happened while the run was being ended, as when a mount is busy with what was interrupted."""
    cause = error.__context__
    return isinstance(error, SystemExit | KeyboardInterrupt) or (cause is not None and _was_ended(cause))


def _measured(options: argparse.Namespace, works: Sequence[Work]) -> Run:
    missing = {name: reason for name in options.systems if (reason := SYSTEMS[name].missing())}
    for name, reason in missing.items():
        _complain(f"without {name}: {reason}")
    systems = [name for name in options.systems if name not in missing]
    place = Path(tempfile.mkdtemp(prefix="backupfs-bench-", dir=options.directory))
    facts = environment(ROOT, place, missing)
    measuring = _Measuring(works, systems, place)

    def so_far() -> Run:
        return Run(facts, options.rounds, options.scale, options.files, measuring.samples, measuring.failures)

    def note() -> None:
        if options.json:
            aside = options.json.with_name(options.json.name + ".new")
            aside.write_text(json.dumps(so_far().to_json(), indent=1) + "\n", encoding="utf-8")
            aside.replace(options.json)

    try:
        _complain(f"working below {place}; warming up")
        measuring.warm_up()
        measuring.rounds(options.rounds, measuring.full(options.scale, options.files), note)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return so_far()


def main(arguments: list[str]) -> int:
    """The exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is mounted is to be unmounted all the same
    options = _arguments(arguments)
    works = [work for work in WORKS if work.key in options.rows or any(row.key in options.rows for row in work.rows)]
    if options.list:
        print(listing(works, options.files))
        return 0
    if options.sources:
        try:
            run = joined([Run.from_json(json.loads(source.read_bytes())) for source in options.sources])
        except (OSError, ValueError) as error:
            _complain(f"--from: {error}")
            return 1
    else:
        run = _measured(options, works)
    keys = [row.key for work in works for row in work.rows if work.key in options.rows or row.key in options.rows]
    print(report(run, keys))
    if options.write:
        if run.failures or run.scale != 1 or run.files != FILES:
            _complain("docs/benchmarks.md is for what was measured at full scale and did not fail: left alone")
            return 1
        target = ROOT / "docs" / "benchmarks.md"
        target.write_text(document(run, target.read_text(encoding="utf-8")), encoding="utf-8")
        _complain(f"wrote {os.path.relpath(target)}")
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
