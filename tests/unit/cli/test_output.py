"""What is shown: exact times and sizes, nothing that speaks to the terminal, nothing cut off, one object for programs."""

import json
import os
import signal
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.cli.output import Output, printable, public, readable_size, rfc3339
from backupfs.engine.attributes import SnapshotInfo
from backupfs.errors import LockedError


@given(st.integers(-(2**61), 2**62))
def test_times_are_rfc_3339_to_the_microsecond(time_ns: int) -> None:
    text = rfc3339(time_ns)
    moment = datetime.fromisoformat(text)
    assert text.endswith("Z")
    assert moment.tzinfo == UTC
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)) // (datetime.resolution) == time_ns // 1000


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024**2, "1.5 GiB"), (5 * 1024**6, "5.0 EiB"), (2**74, "16384.0 EiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert readable_size(size) == text


@given(st.text(st.characters(codec=None)))
def test_what_is_shown_is_printable_and_valid(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    if text.isprintable():
        assert shown == text


def test_structs_become_objects_and_ns_becomes_a_time() -> None:
    info = SnapshotInfo(3, "n", 1_000_000_000, "manual", "m", ["t"], 5, "kept")
    assert public({"snapshots": [info], "next_ns": None, "size_bytes": 7}) == {
        "snapshots": [
            {
                "serial": 3,
                "name": "n",
                "time": "1970-01-01T00:00:01.000000Z",
                "why": "manual",
                "message": "m",
                "tags": ["t"],
                "changes": 5,
                "state": "kept",
                "pinned": False,
                "hold_until": None,
                "deleted": None,
                "made": None,
                "altered": None,
                "removed": None,
            }
        ],
        "next": None,
        "size_bytes": 7,
    }


def test_for_programs_there_is_one_object_and_no_words(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=True)
    output.say("words")
    output.facts({"a": 1}, "title")
    output.table(("A",), [("a",)])
    output.json({"size_bytes": 5, "text": "\udcff\n"})
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert json.loads(shown) == {"schema": 1, "size_bytes": 5, "text": "\udcff\n"}


def test_for_people_there_are_words_and_no_object(capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(as_json=False)
    output.json({"a": 1})
    output.say("one", "two \x1b[31m[bold]:smile:")
    output.facts({"stored_bytes": 2048, "since_ns": 0, "read_only": False, "failure": "", "pid": 3}, "title")
    assert capsys.readouterr().out.splitlines() == [
        "one",
        "two \\x1b[31m[bold]:smile:",
        "title",
        "stored        2.0 KiB",
        "since         1970-01-01T00:00:00.000000Z",
        "read only     no",
        "failure       -",
        "pid           3",
    ]


def test_tables_are_as_wide_as_they_need_to_be(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    Output(as_json=False).table(("NAME", "MESSAGE"), [("日本", "x" * 200), ("abcdef", "a\nb")])
    assert capsys.readouterr().out.splitlines() == ["NAME    MESSAGE", "日本    " + "x" * 200, "abcdef  a\\nb"]


def test_no_color_is_honoured(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    output = Output(as_json=False)
    output.facts({"a": 1}, "title")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("as_json", [False, True])
def test_errors_are_told_in_words_and_to_programs(capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    Output(as_json).error(LockedError("in use\x1b"))
    shown = capsys.readouterr()
    assert shown.err == "backupfs: in use\\x1b\n"
    told = {"schema": 1, "error": {"kind": "locked", "message": "in use\x1b", "exit_code": 11}}
    assert (json.loads(shown.out) if as_json else shown.out) == (told if as_json else "")


def test_progress_is_one_line_on_sigusr1_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Output(as_json=False).progress("checking") as show:
        show(1024, 4096)
        os.kill(os.getpid(), signal.SIGUSR1)
        show(3, 7, "purging")
        os.kill(os.getpid(), signal.SIGUSR1)
        show(2048, 4096, "copying")
        os.kill(os.getpid(), signal.SIGUSR1)
    assert capsys.readouterr().err.splitlines() == [
        "checking: 1.0 KiB of 4.0 KiB",
        "purging snapshots: 3 of 7",
        "rewriting packs: 2.0 KiB of 4.0 KiB",
    ]
    assert signal.getsignal(signal.SIGUSR1) == before
