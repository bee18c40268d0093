"""A repository directory: where its objects are, and opening it with a password. Sections 2, 4 and 5 of docs/format.md."""

import functools
import hmac
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from tests.decoder.damage import Damage
from tests.decoder.sealing import MASTER_KEY, SLOT_LABEL, Keys, Sealer, derive, keyed_hash

_CONFIG_BYTES: Final = 256
_SLOT_BYTES: Final = 512
_ID: Final = re.compile(r"[0-9a-f]{32}")
_NUMBER: Final = re.compile(r"[0-9a-f]{16}")
_PART_NAME: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{32})")

T = TypeVar("T")


class WrongPassword(Exception):
    """No key slot's commitment fits the password."""


@dataclass(frozen=True, slots=True)
class Config:
    repository: bytes
    cipher: int
    compression: int
    authenticated: bytes
    mac: bytes


@dataclass(frozen=True, slots=True)
class Store:
    """The objects of one repository, by kind; open ones stand last."""

    root: Path

    def packs(self) -> dict[bytes, Path]:
        """Object id -> file, of the closed packs."""
        found = {}
        for path in sorted((self.root / "packs").glob("*/*")):
            if _ID.fullmatch(path.name):
                if path.parent.name != path.name[:2]:
                    raise Damage(f"{path.relative_to(self.root)}: in the wrong folder")
                found[bytes.fromhex(path.name)] = path
        return found

    def open_packs(self) -> dict[bytes, Path]:
        paths = sorted((self.root / "open").glob("*"))
        return {bytes.fromhex(path.name): path for path in paths if _ID.fullmatch(path.name)}

    def segments(self) -> dict[int, Path]:
        """Sequence number -> file; a closed one is taken before an open one."""
        found = {}
        for folder, prefix in (("open", "journal-"), ("journal", "")):
            for path in (self.root / folder).glob(prefix + "*"):
                if _NUMBER.fullmatch(path.name.removeprefix(prefix)):
                    found[int(path.name.removeprefix(prefix), 16)] = path
        return dict(sorted(found.items()))

    def manifests(self) -> dict[int, Path]:
        """Number of a checkpoint -> the file of its manifest, the oldest first."""
        paths = sorted((self.root / "checkpoints").glob("*"))
        return {int(path.name, 16): path for path in paths if _NUMBER.fullmatch(path.name)}

    def parts(self) -> dict[tuple[int, bytes], Path]:
        """(number of a checkpoint, object id) -> the file of a part, whether a manifest names it or not."""
        found = {}
        for path in sorted((self.root / "checkpoints").glob("*")):
            name = _PART_NAME.fullmatch(path.name)
            if name:
                found[int(name[1], 16), bytes.fromhex(name[2])] = path
        return found


def open_store(store: Store, password: bytes) -> Keys:
    """The keys of the repository; WrongPassword, or Damage."""
    config = _one_of_two(store.root / "config", _config)
    names = {path.name.removesuffix(".copy") for path in (store.root / "keys").iterdir()}
    for name in sorted(filter(_ID.fullmatch, names)):
        decode = functools.partial(_master_key, slot_id=bytes.fromhex(name), password=password, config=config)
        master = _one_of_two(store.root / "keys" / name, decode)
        if master is not None:
            keys = Keys(master, config.repository, config.cipher)
            if not hmac.compare_digest(keyed_hash(keys.config_mac, config.authenticated), config.mac):
                raise Damage("config: its MAC is another")
            return keys
    raise WrongPassword


def _one_of_two(path: Path, decode: Callable[[bytes], T]) -> T:
    """From the file, or from its copy when the file does not hold."""
    try:
        return decode(path.read_bytes())
    except (FileNotFoundError, Damage):
        return decode(path.with_name(path.name + ".copy").read_bytes())


def _config(raw: bytes) -> Config:
    if len(raw) != _CONFIG_BYTES or struct.unpack_from(">I", raw, 252)[0] != zlib.crc32(raw[:252]):
        raise Damage("config: its checksum is another")
    magic, version, size, zero, repository, features = struct.unpack_from(">8sHHI16sQ", raw)
    cipher, compression, _level, none = struct.unpack_from(">4B", raw, 60)
    holds = (
        (magic, version, size, zero, none) == (b"BFSCONF\0", 1, _CONFIG_BYTES, 0, 0)
        and features in {0, 1}
        and cipher in {1, 2}
        and compression in {0, 1}
        and not any(raw[96:252])
    )
    if not holds:
        raise Damage("config: does not hold")
    return Config(repository, cipher, compression, raw[:64], raw[64:96])


def _master_key(raw: bytes, slot_id: bytes, password: bytes, config: Config) -> bytes | None:
    """None when the password is not this slot's."""
    where = f"key slot {slot_id.hex()}"
    if len(raw) != _SLOT_BYTES or struct.unpack_from(">I", raw, 508)[0] != zlib.crc32(raw[:508]):
        raise Damage(f"{where}: its checksum is another")
    magic, version, size, zero, repository, found_id = struct.unpack_from(">8sHHI16s16s", raw)
    passes, lanes, memory_kib, none = struct.unpack_from(">4I", raw, 56)
    salt, commitment = raw[72:104], raw[104:136]
    holds = (
        (magic, version, size, zero, none) == (b"BFSSLOT\0", 1, _SLOT_BYTES, 0, 0)
        and (repository, found_id) == (config.repository, slot_id)
        and passes <= 1000
        and lanes <= 64
        and memory_kib <= 4 << 20
        and not any(raw[264:508])
    )
    if not holds:
        raise Damage(f"{where}: does not hold")
    secret = Argon2id(salt=salt, length=32, iterations=passes, lanes=lanes, memory_cost=memory_kib).derive(password)
    both = derive(secret, b"slot", config.repository + slot_id, salt, 64)
    if not hmac.compare_digest(both[32:], commitment):
        return None
    master = Sealer(config.cipher, both[:32], config.repository, slot_id).open(MASTER_KEY, 0, raw[136:184])
    label_key = derive(master, b"slot label", config.repository, salt, 32)
    label = Sealer(config.cipher, label_key, config.repository, slot_id).open(SLOT_LABEL, 0, raw[184:264])
    label.rstrip(b"\0").decode()
    return master
