"""The verbs that make a repository, check it, and make its index anew."""

import os
from typing import Any

import click

from backupfs.cli.keys import RECOVERY_LABEL, recovery_lines
from backupfs.cli.machine import system_seams
from backupfs.cli.options import json_flag, kdf_seconds, password_fd, place_of, repository_path, state_home, where
from backupfs.cli.output import Output, public
from backupfs.cli.secrets import password
from backupfs.errors import DamageError
from backupfs.service import keys, locate, offline
from backupfs.service.messages import CheckRequest, NotRunningError
from backupfs.stores.files import SystemFiles


@click.command()
@click.argument("repo", required=False)
@click.option("--label", default="password", show_default=True, help="Name of the key slot that the password opens.")
@click.option(
    "--compression/--no-compression",
    default=True,
    show_default=True,
    envvar="BACKUPFS_COMPRESSION",
    help="Compress with zstd.",
)
@click.option("--recovery", is_flag=True, help="Also make a recovery key: 24 words to be written down, which open it like the password.")
@kdf_seconds
@password_fd
@json_flag
def init(repo: str | None, label: str, compression: bool, recovery: bool, kdf_seconds: float, password_fd: int | None, as_json: bool) -> None:
    """Create an encrypted repository in the directory REPO."""
    if recovery and label == RECOVERY_LABEL:
        raise click.UsageError(f"the recovery key is labelled {RECOVERY_LABEL!r}: choose another --label for the password")
    output = Output(as_json)
    root = repository_path(repo)
    new = offline.NewRepository(root, label, compression, kdf_seconds)
    secret = password(os.environ, password_fd, what="new password", twice=True)
    made = offline.create(new, secret, system_seams())
    told = {"repository": str(root), "repository_id": made, "label": label}
    output.say(f"created repository {made} in {root}")
    if recovery:
        _, words = keys.add_recovery(root, secret, RECOVERY_LABEL, kdf_seconds, system_seams())
        output.json({**told, "recovery_key": words})
        output.say(*recovery_lines(words), "Without them or the password nobody can read the repository, and nothing can bring either back.")
        return
    output.json(told)
    output.say(
        "Keep the password safe: without it nobody can read the repository, and nothing can bring it back.",
        f"A recovery key is 24 words, to be written down, that open it too: `backupfs key add {root} --recovery` makes one.",
    )


@click.command("rebuild-index")
@click.argument("repo", required=False)
@password_fd
@json_flag
def rebuild_index(repo: str | None, password_fd: int | None, as_json: bool) -> None:
    """Make the local index of REPO anew from the repository and the password alone."""
    output = Output(as_json)
    place = locate.at_repository(repository_path(repo), state_home(), SystemFiles())
    secret = password(os.environ, password_fd)
    with output.progress("rebuilding") as show:
        report = offline.rebuild(place, secret, system_seams(), show)
    output.json({"repository": str(place.repository), "report": report})
    output.say(f"the index of {place.repository} was made anew")


@click.command()
@where
@click.option("--read-data", is_flag=True, help="Also read, decrypt and compare every stored byte.")
@password_fd
@json_flag
def check(where: str | None, read_data: bool, password_fd: int | None, as_json: bool) -> int:
    """Check a repository from the store, past every cache. Exit code 3: something was found."""
    output = Output(as_json)
    place = place_of(where)
    findings: list[Any] = []
    try:
        with locate.daemon_of(place) as daemon, output.progress("checking") as show:
            daemon.ask(CheckRequest(read_data), findings.append, show)
    except NotRunningError:
        # Asked for before anything moves on the terminal, which would hide the question.
        secret = password(os.environ, password_fd)
        with output.progress("checking") as show:
            offline.check(place, secret, system_seams(), read_data, findings.append, show)
    output.json({"repository": str(place.repository), "read_data": read_data, "findings": findings})
    for finding in public(findings):
        output.say(f"{finding['kind']}: {finding['object']}: {finding['detail']}", *(f"  {path}" for path in finding["paths"]))
    output.say(f"{place.repository}: {len(findings)} findings" if findings else f"{place.repository}: nothing found")
    return DamageError.exit_code if findings else 0
