"""The newest history that this host has seen, kept outside the repository: an older or another one is not taken for it.

A sealed file in the state directory, replaced as a whole: one that does not open is damage, never "nothing seen".
"""

import struct
from dataclasses import dataclass
from pathlib import Path

from backupfs.codec.keys import Keys
from backupfs.errors import MissingObjectError
from backupfs.format.layout import Sealed
from backupfs.journal.segments import Position
from backupfs.randomness import Randomness
from backupfs.stores.files import Files

_LAYOUT = struct.Struct(">QQQ32s")
_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class SeenHistory:
    """A journal position and the hash of its segment up to there."""

    position: Position
    hash: bytes


class Head:
    """The file `head`. Blocks."""

    def __init__(self, path: Path, files: Files, keys: Keys, randomness: Randomness) -> None:
        self._path = path
        self._files = files
        self._keys = keys
        self._randomness = randomness

    def load(self) -> SeenHistory | None:
        """What was seen; None on a host that has seen nothing. Raises DamageError when the file does not open."""
        try:
            handle = self._files.open(self._path)
        except MissingObjectError:
            return None
        try:
            data = self._files.read_at(handle, 0, 4096)
        finally:
            self._files.close(handle)
        sealer = self._keys.local_sealer(b"head", data[:_SALT_BYTES])
        segment, size, batch, digest = _LAYOUT.unpack(sealer.open(Sealed.HEAD, 0, data[_SALT_BYTES:]))
        return SeenHistory(Position(segment, size, batch), digest)

    def save(self, position: Position, digest: bytes) -> None:
        """Remember a history."""
        salt = self._randomness.draw(_SALT_BYTES)
        plain = _LAYOUT.pack(position.segment, position.segment_bytes, position.batch, digest)
        aside = self._path.with_name(self._path.name + ".new")
        if self._files.exists(aside):
            self._files.unlink(aside)
        handle = self._files.create(aside)
        try:
            self._files.write_at(handle, 0, [salt + self._keys.local_sealer(b"head", salt).seal(Sealed.HEAD, 0, plain)])
            self._files.sync(handle)
        finally:
            self._files.close(handle)
        self._files.rename(aside, self._path)

    def forget(self) -> None:
        """Take the repository as it is from now on."""
        if self._files.exists(self._path):
            self._files.unlink(self._path)
