"""Operations on names, each kind over all files, one after the other."""

import os
from collections.abc import Callable
from typing import Final

from scripts.benchmark.setting import BLOCK, Figures, Setting, drop_caches, rate
from scripts.benchmark.systems import MountedSystem

FILES: Final = 8000
DIRECTORIES: Final = 10


def operations(system: MountedSystem, setting: Setting) -> Figures:
    """How many a second."""
    files = setting.count(FILES, 20)
    with system.running():
        directories = [f"{system.tree}/{n}" for n in range(DIRECTORIES)]
        for directory in directories:
            os.mkdir(directory)
        paths = [f"{directories[n % DIRECTORIES]}/file-{n}" for n in range(files)]
        kinds: tuple[tuple[str, Callable[[list[str]], None], list[str]], ...] = (
            ("create", _create, paths),
            ("stat-cold", _stat, paths),
            ("scandir", _scan, directories),
            ("rename", _rename, paths),
            ("unlink", _unlink, [path + ".renamed" for path in paths]),
            ("create-4k", _write, paths),
        )
        figures = {}
        for key, action, subjects in kinds:
            drop_caches()
            os.listdir(system.tree)  # the first request after a pause is another thing
            figures[key] = rate(files, system.measure(lambda action=action, subjects=subjects: action(subjects)))  # type: ignore[misc]
        system.stop()
        return figures


def _create(paths: list[str]) -> None:
    for path in paths:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _write(paths: list[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(descriptor, BLOCK)
        os.close(descriptor)


def _stat(paths: list[str]) -> None:
    for path in paths:
        os.stat(path)


def _scan(directories: list[str]) -> None:
    for directory in directories:
        with os.scandir(directory) as entries:
            for _ in entries:
                pass


def _rename(paths: list[str]) -> None:
    for path in paths:
        os.rename(path, path + ".renamed")


def _unlink(paths: list[str]) -> None:
    for path in paths:
        os.unlink(path)
