"""What a piece of work is given, and the few steps that most of them share."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from scripts.benchmark.figures import Figure
from scripts.benchmark.processes import Cost, Processes
from scripts.benchmark.sources import Sources
from scripts.benchmark.systems import System

BLOCK: Final = b"\xa5" * 4096
MIB: Final = 1 << 20

Figures = dict[str, Figure]
"""Row -> what was measured."""


@dataclass(frozen=True)
class Setting:
    """The data, a directory of its own, and how much of everything."""

    sources: Sources
    place: Path
    scale: float
    files: int
    """How many are many, scaled already."""
    processes: Processes

    def count(self, full: int, least: int = 1) -> int:
        """So many at full scale."""
        return max(least, round(full * self.scale))


Measure = Callable[[Setting], Figures]
"""A piece of work, done by one system once."""

S = TypeVar("S", bound=System)


@dataclass(frozen=True)
class By:
    """What does a piece of work: a procedure and a system."""

    system: type[System]
    measure: Measure


def by(procedure: Callable[[S, Setting], Figures], *kinds: type[S]) -> Mapping[str, By]:
    """The procedure as each of these systems does it, by their names. It leaves nothing behind of the system that it is given."""

    def measuring(kind: type[S]) -> Measure:
        return lambda setting: procedure(kind(setting.place / "system", setting.processes), setting)

    return {kind.name: By(kind, measuring(kind)) for kind in kinds}


def may_drop_caches() -> bool:
    """Only root may; without it "cold" is not."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK)


def drop_caches() -> None:
    """Nothing dirty, nothing cached, of any file system."""
    os.sync()
    if may_drop_caches():
        Path("/proc/sys/vm/drop_caches").write_text("3\n", encoding="ascii")


def warm(source: Path) -> None:
    """The source is read from memory, and no other run's dirty pages are written meanwhile."""
    buffer = bytearray(1 << 20)
    for here, _, names in os.walk(source):
        for name in names:
            with open(os.path.join(here, name), "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    os.sync()


def seconds(cost: Cost) -> Figure:
    """The time as the figure."""
    return Figure(cost.elapsed_s, cost.cpu_s, cost.peak_bytes)


def milliseconds(cost: Cost) -> Figure:
    """The time as the figure."""
    return valued(cost.elapsed_s * 1000, cost)


def rate(count: float, cost: Cost) -> Figure:
    """So many in that time, by the second."""
    return valued(count / cost.elapsed_s, cost)


def valued(value: float, cost: Cost) -> Figure:
    """Something else as the figure."""
    return replace(seconds(cost), value=value)


def both(first: Cost, second: Cost) -> Cost:
    """One after the other."""
    return Cost(first.elapsed_s + second.elapsed_s, first.cpu_s + second.cpu_s, max(first.peak_bytes, second.peak_bytes))
