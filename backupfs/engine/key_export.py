"""An export of a repository's keys, and the way back from it when `config` or `keys/` are lost.

What is brought back is verified first: the password given opens a slot of the export, the key in that gives the configuration's MAC, and what
still lies in the repository is of the same repository. What is whole there stays; nothing that was removed on purpose comes back by the way.
"""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from backupfs.clock import Clock
from backupfs.codec import keys as key_codec
from backupfs.engine import keyring
from backupfs.engine.identity import CONFIG, COPY, has_data, read_configs
from backupfs.engine.keyring import SlotInfo, StoredSlot, Unlocked
from backupfs.errors import DamageError, MissingObjectError, RepositoryMissingError, UsageError
from backupfs.format import config as config_format
from backupfs.format import key_export, keyslot, objects
from backupfs.format.key_export import KeyExport
from backupfs.format.keyslot import KeySlot
from backupfs.format.objects import HEADER_BYTES, JOURNAL_MAGIC
from backupfs.journal.segments import OPEN_PREFIX
from backupfs.stores.files import Files
from backupfs.stores.local import LocalStore


class Imported(msgspec.Struct, frozen=True):
    """What was brought back. `config`: the configuration, or one of the two files that it stands in."""

    repository_id: str
    config: bool
    slots: list[SlotInfo]


def export_keys(unlocked: Unlocked, *, files: Files, clock: Clock) -> str:
    """The configuration and every slot that can be read, as text. Blocks."""
    found = keyring.stored_slots(unlocked.root, unlocked.repository_id, files)
    readable = {info.id for info in keyring.list_slots(unlocked, files=files) if info.label is not None}
    slots = [stored.slot for stored in found if stored.slot is not None and stored.slot_id.hex() in readable]
    made = datetime.fromtimestamp(clock.now_ns() // 1_000_000_000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    comments = [
        f"Keys of the backupfs repository {unlocked.repository_id.hex()}, written {made}.",
        "It opens nothing without a password or recovery key of that day. If the repository's `config` or `keys` are lost:",
        "    backupfs key import REPO FILE",
    ]
    mac = key_codec.config_mac(unlocked.keys.master, unlocked.config)
    return key_export.encode(KeyExport(unlocked.config, mac, slots), comments)


def import_keys(root: Path, text: str, password: bytes, *, files: Files) -> Imported:
    """Bring back, from an export of this repository, what is lost of its configuration and its slots.

    When no slot of the key is left all in the export are brought back; otherwise the one that the password opens, if it is not there or not
    whole. Blocks for the key derivation. Raises RepositoryMissingError when there is nothing of a repository, UsageError when the export is
    another's, WrongPasswordError, DamageError when the export does not hold.
    """
    export = key_export.decode(text)
    if not has_data(root, files):
        raise RepositoryMissingError(f"there is nothing of a repository in {root}: neither packs nor a journal", path=str(root))
    _expect_same_repository(root, export.config.repository_id, files)
    stored = [StoredSlot(slot.slot_id, slot, "") for slot in export.slots]
    unlocked = keyring.unlock(root, [(export.config, export.mac)], stored, password)
    with keyring.locked(root, files):
        present = {info.id: info for info in keyring.list_slots(unlocked, files=files)}
        if any(info.label is not None for info in present.values()):
            wanted = [slot for slot in export.slots if slot.slot_id == unlocked.slot_id]
        else:
            wanted = list(export.slots)
        store = LocalStore(root, files)
        # The configuration comes last, as in a new repository: without slots it opens nothing.
        restored = [slot.slot_id.hex() for slot in wanted if _put_slot(store, slot, present.get(slot.slot_id.hex()))]
        configs = [name for name in (CONFIG, CONFIG + COPY) if _put_config(store, name, export, unlocked)]
        slots = [info for info in keyring.list_slots(unlocked, files=files) if info.id in restored]
    return Imported(unlocked.repository_id.hex(), bool(configs), slots)


def _expect_same_repository(root: Path, repository_id: bytes, files: Files) -> None:
    others = set(_ids_in_journal(root, files))
    with suppress(DamageError, RepositoryMissingError):  # that is why it is brought back
        others |= {config.repository_id for config, _ in read_configs(root, files)}
    if others and repository_id not in others:
        raise UsageError(f"the export is of the repository {repository_id.hex()}, and in {root} lies {' and '.join(sorted(i.hex() for i in others))}")


def _ids_in_journal(root: Path, files: Files) -> Iterator[bytes]:
    """The repository that each segment of the journal says it is of, as far as that can be read."""
    store = LocalStore(root, files)
    for name in [*store.list("journal"), *(f"open/{name}" for name in files.list(root / "open") if name.startswith(OPEN_PREFIX))]:
        try:
            yield objects.decode(store.get(name, 0, HEADER_BYTES), JOURNAL_MAGIC, name).repository_id
        except DamageError:
            continue


def _put_slot(store: LocalStore, slot: KeySlot, present: SlotInfo | None) -> bool:
    """Whether something was to be put."""
    if present is not None and present.copies == 2:
        return False
    data = keyslot.encode(slot)
    name = f"{keyring.FOLDER}/{slot.slot_id.hex()}"
    for each in (name, name + COPY):
        _replace(store, each, data)
    return True


def _put_config(store: LocalStore, name: str, export: KeyExport, unlocked: Unlocked) -> bool:
    """Whether it was to be put: one that holds stays."""
    try:
        config, mac = config_format.decode(store.get(name, 0, config_format.SIZE_BYTES + 1))
        key_codec.verify_config(unlocked.keys.master, config, mac)
    except DamageError:
        _replace(store, name, config_format.encode(export.config, export.mac))
        return True
    return False


def _replace(store: LocalStore, name: str, data: bytes) -> None:
    """Put an object whose name a damaged one may have, unless it stands there already."""
    with suppress(MissingObjectError):
        if store.get(name) == data:
            return
        store.delete(name)
    store.put(name, data)
