"""What was measured, and what may be said of it: medians, spreads, ratios and targets. Pure."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

PROJECT: Final = "backupfs"
"""The system whose figures are held against targets."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement: what the row asks for, the processor time of everything that ran for it (user and system), and the most memory that one
    process of the system had resident at any time meanwhile; 0 for a system that is no process.
    """

    value: float
    cpu_s: float = 0.0
    peak_bytes: int = 0


Found = Mapping[str, Sequence[Figure]]
"""System -> one figure a round, in the order of the rounds."""
Samples = Mapping[str, Found]
"""Row -> what was found."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Several values of one thing."""

    median: float
    least: float
    greatest: float


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def median(samples: Samples, row: str, system: str) -> float | None:
    """None when that was not measured."""
    figures = samples.get(row, {}).get(system)
    return statistics.median(figure.value for figure in figures) if figures else None


def ratio(samples: Samples, row: str, peer: str, system: str = PROJECT) -> float | None:
    """A system's median divided by the peer's. None unless both were measured, and of a peer whose median is 0."""
    own, other = median(samples, row, system), median(samples, row, peer)
    return None if own is None or not other else own / other


@dataclass(frozen=True, slots=True)
class Ratio:
    """The project's figure is at most (of a rate: at least) `limit` times that of the best of these peers. Each of them must have been measured."""

    limit: float
    peers: tuple[str, ...]

    def measured(self, samples: Samples, row: str, *, more_is_better: bool, system: str = PROJECT) -> float | None:
        """What is held against the limit; of another system, what would be."""
        ratios = [ratio(samples, row, peer, system) for peer in self.peers]
        known = [value for value in ratios if value is not None]
        if len(known) < len(ratios):
            return None
        return min(known) if more_is_better else max(known)

    def words(self, unit: str) -> str:  # noqa: ARG002 as for the other targets
        """As in "at most WORDS"."""
        return f"{number(self.limit)} x {'the best of ' if len(self.peers) > 1 else ''}{' and '.join(self.peers)}"


@dataclass(frozen=True, slots=True)
class Absolute:
    """The project's figure is at most (of a rate: at least) so much, whatever the machine."""

    limit: float

    def measured(self, samples: Samples, row: str, *, more_is_better: bool) -> float | None:  # noqa: ARG002 as for the other targets
        """What is held against the limit."""
        return median(samples, row, PROJECT)

    def words(self, unit: str) -> str:
        """As in "at most WORDS"."""
        return f"{number(self.limit)} {unit}".strip()


@dataclass(frozen=True, slots=True)
class OtherRow:
    """The project's figure is at most (of a rate: at least) `limit` times its own figure in another row."""

    limit: float
    row: str
    title: str
    """What that row is, in a few words."""

    def measured(self, samples: Samples, row: str, *, more_is_better: bool) -> float | None:  # noqa: ARG002 as for the other targets
        """What is held against the limit."""
        own, other = median(samples, row, PROJECT), median(samples, self.row, PROJECT)
        return None if own is None or not other else own / other

    def words(self, unit: str) -> str:  # noqa: ARG002 as for the other targets
        """As in "at most WORDS"."""
        return f"{number(self.limit)} x {self.title}"


Target = Ratio | Absolute | OtherRow


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target, in words, and whether it is met; `is_met` and `measured` are None when something that it needs was not measured."""

    words: str
    measured: float | None
    is_met: bool | None


def verdict(target: Target, samples: Samples, row: str, unit: str, *, more_is_better: bool) -> Verdict:
    """A figure that equals its limit meets it."""
    value = target.measured(samples, row, more_is_better=more_is_better)
    words = f"{'at least' if more_is_better else 'at most'} {target.words(unit)}"
    if value is None:
        return Verdict(words, None, None)
    return Verdict(words, value, value >= target.limit if more_is_better else value <= target.limit)


def number(value: float) -> str:
    """Three digits that count, no exponent, thousands apart: 0.0123, 1.05, 12.3, 500, 12,345."""
    if value == 0:
        return "0"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
