"""The layouts are those of the format version: bytes made today equal the bytes committed with it."""

import hashlib
import json

import pytest

from backupfs.codec import keys
from backupfs.format import config, journal, keyslot, layout, objects, pack
from backupfs.format.layout import Sealed
from tests.compat.make_vectors import CHACHA, CONFIG, MASTER, OBJECT, PASSWORD, PATH, Vectors, stream, vectors


@pytest.fixture(scope="module")
def committed() -> Vectors:
    read: Vectors = json.loads(PATH.read_text())
    return read


def text(value: str | int | list[int]) -> bytes:
    assert isinstance(value, str)
    return bytes.fromhex(value)


def test_nothing_has_changed(committed: Vectors) -> None:
    made = vectors()
    assert made.keys() == committed.keys()
    for section in made:
        assert made[section] == committed[section], section


def test_the_stream_is_what_it_says() -> None:
    assert stream("x", 40) == hashlib.sha256(b"x" + bytes(8)).digest() + hashlib.sha256(b"x" + bytes(7) + b"\1").digest()[:8]


def test_the_vectors_open(committed: Vectors) -> None:
    """They are whole: a repository made of them could be read."""
    for name, wanted in (("file", CONFIG), ("file with ChaCha20-Poly1305 and no compression", CHACHA)):
        found, mac = config.decode(text(committed["config"][name]))
        assert found == wanted
        keys.verify_config(MASTER, found, mac)
    slot = keyslot.decode(text(committed["key slot"]["file"]))
    assert keys.open_slot(slot, PASSWORD, CONFIG) == MASTER
    assert keys.slot_label(slot, MASTER, CONFIG) == "first \N{SNOWMAN}"


def test_the_pack_opens_from_its_end(committed: Vectors) -> None:
    file = text(committed["pack"]["file"])
    derived = keys.derive_keys(MASTER, CONFIG)
    assert layout.padme(len(file)) == len(file)
    end = objects.decode(file[-objects.HEADER_BYTES :], objects.PACK_MAGIC, "pack")
    assert file.startswith(objects.encode(end))
    sealer = derived.object_sealer(end, OBJECT)
    at = len(file) - pack.END_BYTES
    footer = pack.decode_footer(sealer.open(Sealed.PACK_FOOTER, at, file[at : at + pack.FOOTER_BYTES]), len(file))
    trailer = sealer.open(Sealed.PACK_TRAILER, footer.trailer_offset, file[footer.trailer_offset : at])
    plains = [
        sealer.open(Sealed.BLOB, entry.offset, file[entry.offset : entry.offset + entry.stored_bytes], entry.plain_bytes)
        for entry in pack.decode_trailer(trailer, footer)
    ]
    assert plains == [b"first chunk", b"", b"third chunk"]


def test_the_segment_opens_from_its_start(committed: Vectors) -> None:
    file = text(committed["journal"]["file"])
    header = objects.decode(file[: objects.HEADER_BYTES], objects.JOURNAL_MAGIC, "journal")
    sealer = keys.derive_keys(MASTER, CONFIG).object_sealer(header, objects.journal_object_id(7))
    at = objects.HEADER_BYTES
    found = []
    while at < len(file):
        head = journal.decode_head(sealer.open(Sealed.FRAME_HEAD, at, file[at : at + journal.HEAD_BYTES]))
        at += journal.HEAD_BYTES
        body = sealer.open(Sealed.FRAME_BODY, at, file[at : at + head.body_bytes])
        at += head.body_bytes
        found.append((head.kind.name, head.number, journal.decode_body(body)[0].hex()))
    names = [("OPEN", 41, "opening"), ("BATCH", 42, "batch"), ("END", 42, "ending")]
    assert found == [(kind, number, committed["journal"][name]) for kind, number, name in names]
