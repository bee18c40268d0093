"""The verb that mounts."""

import os
from pathlib import Path

import click

from backupfs.cli.machine import system_seams
from backupfs.cli.options import config_option, json_flag, password_fd, repository_path, state_home
from backupfs.cli.output import Output
from backupfs.cli.secrets import password
from backupfs.rules.policy import SECOND_NS
from backupfs.rules.quantities import show_interval
from backupfs.service import locate, mounting
from backupfs.service.configuration import from_option, read_configuration
from backupfs.service.messages import Ready


@click.command()
@click.argument("repo_and_dir", nargs=-1, metavar="[REPO] DIR")
@click.option("--every", metavar="15m|1h30m|1d|off", help="Snapshot this often if something changed: each hour, unless configured otherwise.")
@config_option
@click.option("--foreground", is_flag=True, help="Serve in this process until SIGINT, SIGTERM or an unmount.")
@click.option("--read-only/--read-write", default=None, help="Nothing can be changed through the mount.")
@click.option("--allow-other/--only-me", default=None, help="Other users may use the mount, within its permissions.")
@click.option("--suid/--no-suid", default=None, help="Set-user-id and set-group-id programs lend their rights. For root.")
@click.option("--dev/--no-dev", default=None, help="Device nodes open. For root.")
@click.option(
    "--keep-awake/--let-halt", default=None, help="While requests are dense, idle processors of a virtual machine are not halted. For root."
)
@click.option("--snapdir", metavar="visible|hidden|disabled", help="Whether .snapshots is listed, or only leads somewhere, or is not there.")
@click.option("--at", "--snapshot", "at", metavar="TIME|NAME", help="Mount that one snapshot, read-only; also beside a mount that is there.")
@click.option("--accept-rollback", is_flag=True, help="Take the repository as it is, though this host has seen a newer state of it.")
@password_fd
@json_flag
def mount(
    repo_and_dir: tuple[str, ...],
    every: str | None,
    config: str | None,
    foreground: bool,
    read_only: bool | None,
    allow_other: bool | None,
    suid: bool | None,
    dev: bool | None,
    keep_awake: bool | None,
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
    seams = system_seams()
    place = locate.at_repository(repository_path(repo[0] if repo else None), state_home(), seams.files)
    words = {
        "--every": ("schedules", every),
        "--read-only": ("read_only", _word(read_only)),
        "--allow-other": ("allow_other", _word(allow_other)),
        "--suid": ("suid", _word(suid)),
        "--dev": ("dev", _word(dev)),
        "--keep-awake": ("keep_awake", _word(keep_awake)),
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


def _word(switch: bool | None) -> str | None:
    return None if switch is None else str(switch).lower()
