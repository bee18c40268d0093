"""A process that changes files and says what fsync has acknowledged, and what that promises of the files after a kill."""

import json
import os
import random
import select
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SLOTS: Final = 64
SLOT_BYTES: Final = 4096

WRITER: Final = '''
"""Changes files and says on stdout, in one write each, what is about to be done and what fsync has acknowledged."""
import json, os, random, sys

root, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)

def say(kind, *what):
    os.write(1, json.dumps([kind, *what]).encode() + b"\\n")

def sync_directory():
    descriptor = os.open(root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)

def content(name, version, size):
    # whole words, cut: only so is a short one the beginning of a long one
    return random.Random(f"{name} {version}").randbytes((size + 3) // 4 * 4)[:size]

logs, versions, made = {}, {}, 0
slots = os.open(f"{root}/slots", os.O_CREAT | os.O_RDWR, 0o644)
os.pwrite(slots, bytes(64 * 4096), 0)
os.fsync(slots)
sync_directory()
slot_versions = [0] * 64
while True:
    kind = rng.choice(["append", "append", "replace", "slot", "slot", "make", "unlink"])
    if kind == "append":
        name = f"log-{rng.randrange(4)}"
        size = logs.get(name, 0)
        grown = size + rng.choice([10, 4096, 70000, 400000])
        say("will", "append", name, grown)
        descriptor = os.open(f"{root}/{name}", os.O_CREAT | os.O_WRONLY, 0o644)
        os.pwrite(descriptor, content(name, 0, grown)[size:], size)
        if rng.random() < 0.7:
            os.fsync(descriptor)
            sync_directory()
            say("did", "append", name, grown)
        os.close(descriptor)
        logs[name] = grown
        if grown > 3000000:
            say("will", "restart", name)
            os.unlink(f"{root}/{name}")
            sync_directory()
            say("did", "restart", name)
            logs[name] = 0
    elif kind == "replace":
        name = f"document-{rng.randrange(3)}"
        version = versions[name] = versions.get(name, 0) + 1
        say("will", "replace", name, version)
        with open(f"{root}/{name}.new", "wb", buffering=0) as file:
            file.write(content(name, version, 20000 + version))
            os.fsync(file.fileno())
        os.rename(f"{root}/{name}.new", f"{root}/{name}")
        sync_directory()
        say("did", "replace", name, version)
    elif kind == "slot":
        chosen = rng.sample(range(64), rng.randrange(1, 5))
        for slot in chosen:
            slot_versions[slot] += 1
            say("will", "slot", slot, slot_versions[slot])
            os.pwrite(slots, content("slot", [slot, slot_versions[slot]], 4096), slot * 4096)
        os.fdatasync(slots)
        for slot in chosen:
            say("did", "slot", slot, slot_versions[slot])
    elif kind == "make":
        made += 1
        say("will", "make", made)
        os.mkdir(f"{root}/made-{made}")
        os.symlink("target", f"{root}/made-{made}/link")
        with open(f"{root}/made-{made}/file", "wb", buffering=0) as file:
            file.write(content("made", made, made))
            os.fsync(file.fileno())
        sync_directory()
        say("did", "make", made)
    else:
        name = f"log-{rng.randrange(4)}"
        if logs.get(name):
            say("will", "restart", name)
            os.unlink(f"{root}/{name}")
            sync_directory()
            say("did", "restart", name)
            logs[name] = 0
'''


def content(name: str, version: object, size: int) -> bytes:
    # whole words, cut: only so is a short one the beginning of a long one
    return random.Random(f"{name} {version}").randbytes((size + 3) // 4 * 4)[:size]


@dataclass
class Promises:
    """What the writer was told is safe, and how far it may have come beyond."""

    length: dict[str, int] = field(default_factory=dict)
    length_begun: dict[str, int] = field(default_factory=dict)
    removal_begun: set[str] = field(default_factory=set)
    version: dict[str, int] = field(default_factory=dict)
    version_begun: dict[str, int] = field(default_factory=dict)
    slot: dict[int, int] = field(default_factory=dict)
    slot_begun: dict[int, int] = field(default_factory=dict)
    made: set[int] = field(default_factory=set)

    def take(self, line: bytes) -> None:
        match json.loads(line):
            case ["will", "append", name, length]:
                self.length_begun[name] = length
            case ["did", "append", name, length]:
                self.length[name] = length
                self.removal_begun.discard(name)
            case ["will", "restart", name]:
                self.removal_begun.add(name)
            case ["did", "restart", name]:
                self.length[name] = self.length_begun[name] = 0
                self.removal_begun.discard(name)
            case ["will", "replace", name, version]:
                self.version_begun[name] = version
            case ["did", "replace", name, version]:
                self.version[name] = version
            case ["will", "slot", slot, version]:
                self.slot_begun[slot] = version
            case ["did", "slot", slot, version]:
                self.slot[slot] = version
            case ["did", "make", number]:
                self.made.add(number)
            case ["will", "make", _]:
                pass
            case other:
                raise AssertionError(f"the writer says {other}")

    def hold_in(self, root: Path) -> None:
        self._logs(root)
        self._documents(root)
        self._slots(root)
        for number in self.made:
            assert (root / f"made-{number}" / "file").read_bytes() == content("made", number, number)
            assert os.readlink(root / f"made-{number}" / "link") == "target"

    def _logs(self, root: Path) -> None:
        for name, begun in self.length_begun.items():
            path = root / name
            acknowledged = self.length.get(name, 0)
            if not path.exists():
                assert acknowledged == 0 or name in self.removal_begun, f"{name} is gone"
                continue
            found = path.read_bytes()
            if name in self.removal_begun:
                continue
            whole = content(name, 0, begun)
            assert len(found) >= acknowledged, f"{name} has lost {acknowledged - len(found)} bytes"
            assert found[:acknowledged] == whole[:acknowledged], f"{name} has wrong bytes"
            beyond = found[acknowledged:]
            assert len(found) <= begun
            # bytes that nobody acknowledged may be missing, never wrong
            assert all(a in (b, 0) for a, b in zip(beyond, whole[acknowledged:], strict=False)), f"{name} has wrong bytes"

    def _documents(self, root: Path) -> None:
        for name, begun in self.version_begun.items():
            acknowledged = self.version.get(name, 0)
            path = root / name
            if acknowledged == 0 and not path.exists():
                continue
            found = path.read_bytes()
            version = len(found) - 20_000
            assert acknowledged <= version <= begun, f"{name} is at {version}, not at {acknowledged} to {begun}"
            assert found == content(name, version, 20_000 + version), f"{name} is torn"

    def _slots(self, root: Path) -> None:
        found = (root / "slots").read_bytes()
        assert len(found) == SLOTS * SLOT_BYTES
        for slot, begun in self.slot_begun.items():
            block = found[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES]
            versions = range(self.slot.get(slot, 0), begun + 1)
            allowed = [content("slot", [slot, v], SLOT_BYTES) if v else bytes(SLOT_BYTES) for v in versions]
            assert block in allowed, f"slot {slot} is at none of {versions}"


class Writer:
    """The process that writes, and what it has said so far."""

    def __init__(self, root: Path, seed: int) -> None:
        self.promises = Promises()
        self.process = subprocess.Popen([sys.executable, "-I", "-c", WRITER, root, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        self._output = self.process.stdout.fileno()
        self._rest = b""

    def listen_for(self, lines: int) -> None:
        """Take so many lines."""
        while lines > 0:
            lines -= self._take(self._read())

    def hear(self) -> None:
        """Take what it has said, without waiting: it stops when nobody listens for long."""
        while select.select([self._output], [], [], 0)[0]:
            self._take(self._read())

    def _read(self) -> bytes:
        data = os.read(self._output, 1 << 16)
        assert data, f"the writer ended: {self.process.stderr and self.process.stderr.read().decode()}"
        return data

    def rest(self) -> None:
        """The writer has died of the dead mount: take what it said before."""
        output, errors = self.process.communicate()
        self._take(output)
        assert b"Error" in errors, "it runs until the mount fails it"

    def _take(self, data: bytes) -> int:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.promises.take(line)
        return len(lines)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()
