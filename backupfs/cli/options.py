"""Options that several verbs have, and how a verb finds what they name."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from backupfs.service import locate, places
from backupfs.service.locate import Place
from backupfs.stores.files import SystemFiles

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C."""
json_flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
config_option = click.option("--config", metavar="NAME|PATH", help="Configuration file: default.toml unless told otherwise.")
password_fd = click.option("--password-fd", type=click.IntRange(min=0), metavar="N", help="Read the password from descriptor N.")
new_password_fd = click.option("--new-password-fd", type=click.IntRange(min=0), metavar="N", help="Read the new password from descriptor N.")
kdf_seconds = click.option(
    "--kdf-seconds",
    type=click.FloatRange(min=0, max=60),
    default=0.5,
    show_default=True,
    envvar="BACKUPFS_KDF_SECONDS",
    help="How long trying one password shall take; never less work than the safe minimum.",
)
where = click.argument("where", required=False, metavar="[DIR|REPO]")


class Verbs(click.Group):
    """Verbs in the order in which they are written: those that it is told of, and those of `modules`, which are loaded when they are needed."""

    def __init__(self, *args: Any, modules: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        """`modules` says in which module of this package a verb is, as a function of the same name with `_` for `-`."""
        super().__init__(*args, **kwargs)
        self._modules = modules or {}

    def list_commands(self, _: click.Context) -> list[str]:
        """See `click.Group`."""
        return [*self._modules, *self.commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See `click.Group`."""
        if cmd_name not in self._modules:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"backupfs.cli.{self._modules[cmd_name]}")
        verb: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return verb


def state_home() -> Path:
    """Where local state lies."""
    return places.state_home(os.environ, os.getuid())


def repository_path(given: str | None) -> Path:
    """Where the repository lies, named or not."""
    return Path(os.path.abspath(given)) if given else places.default_repository(os.environ)


def place_of(given: str | None) -> Place:
    """Of what may be named as a directory or a repository."""
    return locate.at_either(repository_path(given), state_home(), SystemFiles())
