"""The program: which verbs there are, and what becomes of an error. A verb reads its arguments, calls the service and shows what came back."""

import os
import platform
import sys
from typing import Final

import click

from backupfs import __version__
from backupfs.cli.options import INTERRUPTED, Verbs, json_flag
from backupfs.cli.output import Output
from backupfs.errors import BackupfsError
from backupfs.format.layout import FORMAT_VERSION

VERBS: Final = {
    "init": "repositories",
    "rebuild-index": "repositories",
    "check": "repositories",
    "key": "keys",
    "mount": "mounting",
    "umount": "unmounting",
    "status": "status",
    "stats": "space",
    "snapshot": "snapshots",
    "prune": "space",
    "gc": "space",
    "versions": "history",
    "diff": "history",
    "find": "history",
    "restore": "restoring",
    "config": "configuring",
    "policy": "configuring",
    "version": "main",
}
"""In which module of this package each is. Only the one that is asked for is loaded: loading all of them takes longer than most of them do."""


@click.group(cls=Verbs, modules=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
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


@click.command()
@json_flag
def version(as_json: bool) -> None:
    """Show versions."""
    output = Output(as_json)
    facts = {"version": __version__, "format": FORMAT_VERSION, "python": platform.python_version()}
    output.json(facts)
    output.facts(facts)
