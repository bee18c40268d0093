"""The control socket: how the process that serves a mount answers commands (`service.client` is their end). Only its own user and root are heard."""

import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from backupfs.errors import BackupfsError
from backupfs.service.client import address_of, peer_of
from backupfs.service.groups import cause
from backupfs.service.messages import (
    REQUEST_BYTES_MAX,
    Item,
    Progress,
    Reply,
    Request,
    Result,
    Stage,
    failure,
    raw,
)

CONNECTIONS_MAX: Final = 64
"""At once; more wait in the socket's backlog."""
PEER_TIMEOUT_S: Final = 30.0
"""A peer that neither sends its request nor takes its replies for so long is cut off."""
SHORTAGE_PAUSE_S: Final = 1.0
_SHORTAGES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REQUESTS: Final[msgspec.json.Decoder[Request]] = msgspec.json.Decoder(Request)
_log = logging.getLogger(__name__)


class Replies(Protocol):
    """What a request's handler may send before its result."""

    async def item(self, value: object) -> None:
        """One of several results."""
        ...

    async def progress(self, done: int, total: int, stage: Stage = "") -> None:
        """How far it is."""
        ...

    async def gone(self) -> None:
        """Wait until the peer has closed the connection."""
        ...


Handler = Callable[[Request, Replies], Awaitable[object]]
"""Does what is asked; its value is the result, its BackupfsError or FileSystemError the failure."""


class _Connection:
    """Sends replies on one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def send(self, reply: Reply) -> None:
        with trio.fail_after(PEER_TIMEOUT_S):
            await self._stream.send_all(msgspec.json.encode(reply) + b"\n")

    async def item(self, value: object) -> None:
        await self.send(Item(raw(value)))

    async def progress(self, done: int, total: int, stage: Stage = "") -> None:
        await self.send(Progress(done, total, stage))

    async def gone(self) -> None:
        while await self._stream.receive_some(REQUEST_BYTES_MAX):
            continue

    async def request(self) -> Request:
        line = bytearray()
        with trio.fail_after(PEER_TIMEOUT_S):
            while not line.endswith(b"\n"):
                part = await self._stream.receive_some(REQUEST_BYTES_MAX)
                line += part
                if not part or len(line) > REQUEST_BYTES_MAX:
                    raise BackupfsError("the request is cut short or too long")
        try:
            return _REQUESTS.decode(line)
        except msgspec.DecodeError as reason:
            raise BackupfsError(f"the request is not understood ({reason}): the mount runs another version of backupfs") from reason


@contextmanager
def _bound(path: Path) -> Iterator[socket.socket]:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, address_of(path) as address:
        listener.bind(address)
        path.chmod(0o600)
        listener.listen(CONNECTIONS_MAX)
        yield listener


@asynccontextmanager
async def listening(path: Path, handle: Handler) -> AsyncIterator[None]:
    """Answer requests on the socket `path`, which is made anew, while the context lasts.

    When the context ends well, requests that are being answered are answered to their end (a peer's time-out bounds
    that).
    """
    with _bound(path) as listener:
        acceptor = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        async with trio.open_nursery() as connections:
            accepting = await connections.start(_accept, acceptor, connections, handle)
            yield
            accepting.cancel()


async def _accept(
    acceptor: trio.SocketListener,
    connections: trio.Nursery,
    handle: Handler,
    task_status: trio.TaskStatus[trio.CancelScope] = trio.TASK_STATUS_IGNORED,
) -> None:
    places = trio.Semaphore(CONNECTIONS_MAX)
    with trio.CancelScope() as scope:
        task_status.started(scope)
        while True:
            await places.acquire()
            try:
                stream = await acceptor.accept()
            except OSError as reason:
                if reason.errno not in _SHORTAGES:
                    raise
                _log.warning("no connection can be accepted at the control socket: %s", reason.strerror)
                places.release()
                await trio.sleep(SHORTAGE_PAUSE_S)
            else:
                connections.start_soon(_answer_and_leave, stream, handle, places)


async def _answer_and_leave(stream: trio.SocketStream, handle: Handler, places: trio.Semaphore) -> None:
    try:
        async with stream:
            await _answer(stream, handle)
    except (trio.BrokenResourceError, trio.TooSlowError) as reason:
        _log.info("a command went away: %s", type(reason).__name__)
    except Exception:  # noqa: BLE001 one connection's trouble must not end the mount
        _log.exception("a command could not be answered")
    finally:
        places.release()


async def _answer(stream: trio.SocketStream, handle: Handler) -> None:
    pid, uid = peer_of(stream.socket)
    if uid not in (0, os.geteuid()):
        _log.warning("process %d of user %d was refused at the control socket", pid, uid)
        return
    connection = _Connection(stream)
    reply: Reply
    try:
        request = await connection.request()
        reply = Result(raw(await handle(request, connection)))
    except (trio.BrokenResourceError, trio.TooSlowError):
        raise
    except Exception as reason:  # noqa: BLE001 a request that fails must not end the mount
        reply = failure(reason)
        if not isinstance(cause(reason), BackupfsError):
            _log.exception("a request over the control socket failed")
    await connection.send(reply)
