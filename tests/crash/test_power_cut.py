"""The whole engine over power cuts: what was acknowledged is there, and it mounts by itself, whatever the disk made of
the rest.

Recorded are random lives of a repository (`workload`) on a simulated disk (`disk`). The power goes at every point of
the log, and the disk holds any of the states that `power_cut` allows there; each is mounted, read in full and judged by
`model`, which knows nothing of backupfs.
"""

import ast
import errno
import itertools
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import backupfs
from backupfs.engine.repository import unlock
from backupfs.errors import BackupfsError, RepositoryMissingError
from tests.conftest import LogRule
from tests.crash.faults import FaultyFiles
from tests.crash.history import (
    ROOT,
    History,
    Host,
    Reopened,
    check,
    index_at,
    make_repository,
    record,
    record_further,
    reopen,
    small_limits,
)
from tests.crash.model import Model
from tests.crash.power_cut import CrashState, crash_states, sync_sites
from tests.crash.simulation import PASSWORD

pytestmark = [pytest.mark.crash, pytest.mark.slow]

LIVES = 10
STATES_PER_LIFE = 500
"""5,000 in each run of CI."""
REQUESTS = 120
_SHOWN_ELSEWHERE = {
    ("stores/local.py", "delete"),
    ("journal/segments.py", "make_open_durable"),
    ("service/keys.py", "write_export"),
    ("engine/recovery.py", "sync"),
}
"""The first is the store's own promise, shown by `test_store_power_cut`: an object that comes back is only in the way. The second matters after
a kill that leaves the page cache, and here the power goes: `test_what_recovery_reads_from_the_page_cache_is_made_durable_first` shows it. The third
writes a file that lies outside of any repository: no life here comes near it. The fourth
matters when the index survives a recovery that a power cut ends, and here it is copied when the engine runs:
`test_what_was_put_into_a_pack_is_durable_before_the_index_has_it` shows it.
"""


@pytest.fixture(autouse=True)
def _small(log_rule: LogRule) -> Iterator[None]:
    with small_limits():
        yield


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """Its index lies in memory where that is possible: it is written thousands of times."""
    shared = Path("/dev/shm")
    base = shared if os.access(shared, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(prefix="backupfs-tests-", dir=base) as directory:
        yield Host(Path(directory) / "state")


def every_position(history: History) -> range:
    return range(history.begins, len(history.disk.log) + 1)


def some_positions(history: History, draw: random.Random, count: int) -> list[int]:
    return sorted(draw.sample(every_position(history), min(count, len(every_position(history)))))


def cut_and_reopen(history: History, states: Iterator[CrashState]) -> Iterator[tuple[CrashState, str, Reopened]]:
    for state in states:
        draw = random.Random(f"index/{state.name}")
        kind, index = index_at(history, state.position, draw)
        yield state, f"{state.name}, {kind}", reopen(history, state, index)


@pytest.mark.parametrize("life", range(LIVES))
def test_what_was_acknowledged_is_there(life: int, host: Host, seed: int, scale: float) -> None:
    history = record(host, seed + life, REQUESTS)
    count = round(STATES_PER_LIFE * scale)
    states = different_states(history, seed + life)
    tried = 0
    for _, name, reopened in cut_and_reopen(history, itertools.islice(states, count)):
        tried += 1
        assert reopened.faults == [], name
    assert tried == count


def different_states(history: History, seed: int) -> Iterator[CrashState]:
    """Endless: all positions, again and again, never the same state with the same demand."""
    tried: set[tuple[object, int]] = set()
    for again in itertools.count():
        yield from crash_states(history.disk, seed + 1000 * again, every_position(history), 2, same=history.model.demand, tried=tried)


@pytest.mark.parametrize("life", range(3))
def test_life_goes_on_after_a_cut_and_after_a_cut_in_the_recovery(life: int, host: Host, seed: int, scale: float) -> None:
    """Power cuts one after another, each in what came after the one before: recovery, requests, clean stop."""
    draw = random.Random(f"generations/{seed}/{life}")
    history = record(host, seed + 100 + life, REQUESTS // 2, mounts=1)
    for generation in range(4):
        positions = some_positions(history, draw, max(1, round(30 * scale)))
        outcomes: list[tuple[CrashState, Reopened]] = []
        states = crash_states(history.disk, seed + generation, positions, 2, same=history.model.demand)
        for state, name, reopened in cut_and_reopen(history, states):
            assert reopened.faults == [], f"generation {generation}: {name}"
            outcomes.append((state, reopened))
            _cut_the_recovery(history, state, reopened, name, draw)
        state, reopened = draw.choice(outcomes)
        assert reopened.trees is not None
        assert check(host, reopened.disk) == [], f"generation {generation}: {state.name}"
        model = Model.of(*reopened.trees)
        # Its disk is the one that was recovered and stopped cleanly; the index lies where the host left it, or is lost.
        history = record_further(host, reopened.disk.image(), None, model, seed + 1000 * generation, REQUESTS // 2)


def _cut_the_recovery(history: History, state: CrashState, first: Reopened, name: str, draw: random.Random) -> None:
    during = sorted({draw.randint(0, first.mounted_at) for _ in range(2)})
    for again in crash_states(first.disk, draw.randrange(1 << 30), during, 2):
        asked = CrashState(state.position, again.image, f"{name}; then, in its recovery, {again.name}")
        assert reopen(history, asked, None).faults == [], asked.name


@pytest.mark.parametrize("life", range(2))
def test_with_the_index_deleted_it_is_the_same_tree_and_check_finds_nothing(life: int, host: Host, seed: int) -> None:
    history = record(host, seed + 200 + life, REQUESTS)
    draw = random.Random(f"sample/{seed}/{life}")
    positions = some_positions(history, draw, 40)
    for state in crash_states(history.disk, seed, positions, 1):
        _, index = index_at(history, state.position, random.Random(1))
        first = reopen(history, state, index)
        assert first.faults == [], state.name
        later = CrashState(state.position, first.disk.image(), f"{state.name}; mounted, stopped, index deleted")
        second = reopen(history, later, None)
        assert second.faults == [], later.name
        assert second.trees == first.trees, later.name
        assert check(host, second.disk) == [], later.name


def test_a_file_system_that_is_stopped_at_once_ends(host: Host, seed: int) -> None:
    """Before its tasks have run for the first time."""
    for order in range(10):
        history = record(host, seed + order, count=0)
        assert check(host, history.disk) == []


def test_a_repository_is_made_whole_or_not_at_all(host: Host, seed: int) -> None:
    disk = make_repository(host, seed)
    for state in crash_states(disk, seed, range(len(disk.log) + 1), 60):
        assert not _is_half_made(state, len(disk.log)), state.name


def _is_half_made(state: CrashState, made_at: int) -> bool:
    try:
        unlock(ROOT, PASSWORD, files=state.disk())
    except RepositoryMissingError:
        return state.position >= made_at
    except BackupfsError:
        return True
    return False


@dataclass(frozen=True)
class SyncCall:
    """A line of the program that syncs."""

    module: str
    function: str
    first: int
    last: int

    def is_at(self, site: str) -> bool:
        module, _, line = site.partition(":")
        return module == self.module and self.first <= int(line) <= self.last


def sync_calls() -> list[SyncCall]:
    """Every call of `sync` or `sync_directory` on a `Files`, found in the source."""
    package = Path(backupfs.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if _is_sync(node):
                        assert isinstance(node, ast.Call)
                        module = path.relative_to(package).as_posix()
                        found.append(SyncCall(module, function.name, node.lineno, node.end_lineno or node.lineno))
    return found


def _is_sync(node: ast.AST) -> bool:
    """`files.sync(...)`, `self._files.sync_directory(...)`, `files.sync` handed to a thread."""
    if not isinstance(node, ast.Call):
        return False
    for called in [node.func, *node.args]:
        if isinstance(called, ast.Attribute) and called.attr in ("sync", "sync_directory"):
            owner = called.value
            name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
            if name.endswith("files"):
                return True
    return False


def test_each_sync_is_needed(host: Host, seed: int, log_rule: LogRule) -> None:
    """Every sync in the code is reached, and taking out any one of them is noticed."""
    log_rule.allow("")
    histories = _lives_that_reach_every_sync(host, seed)
    unreached, unneeded = [], []
    for call in sync_calls():
        places = [
            (history, site, positions)
            for history in histories
            for site, positions in sync_sites(history.disk.log).items()
            if site != "tests" and call.is_at(site)
        ]
        if not places:
            unreached += [call] if (call.module, call.function) not in _SHOWN_ELSEWHERE else []
        elif (call.module, call.function) not in _SHOWN_ELSEWHERE and not any(
            _is_noticed(history, site, positions, seed) for history, site, positions in places
        ):
            unneeded.append(call)
    assert unreached == []
    assert unneeded == []


def _lives_that_reach_every_sync(host: Host, seed: int) -> list[History]:
    """Clean stops in some; a recovery at the start of others."""
    lives = [record(host, seed + 300 + n, REQUESTS) for n in range(2)]
    draw = random.Random(f"lives/{seed}")
    for history in list(lives):
        for position in some_positions(history, draw, 3):
            for state in crash_states(history.disk, seed, [position], 1):
                copy = history.copies.at(position)
                reopened = reopen(history, state, copy)
                assert reopened.trees is not None, state.name
                model = Model.of(*reopened.trees)
                lives.append(record_further(host, state.image, copy, model, seed + position, REQUESTS // 3))
    return lives


def _is_noticed(history: History, site: str, positions: Sequence[int], seed: int) -> bool:
    if positions[0] <= history.begins:
        made = crash_states(history.disk, seed, range(history.begins + 1), 200, ignored_site=site)
        if any(_is_half_made(state, history.begins) for state in made):
            return True
    end = len(history.disk.log)
    soon = {later for position in positions for later in range(max(position, history.begins), min(max(position, history.begins) + 12, end) + 1)}
    states = crash_states(history.disk, seed, sorted(soon), 5, ignored_site=site, same=history.model.demand)
    return any(reopened.faults for _, _, reopened in cut_and_reopen(history, states))


@pytest.mark.parametrize("life", range(4))
def test_a_call_that_fails_loses_nothing_that_was_acknowledged(life: int, host: Host, seed: int, scale: float, log_rule: LogRule) -> None:
    """EIO or ENOSPC, once or from some call on; a failed sync also drops what was not durable. Then the power goes."""
    log_rule.allow("")
    draw = random.Random(f"faults/{seed}/{life}")
    calls = _calls_of(host, seed + 400 + life)
    for _ in range(round(12 * scale)):
        first = draw.randrange(calls)
        last = draw.choice([first, first, first + 2, 1 << 40])
        code = draw.choice([errno.EIO, errno.EIO, errno.ENOSPC])
        operations = draw.choice([("sync",), ("sync", "sync_directory"), ("write_at",), ("sync", "write_at", "create")])

        def verdict(
            operation: str,
            number: int,
            first: int = first,
            last: int = last,
            code: int = code,
            operations: tuple[str, ...] = operations,
        ) -> int | None:
            return code if first <= number <= last and operation in operations else None

        name = f"calls {first} to {last} of {operations} give {errno.errorcode[code]}"
        history = record(host, seed + 400 + life, REQUESTS // 2, mounts=1, verdict=verdict)
        positions = [*some_positions(history, draw, 10), len(history.disk.log)]
        states = crash_states(history.disk, seed, positions, 2, same=history.model.demand)
        for _, state_name, reopened in cut_and_reopen(history, states):
            assert reopened.faults == [], f"{name}; {state_name}"


def _calls_of(host: Host, seed: int) -> int:
    counted: list[FaultyFiles] = []
    record(host, seed, REQUESTS // 2, mounts=1, verdict=lambda operation, number: None, faulty=counted)
    return len(counted[0].calls)
