"""The fake file system on a mount in a process of its own, as any user: `server.py DIR [--user UID] [--allow-other]`.

Says `mounted` when it answers, then obeys lines on standard input: `write-back INO PATH` (answered with `done` or the error), `data PATH`
(answered with the bytes that have arrived, in hex). It ends when it is unmounted.
"""

import argparse
import os
from pathlib import Path

import trio

from backupfs.errors import BackupfsError
from backupfs.fuse.mount import Mount, MountOptions
from tests.fuse_floor.fake import FakeFileSystem


def obey(mount: Mount, fs: FakeFileSystem, line: bytes) -> str:
    verb, *rest = line.split()
    if verb == b"data":
        return bytes(fs.node(rest[0]).data).hex()
    try:
        mount.write_back(rest[1], int(rest[0]))
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


async def listen(mount: Mount, fs: FakeFileSystem) -> None:
    buffer = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        while received := await stream.receive_some():
            *lines, buffer = (buffer + received).split(b"\n")
            for line in lines:
                print(await trio.to_thread.run_sync(obey, mount, fs, line, abandon_on_cancel=True), flush=True)


async def main(directory: Path, options: MountOptions) -> None:
    fs = FakeFileSystem(os.geteuid(), os.getegid())
    mount = Mount(fs, directory, options)
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await mount.serve(task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(serve)
        print("mounted", flush=True)
        nursery.start_soon(listen, mount, fs)


def as_user(uid: int) -> None:
    """Nothing but the saved user id stays, which no program that is started from here gets."""
    os.setgroups([])
    os.setresgid(uid, uid, 0)
    os.setresuid(uid, uid, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--user", type=int)
    parser.add_argument("--allow-other", action="store_true")
    given = parser.parse_args()
    if given.user is not None:
        as_user(given.user)
    try:
        trio.run(main, given.directory, MountOptions(allow_other=given.allow_other))
    except* BackupfsError as errors:
        for error in errors.exceptions:
            print(f"{type(error).__name__}: {error}", flush=True)
    if given.user is not None:
        os.setresuid(0, 0, 0)  # what the process writes at its end (coverage) goes where root's does
        os.setresgid(0, 0, 0)
