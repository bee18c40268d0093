"""The port of a store: named, immutable objects. Everything it returns is untrusted until it has been verified
elsewhere.

Names are relative, with `/` between parts: `config`, `keys/…`, `packs/ab/…`, `journal/…`, `checkpoints/…`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """A store of objects. All functions block; errors are `StoreError` and its kind."""

    def put(self, name: str, data: bytes) -> None:
        """Keep `data` under a name that is not taken, durably and whole or not at all; StoreError when it is taken."""
        ...

    def put_file(self, name: str, path: Path) -> None:
        """Take over a finished, synced local file as an object, durably; a file that is there under that name is
        replaced.
        """
        ...

    def get(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """The bytes of an object from `offset`, at most `size_bytes`: fewer only where it ends. MissingObjectError when
        there is none.
        """
        ...

    def size(self, name: str) -> int:
        """Length of an object in bytes. MissingObjectError when there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Names of the objects below a folder (`packs`, `journal`, …), sorted."""
        ...

    def delete(self, name: str) -> None:
        """Remove an object, durably; MissingObjectError when there is none."""
        ...

    def sweep(self, prefix: str) -> None:
        """Remove what a `put` that was cut short left below a folder. Nobody else may put anything there meanwhile."""
        ...
