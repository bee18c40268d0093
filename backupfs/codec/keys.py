"""Keys: a password opens a slot, the slot holds the master key, everything else is derived from it, one key for one
purpose.

HKDF-SHA256 (RFC 5869) with the purpose, the repository's id and, for an object, its id as info and its salt as salt. 64
bytes are drawn for an object: its key and a commitment to it, which stands in its header and is compared first (AEADs
by themselves do not commit).
"""

import hmac
from dataclasses import dataclass, field
from typing import Final, Protocol, Self

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backupfs.errors import DamageError, UsageError, WrongPasswordError
from backupfs.format import config as config_format
from backupfs.format import layout
from backupfs.format.config import CIPHER_AES_256_GCM, Config
from backupfs.format.keyslot import LABEL_BYTES, MASTER_KEY_BYTES, KdfParameters, KeySlot
from backupfs.format.layout import Sealed
from backupfs.format.objects import ObjectHeader
from backupfs.randomness import Randomness

_PREFIX: Final = b"backupfs/1/"
_KEY_BYTES: Final = 32
_SALT_BYTES: Final = 32
_SEED_BITS: Final = 63
_NAMES_SEEN: Final = 1024


class Hasher(Protocol):
    """A keyed hash in the making."""

    def update(self, data: bytes | memoryview, /) -> Self:
        """Take more bytes in."""
        ...

    def digest(self) -> bytes:
        """32 bytes for what was taken in so far."""
        ...


class Sealer:
    """Seals and opens under one key. A position is used for sealing once: whoever owns the object counts it up."""

    def __init__(self, cipher: int, key: bytes, repository_id: bytes, object_id: bytes) -> None:
        self._aead = AESGCM(key) if cipher == CIPHER_AES_256_GCM else ChaCha20Poly1305(key)
        self._repository_id = repository_id
        self._object_id = object_id

    def seal(self, what: Sealed, position: int, plain: bytes | memoryview, detail: int = 0, context: bytes = b"") -> bytes:
        """`plain` sealed at `position`: 16 bytes longer. `context` is bound to it beside the place."""
        data = layout.binding(self._repository_id, what, self._object_id, position, detail) + context
        return self._aead.encrypt(layout.nonce(position), plain, data)

    def open(self, what: Sealed, position: int, sealed: bytes | memoryview, detail: int = 0, context: bytes = b"") -> bytes:
        """The plaintext. Raises DamageError when a byte, the place or the key is not the one it was sealed with."""
        data = layout.binding(self._repository_id, what, self._object_id, position, detail) + context
        try:
            return self._aead.decrypt(layout.nonce(position), sealed, data)
        except InvalidTag:
            raise DamageError(
                f"{what.name.lower()} at {position} of object {self._object_id.hex()} is not what was written",
                object_id=self._object_id.hex(),
                position=position,
            ) from None


@dataclass(frozen=True, slots=True)
class Keys:
    """What a repository's master key and configuration give. `object_sealer` and `new_object` make the keys of single
    objects.
    """

    config: Config
    master: bytes
    blob_ids: bytes
    names: bytes
    journal_hash: bytes
    chunk_seed: int
    _names_seen: dict[tuple[int, bytes], bytes] = field(default_factory=dict, repr=False, compare=False)
    """What `name_prf` gave last: one request asks for the same name several times, and so does the next."""

    def blob_id(self, plain: bytes | memoryview) -> bytes:
        """32 bytes by which a chunk is known: keyed BLAKE3 of its plaintext."""
        return blake3(plain, key=self.blob_ids).digest()

    def name_prf(self, parent: int, name: bytes) -> bytes:
        """16 bytes that stand for a name in a directory: keyed BLAKE3 of the parent's number and the name."""
        seen = self._names_seen
        prf = seen.get((parent, name))
        if prf is None:
            if len(seen) >= _NAMES_SEEN:
                seen.clear()
            prf = seen[parent, name] = blake3(parent.to_bytes(8, "big") + name, key=self.names).digest(16)
        return prf

    def journal_hasher(self) -> Hasher:
        """A hasher for the bytes of a journal segment or the records of a checkpoint's part."""
        return blake3(key=self.journal_hash)

    def new_object(self, magic: bytes, object_id: bytes, randomness: Randomness) -> tuple[ObjectHeader, Sealer]:
        """A header with a fresh salt, and the sealer that goes with it."""
        salt = randomness.draw(_SALT_BYTES)
        key, commitment = self._object_key(magic, object_id, salt)
        header = ObjectHeader(magic, self.config.repository_id, object_id, salt, commitment)
        return header, Sealer(self.config.cipher, key, self.config.repository_id, object_id)

    def object_sealer(self, header: ObjectHeader, object_id: bytes) -> Sealer:
        """The sealer of an existing object. Raises DamageError when the header is another object's or another key's."""
        key, commitment = self._object_key(header.magic, object_id, header.salt)
        if (
            header.repository_id != self.config.repository_id
            or header.object_id != object_id
            or not hmac.compare_digest(commitment, header.commitment)
        ):
            raise DamageError(f"object {object_id.hex()} carries another object's header", object_id=object_id.hex())
        return Sealer(self.config.cipher, key, self.config.repository_id, object_id)

    def local_sealer(self, purpose: bytes, salt: bytes) -> Sealer:
        """A sealer for what a host keeps outside the repository; `salt` makes its key unique."""
        key = _derive(self.master, purpose, self.config.repository_id, salt, _KEY_BYTES)
        return Sealer(self.config.cipher, key, self.config.repository_id, bytes(16))

    def _object_key(self, magic: bytes, object_id: bytes, salt: bytes) -> tuple[bytes, bytes]:
        both = _derive(self.master, b"object/" + magic, self.config.repository_id + object_id, salt, 2 * _KEY_BYTES)
        return both[:_KEY_BYTES], both[_KEY_BYTES:]


def derive_keys(master: bytes, config: Config) -> Keys:
    """All keys that do not belong to one object."""
    repository = config.repository_id
    seed = int.from_bytes(_derive(master, b"chunk boundaries", repository, b"", 8), "big") >> (64 - _SEED_BITS)
    return Keys(
        config=config,
        master=master,
        blob_ids=_derive(master, b"blob ids", repository, b"", _KEY_BYTES),
        names=_derive(master, b"names", repository, b"", _KEY_BYTES),
        journal_hash=_derive(master, b"journal hash", repository, b"", _KEY_BYTES),
        chunk_seed=seed or 1,
    )


def config_mac(master: bytes, config: Config) -> bytes:
    """32 bytes that tell whether the configuration is the one this master key was made with."""
    key = _derive(master, b"config", config.repository_id, b"", _KEY_BYTES)
    return blake3(config_format.encode_body(config), key=key).digest()


def verify_config(master: bytes, config: Config, mac: bytes) -> None:
    """Raises DamageError when the configuration was changed."""
    if not hmac.compare_digest(config_mac(master, config), mac):
        raise DamageError("config: it was changed after the repository was made")


def make_slot(master: bytes, password: bytes, label: str, kdf: KdfParameters, config: Config, now_ns: int, randomness: Randomness) -> KeySlot:
    """A new slot that opens with `password`. A label longer than 64 bytes of UTF-8 is a UsageError."""
    label_bytes = label.encode()
    if len(label_bytes) > LABEL_BYTES or "\0" in label:
        raise UsageError(f"a key's label has at most {LABEL_BYTES} bytes and no NUL")
    slot_id, salt = randomness.draw(16), randomness.draw(_SALT_BYTES)
    wrapping, commitment = _slot_key(password, kdf, salt, config, slot_id)
    slot = Sealer(config.cipher, wrapping, config.repository_id, slot_id)
    labels = Sealer(config.cipher, _label_key(master, config, salt), config.repository_id, slot_id)
    return KeySlot(
        repository_id=config.repository_id,
        slot_id=slot_id,
        created_ns=now_ns,
        kdf=kdf,
        salt=salt,
        commitment=commitment,
        sealed_master=slot.seal(Sealed.SLOT_MASTER, 0, master),
        sealed_label=labels.seal(Sealed.SLOT_LABEL, 0, label_bytes.ljust(LABEL_BYTES, b"\0")),
    )


def open_slot(slot: KeySlot, password: bytes, config: Config) -> bytes:
    """The master key. Raises WrongPasswordError, or DamageError when the slot is damaged behind its commitment."""
    wrapping, commitment = _slot_key(password, slot.kdf, slot.salt, config, slot.slot_id)
    if not hmac.compare_digest(commitment, slot.commitment):
        raise WrongPasswordError("this password opens no key slot of the repository")
    sealer = Sealer(config.cipher, wrapping, config.repository_id, slot.slot_id)
    master = sealer.open(Sealed.SLOT_MASTER, 0, slot.sealed_master)
    if len(master) != MASTER_KEY_BYTES:
        raise DamageError("key slot: the master key has the wrong length")
    return master


def slot_label(slot: KeySlot, master: bytes, config: Config) -> str:
    """The label, readable for whoever holds the master key. Raises DamageError when the slot was not made with this key."""
    sealer = Sealer(config.cipher, _label_key(master, config, slot.salt), config.repository_id, slot.slot_id)
    label = sealer.open(Sealed.SLOT_LABEL, 0, slot.sealed_label).rstrip(b"\0")
    try:
        return label.decode()
    except UnicodeDecodeError:
        raise DamageError("key slot: the label is no text") from None


def new_master(randomness: Randomness) -> bytes:
    """A fresh master key."""
    return randomness.draw(MASTER_KEY_BYTES)


def stretch(password: bytes, salt: bytes, kdf: KdfParameters) -> bytes:
    """Argon2id: 32 bytes that cost time and memory to guess at."""
    return Argon2id(salt=salt, length=_KEY_BYTES, iterations=kdf.time, lanes=kdf.lanes, memory_cost=kdf.memory_kib).derive(password)


def _slot_key(password: bytes, kdf: KdfParameters, salt: bytes, config: Config, slot_id: bytes) -> tuple[bytes, bytes]:
    stretched = stretch(password, salt, kdf)
    both = _derive(stretched, b"slot", config.repository_id + slot_id, salt, 2 * _KEY_BYTES)
    return both[:_KEY_BYTES], both[_KEY_BYTES:]


def _label_key(master: bytes, config: Config, salt: bytes) -> bytes:
    return _derive(master, b"slot label", config.repository_id, salt, _KEY_BYTES)


def _derive(secret: bytes, purpose: bytes, context: bytes, salt: bytes, size_bytes: int) -> bytes:
    return HKDF(SHA256(), size_bytes, salt or None, _PREFIX + purpose + b"\0" + context).derive(secret)
