"""What several verbs are given: options, and how a repository or a mounted directory is named."""

import os
from pathlib import Path
from typing import Final

import click

from backupfs.service import locate, places
from backupfs.service.locate import Place
from backupfs.stores.files import SystemFiles

json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
config_option: Final = click.option("--config", metavar="NAME|PATH", help="Configuration file: default.toml unless told otherwise.")
where_argument: Final = click.argument("where", required=False, metavar="[DIR|REPO]")


def state_home() -> Path:
    """Where local state lies."""
    return places.state_home(os.environ, os.getuid())


def repository(given: str | None) -> Path:
    """The repository that is named, or the default one."""
    return Path(os.path.abspath(given)) if given else places.default_repository(os.environ)


def place_of(given: str | None) -> Place:
    """Of what may be named as a directory or a repository."""
    return locate.at_either(repository(given), state_home(), SystemFiles())
