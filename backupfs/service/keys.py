"""What is done with the keys of a repository, mounted or not, in the command's own process. Everything here blocks."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from backupfs.codec import recovery
from backupfs.engine import key_export, keyring
from backupfs.engine.key_export import Imported
from backupfs.engine.keyring import SlotInfo, calibrated_kdf
from backupfs.engine.repository import unlock
from backupfs.engine.seams import Seams
from backupfs.errors import StoreError, UsageError, WrongPasswordError
from backupfs.rules.labels import KeyKind

NewSecret = Callable[[], bytes]
"""Gives the new password; asked only when the present one is right and there is something to be done with it."""
EXPORT_BYTES_MAX: Final = 256 * 1024
"""More than an export of as many slots as there can be."""


def show(root: Path, password: bytes, seams: Seams) -> list[SlotInfo]:
    """All key slots, the one that the password opened marked."""
    return keyring.list_slots(unlock(root, password, files=seams.files), files=seams.files)


def add(root: Path, password: bytes, new: NewSecret, label: str, kdf_seconds: float, seams: Seams) -> SlotInfo:
    """One more password. UsageError when it opens a slot already: to change or remove it would leave it working."""
    unlocked = unlock(root, password, files=seams.files)
    slots = keyring.list_slots(unlocked, files=seams.files)
    keyring.admissible(slots, KeyKind.PASSWORD, label)
    secret = new()
    _refuse_known(root, secret, slots, seams)
    return keyring.add_slot(
        unlocked,
        secret,
        KeyKind.PASSWORD,
        label,
        files=seams.files,
        clock=seams.clock,
        randomness=seams.randomness,
        kdf=calibrated_kdf(kdf_seconds),
    )


def add_recovery(root: Path, password: bytes, label: str, kdf_seconds: float, seams: Seams) -> tuple[SlotInfo, str]:
    """One more recovery key, and its words, which stand nowhere else. Its slot costs as much to open as a password's, though nobody could guess the
    words: what it costs is there for all to see, and is not to tell which slot it is.
    """
    unlocked = unlock(root, password, files=seams.files)
    words = recovery.new_words(seams.randomness)
    slot = keyring.add_slot(
        unlocked,
        words.encode(),
        KeyKind.RECOVERY,
        label,
        files=seams.files,
        clock=seams.clock,
        randomness=seams.randomness,
        kdf=calibrated_kdf(kdf_seconds),
    )
    return slot, words


def change(root: Path, password: bytes, new: NewSecret, kdf_seconds: float, seams: Seams) -> SlotInfo:
    """Replace the password that was given, perhaps by itself: that gives it new costs. UsageError when the new one is another key's."""
    unlocked = unlock(root, password, files=seams.files)
    slots = keyring.list_slots(unlocked, files=seams.files)
    opened = next(slot for slot in slots if slot.opened)
    keyring.refuse_recovery_key(opened)
    secret = new()
    _refuse_known(root, secret, [slot for slot in slots if slot.label != opened.label], seams)
    return keyring.change_password(
        unlocked, secret, files=seams.files, clock=seams.clock, randomness=seams.randomness, kdf=calibrated_kdf(kdf_seconds)
    )


def remove(root: Path, password: bytes, reference: str, force: bool, seams: Seams) -> SlotInfo:
    """Remove a key by its label or id."""
    return keyring.remove_slot(unlock(root, password, files=seams.files), reference, force=force, files=seams.files)


def export(root: Path, password: bytes, seams: Seams) -> str:
    """Configuration and slots as text."""
    return key_export.export_keys(unlock(root, password, files=seams.files), files=seams.files, clock=seams.clock)


def write_export(text: str, path: Path, lost_with: list[Path], seams: Seams) -> None:
    """Write an export to a new file, durably. UsageError when it would lie within what it is to be kept apart from."""
    real = path.resolve()
    for other in lost_with:
        if real.is_relative_to(other.resolve()):
            raise UsageError(f"{path} would be lost together with the keys: it lies within {other}; choose another disk, or paper")
    files = seams.files
    if not path.parent.is_dir():
        raise UsageError(f"there is no directory {path.parent}; the export goes into one that is there")
    if files.exists(path):
        raise UsageError(f"{path} is there already, and is not overwritten; choose another name")
    handle = files.create(path)
    try:
        try:
            files.write_at(handle, 0, [text.encode()])
            files.sync(handle)
        finally:
            files.close(handle)
    except StoreError:
        # Half an export looks like one, and stands in the way of the next try.
        with suppress(StoreError):
            files.unlink(path)
        raise
    files.sync_directory(path.parent)


def read_export(path: Path) -> str:
    """The text of an export. UsageError when it cannot be one."""
    with path.open("rb") as stream:
        data = stream.read(EXPORT_BYTES_MAX + 1)
    if len(data) > EXPORT_BYTES_MAX:
        raise UsageError(f"{path} is no export of keys: it is too large for one")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no export of keys: it is no text") from None


def import_(root: Path, text: str, password: bytes, seams: Seams) -> Imported:
    """Bring back what is lost of configuration and slots."""
    return key_export.import_keys(root, text, password, files=seams.files)


def _refuse_known(root: Path, secret: bytes, slots: Sequence[SlotInfo], seams: Seams) -> None:
    try:
        known = unlock(root, secret, files=seams.files).slot_id.hex()
    except WrongPasswordError:
        return
    for slot in slots:
        if slot.id == known:
            raise UsageError(f"the new password is the one of the key {slot.name} already; each key has its own")
