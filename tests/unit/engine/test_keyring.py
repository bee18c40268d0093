"""Key slots: added, shown, named, removed, exchanged; what a store that was damaged or tampered with may do to them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.codec import keys as key_codec
from backupfs.codec import recovery
from backupfs.engine import keyring
from backupfs.engine.keyring import SlotInfo, calibrated_kdf, change_password, find_slot, list_slots, remove_slot
from backupfs.errors import DamageError, LockedError, StoreError, StoreFullError, UsageError, WrongPasswordError
from backupfs.format import keyslot
from backupfs.format.keyslot import KdfParameters
from backupfs.format.layout import Sealed
from backupfs.rules.labels import KeyKind
from backupfs.stores.files import Files
from tests.crash.simulation import KDF, PASSWORD
from tests.decoder.store import Store, open_store
from tests.unit.engine.keyholder import CLOCK, DRAWS, WORDS, add, change, files_of, labels, opens, overwrite, remove, shown, slot_files
from tests.unit.engine.world import REPOSITORY, World, simulated


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.new(tmp_path / "w")


def test_the_cost_of_a_guess_follows_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def stretch(_password: bytes, _salt: bytes, kdf: KdfParameters) -> bytes:
        now[0] += 0.1 * kdf.time
        return bytes(32)

    monkeypatch.setattr(key_codec, "stretch", stretch)
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert calibrated_kdf(1.0).time == 10
    assert calibrated_kdf(0.001).time == limits.KDF_TIME_MIN
    assert calibrated_kdf(1e9).time == limits.KDF_TIME_MAX
    assert calibrated_kdf(1.0).memory_kib == limits.KDF_MEMORY_MIN_KIB


# --- adding and showing --------------------------------------------------------------------------------------------


def test_every_key_opens_and_gives_the_same_repository(world: World, tmp_path: Path) -> None:
    added = [add(world, b"second", "laptop"), add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)]
    right = world.unlocked().keys
    for secret in (b"second", WORDS.encode(), WORDS.upper().replace(" ", "\n ").encode()):
        assert world.unlocked(secret).keys == right
    slots = shown(world, b"second")
    assert [(slot.label, slot.kind, slot.opened, slot.copies, slot.trouble) for slot in slots] == [
        ("password", KeyKind.PASSWORD, False, 2, ""),
        ("laptop", KeyKind.PASSWORD, True, 2, ""),
        ("paper", KeyKind.RECOVERY, False, 2, ""),
    ]
    assert [replace_opened(slot) for slot in slots[1:]] == added
    assert {slot.kdf for slot in slots} == {KDF}
    assert len(slot_files(world)) == 6
    for secret in (PASSWORD, b"second", WORDS.encode()):
        master = open_store(Store(world.export(tmp_path / secret.hex()[:8])), secret).master
        assert master == right.master, "the format's text is enough to open each"


def replace_opened(slot: SlotInfo) -> SlotInfo:
    return SlotInfo(slot.id, slot.label, slot.kind, slot.created_ns, slot.kdf, slot.copies, opened=False)


def test_nothing_in_a_slot_tells_a_recovery_key(world: World) -> None:
    """Slots differ in what is random or sealed, and in their time."""
    slots = [add(world, b"second", "laptop"), add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)]
    contents = [world.content(files_of(slot)[0]) for slot in slots]
    one, other = (content[:32] + content[56:72] + content[264:508] for content in contents)
    assert one == other
    for content in contents:
        assert not any(text in content for text in (b"recovery", b"paper", b"laptop"))


def test_a_mistyped_recovery_key_is_told_by_position(world: World) -> None:
    add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)
    words = WORDS.split()
    words[6] = "abandoned"
    with pytest.raises(WrongPasswordError, match="word 7 of this recovery key"):
        world.unlocked(" ".join(words).encode())
    with pytest.raises(WrongPasswordError, match="its slot was removed"):
        world.unlocked(recovery.words_of(bytes(32)).encode())


def test_somebodys_own_password_may_be_such_words_in_their_own_writing(world: World) -> None:
    own = WORDS.title().encode()
    add(world, own, "mine")
    assert opens(world, own)
    assert not opens(world, WORDS.encode())


@pytest.mark.parametrize(("kind", "label"), [(KeyKind.PASSWORD, "password"), (KeyKind.RECOVERY, "password"), (KeyKind.PASSWORD, "x" * 65)])
def test_labels_that_will_not_do(world: World, kind: KeyKind, label: str) -> None:
    before = slot_files(world)
    with pytest.raises(UsageError):
        add(world, b"x", label, kind)
    assert slot_files(world) == before


def test_there_is_a_most(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEY_SLOTS_MAX", 3)
    add(world, b"2", "two")
    add(world, b"3", "three")
    with pytest.raises(UsageError, match="3 is the most"):
        add(world, b"4", "four")
    change(world, b"2", b"two again")
    assert all(opens(world, secret) for secret in (PASSWORD, b"two again", b"3"))
    remove(world, PASSWORD, "three")
    add(world, b"4", "four")
    assert labels(world) == ["password", "two", "four"]


def test_a_new_slot_that_cannot_be_written_is_not_there(world: World) -> None:
    """However much of it fits on the disk."""
    used = sum(world.disk.image().listing().values())
    for room in range(0, 1025, 128):
        world.disk.set_capacity(used + room)
        if room == 1024:
            add(world, b"second", "laptop")
            continue
        with pytest.raises(StoreFullError):
            add(world, b"second", "laptop")
        assert [path for path in slot_files(world) if path.suffix != ".partial"] == sorted(files_of(shown(world)[0]))
        with pytest.raises(StoreFullError):
            change(world, PASSWORD, b"new")
        assert opens(world, PASSWORD)
        assert not opens(world, b"new")
    assert len(slot_files(world)) == 4, "and nothing is left of the attempts"


# --- naming --------------------------------------------------------------------------------------------------------


def slot(id_: str, label: str | None) -> SlotInfo:
    return SlotInfo(id_.ljust(32, "0"), label, KeyKind.PASSWORD, 1, KDF, 2, opened=False)


def test_what_names_a_slot() -> None:
    slots = [slot("aaaaaaaa1", "one"), slot("aaaaaaaa2", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"), slot("bbbbbbbb", "aaaaaaaa2"), slot("c", None)]
    for reference, expected in {
        "one": 0,
        "AAAAAAAA1": 0,
        "cafe\N{COMBINING ACUTE ACCENT}": 1,
        "bbbbbbbb": 2,
        slots[1].id: 1,
        slots[3].id: 3,
        "c0000000": 3,
    }.items():
        assert find_slot(slots, reference) is slots[expected]
    for reference in ("", "two", "One", "bbbbbbb", "c", "aaaaaaaa3", "bbbbbbbbb"):
        with pytest.raises(UsageError, match="there is no key"):
            find_slot(slots, reference)
    for reference in ("aaaaaaaa", "aaaaaaaa2"):
        with pytest.raises(UsageError, match=f"names 2 key slots: .*{slots[1].id}"):
            find_slot(slots, reference)


# --- removing ------------------------------------------------------------------------------------------------------


def test_a_removed_key_opens_nothing(world: World) -> None:
    add(world, b"second", "laptop")
    gone = remove(world, PASSWORD, "laptop")
    assert gone.label == "laptop"
    assert not opens(world, b"second")
    assert labels(world) == ["password"]
    assert len(slot_files(world)) == 2


def test_the_key_that_is_given_goes_only_by_force_and_the_last_never(world: World) -> None:
    for force in (False, True):
        with pytest.raises(UsageError, match="'password' is the last key"):
            remove(world, PASSWORD, "password", force)
    second = add(world, b"second", "laptop")
    with pytest.raises(UsageError, match="another key's password to remove it, or insist with --force"):
        remove(world, PASSWORD, "password")
    assert remove(world, PASSWORD, "password", force=True).label == "password"
    assert not opens(world, PASSWORD)
    with pytest.raises(UsageError, match="last"):
        remove(world, b"second", second.id, force=True)
    assert opens(world, b"second")


def test_slots_that_cannot_be_read_do_not_count_as_keys_that_are_left(world: World) -> None:
    second, third = add(world, b"second", "laptop"), add(world, b"third", "phone")
    for path in files_of(second):
        world.disk.damage(path, 200)
    forged = replace(keyslot.decode(world.content(files_of(third)[0])), sealed_label=bytes(80))
    for path in files_of(third):
        overwrite(world, path, keyslot.encode(forged))
    with pytest.raises(UsageError, match="last"):
        remove(world, PASSWORD, "password", force=True)
    unreadable = {info.id: info for info in shown(world)[1:]}
    assert "the checksum does not match" in unreadable[second.id].trouble
    assert "its label does not open" in unreadable[third.id].trouble
    assert [(info.label, info.kind, info.kdf, info.copies) for info in unreadable.values()] == [(None, None, None, 0)] * 2
    remove(world, PASSWORD, second.id[:8])
    remove(world, PASSWORD, third.id)
    assert labels(world) == ["password"]
    assert len(slot_files(world)) == 2


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_half_a_slot_is_named_opens_and_can_be_removed(world: World, lost: int, how: str) -> None:
    second = add(world, b"second", "laptop")
    path = files_of(second)[lost]
    world.disk.unlink(path) if how == "missing" else world.disk.damage(path, 100)
    assert opens(world, b"second")
    half = shown(world)[1]
    assert (half.label, half.copies) == ("laptop", 1)
    assert "only one of its two files is whole" in half.trouble
    assert "`backupfs key remove` ends that" in half.trouble
    remove(world, PASSWORD, "laptop")
    assert not opens(world, b"second")
    assert len(slot_files(world)) == 2


def test_a_removal_that_fails_in_the_middle_is_told_and_ended_by_the_next(world: World) -> None:
    second = add(world, b"second", "laptop")
    with failing(world, lambda path: path == files_of(second)[1]), pytest.raises(StoreError, match="unlink"):
        remove(world, PASSWORD, "laptop")
    assert shown(world)[1].copies == 1
    remove(world, PASSWORD, "laptop")
    assert labels(world) == ["password"]


@contextmanager
def failing(world: World, fails: Callable[[Path], bool]) -> Iterator[None]:
    """Some files cannot be removed."""
    unlink = world.disk.unlink

    def refuse(path: Path) -> None:
        if fails(path):
            raise StoreError(f"unlink {path}: not permitted")
        unlink(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.disk, "unlink", refuse)
        yield


# --- changing ------------------------------------------------------------------------------------------------------


def test_changing_the_password(world: World) -> None:
    add(world, b"second", "laptop")
    before = set(slot_files(world))
    keys = world.unlocked().keys
    new = change(world, PASSWORD, b"new")
    assert not opens(world, PASSWORD)
    assert world.unlocked(b"new").keys == keys
    assert world.unlocked(b"second").keys == keys
    assert {info.label: info.id for info in shown(world, b"new")}["password"] == new.id
    assert len(set(slot_files(world)) - before) == 2
    assert len(slot_files(world)) == 4


@pytest.mark.parametrize("lost", [0, 1])
def test_changing_the_password_when_half_of_the_slot_is_gone(world: World, lost: int) -> None:
    world.disk.unlink(slot_files(world)[lost])
    change(world, PASSWORD, b"new")
    assert [info.copies for info in shown(world, b"new")] == [2]
    assert len(slot_files(world)) == 2


def test_a_change_that_was_cut_short_shows_and_the_next_ends_it(world: World) -> None:
    add(world, b"second", "laptop")
    old = shown(world)[0]
    told = f"the new password opens the repository, and so does the old one still: .*{old.id}"
    with failing(world, lambda path: old.id in path.name), pytest.raises(StoreError, match=told):
        change(world, PASSWORD, b"new")
    assert opens(world, PASSWORD)
    assert opens(world, b"new")
    doubled = [info for info in shown(world) if info.label == "password"]
    assert len(doubled) == 2
    assert all("another slot has the same label" in info.trouble for info in doubled)
    assert shown(world)[1].trouble == "", "the third is not concerned"
    with pytest.raises(UsageError, match="names 2 key slots"):
        remove(world, b"second", "password")
    change(world, PASSWORD, b"newest")
    assert [info.label for info in shown(world, b"newest")] == ["laptop", "password"]
    assert not opens(world, PASSWORD)
    assert not opens(world, b"new")


def test_a_recovery_key_is_not_changed_into_a_password(world: World) -> None:
    add(world, WORDS.encode(), "paper", KeyKind.RECOVERY)
    with pytest.raises(UsageError, match="key add --label"):
        change(world, WORDS.encode(), b"new")
    assert opens(world, WORDS.encode())


def test_a_label_that_somebody_changed_is_damage(world: World) -> None:
    own = shown(world)[0]
    forged = replace(keyslot.decode(world.content(files_of(own)[0])), sealed_label=bytes(80))
    for path in files_of(own):
        overwrite(world, path, keyslot.encode(forged))
    assert shown(world)[0].opened
    with pytest.raises(DamageError, match="label does not open"):
        change(world, PASSWORD, b"new")
    add(world, b"second", "password")
    remove(world, b"second", own.id)
    assert labels(world, b"second") == ["password"]


def test_a_label_that_is_no_text_is_damage(world: World) -> None:
    """Only who has the key can make one."""
    unlocked = world.unlocked()
    own = keyslot.decode(world.content(slot_files(world)[0]))
    label_key = key_codec._label_key(unlocked.keys.master, unlocked.config, own.salt)
    sealer = key_codec.Sealer(unlocked.config.cipher, label_key, own.repository_id, own.slot_id)
    forged = replace(own, sealed_label=sealer.seal(Sealed.SLOT_LABEL, 0, b"\xff" * 64))
    for path in slot_files(world):
        overwrite(world, path, keyslot.encode(forged))
    assert "its label does not open" in shown(world)[0].trouble


# --- others at the same time ---------------------------------------------------------------------------------------


def test_one_at_a_time(world: World) -> None:
    unlocked = world.unlocked()
    with keyring.locked(REPOSITORY, world.files):
        attempts: list[Callable[[], object]] = [
            lambda: add(world, b"x", "x", unlocked=unlocked),
            lambda: remove_slot(unlocked, "password", force=True, files=world.files),
            lambda: change(world, PASSWORD, b"x"),
        ]
        for attempt in attempts:
            with pytest.raises(LockedError, match="is changing the keys"):
                attempt()
        assert labels(world) == ["password"]
    add(world, b"x", "x")


def test_two_who_remove_each_others_key(world: World) -> None:
    """The second one's own key is gone by then, and his removal would have been the end."""
    add(world, b"second", "laptop")
    second = world.unlocked(b"second")
    remove(world, PASSWORD, "laptop")
    attempts: list[Callable[[], object]] = [
        lambda: remove_slot(second, "password", force=True, files=world.files),
        lambda: add(world, b"x", "x", unlocked=second),
        lambda: change_password(second, b"x", files=world.files, clock=CLOCK, randomness=DRAWS, kdf=KDF),
    ]
    for attempt in attempts:
        with pytest.raises(WrongPasswordError, match="removed meanwhile"):
            attempt()
    assert labels(world) == ["password"]


def test_what_a_cut_left_behind_is_swept(world: World) -> None:
    left = REPOSITORY / "keys" / ("0" * 32 + ".partial")
    world.disk.close(world.disk.create(left))
    assert labels(world) == ["password"]
    add(world, b"x", "x")
    assert left not in slot_files(world)


def test_other_files_among_the_keys_are_no_slots(world: World) -> None:
    for name in ("note", "0" * 31, "A" * 32, "0" * 32 + ".copy.copy"):
        world.disk.close(world.disk.create(REPOSITORY / "keys" / name))
    assert labels(world) == ["password"]


def test_a_slot_under_another_ones_name_does_not_open(world: World) -> None:
    content = world.content(slot_files(world)[0])
    for path in slot_files(world):
        world.disk.rename(path, path.with_name(path.name.replace(path.name[:32], "0" * 32)))
    with pytest.raises(DamageError, match="another slot's"):
        world.unlocked()
    assert keyslot.decode(content).slot_id.hex() != "0" * 32


def test_a_repository_without_slots_says_what_brings_them_back(world: World) -> None:
    for path in slot_files(world):
        world.disk.unlink(path)
    with pytest.raises(DamageError, match=r"no key slot that can be read; `backupfs key import"):
        world.unlocked()


@simulated
async def test_keys_change_while_the_repository_is_mounted(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    files: Files = world.disk
    async with world.mounted() as m:
        await m.put(b"f", b"content")
        add(world, b"second", "laptop")
        change(world, PASSWORD, b"new")
        remove(world, b"second", "password")
        assert [slot.label for slot in list_slots(world.unlocked(b"second"), files=files)] == ["laptop"]
        await m.put(b"g", b"more")
    assert not opens(world, PASSWORD)
    change(world, b"second", PASSWORD)
    async with world.mounted() as m:
        assert (await m.get(b"f"), await m.get(b"g")) == (b"content", b"more")
    assert await world.check() == []
