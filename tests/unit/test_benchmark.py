"""What scripts/bench says of what it measured: medians, ratios, targets, tables, and the table of rows itself."""

import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.__main__ import _was_ended
from scripts.benchmark.figures import Absolute, Figure, OtherRow, Ratio, Samples, Verdict, number, ratio, spread, verdict
from scripts.benchmark.processes import CommandFailedError, Processes
from scripts.benchmark.report import MARKER, Run, document, joined, listing, report
from scripts.benchmark.rows import SYSTEMS, WORKS
from scripts.benchmark.snapshots import spread_out
from scripts.benchmark.sources import Sources, edit, main

FINITE = st.floats(min_value=1e-3, max_value=1e6)


def samples(**rows: dict[str, list[float]]) -> Samples:
    return {
        row.replace("_", "-"): {name: [Figure(value, 0.5, 3 << 20) for value in values] for name, values in found.items()}
        for row, found in rows.items()
    }


# --- figures --------------------------------------------------------------------------------------------------------


@given(st.lists(FINITE, min_size=1))
def test_a_spread_holds_every_value_and_half_of_them_on_either_side(values: list[float]) -> None:
    found = spread(values)
    assert found.least == min(values)
    assert found.greatest == max(values)
    assert sum(value <= found.median for value in values) * 2 >= len(values)
    assert sum(value >= found.median for value in values) * 2 >= len(values)


@given(st.lists(FINITE, min_size=1), st.lists(FINITE, min_size=1))
def test_a_ratio_is_that_of_the_medians_and_turns_over_with_the_sides(own: list[float], other: list[float]) -> None:
    found = ratio(samples(row={"backupfs": own, "borg": other}), "row", "borg")
    turned = ratio(samples(row={"backupfs": other, "borg": own}), "row", "borg")
    assert found == statistics.median(own) / statistics.median(other)
    assert turned is not None
    assert math.isclose(found * turned, 1)


def test_there_is_no_ratio_without_both_sides_nor_to_nothing() -> None:
    assert ratio(samples(row={"borg": [1]}), "row", "borg") is None
    assert ratio(samples(row={"backupfs": [1]}), "row", "borg") is None
    assert ratio(samples(row={"backupfs": [1], "borg": [0]}), "row", "borg") is None
    assert ratio({}, "row", "borg") is None


FOUND = samples(row={"backupfs": [9, 10, 11], "borg": [20], "restic": [8]}, other_row={"backupfs": [5]})


@pytest.mark.parametrize(
    ("target", "more_is_better", "expected"),
    [
        (Ratio(0.5, ("borg",)), False, Verdict("at most 0.5 x borg", 0.5, True)),
        (Ratio(0.5, ("borg",)), True, Verdict("at least 0.5 x borg", 0.5, True)),
        (Ratio(0.49, ("borg",)), False, Verdict("at most 0.49 x borg", 0.5, False)),
        (Ratio(0.51, ("borg",)), True, Verdict("at least 0.51 x borg", 0.5, False)),
        (Ratio(1.05, ("borg", "restic")), False, Verdict("at most 1.05 x the best of borg and restic", 1.25, False)),
        (Ratio(1.25, ("borg", "restic")), False, Verdict("at most 1.25 x the best of borg and restic", 1.25, True)),
        (Ratio(0.6, ("borg", "restic")), True, Verdict("at least 0.6 x the best of borg and restic", 0.5, False)),
        (Ratio(1, ("borg", "gocryptfs")), False, Verdict("at most 1 x the best of borg and gocryptfs", None, None)),
        (Absolute(10), False, Verdict("at most 10 ms", 10, True)),
        (Absolute(9.5), False, Verdict("at most 9.5 ms", 10, False)),
        (Absolute(10), True, Verdict("at least 10 ms", 10, True)),
        (OtherRow(1.5, "other-row", "that of few"), False, Verdict("at most 1.5 x that of few", 2, False)),
        (OtherRow(2, "other-row", "that of few"), False, Verdict("at most 2 x that of few", 2, True)),
        (OtherRow(2, "no-row", "that of none"), False, Verdict("at most 2 x that of none", None, None)),
    ],
)
def test_a_target_is_met_up_to_its_limit(target: Ratio | Absolute | OtherRow, more_is_better: bool, expected: Verdict) -> None:
    assert verdict(target, FOUND, "row", "ms", more_is_better=more_is_better) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (0.5, "0.5"), (2 / 3, "0.667"), (1, "1"), (1.05, "1.05"), (12.34, "12.3"), (100, "100"), (123456.7, "123,457")],
)
def test_a_number_shows_the_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text


# --- the table of rows ----------------------------------------------------------------------------------------------


def test_every_row_is_named_once_and_its_targets_can_be_judged() -> None:
    keys = [row.key for work in WORKS for row in work.rows]
    assert len(keys) == len(set(keys))
    assert len(WORKS) == len({work.key for work in WORKS})
    for work in WORKS:
        assert "backupfs" in work.systems
        assert set(work.systems) <= set(SYSTEMS)
        for row in work.rows:
            for target in row.targets:
                assert not isinstance(target, Ratio) or set(target.peers) < set(work.systems)
                assert not isinstance(target, OtherRow) or target.row in keys


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("copy-in", "at most 0.667 x borg; at most 0.667 x restic; at most 1 x gocryptfs"),
        ("copy-back", "at most 1 x restic"),
        ("tree", "at most 1 x empty fs; at most 1 x gocryptfs"),
        ("rename", "at least 1 x empty fs; at least 1 x gocryptfs"),
        ("snapshot-few", "at most 10 ms"),
        ("many-snapshot", "at most 10 ms; at most 1.5 x that of 1,000 files"),
        ("snapshot-hold", "at most 50 ms"),
        ("stream", "at least 500 MiB/s"),
        ("fsync", "at most 3 x disk"),
        ("overwrite", "at most 1 x gocryptfs"),
        ("overwrite-amplification", "at most 2 x"),
        ("size-dump", "at most 1.05 x the best of borg and restic"),
        ("many-resident", "at most 300 MiB"),
        ("many-mount-killed", "at most 2 s"),
        ("many-rebuild", "at most 60 s"),
        ("past-snapshot", "at most 10 ms; at most 1.5 x that of 1,000 files"),
        ("nominal-resident", "at most 300 MiB"),
        ("day-resident", "at most 300 MiB"),
        ("day-growth", "at most 1 MiB"),
        ("idle", "at most 0.1 %"),
    ],
)
def test_what_is_aimed_at_is_what_was_promised(row: str, words: str) -> None:
    (line,) = [line for line in listing(WORKS, 1_000_000).splitlines() if f"| {row} | " in line and not line.startswith("| work")][:1]
    assert line.endswith(f"| {words} |")


# --- the report -----------------------------------------------------------------------------------------------------

RUN = Run(
    {"kernel": "6.1"},
    rounds=3,
    scale=1,
    files=1000,
    samples=samples(
        copy_back={"restic": [2, 4, 3], "backupfs": [3, 2, 1]},
        fsync={"backupfs": [4], "disk": [1]},
        many_mount={"backupfs": [0.25]},
        tree_remove={"empty fs": [1]},
    ),
)


def test_a_report_shows_targets_first_and_then_every_figure_below_its_subject() -> None:
    text = report(RUN)
    assert "1 of 2 are met." in text
    assert "| copy 1 GiB back from a snapshot, caches cold | 2 s | at most 1 x restic | 0.667 | met |" in text
    assert "| append 4 KiB and fsync: median | 4 ms | at most 3 x disk | 4 | **not met** |" in text
    copy, tree, rest = text.index("## A large copy"), text.index("## A tree of small files"), text.index("## 1,000 files")
    assert copy < tree < text.index("## Small writes") < rest
    assert "| copy 1 GiB back from a snapshot, caches cold | backupfs | 2 s | 1 - 3 |  | 0.5 s | 3 MiB |\n|  | restic | 3 s | 2 - 4 | 0.667 |" in text
    assert "| mount 1,000 files and 1,000 snapshots after a clean end | backupfs | 0.25 s | 0.25 - 0.25 |" in text[rest:]
    assert "| `rm -rf` of that tree | empty fs | 1 s | 1 - 1 |  |" in text[tree:rest]


def test_a_target_that_is_missed_stands_beside_what_the_floor_would_make_of_it() -> None:
    found = samples(
        fsync={"backupfs": [1], "disk": [0.1], "floor": [0.4]},
        create={"backupfs": [5000], "empty fs": [4000], "gocryptfs": [10_000], "floor": [20_000]},
        tree={"backupfs": [8], "empty fs": [7], "gocryptfs": [9], "floor": [4]},
        unlink={"backupfs": [5000], "empty fs": [4000], "gocryptfs": [10_000]},
    )
    text = report(replace(RUN, samples=found))
    table = text[text.index("## What is missed") : text.index("\n## A tree")]
    assert "| append 4 KiB and fsync: median | at most 3 x disk | 10 | 4 | 600 µs for each operation |" in table
    assert "| create | at least 1 x gocryptfs | 0.5 | 2 | 150 µs for each operation |" in table
    assert "| `cp -a` of 20,000 files in 400 directories | at most 1 x empty fs | 1.14 | 0.571 | 200 µs for each file |" in table
    assert table.count("\n| ") == 5, "nothing of what is met or was not measured"
    assert "What is missed" not in report(RUN)


def test_a_report_of_some_rows_is_silent_about_the_others() -> None:
    text = report(RUN, ["fsync"])
    assert "append 4 KiB" in text
    assert "copy 1 GiB" not in text
    assert "0 of 1 are met." in text
    assert "Targets" not in report(RUN, ["tree-remove"])


def test_a_try_and_a_failure_are_called_that() -> None:
    assert "mean nothing" in report(replace(RUN, scale=0.05))
    assert "mean nothing" not in report(RUN)
    assert "**Failed:** copy, borg: no space" in report(replace(RUN, failures=["copy, borg: no space"]))


def test_a_run_comes_back_from_its_json() -> None:
    told = json.loads(json.dumps(RUN.to_json()))
    assert Run.from_json(told).samples == RUN.samples
    assert report(Run.from_json(told)) == report(RUN)
    (row,) = [row for row in told["rows"] if row["key"] == "copy-back"]
    assert row["ratios"] == {"restic": 2 / 3}
    assert row["systems"]["backupfs"]["median"] == 2
    assert row["targets"] == [{"words": "at most 1 x restic", "measured": 2 / 3, "is_met": True}]
    with pytest.raises(ValueError, match="measure anew"):
        Run.from_json({**told, "schema": 1})


def test_runs_are_joined_round_by_round_if_they_are_of_the_same_thing() -> None:
    run = replace(RUN, facts={"kernel": "6.1", "date": "2026-01-01"})
    other = replace(run, facts={"kernel": "6.1", "date": "2026-02-01"}, samples=samples(fsync={"backupfs": [6, 8]}, stream={"backupfs": [9]}))
    both = joined([run, replace(other, failures=["stream, disk: no space"])])
    assert both.samples["fsync"] == samples(fsync={"backupfs": [4, 6, 8], "disk": [1]})["fsync"]
    assert both.samples["stream"] == other.samples["stream"]
    assert both.samples["copy-back"] == run.samples["copy-back"]
    assert both.facts["date"] == "2026-01-01 to 2026-02-01"
    assert list(both.failures) == ["stream, disk: no space"]
    assert joined([run]) == replace(run, failures=[])
    assert "in each run" not in report(joined([run]))
    targets = report(joined([run, replace(run, samples=samples(fsync={"backupfs": [6, 8], "disk": [2]}))]))
    assert "| measured |  | in each run |" in targets
    assert [line.split(" | ")[3:] for line in targets.splitlines() if line.startswith("| append 4 KiB and fsync: median | 6 ms | at most 3 x")] == [
        ["4", "**not met**", "4 · 3.5 |"]
    ]
    assert "Medians of 3 interleaved rounds (stream: 1, many: 1), in which" in document(both, "")
    later = replace(other, facts={"kernel": "6.1", "date": "2026-03-01", "commit": "bbb"}, samples=samples(stream={"backupfs": [9]}))
    earlier = replace(run, facts={"kernel": "6.1", "date": "2026-01-01", "commit": "aaa"})
    assert joined([earlier, later]).facts["commit"] == "aaa, bbb (stream)"
    with pytest.raises(ValueError, match="of aaa and bbb and measured fsync at both: they do not belong in one table"):
        joined([earlier, replace(later, samples=other.samples)])
    for unlike in (replace(other, facts={"kernel": "6.2"}), replace(other, files=1001), replace(other, scale=0.5)):
        with pytest.raises(ValueError, match="do not belong in one table"):
            joined([run, unlike])


def test_what_is_written_by_hand_above_the_marker_stays() -> None:
    once = document(RUN, "# Title\n\nBy hand.\n\n" + MARKER + "\n\nold figures\n")
    assert once.startswith("# Title\n\nBy hand.\n\n" + MARKER)
    assert "old figures" not in once
    assert "* kernel: 6.1" in once
    assert "3 interleaved rounds" in once
    assert document(RUN, once) == once
    assert "* not measured in this run: " in once, "a part of everything is no secret"
    assert document(replace(RUN, rounds=1), "# Something else\n").startswith("# Benchmarks\n\n" + MARKER)


# --- data -----------------------------------------------------------------------------------------------------------


def _texts(place: Path) -> Path:
    for n in range(60):
        path = place / f"d{n % 7}" / f"file-{n}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(b"line %d of %d\n" % (line, n) for line in range(40)))
    return place


def _content(place: Path) -> dict[str, bytes]:
    return {os.path.relpath(os.path.join(here, name), place): Path(here, name).read_bytes() for here, _, names in os.walk(place) for name in names}


def test_the_next_version_of_a_tree_is_the_same_each_time_and_like_the_one_before(tmp_path: Path) -> None:
    one, two = _texts(tmp_path / "one"), _texts(tmp_path / "two")
    before = _content(one)
    edited = edit(one, 1)
    assert [edit(two, 1), _content(two)] == [edited, _content(one)]
    after = _content(one)
    same = {path for path, content in after.items() if before.get(path) == content}
    assert len(before) == len(after) == 60
    assert len(same) >= 60 - 2 - len(edited)
    assert len(set(before) - set(after)) == len(set(after) - set(before)) == 2
    assert {str(path) for path in edited} >= {path for path in set(before) & set(after) if before[path] != after[path]}
    edit(one, 2)
    assert _content(one) != after


def test_sources_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        main(str(tmp_path / name), "0.0005", "3", "many", "dump")
    one, two = Sources(tmp_path / "one"), Sources(tmp_path / "two")
    assert sorted(_content(one.many)) == ["0/0", "0/1", "0/2"]
    first, second = ((one.dump / str(version)).read_bytes().splitlines() for version in (0, 1))
    assert _content(one.dump) == _content(two.dump)
    assert len(second) == len(first) + 100 * 50
    assert set(first) < set(second)


def test_files_are_picked_from_all_directories_in_turn(tmp_path: Path) -> None:
    _texts(tmp_path)
    found = spread_out(tmp_path, 15)
    assert len(set(found)) == 15
    assert sorted({path.partition("/")[0] for path in found[:7]}) == [f"d{n}" for n in range(7)]
    assert len(spread_out(tmp_path, 1000)) == 60


def test_a_run_that_is_ended_does_not_go_on_with_the_next_piece_of_work() -> None:
    def fail(interruption: BaseException) -> None:
        try:
            raise interruption
        finally:
            raise OSError("the mount is busy")

    for interruption, ended in ((SystemExit(143), True), (KeyboardInterrupt(), True), (ValueError(), False)):
        with pytest.raises(OSError, match="busy") as caught:
            fail(interruption)
        assert _was_ended(caught.value) is ended


# --- what a program costs -------------------------------------------------------------------------------------------

BUSY = """
import signal, sys, time
held = b"x" * (120 << 20)
while time.process_time() < 0.2:
    pass
open(sys.argv[1], "w").close()
if sys.argv[2:]:
    signal.pause()
"""


def apart(work: Callable[[Processes], None]) -> None:
    """In a process that has no other children and takes in orphans; fails as the work does."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            work(Processes())
            code = 0
        except BaseException:  # noqa: BLE001 nothing of the tests may go on in here
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def test_what_programs_use_is_counted_when_they_have_ended_and_when_they_run_on(tmp_path: Path) -> None:
    def use(processes: Processes) -> None:
        ended = processes.measure(lambda: processes.run([sys.executable, "-c", BUSY, tmp_path / "ended"]))
        assert ended.cpu_s >= 0.2
        assert ended.peak_bytes >= 120 << 20
        unseen = processes.measure(lambda: processes.run([sys.executable, "-c", BUSY, tmp_path / "unseen"], counts=False))
        assert unseen.cpu_s >= 0.2
        assert unseen.peak_bytes < ended.peak_bytes

        def leave_behind() -> None:
            processes.run(["sh", "-c", '"$@" &', "sh", sys.executable, "-c", BUSY, tmp_path / "daemon", "stay"])
            (tmp_path / "daemon").read_bytes()  # until it has opened and closed the other end: waiting takes no processor time that would count

        os.mkfifo(tmp_path / "daemon")

        daemon = processes.measure(leave_behind)
        assert daemon.cpu_s >= 0.2
        assert daemon.peak_bytes >= 120 << 20
        assert processes.measure(lambda: None).cpu_s < 0.2
        (pid,) = processes._reap()
        assert processes.is_running(pid)
        processes.kill(pid)
        assert not processes.is_running(pid)

    apart(use)


def test_a_program_that_fails_says_why() -> None:
    def fail(processes: Processes) -> None:
        with pytest.raises(CommandFailedError, match="ended with 3: it is broken"):
            processes.run(["sh", "-c", "echo it is broken >&2; exit 3"])

    apart(fail)


def test_several_processes_do_their_work_at_the_same_time() -> None:
    def work(processes: Processes) -> None:
        assert processes.together(3, lambda number: [number, 2 * number]) == [[0, 0], [1, 2], [2, 4]]
        with pytest.raises(CommandFailedError, match="one of 2 processes"):
            processes.together(2, lambda number: [1 / number])

    apart(work)
