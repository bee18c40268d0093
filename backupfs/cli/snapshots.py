"""The verbs of `backupfs snapshot`, on a mounted repository."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from backupfs.cli.options import Verbs, json_flag, place_of, where
from backupfs.cli.output import Output, Show, readable_size, rfc3339
from backupfs.cli.times import until
from backupfs.rules.quantities import parse_duration
from backupfs.service import locate
from backupfs.service.messages import (
    Request,
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    SnapshotHoldRequest,
    SnapshotListRequest,
    SnapshotPinRequest,
    SnapshotShowRequest,
    SnapshotUndeleteRequest,
)

_names = click.argument("where_and_names", nargs=-1, required=True, metavar="[DIR|REPO] NAME...")
_STATES: Final = {"kept": "it is kept", "deleted": "it is deleted", "purging": "it is being purged"}


@click.group(cls=Verbs)
def snapshot() -> None:
    """Snapshots of a mounted repository. NAME is a name, a number, latest, or latest~2 for the second before it."""


@snapshot.command("create")
@where
@click.option("-m", "--message", default="", help="What to remember about it.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="A tag; may be given several times.")
@click.option("--name", default="", metavar="NAME", help="Its name instead of its time. Never given to another one.")
@json_flag
def create(where: str | None, message: str, tags: tuple[str, ...], name: str, as_json: bool) -> None:
    """Take a snapshot. Returns when it is durable."""
    output = Output(as_json)
    made = _ask(where, SnapshotCreateRequest(message, list(tags), name))
    output.json(made)
    output.say(f"snapshot {made['name']}")


@snapshot.command("list")
@where
@click.option("--deleted", is_flag=True, help="Those that are deleted and can still be brought back, or are being purged.")
@click.option("--sizes/--no-sizes", default=True, help="What deleting each alone would free. Takes a while where much has changed.")
@json_flag
def list_(where: str | None, deleted: bool, sizes: bool, as_json: bool) -> None:
    """List the snapshots, oldest first."""
    output = Output(as_json)
    found: list[Any] = []
    with output.progress("reckoning snapshots", in_bytes=False) as show, locate.daemon_of(place_of(where)) as daemon:
        daemon.ask(SnapshotListRequest(deleted, sizes), found.append, show)
    output.json({"snapshots": found})
    columns: dict[str, Callable[[Any], str]] = {
        "NAME": lambda s: s["name"],
        "TIME": lambda s: rfc3339(s["time_ns"]),
        "WHY": lambda s: s["why"],
        "CHANGES": _changes,
        **({"FREES": lambda s: readable_size(s["frees_bytes"])} if sizes else {}),
        **({"UNTIL": _undelete_until} if deleted else {"KEPT BY": _kept_by}),
        "TAGS": lambda s: ",".join(s["tags"]),
        "MESSAGE": lambda s: s["message"],
    }
    output.table(list(columns), [[column(s) for column in columns.values()] for s in found])


@snapshot.command("show")
@click.argument("where_and_name", nargs=-1, required=True, metavar="[DIR|REPO] NAME")
@json_flag
def show(where_and_name: tuple[str, ...], as_json: bool) -> None:
    """Show everything about one snapshot: also what deleting it alone would free, and what retention would do with it now."""
    where, names = _split(where_and_name)
    if len(names) != 1:
        raise click.UsageError("name one snapshot")
    output = Output(as_json)
    told = _ask(where, SnapshotShowRequest(names[0]))
    output.json(told)
    s, fate = told["snapshot"], told["fate"]
    output.facts(
        {
            "name": s["name"],
            "number": s["serial"],
            "taken": rfc3339(s["time_ns"]),
            "why": s["why"],
            "message": s["message"],
            "tags": ", ".join(s["tags"]),
            "changes": f"{_changes(s)} (made, altered, removed; since the snapshot before)",
            "state": _STATES[s["state"]],
            "kept by": _kept_by(s),
            **({"can be brought back until": _undelete_until(s)} if s["state"] != "kept" else {}),
            "deleting it alone frees": readable_size(s["frees_bytes"]),
            **({} if fate is None else {"retention now": f"{'keeps' if fate['keep'] else 'deletes'} it: {', '.join(fate['reasons'])}"}),
        }
    )


@snapshot.command("delete")
@_names
@click.option("--dry-run", is_flag=True, help="Only say what deleting them together would free.")
@json_flag
def delete(where_and_names: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Delete snapshots. They can be brought back for a while."""
    output = Output(as_json)
    with output.progress("looking", in_bytes=False) as progress:
        told = _change(where_and_names, lambda names: SnapshotDeleteRequest(names=names, dry_run=dry_run), progress)
    until_ns = told["undelete_until_ns"]
    output.json({"deleted": told["names"], "frees_bytes": told["frees_bytes"], "undelete_until_ns": until_ns, "dry_run": dry_run})
    output.say(*(f"{'would delete' if dry_run else 'deleted'} snapshot {name}" for name in told["names"]))
    freed = readable_size(told["frees_bytes"])
    if dry_run:
        output.say(f"that would free {freed}; nothing was deleted")
    else:
        output.say(f"that frees {freed}, not before {rfc3339(until_ns)}: until then `backupfs snapshot undelete` brings them back")


@snapshot.command("undelete")
@_names
@json_flag
def undelete(where_and_names: tuple[str, ...], as_json: bool) -> None:
    """Bring deleted snapshots back."""
    output = Output(as_json)
    told = _change(where_and_names, SnapshotUndeleteRequest)
    output.json({"undeleted": told["names"], "fates": told["fates"]})
    output.say(*(f"snapshot {name} is back" for name in told["names"]))
    doomed = [fate for fate in told["fates"] if not fate["keep"]]
    for fate in doomed:
        output.say(f"retention will delete {fate['name']} again ({', '.join(fate['reasons'])}); `backupfs snapshot pin` keeps it")


@snapshot.command("pin")
@_names
@json_flag
def pin(where_and_names: tuple[str, ...], as_json: bool) -> None:
    """Keep snapshots until they are unpinned, whatever the policy says."""
    _pin(where_and_names, True, as_json)


@snapshot.command("unpin")
@_names
@json_flag
def unpin(where_and_names: tuple[str, ...], as_json: bool) -> None:
    """Leave snapshots to the policy again."""
    _pin(where_and_names, False, as_json)


@snapshot.command("hold")
@_names
@click.option("--until", "end", metavar="TIME", help="Until this time: 2027-01-31, 2027-01-31T18:00, 18:00.")
@click.option("--for", "length", metavar="30d", help="For so long from now on.")
@click.option("--release", is_flag=True, help="No longer.")
@json_flag
def hold(where_and_names: tuple[str, ...], end: str | None, length: str | None, release: bool, as_json: bool) -> None:
    """Keep snapshots until a time, whatever the policy says."""
    if sum((end is not None, length is not None, release)) != 1:
        raise click.UsageError("give one of --until, --for and --release")
    output = Output(as_json)
    until_ns = 0
    if end is not None:
        until_ns = until(end)
    elif length is not None:
        until_ns = time.time_ns() + parse_duration(length)
    told = _change(where_and_names, lambda names: SnapshotHoldRequest(names, until_ns))
    output.json({"held": told["names"], "hold_until_ns": until_ns or None})
    for name in told["names"]:
        output.say(f"snapshot {name} is held no longer" if release else f"snapshot {name} is held until {rfc3339(until_ns)}")


def _pin(where_and_names: Sequence[str], pinned: bool, as_json: bool) -> None:
    output = Output(as_json)
    told = _change(where_and_names, lambda names: SnapshotPinRequest(names, pinned))
    output.json({"pinned" if pinned else "unpinned": told["names"]})
    output.say(*(f"snapshot {name} is {'pinned' if pinned else 'not pinned any more'}" for name in told["names"]))


def _ask(where: str | None, request: Request, progress: Show | None = None) -> Any:
    with locate.daemon_of(place_of(where)) as daemon:
        return daemon.ask(request, None, progress)


def _change(where_and_names: Sequence[str], request: Callable[[list[str]], Request], progress: Show | None = None) -> Any:
    where, names = _split(where_and_names)
    if not names:
        raise click.UsageError("name at least one snapshot")
    return _ask(where, request(names), progress)


def _split(given: Sequence[str]) -> tuple[str | None, list[str]]:
    """What comes first and is a directory says where, as for the other verbs."""
    first, *others = given
    return (first, others) if os.path.isdir(first) else (None, list(given))


def _changes(s: dict[str, Any]) -> str:
    """`+1 ~2 -3`: made, altered, removed; nothing of it while that has not been counted."""
    return "-" if s["made"] is None else f"+{s['made']} ~{s['altered']} -{s['removed']}"


def _kept_by(s: dict[str, Any]) -> str:
    held = [] if s["hold_until_ns"] is None or s["hold_until_ns"] <= time.time_ns() else [f"hold until {rfc3339(s['hold_until_ns'])}"]
    return ", ".join([*(["pin"] if s["pinned"] else []), *held])


def _undelete_until(s: dict[str, Any]) -> str:
    if s["undelete_until_ns"] is None:
        return "being purged"
    return rfc3339(s["undelete_until_ns"]) if s["undelete_until_ns"] > time.time_ns() else "any moment"
