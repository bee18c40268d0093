"""Everything the engine takes from the world, so that tests can hand in another one."""

from collections.abc import Callable
from dataclasses import dataclass

from backupfs.clock import Clock
from backupfs.offload import Offload
from backupfs.randomness import Randomness
from backupfs.stores.files import Files

Progress = Callable[[int, int], None]
"""Told how far long work is: (done, in all), in whatever is counted. May be called from a thread."""


def unwatched(done: int, total: int) -> None:
    """The progress of what nobody waits for."""


def _keep_memory() -> None:
    """Where memory is nobody's concern."""


@dataclass(frozen=True, slots=True)
class Seams:
    """File operations, time of day, random bytes, threads; and what gives memory that is free back to the system. The last is called in threads."""

    files: Files
    clock: Clock
    randomness: Randomness
    offload: Offload
    give_memory_back: Callable[[], None] = _keep_memory
