"""What a repository is: its configuration, read before any key is known. It stands twice, like each key slot."""

from pathlib import Path
from typing import Final

from backupfs.errors import DamageError, MissingObjectError, RepositoryMissingError
from backupfs.format import config as config_format
from backupfs.format.config import Config
from backupfs.stores.files import Files
from backupfs.stores.local import LocalStore
from backupfs.stores.port import Store

CONFIG: Final = "config"
COPY: Final = ".copy"
DATA_FOLDERS: Final = ("packs", "journal", "open")
"""Where something lies that is of no use without a key."""


def read_configs(root: Path, files: Files) -> list[tuple[Config, bytes]]:
    """The configuration and its copy, each with its MAC, as far as they parse. RepositoryMissingError when there is neither, DamageError when
    none parses.
    """
    store = LocalStore(root, files)
    found: list[tuple[Config, bytes]] = []
    damage: DamageError | None = None
    for name in (CONFIG, CONFIG + COPY):
        try:
            found.append(config_format.decode(store.get(name, 0, config_format.SIZE_BYTES + 1)))
        except MissingObjectError:
            continue
        except DamageError as error:
            damage = error
    if not found and damage is not None:
        raise damage
    if not found and has_data(root, files):
        raise RepositoryMissingError(
            f"the repository in {root} has no `config`. If that was lost, `backupfs key import {root} FILE` brings it back from an export;"
            " if making the repository was cut short, remove the directory and make it again",
            path=str(root),
        )
    if not found:
        raise RepositoryMissingError(f"there is no backupfs repository in {root}; make one with `backupfs init {root}`", path=str(root))
    return found


def repository_id(root: Path, files: Files) -> bytes:
    """The repository's id, read without a password. RepositoryMissingError when there is none. Blocks."""
    return read_configs(root, files)[0][0].repository_id


def has_data(root: Path, files: Files) -> bool:
    """Whether there is anything here but configuration and keys."""
    return any(files.exists(root / folder) for folder in DATA_FOLDERS)


def put_twice(store: Store, name: str, data: bytes) -> None:
    """Put an object and its copy, each durably."""
    store.put(name, data)
    store.put(name + COPY, data)
