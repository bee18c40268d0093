"""The way back: entries of a snapshot into the live tree, without copying data, by a plan that is made first.

What is restored becomes new inodes that share the extents of then, put in place as a replacing rename does it; nothing changes content, size or times
of a file that the kernel knows. A plan is made from the difference between then and now, so it costs what differs. Each of its steps is atomic and
looks again whether the live tree still is as the plan has it; one that does not find it so is left out, and said.
"""

import errno
import os
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

import trio

from backupfs import limits
from backupfs.engine.attributes import RestoreStep
from backupfs.engine.filedata import FileData
from backupfs.engine.history import History, TouchedRecords, attributes_differ, content_differs
from backupfs.engine.inodes import InodeState, InodeTable
from backupfs.engine.namespace import SNAPSHOTS_NAME, Namespace
from backupfs.engine.snapshots import Snapshots
from backupfs.engine.view import View
from backupfs.engine.volume import Volume
from backupfs.errors import FileSystemError, UsageError
from backupfs.format import catalog as records
from backupfs.format.catalog import EPOCH_MAX, Inode, Orphan, Table, number_key, region_key
from backupfs.ids import ROOT_INO


class Action(Enum):
    """What a step does: bring back what is missing, put the old in place of the new, set attributes of a directory, remove what was not there."""

    ADD = "add"
    REPLACE = "replace"
    ATTRIBUTES = "attributes"
    REMOVE = "remove"


@dataclass(slots=True)
class RestorePlan:
    """What would be done, in order. `skipped` are steps that were asked for by nobody: `overwrite` or `delete` was not given."""

    serial: int
    path: bytes
    target: bytes
    steps: list[RestoreStep] = field(default_factory=list)
    skipped: list[RestoreStep] = field(default_factory=list)


@dataclass(slots=True)
class Touched:
    """What the kernel has to forget: (directory, name), and inodes whose attributes have changed."""

    names: list[tuple[int, bytes]] = field(default_factory=list)
    inodes: set[int] = field(default_factory=set)


class Restorer:
    """Plans and carries out. One restore at a time."""

    def __init__(
        self,
        volume: Volume,
        inodes: InodeTable,
        data: FileData,
        names: Namespace,
        snapshots: Snapshots,
        history: History,
        admit: Callable[[], Awaitable[None]],
        lost: Callable[[InodeState], None],
        wake: Callable[[], None],
    ) -> None:
        """`admit` waits until something new may be made; `lost` is told of an inode that has lost a name, `wake` when there is something to end."""
        self._volume = volume
        self._inodes = inodes
        self._data = data
        self._names = names
        self._snapshots = snapshots
        self._history = history
        self._admit = admit
        self._lost = lost
        self._wake = wake
        self._one_at_a_time = trio.Lock()

    def last_restored(self) -> tuple[int, bytes]:
        """(serial, path) of the snapshot taken before the last restore, and what was restored. UsageError when there is none."""
        found = self._snapshots.before_restore()
        if not found:
            raise UsageError("nothing has been restored that could be undone, or the snapshot taken before it is gone")
        serial, path = found[-1]
        return serial, b"" if path == b"/" else path

    async def plan(self, serial: int, path: bytes, target: bytes | None = None, *, overwrite: bool = False, delete: bool = False) -> RestorePlan:
        """What it takes to have the entry at `path`, and all below it, as the snapshot has it, there or at `target`.

        FileSystemError ENOENT when the snapshot has no such entry, or `target` lies in no directory; UsageError when `target` exists.
        """
        path = _plain(path)
        place = path if target is None else _plain(target)
        plan = RestorePlan(serial, path, place)
        with self._snapshots.reading(serial):
            if place != path:
                return await self._plan_elsewhere(plan, self._view(serial))
            touched = await self._history.touched(serial)
            then, now = self._view(serial), View(self._volume.catalog, self._volume.keys, EPOCH_MAX)
            if then.resolve(path) is None:
                raise FileSystemError(errno.ENOENT)
            wanted = {Action.ADD: True, Action.REPLACE: overwrite, Action.ATTRIBUTES: overwrite, Action.REMOVE: delete}
            for step in await _in_order(Comparison(touched, then, now, with_times=overwrite).steps(path)):
                (plan.steps if wanted[Action(step.action)] else plan.skipped).append(step)
            return plan

    async def plan_undo(self) -> RestorePlan:
        """What it takes to have what was restored last as it was before: what was not there goes, with the directories that were made for it and have
        nothing else in them. UsageError when there is nothing to undo.
        """
        serial, path = self.last_restored()
        with self._snapshots.reading(serial):
            touched = await self._history.touched(serial)
            then, now = self._view(serial), View(self._volume.catalog, self._volume.keys, EPOCH_MAX)
            plan = RestorePlan(serial, path, path)
            plan.steps = await _in_order(Comparison(touched, then, now, with_times=True).steps(path))
            plan.steps += _made_for(path, then, now)
            return plan

    async def carry_out(self, plan: RestorePlan) -> AsyncGenerator[tuple[RestoreStep, str]]:
        """Do the steps: each, with why it was left out or nothing, as it is done. `touched` says afterwards what the kernel has to forget."""
        async with self._one_at_a_time:
            self.touched = Touched()
            made: dict[int, int] = {}
            directories: list[tuple[int, Inode]] = []
            with self._snapshots.reading(plan.serial):
                try:
                    for step in plan.steps:
                        try:
                            await self._admit()
                            await self._do(plan, step, made, directories)
                        except FileSystemError as error:
                            yield step, os.strerror(error.errno)
                        else:
                            yield step, ""
                finally:
                    # Their times last, also of what has come so far: what was put into them has changed these.
                    for ino, record in reversed(directories):
                        self._set_times(ino, record)
                    self.touched.inodes |= {ino for ino, _ in directories}

    touched = Touched()

    def take_touched(self) -> Touched:
        """What the kernel has to forget since this was last asked, or since the restore began."""
        touched, self.touched = self.touched, Touched()
        return touched

    # steps

    async def _do(self, plan: RestorePlan, step: RestoreStep, made: dict[int, int], directories: list[tuple[int, Inode]]) -> None:
        parent, name = self._place_of(step)
        if step.action == Action.REMOVE.value:
            self._remove(parent, name)
            return
        then = self._view(plan.serial)
        record = then.inode(step.old_ino)
        if record is None:
            raise FileSystemError(errno.ESTALE)
        if step.action == Action.ATTRIBUTES.value:
            self._set_attributes(step.live_ino, record, then.xattrs(step.old_ino))
            directories.append((step.live_ino, record))
            return
        ino = made.get(step.old_ino) or (step.shared_ino if self._is_as_then(step.shared_ino, record) else 0)
        if ino and self._may_be_linked(ino):
            self._replace_name(step, parent, name, ino)
        else:
            state = await self._copy(step, record, plan.serial, parent, name)
            made[step.old_ino] = state.ino
            if stat.S_ISDIR(record.mode):
                directories.append((state.ino, record))

    async def _copy(self, step: RestoreStep, record: Inode, serial: int, parent: int, name: bytes) -> InodeState:
        """A new inode under a name, replacing what the plan has there, that shares the extents of an old one."""
        if not record.data:
            return self._put_copy(step, record, 0, serial, parent, name)
        data = self._volume.next_data()
        key = records.orphan_key(records.ORPHAN_DATA, data)
        to_end = Orphan(self._volume.catalog.epoch, 0)
        self._volume.catalog.put(Table.ORPHANS, key, records.encode(to_end))
        try:
            await self._copy_regions(record.data, data, serial)
            if self._place_of(step) != (parent, name):
                raise FileSystemError(errno.ESTALE)
            state = self._put_copy(step, record, data, serial, parent, name)
        except BaseException:
            self._data.ended.append((data, to_end))
            self._wake()
            raise
        self._volume.catalog.put(Table.ORPHANS, key, None)
        return state

    def _put_copy(self, step: RestoreStep, record: Inode, data: int, serial: int, parent: int, name: bytes) -> InodeState:
        xattrs = self._view(serial).xattrs(step.old_ino)
        with self._making_way(step, parent, name):
            return self._names.adopt(parent, name, record, data, xattrs)

    async def _copy_regions(self, old: int, new: int, serial: int) -> None:
        """The regions of a file under a new number, in steps. Until a name leads to them they are on record as to be ended."""
        catalog = self._volume.catalog
        after = number_key(old)
        while True:
            copied = 0
            for object_key, value in catalog.scan(Table.REGIONS, number_key(old), after, self._snapshots.epoch_of(serial)):
                catalog.write(Table.REGIONS, region_key(new, records.region_of(object_key)[1]), value)
                after = object_key
                copied += 1
                if copied == limits.RESTORE_REGIONS_PER_STEP:
                    break
            if copied < limits.RESTORE_REGIONS_PER_STEP:
                return
            await self._admit()
            await trio.lowlevel.checkpoint()

    def _may_be_linked(self, ino: int) -> bool:
        state = self._inodes.get(ino)
        return state is not None and 0 < state.record.nlink < limits.LINKS_MAX

    def _is_as_then(self, ino: int, then: Inode) -> bool:
        """Whether a file still is what it was when the plan was made: the same as then."""
        state = self._inodes.get(ino) if ino else None
        return state is not None and state.clean and state.record.size == then.size and not attributes_differ(then, state.record)

    def _replace_name(self, step: RestoreStep, parent: int, name: bytes, ino: int) -> None:
        """Another name for what has been brought back already."""
        with self._making_way(step, parent, name):
            self._names.link(ino, parent, name)
        self.touched.inodes.add(ino)

    @contextmanager
    def _making_way(self, step: RestoreStep, parent: int, name: bytes) -> Iterator[None]:
        """Without what has this name, if anything has. FileSystemError ENOTEMPTY for a directory that is not empty."""
        above = self._names.directory(parent)
        mtime_ns = above.record.mtime_ns
        if self._names.find(parent, name) is not None:
            self._remove(parent, name)
        yield
        self._touch_name(parent, name)
        if step.action == Action.REPLACE.value:
            # It has the same names as before.
            above.record.mtime_ns = mtime_ns
            self._inodes.touch(above)

    def _remove(self, parent: int, name: bytes) -> None:
        entry = self._names.find(parent, name)
        if entry is None:
            raise FileSystemError(errno.ENOENT)
        is_directory = entry.type == stat.S_IFDIR >> 12
        state = self._names.remove_directory(parent, name) if is_directory else self._names.unlink(parent, name)
        self.touched.inodes.add(state.ino)
        self._touch_name(parent, name)
        self._lost(state)

    def _touch_name(self, parent: int, name: bytes) -> None:
        self.touched.names.append((parent, name))
        self.touched.inodes.add(parent)

    def _set_attributes(self, ino: int, record: Inode, xattrs: dict[bytes, bytes]) -> None:
        state = self._names.directory(ino)
        state.record.mode, state.record.uid, state.record.gid = record.mode, record.uid, record.gid
        state.record.ctime_ns = self._volume.now_ns()
        if self._inodes.xattrs(state) != xattrs:
            self._inodes.set_xattrs(state, xattrs)
        self._inodes.touch(state)

    def _set_times(self, ino: int, record: Inode) -> None:
        state = self._inodes.get(ino)
        if state is not None:
            state.record.atime_ns, state.record.mtime_ns = record.atime_ns, record.mtime_ns
            self._inodes.touch(state)

    # places

    def _place_of(self, step: RestoreStep) -> tuple[int, bytes]:
        """`_place` of a step's path. FileSystemError ESTALE when something else stands there than the plan has."""
        present = View(self._volume.catalog, self._volume.keys, EPOCH_MAX)
        if (present.resolve(step.path) or 0) != step.live_ino:
            raise FileSystemError(errno.ESTALE)
        return self._place(step.path)

    def _place(self, path: bytes) -> tuple[int, bytes]:
        """(directory, name) of a path in the live tree. FileSystemError ENOENT, ENOTDIR."""
        above, _, name = path.rpartition(b"/")
        ino = int(ROOT_INO)
        for part in filter(None, above.split(b"/")):
            entry = self._names.find(ino, part)
            if entry is None:
                raise FileSystemError(errno.ENOENT)
            ino = self._names.directory(entry.ino).ino
        return ino, name

    async def _plan_elsewhere(self, plan: RestorePlan, then: View) -> RestorePlan:
        if not plan.target:
            raise UsageError("the root cannot be replaced; name a place below it")
        if b"\0" in plan.target or any(part in (b".", b"..", SNAPSHOTS_NAME) for part in plan.target.split(b"/")):
            raise UsageError(f"{os.fsdecode(plan.target)!r} is no place to restore to; name a path from the root, without `.`, `..` and `.snapshots`")
        ino = then.resolve(plan.path)
        if ino is None:
            raise FileSystemError(errno.ENOENT)
        parent, name = self._place(plan.target)
        self._names.directory(parent)
        if self._names.find(parent, name) is not None:
            raise UsageError(f"{os.fsdecode(plan.target)!r} exists; choose a place that does not")
        for path, number, record in _walk(then, plan.target, ino):
            plan.steps.append(RestoreStep(Action.ADD.value, path, number, 0, stat.S_IFMT(record.mode), record.size))
            if not len(plan.steps) % limits.COMPARED_PER_STEP:
                await trio.lowlevel.checkpoint()
        return plan

    def _view(self, serial: int) -> View:
        return View(self._volume.catalog, self._volume.keys, self._snapshots.epoch_of(serial))


def _plain(path: bytes) -> bytes:
    return b"/".join(filter(None, path.split(b"/")))


def _made_for(path: bytes, then: View, now: View) -> Iterator[RestoreStep]:
    """The directories above a path that were not there then and have nothing else in them, removed, the deepest first."""
    above, _, name = path.rpartition(b"/")
    while above and then.resolve(above) is None:
        ino = now.resolve(above)
        record = None if ino is None else now.inode(ino)
        if ino is None or record is None or any(entry.name != name for _, entry in now.entries(ino, b"")):
            return
        yield RestoreStep(Action.REMOVE.value, above, 0, ino, stat.S_IFDIR, record.size)
        above, _, name = above.rpartition(b"/")


async def _in_order(steps: Iterator[RestoreStep | None]) -> list[RestoreStep]:
    """In the order in which they are done. Others have their turn between."""
    found: list[RestoreStep] = []
    for number, step in enumerate(steps):
        if not number % limits.COMPARED_PER_STEP:
            await trio.lowlevel.checkpoint()
        found += [] if step is None else [step]
    return sorted(found, key=_order)


def _order(step: RestoreStep) -> tuple[int, tuple[bytes, ...]]:
    """Removing comes first, the deepest first; then from the top downwards."""
    parts = tuple(step.path.split(b"/"))
    if step.action == Action.REMOVE.value:
        return -len(parts), parts
    return 1, parts


class Comparison:
    """Two trees side by side, the past one and the present one. Of directories that are the same inode in both only those entries are looked at that
    lead to something with a version between them; what stands under other inodes is walked whole.
    """

    def __init__(self, touched: TouchedRecords, then: View, now: View, *, with_times: bool) -> None:
        """`with_times`: a directory also differs when its entries have changed."""
        self._touched = touched
        self._then = then
        self._now = now
        self._with_times = with_times
        self._worth: dict[int, set[bytes]] = {}

    def steps(self, top: bytes) -> Iterator[RestoreStep | None]:
        """What it takes to have everything at and below a path as it was; the directories above it, too, when they are gone. None for what was looked
        at and needs nothing: others have their turn between.
        """
        yield from self._note_all()
        parts = top.split(b"/") if top else []
        missing = (above for depth in range(1, len(parts)) if self._now.resolve(above := b"/".join(parts[:depth])) is None)
        for above in missing:
            yield from self._added(above, self._then.resolve(above), only_itself=True)
        waiting = [(top, self._then.resolve(top), self._now.resolve(top))]
        while waiting:
            path, old, live = waiting.pop()
            yield None
            was = None if old is None else self._then.inode(old)
            is_ = None if live is None else self._now.inode(live)
            if old is None or was is None:
                yield from self._removed(path, live)
            elif live is None or is_ is None:
                yield from self._added(path, old)
            elif stat.S_ISDIR(was.mode) and stat.S_ISDIR(is_.mode):
                if self._directories_differ(old, was, live, is_):
                    yield RestoreStep(Action.ATTRIBUTES.value, path, old, live, stat.S_IFDIR, was.size)
                waiting += self._children(path, old, live)
            elif self._differ(old, was, live, is_):
                if stat.S_ISDIR(is_.mode):
                    yield from self._removed(path, live, without_itself=True)
                yield RestoreStep(Action.REPLACE.value, path, old, live, stat.S_IFMT(was.mode), was.size, self._shared(old, was))
                if stat.S_ISDIR(was.mode):
                    yield from self._added(path, old, without_itself=True)

    def _note_all(self) -> Iterator[None]:
        for parent, prf in self._touched.names:
            self._note(parent, prf)
            yield None
        for ino in self._touched.inodes | self._touched.xattrs:
            for parent, prf in self._names_of(ino):
                self._note(parent, prf)
            yield None

    def _note(self, parent: int, prf: bytes) -> None:
        """A name is worth a look, and so are those that lead to it."""
        waiting = [(parent, prf)]
        while waiting:
            directory, name = waiting.pop()
            known = self._worth.get(directory)
            if known is not None:
                known.add(name)
                continue
            self._worth[directory] = {name}
            waiting += self._names_of(directory)

    def _names_of(self, ino: int) -> list[tuple[int, bytes]]:
        """Then and now."""
        return [link for view in (self._then, self._now) if (inode := view.inode(ino)) is not None for link in view.links(ino, inode)]

    def _children(self, path: bytes, old: int, live: int) -> Iterator[tuple[bytes, int | None, int | None]]:
        names: dict[bytes, list[int | None]] = {}
        if old == live:
            for prf in self._worth.get(old, ()):
                for side, entry in enumerate((self._then.entry(old, prf), self._now.entry(live, prf))):
                    if entry is not None:
                        names.setdefault(entry.name, [None, None])[side] = entry.ino
        else:
            for side, (view, ino) in enumerate(((self._then, old), (self._now, live))):
                for _, entry in view.entries(ino, b""):
                    names.setdefault(entry.name, [None, None])[side] = entry.ino
        for name, (was, is_) in names.items():
            yield _join(path, name), was, is_

    def _added(self, path: bytes, ino: int | None, *, only_itself: bool = False, without_itself: bool = False) -> Iterator[RestoreStep]:
        for at, number, record in _walk(self._then, path, ino, only_itself=only_itself):
            if not without_itself or at != path:
                yield RestoreStep(Action.ADD.value, at, number, 0, stat.S_IFMT(record.mode), record.size, self._shared(number, record))

    def _shared(self, ino: int, was: Inode) -> int:
        """The inode itself, when another of its names of then still leads to it and it has not changed; else 0."""
        is_ = self._now.inode(ino) if was.nlink > 1 and not stat.S_ISDIR(was.mode) else None
        if is_ is None or self._differ(ino, was, ino, is_):
            return 0
        for parent, prf in self._then.links(ino, was):
            entry = self._now.entry(parent, prf)
            if entry is not None and entry.ino == ino and self._now.path_of(parent) == self._then.path_of(parent):
                return ino
        return 0

    def _removed(self, path: bytes, ino: int | None, *, without_itself: bool = False) -> Iterator[RestoreStep]:
        for at, number, record in _walk(self._now, path, ino):
            if not without_itself or at != path:
                yield RestoreStep(Action.REMOVE.value, at, 0, number, stat.S_IFMT(record.mode), record.size)

    def _differ(self, old: int, was: Inode, live: int, is_: Inode) -> bool:
        if old == live and old not in self._touched.inodes and old not in self._touched.xattrs:
            return False
        return (
            stat.S_IFMT(was.mode) != stat.S_IFMT(is_.mode)
            or content_differs(was, is_, self._then, self._now, self._touched)
            or attributes_differ(was, is_)
            or self._then.xattrs(old) != self._now.xattrs(live)
        )

    def _directories_differ(self, old: int, was: Inode, live: int, is_: Inode) -> bool:
        if attributes_differ(was, is_) or self._then.xattrs(old) != self._now.xattrs(live):
            return True
        return self._with_times and was.mtime_ns != is_.mtime_ns


def _walk(view: View, path: bytes, ino: int | None, *, only_itself: bool = False) -> Iterator[tuple[bytes, int, Inode]]:
    """(path, inode, record) of an entry and everything below it, from the top downwards. Of a large directory only so much is read at once that
    others need not wait for it.
    """
    waiting = [] if ino is None else [(path, ino)]
    to_list: list[tuple[bytes, int, bytes]] = []
    while waiting or to_list:
        if waiting:
            at, number = waiting.pop()
            record = view.inode(number)
            if record is not None:
                yield at, number, record
                if stat.S_ISDIR(record.mode) and not only_itself:
                    to_list.append((at, number, b""))
        else:
            at, number, after = to_list.pop()
            found = list(islice(view.entries(number, after), limits.COMPARED_PER_STEP))
            waiting += [(_join(at, entry.name), entry.ino) for _, entry in found]
            if len(found) == limits.COMPARED_PER_STEP:
                to_list.append((at, number, found[-1][0]))


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name
