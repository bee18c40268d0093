"""The golden repositories: what an earlier version wrote is read for ever, by the independent decoder and by backupfs."""

import json
import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.compat.make_golden import GOLDEN, PASSWORD, SNAPSHOTS
from tests.decoder.audit import audit
from tests.decoder.decoder import Repository as Decoded
from tests.mounted import Repository, workspace
from tests.oracle.manifest import Manifest, manifest

KINDS = ("clean", "crashed")


def golden(kind: str) -> dict[str, list[Any]]:
    """The manifests, by `present` or the snapshot's name."""
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in sorted((GOLDEN / kind).glob("*.jsonl"))}


def shown(entries: Manifest) -> list[Any]:
    return [json.loads(entry.as_json()) for entry in entries.values()]


@pytest.fixture
def copied(request: pytest.FixtureRequest) -> Iterator[Repository]:
    """A golden repository in a place of its own, mounted."""
    with workspace() as base:
        made = Repository(base / "golden", password=PASSWORD)
        shutil.copytree(GOLDEN / request.param / "repository", made.path)
        made.mount("--every", "off")
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_enough_in_it(kind: str) -> None:
    wanted = golden(kind)
    assert len(wanted) == 3
    assert {entry["type"] for entry in wanted["present"]} >= {"file", "directory", "fifo", "character device"}
    is_open = list((GOLDEN / kind / "repository" / "open").glob("*"))
    assert bool(is_open) == (kind == "crashed")


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_reads_it(kind: str) -> None:
    wanted = golden(kind)
    with Decoded(GOLDEN / kind / "repository", PASSWORD.encode()) as repository:
        assert {snapshot.name for snapshot in repository.snapshots()} | {"present"} == set(wanted)
        for name, entries in wanted.items():
            view = repository.present() if name == "present" else repository.snapshot(name)
            assert shown(view.manifest()) == entries
    assert not audit(GOLDEN / kind / "repository", PASSWORD.encode(), settled=kind == "clean")


@pytest.mark.skipif(os.geteuid() != 0, reason="its files belong to several users, and only root may read them all")
@pytest.mark.parametrize("copied", KINDS, indirect=True)
def test_backupfs_reads_it(copied: Repository, request: pytest.FixtureRequest) -> None:
    wanted = golden(request.node.callspec.params["copied"])
    assert set(copied.snapshot_names()) | {"present"} == set(wanted)
    for name, entries in wanted.items():
        if name == "present":
            assert shown(manifest(copied.directory, leave_out=[SNAPSHOTS])) == entries
        else:
            assert shown(manifest(copied.directory / SNAPSHOTS.decode() / name)) == entries
    assert copied.command("check", "--read-data", copied.directory).returncode == 0
    copied.unmount()
