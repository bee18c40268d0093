"""What verbs need that work on a repository themselves, instead of asking the process that serves it."""

from backupfs.clock import SystemClock
from backupfs.engine.seams import Seams
from backupfs.offload import ThreadOffload
from backupfs.randomness import SystemRandomness
from backupfs.stores.files import SystemFiles


def system_seams() -> Seams:
    """What the engine is given on a real machine."""
    return Seams(SystemFiles(), SystemClock(), SystemRandomness(), ThreadOffload())
