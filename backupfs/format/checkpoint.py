"""A checkpoint: an image of the catalog at a journal position, in parts.

    checkpoints/<sequence>-<part>         header · part (sealed at offset 128)
    checkpoints/<sequence>                header · manifest (sealed at offset 128)

A part's plaintext is `format.journal`'s body (lengths, compressed records, zeros) with the records of a run of keys,
sorted by table and key, `CHANGES` left out. A part is named by the hex of its object id; the manifest lists them in
order.
"""

import msgspec


class Part(msgspec.Struct, array_like=True, frozen=True):
    """`hash` is the keyed BLAKE3 of the part's records before compression."""

    object_id: bytes
    hash: bytes
    records: int


class Manifest(msgspec.Struct, array_like=True, frozen=True):
    """The journal position that the image stands for, and its parts."""

    segment: int
    segment_bytes: int
    segment_hash: bytes
    batch: int
    parts: list[Part]


decode_manifest = msgspec.msgpack.Decoder(Manifest).decode


def checkpoint_name(sequence: int) -> str:
    """Name of a checkpoint's manifest."""
    return f"checkpoints/{sequence:016x}"


def part_name(sequence: int, object_id: bytes) -> str:
    """Name of one of its parts."""
    return f"checkpoints/{sequence:016x}-{object_id.hex()}"


def decode_name(name: str) -> tuple[int, bytes | None]:
    """(number of the checkpoint, object id of the part or None for the manifest) of an object below `checkpoints/`."""
    sequence, _, part = name.removeprefix("checkpoints/").partition("-")
    return int(sequence, 16), bytes.fromhex(part) if part else None
