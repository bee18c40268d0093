"""Random bytes, handed in: keys and names are drawn from the machine, simulations draw them from a seed."""

import os
from typing import Protocol


class Randomness(Protocol):
    """A source of random bytes."""

    def draw(self, size_bytes: int) -> bytes:
        """`size_bytes` bytes that nobody can predict."""
        ...


class SystemRandomness:
    """The kernel's generator."""

    def draw(self, size_bytes: int) -> bytes:
        """See `Randomness`."""
        return os.urandom(size_bytes)
