"""How pyfuse3 waits for the next request.

pyfuse3 takes `trio` from its own namespace (that is how its asyncio flavour plugs in), so what it waits with can be exchanged while a mount is
served. Two reasons:

* It reads the FUSE descriptor as soon as it was readable, blocking and with the interpreter lock held. A request whose caller is killed before it
  is read vanishes, and then the whole process stands still until somebody sends another. So the descriptor is looked at again right before it is
  read, and where it could be made non-blocking, a read that finds nothing after all goes back to waiting.
* It waits once for a lock and once in the loop's selector for every request, which costs more than most requests do. So whether a request is
  there is looked at first, and while requests come one close after the other, for a moment longer, before the loop goes to sleep.

Where halted processors would be slow to wake, they are kept awake meanwhile (`fuse/wakeful.py`). Every few requests the loop gets a turn, and
whenever a handler waits.
"""

import ctypes
import errno
import logging
import select
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

import pyfuse3
import trio

from backupfs.fuse.wakeful import Machine, Wakeful

REQUESTS_PER_TURN: Final = 16
"""So many requests may be served without a turn for other tasks: about a millisecond."""
LOOK_NS: Final = 40_000
"""A process that sends one request after the other sends the next within so long; waking up takes about as long."""
CLOSE_NS: Final = 150_000
"""A request that was slept for at most so long came close after the one before."""


_SHORTAGE_S: Final = 0.1
"""When there was no memory for a request it is asked for again after so long."""
_log = logging.getLogger(__name__)


class _PollRecord(ctypes.Structure):
    """struct pollfd."""

    _fields_ = (("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short))


class _Descriptor:
    """Looking at one descriptor without waiting for it."""

    def __init__(self, number: int) -> None:
        self.number = number
        poll = ctypes.PyDLL(None).poll
        poll.argtypes = (ctypes.POINTER(_PollRecord), ctypes.c_ulong, ctypes.c_int)
        self.readable: Callable[[], int] = partial(poll, ctypes.pointer(_PollRecord(number, select.POLLIN, 0)), 1, 0)
        """Whether there is something to read. Does not let go of the interpreter lock: what it tells is still true when the read comes."""
        self._poll = select.poll()
        self._poll.register(number, select.POLLIN)

    def readable_within(self, look_ns: int) -> bool:
        """Whether something came within so long. Other threads may run meanwhile."""
        until = time.perf_counter_ns() + look_ns
        while time.perf_counter_ns() < until:
            if self._poll.poll(0):
                return True
        return False


class _Lock:
    """Lets one worker at a time wait for the descriptor. No checkpoint while it is free, and not fair: who has just served a request takes the
    next one too, unless it has waited for something.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *reason: object) -> None:
        self._held = False
        if self._waiting:
            self._waiting.unpark()


class _Workers:
    """The nursery of pyfuse3's workers."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, work: Callable[..., Awaitable[None]], *args: object, name: str) -> None:
        self._nursery.start_soon(partial(_work, work, *args), name=name)


async def _work(work: Callable[..., Awaitable[None]], *args: object) -> None:
    """One worker. Where a read found nothing, or no memory for a request, it had none in hand, and goes on."""
    while True:
        try:
            await work(*args)
        except BlockingIOError:
            continue
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            _log.warning("there was no memory for a request; it is asked for again")
            await trio.sleep(_SHORTAGE_S)
            continue
        return


class _LowLevel:
    """`trio.lowlevel`, as far as pyfuse3 uses it, for one session."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)

    def __init__(self, look_ns: int, wakeful: Wakeful) -> None:
        self._look_ns = look_ns
        self._wakeful = wakeful
        self._descriptor: _Descriptor | None = None
        self._since_turn = 0
        self._close_together = False
        self._closing = False

    def notify_closing(self, number: int) -> None:
        """Ends waiting, now and later."""
        self._closing = True
        trio.lowlevel.notify_closing(number)

    async def wait_readable(self, number: int) -> None:
        """Returns when there is something to read, and where a read might not come back, it is still there."""
        descriptor = self._descriptor
        if descriptor is None or descriptor.number != number:
            descriptor = self._descriptor = _Descriptor(number)
        self._since_turn += 1
        if self._since_turn >= REQUESTS_PER_TURN:
            self._since_turn = 0
            self._wakeful.came(REQUESTS_PER_TURN)
            await trio.lowlevel.checkpoint()
        while not descriptor.readable():
            if self._closing:
                raise trio.ClosedResourceError
            if self._close_together and descriptor.readable_within(self._look_ns):
                # Other threads have run since: what was there may be gone with a caller that was killed. A read that finds nothing costs the
                # buffer that pyfuse3 has got for it.
                continue
            self._wakeful.came(self._since_turn)
            self._since_turn = 0
            before_ns = time.perf_counter_ns()
            await trio.lowlevel.wait_readable(number)
            self._close_together = time.perf_counter_ns() - before_ns < CLOSE_NS


class _Trio:
    """`trio`, as far as pyfuse3 uses it."""

    ClosedResourceError = trio.ClosedResourceError
    Lock = _Lock

    def __init__(self, look_ns: int, wakeful: Wakeful) -> None:
        self.lowlevel = _LowLevel(look_ns, wakeful)
        self._wakeful = wakeful

    @asynccontextmanager
    async def open_nursery(self) -> AsyncIterator[_Workers]:
        """For the workers of the session."""
        async with trio.open_nursery() as beside:
            beside.start_soon(self._wakeful.run)
            async with trio.open_nursery() as nursery:
                yield _Workers(nursery)
            beside.cancel_scope.cancel()


@contextmanager
def waiting_closely(look_ns: int = LOOK_NS, machine: Machine | None = None) -> Iterator[None]:
    """The session served while this is open waits as described above. With `look_ns` 0 it looks once before it sleeps. The processors of `machine`
    are kept awake while requests are dense.
    """
    namespace: dict[str, Any] = vars(pyfuse3)
    before = namespace["trio"]
    namespace["trio"] = _Trio(look_ns, Wakeful(machine))
    try:
        yield
    finally:
        namespace["trio"] = before
