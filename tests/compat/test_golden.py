"""The golden repositories: what an earlier version wrote is read for ever, by the independent decoder and by backupfs."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compat.make_golden import GOLDEN, LIVES, PASSWORD, SNAPSHOTS
from tests.decoder import catalog, history
from tests.decoder.audit import audit
from tests.decoder.decoder import Repository as Decoded
from tests.decoder.store import Store, open_store
from tests.mounted import Repository, workspace
from tests.oracle.manifest import Manifest, manifest

KINDS = tuple(LIVES)
MARKED = {"clean": [], "crashed": [], "checkpointed": ["2026-11-26T164902Z"]}
"""Snapshots that are marked deleted, and can be purged from then on."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="its files belong to several users, and only root may read them all")


def golden(kind: str) -> dict[str, list[Any]]:
    """The manifests, by `present` or the snapshot's name."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted((GOLDEN / kind).glob("*.jsonl"))}


def shown(entries: Manifest) -> list[Any]:
    return [json.loads(entry.as_json()) for entry in entries.values()]


# --- what is done to a copy of the one with checkpoints, before it is read ------------------------------------------


def whole(root: Path) -> None:
    """Nothing: a reader begins with the newer checkpoint."""


def newer_alone(root: Path) -> None:
    """The older checkpoint is gone, and all of the journal that leads from it to the newer one."""
    older, newer = Store(root).manifests()
    for path in (root / "checkpoints").glob(f"{older:016x}*"):
        path.unlink()
    position = history.read(Store(root), open_store(Store(root), PASSWORD.encode())).checkpoints[0].position
    for sequence, path in Store(root).segments().items():
        if sequence <= position.segment:
            path.unlink()
    assert list(Store(root).manifests()) == [newer]


def newer_part_damaged(root: Path) -> None:
    """One bit in the last part, so that the first is read before it shows."""
    number, manifest = list(Store(root).manifests().items())[-1]
    with Decoded(root, PASSWORD.encode()) as decoded:
        checkpoint = decoded.history.checkpoints[-1]
        assert (checkpoint.number, len(checkpoint.parts)) == (number, 2)
        flip(manifest.with_name(f"{number:016x}-{checkpoint.parts[-1].hex()}"))


def newer_manifest_damaged(root: Path) -> None:
    flip(list(Store(root).manifests().values())[-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[1000] ^= 4
    path.write_bytes(content)


Change = Callable[[Path], None]


# --- reading them ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_enough_in_it(kind: str) -> None:
    wanted = golden(kind)
    assert len(wanted) >= 3
    assert {entry["type"] for entry in wanted["present"]} >= {"file", "directory", "fifo", "character device"}
    is_open = list((GOLDEN / kind / "repository" / "open").glob("*"))
    assert bool(is_open) == (kind == "crashed")


def test_there_is_enough_behind_the_checkpoints() -> None:
    with Decoded(GOLDEN / "checkpointed" / "repository", PASSWORD.encode()) as repository:
        older, newer = repository.history.checkpoints
        assert len(newer.parts) > 1
        assert min(repository.store.segments()) == older.position.segment + 1 > 2, "the journal is cut behind the older"
        assert older.position.segment + 1 < newer.position.segment, "more than a segment leads from the one to the other"
        assert newer.position.batch < repository.catalog.batch, "and batches follow"
        assert older.rows.keys() - newer.rows.keys()
        assert newer.rows.keys() - older.rows.keys()
        records = repository.catalog
        kept = [s.state == catalog.KEPT for _, s in sorted(records.snapshots.items())]
        assert kept == [True, True, False, True]
        assert records.counters is not None
        assert records.counters.next_snapshot - 1 - len(kept) == 2, "so many have been purged"
        first = repository.snapshot(repository.snapshots()[0].name)
        packs = {records.blobs[extent.blob].pack for _, _, inode in first.walk() for extent in first.extents(inode)}
        assert packs - {1, 2}, "the first mount had two packs: what stands elsewhere was copied out of one of them"
        assert 1 not in records.packs


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_reads_it(kind: str) -> None:
    wanted = golden(kind)
    with Decoded(GOLDEN / kind / "repository", PASSWORD.encode()) as repository:
        assert {snapshot.name for snapshot in repository.snapshots()} | {"present"} == set(wanted)
        for name, entries in wanted.items():
            view = repository.present() if name == "present" else repository.snapshot(name)
            assert shown(view.manifest()) == entries
    marked = [f"snapshot {name}: deleted, and still there" for name in MARKED[kind]]
    assert audit(GOLDEN / kind / "repository", PASSWORD.encode(), settled=kind != "crashed") == marked


@pytest.mark.parametrize("change", [newer_alone, newer_part_damaged, newer_manifest_damaged])
def test_the_decoder_comes_to_the_same_from_either_checkpoint(change: Change, tmp_path: Path) -> None:
    root = Path(shutil.copytree(GOLDEN / "checkpointed" / "repository", tmp_path / "repository"))
    keys = open_store(Store(root), PASSWORD.encode())
    before = history.read(Store(root), keys)
    change(root)
    found = history.read(Store(root), keys)
    assert found.catalog == before.catalog
    if change is newer_alone:
        assert (found.checkpoints, found.faults) == (before.checkpoints[1:], [])
    else:
        assert found.checkpoints == before.checkpoints[:1]
        assert [fault.split(":")[0] for fault in found.faults] == [f"checkpoint {before.checkpoints[1].number}"]


@pytest.fixture
def copied(request: pytest.FixtureRequest) -> Iterator[tuple[Repository, str, Change]]:
    """A golden repository in a place of its own, changed and mounted, without an index; and what it is."""
    kind, change = request.param
    with workspace() as base:
        made = Repository(base / "golden", password=PASSWORD)
        shutil.copytree(GOLDEN / kind / "repository", made.path)
        change(made.path)
        made.mount("--every", "off")
        try:
            yield made, kind, change
        finally:
            made.close()


READ = [*((kind, whole) for kind in KINDS), ("checkpointed", newer_alone), ("checkpointed", newer_part_damaged)]


@needs_root
@pytest.mark.parametrize("copied", READ, ids=[f"{kind}, {change.__name__}" for kind, change in READ], indirect=True)
def test_backupfs_reads_it(copied: tuple[Repository, str, Change]) -> None:
    made, kind, change = copied
    wanted = golden(kind)

    def compare() -> None:
        assert set(made.snapshot_names()) | {"present"} == set(wanted)
        for name, entries in wanted.items():
            if name == "present":
                assert shown(manifest(made.directory, leave_out=[SNAPSHOTS])) == entries
            else:
                assert shown(manifest(made.directory / SNAPSHOTS.decode() / name)) == entries

    compare()
    if change is newer_part_damaged:
        made.expect_trouble("checkpoint 5 does not hold, the one before it serves")
        (told,) = made.json("check", "--read-data", made.directory, expect=3)
        assert [finding["object"] for finding in told["findings"]] == [f"checkpoints/{5:016x}"]
    else:
        made.command("check", "--read-data", made.directory)
    if MARKED[kind]:
        made.command("gc", "--now", made.directory)
        compare()
    made.unmount()
    faults = ["checkpoint 5"] if change is newer_part_damaged else []
    assert [line.split(":")[0] for line in audit(made.path, PASSWORD.encode())] == faults
    assert made.trouble() == []
