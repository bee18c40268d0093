"""Everything the engine takes from the world, so that tests can hand in another one."""

from dataclasses import dataclass

from backupfs.clock import Clock
from backupfs.offload import Offload
from backupfs.randomness import Randomness
from backupfs.stores.files import Files


@dataclass(frozen=True, slots=True)
class Seams:
    """File operations, time of day, random bytes, threads."""

    files: Files
    clock: Clock
    randomness: Randomness
    offload: Offload
