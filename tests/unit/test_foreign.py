"""The table of scripts/foreign-tests: when a row is equal, when it has a reason, and when it has none."""

from pathlib import Path

import pytest

from scripts.foreign import report
from scripts.foreign.known import KNOWN, Known
from scripts.foreign.report import EQUAL, Row, document, rows_of
from scripts.foreign.result import FAILS, PASSES, SKIPS, FailedError, Place, Result, single

REASON = "nobody delivers it"


def result(status: str, *details: str) -> Result:
    return Result(status, frozenset(details), "not compared")


@pytest.mark.parametrize(
    ("disk", "backupfs", "verdict"),
    [
        (result(PASSES), result(PASSES), EQUAL),
        (result(FAILS, "error: one"), result(FAILS, "error: one"), EQUAL),
        (result(PASSES, "skipped: one"), result(PASSES, "skipped: one"), EQUAL),
        (result(PASSES), result(PASSES, "skipped: one"), ""),
        (result(FAILS, "error: one"), result(FAILS, "error: two"), ""),
        (result(PASSES), result(FAILS, "error: known"), REASON),
        (result(FAILS, "error: one"), result(FAILS, "error: one", "error: known"), REASON),
        (result(PASSES), result(FAILS, "error: known", "error: new"), ""),
        (result(PASSES), result(SKIPS, "error: known"), ""),
    ],
)
def test_a_row_differs_without_a_reason_unless_all_of_the_difference_is_known(
    disk: Result, backupfs: Result, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "KNOWN", {"row": Known(FAILS, frozenset({"error: known"}), REASON)})
    assert Row("row", disk, backupfs).verdict == verdict
    is_same = disk.is_like(backupfs)
    assert Row("another row", disk, backupfs).verdict == (EQUAL if is_same else "")


def test_the_document_counts_and_shows_every_row() -> None:
    failing, differing = result(FAILS, "error: a|b", *(f"error: {n}" for n in range(5))), result(FAILS, "error: new")
    known_name, known = next(iter(KNOWN.items()))
    disk = {"fails on both": failing, "differs": result(PASSES), "leaves out": result(PASSES, "skipped: x"), known_name: result(PASSES)}
    backupfs = {**disk, "differs": differing, known_name: Result(known.status, known.details)}
    text = document(rows_of(disk, backupfs), "ext4", 3)
    assert "4 rows: 2 equal (1 of them fail on both), 1 different for a known reason, 1 different without one." in text
    assert "| fails on both | fails | fails | equal: error: 0; error: 1; error: 2; and 3 more |" in text
    assert "| differs | passes | fails | **different**: error: new |" in text
    assert "| leaves out | passes, 1 left out | passes, 1 left out | equal |" in text
    assert f"| {known_name} | passes | {known.status} | {known.reason} |" in text


def test_a_single_test_fails_with_the_reason_it_gives(tmp_path: Path) -> None:
    def fails(place: Place) -> None:
        raise FailedError("the server does not answer", "its log")

    place = Place(tmp_path, tmp_path, 1)
    assert single("row", fails)(place) == {"row": Result(FAILS, frozenset({"the server does not answer"}), "its log")}
    assert single("row", lambda _: None)(place) == {"row": Result(PASSES)}
