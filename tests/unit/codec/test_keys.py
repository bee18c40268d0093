"""Keys and seals. The derivations are computed a second time here, from RFC 5869 and the standard library alone."""

import hashlib
import hmac
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from backupfs.codec import keys
from backupfs.codec.keys import Keys, Sealer
from backupfs.errors import DamageError, UsageError, WrongPasswordError
from backupfs.format import config, keyslot, objects
from backupfs.format.config import Config
from backupfs.format.keyslot import KdfParameters
from backupfs.format.layout import Sealed
from backupfs.format.objects import JOURNAL_MAGIC, PACK_MAGIC

CONFIG = Config(
    repository_id=bytes(range(16)),
    created_ns=1,
    chunk_min_bytes=65536,
    chunk_avg_bytes=262144,
    chunk_max_bytes=1048576,
    cipher=config.CIPHER_AES_256_GCM,
    compression=config.COMPRESSION_ZSTD,
    compression_level=1,
)
CHACHA = replace(CONFIG, cipher=config.CIPHER_CHACHA20_POLY1305)
MASTER = b"m" * 32
OBJECT = bytes(range(16, 32))
FAST = KdfParameters(time=1, lanes=1, memory_kib=64)


class SeededRandomness:
    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def draw(self, size_bytes: int) -> bytes:
        return self._draw.randbytes(size_bytes)


def hkdf(secret: bytes, salt: bytes, info: bytes, size_bytes: int) -> bytes:
    extracted = hmac.new(salt or bytes(32), secret, hashlib.sha256).digest()
    out, block = b"", b""
    for counter in range(1, 9):
        block = hmac.new(extracted, block + info + bytes([counter]), hashlib.sha256).digest()
        out += block
    return out[:size_bytes]


@pytest.fixture(scope="module", params=[CONFIG, CHACHA], ids=["aes", "chacha"])
def both(request: pytest.FixtureRequest) -> Keys:
    chosen: Config = request.param
    return keys.derive_keys(MASTER, chosen)


def sealer(of: Keys, seed: int = 0) -> Sealer:
    return of.new_object(PACK_MAGIC, OBJECT, SeededRandomness(seed))[1]


def test_derivations_are_those_of_the_document() -> None:
    derived = keys.derive_keys(MASTER, CONFIG)

    def of(purpose: bytes, size_bytes: int = 32) -> bytes:
        return hkdf(MASTER, b"", b"backupfs/1/" + purpose + b"\0" + CONFIG.repository_id, size_bytes)

    assert derived.blob_ids == of(b"blob ids")
    assert derived.names == of(b"names")
    assert derived.journal_hash == of(b"journal hash")
    assert derived.chunk_seed == int.from_bytes(of(b"chunk boundaries", 8), "big") >> 1
    assert derived.blob_id(b"chunk") == blake3(b"chunk", key=of(b"blob ids")).digest()
    assert derived.name_prf(258, b"name") == blake3(bytes(6) + b"\1\2name", key=of(b"names")).digest(16)
    assert keys.config_mac(MASTER, CONFIG) == blake3(config.encode_body(CONFIG), key=of(b"config")).digest()


def test_an_objects_key_and_commitment_come_from_its_salt_and_name() -> None:
    derived = keys.derive_keys(MASTER, CONFIG)
    header, _ = derived.new_object(PACK_MAGIC, OBJECT, SeededRandomness(1))
    info = b"backupfs/1/object/" + PACK_MAGIC + b"\0" + CONFIG.repository_id + OBJECT
    assert header.salt == SeededRandomness(1).draw(32)
    assert header.commitment == hkdf(MASTER, header.salt, info, 64)[32:]


def test_no_key_serves_two_purposes_or_two_repositories() -> None:
    one = keys.derive_keys(MASTER, CONFIG)
    other = keys.derive_keys(MASTER, replace(CONFIG, repository_id=bytes(16)))
    derived = [k for of in (one, other) for k in (of.blob_ids, of.names, of.journal_hash)]
    assert len(set(derived)) == 6
    assert one.chunk_seed != other.chunk_seed
    assert one.blob_id(b"x") != other.blob_id(b"x")


@given(st.binary(max_size=300), st.sampled_from(Sealed), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_what_is_sealed_is_opened(both: Keys, plain: bytes, what: Sealed, position: int, detail: int) -> None:
    sealed = sealer(both).seal(what, position, plain, detail)
    assert len(sealed) == len(plain) + 16
    assert sealer(both).open(what, position, sealed, detail) == plain


def test_nothing_opens_in_another_place(both: Keys) -> None:
    sealed = sealer(both).seal(Sealed.BLOB, 128, b"plain", 5)
    other_object = both.new_object(PACK_MAGIC, bytes(16), SeededRandomness(0))[1]
    other_kind = both.new_object(JOURNAL_MAGIC, OBJECT, SeededRandomness(0))[1]
    asks: list[Callable[[], bytes]] = [
        lambda: sealer(both).open(Sealed.PACK_TRAILER, 128, sealed, 5),
        lambda: sealer(both).open(Sealed.BLOB, 129, sealed, 5),
        lambda: sealer(both).open(Sealed.BLOB, 128, sealed, 6),
        lambda: sealer(both).open(Sealed.BLOB, 128, sealed),
        lambda: sealer(both, seed=1).open(Sealed.BLOB, 128, sealed, 5),
        lambda: other_object.open(Sealed.BLOB, 128, sealed, 5),
        lambda: other_kind.open(Sealed.BLOB, 128, sealed, 5),
    ]
    for ask in asks:
        with pytest.raises(DamageError, match="not what was written"):
            ask()


@given(st.integers(0, 20), st.integers(1, 255))
def test_no_byte_changes_unnoticed(both: Keys, at: int, mask: int) -> None:
    sealed = bytearray(sealer(both).seal(Sealed.BLOB, 128, b"plain"))
    sealed[at] ^= mask
    with pytest.raises(DamageError) as caught:
        sealer(both).open(Sealed.BLOB, 128, bytes(sealed))
    assert caught.value.fields == {"object_id": OBJECT.hex(), "position": 128}


@pytest.mark.parametrize("size_bytes", [0, 1, 15, 16])
def test_what_is_cut_off_is_damage(both: Keys, size_bytes: int) -> None:
    sealed = sealer(both).seal(Sealed.BLOB, 128, b"plain")
    with pytest.raises(DamageError):
        sealer(both).open(Sealed.BLOB, 128, sealed[:size_bytes])


def test_a_header_gives_back_the_sealer_of_its_object_only() -> None:
    derived = keys.derive_keys(MASTER, CONFIG)
    header, made = derived.new_object(PACK_MAGIC, OBJECT, SeededRandomness(2))
    read = objects.decode(objects.encode(header), PACK_MAGIC, "pack")
    assert derived.object_sealer(read, OBJECT).open(Sealed.BLOB, 9, made.seal(Sealed.BLOB, 9, b"x")) == b"x"
    for wrong in (
        replace(read, salt=bytes(32)),
        replace(read, commitment=bytes(32)),
        replace(read, magic=JOURNAL_MAGIC),
        replace(read, repository_id=bytes(16)),
        replace(read, object_id=bytes(16)),
    ):
        with pytest.raises(DamageError, match="another object's header"):
            derived.object_sealer(wrong, OBJECT)
    with pytest.raises(DamageError):
        derived.object_sealer(replace(read, object_id=bytes(16)), bytes(16))
    with pytest.raises(DamageError):
        keys.derive_keys(b"n" * 32, CONFIG).object_sealer(read, OBJECT)


def test_a_slot_opens_with_its_password_only() -> None:
    slot = keys.make_slot(MASTER, b"right", "laptop \N{SNOWMAN}", FAST, CONFIG, 5, SeededRandomness(3))
    read = keyslot.decode(keyslot.encode(slot))
    assert keys.open_slot(read, b"right", CONFIG) == MASTER
    assert keys.slot_label(read, MASTER, CONFIG) == "laptop \N{SNOWMAN}"
    for wrong in (b"", b"righ", b"right\n", b"RIGHT"):
        with pytest.raises(WrongPasswordError):
            keys.open_slot(read, wrong, CONFIG)
    assert MASTER not in keyslot.encode(slot)
    assert b"laptop" not in keyslot.encode(slot)


def test_two_slots_share_nothing() -> None:
    randomness = SeededRandomness(4)
    one, other = (keys.make_slot(MASTER, b"p", "l", FAST, CONFIG, 5, randomness) for _ in range(2))
    assert one.slot_id != other.slot_id
    assert one.salt != other.salt
    assert one.commitment != other.commitment
    assert one.sealed_master != other.sealed_master
    assert one.sealed_label != other.sealed_label


def test_a_slot_changed_behind_its_commitment_is_damage() -> None:
    slot = keys.make_slot(MASTER, b"right", "", FAST, CONFIG, 5, SeededRandomness(3))
    with pytest.raises(DamageError):
        keys.open_slot(replace(slot, sealed_master=bytes(48)), b"right", CONFIG)
    with pytest.raises(DamageError):
        keys.slot_label(replace(slot, sealed_label=bytes(80)), MASTER, CONFIG)


@pytest.mark.parametrize("change", [{"salt": bytes(32)}, {"slot_id": bytes(16)}, {"kdf": KdfParameters(2, 1, 64)}])
def test_a_slot_with_other_parameters_opens_no_more(change: dict[str, bytes]) -> None:
    slot = keys.make_slot(MASTER, b"right", "", FAST, CONFIG, 5, SeededRandomness(3))
    with pytest.raises(WrongPasswordError):
        keys.open_slot(replace(slot, **change), b"right", CONFIG)  # type: ignore[arg-type] # each has its own type


@pytest.mark.parametrize("label", ["x" * 65, "\N{SNOWMAN}" * 22, "a\0b"])
def test_labels_that_do_not_fit_are_refused(label: str) -> None:
    with pytest.raises(UsageError):
        keys.make_slot(MASTER, b"p", label, FAST, CONFIG, 5, SeededRandomness(3))


def test_a_changed_configuration_is_told() -> None:
    mac = keys.config_mac(MASTER, CONFIG)
    keys.verify_config(MASTER, CONFIG, mac)
    for changed, key in ((replace(CONFIG, created_ns=2), MASTER), (CHACHA, MASTER), (CONFIG, b"n" * 32)):
        with pytest.raises(DamageError):
            keys.verify_config(key, changed, mac)


def test_local_keys_differ_by_purpose_and_salt(both: Keys) -> None:
    sealed = both.local_sealer(b"index", b"s" * 32).seal(Sealed.INDEX_VALUE, 1, b"value")
    assert both.local_sealer(b"index", b"s" * 32).open(Sealed.INDEX_VALUE, 1, sealed) == b"value"
    for other in (both.local_sealer(b"head", b"s" * 32), both.local_sealer(b"index", b"t" * 32)):
        with pytest.raises(DamageError):
            other.open(Sealed.INDEX_VALUE, 1, sealed)


def test_masters_are_drawn() -> None:
    assert keys.new_master(SeededRandomness(9)) == SeededRandomness(9).draw(32)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=255), st.integers(0, 2**64 - 1), st.binary(max_size=255))
def test_names_in_different_places_look_different(one: int, name: bytes, other: int, other_name: bytes) -> None:
    derived = keys.derive_keys(MASTER, CONFIG)
    assert len(derived.name_prf(one, name)) == 16
    assert (derived.name_prf(one, name) == derived.name_prf(other, other_name)) == ((one, name) == (other, other_name))
