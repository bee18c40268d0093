"""Snapshots on a real mount: read-only, exact, complete with what is still open, unmoved by whatever comes after."""

import errno
import fcntl
import mmap
import os
import random
import signal
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests.mounted import Repository, run, until
from tests.oracle.awkward import acl, noise
from tests.oracle.manifest import Manifest, assert_same, manifest


def errno_or(action: Callable[[], object]) -> object:
    """What the action gives, or the error number it fails with."""
    try:
        return action()
    except OSError as error:
        return error.errno


def errno_of(action: Callable[[], object]) -> int | None:
    """The error number that the action fails with; None when it does not fail."""
    try:
        action()
    except OSError as error:
        return error.errno
    return None


def test_everything_in_a_snapshot_is_read_only(mounted_repository: Repository) -> None:
    live = mounted_repository.directory
    (live / "directory").mkdir()
    (live / "file").write_bytes(b"content")
    os.setxattr(live / "file", "user.x", b"x")
    past = mounted_repository.snapshot()
    file, directory = past / "file", past / "directory"
    attempts: dict[str, Callable[[], object]] = {
        "write": lambda: os.open(file, os.O_WRONLY),
        "read and write": lambda: os.open(file, os.O_RDWR),
        "truncate": lambda: os.truncate(file, 0),
        "create": lambda: os.open(directory / "new", os.O_CREAT | os.O_WRONLY),
        "mkdir": lambda: os.mkdir(directory / "new"),
        "mkfifo": lambda: os.mkfifo(directory / "new"),
        "symlink": lambda: os.symlink("x", directory / "new"),
        "link": lambda: os.link(file, directory / "new"),
        "unlink": lambda: os.unlink(file),
        "rmdir": lambda: os.rmdir(directory),
        "rename": lambda: os.rename(file, directory / "new"),
        "chmod": lambda: os.chmod(file, 0o600),
        "chown": lambda: os.chown(file, os.getuid(), os.getgid()),
        "utime": lambda: os.utime(file),
        "setxattr": lambda: os.setxattr(file, "user.y", b"y"),
        "removexattr": lambda: os.removexattr(file, "user.x"),
        "create in .snapshots": lambda: os.open(live / ".snapshots" / "new", os.O_CREAT | os.O_WRONLY),
    }
    before = manifest(past)
    answers = dict.fromkeys(attempts, "EROFS")
    if os.geteuid():
        answers["create in .snapshots"] = "EACCES"  # nobody may write there by its mode, and the kernel asks root only here
    assert {name: errno.errorcode.get(errno_of(attempt) or 0) for name, attempt in attempts.items()} == answers
    for moving in (lambda: os.rename(file, live / "moved"), lambda: os.link(file, live / "linked")):
        assert errno_of(moving) in {errno.EROFS, errno.EXDEV}
    assert_same(before, manifest(past))
    assert sorted(os.listdir(live)) == [".snapshots", "directory", "file"]


def test_the_reserved_name_cannot_be_made_anywhere(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    mounted_repository.expect_trouble(r"\.snapshots")
    (root / "a" / "b").mkdir(parents=True)
    for directory in (root, root / "a", root / "a" / "b"):
        (directory / "file").touch()
        (directory / "other").mkdir()
        reserved = directory / ".snapshots"
        attempts: list[Callable[[], object]] = [
            lambda name=reserved: os.mkdir(name),  # type: ignore[misc]
            lambda name=reserved: os.mkfifo(name),  # type: ignore[misc]
            lambda name=reserved: os.symlink("x", name),  # type: ignore[misc]
            lambda name=reserved, own=directory: os.link(own / "file", name),  # type: ignore[misc]
        ]
        # where the name resolves, the kernel itself says that something is there
        allowed = {errno.EPERM} | ({errno.EEXIST} if os.path.lexists(reserved) else set())
        assert {errno_of(attempt) for attempt in attempts} <= allowed
        assert errno_of(lambda name=reserved, own=directory: os.rename(own / "other", name)) == errno.EPERM  # type: ignore[misc]
        if not os.path.lexists(reserved):
            assert errno_of(lambda name=reserved: os.open(name, os.O_CREAT | os.O_WRONLY)) == errno.EPERM  # type: ignore[misc]
    assert errno_of(lambda: os.rmdir(root / ".snapshots")) is not None
    assert errno_of(lambda: os.rename(root / ".snapshots", root / "moved")) is not None
    source = mounted_repository.base / "tree"
    (source / ".snapshots").mkdir(parents=True)
    (source / "file").touch()
    copied = run(["cp", "-a", source, root / "copy"], expect=None)
    assert copied.returncode != 0
    assert (root / "copy" / "file").exists()
    log = (mounted_repository.state / "log").read_text()
    assert ".snapshots" in log, "refused in words"


def test_names_and_latest(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    assert ".snapshots" in os.listdir(root)
    assert mounted_repository.snapshot_names() == []
    taken = []
    for n in range(3):
        (root / "file").write_text(f"{n}")
        taken.append(mounted_repository.snapshot("-m", f"number {n}", "--tag", "t").name)
        assert os.readlink(root / ".snapshots" / "latest") == taken[-1]
    assert taken == sorted(set(taken)), "never the same twice, and they sort as they were taken"
    assert all(name[10] == "T" and ":" not in name for name in taken)
    assert [(root / ".snapshots" / name / "file").read_text() for name in taken] == ["0", "1", "2"]
    (told,) = mounted_repository.json("snapshot", "list", root)
    assert [entry["name"] for entry in told["snapshots"]] == taken
    assert [entry["message"] for entry in told["snapshots"]] == ["number 0", "number 1", "number 2"]
    mounted_repository.remount()
    assert mounted_repository.snapshot_names() == taken
    assert os.readlink(root / ".snapshots" / "latest") == taken[-1]


def test_a_file_and_its_past_are_not_one_file(mounted_repository: Repository) -> None:
    """Else tar, rsync and Samba would take them for hard links."""
    live = mounted_repository.directory / "file"
    live.write_bytes(b"content")
    os.link(live, live.with_name("link"))
    pasts = [mounted_repository.snapshot() for _ in range(2)]
    numbers = [os.stat(place).st_ino for place in (live, *(past / "file" for past in pasts))]
    assert len(set(numbers)) == 3
    for past in pasts:
        assert os.stat(past / "file").st_ino == os.stat(past / "link").st_ino
        assert os.stat(past / "file").st_nlink == 2


def test_a_file_that_is_still_being_written_is_complete(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    rng = random.Random(1)
    contents = {"written": noise(rng, 5 << 20), "mapped": noise(rng, 3 << 20), "small": b"just a few bytes"}
    descriptors = {name: os.open(root / name, os.O_CREAT | os.O_RDWR, 0o644) for name in contents}
    os.ftruncate(descriptors["mapped"], len(contents["mapped"]))
    with mmap.mmap(descriptors["mapped"], len(contents["mapped"])) as pages:
        pages[:] = contents["mapped"]
        for name in ("written", "small"):
            os.write(descriptors[name], contents[name])
        past = mounted_repository.snapshot()
        pages[:10] = b"afterwards"
        os.pwrite(descriptors["written"], b"afterwards", 100)
        os.write(descriptors["small"], b"afterwards")
        assert {name: (past / name).read_bytes() for name in contents} == contents
    for descriptor in descriptors.values():
        os.close(descriptor)
    mounted_repository.remount()
    assert {name: (past / name).read_bytes() for name in contents} == contents
    assert (root / "small").read_bytes() == contents["small"] + b"afterwards"


def test_with_one_wrong_name_no_snapshot_is_deleted(mounted_repository: Repository) -> None:
    name = mounted_repository.snapshot().name
    done = mounted_repository.command("snapshot", "delete", mounted_repository.directory, name, "nosuch", expect=2)
    assert "nosuch; nothing was deleted" in done.stderr
    assert mounted_repository.snapshot_names() == [name]
    mounted_repository.command("snapshot", "delete", mounted_repository.directory, name, name)
    assert mounted_repository.snapshot_names() == []


def test_what_the_pass_before_a_snapshot_cannot_open_is_brought_in_all_the_same(mounted_repository: Repository) -> None:
    """A file under a lease, and one that a mount hides."""
    root = mounted_repository.directory
    (root / "sub").mkdir()
    with open(root / "leased", "wb", buffering=0) as leased, open(root / "sub" / "hidden", "wb", buffering=0) as hidden:
        leased.write(b"l" * 900)
        hidden.write(b"h" * 900)
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)
        if os.geteuid() == 0:
            run(["mount", "-t", "tmpfs", "none", root / "sub"])
        try:
            past = mounted_repository.snapshot()
        finally:
            if os.geteuid() == 0:
                run(["umount", root / "sub"])
            signal.signal(signal.SIGIO, before)
        assert (past / "leased").read_bytes() == b"l" * 900
        assert (past / "sub" / "hidden").read_bytes() == b"h" * 900


@pytest.mark.slow
def test_deleting_a_snapshot_leaves_the_others(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    rng = random.Random(2)
    kept: dict[Path, Manifest] = {}
    for n in range(6):
        (root / f"file-{n}").write_bytes(noise(rng, 100_000))
        (root / "changing").write_bytes(noise(rng, 50_000 + n))
        with suppress(FileNotFoundError):
            (root / f"file-{n - 2}").unlink()
        past = mounted_repository.snapshot()
        kept[past] = manifest(past)
    for past in rng.sample(list(kept), 4):
        mounted_repository.command("snapshot", "delete", root, past.name)
        del kept[past]
        assert not past.exists()
        assert mounted_repository.snapshot_names() == sorted(path.name for path in kept)
        for other, expected in kept.items():
            assert_same(expected, manifest(other))
        assert mounted_repository.command("snapshot", "delete", root, past.name, expect=None).returncode in {1, 2}
    newest = max(path.name for path in kept)
    assert os.readlink(root / ".snapshots" / "latest") == newest
    mounted_repository.remount()
    for other, expected in kept.items():
        assert_same(expected, manifest(other))
    mounted_repository.command("check", root, "--read-data")


def test_a_deleted_snapshot_that_is_still_open_never_shows_something_else(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    (root / "file").write_bytes(b"then" * 100_000)
    past = mounted_repository.snapshot()
    directory = os.open(past, os.O_RDONLY)
    file = os.open(past / "file", os.O_RDONLY)
    try:
        (root / "file").write_bytes(b"now!" * 100_000)
        mounted_repository.command("snapshot", "delete", root, past.name)
        (root / "file").write_bytes(b"late" * 100_000)
        assert errno_or(lambda: os.pread(file, 4, 0)) in (b"then", errno.ESTALE, errno.ENOENT)
        assert errno_or(lambda: os.listdir(directory)) in (["file"], errno.ESTALE, errno.ENOENT)
    finally:
        os.close(directory)
        os.close(file)


class Changer:
    """Random changes of every kind below one directory."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self.rng = rng
        self.count = 0

    def paths(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if ".snapshots" not in path.parts)

    def step(self) -> None:
        self.count += 1
        paths = self.paths()
        directories = [self.root, *(path for path in paths if path.is_dir() and not path.is_symlink())]
        files = [path for path in paths if path.is_file() and not path.is_symlink()]
        parent = self.rng.choice(directories)
        fresh = parent / f"n{self.count}"
        match self.rng.randrange(13):
            case 0 | 1 | 2:
                fresh.write_bytes(noise(self.rng, self.rng.choice([0, 10, 5000, 300_000])))
            case 3:
                fresh.mkdir()
            case 4:
                fresh.symlink_to("somewhere")
            case 5 if files:
                os.link(self.rng.choice(files), fresh)
            case 6 if paths:
                with suppress(OSError):  # into itself
                    os.rename(self.rng.choice(paths), fresh)
            case 7 if files:
                with open(self.rng.choice(files), "r+b") as file:
                    file.seek(self.rng.randrange(200_000))
                    file.write(noise(self.rng, 3000))
            case 8 if files:
                os.truncate(self.rng.choice(files), self.rng.randrange(300_000))
            case 9 if files:
                os.unlink(self.rng.choice(files))
            case 10 if paths:
                path = self.rng.choice(paths)
                if not path.is_symlink():
                    os.setxattr(path, "user.step", b"%d" % self.count)
                    os.chmod(path, self.rng.choice([0o700, 0o750, 0o777]))
            case 11 if len(directories) > 1:
                with suppress(OSError):  # not empty
                    os.rmdir(self.rng.choice(directories[1:]))
            case 12 if files:
                os.setxattr(self.rng.choice(files), "system.posix_acl_access", acl(7, 5, 0, users={self.count: 4}))
            case _:
                os.utime(parent, ns=(self.count, self.count))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_random_histories(mounted_repository: Repository, seed: int) -> None:
    """Each kept snapshot is compared with what the tree was, while snapshots come and go and the mount is renewed."""
    rng = random.Random(seed)
    root = mounted_repository.directory / "tree"
    root.mkdir()
    changer = Changer(root, rng)
    kept: dict[str, Manifest] = {}
    for number in range(5):
        for _ in range(25):
            changer.step()
        expected = manifest(root)
        kept[mounted_repository.snapshot().name] = expected
        if number % 3 == 2:
            name = rng.choice(sorted(kept))
            mounted_repository.command("snapshot", "delete", mounted_repository.directory, name)
            del kept[name]
        if number % 4 == 3:
            mounted_repository.remount()
            assert_same(expected, manifest(root))
        for name, then in kept.items():
            assert_same(then, manifest(mounted_repository.directory / ".snapshots" / name / "tree"))


# --- schedule -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_schedule_takes_snapshots_skips_when_idle_and_makes_up_for_lost_time(
    make_repository: Callable[..., Repository],
) -> None:
    repository = make_repository("--every", "2s")
    root = repository.directory
    # Out of the box only the newest of an hour stays, and retention runs after each.
    repository.command("policy", "set", root, "keep-last=100")

    def taken() -> int:
        return len(repository.snapshot_names())

    for n in range(3):
        (root / "file").write_text(f"{n}")
        until(lambda n=n: taken() == n + 1, f"snapshot {n + 1}")  # type: ignore[misc]
    newest = repository.directory / ".snapshots" / "latest" / "file"
    assert newest.read_text() == "2"

    def due() -> datetime:
        return datetime.fromisoformat(repository.status()["schedule"]["next"])

    idle_since = due()
    until(lambda: due() >= idle_since + timedelta(seconds=6), "three intervals")
    assert taken() == 3, "nothing changed"

    process = repository.pid()
    (root / "file").write_text("changed")
    os.kill(process, signal.SIGSTOP)
    asleep_until = time.monotonic() + 7
    until(lambda: time.monotonic() > asleep_until, "the machine's sleep")
    os.kill(process, signal.SIGCONT)
    until(lambda: taken() == 4, "the one run that makes up for the missed ones")
    assert newest.read_text() == "changed"
    awake_since = due()
    until(lambda: due() >= awake_since + timedelta(seconds=4), "two intervals")
    assert taken() == 4


def test_times_owners_and_modes_of_then(mounted_repository: Repository) -> None:
    root = mounted_repository.directory
    path = root / "file"
    path.write_bytes(b"content")
    os.utime(path, ns=(5, 10**18 + 1))
    os.chmod(path, 0o640)
    os.setxattr(path, "user.then", b"then")
    past = mounted_repository.snapshot() / "file"
    before = os.stat(past)
    os.chmod(path, 0o600)
    os.utime(path, ns=(7, 7))
    os.setxattr(path, "user.then", b"now")
    os.truncate(path, 3)
    after = os.stat(past)
    assert (after.st_mode, after.st_mtime_ns, after.st_size) == (before.st_mode, before.st_mtime_ns, before.st_size)
    assert stat.S_IMODE(after.st_mode) == 0o640
    assert after.st_mtime_ns == 10**18 + 1
    assert os.getxattr(past, "user.then") == b"then"
    assert past.read_bytes() == b"content"
