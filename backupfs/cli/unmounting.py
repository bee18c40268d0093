"""The verb that unmounts."""

import os
from pathlib import Path

import click

from backupfs.cli.options import json_flag, state_home
from backupfs.cli.output import Output
from backupfs.service.unmounting import unmount


@click.command()
@click.argument("directory", metavar="DIR")
@json_flag
def umount(directory: str, as_json: bool) -> None:
    """Unmount DIR. Returns when everything is durable, the process gone and the repository free."""
    output = Output(as_json)
    done = unmount(Path(os.path.abspath(directory)), state_home())
    output.json({"directory": done.directory, "repository": done.repository, "was_dead": done.was_dead})
    if done.was_dead:
        output.say(f"{done.directory}: its process had died; the mount is cleared. What fsync acknowledged is safe.")
    else:
        output.say(f"{done.directory} is unmounted, everything is durable")
