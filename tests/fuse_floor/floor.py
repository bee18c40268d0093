"""The fake file system on a real mount, in this process.

File operations run in threads: the loop serves them. What would hold the interpreter lock while it waits for the mount (a mapped page touched
from Python) needs a process of its own.
"""

import ctypes
import os
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio

from backupfs.fuse import mount_table
from backupfs.fuse.mount import Mount, MountOptions
from tests.fuse_floor.fake import FakeFileSystem

T = TypeVar("T")
AT_FDCWD = -100


@dataclass
class Floor:
    fs: FakeFileSystem
    mount: Mount
    directory: Path

    async def do(self, work: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call something that uses the mount."""
        return await trio.to_thread.run_sync(partial(work, *args, **kwargs))

    async def requests(self, name: str, work: Callable[..., object], *args: Any, **kwargs: Any) -> int:
        """How many engine calls of that name something causes."""
        before = self.fs.requests[name]
        await self.do(work, *args, **kwargs)
        return self.fs.requests[name] - before

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for requests that nobody waits for (FORGET, RELEASE): they are served between others."""
        for _ in range(10_000):
            if condition():
                return
            await self.do(os.statvfs, self.directory)
        raise AssertionError("it did not come to that")


@asynccontextmanager
async def serving(directory: Path, options: MountOptions | None = None, fs: FakeFileSystem | None = None) -> AsyncIterator[Floor]:
    """Mounted inside; unmounted, and its end waited for, behind."""
    options = MountOptions() if options is None else options
    fs = FakeFileSystem(os.geteuid(), os.getegid()) if fs is None else fs
    if not mount_table.is_mounted(directory):
        directory.mkdir(exist_ok=True)
    mount = Mount(fs, directory, options)
    async with trio.open_nursery() as nursery:
        await nursery.start(mount.serve)
        try:
            yield Floor(fs, mount, directory)
        finally:
            with trio.CancelScope(shield=True):
                await mount.detach()


def renameat2(old: Path, new: Path, flags: int) -> None:
    """rename(2) with flags; OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def file_handle(path: Path) -> bytes:
    """The handle by which NFS would know a file: name_to_handle_at(2)."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(AT_FDCWD, os.fsencode(path), handle, ctypes.byref(ctypes.c_int()), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle.raw


def read_by_handle(directory: Path, handle: bytes) -> bytes:
    """The first bytes of the file with this handle, on what is mounted on the directory: open_by_handle_at(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        opened = libc.open_by_handle_at(top, handle, os.O_RDONLY)
        if opened < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        try:
            return os.read(opened, 1 << 16)
        finally:
            os.close(opened)
    finally:
        os.close(top)
