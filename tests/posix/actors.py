"""Somebody who makes system calls: a child process with a user, a group, supplementary groups and a umask of its own.

One child serves a whole session of tests, and a call costs two pipe transfers, so a table of hundreds of rules takes less than a second.
"""

import errno
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any, Final

_AGENT: Final = Path(__file__).with_name("agent.py")


class Actor:
    """One identity. Only root can make one that is not its own."""

    def __init__(self, uid: int, gid: int, groups: tuple[int, ...] = (), umask: int = 0o022) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self._umask = umask
        words = [str(uid), str(gid), ",".join(map(str, groups)), str(umask)]
        self._child = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-c", _AGENT.read_text(encoding="utf-8"), *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )

    def __repr__(self) -> str:
        return f"Actor({self.uid}, {self.gid}, {self.groups})"

    def call(self, name: str, *positional: Any, **named: Any) -> Any:
        """Make a call; its value, or the name of its error, as in "EPERM".

        `name` is a function of `os`, or one of `tests/posix/agent.py`, for which `os` has no words: `call("chmod", path, 0o644)`,
        `call("renameat2", old, new, 1)`, `call("c", "chmod", 1, 0o644)`. A descriptor that a call returns is one of the child's: hand it to the next.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        plain = [os.fspath(argument) if isinstance(argument, Path) else argument for argument in positional]
        self._child.stdin.write(pickle.dumps((name, plain, named), 4))
        self._child.stdin.flush()
        number, value = pickle.load(self._child.stdout)
        return errno.errorcode[number] if number else value

    def reset(self) -> None:
        """Close every descriptor, leave every directory, take the umask of the start."""
        self.call("reset", self._umask)

    def close(self) -> None:
        """End the child."""
        self._child.communicate()
