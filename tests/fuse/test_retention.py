"""Snapshots named, pinned, deleted, brought back and collected on a real mount, and retention when it is asked for."""

import errno
import os
import random
from collections.abc import Callable
from typing import Any

import pytest

from backupfs.errors import UsageError
from backupfs.service.client import connected
from backupfs.service.messages import (
    CollectRequest,
    PruneRequest,
    Request,
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotHoldRequest,
    SnapshotListRequest,
    SnapshotPinRequest,
    SnapshotShowRequest,
    SnapshotUndeleteRequest,
)
from tests.mounted import Repository, until

MIB = 1 << 20


def noise(size: int, seed: object) -> bytes:
    return random.Random(str(seed)).randbytes(size)


def ask(repository: Repository, request: Request) -> Any:
    """What the daemon answers, without the second that a command takes to start. Items come under `items`."""
    items: list[Any] = []
    with connected(repository.state / "control.sock") as client:
        result = client.ask(request, items.append)
    return {**result, "items": items} if items else result


def listed(repository: Repository, *, deleted: bool = False) -> dict[str, Any]:
    return {one["name"]: one for one in ask(repository, SnapshotListRequest(deleted, sizes=True)).get("items", [])}


def packs_bytes(repository: Repository) -> int:
    """What closed packs have on the disk."""
    return sum(path.stat().st_size for path in (repository.path / "packs").rglob("*") if path.is_file())


def test_what_is_deleted_comes_back_until_it_is_purged(mounted_repository: Repository) -> None:
    repository, root = mounted_repository, mounted_repository.directory
    # Little stays beside what goes, so that copying it is worth it whichever packs they came to lie in together.
    contents = {"first": noise(8 * MIB, "first"), "second": noise(MIB // 4, "second"), "third": noise(MIB // 4, "third")}
    for name, content in contents.items():
        (root / "file").write_bytes(content)
        ask(repository, SnapshotCreateRequest(name=name))
    (root / "file").unlink()
    until(lambda: all(one["made"] is not None for one in listed(repository).values()), "that their changes have been counted")
    before = listed(repository)
    sizes = {name: one["frees_bytes"] for name, one in before.items()}
    assert all(len(contents[name]) < size < 1.1 * len(contents[name]) for name, size in sizes.items())
    assert [(one["made"], one["altered"], one["removed"]) for one in before.values()] == [(2, 0, 0), (0, 1, 0), (0, 1, 0)]
    ask(repository, SnapshotPinRequest(["second"], pinned=True))
    with pytest.raises(UsageError, match="second is pinned"):
        ask(repository, SnapshotDeleteRequest(names=["first", "second"]))
    assert repository.snapshot_names() == ["first", "second", "third"]
    dry = ask(repository, SnapshotDeleteRequest(names=["1", "latest"], dry_run=True))
    assert (dry["names"], dry["frees_bytes"]) == (["first", "third"], sizes["first"] + sizes["third"])
    (deleted,) = repository.json("snapshot", "delete", root, "1", "latest")
    assert (deleted["deleted"], deleted["frees_bytes"]) == (dry["names"], dry["frees_bytes"])
    assert repository.snapshot_names() == ["second"]
    assert list(listed(repository, deleted=True)) == ["first", "third"]
    repository.remount()
    ask(repository, SnapshotUndeleteRequest(["third"]))
    assert (root / ".snapshots/third/file").read_bytes() == contents["third"], "a mount does not purge before the policy is known"
    lying = packs_bytes(repository)
    would = ask(repository, CollectRequest(now=True, dry_run=True))
    assert (would["purged"], would["purge_frees_bytes"]) == (1, sizes["first"])
    (did,) = repository.json("gc", root, "--now")
    assert (did["purged"], did["waiting"]) == (1, 0)
    assert did["freed_bytes"] > 0.9 * len(contents["first"])
    assert lying - packs_bytes(repository) > 0.9 * len(contents["first"])
    assert listed(repository, deleted=True) == {}
    with pytest.raises(UsageError, match="no deleted snapshot first"):
        ask(repository, SnapshotUndeleteRequest(["first"]))
    keep_to(repository, "keep-last=1", "space-limit=1KiB")
    ask(repository, SnapshotHoldRequest(["third"], 2**62))
    ask(repository, SnapshotCreateRequest(name="fourth"))
    ask(repository, SnapshotCreateRequest(name="fifth"))
    did = ask(repository, PruneRequest())
    assert {one["name"]: one["keep"] for one in did["items"]} == {"second": True, "third": True, "fourth": False, "fifth": True}
    assert did["excess_bytes"] > MIB // 2, "more than can be got: what is pinned, held or the newest stays all the same"
    shown = ask(repository, SnapshotShowRequest("second"))
    assert (shown["snapshot"]["pinned"], shown["fate"]["keep"], shown["fate"]["reasons"][0]) == (True, True, "pinned")
    for verb in (["status"], ["stats"], ["snapshot", "list"], ["prune", "--dry-run"]):
        assert repository.command(*verb, root).stdout
    (told,) = repository.json("policy", "simulate", root, "--days", "2")
    assert (told["policy_known"], told["snapshots_known"]) == (True, 3)


def keep_to(repository: Repository, *words: str) -> None:
    none = [f"keep-{name}=0" for name in ("hourly", "daily", "weekly", "monthly", "yearly")]
    repository.command("policy", "set", repository.directory, *none, *words)


def test_mkdir_takes_a_snapshot_of_what_the_kernel_still_holds_between_its_hooks(make_repository: Callable[..., Repository]) -> None:
    repository = make_repository(mounted=False)
    root = repository.directory
    file = repository.base / "f.toml"
    file.write_text(
        f"""
        schedule = []
        [hooks]
        before-snapshot = ["sh", "-c", "echo before $BACKUPFS_WHY >>'{root}/diary'"]
        after-snapshot = ["sh", "-c", "cp '{root}/.snapshots/'$BACKUPFS_SNAPSHOT/diary '{repository.base}/copy'"]
        """
    )
    file.chmod(0o600)
    repository.mount("--config", str(file))
    taken = root / ".snapshots/upgrade"
    with open(root / "open", "wb") as writing:
        writing.write(b"not closed")
        writing.flush()
        taken.mkdir()
        assert (taken / "open").read_bytes() == b"not closed"
    assert listed(repository)["upgrade"]["why"] == "mkdir"
    for name, code in (("upgrade", errno.EEXIST), ("2020-01-01T000000Z", errno.EINVAL)):
        with pytest.raises(OSError) as refused:
            os.mkdir(root / ".snapshots" / name)
        assert refused.value.errno == code
    repository.expect_trouble("mkdir .snapshots/NAME: .*names that look like a time")
    until((repository.base / "copy").exists, "the hook after the snapshot, which looks into it")
    taken.rmdir()
    with pytest.raises(FileExistsError):
        taken.mkdir()
    with pytest.raises(UsageError, match="a name is never used again"):
        ask(repository, SnapshotCreateRequest(name="upgrade"))
    repository.unmount()
    assert (repository.base / "copy").read_text() == "before mkdir\n"
