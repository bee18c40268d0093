"""Where records go, and that no log grows without bound."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.service.log import BoundedFile, JournalFormatter, RecentTrouble, goes_to_journal, logging_to
from tests.conftest import LogRule


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("backupfs.part", level, __file__, 1, message, (), None)


def test_the_last_bad_records_are_kept_and_no_more() -> None:
    recent = RecentTrouble()
    for number in range(limits.STATUS_ERRORS_MAX + 5):
        recent.handle(record(logging.WARNING, f"bad {number}"))
    kept = recent.kept()
    assert [trouble.message for trouble in kept] == [f"bad {n}" for n in range(5, limits.STATUS_ERRORS_MAX + 5)]
    assert {(trouble.level, trouble.source) for trouble in kept} == {("WARNING", "backupfs.part")}


def test_file_and_predecessor_stay_within_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "log"
    handler = BoundedFile(path, take_stdio=False, bytes_max=10_000)
    for number in range(1000):
        handler.handle(record(logging.INFO, f"{number:090d}"))
    handler.close()
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) == 2
    assert sum(sizes) <= 10_000
    assert path.read_text().splitlines()[-1] == f"{999:090d}"


def test_what_the_process_prints_follows_the_file_when_it_is_exchanged(tmp_path: Path) -> None:
    script = (
        "import logging, os, pathlib, sys\n"
        "from backupfs.service.log import BoundedFile\n"
        "handler = BoundedFile(pathlib.Path(sys.argv[1]), take_stdio=True, bytes_max=2000)\n"
        "os.write(2, b'early\\n')\n"
        "handler.handle(logging.LogRecord('x', 20, '', 1, 'y' * 990, (), None))\n"
        "handler.handle(logging.LogRecord('x', 20, '', 1, 'z' * 990, (), None))\n"
        "os.write(1, b'late\\n')\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "log"], check=True, cwd=Path(__file__).parents[3])
    assert (tmp_path / "log.1").read_text().startswith("early\n")
    assert (tmp_path / "log").read_text().endswith("z\nlate\n")


@pytest.mark.parametrize(
    ("level", "prefix"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_journal_lines_carry_their_level(level: int, prefix: int) -> None:
    assert JournalFormatter().format(record(level, "a\nb")) == f"<{prefix}>backupfs.part: a\n<{prefix}>b"


def test_the_journal_is_recognised_by_its_stream_only() -> None:
    facts = os.fstat(2)
    assert goes_to_journal({"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"})
    assert not goes_to_journal({"JOURNAL_STREAM": "8:1234567"})
    assert not goes_to_journal({})


def test_a_foreground_process_logs_to_the_file_and_warns_on_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], log_rule: LogRule
) -> None:
    log_rule.expect("beware")
    with logging_to(tmp_path / "log", detached=False, environ={}) as recent:
        logging.getLogger("backupfs.part").info("begun")
        logging.getLogger("backupfs.part").warning("beware")
    logging.getLogger("backupfs.part").info("after the end")
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO backupfs.part: begun", "WARNING backupfs.part: beware"]
    assert capsys.readouterr().err == "WARNING: beware\n"
    assert [trouble.message for trouble in recent.kept()] == ["beware"]


def test_under_systemd_there_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = os.fstat(2)
    with logging_to(tmp_path / "log", detached=False, environ={"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}):
        logging.getLogger("backupfs.part").info("begun")
    assert capsys.readouterr().err == "<6>backupfs.part: begun\n"
    assert not (tmp_path / "log").exists()
