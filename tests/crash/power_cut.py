"""What a power cut leaves on a `SimulatedDisk`.

The fault model, which `PowerCut.cut` is the code of:

* A file's contents that a successful `sync` covered are there. Of what was written since, any subset of the 512-byte
  sectors is there, each as it was after one of the writes to it (torn, reordered, lost), never half one, half another.
* A file's length is any that it had since the last sync, or any multiple of 512 between two of them.
* A name that was created, renamed, removed or made a directory is as it was at the last `sync_directory` of a directory
  it touches, or as after any later change. A rename is atomic, also between directories: never both names, never none.
* `Mode.ORDERED` is a journalling file system, ext4 with `data=ordered`: changes of names reach the disk in the order in
  which they were made, and a file's new length only after the bytes below it. Overwrites still get lost and reordered.
* `Mode.UNORDERED` is more hostile than any file system in use: each change of a name reaches the disk or not, whatever
  becomes of the others; lengths may arrive before contents, and then the sectors between hold zeros or noise.
* A `sync` that failed may have written any subset of the sectors. The rest is lost for good, although reads still show
  it and later syncs succeed: Linux marks the pages clean.

Not in it: sectors that change although nobody wrote them, and a disk that lies about a sync.

A `PowerCut` follows a disk's log and gives, at any position in it, images that may be on the disk there.
"""

import enum
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.crash.disk import Entry, Event, Image, NodeId, Op, SimulatedDisk, reachable

SECTOR_BYTES: Final = 512


class Mode(enum.Enum):
    """Which file system lies on the disk; see the top."""

    ORDERED = "ordered"
    UNORDERED = "unordered"


class Fate(enum.Enum):
    """What becomes of everything that was not synced."""

    LOST = "lost"
    KEPT = "kept"
    DRAWN = "drawn"


@dataclass(slots=True)
class _FileTrack:
    """One file: `durable` is on the disk; `seen` was in memory at the last sync (the same unless one failed); `pending`
    came since.
    """

    durable: bytes = b""
    seen: bytes = b""
    pending: list[Event] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _NameChange:
    number: int
    entries: tuple[Entry, ...]

    def touches(self, directory: NodeId) -> bool:
        return any(entry[0] == directory for entry in self.entries)


class PowerCut:
    """Follows a log. `ignored_site`: the syncs asked for by that line are taken out, as if the program did not have
    them.
    """

    def __init__(self, image: Image, log: Sequence[Event], seed: int, ignored_site: str | None = None) -> None:
        self.position = 0
        self._log = log
        self._ignored_site = ignored_site
        self._files = {node: _FileTrack(content, content) for node, content in image.files.items()}
        self._directories: dict[NodeId, dict[str, NodeId]] = {n: dict(e) for n, e in image.directories.items()}
        self._names: list[_NameChange] = []
        self._ordered_until = -1
        self._failures = random.Random(f"failed syncs/{seed}")

    def advance(self, position: int) -> None:
        """Go on until the first `position` events have been asked for."""
        assert self.position <= position <= len(self._log)
        while self.position < position:
            self._follow(self._log[self.position])
            self.position += 1

    def is_settled(self) -> bool:
        """Everything asked for so far is durable: there is one image only."""
        return not self._names and not any(track.pending for track in self._files.values())

    def cut(self, draw: random.Random, mode: Mode, fate: Fate) -> Image:
        """One image that the disk may hold here."""
        directories = {node: dict(entries) for node, entries in self._directories.items()}
        for change in self._chosen_names(draw, mode, fate):
            _apply(directories, change)
        files = {node: _content(track, draw, mode, fate) if track.pending else track.durable for node, track in self._files.items()}
        return reachable(files, directories)

    def _chosen_names(self, draw: random.Random, mode: Mode, fate: Fate) -> list[_NameChange]:
        if fate is Fate.KEPT:
            return self._names
        if mode is Mode.ORDERED:
            possible = [-1, *(change.number for change in self._names)]
            last = self._ordered_until
            if fate is Fate.DRAWN:
                last = max(last, draw.choice(possible))
            return [change for change in self._names if change.number <= last]
        if fate is Fate.LOST:
            return []
        likely = draw.choice([0.1, 0.5, 0.9])
        return [change for change in self._names if draw.random() < likely]

    def _follow(self, event: Event) -> None:
        if event.op is Op.WRITE:
            self._files[event.node].pending.append(event)
        elif event.op is Op.NAMES:
            for _, _, node in event.entries:
                if node is not None and node not in self._files and node not in self._directories:
                    if event.is_directory:
                        self._directories[node] = {}
                    else:
                        self._files[node] = _FileTrack()
            self._names.append(_NameChange(self.position, event.entries))
        elif event.op is Op.SYNC_FAILED:
            track = self._files[event.node]
            if track.pending:
                track.durable = _content(track, self._failures, Mode.UNORDERED, Fate.DRAWN)
                track.seen = _memory(track)
                track.pending = []
        elif event.site != self._ignored_site:
            if event.op is Op.SYNC:
                self._sync(self._files[event.node])
            else:
                self._sync_directory(event.node)

    def _sync(self, track: _FileTrack) -> None:
        if track.pending:
            seen = _memory(track)
            track.durable = seen if track.durable is track.seen else _content(track, self._failures, Mode.ORDERED, Fate.KEPT)
            track.seen = seen
            track.pending = []

    def _sync_directory(self, directory: NodeId) -> None:
        """All changes that touch the directory are durable, and with each all earlier ones to the names it touches."""
        names: set[tuple[NodeId, str]] = set()
        durable: list[_NameChange] = []
        for change in reversed(self._names):
            touched = {(parent, name) for parent, name, _ in change.entries}
            if change.touches(directory) or touched & names:
                names |= touched
                durable.append(change)
        for change in reversed(durable):
            _apply(self._directories, change)
            self._ordered_until = max(self._ordered_until, change.number)
        gone = {change.number for change in durable}
        self._names = [change for change in self._names if change.number not in gone]


def _apply(directories: dict[NodeId, dict[str, NodeId]], change: _NameChange) -> None:
    for directory, name, node in change.entries:
        if node is None:
            directories[directory].pop(name, None)
        else:
            directories[directory][name] = node


def _memory(track: _FileTrack) -> bytes:
    """What a program reads."""
    content = bytearray(track.seen)
    for event in track.pending:
        _overwrite(content, event)
    return bytes(content)


def _overwrite(content: bytearray, event: Event) -> None:
    if len(content) < event.length:
        content.extend(bytes(event.length - len(content)))
    content[event.offset : event.offset + len(event.data)] = event.data


def _content(track: _FileTrack, draw: random.Random, mode: Mode, fate: Fate) -> bytes:
    """What is on the disk of a file that has pending writes."""
    if fate is Fate.LOST:
        return track.durable
    memory = bytearray(track.seen)
    disk = bytearray(track.durable)
    arrived: set[int] = set()
    keep_write = 1.0 if fate is Fate.KEPT else draw.choice([0.3, 0.7, 1.0])
    keep_sector = 1.0 if fate is Fate.KEPT else draw.choice([0.05, 0.5, 0.95, 1.0])
    lengths = [len(track.durable)]
    for event in track.pending:
        _overwrite(memory, event)
        lengths.append(len(memory))
        if keep_write < 1.0 and draw.random() >= keep_write:
            continue
        for sector in range(event.offset // SECTOR_BYTES, -(-(event.offset + len(event.data)) // SECTOR_BYTES)):
            if keep_sector == 1.0 or draw.random() < keep_sector:
                _copy_sector(memory, disk, sector)
                arrived.add(sector)
    length = max(lengths) if fate is Fate.KEPT else _drawn_length(lengths, draw)
    first_new = -(-len(track.durable) // SECTOR_BYTES)
    for sector in range(len(track.durable) // SECTOR_BYTES, -(-length // SECTOR_BYTES)):
        if mode is Mode.ORDERED and track.durable is track.seen:
            _copy_sector(memory, disk, sector)
        elif sector >= first_new and sector not in arrived and fate is Fate.DRAWN and draw.random() < 0.2:
            _put_sector(disk, sector, draw.randbytes(SECTOR_BYTES))
    del disk[length:]
    disk.extend(bytes(length - len(disk)))
    return bytes(disk)


def _drawn_length(lengths: list[int], draw: random.Random) -> int:
    low, high = min(lengths), max(lengths)
    between = draw.randint(low, high) // SECTOR_BYTES * SECTOR_BYTES
    return max(low, draw.choice([low, high, draw.choice(lengths), between]))


def _copy_sector(memory: bytearray, disk: bytearray, sector: int) -> None:
    _put_sector(disk, sector, memory[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES])


def _put_sector(disk: bytearray, sector: int, data: bytes | bytearray) -> None:
    at = sector * SECTOR_BYTES
    if len(disk) < at:
        disk.extend(bytes(at - len(disk)))
    disk[at : at + SECTOR_BYTES] = data


@dataclass(frozen=True, slots=True)
class CrashState:
    """What lies on the disk when the power goes after `position` events. `name` says how to make it again."""

    position: int
    image: Image
    name: str

    def disk(self) -> SimulatedDisk:
        """The disk after the power is back."""
        return SimulatedDisk(self.image)


def crash_states(
    disk: SimulatedDisk,
    seed: int,
    positions: Sequence[int],
    per_position: int,
    *,
    ignored_site: str | None = None,
    same: Callable[[int], object] = lambda position: position,
    tried: set[tuple[object, int]] | None = None,
) -> Iterator[CrashState]:
    """Different states at each of the (ascending) positions: everything unsynced lost, everything kept, and drawn ones.

    `same` tells which positions demand the same of a state: a state that was already tried under the same demand is
    left out, also when an earlier call that was given the same set `tried` has tried it.
    """
    cut = PowerCut(disk.base, disk.log, seed, ignored_site)
    tried = set() if tried is None else tried
    for position in positions:
        cut.advance(position)
        for number in range(1 if cut.is_settled() else per_position):
            draw = random.Random(f"{seed}/{position}/{number}")
            mode = draw.choice(list(Mode))
            fate = (Fate.LOST, Fate.DRAWN, Fate.KEPT)[number] if number < 3 else Fate.DRAWN
            image = cut.cut(draw, mode, fate)
            key = (same(position), image.fingerprint())
            if key not in tried:
                tried.add(key)
                yield CrashState(position, image, f"seed {seed} position {position} number {number} {mode.value} {fate.value}")


def sync_sites(log: Sequence[Event]) -> dict[str, list[int]]:
    """Each line of the program that asked for a sync, with the positions right after."""
    sites: dict[str, list[int]] = {}
    for index, event in enumerate(log):
        if event.op in (Op.SYNC, Op.SYNC_DIRECTORY):
            sites.setdefault(event.site, []).append(index + 1)
    return sites
