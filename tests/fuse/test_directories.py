"""Listing directories, large ones and while they change: what stays is seen exactly once."""

import os
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.mounted import Repository, run


def fill(place: Path, count: int) -> list[str]:
    names = [f"{n:06d}-" + "x" * 90 for n in range(count)]
    for name in names:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY, 0o644))
    return names


@pytest.mark.parametrize("seed", range(2))
def test_entries_that_stay_are_seen_once_while_others_go_and_come(place: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = fill(place, 1500)
    rng.shuffle(names)
    removed, renamed, kept = names[:500], names[500:650], names[650:]
    steps: list[Callable[[], object]] = [partial(os.unlink, place / name) for name in removed]
    steps += [partial(os.rename, place / name, place / f"renamed-{name}") for name in renamed]
    steps += [partial((place / f"new-{n}").touch) for n in range(250)]
    rng.shuffle(steps)
    seen: Counter[str] = Counter()
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            seen[entry.name] += 1
            if number % 2 == 0 and steps:
                steps.pop()()
    for step in steps:
        step()
    assert {name: seen[name] for name in kept} == dict.fromkeys(kept, 1)
    assert max(seen.values()) == 1
    assert set(seen) <= set(names) | {f"renamed-{name}" for name in renamed} | {f"new-{n}" for n in range(250)}


def test_a_directory_lists_itself_and_its_parent(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    for directory in (place, place / "a", place / "a" / "b"):
        lines = [line.split() for line in run(["ls", "-1aif", directory]).stdout.splitlines()]
        listed = {name: number for number, name in lines}
        assert listed["."] == str(directory.stat().st_ino)
        assert listed[".."] == str(directory.parent.stat().st_ino)


def test_removing_what_is_listed_while_it_is_listed(place: Path) -> None:
    fill(place, 1200)
    with os.scandir(place) as entries:
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(place) == []


def test_a_listing_can_be_begun_again(place: Path) -> None:
    names = set(fill(place, 500))
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert set(os.listdir(descriptor)) == names
        (place / "another").touch()
        assert set(os.listdir(descriptor)) == names | {"another"}
    finally:
        os.close(descriptor)


def test_types_and_inode_numbers_in_listings(place: Path) -> None:
    (place / "file").touch()
    (place / "directory").mkdir()
    os.symlink("file", place / "symlink")
    os.mkfifo(place / "fifo")
    with os.scandir(place) as entries:
        kinds = {entry.name: (entry.is_file(follow_symlinks=False), entry.is_dir(), entry.is_symlink()) for entry in entries}
    assert kinds == {
        "file": (True, False, False),
        "directory": (False, True, False),
        "symlink": (False, False, True),
        "fifo": (False, False, False),
    }


@pytest.mark.slow
def test_thousands_of_entries_after_a_remount(mounted_repository: Repository) -> None:
    place = mounted_repository.directory / "many"
    place.mkdir()
    names = [f"{n}" for n in range(3000)]
    for name in names:
        os.close(os.open(place / name, os.O_CREAT | os.O_WRONLY, 0o644))
    assert sorted(os.listdir(place)) == sorted(names)
    mounted_repository.remount()
    assert sorted(os.listdir(place)) == sorted(names)
    for name in names[::2]:
        os.unlink(place / name)
    assert sorted(os.listdir(place)) == sorted(names[1::2])
    for name in names[1::2]:
        os.unlink(place / name)
    place.rmdir()
    assert "many" not in os.listdir(mounted_repository.directory)
