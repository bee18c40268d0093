"""A command's end of the control socket (`service.control` is the daemon's). Knows no event loop: most commands do nothing but ask, and loading one
would take longer than that.

The socket is reached through a descriptor of its directory: a path of a socket has at most 107 bytes, a path of a file may have more.
"""

import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from backupfs.errors import BackupfsError
from backupfs.service.messages import REPLY_BYTES_MAX, Failure, Item, LendRequest, NotRunningError, Reply, Request, Result, Stage, error

_REPLIES: Final[msgspec.json.Decoder[Reply]] = msgspec.json.Decoder(Reply)
_CREDENTIALS: Final = struct.Struct("3i")
_GONE: Final = "the mount's process went away before it had answered; its log says why"


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """What to bind or connect a socket at `path` to, as long as the context lasts."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


class Connected(Protocol):
    """A connected Unix socket, whoever waits for it."""

    def getsockopt(self, level: int, option: int, size: int, /) -> bytes:
        """Bytes of an option's value."""
        ...


def peer_of(connection: Connected) -> tuple[int, int]:
    """Process and user at the other end, as the kernel noted them when it connected or began to listen."""
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid


class Client:
    """A command's connection to a daemon: one request. Blocks."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid, self.uid = peer_of(connection)

    def ask(
        self,
        request: Request,
        on_item: Callable[[Any], None] | None = None,
        on_progress: Callable[[int, int, Stage], None] | None = None,
    ) -> Any:
        """The result, decoded from JSON. Raises what the daemon answered instead, as the class that it was there."""
        try:
            self._connection.sendall(msgspec.json.encode(request) + b"\n")
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(REPLY_BYTES_MAX):
                    reply = _REPLIES.decode(line)
                    if isinstance(reply, Result):
                        return msgspec.json.decode(reply.value)
                    if isinstance(reply, Failure):
                        raise error(reply)
                    if isinstance(reply, Item):
                        if on_item:
                            on_item(msgspec.json.decode(reply.value))
                    elif on_progress:
                        on_progress(reply.done, reply.total, reply.stage)
        except ConnectionError as reason:
            raise BackupfsError(_GONE) from reason
        raise BackupfsError(_GONE)

    def borrow(self, request: LendRequest) -> Any:
        """What the daemon lends: its one item, decoded from JSON. It is lent until the connection is closed, or the daemon ends (`fileno`)."""
        try:
            self._connection.sendall(msgspec.json.encode(request) + b"\n")
            with self._connection.makefile("rb") as lines:
                line = lines.readline(REPLY_BYTES_MAX)
        except ConnectionError as reason:
            raise BackupfsError(_GONE) from reason
        reply = _REPLIES.decode(line) if line else None
        if isinstance(reply, Failure):
            raise error(reply)
        if not isinstance(reply, Item):
            raise BackupfsError(_GONE)
        return msgspec.json.decode(reply.value)

    def fileno(self) -> int:
        """The connection's descriptor. Readable when the daemon has said or closed something: what was borrowed is to be given back."""
        return self._connection.fileno()

    def wait_until_gone(self, process: int) -> None:
        """Wait until the process that `hold_process` stands for has ended: then its locks are free."""
        select.select([process], [], [])

    @contextmanager
    def hold_process(self) -> Iterator[int]:
        """A descriptor that keeps meaning this daemon, whatever happens to its process id."""
        process = os.pidfd_open(self.pid)
        try:
            yield process
        finally:
            os.close(process)


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    """A connection to the daemon whose socket is `path`. NotRunningError when there is none, or it is another user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            with address_of(path) as address:
                connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError) as reason:
            raise NotRunningError(f"no process answers at {path}") from reason
        client = Client(connection)
        if client.uid not in (0, os.geteuid()):
            raise NotRunningError(f"the process that answers at {path} is another user's")
        yield client
