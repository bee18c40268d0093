"""Three months of a mounted directory at high speed, on a real local store: what stands is exactly what the rules' model says, and as it was.
In the last weeks a space limit acts: the bytes are those of the files.

`--scale` multiplies the number of days, `--seed` gives other ones.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.rules import collection
from tests.crash.simulation import PASSWORD, run
from tests.decoder.audit import audit
from tests.models.snapshot_rules import SECOND_NS
from tests.simulation.machine import Machine
from tests.unit.engine.world import make_fast, make_small

START_NS = int(datetime(2026, 2, 16, 7, 30, tzinfo=UTC).timestamp()) * SECOND_NS
DAYS = 91
LIMITED_DAYS = 28
"""The last of them, with a space limit: the rules that go by weeks and months have had their time by then."""
SELDOM = {"DIRTY_AGE_S": 900.0, "COMMIT_DELAY_S": 900.0, "CHECKPOINT_LOOK_S": 900.0, "LOOK_S": 600.0}
"""Those who look at the clock every few seconds do so every quarter of an hour: there are millions of seconds in three months."""


@pytest.fixture(autouse=True)
def _high_speed() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        make_fast(patch)
        for name, value in SELDOM.items():
            patch.setattr(limits, name, value)
        patch.setattr(limits, "CHECKPOINT_MIN_BYTES", 192 * limits.KIB)
        patch.setattr(limits, "COLLECT_DIED_BYTES", 64 * limits.KIB)
        patch.setattr(collection, "DEAD_BYTES_MIN", 32 * limits.KIB)
        yield


def test_three_months_keep_exactly_what_the_model_says(tmp_path: Path, seed: int, scale: float) -> None:
    machine = Machine(tmp_path, seed, START_NS)
    rng = random.Random(f"stays/{seed}")
    days = round(DAYS * scale)
    while days > 0:
        stay = min(days, rng.randint(1, 3))
        killed = rng.random() < 0.3
        limited = days <= LIMITED_DAYS * scale
        run(partial(machine.stay, stay, killed=killed, limited=limited), f"{seed}/{days}")
        days -= stay
        assert beyond_bounds(machine.root, killed=killed) == []
    run(partial(machine.stay, 1, killed=False), seed)
    print(f"{round(DAYS * scale)} days: {dict(machine.happened)}")
    assert run(machine.check, seed) == []
    assert audit(machine.root, PASSWORD, region_bytes=limits.REGION_BYTES) == []
    assert {what: machine.happened[what] for what in HAPPENS if machine.happened[what] < HAPPENS[what] * scale} == {}


HAPPENS = {
    "scheduled": 200,
    "deleted by retention": 200,
    "purged": 200,
    "undeleted": 20,
    "changes": 500,
    "looks": 1000,
    "pinned or held": 10,
    "clock set": 5,
    "killed": 5,
    "rewritten bytes": 100_000,
    "checkpoints": 20,
    "trees compared": 500,
    "thinned by the space limit": 50,
    "runs that were thinned until it was enough": 4,
    "runs that could not free enough": 10,
    "runs in which enough came back by itself": 4,
}
"""At least so often in three months."""


def beyond_bounds(root: Path, *, killed: bool) -> list[str]:
    """What has grown beyond what there is to hold: the journal since the older checkpoint, what is being written, what recovery set aside."""

    def files(folder: str) -> list[Path]:
        return [path for path in (root / folder).rglob("*") if path.is_file()]

    def size_bytes(folder: str) -> int:
        return sum(path.stat().st_size for path in files(folder))

    journal_bytes_max = 2 * max(limits.CHECKPOINT_MIN_BYTES, size_bytes("checkpoints")) + 2 * limits.JOURNAL_SEGMENT_TARGET_BYTES
    being_written = [path.name for path in files("open") if path.name != "reserve"]
    recoveries = {path.parent.name for path in files("set-aside")}
    found = []
    if size_bytes("journal") > journal_bytes_max:
        found.append(f"the journal has {size_bytes('journal')} bytes, more than {journal_bytes_max}")
    if len(being_written) > (8 if killed else 0):
        found.append(f"in open/ are {being_written}")
    if len(recoveries) > limits.SET_ASIDE_KEPT:
        found.append(f"of {len(recoveries)} recoveries something is set aside")
    return found
