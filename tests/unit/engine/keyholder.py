"""Short ways to change the keys of a `World` and to look at them."""

from pathlib import Path

from backupfs.codec import recovery
from backupfs.engine.keyring import SlotInfo, Unlocked, add_slot, change_password, list_slots, remove_slot
from backupfs.errors import WrongPasswordError
from backupfs.rules.labels import KeyKind
from tests.crash.simulation import KDF, PASSWORD, SeededRandomness
from tests.unit.engine.world import REPOSITORY, World

WORDS = recovery.words_of(bytes(range(32)))


class Ticking:
    """A second passes each time somebody looks."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000

    def now_ns(self) -> int:
        self.now_s += 1
        return self.now_s * 1_000_000_000


CLOCK = Ticking()
DRAWS = SeededRandomness("keyring")


def add(world: World, secret: bytes, label: str, kind: KeyKind = KeyKind.PASSWORD, unlocked: Unlocked | None = None) -> SlotInfo:
    return add_slot(unlocked or world.unlocked(), secret, kind, label, files=world.files, clock=CLOCK, randomness=DRAWS, kdf=KDF)


def change(world: World, old: bytes, new: bytes) -> SlotInfo:
    return change_password(world.unlocked(old), new, files=world.files, clock=CLOCK, randomness=DRAWS, kdf=KDF)


def remove(world: World, password: bytes, reference: str, force: bool = False) -> SlotInfo:
    return remove_slot(world.unlocked(password), reference, force=force, files=world.files)


def shown(world: World, password: bytes = PASSWORD) -> list[SlotInfo]:
    return list_slots(world.unlocked(password), files=world.files)


def labels(world: World, password: bytes = PASSWORD) -> list[str | None]:
    return [slot.label for slot in shown(world, password)]


def slot_files(world: World) -> list[Path]:
    return world.objects("keys")


def files_of(slot: SlotInfo) -> tuple[Path, Path]:
    path = REPOSITORY / "keys" / slot.id
    return path, path.with_name(path.name + ".copy")


def opens(world: World, password: bytes) -> bool:
    try:
        world.unlocked(password)
    except WrongPasswordError:
        return False
    return True


def overwrite(world: World, path: Path, content: bytes) -> None:
    world.disk.unlink(path)
    handle = world.disk.create(path)
    world.disk.write_at(handle, 0, [content])
    world.disk.close(handle)
