"""A repository whose commands cost no new interpreter: one process has loaded backupfs and runs command after command.

The process of a mount is forked from it as from any command, so what serves the files is what serves them otherwise. A password is stretched once
and remembered, since that is most of what a mount takes and nothing that is looked at here.
"""

import functools
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from backupfs import limits
from backupfs.cli.main import main
from backupfs.codec import keys
from tests.mounted import CommandFailedError, Repository


class QuickRepository(Repository):
    """As `Repository`, with other limits if any are given; `close` ends the process that runs the commands."""

    def __init__(self, base: Path, limits: Mapping[str, float]) -> None:
        super().__init__(base)
        self._runner = subprocess.Popen(
            [sys.executable, "-m", "tests.posix.quick", json.dumps(dict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.environment(),
            cwd=base,
            text=True,
        )

    def command(
        self,
        *arguments: str | Path,
        expect: int | None = 0,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.CompletedProcess[str]:
        """Run `backupfs ARGUMENTS` to its end. With an environment or input of its own it runs as any command does."""
        if env is not None or stdin is not None or pass_fds:
            return super().command(*arguments, expect=expect, env=env, stdin=stdin, pass_fds=pass_fds)
        words = [os.fspath(argument) for argument in arguments]
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(words) + "\n")
        self._runner.stdin.flush()
        answer = self._runner.stdout.readline()
        assert answer, "the process that runs the commands has ended"
        told = json.loads(answer)
        done = subprocess.CompletedProcess(words, told["code"], told["out"], told["err"])
        if expect is not None and done.returncode != expect:
            raise CommandFailedError(["backupfs", *words], done)
        return done

    def close(self) -> None:
        """Nothing of it runs, nothing is mounted."""
        self._runner.communicate()
        super().close()


def _run(arguments: list[str]) -> dict[str, Any]:
    sys.argv = ["backupfs", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _reap() -> None:
    """Processes of mounts that have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _end_children() -> None:
    """Whoever serves a mount still, after a test that failed."""
    for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)


def serve(other_limits: Mapping[str, float]) -> None:
    """One command a line on stdin, as a JSON list; one answer a line on stdout. At the end nothing that was started is left."""
    for name, value in other_limits.items():  # before the modules of any verb are loaded
        setattr(limits, name, type(getattr(limits, name))(value))
    keys.stretch = functools.cache(keys.stretch)
    for line in sys.stdin:
        answer = _run(json.loads(line))
        _reap()
        print(json.dumps(answer), flush=True)
    _end_children()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
