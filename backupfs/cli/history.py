"""The verbs about the past: versions of a file, differences, where a name has stood.

Here is also how a verb finds the mount and the snapshot that are meant.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from backupfs.cli.options import json_flag, place_of, state_home
from backupfs.cli.output import Output, readable_size, rfc3339
from backupfs.clock import SystemClock
from backupfs.errors import RepositoryMissingError
from backupfs.rules.when import Known, reads_as_time, resolve
from backupfs.service import locate
from backupfs.service.locate import Inside, Place
from backupfs.service.messages import DiffRequest, FindRequest, SnapshotListRequest, VersionsRequest, shown_path
from backupfs.service.places import local_zone

NOW = "now"
_BACK_FROM_NOW = re.compile("-[0-9].*", re.DOTALL)


class TakingTimes(click.Command):
    """A verb that has times among its arguments: `-3h` is one, and no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        return super().parse_args(ctx, [f" {arg}" if _BACK_FROM_NOW.fullmatch(arg) else arg for arg in args])


@dataclass(frozen=True, slots=True)
class Scope:
    """A repository, and a path below which something is asked, without slashes around it."""

    place: Place
    below: bytes


def inside(path: str) -> Inside:
    """Where a path lies in a mount. RepositoryMissingError when it lies in none."""
    found = locate.at_path(os.fsencode(path), state_home())
    if found is None:
        raise RepositoryMissingError(f"{path!r} lies in no directory that a backupfs of yours is mounted on")
    return found


def scope_of(given: str | None) -> Scope:
    """Of what may be named as a path in a mount, or as a repository. Without a name it is the mount that the current directory lies in, or else the
    default repository.
    """
    found = locate.at_path(os.fsencode(given or "."), state_home())
    if found is None:
        return Scope(place_of(given), b"")
    return Scope(found.place, found.path if given else b"")


def snapshot_at(place: Place, text: str) -> Known:
    """The snapshot that a person means."""
    told: list[Any] = []
    with locate.daemon_of(place) as daemon:
        daemon.ask(SnapshotListRequest(), told.append)
    known = {entry["serial"]: Known(entry["serial"], entry["name"], entry["time_ns"]) for entry in told}
    return known[resolve(text, list(known.values()), SystemClock().now_ns(), local_zone(os.environ))]


# --- versions -------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("path")
@json_flag
def versions(path: str, as_json: bool) -> None:
    """Show every version of a file that a snapshot or the present has, the newest first; the file may be gone."""
    output = Output(as_json)
    where = inside(path)
    found: list[Any] = []
    with locate.daemon_of(where.place) as daemon:
        daemon.ask(VersionsRequest(where.path), found.append)
    output.json({"path": shown_path(where.path), "versions": found})
    elsewhere = any(version["path"] != shown_path(where.path) for version in found)
    output.table(
        ("MODIFIED", "SIZE", "FIRST", "LAST", "SNAPSHOTS", *(["PATH THEN"] if elsewhere else [])),
        [
            (
                rfc3339(version["mtime_ns"]),
                _size(version["type"], version["size"]),
                version["first"] or NOW,
                _last(version),
                str(version["snapshots"]),
                *([version["path"]] if elsewhere else []),
            )
            for version in found
        ],
    )


def _last(seen: Mapping[str, Any]) -> str:
    return NOW if seen["is_present"] else seen["last"]


def _size(type_word: str, size: int) -> str:
    return readable_size(size) if type_word == "file" else type_word


# --- differences ----------------------------------------------------------------------------------------------------


@click.command(cls=TakingTimes)
@click.argument("words", nargs=-1, required=True, metavar="[DIR|REPO|PATH] A [B]")
@click.option("--stat", "summed", is_flag=True, help="Only sum up.")
@json_flag
def diff(words: tuple[str, ...], summed: bool, as_json: bool) -> None:
    """Show what changed from A to B, or to now: + added, - removed, M content, R renamed, T type, P attributes."""
    output = Output(as_json)
    where, times = split_words(words)
    if not 1 <= len(times) <= 2:
        raise click.UsageError("give one point in time, or two")
    scope = scope_of(where)
    older = snapshot_at(scope.place, times[0])
    newer = snapshot_at(scope.place, times[1]) if len(times) == 2 else None
    changes: list[Any] = []
    with locate.daemon_of(scope.place) as daemon:
        told = daemon.ask(DiffRequest(older.serial, newer.serial if newer else 0, scope.below, each=not summed), changes.append)
    ends = {"from": older.name, "to": newer.name if newer else None, "below": shown_path(scope.below)}
    output.json({**ends, **told, **({} if summed else {"changes": changes})})
    shown = [(change["kind"], _sizes(change), _paths(change)) for change in changes]
    width = max((len(sizes) for _, sizes, _ in shown), default=0)
    output.say(*(f"{kind} {sizes:>{width}}  {path}" for kind, sizes, path in shown))
    output.say(*_summary(told) if summed or not changes else ())


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What comes first says where, if there are three words, or it has a slash, or it is there and does not read as a time."""
    first, *others = words
    if len(words) > 2 or "/" in first or (os.path.lexists(first) and not reads_as_time(first)):
        return first, others
    return None, list(words)


def _sizes(change: Mapping[str, Any]) -> str:
    if change["type"] != "file":
        return str(change["type"])
    sizes = [readable_size(size) for size in (change["old_size"], change["size"]) if size is not None]
    return " -> ".join(dict.fromkeys(sizes))


def _paths(change: Mapping[str, Any]) -> str:
    return f"{change['old_path']} -> {change['path']}" if change["old_path"] is not None else change["path"]


_KINDS = {"+": "added", "-": "removed", "M": "changed", "R": "renamed", "T": "of another type", "P": "with other attributes"}


def _summary(told: Mapping[str, Any]) -> list[str]:
    if not told["counts"]:
        return ["nothing has changed"]
    counts = ", ".join(f"{count} {_KINDS[kind]}" for kind, count in told["counts"].items())
    return [counts, f"{readable_size(told['more_bytes'])} more, {readable_size(told['less_bytes'])} less"]


# --- names ----------------------------------------------------------------------------------------------------------


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="[DIR] PATTERN")
@json_flag
def find(words: tuple[str, ...], as_json: bool) -> None:
    """Show where a name that fits PATTERN (with * ? [] as in a shell; with a slash it is for whole paths) has ever stood."""
    output = Output(as_json)
    if len(words) > 2:
        raise click.UsageError("give one pattern, in quotes, and before it at most one directory")
    scope = scope_of(words[0] if len(words) == 2 else None)
    found: list[Any] = []
    with locate.daemon_of(scope.place) as daemon:
        daemon.ask(FindRequest(os.fsencode(words[-1]), scope.below), found.append)
    found.sort(key=lambda entry: entry["path"])
    output.json({"pattern": shown_path(os.fsencode(words[-1])), "below": shown_path(scope.below), "found": found})
    output.table(
        ("TYPE", "FIRST", "LAST", "SNAPSHOTS", "PATH"),
        [(entry["type"], entry["first"] or NOW, _last(entry), str(entry["snapshots"]), entry["path"]) for entry in found],
    )
