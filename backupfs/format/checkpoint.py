"""A checkpoint: an image of the catalog at a journal position, in parts.

    checkpoints/<sequence>/<part>         header · part (sealed at offset 128)
    checkpoints/<sequence>/manifest       header · manifest (sealed at offset 128)

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
