"""Section 11 of docs/format.md against the program: the decoder reads checkpoints that the engine made, spoilt ones, and ones made up here.

Whatever is wrong, it reads the tree that was there, or it says that it cannot. It never reads another.
"""

import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from backupfs import limits
from tests.compat.forge import Draft, Forge, Record
from tests.compat.twin import Twin, UnsyncedFiles, expect_none
from tests.crash.history import small_limits
from tests.crash.simulation import PASSWORD, run
from tests.decoder import __main__ as command
from tests.decoder import history
from tests.decoder.audit import audit, audit_opened
from tests.decoder.checkpoints import Checkpoint
from tests.decoder.damage import Damage
from tests.decoder.decoder import Repository
from tests.decoder.history import History
from tests.decoder.journal import START, Position
from tests.decoder.sealing import BLOCK_BYTES, FRAME_BODY, HEADER_BYTES, Keys, keyed_hash
from tests.decoder.store import Store, open_store


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    """Parts and segments fill up with a few records."""
    with small_limits(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "JOURNAL_SEGMENT_TARGET_BYTES", 8 * limits.KIB)
        patch.setattr(limits, "CHECKPOINT_PART_BYTES", 1200)
        yield


class WatchedFiles(UnsyncedFiles):
    """Calls `seen` whenever a name has come or gone."""

    def __init__(self) -> None:
        self.seen: Callable[[], None] = lambda: None

    def rename(self, old: Path, new: Path) -> None:
        super().rename(old, new)
        self.seen()

    def unlink(self, path: Path) -> None:
        super().unlink(path)
        self.seen()


async def live_a_little(twin: Twin) -> None:
    """Changes in several segments, and a snapshot."""
    for _ in range(4):
        await twin.act(4)
        await twin.settle()
    await twin.take_snapshot()


class Life:
    """A repository with two checkpoints and a journal cut off behind the older one; and everything that was cut off."""

    def __init__(self, directory: Path) -> None:
        self.twin = Twin(directory, "checkpoints")
        self.twin.biggest_bytes = 3000
        self.root = self.twin.root
        self.gone = directory / "gone"
        """All objects of journal and checkpoints that there ever were."""
        self.still = directory / "still"
        """Right after the last checkpoint: no segment is behind it."""
        run(self._live, 1)
        self.keys = open_store(Store(self.root), PASSWORD)
        self.history = history.read(Store(self.root), self.keys)

    async def _live(self) -> None:
        async with self.twin.mounted() as fs:
            for number in range(3):
                await live_a_little(self.twin)
                if number == 2:
                    await self.twin.delete_snapshot(min(self.twin.snapshots))
                    await fs.idle()
                self._keep()
                await fs.make_checkpoint()
                self._keep()
            self.twin.kill(self.still)
            await live_a_little(self.twin)
            await fs.idle()
        expect_none(self.twin.faults(settled=True, closed=True))

    def _keep(self) -> None:
        for folder in ("journal", "checkpoints"):
            if (self.root / folder).exists():
                shutil.copytree(self.root / folder, self.gone / folder, dirs_exist_ok=True)

    @property
    def older(self) -> Checkpoint:
        return self.history.checkpoints[0]

    @property
    def newer(self) -> Checkpoint:
        return self.history.checkpoints[1]


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory, _small: None) -> Life:
    return Life(tmp_path_factory.mktemp("life"))


@pytest.fixture
def copy(life: Life, tmp_path: Path) -> Path:
    """Of the repository, to be spoilt."""
    return Path(shutil.copytree(life.root, tmp_path / "copy"))


@pytest.fixture
def still(life: Life, tmp_path: Path) -> Path:
    """Of the repository as it was right after its newest checkpoint."""
    return Path(shutil.copytree(life.still, tmp_path / "still"))


def read(root: Path, keys: Keys) -> History:
    return history.read(Store(root), keys)


def checked(root: Path, *, settled: bool) -> list[str]:
    return audit(root, PASSWORD, settled=settled, closed=settled, contents=False, region_bytes=limits.REGION_BYTES)


def segment_path(root: Path, sequence: int) -> Path:
    return root / "journal" / f"{sequence:016x}"


def flip(path: Path, at: int, mask: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= mask
    path.write_bytes(content)


def draft_of(checkpoint: Checkpoint) -> Draft:
    """What the engine wrote, to be written again: in parts of the same number."""
    records: list[Record] = [(table, key, value) for (table, key), value in checkpoint.rows.items()]
    return Draft(checkpoint.position, [records]).split(-(-len(records) // len(checkpoint.parts)))


# --- what the engine writes ------------------------------------------------------------------------------------------


def test_there_is_enough_in_it(life: Life) -> None:
    assert [checkpoint.number for checkpoint in life.history.checkpoints] == [2, 3]
    assert len(life.older.parts) > 1
    assert len(life.newer.parts) > 2
    sequences = list(Store(life.root).segments())
    assert sequences[0] == life.older.position.segment + 1
    assert life.older.position.segment + 1 < life.newer.position.segment < sequences[-2]
    assert life.older.rows.keys() - life.newer.rows.keys(), "the journal removes records between the two"


def test_everything_that_was_cut_off_gives_the_same(life: Life, copy: Path) -> None:
    """From the first segment on each of the three checkpoints is come by."""
    shutil.copytree(life.gone, copy, dirs_exist_ok=True)
    found = read(copy, life.keys)
    assert found.begins == START
    assert len(found.checkpoints) == 3
    assert found.faults == []
    assert found.catalog == life.history.catalog
    assert checked(copy, settled=False) == []
    lines = checked(copy, settled=True)
    assert lines[0] == "3 checkpoints"
    assert lines[1:] == [f"segment {sequence}: no longer needed" for sequence in range(1, life.older.position.segment + 1)]
    shutil.rmtree(copy / "checkpoints")
    assert read(copy, life.keys).catalog == life.history.catalog


def test_right_after_a_checkpoint(life: Life, still: Path) -> None:
    """No segment is behind it, and none need be there at all."""
    whole = read(still, life.keys)
    assert whole.faults == []
    assert whole.catalog.batch == life.newer.position.batch
    shutil.rmtree(still / "journal")
    found = read(still, life.keys)
    assert found.catalog == whole.catalog
    assert [line.split(":")[0] for line in found.faults] == ["checkpoint 2"]


def test_killed_while_a_checkpoint_is_made(tmp_path: Path) -> None:
    """Whatever was done of it, the tree is there by every way; what it leaves goes with the next one."""
    twin = Twin(tmp_path, "killed")
    twin.biggest_bytes = 3000
    files = WatchedFiles()
    twin._files = files
    kills: list[Path] = []

    def kill() -> None:
        kills.append(tmp_path / str(len(kills)))
        twin.kill(kills[-1])

    async def main() -> None:
        async with twin.mounted() as fs:
            for number in range(3):
                await live_a_little(twin)
                files.seen = kill if number == 2 else files.seen
                await fs.make_checkpoint()
            files.seen = lambda: None
            assert len(kills) > 12
            for at in kills:
                expect_none(twin.faults(at))
            left = [at for at in kills if checked(at, settled=True)]
            for at in left[:: len(left) // 3]:
                async with twin.mounted(at) as copied:
                    await copied.make_checkpoint()
                    await copied.idle()
                expect_none(twin.faults(at, settled=True, closed=True))

    run(main, 2)


# --- damage to one object --------------------------------------------------------------------------------------------

HEADER_FIELDS = {"magic": 0, "version": 9, "zeros": 13, "repository": 20, "object id": 40, "salt": 50, "commitment": 90, "more zeros": 115}


def spoilt(content: bytes, other: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What, and the bytes that are left of an object; None when it is gone. `other`: another object."""
    for name, at in HEADER_FIELDS.items():
        header = bytearray(content[:HEADER_BYTES])
        header[at] ^= 1
        yield f"{name} of the header", bytes(header) + content[HEADER_BYTES:]
        header[124:] = struct.pack(">I", zlib.crc32(header[:124]))
        yield f"{name} of the header, with its checksum", bytes(header) + content[HEADER_BYTES:]
    for at in (124, HEADER_BYTES, len(content) // 2, len(content) - 1):
        yield f"byte {at}", content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]
    for size in (0, 64, HEADER_BYTES, HEADER_BYTES + 8, len(content) - BLOCK_BYTES, len(content) - 1):
        yield f"cut off at {size}", content[:size]
    yield "a block more", content + bytes(BLOCK_BYTES)
    yield "another's body", content[:HEADER_BYTES] + other[HEADER_BYTES:]
    yield "another's header", other[:HEADER_BYTES] + content[HEADER_BYTES:]
    yield "another's bytes", other
    yield "gone", None


def test_each_object_damaged(life: Life, copy: Path) -> None:
    """What it held is read from elsewhere, and the damage has a line."""
    paths = sorted((copy / "checkpoints").iterdir())
    originals = {path: path.read_bytes() for path in paths}
    for path, content in originals.items():
        others = [other for other in paths if other != path and len(other.name) == len(path.name)]
        for what, bad in spoilt(content, originals[others[-1]]):
            if bad is None:
                path.unlink()
            else:
                path.write_bytes(bad)
            found = read(copy, life.keys)
            assert found.catalog == life.history.catalog, f"{path.name}: {what}"
            if bad is None and "-" not in path.name:
                assert found.faults == [], "parts without a manifest do not count"
                assert [line for line in checked(copy, settled=True) if line.endswith("without a manifest")]
            else:
                assert [line.split(":")[0] for line in found.faults] == [f"checkpoint {int(path.name[:16], 16)}"], f"{path.name}: {what}"
        path.write_bytes(content)
    assert read(copy, life.keys).faults == []


def test_two_parts_exchanged(life: Life, copy: Path) -> None:
    folder = copy / "checkpoints"
    for first, second in [(life.newer, life.newer), (life.newer, life.older), (life.older, life.older)]:
        paths = [folder / f"{c.number:016x}-{c.parts[at].hex()}" for c, at in ((first, 0), (second, 1))]
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, reversed(contents), strict=True):
            path.write_bytes(content)
        if first is second:
            found = read(copy, life.keys)
            assert found.catalog == life.history.catalog
            assert [line.split(":")[0] for line in found.faults] == [f"checkpoint {first.number}"]
        else:
            with pytest.raises(Damage, match="missing"):
                read(copy, life.keys)
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)


def test_a_whole_checkpoint_under_another_number(life: Life, copy: Path) -> None:
    """It is not the one that its manifest says it is; its parts would fit."""
    folder = copy / "checkpoints"
    for path in [path for path in folder.iterdir() if path.name.startswith(f"{3:016x}")]:
        shutil.copy(path, folder / path.name.replace(f"{3:016x}", f"{4:016x}"))
    found = read(copy, life.keys)
    assert found.catalog == life.history.catalog
    assert [line.split(":")[0] for line in found.faults] == ["checkpoint 4"]


def test_both_checkpoints_damaged(life: Life, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is cut off is missing."""
    folder = copy / "checkpoints"
    flip(folder / f"{2:016x}", 200)
    password = copy.parent / "password"
    password.write_bytes(PASSWORD)
    assert command.main([str(copy), "--password-file", str(password)]) == 0
    assert "checkpoint 2: object" in capsys.readouterr().err, "what is not needed is told all the same"
    flip(folder / f"{3:016x}-{life.newer.parts[-1].hex()}", 200)
    with pytest.raises(Damage, match="missing"):
        read(copy, life.keys)
    assert "missing" in checked(copy, settled=False)[0]
    shutil.rmtree(copy / "journal")
    with pytest.raises(Damage, match="missing"):
        read(copy, life.keys)
    (folder / f"{3:016x}").unlink()
    with pytest.raises(Damage, match="no checkpoint holds, and the journal is missing"):
        read(copy, life.keys)
    shutil.rmtree(folder)
    assert checked(copy, settled=False) == ["there is no batch"]


def test_leftovers(life: Life, copy: Path) -> None:
    """They change nothing; of a settled repository they are told."""
    folder = copy / "checkpoints"
    part = folder / f"{3:016x}-{life.newer.parts[0].hex()}"
    assert checked(copy, settled=True) == []
    expected = set()
    for number, object_id, what in [
        (1, bytes(16), "without a manifest"),
        (3, bytes(16), "its manifest does not name it"),
        (4, life.newer.parts[0], "without a manifest"),
    ]:
        shutil.copy(part, folder / f"{number:016x}-{object_id.hex()}")
        expected.add(f"part {object_id.hex()} of checkpoint {number}: {what}")
    (folder / f"{5:016x}.partial").write_bytes(b"half")
    expected.add(f"checkpoints/{5:016x}.partial: left")
    assert checked(copy, settled=False) == []
    assert read(copy, life.keys).catalog == life.history.catalog
    lines = checked(copy, settled=True)
    assert set(lines) == expected
    assert len(lines) == len(expected)


# --- damage to the journal -------------------------------------------------------------------------------------------


def test_each_segment_damaged_or_missing(life: Life, copy: Path) -> None:
    """Up to the newest checkpoint none is needed and the damage is told; behind it, all are."""
    sequences = list(Store(copy).segments())
    for sequence in sequences:
        path = segment_path(copy, sequence)
        content = path.read_bytes()
        for at in (None, 40, HEADER_BYTES, BLOCK_BYTES, BLOCK_BYTES + 40, len(content) - 1):
            path.unlink(missing_ok=True)
            if at is not None:
                path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            if sequence <= life.newer.position.segment:
                found = read(copy, life.keys)
                assert found.catalog == life.history.catalog
                assert found.faults
            elif sequence != sequences[-1]:
                with pytest.raises(Damage, match=r"segment|object"):
                    read(copy, life.keys)
        path.write_bytes(content)
    assert read(copy, life.keys).faults == []


def test_a_journal_that_ends_before_a_checkpoint_whose_parts_are_lost(life: Life, copy: Path, still: Path) -> None:
    """The manifest alone tells how far the journal went: an older tree is not the tree."""
    for root in (copy, still):
        flip(root / "checkpoints" / f"{3:016x}-{life.newer.parts[1].hex()}", 300)
        whole = life.history.catalog.batch if root == copy else life.newer.position.batch
        assert read(root, life.keys).catalog.batch == whole
    for sequence in Store(copy).segments():
        if sequence >= life.newer.position.segment:
            segment_path(copy, sequence).unlink()
    with pytest.raises(Damage, match="missing, and named by a checkpoint"):
        read(copy, life.keys)
    flip(segment_path(still, life.newer.position.segment), life.newer.position.size - 1)
    with pytest.raises(Damage, match="not the bytes that"):
        read(still, life.keys)


def test_a_segment_that_goes_on_behind_the_end_that_a_checkpoint_has(life: Life, still: Path) -> None:
    last = segment_path(still, life.newer.position.segment)
    content = last.read_bytes()
    last.write_bytes(content + bytes(BLOCK_BYTES))
    assert read(still, life.keys).faults == [], "torn"
    last.write_bytes(content)
    Forge(still, life.keys).go_on(life.newer.position, [(12, b"last-name", b"another")])
    with pytest.raises(Damage, match="goes on"):
        read(still, life.keys)
    flip(last, 3)
    found = read(still, life.keys)
    assert found.catalog.batch == life.newer.position.batch
    assert len(found.faults) == 2


# --- checkpoints that open, and are wrong ----------------------------------------------------------------------------


def as_it_is(draft: Draft) -> Draft:
    return draft


def one_part(draft: Draft) -> Draft:
    return draft.split(1 << 20)


def a_part_for_each(draft: Draft) -> Draft:
    return draft.split(1)


@pytest.mark.parametrize("change", [as_it_is, one_part, a_part_for_each])
def test_made_anew_it_holds(life: Life, copy: Path, change: Callable[[Draft], Draft]) -> None:
    for checkpoint in life.history.checkpoints:
        Forge(copy, life.keys).checkpoint(checkpoint.number, change(draft_of(checkpoint)))
    found = read(copy, life.keys)
    assert found.faults == []
    assert found.catalog == life.history.catalog
    assert [c.rows for c in found.checkpoints] == [c.rows for c in life.history.checkpoints]
    assert checked(copy, settled=True) == []


def with_a_change(draft: Draft) -> None:
    at = next(at for at, record in enumerate(draft.parts[-1]) if record[0] > 6)
    draft.parts[-1].insert(at, (6, bytes(17), b""))


def with_a_removal(draft: Draft) -> None:
    draft.parts[-1].append((12, b"zzz", None))


def with_two_records_exchanged(draft: Draft) -> None:
    draft.parts[0][0], draft.parts[0][1] = draft.parts[0][1], draft.parts[0][0]


def with_two_parts_exchanged(draft: Draft) -> None:
    draft.parts[0], draft.parts[1] = draft.parts[1], draft.parts[0]


def with_a_record_twice(draft: Draft) -> None:
    draft.parts[0].insert(0, draft.parts[0][0])


def with_a_record_in_two_parts(draft: Draft) -> None:
    draft.parts[1].insert(0, draft.parts[0][-1])


def with_another_count(draft: Draft) -> None:
    draft.counts[0] = len(draft.parts[0]) + 1


def with_another_hash(draft: Draft) -> None:
    draft.hashes[1] = bytes(32)


def with_a_short_key(draft: Draft) -> None:
    table, key, value = draft.parts[0][0]
    draft.parts[0][0] = table, key[:-1], value


def with_an_unknown_table(draft: Draft) -> None:
    draft.parts[-1].append((13, b"key", b"value"))


def with_longer_parts(draft: Draft) -> None:
    draft.part_spare = bytes(BLOCK_BYTES)


def with_a_longer_manifest(draft: Draft) -> None:
    draft.manifest_spare = bytes(BLOCK_BYTES)


def with_parts_sealed_as_a_frame(draft: Draft) -> None:
    draft.part_kind = FRAME_BODY


def with_a_manifest_sealed_as_a_part(draft: Draft) -> None:
    draft.manifest_kind = draft.part_kind


def with_something_in_the_padding(draft: Draft) -> None:
    draft.part_spare = bytes(BLOCK_BYTES - 1) + b"\1"


def with_a_field_more(draft: Draft) -> None:
    draft.more.append(0)


def with_no_segment(draft: Draft) -> None:
    draft.position = replace(draft.position, segment=0)


def with_a_short_object_id(draft: Draft) -> None:
    draft.object_ids[0] = bytes(15)


RULES = [
    with_a_change,
    with_a_removal,
    with_two_records_exchanged,
    with_two_parts_exchanged,
    with_a_record_twice,
    with_a_record_in_two_parts,
    with_another_count,
    with_another_hash,
    with_a_short_key,
    with_an_unknown_table,
    with_longer_parts,
    with_a_longer_manifest,
    with_parts_sealed_as_a_frame,
    with_a_manifest_sealed_as_a_part,
    with_something_in_the_padding,
    with_a_field_more,
    with_no_segment,
    with_a_short_object_id,
]


@pytest.mark.parametrize("spoil", RULES)
@pytest.mark.parametrize("number", [2, 3])
def test_a_checkpoint_that_breaks_a_rule_does_not_hold(life: Life, copy: Path, number: int, spoil: Callable[[Draft], None]) -> None:
    draft = draft_of(life.history.checkpoints[number - 2])
    spoil(draft)
    Forge(copy, life.keys).checkpoint(number, draft)
    found = read(copy, life.keys)
    assert [line.split(":")[0] for line in found.faults] == [f"checkpoint {number}"]
    assert [checkpoint.number for checkpoint in found.checkpoints] == [5 - number]
    assert found.catalog == life.history.catalog


def with_another_value(draft: Draft) -> None:
    table, key, _ = draft.parts[0][-1]
    draft.parts[0][-1] = table, key, b"another"


def with_a_record_more(draft: Draft) -> None:
    draft.parts[-1].append((12, b"zzz", b"1"))


def with_a_record_less(draft: Draft) -> None:
    draft.parts[0].pop()


def with_another_batch(draft: Draft) -> None:
    draft.position = replace(draft.position, batch=draft.position.batch + 1)


def with_another_segment(draft: Draft) -> None:
    draft.position = replace(draft.position, segment=draft.position.segment + 1)


def with_fewer_bytes(draft: Draft) -> None:
    draft.position = replace(draft.position, size=draft.position.size - BLOCK_BYTES)


def with_another_hash_of_its_segment(draft: Draft) -> None:
    draft.position = replace(draft.position, hash=bytes(32))


LIES = [
    with_another_value,
    with_a_record_more,
    with_a_record_less,
    with_another_batch,
    with_another_segment,
    with_fewer_bytes,
    with_another_hash_of_its_segment,
]


@pytest.mark.parametrize("spoil", LIES)
@pytest.mark.parametrize("number", [2, 3])
def test_a_checkpoint_that_the_journal_does_not_bear_out(life: Life, copy: Path, number: int, spoil: Callable[[Draft], None]) -> None:
    """It keeps every rule, and is another catalog: nobody can say which is the tree."""
    draft = draft_of(life.history.checkpoints[number - 2])
    spoil(draft)
    Forge(copy, life.keys).checkpoint(number, draft)
    with pytest.raises(Damage, match=r"checkpoint|segment"):
        read(copy, life.keys)
    assert checked(copy, settled=False)


def test_numbers_that_do_not_rise_with_the_journal(life: Life, copy: Path) -> None:
    Forge(copy, life.keys).checkpoint(9, draft_of(life.older))
    with pytest.raises(Damage, match="before that of checkpoint 3"):
        read(copy, life.keys)


def test_two_checkpoints_in_one_place(life: Life, copy: Path) -> None:
    Forge(copy, life.keys).checkpoint(9, draft_of(life.newer))
    found = read(copy, life.keys)
    assert found.faults == []
    assert found.catalog == life.history.catalog
    assert checked(copy, settled=True)[0] == "3 checkpoints"


# --- journals made up ------------------------------------------------------------------------------------------------


def name_is(name: bytes) -> list[list[Record]]:
    """A batch, or a part, with one record."""
    return [[(12, b"last-name", name)]]


@pytest.fixture
def forge(life: Life, tmp_path: Path) -> Forge:
    """For a repository with nothing in it."""
    return Forge(tmp_path, life.keys)


def test_sequence_numbers_that_were_left_out(forge: Forge) -> None:
    """A checkpoint at one that was left out is nowhere."""
    first = forge.segment(1, START, name_is(b"one"))
    third = forge.segment(3, first, name_is(b"two"), ended=False)
    forge.segment(7, third, name_is(b"three"))
    forge.checkpoint(1, Draft(third, name_is(b"two")))
    found = read(forge.root, forge.keys)
    assert found.faults == []
    assert found.catalog.last_name == "three"
    forge.checkpoint(1, Draft(replace(first, segment=2), name_is(b"one")))
    forge.checkpoint(2, Draft(third, name_is(b"two")))
    with pytest.raises(Damage, match="which no segment names"):
        read(forge.root, forge.keys)


def test_segments_that_nobody_names(forge: Forge) -> None:
    """Before the checkpoint they are not needed; each has a line, or lies behind a gap."""
    first = forge.segment(1, START, name_is(b"one"))
    forge.segment(2, first, name_is(b"lost"))
    third = forge.segment(3, first, name_is(b"two"))
    fourth = forge.segment(4, third, name_is(b"three"))
    forge.checkpoint(1, Draft(fourth, name_is(b"three")))
    assert read(forge.root, forge.keys).faults == ["segment 2: no other names it"]
    segment_path(forge.root, 2).write_bytes(bytes(BLOCK_BYTES))
    assert read(forge.root, forge.keys).faults == [], "never begun"
    segment_path(forge.root, 3).unlink()
    found = read(forge.root, forge.keys)
    assert (found.faults, found.begins, found.catalog.last_name) == ([], third, "three")
    flip(segment_path(forge.root, 1), 50)
    assert [line.split(":")[0] for line in read(forge.root, forge.keys).faults] == ["segment 1"]


def test_segments_behind_a_checkpoint_that_do_not_follow_it(forge: Forge) -> None:
    first = forge.segment(1, START, name_is(b"one"))
    second = forge.segment(2, first, name_is(b"two"))
    forge.segment(3, first, name_is(b"another two"))
    forge.checkpoint(1, Draft(second, name_is(b"two")))
    with pytest.raises(Damage, match="does not begin at the end of segment 2"):
        read(forge.root, forge.keys)


def test_the_end_behind_a_checkpoint(forge: Forge) -> None:
    """As without one: a segment that was never begun does not count, one that nobody names is damage."""
    first = forge.segment(1, START, name_is(b"one"))
    forge.checkpoint(1, Draft(first, name_is(b"one")))
    never = segment_path(forge.root, 3)
    never.write_bytes(bytes(BLOCK_BYTES))
    assert read(forge.root, forge.keys).catalog.last_name == "one"
    forge.segment(2, first, name_is(b"two"))
    assert read(forge.root, forge.keys).catalog.last_name == "two"
    forge.segment(3, first, name_is(b"three"))
    with pytest.raises(Damage, match=r"segments \[2\]: no other names them"):
        read(forge.root, forge.keys)
    never.unlink()
    shutil.rmtree(forge.root / "checkpoints")
    for sequence in (1, 2):
        segment_path(forge.root, sequence).write_bytes(bytes(BLOCK_BYTES))
    with pytest.raises(Damage, match="no segment has an opening"):
        read(forge.root, forge.keys)


@pytest.mark.parametrize(
    ("before", "message"),
    [
        (Position(0, 5, b"", 0), "names 0"),
        (Position(0, 0, b"", 3), "names 0"),
        (Position(4, 128, bytes(32), 0), "names 4"),
    ],
)
def test_openings_that_name_what_cannot_be_before(forge: Forge, before: Position, message: str) -> None:
    forge.segment(4, before, name_is(b"one"))
    with pytest.raises(Damage, match=message):
        read(forge.root, forge.keys)


def test_a_position_that_is_no_end_of_a_segment(forge: Forge) -> None:
    first = forge.segment(1, START, name_is(b"one"), ended=False)
    content = segment_path(forge.root, 1).read_bytes()[:HEADER_BYTES]
    for before in (replace(first, batch=9), Position(1, HEADER_BYTES, keyed_hash(forge.keys.journal_hash, content), 0)):
        forge.segment(2, before, name_is(b"two"))
        with pytest.raises(Damage, match=r"ends with batch 1|no opening"):
            read(forge.root, forge.keys)


def test_many_made_up_journals(life: Life, tmp_path: Path, seed: int) -> None:
    """Random batches and checkpoints, then anything removed: the catalog of a plain dictionary, or damage."""
    draw = random.Random(f"made up/{seed}")
    lost = 0
    for number in range(60):
        forge = Forge(tmp_path / str(number), life.keys)
        forge.root.mkdir()
        rows: dict[tuple[int, bytes], bytes] = {}
        position, sequence, made = START, 0, 0
        for _ in range(draw.randrange(2, 7)):
            sequence += draw.randrange(1, 3)
            batches = [_random_batch(draw, rows) for _ in range(draw.randrange(3))]
            position = forge.segment(sequence, position, batches, ended=draw.random() < 0.7)
            if draw.random() < 0.6:
                made += draw.randrange(1, 3)
                records: list[Record] = [(table, key, value) for (table, key), value in sorted(rows.items())]
                forge.checkpoint(made, Draft(position, [records]).split(draw.randrange(1, 6)))
        assert read(forge.root, life.keys).faults == []
        last = segment_path(forge.root, sequence)
        there = sorted(path for path in forge.root.rglob("*") if path.is_file() and path != last)
        for path in draw.sample(there, min(len(there), draw.randrange(1, 4))):
            path.unlink()
        try:
            found = read(forge.root, life.keys)
        except Damage:
            lost += 1
        else:
            assert found.catalog.batch == position.batch
            assert found.catalog.blob_numbers == {key: value[0] for (_, key), value in rows.items()}
    assert 0 < lost < 60


def _random_batch(draw: random.Random, rows: dict[tuple[int, bytes], bytes]) -> list[Record]:
    """Rows of blob ids that come, change and go."""
    batch: list[Record] = []
    for _ in range(draw.randrange(1, 5)):
        key = bytes([draw.randrange(8)]) * 32
        value = bytes([draw.randrange(100)]) if draw.random() < 0.7 else None
        batch.append((7, key, value))
        if value is None:
            rows.pop((7, key), None)
        else:
            rows[7, key] = value
    return batch


def test_the_audit_tells_what_is_wrong_in_the_history(life: Life, copy: Path) -> None:
    flip(copy / "checkpoints" / f"{3:016x}", 100)
    with Repository(copy, PASSWORD) as found:
        for settled in (False, True):
            lines = audit_opened(found, settled=settled, contents=False, region_bytes=limits.REGION_BYTES)
            assert lines == found.history.faults != [], "the parts of a damaged manifest are no leftovers"
