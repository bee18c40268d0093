"""The verbs. Each reads its arguments, calls the service and shows what came back."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

import click

from backupfs import __version__
from backupfs.cli.configuring import config, policy
from backupfs.cli.history import diff, find, versions
from backupfs.cli.keys import RECOVERY_LABEL, key, recovery_lines
from backupfs.cli.options import INTERRUPTED, Verbs, config_option
from backupfs.cli.options import json_flag as _json
from backupfs.cli.options import kdf_seconds as _kdf_seconds
from backupfs.cli.options import password_fd as _password_fd
from backupfs.cli.options import place_of as _place
from backupfs.cli.options import repository_path as _repository
from backupfs.cli.options import state_home as _home
from backupfs.cli.options import system_seams as _seams
from backupfs.cli.options import where as _where
from backupfs.cli.output import Output, public
from backupfs.cli.restoring import restore
from backupfs.cli.secrets import password
from backupfs.cli.snapshots import snapshot
from backupfs.cli.space import gc, prune, stats
from backupfs.cli.status import status
from backupfs.errors import BackupfsError, DamageError
from backupfs.format.layout import FORMAT_VERSION
from backupfs.rules.policy import SECOND_NS
from backupfs.rules.quantities import show_interval
from backupfs.service import keys, locate, mounting, offline
from backupfs.service.configuration import from_option, read_configuration
from backupfs.service.messages import CheckRequest, NotRunningError, Ready
from backupfs.stores.files import SystemFiles


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="backupfs")
def commands() -> None:
    """A directory that is its own backup: encrypted, deduplicated, with every past version under .snapshots."""


def main() -> int:
    """Run the command that the arguments name; its exit code."""
    try:
        code = commands.main(prog_name="backupfs", standalone_mode=False)
    except click.Abort:
        return INTERRUPTED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except BackupfsError as error:
        Output("--json" in sys.argv).error(error)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        return 1
    except (OSError, UnicodeError) as error:
        named = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
        Output("--json" in sys.argv).error(BackupfsError(named))
        return 1
    return code if isinstance(code, int) else 0


# --- repositories --------------------------------------------------------------------------------------------------


@commands.command()
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
@_kdf_seconds
@_password_fd
@_json
def init(repo: str | None, label: str, compression: bool, recovery: bool, kdf_seconds: float, password_fd: int | None, as_json: bool) -> None:
    """Create an encrypted repository in the directory REPO."""
    if recovery and label == RECOVERY_LABEL:
        raise click.UsageError(f"the recovery key is labelled {RECOVERY_LABEL!r}: choose another --label for the password")
    output = Output(as_json)
    root = _repository(repo)
    new = offline.NewRepository(root, label, compression, kdf_seconds)
    secret = password(os.environ, password_fd, what="new password", twice=True)
    made = offline.create(new, secret, _seams())
    told = {"repository": str(root), "repository_id": made, "label": label}
    output.say(f"created repository {made} in {root}")
    if recovery:
        _, words = keys.add_recovery(root, secret, RECOVERY_LABEL, kdf_seconds, _seams())
        output.json({**told, "recovery_key": words})
        output.say(*recovery_lines(words), "Without them or the password nobody can read the repository, and nothing can bring either back.")
        return
    output.json(told)
    output.say(
        "Keep the password safe: without it nobody can read the repository, and nothing can bring it back.",
        f"A recovery key is 24 words, to be written down, that open it too: `backupfs key add {root} --recovery` makes one.",
    )


@commands.command("rebuild-index")
@click.argument("repo", required=False)
@_password_fd
@_json
def rebuild_index(repo: str | None, password_fd: int | None, as_json: bool) -> None:
    """Make the local index of REPO anew from the repository and the password alone."""
    output = Output(as_json)
    place = locate.at_repository(_repository(repo), _home(), SystemFiles())
    secret = password(os.environ, password_fd)
    with output.progress("rebuilding") as show:
        report = offline.rebuild(place, secret, _seams(), show)
    output.json({"repository": str(place.repository), "report": report})
    output.say(f"the index of {place.repository} was made anew")


@commands.command()
@_where
@click.option("--read-data", is_flag=True, help="Also read, decrypt and compare every stored byte.")
@_password_fd
@_json
def check(where: str | None, read_data: bool, password_fd: int | None, as_json: bool) -> int:
    """Check a repository from the store, past every cache. Exit code 3: something was found."""
    output = Output(as_json)
    place = _place(where)
    findings: list[Any] = []
    with output.progress("checking") as show:
        try:
            with locate.daemon_of(place) as daemon:
                daemon.ask(CheckRequest(read_data), findings.append, show)
        except NotRunningError:
            offline.check(place, password(os.environ, password_fd), _seams(), read_data, findings.append, show)
    output.json({"repository": str(place.repository), "read_data": read_data, "findings": findings})
    for finding in public(findings):
        output.say(f"{finding['kind']}: {finding['object']}: {finding['detail']}", *(f"  {path}" for path in finding["paths"]))
    output.say(f"{place.repository}: {len(findings)} findings" if findings else f"{place.repository}: nothing found")
    return DamageError.exit_code if findings else 0


commands.add_command(key)


# --- mounts --------------------------------------------------------------------------------------------------------


@commands.command()
@click.argument("repo_and_dir", nargs=-1, metavar="[REPO] DIR")
@click.option("--every", metavar="15m|1h30m|1d|off", help="Snapshot this often if something changed: each hour, unless configured otherwise.")
@config_option
@click.option("--foreground", is_flag=True, help="Serve in this process until SIGINT, SIGTERM or an unmount.")
@click.option("--read-only/--read-write", default=None, help="Nothing can be changed through the mount.")
@click.option("--allow-other/--only-me", default=None, help="Other users may use the mount, within its permissions.")
@click.option("--snapdir", metavar="visible|hidden|disabled", help="Whether .snapshots is listed, or only leads somewhere, or is not there.")
@click.option("--at", "--snapshot", "at", metavar="TIME|NAME", help="Mount that one snapshot, read-only; also beside a mount that is there.")
@click.option("--accept-rollback", is_flag=True, help="Take the repository as it is, though this host has seen a newer state of it.")
@_password_fd
@_json
def mount(
    repo_and_dir: tuple[str, ...],
    every: str | None,
    config: str | None,
    foreground: bool,
    read_only: bool | None,
    allow_other: bool | None,
    snapdir: str | None,
    at: str | None,
    accept_rollback: bool,
    password_fd: int | None,
    as_json: bool,
) -> int:
    """Mount the repository REPO on DIR. Returns when the mount answers."""
    if not 1 <= len(repo_and_dir) <= 2:
        raise click.UsageError("give REPO and DIR, or DIR alone for the default repository")
    output = Output(as_json)
    *repo, directory = repo_and_dir
    seams = _seams()
    place = locate.at_repository(_repository(repo[0] if repo else None), _home(), seams.files)
    words = {
        "--every": ("schedules", every),
        "--read-only": ("read_only", None if read_only is None else str(read_only).lower()),
        "--allow-other": ("allow_other", None if allow_other is None else str(allow_other).lower()),
        "--snapdir": ("snapdir", snapdir),
    }
    options = [from_option(field, word, origin) for origin, (field, word) in words.items() if word is not None]
    job, state = mounting.plan(
        place,
        Path(os.path.abspath(directory)),
        configuration=read_configuration(options, config, os.environ),
        owner=(os.getuid(), os.getgid()),
        accept_rollback=accept_rollback,
        files=seams.files,
        at=at or "",
    )
    secret = password(os.environ, password_fd)

    def mounted(ready: Ready) -> None:
        output.json(
            {
                "repository": str(job.repository),
                "repository_id": job.repository_id,
                "directory": str(job.directory),
                "pid": ready.pid,
                "read_only": job.read_only,
                "every": show_interval(ready.every_s * SECOND_NS) if ready.every_s else None,
                "schedules": ready.schedules,
                "configuration": str(job.configuration.path) if job.configuration.path else None,
                "log": str(state.log),
                "at": job.at or None,
            }
        )
        output.say(f"{job.repository} is mounted on {job.directory}")

    if foreground:
        return mounting.serve(job, state, secret, seams, os.environ, mounted)
    mounted(mounting.start(job, state, secret, seams, os.environ))
    return 0


@commands.command()
@click.argument("directory", metavar="DIR")
@_json
def umount(directory: str, as_json: bool) -> None:
    """Unmount DIR. Returns when everything is durable, the process gone and the repository free."""
    output = Output(as_json)
    done = mounting.unmount(Path(os.path.abspath(directory)), _home())
    output.json({"directory": done.directory, "repository": done.repository, "was_dead": done.was_dead})
    if done.was_dead:
        output.say(f"{done.directory}: its process had died; the mount is cleared. What fsync acknowledged is safe.")
    else:
        output.say(f"{done.directory} is unmounted, everything is durable")


commands.add_command(status)
commands.add_command(stats)


# --- snapshots -----------------------------------------------------------------------------------------------------

commands.add_command(snapshot)
commands.add_command(prune)
commands.add_command(gc)
commands.add_command(versions)
commands.add_command(diff)
commands.add_command(find)
commands.add_command(restore)
commands.add_command(config)
commands.add_command(policy)


@commands.command()
@_json
def version(as_json: bool) -> None:
    """Show versions."""
    output = Output(as_json)
    facts = {"version": __version__, "format": FORMAT_VERSION, "python": platform.python_version()}
    output.json(facts)
    output.facts(facts)
