"""Reading blobs back: nothing that is not exactly what was written is ever given."""

import random
from pathlib import Path

import msgspec
import pytest

from backupfs.blobs import reader as reader_module
from backupfs.blobs.packs import pack_name
from backupfs.errors import DamageError, MissingObjectError, StoreError
from backupfs.format.catalog import Blob
from tests.unit.blobs.test_packs import OPEN, Packs, handles_left, noise

TEXT = b"words and words and words " * 40


@pytest.fixture
def packs() -> Packs:
    packs = Packs()
    packs.append(noise(1), TEXT)
    packs.sync()
    return packs


def blob(packs: Packs, number: int) -> tuple[Blob, bytes]:
    place, plain = packs.places[number], packs.plain[number]
    return Blob(packs.keys.blob_id(plain), place.pack, place.offset, place.stored_bytes, len(plain), 1), packs.names[place.pack]


def close_all(packs: Packs) -> Path:
    """Close the only pack; gives its path in the store."""
    [pack] = packs.writer.finish()
    packs.writer.close(pack)
    packs.reader.forget(pack.object_id)
    return packs.store.root / pack_name(pack.object_id)


@pytest.mark.parametrize("where", ["open", "closed"])
def test_every_flipped_byte_is_damage(packs: Packs, where: str) -> None:
    object_id = packs.names[1]
    path = close_all(packs) if where == "closed" else OPEN / object_id.hex()
    end = max(place.offset + place.stored_bytes for place in packs.places.values())
    for at in range(end):
        packs.disk.damage(path, at, 1 << at % 8)
        packs.reader.forget(object_id)
        for number, place in packs.places.items():
            # of a closed pack the header stands at the end once more
            hit = (at < 128 and where == "open") or place.offset <= at < place.offset + place.stored_bytes
            if hit:
                with pytest.raises(DamageError):
                    packs.read(number)
            else:
                assert packs.read(number) == packs.plain[number]
        packs.disk.damage(path, at, 1 << at % 8)
    packs.reader.close()
    assert len(handles_left(packs.disk)) == (1 if where == "open" else 0)


@pytest.mark.parametrize("number", [1, 2])
def test_a_record_that_lies_is_damage(packs: Packs, number: int) -> None:
    right, object_id = blob(packs, number)
    for wrong in (
        msgspec.structs.replace(right, offset=right.offset + 1),
        msgspec.structs.replace(right, stored_bytes=right.stored_bytes - 1),
        msgspec.structs.replace(right, plain_bytes=right.plain_bytes + 1),
        msgspec.structs.replace(right, plain_bytes=right.plain_bytes - 1),
        msgspec.structs.replace(right, stored_bytes=1 << 40),
        msgspec.structs.replace(right, offset=1 << 40),
        msgspec.structs.replace(right, id=bytes(32)),
    ):
        with pytest.raises(DamageError):
            packs.reader.read(wrong, object_id)
    assert packs.reader.read(right, object_id) == packs.plain[number]


def test_a_pack_cut_off_is_damage(packs: Packs) -> None:
    right, object_id = blob(packs, 2)
    path = close_all(packs)
    data = packs.store.get(pack_name(object_id))
    for size in (0, 100, 128, right.offset, right.offset + right.stored_bytes - 1):
        packs.disk.unlink(path)
        handle = packs.disk.create(path)
        packs.disk.write_at(handle, 0, [data[:size]])
        packs.disk.close(handle)
        packs.reader.forget(object_id)
        with pytest.raises(DamageError):
            packs.reader.read(right, object_id)


def test_a_pack_under_anothers_name_is_damage(packs: Packs) -> None:
    right, object_id = blob(packs, 1)
    path = close_all(packs)
    other = bytes(16)
    packs.disk.make_directory(packs.store.root / "packs" / "00")
    packs.disk.rename(path, packs.store.root / pack_name(other))
    with pytest.raises(DamageError):
        packs.reader.read(right, other)
    with pytest.raises(MissingObjectError):
        packs.reader.read(right, object_id)


def test_a_pack_that_moves_into_the_store_while_it_is_read(packs: Packs) -> None:
    assert packs.read(1) == noise(1)
    [pack] = packs.writer.finish()
    packs.writer.close(pack)
    assert packs.read(2) == TEXT, "the file that is held has the bytes still"
    packs.reader.forget(pack.object_id)
    packs.reader.forget(pack.object_id)
    assert packs.read(2) == TEXT


def test_a_pack_let_go_of_while_it_is_in_use_is_closed_after_that(packs: Packs) -> None:
    source = packs.reader._acquire(packs.names[1])
    packs.reader.forget(packs.names[1])
    assert packs.read(1) == noise(1)
    packs.reader._release(source)
    packs.reader.close()
    assert len(handles_left(packs.disk)) == 1, "only the writer's"


def test_two_who_open_the_same_pack_at_once_share_it(packs: Packs, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = packs.reader._open(packs.names[1]), packs.reader._open(packs.names[1])

    def beaten(object_id: bytes) -> object:
        packs.reader._sources[object_id] = first
        return second

    monkeypatch.setattr(packs.reader, "_open", beaten)
    assert packs.read(1) == noise(1)
    packs.reader.close()
    assert len(handles_left(packs.disk)) == 1


def test_few_packs_are_held_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_OPEN_MAX", 3)
    packs = Packs()
    for number in range(8):
        packs.append(noise(number))
        packs.sync()
        for pack in packs.writer.finish():
            pack.writers = 0
    order = [n for n in packs.plain for _ in range(2)]
    random.Random(1).shuffle(order)
    for number in order:
        assert packs.read(number) == packs.plain[number]
        assert len(handles_left(packs.disk)) <= 8 + 3
    packs.reader.close()
    assert len(handles_left(packs.disk)) == 8


def test_an_unreadable_disk_is_no_damage(packs: Packs) -> None:
    right, object_id = blob(packs, 1)
    packs.reader._files = packs.files
    for kind in ("read_at", "open"):
        packs.reader.forget(object_id)
        packs.fail(kind)
        with pytest.raises(StoreError):
            packs.reader.read(right, object_id)
        packs.failing = lambda _operation, _number: None
    assert packs.reader.read(right, object_id) == noise(1)
    packs.reader.close()
    assert len(handles_left(packs.disk)) == 1
