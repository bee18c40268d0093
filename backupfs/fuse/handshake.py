"""INIT, relayed: flags that libfuse and pyfuse3 cannot ask for, negotiated all the same.

libfuse takes an already opened FUSE descriptor as the mount point "/dev/fd/N". At N first stands one end of a socket pair: the kernel's INIT
request is handed to libfuse through it, libfuse's answer comes back, the wanted flags that the kernel offered are added, the
kernel gets that, and then the FUSE descriptor takes the socket's place. From there on libfuse talks to the kernel directly;
nothing is copied twice.

Layouts: `fuse_in_header`, `fuse_init_in`, `fuse_out_header`, `fuse_init_out` in Linux' include/uapi/linux/fuse.h.
"""

import enum
import os
import select
import socket
import struct
from typing import Final

import pyfuse3
import trio

_IN_HEADER: Final = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, nodeid, uid, gid, pid, ...
_INIT_IN: Final = struct.Struct("<4I")  # major, minor, max_readahead, flags
_OUT_HEADER: Final = struct.Struct("<IiQ")  # length, error, unique
_INIT_OUT: Final = struct.Struct("<4I")  # major, minor, max_readahead, flags
_INIT: Final = 26
_MAJOR: Final = 7
_REQUEST_BYTES_MAX: Final = 1 << 16
_ANSWER_BYTES_MAX: Final = 1 << 12
_PATIENCE_S: Final = 10.0
"""The request is there when mount(2) returns and libfuse answers at once; waiting longer than this would be for ever."""


class InitFlag(enum.IntFlag):
    """Flags of the INIT answer that are added here."""

    DONT_MASK = 1 << 6
    """Modes arrive before the umask, so that default ACLs can be inherited as POSIX wants."""
    HANDLE_KILLPRIV_V2 = 1 << 28
    """The kernel keeps in mind that a file has no security.capability, instead of asking before every write(2)."""


class HandshakeError(Exception):
    """Kernel and libfuse did not come to terms over the relay. The descriptor is closed."""


def offered(request: bytes) -> int:
    """The flags that the kernel offers in its INIT request."""
    if len(request) < _IN_HEADER.size + _INIT_IN.size:
        raise HandshakeError(f"the kernel's first request has {len(request)} bytes")
    opcode = _IN_HEADER.unpack_from(request)[1]
    major, _, _, flags = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if opcode != _INIT or major != _MAJOR:
        raise HandshakeError(f"the kernel begins with request {opcode} of protocol {major}")
    return int(flags)


def with_flags(answer: bytes, wanted: int) -> bytes:
    """The answer of libfuse to INIT, with more flags in it."""
    if len(answer) < _OUT_HEADER.size + _INIT_OUT.size:
        raise HandshakeError(f"libfuse answers INIT with {len(answer)} bytes")
    length, error, _ = _OUT_HEADER.unpack_from(answer)
    major, minor, max_readahead, flags = _INIT_OUT.unpack_from(answer, _OUT_HEADER.size)
    if length != len(answer) or error or major != _MAJOR:
        raise HandshakeError(f"libfuse answers INIT with error {error}, protocol {major}, {length} bytes")
    changed = bytearray(answer)
    _INIT_OUT.pack_into(changed, _OUT_HEADER.size, major, minor, max_readahead, flags | wanted)
    return bytes(changed)


async def negotiate(fuse_fd: int, operations: pyfuse3.Operations, wanted: InitFlag) -> InitFlag:
    """Make a pyfuse3 session out of a freshly mounted FUSE descriptor, and tell which of the wanted flags are on.

    The descriptor is taken over, whatever comes: on return the session owns it (`pyfuse3.close` ends it), after HandshakeError or
    cancellation it is closed and there is no session.
    """
    try:
        request = _first_request(fuse_fd)
        added = wanted & offered(request)
        session, session_fd = _session(operations)
        with session:
            try:
                answer = await _answer(session, request)
                os.write(fuse_fd, with_flags(answer, added))
                os.set_blocking(fuse_fd, False)  # see waiting.py
                os.dup2(fuse_fd, session_fd, inheritable=False)
            except BaseException:
                pyfuse3.close(unmount=False)
                raise
    except OSError as reason:
        raise HandshakeError(str(reason)) from reason
    finally:
        os.close(fuse_fd)
    return added


def _first_request(fuse_fd: int) -> bytes:
    """mount(2) itself has put it there, so this does not wait."""
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    if not poll.poll(_PATIENCE_S * 1000):
        raise HandshakeError("the kernel sends no INIT request")
    return os.read(fuse_fd, _REQUEST_BYTES_MAX)


def _session(operations: pyfuse3.Operations) -> tuple[trio.socket.SocketType, int]:
    """A pyfuse3 session on one end of a socket pair: the other end, and the session's descriptor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session_fd = theirs.detach()
    try:
        pyfuse3.init(operations, f"/dev/fd/{session_fd}", set())
    except RuntimeError as reason:
        os.close(session_fd)
        ours.close()
        raise HandshakeError(str(reason)) from reason
    return trio.socket.from_stdlib_socket(ours), session_fd


async def _answer(session: trio.socket.SocketType, request: bytes) -> bytes:
    """What libfuse answers. Its loop runs until then; it is cancelled where it waits for the next request, which nobody has sent."""
    try:
        with trio.fail_after(_PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main)
                await session.send(request)
                answer = await session.recv(_ANSWER_BYTES_MAX)
                nursery.cancel_scope.cancel()
    except (trio.TooSlowError, ExceptionGroup) as reason:
        raise HandshakeError("libfuse does not answer INIT") from reason
    return answer
