"""Making, unlocking, locking and opening repositories; keys and copies."""

import errno
import os
from dataclasses import replace as changed
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.engine import repository as repository_module
from backupfs.engine.identity import repository_id
from backupfs.engine.repository import create_repository, rebuild_index, unlock
from backupfs.errors import (
    DamageError,
    FileSystemError,
    LockedError,
    ReadOnlyError,
    RepositoryMissingError,
    StoreFullError,
    UsageError,
    WrongPasswordError,
)
from backupfs.format import config as config_format
from backupfs.format.config import CIPHER_CHACHA20_POLY1305
from tests.conftest import LogRule
from tests.crash.disk import SimulatedDisk
from tests.crash.simulation import KDF, PASSWORD, SeededRandomness, SteppingClock
from tests.unit.engine.world import REPOSITORY, ROOT, WHO, World, simulated

CONFIGS = [REPOSITORY / "config", REPOSITORY / "config.copy"]


def slots(world: World) -> list[Path]:
    return world.objects("keys")


def damage(world: World, *paths: Path) -> None:
    for path in paths:
        world.disk.damage(path, 30)


@simulated
async def test_a_new_repository_has_a_root_that_belongs_to_its_owner(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted(owner=(1000, 100)) as m:
        top = await m.fs.getattr(ROOT)
        assert (top.uid, top.gid, top.mode, top.nlink) == (1000, 100, 0o40755, 2)
    assert repository_id(REPOSITORY, world.disk) == world.unlocked().repository_id
    assert await world.check() == []


def test_a_repository_needs_an_empty_place(tmp_path: Path) -> None:
    disk = SimulatedDisk()
    clock, randomness = SteppingClock(), SeededRandomness(0)
    deep = Path("/a/b/c")
    with pytest.raises(RepositoryMissingError, match="init"):
        unlock(deep, PASSWORD, files=disk)
    clock.now_ns = lambda: 0  # type: ignore[method-assign]
    create_repository(deep, PASSWORD, files=disk, clock=clock, randomness=randomness, kdf=KDF, label="my key")
    with pytest.raises(UsageError, match="not empty"):
        create_repository(deep, PASSWORD, files=disk, clock=clock, randomness=randomness, kdf=KDF)
    unlocked = unlock(deep, PASSWORD, files=disk)
    assert unlocked.config.chunk_avg_bytes == limits.CHUNK_AVG_BYTES


def test_half_a_repository_is_none(tmp_path: Path) -> None:
    """The configuration is written last."""
    for capacity in range(64, 1600, 200):
        disk = SimulatedDisk(capacity_bytes=capacity)
        clock = SteppingClock()
        clock.now_ns = lambda: 0  # type: ignore[method-assign]
        try:
            create_repository(REPOSITORY, PASSWORD, files=disk, clock=clock, randomness=SeededRandomness(0), kdf=KDF)
        except StoreFullError:
            if not disk.exists(CONFIGS[0]):
                with pytest.raises(RepositoryMissingError):
                    unlock(REPOSITORY, PASSWORD, files=disk)


def test_a_machine_without_aes_gets_another_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repository_module, "_has_aes", lambda: False)
    disk = SimulatedDisk()
    clock = SteppingClock()
    clock.now_ns = lambda: 0  # type: ignore[method-assign]
    create_repository(REPOSITORY, PASSWORD, files=disk, clock=clock, randomness=SeededRandomness(0), kdf=KDF)
    assert unlock(REPOSITORY, PASSWORD, files=disk).config.cipher == CIPHER_CHACHA20_POLY1305


def test_whether_the_machine_has_aes_is_asked_of_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for text, expected in (("flags : fpu aes sse", True), ("flags : fpu sse", False)):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(repository_module, "Path", lambda _path: tmp_path / "cpuinfo")
        assert repository_module._has_aes() is expected
    monkeypatch.setattr(repository_module, "Path", lambda _path: tmp_path / "missing")
    assert repository_module._has_aes() is True


# --- passwords ----------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_told(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    for wrong in (b"", b"wrong", PASSWORD + b" ", PASSWORD[:-1]):
        with pytest.raises(WrongPasswordError):
            world.unlocked(wrong)


class Still:
    def now_ns(self) -> int:
        return 5


# --- copies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["config", "config.copy", "slot", "slot.copy"])
@pytest.mark.parametrize("how", ["damaged", "missing", "empty"])
@simulated
async def test_the_copy_serves(tmp_path: Path, lost: str, how: str) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"content")
    original = slots(world)
    path = {"slot": original[0], "slot.copy": original[1]}.get(lost, REPOSITORY / lost)
    if how == "damaged":
        damage(world, path)
    else:
        world.disk.unlink(path)
        if how == "empty":
            world.disk.close(world.disk.create(path))
    async with world.mounted() as m:
        assert await m.get(b"f") == b"content"
    findings = await world.check()
    assert [finding.object for finding in findings] == [str(path.relative_to(REPOSITORY))]
    assert "its other copy serves" in findings[0].detail


def test_every_flipped_byte_of_config_and_slot_is_found_or_served_by_the_copy(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    right = world.unlocked().keys
    for path in [CONFIGS[0], slots(world)[0]]:
        for at in range(0, len(world.content(path)), 5):
            world.disk.damage(path, at, 1 << at % 8)
            assert world.unlocked().keys == right
            world.disk.damage(path, at, 1 << at % 8)


def test_both_copies_damaged_is_damage(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    damage(world, *CONFIGS)
    with pytest.raises(DamageError):
        world.unlocked()
    damage(world, *CONFIGS)
    damage(world, *slots(world))
    with pytest.raises(DamageError, match="no key slot"):
        world.unlocked()


def test_a_changed_configuration_is_detected_although_its_checksum_holds(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    right, mac = config_format.decode(world.content(CONFIGS[0]))
    forged = config_format.encode(changed(right, compression_level=19), mac)
    replace(world, CONFIGS[0], forged)
    assert world.unlocked().config == right, "the copy holds"
    replace(world, CONFIGS[1], forged)
    with pytest.raises(DamageError, match="changed"):
        world.unlocked()


def test_a_foreign_slot_is_not_tried(tmp_path: Path) -> None:
    world, other = World.new(tmp_path / "w"), SimulatedDisk()
    create_repository(REPOSITORY, b"other", files=other, clock=Still(), randomness=SeededRandomness("other"), kdf=KDF)
    for name in other.list(REPOSITORY / "keys"):
        handle = other.open(REPOSITORY / "keys" / name)
        replace(world, REPOSITORY / "keys" / name, other.read_at(handle, 0, 4096))
    with pytest.raises(WrongPasswordError):
        world.unlocked(b"other")
    assert world.unlocked().config.repository_id == world.content(CONFIGS[0])[16:32]


def replace(world: World, path: Path, content: bytes) -> None:
    if world.disk.exists(path):
        world.disk.unlink(path)
    handle = world.disk.create(path)
    world.disk.write_at(handle, 0, [content])
    world.disk.close(handle)


# --- mounting -----------------------------------------------------------------------------------------------------------


@simulated
async def test_one_writer_at_a_time(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    other = World(tmp_path / "other", world.disk)
    other._make_state()
    async with world.mounted() as m:
        with pytest.raises(LockedError):
            async with other.mounted():
                raise AssertionError("two writers")
        with pytest.raises(LockedError):
            await other.check()
        with pytest.raises(LockedError):
            await rebuild_index(REPOSITORY, other.unlocked(), other.state, seams=other.seams(), progress=lambda _done, _total: None)
        await m.put(b"f", b"x")
    async with other.mounted() as m:
        assert await m.get(b"f") == b"x"


@simulated
async def test_a_mount_that_fails_lets_go_of_the_lock(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"x")
    world.without_index()
    [segment] = world.objects("journal")
    world.disk.damage(segment, 5000)
    for _ in range(2):
        with pytest.raises(DamageError):
            async with world.mounted():
                raise AssertionError("it mounts")
    world.disk.damage(segment, 5000)
    async with world.mounted() as m:
        assert await m.get(b"f") == b"x"


@simulated
async def test_a_read_only_mount_changes_nothing(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        await m.put(b"f", b"content")
        await m.fs.create_snapshot("test")
        fh = await m.open(b"gone")
        await m.fs.write(fh, 0, b"orphan")
        await m.unlink(b"gone")
        await m.fs.commit()
        killed = world.after_kill(tmp_path / "k")
    before = killed.disk.image()
    killed.without_index()
    async with killed.mounted(read_only=True) as m:
        fs = m.fs
        assert await m.get(b"f") == b"content"
        assert await m.tree(b".snapshots/" + fs.snapshots()[0].name.encode())
        ino = await m.ino(b"f")
        for request in (
            fs.mkdir(ROOT, b"d", 0o755, WHO),
            fs.create(ROOT, b"g", 0o644, os.O_RDWR, WHO),
            fs.unlink(ROOT, b"f", WHO),
            fs.setxattr(ino, b"user.a", b"", WHO),
            fs.open(ino, os.O_RDWR, WHO),
            fs.create_snapshot("test"),
            fs.delete_snapshot(fs.snapshots()[0].name),
        ):
            with pytest.raises(ReadOnlyError) as raised:
                await request
            assert raised.value.errno == errno.EROFS
        opened = await fs.open(ino, os.O_RDONLY, WHO)
        await fs.fsync(opened.fh, datasync=False)
        await fs.flush(opened.fh)
        await fs.release(opened.fh)
        directory = await fs.opendir(ROOT)
        await fs.fsyncdir(directory, datasync=False)
        await fs.commit()
        assert fs.status().read_only
        assert [finding async for finding in fs.check(read_data=True, progress=lambda _done, _total: None)] == []
    after = killed.disk.image()
    assert {p: s for p, s in after.listing().items() if p.startswith(str(REPOSITORY)) and not p.endswith("lock")} == {
        p: s for p, s in before.listing().items() if p.startswith(str(REPOSITORY)) and not p.endswith("lock")
    }


@simulated
async def test_a_repository_never_mounted_can_be_looked_at(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted(read_only=True) as m:
        try:
            assert (await m.fs.getattr(ROOT)).nlink == 2
        except FileSystemError as error:
            pytest.fail(f"no root: {error}")
    assert await world.check() == []


@simulated
async def test_rebuilding_the_index(tmp_path: Path) -> None:
    world = World.new(tmp_path / "w")
    async with world.mounted() as m:
        for i in range(20):
            await m.put(b"f%d" % i, b"%d" % i)
        await m.fs.create_snapshot("test")
        tree = await m.tree()
    told: list[tuple[int, int]] = []
    report = await rebuild_index(REPOSITORY, world.unlocked(), world.state, seams=world.seams(), progress=lambda *how_far: told.append(how_far))
    assert told[-1][0] == told[-1][1] > 0
    assert report.batches >= 2
    assert report.segment == 1
    assert report.index_bytes > 0
    async with world.mounted() as m:
        assert await m.tree() == tree
    assert world.audit(tmp_path / "copy") == []


@simulated
async def test_a_half_built_index_is_never_taken_for_the_whole(tmp_path: Path, log_rule: LogRule) -> None:
    world = World.new(tmp_path / "w")
    for number in range(3):
        async with world.mounted() as m:
            await m.put(b"f%d" % number, b"x")
    world.disk.damage(world.objects("journal")[1], 4500)
    with pytest.raises(DamageError):
        await rebuild_index(REPOSITORY, world.unlocked(), world.state, seams=world.seams(), progress=lambda _done, _total: None)
    with pytest.raises(DamageError):
        async with world.mounted():
            raise AssertionError("it mounts")
    world.disk.damage(world.objects("journal")[1], 4500)
    async with world.mounted() as m:
        assert sorted(await m.names(b"")) == [b"f0", b"f1", b"f2"]


@simulated
async def test_nothing_readable_lies_in_the_repository_or_the_state(tmp_path: Path) -> None:
    secrets = [b"a name nobody may see", b"content that nobody may see " * 100, b"/a/target/nobody/may/see", b"an attribute nobody sees"]
    world = World.new(tmp_path / "w", compression=False)
    async with world.mounted() as m:
        await m.put(secrets[0], secrets[1])
        await m.fs.symlink(ROOT, b"l", secrets[2], WHO)
        await m.fs.setxattr(await m.ino(secrets[0]), b"user.a", secrets[3], WHO)
        await m.fs.create_snapshot("why it was taken", "a message nobody may see")
        await m.fs.commit()
        images = [world.disk.image()]
    images.append(world.disk.image())
    stored = [content for image in images for content in image.files.values()]
    stored += [path.read_bytes() for path in world.state.rglob("*") if path.is_file()]
    for secret in [*secrets, b"a message nobody may see", b"why it was taken"]:
        assert not any(secret[:20] in content for content in stored)
