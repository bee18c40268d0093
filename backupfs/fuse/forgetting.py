"""Having the kernel forget names and attributes that have changed without a request of its own.

Everything here blocks, so it runs in threads while the loop serves, and while nothing that waits for these threads is held back:

* A name's directory is locked in the kernel for the moment: whoever makes, removes or looks up something in it, or lists it, is waited for, and so
  are the requests that they wait for. Somebody may hold such a lock for ever: in a listing into memory that a file system backs which does not
  answer. The thread then cannot be interrupted.
* Attributes alone need no lock. Pages are left alone: what is restored is a new inode, so the pages of the old one stay right for whoever has it
  open.
* What goes with its last name takes its inode along, which waits for pages that are being written back: for requests that the loop serves.

A name that the kernel knows to be missing has to be forgotten like any other.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import pyfuse3


class Forgetting:
    """Asks the kernel while there is a session. Used by several threads; `end` is called before the session goes, which must not happen below one of
    them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._is_open = True

    def end(self) -> bool:
        """Ask no more. Whether nobody is still asking."""
        with self._lock:
            self._is_open = False
            return not self._inside

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        """(directory, name) and the attributes of inodes. What the kernel does not know anyway is passed over; OSError when it refuses."""
        for parent, name in names:
            self._ask(partial(pyfuse3.invalidate_entry, parent, name))
        for ino in inodes:
            self._ask(partial(pyfuse3.invalidate_inode, ino, attr_only=True))

    def _ask(self, question: Callable[[], None]) -> None:
        with self._lock:
            if not self._is_open:
                return
            self._inside += 1
        try:
            question()
        except FileNotFoundError:
            return
        finally:
            with self._lock:
                self._inside -= 1
