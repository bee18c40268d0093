"""Room on the disks: how much is left, and the ballast that is given up so that deleting works when nothing is.

The ballast is a real file beside the open packs. It goes when a write meets a full disk and is taken again when there is room.
"""

import logging
from pathlib import Path

from backupfs import limits
from backupfs.errors import StoreError, StoreFullError
from backupfs.stores.files import Files

log = logging.getLogger(__name__)

BALLAST = "reserve"


class Space:
    """Free space of the repository's file system. `refresh`, `release` and `take` block and run in worker threads."""

    def __init__(self, open_directory: Path, files: Files) -> None:
        self._directory = open_directory
        self._path = open_directory / BALLAST
        self._files = files
        self.free_bytes, self.total_bytes = files.free_bytes(open_directory)
        self._ballast_bytes = min(limits.RESERVE_BYTES, self.total_bytes // 16)
        self._pages_bytes = 0
        self._records_bytes = min(limits.RECORDS_ROOM_BYTES, self.total_bytes // 32)
        self._accepted_bytes = 0
        self._waiting_bytes = 0

    @property
    def margin_bytes(self) -> int:
        """Below this much free space nothing new is accepted."""
        return self._ballast_bytes // 2 + self._pages_bytes

    def room_for_pages(self, wanted_bytes: int) -> int:
        """From now on keep room for so many bytes that the kernel holds and has not brought yet. Gives for how many there is room."""
        self._pages_bytes = max(min(wanted_bytes, limits.PAGES_BYTES_MAX, self.total_bytes // 32, self.free_bytes // 8), 0)
        return self._pages_bytes

    def room_bytes(self) -> int:
        """How much file contents may take now: the last of the disk is for records, so that deleting can be written down whatever happens. Blocks."""
        return max(self._files.free_bytes(self._directory)[0] - self._records_bytes, 0)

    def room_with_reserve_bytes(self) -> int:
        """The same if the reserve were given up. Blocks."""
        reserve_bytes = self._ballast_bytes if self._files.exists(self._path) else 0
        return max(self._files.free_bytes(self._directory)[0] + reserve_bytes - self._records_bytes, 0)

    def require_room(self, size_bytes: int) -> None:
        """StoreFullError when so many bytes of contents do not fit any more. Blocks."""
        if size_bytes > self.room_bytes():
            raise StoreFullError(
                f"no space is left for {size_bytes} bytes in {self._directory}: make room on the disk, or remove files or snapshots"
                " (`backupfs gc --now` frees at once what deleted snapshots hold)"
            )

    def accept(self, size_bytes: int) -> bool:
        """Count bytes that were accepted since space was last looked at. True when it should be looked at again."""
        self._accepted_bytes += size_bytes
        return self._accepted_bytes > self._ballast_bytes // 4

    def is_short(self) -> bool:
        """Whether new data must be refused, so that all that was accepted still finds room."""
        return self.free_bytes - self._waiting_bytes - self._accepted_bytes - self._pages_bytes < self._ballast_bytes // 2

    def refresh(self, waiting_bytes: int) -> None:
        """Look again, with `waiting_bytes` taken in and not yet stored; take the ballast when it is missing and there is room for it."""
        self._accepted_bytes = 0
        self._waiting_bytes = waiting_bytes
        self.free_bytes, self.total_bytes = self._files.free_bytes(self._directory)
        if not self._files.exists(self._path) and self.free_bytes > 3 * self._ballast_bytes:
            try:
                self._files.allocate(self._path, self._ballast_bytes)
            except StoreFullError:
                log.warning("no room for the reserve of %d bytes in %s", self._ballast_bytes, self._directory)
            self.free_bytes, self.total_bytes = self._files.free_bytes(self._directory)

    def release(self) -> bool:
        """Give the ballast up. False when there was none."""
        if not self._files.exists(self._path):
            return False
        try:
            self._files.unlink(self._path)
        except StoreError as error:
            log.error("the reserve could not be given up: %s", error)
            return False
        log.warning("the disk of the repository is full: the reserve of %d bytes has been given up", self._ballast_bytes)
        return True
