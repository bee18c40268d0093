"""One mount: made, served until it is unmounted, taken away.

pyfuse3 keeps its session in module globals, so a process has one mount at a time. Order: checks, mount, INIT, the loop, the first answer; from
then on the end comes from outside (umount, fusermount3 -u) or by `unmount`. A process that goes down without unmounting leaves a dead mount on
purpose: whoever uses it must see errors, not an empty directory.
"""

import errno
import logging
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pyfuse3
import trio

from backupfs.errors import UnsupportedError
from backupfs.fuse import mount_table
from backupfs.fuse.forgetting import Forgetting
from backupfs.fuse.handshake import HandshakeError, InitFlag, negotiate
from backupfs.fuse.mount_point import check_directory, check_machine
from backupfs.fuse.operations import FileSystem, Operations
from backupfs.fuse.unmounting import FUSERMOUNT, answers, clear_stale, unmount
from backupfs.fuse.waiting import LOOK_NS, waiting_closely
from backupfs.fuse.wakeful import this_machine
from backupfs.fuse.write_back import sync_through_mount

MAX_TASKS: Final = 10_000
"""Requests in work at once. pyfuse3 reads no more beyond it, and a parked request may wait for one that was not read: so it is far above what
can be parked, and only there so that a fault does not take all memory."""
READ_AHEAD_BYTES: Final = 2 << 20
"""Two of the largest READs: while one is on its way to the reader the next is being decoded."""
PAGES_OF_MEMORY: Final = 32
"""A mount's unwritten pages take this part of the memory at most."""
_WANTED: Final = InitFlag.DONT_MASK | InitFlag.HANDLE_KILLPRIV_V2
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountOptions:
    """How to mount. `handshake` off mounts the plain way, without INIT flags of our own; `eager` off uses no processor time to look for the
    next request while they come one close after the other; `tuned` off leaves the kernel's own bounds for reading ahead and for unwritten pages,
    which only root can change; `keep_awake` off lets processors halt (`fuse/wakeful.py`).
    """

    read_only: bool = False
    allow_other: bool = False
    suid: bool = False
    dev: bool = False
    handshake: bool = True
    eager: bool = True
    tuned: bool = True
    keep_awake: bool = True

    def names(self) -> list[str]:
        """As mount(8) takes them. Never `auto_unmount`: see the top of this module. `noatime` says what is so anyway: FUSE leaves the times of
        reading to the file system, and none are kept here.
        """
        chosen = ["fsname=backupfs", "subtype=backupfs", "default_permissions", "noatime"]
        chosen += ["suid" if self.suid else "nosuid", "dev" if self.dev else "nodev"]
        if self.read_only:
            chosen.append("ro")
        if self.allow_other:
            chosen.append("allow_other")
        return chosen


class Mount:
    """A file system on a directory. `serve` is called once; the rest may be called while it runs."""

    def __init__(self, fs: FileSystem, directory: Path, options: MountOptions) -> None:
        self._fs = fs
        # fusermount3 follows no symlink when root runs it
        self._directory = Path(os.fsdecode(mount_table.resolved(directory, mount_table.read())))
        self._options = options
        self.flags = InitFlag(0)
        """INIT flags that are on, of those that libfuse cannot ask for. Known when the mount answers."""
        self._in_session = False
        """Whether pyfuse3 has a session: without one its functions end the process."""
        self._forgetting: Forgetting | None = None

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Mount, report when the mount answers, serve requests, return when it is unmounted.

        UsageError and UnsupportedError say why it cannot be mounted. A dead mount of ours on the directory is cleared first. Cancelled (or
        failing) before it answers, nothing stays mounted; later, a dead mount stays.
        """
        await self._prepare()
        # From the first request on: pyfuse3 makes its lock while INIT is answered, and keeps it.
        machine = this_machine() if self._options.keep_awake else None
        with waiting_closely(self._look_ns(), machine), _logging_no_vain_answers():
            await self._mount()
            await self._serve_session(task_status)

    async def _serve_session(self, task_status: trio.TaskStatus[None]) -> None:
        self._in_session = True
        forgetting = self._forgetting = Forgetting()
        answered = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(pyfuse3.main, max_tasks=MAX_TASKS))
                await trio.to_thread.run_sync(self._greet, abandon_on_cancel=True)
                answered = True
                if self._options.tuned and os.geteuid() == 0:
                    await self._tune()
                task_status.started()
        finally:
            self._in_session = False
            if forgetting.end():
                pyfuse3.close(unmount=False)
            else:  # a thread is held in the kernel; what it uses goes with the process
                log.warning("a directory is held in the kernel by another process, so the session ends with this process only")
            if not answered:
                unmount(self._directory, lazy=True)

    def _look_ns(self) -> int:
        """A machine with one processor looks once: nobody could send anything while it looks."""
        return LOOK_NS if self._options.eager and len(os.sched_getaffinity(0)) > 1 else 0

    async def unmount(self) -> None:
        """Unmount, or MountBusyError that says who uses it. `serve` returns when the last requests are answered."""
        await trio.to_thread.run_sync(unmount, self._directory)

    async def detach(self) -> None:
        """Take the mount away from whoever uses it. `serve` returns when the requests that were read are answered."""
        await trio.to_thread.run_sync(partial(unmount, self._directory, lazy=True))
        if self._in_session:
            pyfuse3.terminate()

    def write_back(self, path: bytes | None, ino: int) -> None:
        """`sync_through_mount` for this mount: blocks, for a thread beside the loop."""
        sync_through_mount(self._directory, path, ino)

    def forget(self, names: Sequence[tuple[int, bytes]], inodes: Sequence[int]) -> None:
        """Have the kernel forget what it knows of (directory, name), missing ones included, and the attributes of inodes. Blocks, for a thread
        beside the loop; see `fuse.forgetting` for how long. OSError.
        """
        if self._forgetting is not None:
            self._forgetting.forget(names, inodes)

    async def _prepare(self) -> None:
        uid = os.geteuid()
        check_machine(uid, allow_other=self._options.allow_other, suid=self._options.suid, dev=self._options.dev)
        if await trio.to_thread.run_sync(clear_stale, self._directory, abandon_on_cancel=True):
            log.warning("%s had a mount of a process that is gone; it was cleared", self._directory)
        await trio.to_thread.run_sync(check_directory, self._directory, uid, abandon_on_cancel=True)

    async def _mount(self) -> None:
        operations = Operations(self._fs)
        self.flags = InitFlag(0)
        if not self._options.handshake or not await self._mount_with_handshake(operations):
            self._mount_plainly(operations)
        self._fs.umask_applied = InitFlag.DONT_MASK not in self.flags
        self._fs.groups_of = supplementary_groups
        log.info("mounted on %s, with %s", self._directory, ", ".join(str(flag.name) for flag in self.flags) or "libfuse's flags only")

    async def _mount_with_handshake(self, operations: Operations) -> bool:
        """Whether that worked. If not, nothing is mounted."""
        try:
            descriptor = await trio.to_thread.run_sync(_fusermount, self._directory, self._options.names())
        except FileNotFoundError:
            log.warning("fusermount3 is missing, so the mount is slow with small writes; install the package fuse3")
            return False
        try:
            self.flags = await negotiate(descriptor, operations, _WANTED)
        except BaseException as reason:
            unmount(self._directory, lazy=True)
            if not isinstance(reason, HandshakeError):
                raise
            log.warning("the mount is slow with small writes, and default ACLs meet a umask: %s", reason)
            return False
        return True

    def _mount_plainly(self, operations: Operations) -> None:
        try:
            pyfuse3.init(operations, os.fspath(self._directory), set(self._options.names()))
        except RuntimeError as reason:
            raise UnsupportedError(f"{self._directory} cannot be mounted: {reason}") from reason

    def _greet(self) -> None:
        """The first request, answered by the loop."""
        if not answers(self._directory):
            raise UnsupportedError(f"the kernel refuses the mount on {self._directory}")

    async def _tune(self) -> None:
        """Raise bounds of the kernel's that can only be set on a mount that stands. Of unwritten pages it holds a hundredth of what others may
        otherwise, some 10 MiB for each 5 GiB of memory, and lets writers wait beyond that. `strict_limit` stays, or such pages would hold up this
        process's own writes.
        """
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        pages_bytes = 0 if self._options.read_only else self._fs.room_for_pages(memory_bytes // PAGES_OF_MEMORY)
        if not await trio.to_thread.run_sync(_raise_bounds, self._directory, pages_bytes):
            self._fs.room_for_pages(0)


def supplementary_groups(pid: int) -> frozenset[int]:
    """Those of a process that waits for an answer, which the kernel does not send along; none of one that /proc does not show, as in another
    PID namespace.
    """
    try:
        return frozenset(pyfuse3.get_sup_groups(pid))
    except OSError:
        return frozenset()


def _fusermount(directory: Path, options: list[str]) -> int:
    """Mount through fusermount3 and return the FUSE descriptor that it passes back."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            done = subprocess.run(
                [FUSERMOUNT, "-o", ",".join(options), "--", directory],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if done.returncode or not descriptors:
        raise UnsupportedError(f"{directory} cannot be mounted: {done.stderr.decode(errors='replace').strip()}")
    return descriptors[0]


def _raise_bounds(directory: Path, pages_bytes: int) -> bool:
    """Whether the kernel holds up to `pages_bytes` of unwritten pages now. Otherwise it reads ahead 128 KiB: an eighth of what one READ may ask."""
    entry = mount_table.find(directory, mount_table.read())
    if entry is None:
        return False
    settings = Path("/sys/class/bdi") / "{}:{}".format(*entry.device)
    try:
        (settings / "read_ahead_kb").write_text(str(READ_AHEAD_BYTES // 1024))
        pages = settings / "max_bytes"  # since Linux 6.3
        if not pages.exists() or int(pages.read_text()) >= pages_bytes:
            return False
        pages.write_text(str(pages_bytes))
    except OSError as error:  # no sysfs, or a read-only one, as in a container
        log.info("long reads and writes will be slower: %s: %s", settings, error.strerror)
        return False
    return True


@contextmanager
def _logging_no_vain_answers() -> Iterator[None]:
    """Whoever takes a mount away takes back what is under way, most often the RELEASE of a file that was just closed: the kernel knows no such
    request when it is answered. pyfuse3 has an error logged then, and it is none.
    """
    log_of_pyfuse3 = logging.getLogger("pyfuse3")
    log_of_pyfuse3.addFilter(_is_trouble)
    try:
        yield
    finally:
        log_of_pyfuse3.removeFilter(_is_trouble)


def _is_trouble(record: logging.LogRecord) -> bool:
    return not (str(record.msg).endswith("fuse_reply_* failed with %s") and record.args == (os.strerror(errno.ENOENT),))
