"""The main job: a tree copied in, snapshotted, changed, copied back; an independent manifest says that it is the same."""

import os
import random
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests import mounted
from tests.mounted import NOBODY, Repository, run
from tests.oracle.awkward import make_awkward, noise
from tests.oracle.manifest import assert_same, manifest
from tests.warm import ROOT

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("BACKUPFS_TEST_SEED", "0"))


def change_half(root: Path, rng: random.Random) -> None:
    """Of every two entries one is changed, deleted, renamed or replaced, in all the ways there are."""
    paths = sorted(os.path.join(here, name) for here, _, names in os.walk(os.fsencode(root)) for name in names)
    directories = sorted(here for here, _, _ in os.walk(os.fsencode(root)) if here.count(b"/deep/") == 0)
    for number, path in enumerate(rng.sample(paths, len(paths) // 2)):
        facts = os.lstat(path)
        regular = stat.S_ISREG(facts.st_mode)
        match number % 8:
            case 0 | 1:
                os.unlink(path)
            case 2:
                os.rename(path, os.path.join(rng.choice(directories), b"renamed-%d" % number))
            case 3 if regular:
                with open(path, "r+b") as file:
                    file.seek(rng.randrange(facts.st_size + 1))
                    file.write(noise(rng, 5000))
            case 4 if regular:
                os.truncate(path, rng.randrange(facts.st_size + 10_000))
            case 5 if regular:
                with open(path + b"~"[: 255 - len(os.path.basename(path))] or path, "ab") as file:
                    file.write(b"appended")
            case 6 if regular:
                os.setxattr(path, "user.changed", b"yes")
                os.chmod(path, 0o600)
            case 7:
                os.link(path, os.path.join(rng.choice(directories), b"linked-%d" % number), follow_symlinks=False)
            case _:
                os.utime(path, ns=(number, number), follow_symlinks=False)
    for directory in rng.sample(directories[1:], len(directories) // 8):
        if os.path.isdir(directory):
            shutil.rmtree(directory)


def check_is_clean(repository: Repository) -> None:
    """`check --read-data` finds nothing, and leaves the exit code 0."""
    repository.command("check", repository.directory if repository.is_mounted() else repository.path, "--read-data")


def test_an_awkward_tree_in_and_back(mounted_repository: Repository, base: Path) -> None:
    repository = mounted_repository
    source = base / "source"
    make_awkward(source, seed=SEED)
    expected = manifest(source)
    live = repository.directory / "tree"
    run(["cp", "-a", source, live])
    assert_same(expected, manifest(live))
    past = repository.snapshot() / "tree"
    assert_same(expected, manifest(past))

    change_half(live, random.Random(SEED))
    assert_same(expected, manifest(past))
    changed = manifest(live)
    later = repository.snapshot() / "tree"
    assert_same(changed, manifest(later))

    back = repository.base / "back"
    run(["cp", "-a", past, back])
    assert_same(expected, manifest(back))
    run(["cp", "-a", past, repository.directory / "restored"])
    assert_same(expected, manifest(repository.directory / "restored"))

    repository.remount()
    assert_same(expected, manifest(past))
    assert_same(changed, manifest(later))
    assert_same(changed, manifest(live))
    assert_same(expected, manifest(repository.directory / "restored"))
    check_is_clean(repository)

    repository.unmount()
    shutil.rmtree(repository.index)
    repository.mount()
    assert_same(expected, manifest(past))
    assert_same(changed, manifest(live))
    repository.unmount()
    check_is_clean(repository)
    repository.mount()


@pytest.mark.root
def test_an_awkward_tree_in_and_back_as_a_user(base: Path) -> None:
    """The process, the mount and the copies are another user's; root looks on only from the disk."""
    if not mounting_is_open_to(NOBODY):
        pytest.skip("other users cannot open /dev/fuse, or not reach the interpreter of the tests")
    for name in ("in", "out"):
        (base / name).mkdir()
        os.chown(base / name, NOBODY, NOBODY)
    source = base / "in" / "tree"
    with mounted.repository(base / "r", user=NOBODY) as repository:
        run([sys.executable, "-m", "tests.oracle.awkward", source, "--seed", str(SEED)], user=NOBODY, cwd=ROOT)
        expected = manifest(source)
        live = repository.directory / "tree"
        run(["cp", "-a", source, live], user=NOBODY)
        repository.command("snapshot", "create", repository.directory)
        repository.remount()
        run(["cp", "-a", live, base / "out" / "live"], user=NOBODY)
        run(["cp", "-a", repository.directory / ".snapshots" / "latest" / "tree", base / "out" / "past"], user=NOBODY)
        assert_same(expected, manifest(base / "out" / "live"))
        assert_same(expected, manifest(base / "out" / "past"))


def mounting_is_open_to(user: int) -> bool:
    words = [sys.executable, "-c", "import backupfs, tests.oracle.awkward; open('/dev/fuse', 'r+b', buffering=0)"]
    try:
        return run(words, user=user, expect=None, cwd=ROOT).returncode == 0
    except PermissionError:
        return False


def test_a_second_copy_and_an_insertion_in_front_cost_little(mounted_repository: Repository, base: Path) -> None:
    rng = random.Random(3)
    source = base / "source"
    source.mkdir()
    contents = [noise(rng, 8 << 20) for _ in range(3)]
    for n, content in enumerate(contents):
        (source / f"{n}").write_bytes(content)
    total = sum(map(len, contents))

    def stored() -> int:
        mounted_repository.unmount()
        places = [mounted_repository.path, mounted_repository.state_home]
        size = int(run(["du", "--apparent-size", "-sbc", *places]).stdout.splitlines()[-1].split()[0])
        mounted_repository.mount()
        return size

    run(["cp", "-a", source, mounted_repository.directory / "first"])
    first = stored()
    run(["cp", "-a", source, mounted_repository.directory / "second"])
    second = stored()
    assert second - first < total * 0.03
    (mounted_repository.directory / "third").mkdir()
    for n, content in enumerate(contents):
        (mounted_repository.directory / "third" / f"{n}").write_bytes(noise(rng, 1024) + content)
    # at 8 MiB a file the one new chunk at its front is a larger share than at 64 MiB
    assert stored() - second < 3 * (2 << 20)
