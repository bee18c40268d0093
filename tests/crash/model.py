"""What a power cut may leave of a tree, told by what was asked for and answered. Shares no code with backupfs.

The rules, for a cut after which the disk's log is at a position:

* The tree is that after some step `j`: no earlier than the last step that was acknowledged (fsync, commit, snapshot,
clean stop), no later
  than the last one that had begun. All names, kinds, modes, links and xattrs are those after step `j`: never some of an
  earlier and some of a later one.
* A file's content is, byte for byte, what it was at some step between its last acknowledged one and `j`; its length
lies between its
  lengths there. A file that replaced another by a rename is at least what it was at that rename.
* A snapshot that was answered is there and is the tree of its step, with every file closed or synced before exactly as
it was then; one
  that was being made is whole or absent; one whose deletion was answered is absent.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Final

Path = bytes
"""Names joined by `/`; the root is empty."""

NEVER: Final = 1 << 62
_BLOCK_BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Shape:
    """What a name leads to, without content. `node` tells which names are one file."""

    kind: str
    node: int
    mode: int
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What was read back: a shape and the content; `node` is an inode number here."""

    shape: Shape
    content: bytes


@dataclass(slots=True)
class Step:
    """One request: its tree afterwards, and the positions of the log when it began and when it was answered."""

    what: str
    begun: int
    answered: int
    tree: dict[Path, Shape]
    acknowledges: bool = False


@dataclass(slots=True)
class _Content:
    """A file's content over time: the steps at which it changed; `safe` says from which position on which version is."""

    steps: list[int] = field(default_factory=list)
    versions: list[bytes] = field(default_factory=list)
    safe: list[tuple[int, int]] = field(default_factory=list)
    renamed_over: list[tuple[int, int]] = field(default_factory=list)
    """(step, version): from this step on at least this version."""

    def version_at(self, step: int) -> int:
        return bisect_right(self.steps, step) - 1

    def least(self, position: int, step: int) -> int:
        """The oldest version that may be seen."""
        safe = [version for since, version in self.safe if since <= position]
        renamed = [version for since, version in self.renamed_over if since <= step]
        return max([0, *safe, *renamed])


@dataclass(slots=True)
class _Snapshot:
    """`versions`: what each file may contain in it; the last one is what it contained when the snapshot was asked for."""

    name: str
    begun: int
    answered: int
    tree: dict[Path, Shape]
    versions: dict[int, list[bytes]]
    delete_begun: int = NEVER
    delete_answered: int = NEVER


class Model:
    """The tree that a sequence of requests makes, and what of it must survive."""

    def __init__(self) -> None:
        self.tree: dict[Path, Shape] = {b"": Shape("directory", 0, 0o755)}
        self.dirty: set[int] = set()
        """Nodes with content that was neither synced nor closed since."""
        self.steps: list[Step] = []
        self._contents: dict[int, _Content] = {}
        self._snapshots: list[_Snapshot] = []
        self._unknown_snapshots = False
        self._next_node = 1
        self._written: dict[int, bytes] = {}
        self.end_step("nothing", 0, 0)

    @classmethod
    def of(cls, tree: dict[Path, Found], snapshots: dict[str, dict[Path, Found]]) -> "Model":
        """All that was found is durable."""
        model = cls()
        model.tree = model._adopted(tree)
        model.steps = []
        model.end_step("found", 0, 0, acknowledges=True)
        model.acknowledge_all(0)
        for name, old in snapshots.items():
            written = model._written
            model._written = {}
            shapes = model._adopted(old)
            versions = {node: [content] for node, content in model._written.items()}
            model._snapshots.append(_Snapshot(name, -1, 0, shapes, versions))
            model._written = written
        return model

    # --- what happens -----------------------------------------------------------------------------------------------

    def new_node(self) -> int:
        """A number for a new inode."""
        self._next_node += 1
        return self._next_node

    def put(self, path: Path, shape: Shape) -> None:
        """A name leads to something, from this step on."""
        self.tree[path] = shape
        if shape.kind == "file" and shape.node not in self._written:
            self._written[shape.node] = b""

    def reshape(self, node: int, shape: Shape) -> None:
        """All names of an inode show other attributes."""
        for path, old in list(self.tree.items()):
            if old.node == node:
                self.tree[path] = shape

    def remove(self, path: Path) -> None:
        """A name is gone."""
        del self.tree[path]

    def rename(self, old: Path, new: Path) -> None:
        """A name, and all below it, moves; what was at its new place is gone."""
        moved = self.tree[old]
        replaces = new in self.tree
        for path, shape in list(self.tree.items()):
            if path == old or path.startswith(old + b"/"):
                del self.tree[path]
                self.tree[new + path[len(old) :]] = shape
        if replaces and moved.kind == "file":
            content = self._contents[moved.node]
            content.renamed_over.append((len(self.steps), len(content.versions) - 1))

    def write(self, node: int, content: bytes) -> None:
        """A file contains this."""
        self._written[node] = content
        self.dirty.add(node)

    def content(self, node: int) -> bytes:
        """What a file contains now."""
        return self._written[node]

    def take_snapshot(self, name: str, begun: int, answered: int) -> None:
        """A snapshot of the tree as it is; call `end_step` after."""
        versions = {}
        for shape in self.tree.values():
            if shape.kind == "file":
                content = self._contents[shape.node]
                oldest = content.least(begun, len(self.steps)) if shape.node in self.dirty else -1
                versions[shape.node] = content.versions[oldest:]
        self._snapshots.append(_Snapshot(name, begun, answered, dict(self.tree), versions))
        for node in self._contents:
            if node not in self.dirty:
                self.acknowledge(node, answered)

    def delete_snapshot(self, name: str, begun: int, answered: int = NEVER) -> None:
        """A snapshot's deletion was asked for, and answered (or not)."""
        (snapshot,) = (s for s in self._snapshots if s.name == name and s.delete_begun == NEVER)
        snapshot.delete_begun, snapshot.delete_answered = begun, answered

    def refuse_snapshot(self) -> None:
        """A snapshot that was asked for was answered by an error: one that is not known may be there."""
        self._unknown_snapshots = True

    def snapshot_names(self) -> list[str]:
        """Those not deleted."""
        return [s.name for s in self._snapshots if s.delete_begun == NEVER]

    def acknowledge(self, node: int, answered: int) -> None:
        """A file's content as it is now must survive from this position on."""
        content = self._contents[node]
        content.safe.append((answered, len(content.versions) - 1))

    def acknowledge_all(self, answered: int) -> None:
        """Every file's content."""
        for node in self._contents:
            self.acknowledge(node, answered)

    def end_step(self, what: str, begun: int, answered: int, *, acknowledges: bool = False) -> None:
        """The request is answered; the tree is as it stands."""
        number = len(self.steps)
        for node, written in self._written.items():
            content = self._contents.setdefault(node, _Content())
            if not content.versions or content.versions[-1] != written:
                content.versions.append(written)
                content.steps.append(number)
        self.steps.append(Step(what, begun, answered, dict(self.tree), acknowledges))

    # --- what must be there afterwards ------------------------------------------------------------------------------

    def demand(self, position: int) -> tuple[int, int]:
        """Equal for positions at which the same requests had begun and had been answered."""
        return (
            sum(1 for step in self.steps if step.begun < position),
            sum(1 for step in self.steps if step.answered <= position),
        )

    def faults(self, position: int, tree: dict[Path, Found], snapshots: dict[str, dict[Path, Found]]) -> list[str]:
        """What is wrong with a tree and snapshots found after a cut at this position. Nothing: they are legal."""
        first = max((n for n, s in enumerate(self.steps) if s.acknowledges and s.answered <= position), default=0)
        last = max(n for n, s in enumerate(self.steps) if s.begun < position or s.answered <= position)
        best: list[str] = []
        for step in range(last, first - 1, -1):
            wrong = _tree_faults(self.steps[step].tree, self._versions(position, step), tree)
            if not wrong:
                best = []
                break
            if not best or len(wrong) < len(best):
                best = [f"compared with step {step} of {first}..{last} ({self.steps[step].what}): {w}" for w in wrong]
        return best + self._snapshot_faults(position, snapshots)

    def _versions(self, position: int, step: int) -> dict[int, list[bytes]]:
        found = {}
        for node, content in self._contents.items():
            high = content.version_at(step)
            found[node] = content.versions[min(content.least(position, step), high) : high + 1]
        return found

    def _snapshot_faults(self, position: int, snapshots: dict[str, dict[Path, Found]]) -> list[str]:
        wrong = []
        for snapshot in self._snapshots:
            must = snapshot.answered <= position and snapshot.delete_begun >= position
            may = snapshot.begun < position and snapshot.delete_answered > position
            found = snapshots.get(snapshot.name)
            if found is None:
                if must:
                    wrong.append(f"snapshot {snapshot.name} is missing")
            elif not may:
                wrong.append(f"snapshot {snapshot.name} is there")
            else:
                faults = _tree_faults(snapshot.tree, snapshot.versions, found)
                wrong += [f"snapshot {snapshot.name}: {fault}" for fault in faults]
        if self._unknown_snapshots:
            return wrong
        known = {snapshot.name for snapshot in self._snapshots}
        return wrong + [f"snapshot {name} is there and was never made" for name in snapshots.keys() - known]

    def _adopted(self, tree: dict[Path, Found]) -> dict[Path, Shape]:
        nodes: dict[int, int] = {}
        shapes = {}
        for path, found in tree.items():
            shape = found.shape
            if shape.node not in nodes:
                nodes[shape.node] = self.new_node()
                if shape.kind == "file":
                    self._written[nodes[shape.node]] = found.content
            shapes[path] = Shape(shape.kind, nodes[shape.node], shape.mode, shape.target, shape.xattrs)
        return shapes


def _tree_faults(wanted: dict[Path, Shape], versions: dict[int, list[bytes]], tree: dict[Path, Found]) -> list[str]:
    wrong = [f"{path!r} is missing" for path in wanted.keys() - tree.keys()]
    wrong += [f"{path!r} is there" for path in tree.keys() - wanted.keys()]
    if wrong:
        return wrong
    inodes: dict[int, int] = {}
    for path in sorted(wanted.keys() & tree.keys()):
        shape, found = wanted[path], tree[path].shape
        if inodes.setdefault(shape.node, found.node) != found.node:
            wrong.append(f"{path!r} is another file than its other names")
        expected = (shape.kind, shape.mode, shape.target, shape.xattrs)
        if expected != (found.kind, found.mode, found.target, found.xattrs):
            wrong.append(f"{path!r} is {found} instead of {shape}")
        elif shape.kind == "file":
            fault = _content_fault(versions[shape.node], tree[path].content)
            if fault:
                wrong.append(f"{path!r}: {fault}")
    if len(set(inodes.values())) != len(inodes):
        wrong.append("two files have become one")
    return wrong


def _content_fault(possible: list[bytes], found: bytes) -> str:
    """Whether each byte is one that a version has in its place, and the length lies between theirs."""
    if found in possible:
        return ""
    shortest, longest = min(map(len, possible)), max(map(len, possible))
    if not shortest <= len(found) <= longest:
        return f"{len(found)} bytes instead of {shortest} to {longest}"
    for low in range(0, len(found), _BLOCK_BYTES):
        block = found[low : low + _BLOCK_BYTES]
        if any(version[low : low + len(block)] == block for version in possible):
            continue
        for at, byte in enumerate(block, low):
            if all(at >= len(version) or version[at] != byte for version in possible):
                return f"byte {at} of {len(found)} is in none of {len(possible)} versions"
    return ""
