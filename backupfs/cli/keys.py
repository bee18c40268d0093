"""The verbs of `backupfs key`. They work on a repository that is mounted as on one that is not."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from backupfs.cli.machine import system_seams
from backupfs.cli.options import Verbs, json_flag, kdf_seconds, new_password_fd, password_fd, place_of, repository_path, where
from backupfs.cli.output import Output, rfc3339
from backupfs.cli.secrets import password
from backupfs.engine.keyring import SHORT_ID_DIGITS
from backupfs.format.keyslot import KdfParameters
from backupfs.service import keys

RECOVERY_LABEL: Final = "recovery"
_WORDS_A_LINE: Final = 6


@click.group(cls=Verbs)
def key() -> None:
    """Passwords and recovery keys."""


@key.command("add")
@where
@click.option("--label", metavar="LABEL", help=f"Name of the key, no other's. A recovery key's is {RECOVERY_LABEL!r} unless told otherwise.")
@click.option("--recovery", is_flag=True, help="Make a recovery key: 24 words to be written down, which open the repository like a password.")
@new_password_fd
@kdf_seconds
@password_fd
@json_flag
def add(
    where: str | None, label: str | None, recovery: bool, new_password_fd: int | None, kdf_seconds: float, password_fd: int | None, as_json: bool
) -> None:
    """Add a password or a recovery key. A new password comes from --new-password-fd, BACKUPFS_NEW_PASSWORD and its like,
    or the terminal.
    """
    if recovery and new_password_fd is not None:
        raise click.UsageError("a recovery key is drawn, not given: leave out --new-password-fd")
    if not recovery and label is None:
        raise click.UsageError("name the new key with --label")
    output = Output(as_json)
    root = place_of(where).repository
    present = password(os.environ, password_fd)
    if recovery:
        slot, words = keys.add_recovery(root, present, RECOVERY_LABEL if label is None else label, kdf_seconds, system_seams())
        output.json({"repository": str(root), "key": slot, "recovery_key": words})
        output.say(f"{root} has a new recovery key, {slot.name}.", *recovery_lines(words))
        return
    slot = keys.add(root, present, lambda: new_password(new_password_fd), label or "", kdf_seconds, system_seams())
    output.json({"repository": str(root), "key": slot})
    output.say(f"{root} has a new password, {slot.name}")


@key.command("list")
@where
@password_fd
@json_flag
def list_(where: str | None, password_fd: int | None, as_json: bool) -> None:
    """List the keys, the oldest first, and what is wrong with any."""
    output = Output(as_json)
    root = place_of(where).repository
    slots = keys.show(root, password(os.environ, password_fd), system_seams())
    output.json({"repository": str(root), "keys": slots})
    output.table(
        ("ID", "LABEL", "KIND", "CREATED", "ARGON2ID", "GIVEN NOW"),
        [
            (
                slot.id[:SHORT_ID_DIGITS],
                slot.label or "-",
                slot.kind.value if slot.kind else "-",
                "-" if slot.created_ns is None else rfc3339(slot.created_ns),
                _costs(slot.kdf),
                "yes" if slot.opened else "",
            )
            for slot in slots
        ],
    )
    output.say(*(f"{slot.id[:SHORT_ID_DIGITS]}: {slot.trouble}" for slot in slots if slot.trouble))


@key.command("remove")
@click.argument("repo_and_key", nargs=-1, required=True, metavar="[DIR|REPO] LABEL|ID")
@click.option("--force", is_flag=True, help="Remove even the key that is given as the password. The last one stays all the same.")
@password_fd
@json_flag
def remove(repo_and_key: tuple[str, ...], force: bool, password_fd: int | None, as_json: bool) -> None:
    """Remove a key by its label or its id (8 digits of it at least). What it opened it opens no more."""
    where, reference = _two(repo_and_key, "LABEL or ID")
    output = Output(as_json)
    root = place_of(where).repository
    slot = keys.remove(root, password(os.environ, password_fd), reference, force, system_seams())
    output.json({"repository": str(root), "removed": slot})
    output.say(f"{slot.name} opens {root} no more")


@key.command("passwd")
@where
@new_password_fd
@kdf_seconds
@password_fd
@json_flag
def passwd(where: str | None, new_password_fd: int | None, kdf_seconds: float, password_fd: int | None, as_json: bool) -> None:
    """Change the password. The new one comes from --new-password-fd, BACKUPFS_NEW_PASSWORD and its like, or the
    terminal.
    """
    output = Output(as_json)
    root = place_of(where).repository
    slot = keys.change(root, password(os.environ, password_fd), lambda: new_password(new_password_fd), kdf_seconds, system_seams())
    output.json({"repository": str(root), "key": slot})
    output.say(f"the password of {root} is changed")


@key.command("export")
@where
@click.option("--output", "path", type=click.Path(path_type=Path), metavar="FILE", help="Write to this new file instead of printing.")
@password_fd
@json_flag
def export(where: str | None, path: Path | None, password_fd: int | None, as_json: bool) -> None:
    """Print the keys, still sealed, to be kept elsewhere. With them and a password the repository opens again when its
    `config` or `keys` are lost.
    """
    output = Output(as_json)
    place = place_of(where)
    seams = system_seams()
    text = keys.export(place.repository, password(os.environ, password_fd), seams)
    if path is None:
        output.json({"repository": str(place.repository), "export": text})
        output.say(*text.splitlines())
        return
    record = place.state.record()
    keys.write_export(text, path, [place.repository, *([Path(record.directory)] if record else [])], seams)
    output.json({"repository": str(place.repository), "file": str(path)})
    output.say(f"the keys of {place.repository} are in {path}: keep it on another disk, or print it")


@key.command("import")
@click.argument("repo_and_file", nargs=-1, required=True, metavar="[REPO] FILE")
@password_fd
@json_flag
def import_(repo_and_file: tuple[str, ...], password_fd: int | None, as_json: bool) -> None:
    """Bring back lost keys from an export. All of them when none is left in REPO, otherwise the one that the password
    opens; and the configuration.
    """
    repo, file = _two(repo_and_file, "FILE")
    output = Output(as_json)
    root = Path(os.path.realpath(repository_path(repo)))
    text = keys.read_export(Path(file))
    done = keys.import_(root, text, password(os.environ, password_fd), system_seams())
    output.json({"repository": str(root), "imported": done})
    if done.config:
        output.say("the configuration is back")
    output.say(*(f"the key {slot.name} is back" for slot in done.slots))
    if not done.config and not done.slots:
        output.say("nothing of this export was missing")


def new_password(fd: int | None) -> bytes:
    """A password that is made now."""
    return password(os.environ, fd, variable="BACKUPFS_NEW_PASSWORD", what="new password", twice=True)


def recovery_lines(words: str) -> list[str]:
    """What to tell who is given a recovery key."""
    each = words.split()
    rows = [each[at : at + _WORDS_A_LINE] for at in range(0, len(each), _WORDS_A_LINE)]
    return [
        "The recovery key, shown this once and kept nowhere. Write it down, and keep it where neither this machine nor the repository is:",
        "",
        *("    " + " ".join(row) for row in rows),
        "",
        "These words open the repository wherever its password is asked for.",
    ]


def _costs(kdf: KdfParameters | None) -> str:
    return "-" if kdf is None else f"{kdf.time} x {kdf.memory_kib // 1024} MiB, {kdf.lanes} lanes"


def _two(given: Sequence[str], what: str) -> tuple[str | None, str]:
    if len(given) > 2:
        raise click.UsageError(f"give REPO and {what}, or {what} alone for the default repository")
    *repo, last = given
    return (repo[0] if repo else None), last
