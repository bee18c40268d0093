"""A past made of what a test puts in: history, and restores that note what is asked of them."""

import errno
import stat
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from backupfs.engine.attributes import FileVersion, Found, RestoreStep, TreeChange
from backupfs.engine.restoring import RestorePlan, Touched
from backupfs.errors import FileSystemError, UsageError


@dataclass
class FakeHistory:
    """`asked` has what was asked for."""

    changes: list[TreeChange] = field(default_factory=list)
    found_versions: list[FileVersion] = field(default_factory=list)
    names: list[Found] = field(default_factory=list)
    asked: list[tuple[object, ...]] = field(default_factory=list)
    failure: Exception | None = None

    async def diff(self, older: int, newer: int, below: bytes = b"") -> list[TreeChange]:
        self._ask(older, newer, below)
        return self.changes

    async def versions(self, path: bytes) -> list[FileVersion]:
        self._ask(path)
        return self.found_versions

    async def find(self, pattern: str) -> AsyncGenerator[Found]:
        self._ask(pattern)
        for name in self.names:
            await trio.lowlevel.checkpoint()
            yield name

    def _ask(self, *what: object) -> None:
        self.asked.append(what)
        if self.failure is not None:
            raise self.failure


def step(action: str, path: bytes, *, type_bits: int = stat.S_IFREG, size: int = 10) -> RestoreStep:
    return RestoreStep(action, path, 1, 2, type_bits, size)


@dataclass
class FakeRestorer:
    """Each step touches its name in directory 7, and the inode of its number. `events` are shared with other fakes."""

    events: list[str] = field(default_factory=list)
    steps: list[RestoreStep] = field(default_factory=list)
    skipped: list[RestoreStep] = field(default_factory=list)
    troubles: dict[bytes, str] = field(default_factory=dict)
    asked: list[tuple[object, ...]] = field(default_factory=list)
    nothing_to_undo: bool = False
    wait_at: bytes | None = None
    fail_at: dict[bytes, Exception] = field(default_factory=dict)
    waiting: trio.Event = field(default_factory=trio.Event)
    touched: Touched = field(default_factory=Touched)
    under_way: int = 0

    async def plan(self, serial: int, path: bytes, target: bytes | None = None, *, overwrite: bool = False, delete: bool = False) -> RestorePlan:
        self.events.append("plan")
        self.asked.append((serial, path, target, overwrite, delete))
        if path == b"never":
            raise FileSystemError(errno.ENOENT)
        return RestorePlan(serial, path, path if target is None else target, self.steps, self.skipped)

    async def plan_undo(self) -> RestorePlan:
        self.events.append("plan undo")
        if self.nothing_to_undo:
            raise UsageError("nothing has been restored")
        return RestorePlan(1, b"", b"", self.steps, self.skipped)

    async def carry_out(self, plan: RestorePlan) -> AsyncGenerator[tuple[RestoreStep, str]]:
        self.under_way += 1
        assert self.under_way == 1, "two at a time"
        try:
            for number, step in enumerate(plan.steps):
                await trio.lowlevel.checkpoint()
                if step.path == self.wait_at:
                    self.waiting.set()
                    await trio.sleep_forever()
                if step.path in self.fail_at:
                    raise self.fail_at[step.path]
                self.events.append(f"{step.action} {step.path.decode()}")
                self.touched.names.append((7, step.path))
                self.touched.inodes.add(number)
                yield step, self.troubles.get(step.path, "")
        finally:
            self.under_way -= 1

    def take_touched(self) -> Touched:
        touched, self.touched = self.touched, Touched()
        return touched
