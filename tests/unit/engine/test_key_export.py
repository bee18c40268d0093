"""An export of keys, and what it brings back: what was lost, nothing that was removed, nothing of another repository."""

from dataclasses import replace
from pathlib import Path

import pytest

from backupfs.engine import keyring
from backupfs.engine.key_export import Imported, export_keys, import_keys
from backupfs.engine.keyring import list_slots, remove_slot
from backupfs.engine.repository import create_repository
from backupfs.errors import DamageError, LockedError, RepositoryMissingError, UsageError, WrongPasswordError
from backupfs.format import config as config_format
from backupfs.format import key_export, keyslot
from backupfs.rules.labels import KeyKind
from backupfs.stores.files import Files
from tests.crash.disk import SimulatedDisk
from tests.crash.simulation import KDF, PASSWORD, SeededRandomness
from tests.unit.engine.keyholder import CLOCK, WORDS, add, change, files_of, labels, opens, overwrite, remove, shown, slot_files
from tests.unit.engine.world import REPOSITORY, World, simulated

CONFIGS = [REPOSITORY / "config", REPOSITORY / "config.copy"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """With three keys: a password, another, a recovery key."""
    world = World.new(tmp_path / "w")
    add(world, b"second", "laptop")
    add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)
    return world


def exported(world: World, password: bytes = PASSWORD) -> str:
    return export_keys(world.unlocked(password), files=world.files, clock=CLOCK)


def bring_back(world: World, text: str, password: bytes = PASSWORD) -> Imported:
    return import_keys(REPOSITORY, text, password, files=world.files)


def lose(world: World, *paths: Path) -> None:
    for path in paths:
        world.disk.unlink(path)


def brought_back(done: Imported) -> list[str | None]:
    return [slot.label for slot in done.slots]


def contents(world: World) -> dict[Path, bytes]:
    return {path: world.content(path) for path in [*(path for path in CONFIGS if world.disk.exists(path)), *slot_files(world)]}


@simulated
async def test_everything_lost_comes_back_to_the_byte(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)
    async with world.mounted() as m:
        await m.put(b"f", b"content")
    text, before = exported(world), contents(world)
    lose(world, *CONFIGS, *slot_files(world))
    with pytest.raises(RepositoryMissingError, match="`backupfs key import"):
        world.unlocked()
    done = bring_back(world, text, WORDS.upper().encode())
    assert (done.config, brought_back(done)) == (True, ["password", "paper"])
    assert [slot.opened for slot in done.slots] == [False, True]
    assert contents(world) == before
    async with world.mounted() as m:
        assert await m.get(b"f") == b"content"
    assert await world.check() == []


def test_it_shows_no_label_and_no_secret(world: World) -> None:
    text = exported(world)
    assert text.startswith(f"# Keys of the backupfs repository {world.unlocked().repository_id.hex()}, written 2023-11-")
    master = world.unlocked().keys.master
    squeezed = text.replace(" ", "")
    for secret in (master, PASSWORD, b"second", WORDS.encode()[:16], b"laptop", b"paper"):
        assert secret.hex() not in squeezed
        assert secret.hex()[4:20] not in squeezed


def test_nothing_missing_is_nothing_done(world: World) -> None:
    text, before, asked = exported(world), contents(world), len(world.disk.log)
    done = bring_back(world, text)
    assert (done.config, done.slots) == (False, [])
    assert contents(world) == before
    assert not [event for event in world.disk.log[asked:] if event.what.startswith(("write", "rename", "unlink"))]


@pytest.mark.parametrize("how", ["missing", "damaged"])
@pytest.mark.parametrize("which", [0, 1])
def test_half_of_the_configuration_or_of_the_key_given_is_mended(world: World, which: int, how: str) -> None:
    text, before = exported(world), contents(world)
    own, other = shown(world)[:2]
    for path in (CONFIGS[which], files_of(own)[which]):
        world.disk.unlink(path) if how == "missing" else world.disk.damage(path, 60)
    world.disk.unlink(files_of(other)[which])
    done = bring_back(world, text)
    assert (done.config, brought_back(done)) == (True, ["password"])
    del before[files_of(other)[which]]
    assert contents(world) == before, "of the other one nothing is known to who gives this password"


def test_a_key_that_was_removed_does_not_come_back_by_the_way(world: World) -> None:
    text = exported(world)
    remove(world, PASSWORD, "laptop")
    change(world, PASSWORD, b"new")
    assert bring_back(world, text, WORDS.encode()).slots == []
    assert not opens(world, b"second")
    assert not opens(world, PASSWORD)
    assert brought_back(bring_back(world, text, b"second")) == ["laptop"], "who has it and gives it may have it back"
    assert opens(world, b"second")
    assert brought_back(bring_back(world, text)) == ["password"]
    doubled = [slot.trouble for slot in shown(world) if slot.label == "password"]
    assert len(doubled) == 2
    assert all("same label" in trouble for trouble in doubled)


def test_slots_that_somebody_made_up_are_no_reason_to_leave_any_out(world: World) -> None:
    text = exported(world)
    first = shown(world)[0]
    forged = replace(keyslot.decode(world.content(files_of(first)[0])), sealed_label=bytes(80))
    lose(world, *slot_files(world))
    for path in files_of(first):
        world.disk.close(world.disk.create(path))
        overwrite(world, path, keyslot.encode(forged))
    assert "password" not in labels(world)
    assert sorted(map(str, brought_back(bring_back(world, text)))) == ["laptop", "paper", "password"]


def test_what_cannot_be_read_is_not_exported(world: World) -> None:
    second = shown(world)[1]
    for path in files_of(second):
        world.disk.damage(path, 100)
    assert {slot.slot_id.hex() for slot in key_export.decode(exported(world)).slots} == {slot.id for slot in shown(world)} - {second.id}


def test_a_configuration_that_somebody_changed_is_replaced(world: World) -> None:
    text, right = exported(world), world.content(CONFIGS[0])
    config, mac = config_format.decode(right)
    for path in CONFIGS:
        overwrite(world, path, config_format.encode(replace(config, compression_level=19), mac))
    with pytest.raises(DamageError):
        world.unlocked()
    assert bring_back(world, text).config
    assert [world.content(path) for path in CONFIGS] == [right, right]


def test_an_export_that_somebody_changed_is_refused(world: World) -> None:
    export = key_export.decode(exported(world))
    lose(world, *CONFIGS, *slot_files(world))
    changed = key_export.encode(replace(export, config=replace(export.config, compression_level=19)), [])
    with pytest.raises(DamageError, match="changed"):
        bring_back(world, changed)
    assert slot_files(world) == []


def test_a_wrong_password_brings_nothing_back(world: World) -> None:
    text = exported(world)
    lose(world, *CONFIGS, *slot_files(world))
    with pytest.raises(WrongPasswordError):
        bring_back(world, text, b"wrong")
    assert slot_files(world) == []


def make_other() -> World:
    """A repository that was never mounted."""
    other = World(Path("/elsewhere"), SimulatedDisk())
    files: Files = other.disk
    create_repository(REPOSITORY, PASSWORD, files=files, clock=CLOCK, randomness=SeededRandomness("other"), kdf=KDF)
    return other


@simulated
async def test_another_repository_is_left_alone(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    foreign = exported(make_other())
    ours = world.unlocked().repository_id.hex()
    with pytest.raises(UsageError, match=f"in /repository lies {ours}"):
        bring_back(world, foreign)
    async with world.mounted() as m:
        await m.put(b"f", b"content")
        text = exported(world)
        lose(world, *CONFIGS)
        with pytest.raises(UsageError, match=f"lies {ours}"):  # said by the journal that is being written
            bring_back(world, foreign)
    closed, first = world.objects("journal"), exported_header(world)
    with pytest.raises(UsageError, match=f"lies {ours}"):
        bring_back(world, foreign)
    for path in closed:
        world.disk.damage(path, 40)
    assert exported_header(world) != first
    done = bring_back(world, text)
    assert (done.config, done.slots) == (True, []), "a journal that cannot be read has no say"


def exported_header(world: World) -> bytes:
    return world.content(world.objects("journal")[0])[:128]


def test_where_there_is_no_repository_none_is_made(tmp_path: Path) -> None:
    text = exported(make_other())
    empty = World(tmp_path / "w", SimulatedDisk())
    with pytest.raises(RepositoryMissingError, match="neither packs nor a journal"):
        bring_back(empty, text)


def test_a_new_repository_that_was_never_mounted_comes_back_too() -> None:
    other = make_other()
    text = exported(other)
    lose(other, *CONFIGS, *slot_files(other))
    assert brought_back(bring_back(other, text)) == ["password"]
    assert opens(other, PASSWORD)


def test_not_while_others_change_keys(world: World) -> None:
    text = exported(world)
    with keyring.locked(REPOSITORY, world.files), pytest.raises(LockedError):
        bring_back(world, text)


def test_what_came_back_can_be_removed_again(world: World) -> None:
    text = exported(world)
    lose(world, *slot_files(world))
    bring_back(world, text)
    remove_slot(world.unlocked(), "laptop", force=False, files=world.files)
    assert [slot.label for slot in list_slots(world.unlocked(), files=world.files)] == ["password", "paper"]
