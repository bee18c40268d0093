"""Rules for every test: a warning in the log fails a test that did not expect it; a seed replays.

`--seed` gives another run of everything pseudo-random, `--scale` multiplies how much of it is tried (CI runs at 1).
Hypothesis follows `--hypothesis-profile`: `ci` is the same each time, `nightly` tries more and something new each time.

What goes the same ways again and again is not measured: branch coverage takes as much time as the code itself.
"""

import logging
import os
import re
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import hypothesis
import pytest

from tests.warm import MEASURED

DEFAULT_SEED = 20_240_229
UNMEASURED: Final = tuple(Path(__file__).parent / name for name in ("compat", "crash", "faults", "posix", "simulation"))

hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=DEFAULT_SEED, help="what everything pseudo-random is drawn from")
    parser.addoption("--scale", type=float, default=1.0, help="how much of it is tried, as a multiple of what CI tries")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not {"crash", "slow"} & {marker.name for marker in item.iter_markers()} and not any(map(item.path.is_relative_to, UNMEASURED)):
        return (yield)
    # pytest-cov's own pause ends one of the two measurements that it begins in a worker of xdist.
    tracer, told = sys.gettrace(), os.environ.pop(MEASURED, None)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        if told is not None:
            os.environ[MEASURED] = told


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The run's seed; shown with a test that fails."""
    value = int(request.config.getoption("--seed"))
    request.node.add_report_section("setup", "seed", f"--seed {value}")
    return value


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> float:
    return float(request.config.getoption("--scale"))


class LogRule(logging.Handler):
    """Collects records at WARNING and above, and patterns of those that a test expects."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[str] = []
        self._expected: list[str] = []
        self._allowed: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def expect(self, pattern: str) -> None:
        """At least one record contains this regular expression; no such record fails the test."""
        self._expected.append(pattern)

    def allow(self, pattern: str) -> None:
        """Records that contain this regular expression may come or not."""
        self._allowed.append(pattern)

    def verdict(self) -> str:
        """What is wrong, or nothing."""
        known = self._expected + self._allowed
        unexpected = [text for text in self._records if not any(re.search(p, text) for p in known)]
        missing = [p for p in self._expected if not any(re.search(p, text) for text in self._records)]
        return "\n".join([f"logged and not expected: {text}" for text in unexpected] + [f"expected and not logged: {pattern}" for pattern in missing])


@pytest.fixture(autouse=True)
def log_rule() -> Iterator[LogRule]:
    rule = LogRule()
    root = logging.getLogger()
    root.addHandler(rule)
    yield rule
    root.removeHandler(rule)
    verdict = rule.verdict()
    if verdict:
        pytest.fail(verdict, pytrace=False)
