"""The key slots of a repository: each opens with one secret, and holds the master key.

* A slot stands twice, as `keys/<id>` and `keys/<id>.copy`. One of the two is enough to open it.
* Who changes slots holds the lock `keys.lock` and looks at the slots again under it. It is not the writer's lock: a mount keeps no slot in memory,
  so keys are changed while it goes on.
* A new slot is durable before an old one goes. A slot that was opened is the only one of which it is certain that somebody can open it: it goes
  only when that is insisted on, and the last one never.
* No two keys have one label. Where two slots do, a change of password was cut short (or an old slot was brought back from an export); the next
  change replaces both.

Everything here blocks; whatever makes or opens a slot does so for as long as its Argon2id takes.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from backupfs import limits
from backupfs.clock import Clock
from backupfs.codec import keys as key_codec
from backupfs.codec import recovery
from backupfs.codec.keys import Keys
from backupfs.engine.identity import COPY, put_twice
from backupfs.errors import DamageError, LockedError, MissingObjectError, StoreError, UsageError, WrongPasswordError
from backupfs.format import keyslot
from backupfs.format.config import Config
from backupfs.format.keyslot import KdfParameters, KeySlot
from backupfs.randomness import Randomness
from backupfs.rules import labels
from backupfs.rules.labels import KeyKind
from backupfs.stores.files import Files
from backupfs.stores.local import LocalStore

FOLDER: Final = "keys"
LOCK: Final = "keys.lock"
SHORT_ID_DIGITS: Final = 8
"""So many digits of an id are shown, and so many at least name a slot."""
_ID: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Unlocked:
    """A repository whose password was right: verified, not only parsed."""

    root: Path
    config: Config
    keys: Keys
    slot_id: bytes

    @property
    def repository_id(self) -> bytes:
        """16 bytes."""
        return self.config.repository_id


@dataclass(frozen=True, slots=True)
class StoredSlot:
    """A slot as it lies in the store, parsed and not verified. `slot` is None when neither of the two can be read, and `fault` says why one of
    them cannot.
    """

    slot_id: bytes
    slot: KeySlot | None
    fault: str


class SlotInfo(msgspec.Struct, frozen=True):
    """A slot, to be shown. `label`, `kind` and what follows are None where they cannot be read. `copies`: how many of the two are whole.
    `trouble` says what is wrong with it, and what mends it; otherwise it is empty.
    """

    id: str
    label: str | None
    kind: KeyKind | None
    created_ns: int | None
    kdf: KdfParameters | None
    copies: int
    opened: bool
    trouble: str = ""

    @property
    def name(self) -> str:
        """For messages."""
        return repr(self.label) if self.label else self.id[:SHORT_ID_DIGITS]


def calibrated_kdf(seconds: float) -> KdfParameters:
    """Argon2id parameters that take about so long here; never below the minimum. Blocks for about as long."""
    memory_kib = limits.KDF_MEMORY_MIN_KIB
    began = time.perf_counter()
    key_codec.stretch(b"calibration", bytes(32), KdfParameters(limits.KDF_TIME_MIN, limits.KDF_LANES, memory_kib))
    took = time.perf_counter() - began
    passes = round(limits.KDF_TIME_MIN * seconds / took)
    return KdfParameters(min(max(passes, limits.KDF_TIME_MIN), limits.KDF_TIME_MAX), limits.KDF_LANES, memory_kib)


# --- opening -------------------------------------------------------------------------------------------------------


def stored_slots(root: Path, repository_id: bytes, files: Files) -> list[StoredSlot]:
    """The slots in the store, by their ids. There may be a few more than keys: changes that were cut short."""
    store = LocalStore(root, files)
    names = {name.removeprefix(f"{FOLDER}/").removesuffix(COPY) for name in store.list(FOLDER)}
    ids = sorted(filter(_ID.fullmatch, names))[: 2 * limits.KEY_SLOTS_MAX]
    return [_stored(store, bytes.fromhex(id_), repository_id) for id_ in ids]


def unlock(root: Path, configs: Sequence[tuple[Config, bytes]], slots: Sequence[StoredSlot], password: bytes) -> Unlocked:
    """Open one of the slots, with a password or the words of a recovery key, by one of the configurations (each with its MAC), and verify that.

    Raises WrongPasswordError, DamageError.
    """
    readable = [stored.slot for stored in slots if stored.slot is not None]
    if not readable:
        why = f" ({slots[0].fault})" if slots else ""
        raise DamageError(
            f"{root} has no key slot that can be read{why}; `backupfs key import {root} FILE` brings back what was exported", path=str(root)
        )
    for secret in recovery.possible_secrets(password):
        for slot in readable:
            with suppress(WrongPasswordError):
                config, master = _open(slot, configs, secret)
                return Unlocked(root, config, key_codec.derive_keys(master, config), slot.slot_id)
    raise recovery.refusal(password)


def _open(slot: KeySlot, configs: Sequence[tuple[Config, bytes]], secret: bytes) -> tuple[Config, bytes]:
    damage: DamageError | None = None
    for config, mac in configs:
        try:
            master = key_codec.open_slot(slot, secret, config)
            key_codec.verify_config(master, config, mac)
        except DamageError as error:
            # It may be this configuration that was changed; its copy may serve.
            damage = error
        else:
            return config, master
    assert damage is not None
    raise damage


def _stored(store: LocalStore, slot_id: bytes, repository_id: bytes) -> StoredSlot:
    slot: KeySlot | None = None
    fault = ""
    for name in _names(slot_id):
        try:
            found = keyslot.decode(store.get(name, 0, keyslot.SIZE_BYTES + 1))
            if (found.slot_id, found.repository_id) != (slot_id, repository_id):
                raise DamageError(f"{name} is another slot's or another repository's")
        except (DamageError, StoreError) as error:
            # The other one may serve; `check` reports this one.
            fault = str(error)
        else:
            slot = slot or found
    return StoredSlot(slot_id, slot, fault)


# --- showing and naming --------------------------------------------------------------------------------------------


def list_slots(unlocked: Unlocked, *, files: Files) -> list[SlotInfo]:
    """All slots, the oldest first, and last those that cannot be read."""
    infos = [_info(unlocked, stored) for stored in stored_slots(unlocked.root, unlocked.repository_id, files)]
    infos.sort(key=lambda info: (info.created_ns is None, info.created_ns or 0, info.id))
    return [msgspec.structs.replace(info, trouble=info.trouble or _doubled(info, infos)) for info in infos]


def admissible(slots: Sequence[SlotInfo], kind: KeyKind, label: str) -> str:
    """The text to be stored as the label of one more slot. UsageError when there can be none, or none with this label."""
    if len(slots) >= limits.KEY_SLOTS_MAX:
        raise UsageError(
            f"the repository has {len(slots)} key slots, and {limits.KEY_SLOTS_MAX} is the most: `backupfs key remove` one first"
            " (`backupfs key list` shows them)"
        )
    return labels.to_store(kind, label, {slot.label for slot in slots if slot.label})


def find_slot(slots: Sequence[SlotInfo], reference: str) -> SlotInfo:
    """The slot with this label or with an id that begins so (8 digits at least). UsageError when there is none, or more than one."""
    label, id_ = labels.normal(reference), reference.lower()
    found = [slot for slot in slots if slot.label == label or (len(id_) >= SHORT_ID_DIGITS and slot.id.startswith(id_))]
    if not found or not reference:
        raise UsageError(f"there is no key {reference!r}; `backupfs key list` shows labels and ids")
    if len(found) > 1:
        raise UsageError(f"{reference!r} names {len(found)} key slots: say which by its id, {' or '.join(slot.id for slot in found)}")
    return found[0]


def _info(unlocked: Unlocked, stored: StoredSlot) -> SlotInfo:
    id_ = stored.slot_id.hex()
    unreadable = SlotInfo(id_, None, None, None, None, 0, stored.slot_id == unlocked.slot_id)
    if stored.slot is None:
        return msgspec.structs.replace(unreadable, trouble=f"it cannot be read: {stored.fault}; `backupfs key remove` with its id takes it away")
    slot = stored.slot
    try:
        kind, label = labels.from_store(key_codec.slot_label(slot, unlocked.keys.master, unlocked.config))
    except DamageError:
        trouble = "its label does not open with the repository's key: somebody made or changed it; `backupfs key remove` with its id takes it away"
        return msgspec.structs.replace(unreadable, trouble=trouble)
    if not stored.fault:
        return SlotInfo(id_, label, kind, slot.created_ns, slot.kdf, 2, unreadable.opened)
    trouble = (
        f"only one of its two files is whole ({stored.fault}); it still opens. If it was being removed, `backupfs key remove` ends that; otherwise"
        " add another one, and then remove it"
    )
    return SlotInfo(id_, label, kind, slot.created_ns, slot.kdf, 1, unreadable.opened, trouble)


def _doubled(info: SlotInfo, infos: Sequence[SlotInfo]) -> str:
    if info.label is None or not any(other.label == info.label and other is not info for other in infos):
        return ""
    return (
        "another slot has the same label: a change of password was cut short, or an old slot was brought back; both open."
        " `backupfs key passwd` replaces both, `backupfs key remove` with an id takes one away"
    )


# --- changing ------------------------------------------------------------------------------------------------------


def put_slot(store: LocalStore, slot: KeySlot) -> None:
    """Put a new slot, twice: it is durable on return, and not there when it cannot be put."""
    name = f"{FOLDER}/{slot.slot_id.hex()}"
    try:
        put_twice(store, name, keyslot.encode(slot))
    except StoreError:
        # What cannot be removed either still shows, in `list_slots`.
        with suppress(StoreError):
            store.delete(name)
        raise


def add_slot(
    unlocked: Unlocked,
    secret: bytes,
    kind: KeyKind,
    label: str,
    *,
    files: Files,
    clock: Clock,
    randomness: Randomness,
    kdf: KdfParameters,
) -> SlotInfo:
    """One more slot, which opens with `secret`. Raises UsageError as `admissible` does, WrongPasswordError when the slot that was opened is gone."""
    with _changing(unlocked, files) as slots:
        text = admissible(slots, kind, label)
        slot = key_codec.make_slot(unlocked.keys.master, secret, text, kdf, unlocked.config, clock.now_ns(), randomness)
        put_slot(LocalStore(unlocked.root, files), slot)
        return _info(unlocked, StoredSlot(slot.slot_id, slot, ""))


def remove_slot(unlocked: Unlocked, reference: str, *, force: bool, files: Files) -> SlotInfo:
    """Remove the slot with this label or id; its secret opens nothing on return. A removal that was cut short is ended by the next of the same slot.

    Raises UsageError: as `find_slot`, for the last slot that can be opened, and without `force` for the one that was opened.
    """
    with _changing(unlocked, files) as slots:
        slot = find_slot(slots, reference)
        if all(other.label is None for other in slots if other is not slot):
            raise UsageError(
                f"{slot.name} is the last key of the repository, and without one nobody reads it: add another first (`backupfs key add`)"
            )
        if slot.opened and not force:
            raise UsageError(
                f"{slot.name} is the key that you gave just now, and nothing shows that you have another one: give another key's password"
                " to remove it, or insist with --force"
            )
        _delete(LocalStore(unlocked.root, files), slot)
        return slot


def change_password(unlocked: Unlocked, new_password: bytes, *, files: Files, clock: Clock, randomness: Randomness, kdf: KdfParameters) -> SlotInfo:
    """Exchange the slot that was opened for one with a new password: the new one is durable before the old one goes.

    Raises UsageError when it was a recovery key; StoreError, which says so, when the new password opens and the old one still does.
    """
    with _changing(unlocked, files) as slots:
        opened = next(slot for slot in slots if slot.opened)
        refuse_recovery_key(opened)
        if opened.label is None:
            raise DamageError(f"key slot {opened.id}: {opened.trouble}; first add another key")
        new = key_codec.make_slot(unlocked.keys.master, new_password, opened.label, kdf, unlocked.config, clock.now_ns(), randomness)
        store = LocalStore(unlocked.root, files)
        put_slot(store, new)
        for old in slots:
            if old.label == opened.label:
                try:
                    _delete(store, old)
                except StoreError as error:
                    raise StoreError(
                        f"the new password opens the repository, and so does the old one still: {error}; remove it by its id {old.id}"
                    ) from error
        return _info(unlocked, StoredSlot(new.slot_id, new, ""))


def refuse_recovery_key(opened: SlotInfo) -> None:
    """UsageError when the slot that was opened is a recovery key's, which has no password to be changed."""
    if opened.kind is KeyKind.RECOVERY:
        raise UsageError(
            "a recovery key's words cannot be changed. For a new password: `backupfs key add --label LABEL`, with the words as the present one;"
            " then `backupfs key remove` the one that is forgotten"
        )


@contextmanager
def locked(root: Path, files: Files) -> Iterator[None]:
    """Keep others from changing keys. LockedError while somebody does."""
    try:
        handle = files.lock(root / LOCK)
    except LockedError as error:
        raise LockedError(f"another backupfs process is changing the keys of {root}; try again when it is done", path=str(root)) from error
    try:
        # Half-written slots would open, for somebody who looks for them.
        LocalStore(root, files).sweep(FOLDER)
        yield
    finally:
        files.close(handle)


@contextmanager
def _changing(unlocked: Unlocked, files: Files) -> Iterator[list[SlotInfo]]:
    """The slots as they are while nobody else changes them."""
    with locked(unlocked.root, files):
        slots = list_slots(unlocked, files=files)
        if not any(slot.opened for slot in slots):
            raise WrongPasswordError("the key that you gave has been removed meanwhile; nothing was changed")
        yield slots


def _delete(store: LocalStore, slot: SlotInfo) -> None:
    for name in _names(bytes.fromhex(slot.id)):
        with suppress(MissingObjectError):  # the slot is to go, and half of it was gone
            store.delete(name)


def _names(slot_id: bytes) -> tuple[str, str]:
    name = f"{FOLDER}/{slot_id.hex()}"
    return name, name + COPY
