"""docs/format.md against the program: the decoder written from the text reads what the engine wrote, at rest and after a kill."""

import itertools
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from backupfs import limits
from backupfs.engine import repository as engine_repository
from backupfs.engine.keyring import change_password
from backupfs.engine.repository import unlock
from backupfs.stores.files import SystemFiles
from tests.compat.twin import Twin, expect_none
from tests.crash.history import small_limits
from tests.crash.simulation import KDF, PASSWORD, SeededRandomness, run
from tests.decoder import __main__ as command
from tests.decoder import catalog, journal, messagepack, packs
from tests.decoder.audit import audit, audit_opened
from tests.decoder.catalog import Version
from tests.decoder.damage import Damage
from tests.decoder.decoder import Repository
from tests.decoder.sealing import JOURNAL_MAGIC, PACK_MAGIC, Keys, keyed_hash, padded
from tests.decoder.store import Store, WrongPassword, open_store
from tests.oracle.manifest import assert_same, manifest

VECTORS = Path(__file__).with_name("vectors.json")


def lives(seed: int, scale: float, count: int) -> list[int]:
    """Seeds of that many lives."""
    return [seed * 1000 + number for number in range(max(1, round(count * scale)))]


async def live(twin: Twin, directory: Path, mounts: int, steps: int) -> None:
    """Mounts with random requests, snapshots, deletions, kills; compared whenever what must be there is known."""
    kills = itertools.count()

    async def killed(*, present: bool) -> None:
        copy = directory / f"killed {next(kills)}"
        twin.kill(copy)
        expect_none(twin.faults(copy, present=present))
        async with twin.mounted(copy) as fs:
            if (copy / "checkpoints").exists():
                await fs.make_checkpoint()  # what a kill left of one that was being made goes with the next
            await fs.idle()
        expect_none(twin.faults(copy, present=present, settled=True, closed=True))

    for _ in range(mounts):
        async with twin.mounted() as fs:
            for _ in range(steps):
                await twin.act(twin.draw.randrange(1, 25))
                chance = twin.draw.random()
                if chance < 0.25:
                    await twin.take_snapshot()
                elif chance < 0.4 and twin.snapshots:
                    await twin.delete_snapshot(twin.draw.choice(sorted(twin.snapshots)))
                elif chance < 0.55:
                    await twin.look()
                    await fs.commit()
                    expect_none(twin.faults())
                elif chance < 0.65:
                    await twin.look()
                    await fs.commit()
                    await killed(present=True)
                elif chance < 0.75:
                    await killed(present=False)
                elif chance < 0.8:
                    await fs.idle()
                elif chance < 0.85:
                    await fs.make_checkpoint()
                else:
                    await trio.sleep(twin.draw.choice([0.1, 3.0, 12.0]))
        expect_none(twin.faults())
        if twin.draw.random() < 0.5:
            async with twin.mounted() as fs:
                await fs.idle()
            expect_none(twin.faults(settled=True, closed=True))


def simulated(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """In no time, and the same each time."""
    run(main, seed)


@pytest.mark.parametrize("number", range(12))
def test_small_limits(tmp_path: Path, seed: int, scale: float, number: int) -> None:
    """Everything fills up soon: packs, segments, regions, steps of background work."""
    with small_limits():
        for life in lives(seed + number, scale, 1):
            twin = Twin(tmp_path / str(life), life, compression=life % 3 != 0)
            simulated(lambda twin=twin: live(twin, twin.root.parent, 3, 8), life)  # type: ignore[misc]


@pytest.mark.parametrize("number", range(4))
def test_real_limits(tmp_path: Path, seed: int, scale: float, number: int) -> None:
    """The sizes that a repository in use has; files of many megabytes, overwritten in small pieces."""
    for life in lives(seed + number, scale, 1):
        twin = Twin(tmp_path / str(life), life)
        twin.biggest_bytes = 3 * limits.MIB
        simulated(lambda twin=twin: live(twin, twin.root.parent, 2, 5), life)  # type: ignore[misc]


def test_chacha(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(engine_repository, "_has_aes", lambda: False)
    with small_limits():
        twin = Twin(tmp_path, seed)
        simulated(lambda: live(twin, tmp_path, 2, 4), seed)
    with Repository(twin.root, PASSWORD) as found:
        assert found.keys.cipher == 2


def test_a_file_of_many_small_pieces(tmp_path: Path, seed: int) -> None:
    """Regions grow, are cut anew when they have too many extents, and stand in several versions."""
    twin = Twin(tmp_path, seed)

    async def main() -> None:
        async with twin.mounted():
            for size in (40 * limits.MIB, 3 * limits.MIB):
                await twin.put(b"file of %d bytes" % size, twin.draw.randbytes(size))
                for step in range(4):
                    await twin.scatter(b"file of %d bytes" % size, 400)
                    await twin.commit()
                    if step % 2:
                        await twin.take_snapshot()
            await twin.settle()
            await twin.fs.idle()
            expect_none(twin.faults(settled=True))
            await twin.delete_snapshot(sorted(twin.snapshots)[1])
            await twin.fs.idle()
        expect_none(twin.faults(settled=True, closed=True))

    simulated(main, seed)


def test_another_password(tmp_path: Path, seed: int) -> None:
    twin = Twin(tmp_path, seed)
    files = SystemFiles()
    unlocked = unlock(twin.root, PASSWORD, files=files)
    kdf = replace(KDF, time=2, lanes=2)
    change_password(unlocked, b"another", files=files, clock=SteppingStill(), randomness=SeededRandomness(seed), kdf=kdf)
    assert open_store(Store(twin.root), b"another").master == unlocked.keys.master
    with pytest.raises(WrongPassword):
        open_store(Store(twin.root), PASSWORD)


class SteppingStill:
    def now_ns(self) -> int:
        return 1


# --- a repository with something of everything, to be spoilt ---------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """At rest, with four snapshots, the last one named by a person, deep regions, links beyond eight."""
    twin = Twin(tmp_path_factory.mktemp("whole"), "whole")

    async def main() -> None:
        async with twin.mounted() as fs:
            for _ in range(4):
                await twin.act(60)
                await twin.many_links()
                await twin.take_snapshot()
            await twin.delete_snapshot(sorted(twin.snapshots)[2])
            await twin.act(20)
            await twin.take_snapshot("by a person")
            await twin.act(20)
            await twin.settle()
            await fs.idle()
        expect_none(twin.faults(settled=True, closed=True))

    with small_limits():
        simulated(main, 1)
    return twin


def spoilt_reference(found: Repository) -> None:
    number, blob = next(iter(found.catalog.blobs.items()))
    found.catalog.blobs[number] = replace(blob, references=blob.references + 1)


def spoilt_live_bytes(found: Repository) -> None:
    number, pack = next(iter(found.catalog.packs.items()))
    found.catalog.packs[number] = replace(pack, live_bytes=pack.live_bytes - 1)


def spoilt_blob_id(found: Repository) -> None:
    found.catalog.blob_numbers.popitem()


def spoilt_blob(found: Repository) -> None:
    found.catalog.blobs.popitem()


def spoilt_pack(found: Repository) -> None:
    found.catalog.packs.popitem()


def spoilt_place(found: Repository) -> None:
    number, blob = next(iter(found.catalog.blobs.items()))
    found.catalog.blobs[number] = replace(blob, offset=blob.offset + 1)


def spoilt_counter(found: Repository) -> None:
    assert found.catalog.counters is not None
    found.catalog.counters = replace(found.catalog.counters, next_inode=17)


def left_orphan(found: Repository) -> None:
    found.catalog.orphans[catalog.ORPHAN_DATA, 1 << 20] = catalog.Orphan(1, 0, 0)


def left_snapshot(found: Repository) -> None:
    serial, snapshot = next(iter(found.catalog.snapshots.items()))
    found.catalog.snapshots[serial] = replace(snapshot, state=catalog.DELETED)


def purged_snapshot(found: Repository) -> None:
    """Its row is gone, what only it saw is not."""
    del found.catalog.snapshots[min(found.catalog.snapshots)]


def lost_given_name(found: Repository) -> None:
    found.catalog.given_names.clear()


def lost_last_name(found: Repository) -> None:
    found.catalog.last_name = None


def newest(found: Repository, table: int) -> tuple[bytes, list[Version]]:
    """An object of the present, the last by key."""
    objects = found.catalog.objects[table]
    key = max(key for key, versions in objects.items() if versions[-1].value and int.from_bytes(key[:8], "big") != 1)
    return key, objects[key]


def lost_object(table: int) -> Callable[[Repository], None]:
    def spoil(found: Repository) -> None:
        key, _ = newest(found, table)
        del found.catalog.objects[table][key]

    return spoil


def left_version(table: int) -> Callable[[Repository], None]:
    """One more, just before the newest, that nobody sees."""

    def spoil(found: Repository) -> None:
        _, versions = newest(found, table)
        assert found.catalog.counters is not None
        versions.append(Version(found.catalog.counters.epoch, versions[-1].value))
        versions.append(Version(found.catalog.counters.epoch + 1, versions[-1].value))

    return spoil


def left_object(table: int) -> Callable[[Repository], None]:
    """A copy under the next number: nothing has it."""

    def spoil(found: Repository) -> None:
        key, versions = newest(found, table)
        counters = found.catalog.counters
        assert counters is not None
        highest = counters.next_data if table == catalog.REGIONS else counters.next_inode
        copied = [Version(counters.epoch, versions[-1].value)]
        found.catalog.objects[table][highest.to_bytes(8, "big") + key[8:]] = copied
        found.catalog.counters = replace(counters, next_data=counters.next_data + 1, next_inode=counters.next_inode + 1)

    return spoil


def left_tombstone(found: Repository) -> None:
    found.catalog.objects[catalog.XATTRS][(16).to_bytes(8, "big")] = [Version(1, b"")]


TABLES = {"inode": 1, "link": 2, "dentry": 3, "region": 4, "xattrs": 5}
SPOILERS: dict[str, Callable[[Repository], None]] = {
    "reference": spoilt_reference,
    "live bytes": spoilt_live_bytes,
    "blob id": spoilt_blob_id,
    "blob": spoilt_blob,
    "pack": spoilt_pack,
    "place": spoilt_place,
    "counter": spoilt_counter,
    "orphan left": left_orphan,
    "snapshot left": left_snapshot,
    "snapshot half purged": purged_snapshot,
    "tombstone left": left_tombstone,
    "name given lost": lost_given_name,
    "name made lost": lost_last_name,
    **{f"{name} lost": lost_object(table) for name, table in TABLES.items() if table != catalog.XATTRS},
    **{f"{name} version left": left_version(table) for name, table in TABLES.items()},
    **{f"{name} without an owner": left_object(table) for name, table in TABLES.items()},
}


@pytest.mark.parametrize("what", SPOILERS)
def test_the_audit_sees(whole: Twin, what: str) -> None:
    with small_limits(), Repository(whole.root, PASSWORD) as found:
        assert not audit_opened(found, contents=False, region_bytes=limits.REGION_BYTES)
        SPOILERS[what](found)
        assert audit_opened(found, contents=False, region_bytes=limits.REGION_BYTES)


def test_a_byte_damaged_anywhere(whole: Twin, tmp_path: Path, seed: int, scale: float) -> None:
    """It is named, or nothing is lost by it: a copy serves, a blob that it hit is no longer needed, or it hit the last segment's end."""
    draw = random.Random(f"damage/{seed}")
    with Repository(whole.root, PASSWORD) as found:
        trees = {s.name: found.snapshot(s.name).manifest() for s in found.snapshots()} | {"": found.present().manifest()}
        last = max(found.store.segments())
    paths = sorted(path for path in whole.root.rglob("*") if path.is_file() and path.stat().st_size)
    assert {path.relative_to(whole.root).parts[0] for path in paths} == {"config", "config.copy", "keys", "packs", "journal"}
    served, named = set(), set()
    for number in range(round(60 * scale)):
        path = paths[number % len(paths)]
        name = path.relative_to(whole.root)
        copy = tmp_path / str(number)
        shutil.copytree(whole.root, copy)
        content = bytearray(path.read_bytes())
        at = draw.randrange(len(content))
        content[at] ^= 1 << draw.randrange(8)
        (copy / name).write_bytes(content)
        with small_limits():
            lines = audit(copy, PASSWORD, region_bytes=limits.REGION_BYTES)
        if not lines:
            served.add(name.parts[0])
            assert name.parts[0] != "journal" or name.name == f"{last:016x}", f"{name} at {at}"
            with Repository(copy, PASSWORD) as found:
                for snapshot, tree in trees.items():
                    assert_same(tree, found.snapshot(snapshot).manifest() if snapshot else found.present().manifest())
        else:
            named.add(name.parts[0])
        shutil.rmtree(copy)
    assert named == {"packs", "journal"}
    assert served >= {"config", "config.copy", "keys"}


def test_a_segment_missing(whole: Twin, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in sorted((whole.root / "journal").iterdir())[:-1]:
        shutil.copytree(whole.root, copy)
        (copy / "journal" / path.name).unlink()
        with pytest.raises(Damage, match="missing"):
            Repository(copy, PASSWORD)
        shutil.rmtree(copy)


def test_the_command(whole: Twin, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    password = tmp_path / "password"
    password.write_bytes(PASSWORD + b"\n")
    start = [str(whole.root), "--password-file", str(password)]
    assert command.main(start) == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == sorted(whole.snapshots)
    name = min(whole.snapshots)
    assert command.main([*start, "--snapshot", name]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(whole.snapshots[name])
    assert command.main([*start, "--manifest", "--compare", str(tmp_path)]) == 1
    assert "password': not expected" in capsys.readouterr().out


def test_a_directory_and_the_decoder_have_one_manifest(tmp_path: Path, seed: int) -> None:
    """The entries are those that reading a directory gives."""
    twin = Twin(tmp_path, seed)
    source = tmp_path / "source"

    async def main() -> None:
        async with twin.mounted():
            await twin.put(b"a file", b"content")
            await twin.put(b"sparse", b"at the end", at=1 << 20)
        source.mkdir()
        (source / "a file").write_bytes(b"content")
        with (source / "sparse").open("wb") as file:
            file.seek(1 << 20)
            file.write(b"at the end")
        for path in [*source.iterdir(), source]:
            path.chmod(0o755 if path.is_dir() else 0o644)

    simulated(main, seed)
    with Repository(twin.root, PASSWORD) as found:
        assert_same(manifest(source), found.present().manifest(), ignore=["mtime_ns", "uid", "gid"])


def test_the_decoder_is_independent() -> None:
    program = "import sys, tests.decoder.__main__; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "'tests'" in shown
    assert "'backupfs'" not in shown
    assert "'lmdb'" not in shown


def test_the_vectors(tmp_path: Path) -> None:
    """The committed bytes, read by the decoder."""
    made = json.loads(VECTORS.read_text())
    (tmp_path / "keys").mkdir()
    (tmp_path / "config").write_bytes(bytes.fromhex(made["config"]["file"]))
    slot = bytes.fromhex(made["key slot"]["file"])
    (tmp_path / "keys" / slot[32:48].hex()).write_bytes(slot)
    keys = open_store(Store(tmp_path), bytes.fromhex(made["key slot"]["password"]))
    assert keys.master.hex() == made["key slot"]["master key"]
    assert [padded(size) for size in made["layout"]["sizes"]] == made["layout"]["padded sizes"]
    assert [keys.blob_ids.hex(), keys.names.hex(), keys.journal_hash.hex()] == [made["keys"][name] for name in ("blob ids", "names", "journal hash")]
    assert keyed_hash(keys.blob_ids, b"chunk").hex() == made["keys"]["blob id of 'chunk'"]
    check_pack_vector(tmp_path, made["pack"], keys)
    check_journal_vector(made["journal"], keys)
    inode = catalog.read_inode(bytes.fromhex(made["catalog records"]["inode"]))
    assert (inode.mode, inode.mtime_ns, inode.birth_ns, len(inode.extents)) == (0o100644, -1, 2**62, 2)
    assert catalog.read_dentry(bytes.fromhex(made["catalog records"]["dentry"])) == catalog.Dentry(16, 8, b"name\xff")
    for record in made["catalog records"].values():
        messagepack.decode(bytes.fromhex(record))


def check_pack_vector(directory: Path, made: dict[str, str], keys: Keys) -> None:
    object_id = bytes.fromhex(made["object id"])
    path = directory / made["object id"]
    path.write_bytes(bytes.fromhex(made["file"]))
    places = packs.trailer(path, object_id, keys)
    with path.open("rb") as file:
        sealer = packs.sealer_of(file, object_id, keys)
        assert [packs.chunk(file, sealer, place, keys) for place in places] == [b"first chunk", b"", b"third chunk"]
    assert keys.sealer(bytes.fromhex(made["header"]), PACK_MAGIC, object_id) == sealer


def check_journal_vector(made: dict[str, str], keys: Keys) -> None:
    content = bytes.fromhex(made["file"])
    assert keyed_hash(keys.journal_hash, content).hex() == made["hash"]
    sealer = keys.sealer(content[:128], JOURNAL_MAGIC, bytes(15) + b"\x07")
    frames = list(journal.frames(content, sealer))
    assert [frame.content.hex() for frame in frames] == [made["opening"], made["batch"], made["ending"]]
    assert [(frame.kind, frame.number) for frame in frames] == [(1, 41), (2, 42), (3, 42)]
    assert list(catalog.records(frames[1].content)) == [(1, b"key", b"value"), (8, b"", b""), (12, b"k", None)]
