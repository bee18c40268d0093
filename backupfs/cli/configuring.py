"""The verbs about configuration: what is in force and why, and the policy that a repository keeps."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from backupfs.cli.forecasting import OPTION, SNAPSHOTS, UNKNOWN, as_plain, overrun_in_words, picture, space_in_words
from backupfs.cli.options import config_option, json_flag, place_of, where
from backupfs.cli.output import Output
from backupfs.errors import RepositoryMissingError, UsageError
from backupfs.rules.forecast import simulate
from backupfs.rules.ledger import Disk, Opening, daily_bytes
from backupfs.rules.policy import DAY_NS
from backupfs.rules.quantities import parse_size
from backupfs.rules.retention import Candidate
from backupfs.rules.schedule import Taken, initial, trigger
from backupfs.service import locate
from backupfs.service.configuration import POLICY, read_configuration, read_file
from backupfs.service.messages import ConfigurationRequest, NotRunningError, OutlookRequest, PolicyRequest, PolicySetRequest, SnapshotListRequest
from backupfs.service.settings import DEFAULTS, Layer, Settings, effective, overlaid
from backupfs.service.vocabulary import KEYS, document, from_document, from_json, parse, policy_of, to_json, to_toml
from backupfs.service.words import changed


@click.group()
def config() -> None:
    """Configuration."""


@config.command("show")
@where
@click.option("--effective", "with_defaults", is_flag=True, help="Also what nobody has set, with its default.")
@config_option
@json_flag
def config_show(where: str | None, with_defaults: bool, config: str | None, as_json: bool) -> None:
    """Show what is configured and where each value comes from: of a mounted repository, what its process goes by."""
    output = Output(as_json)
    sources = _sources(where, config)
    settings, origins = overlaid([*sources.layers, DEFAULTS] if with_defaults else sources.layers)
    output.json({"policy_known": sources.policy_known, "settings": _with_origins(settings, origins)})
    if not sources.policy_known:
        output.say("# Without the policy that a repository may keep: none is mounted here.")
    output.say(*to_toml(settings, origins).splitlines())


@dataclass(frozen=True, slots=True)
class _Sources:
    layers: list[Layer]
    policy_known: bool


def _sources(where: str | None, config: str | None) -> _Sources:
    """Those that the serving process has; or, where another file is named or nothing is mounted, those that a mount would have now."""
    told = _told(where)
    if told is not None and config is None:
        return _Sources(told, policy_known=True)
    mine = read_configuration((), config, os.environ).layers()
    policy = [layer for layer in told or () if layer.origin == POLICY]
    unreadable = [layer for layer in told or () if layer.origin.startswith(POLICY) and layer.origin != POLICY]
    return _Sources([*unreadable, *mine, *policy], policy_known=told is not None)


def _told(where: str | None) -> list[Layer] | None:
    try:
        with locate.daemon_of(place_of(where)) as daemon:
            layers = daemon.ask(ConfigurationRequest())["layers"]
    except RepositoryMissingError:
        if where is not None:
            raise
        return None
    except NotRunningError:
        return None
    return [Layer(layer["origin"], from_document(layer["settings"], layer["origin"])) for layer in layers]


def _with_origins(settings: Settings, origins: Mapping[str, str]) -> dict[str, Any]:
    """As `document`, each value with its origin."""
    plain = document(settings)
    made: dict[str, Any] = {}
    for key in KEYS:
        content = plain.get(key.table, {}) if key.table else plain
        if key.name in content:
            (made.setdefault(key.table, {}) if key.table else made)[key.name] = {"value": content[key.name], "origin": origins[key.field]}
    return made


# --- policy -------------------------------------------------------------------------------------------------------


@click.group()
def policy() -> None:
    """Schedule and retention that a repository keeps, for every machine that mounts it."""


@policy.command("show")
@where
@json_flag
def policy_show(where: str | None, as_json: bool) -> None:
    """Show the policy that is kept in a mounted repository."""
    output = Output(as_json)
    with locate.daemon_of(place_of(where)) as daemon:
        text = daemon.ask(PolicyRequest())["policy"]
    _show(output, from_json(text.encode(), POLICY))


@policy.command("set")
@click.argument("where_and_words", nargs=-1, metavar="[DIR|REPO] KEY=VALUE...")
@click.option("--file", "file", metavar="PATH", help="Take schedules and retention from this file; - is standard input.")
@json_flag
def policy_set(where_and_words: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Change the policy of a mounted repository: KEY= takes a key out. It is in force at once."""
    output = Output(as_json)
    where, words = _split(where_and_words)
    if bool(words) == bool(file):
        raise click.UsageError("give KEY=VALUE, or --file")
    from_file = _from_file(file) if file else None
    place = place_of(where)
    with locate.daemon_of(place) as daemon:
        before = daemon.ask(PolicyRequest())["policy"]
    wanted = changed(from_json(before.encode(), POLICY), words) if from_file is None else from_file
    with locate.daemon_of(place) as daemon:
        kept = daemon.ask(PolicySetRequest(to_json(wanted).decode(), before))["policy"]
    _show(output, from_json(kept.encode(), POLICY))


@policy.command("simulate")
@where
@click.option("--days", type=click.IntRange(1, 36_600), default=365, show_default=True, help="So many days from now on.")
@click.option("--changes", metavar="SIZE", help="So much is replaced each day, as 2GB. Unless it is given, what the snapshots show.")
@config_option
@json_flag
def policy_simulate(where: str | None, days: int, changes: str | None, config: str | None, as_json: bool) -> None:
    """Show what schedules, retention and space limits lead to, if something changes all the time: of a mounted repository, beginning with its
    snapshots.

    As to space: the live tree always takes the same, and day by day the same bytes of it are replaced. A snapshot holds what is replaced until
    the next one, but no more than a day's changes.
    """
    output = Output(as_json)
    given_bytes = parse_size(changes) if changes is not None else None
    sources = _sources(where, config)
    present: list[Any] = []
    outlook: Any = None
    if sources.policy_known:
        with locate.daemon_of(place_of(where)) as daemon:
            daemon.ask(SnapshotListRequest(), present.append)
        with output.progress("looking", in_bytes=False) as show, locate.daemon_of(place_of(where)) as daemon:
            outlook = daemon.ask(OutlookRequest(), None, show)
    settings = effective(sources.layers)
    now_ns = time.time_ns()
    schedules = settings.schedules
    state = initial(now_ns, schedules, [Taken(s["time_ns"], s["serial"], s["why"], s["tags"]) for s in present])
    candidates = [Candidate(s["serial"], s["time_ns"], tuple(s["tags"]), s["pinned"], s["hold_until_ns"] or 0) for s in present]
    opening, source = _opening(outlook, given_bytes, candidates, now_ns)
    with output.progress("simulating days", in_bytes=False) as show:
        told = simulate(
            schedules, state, settings.retention, candidates, now_ns, days * DAY_NS, on_period=lambda done: show(done, days), opening=opening
        )
    output.json(
        {
            "days": days,
            "policy_known": sources.policy_known,
            "snapshots_known": len(present),
            "live_bytes": opening.live_bytes if outlook else None,
            "held_bytes": opening.held_bytes,
            "changes_bytes_per_day": opening.daily_bytes,
            "changes_source": source,
            **as_plain(told),
        }
    )
    if not sources.policy_known:
        output.say("Neither the policy nor the snapshots of a repository are known: none is mounted here. So it begins with nothing.")
    output.say(*(f"snapshot {trigger(schedule)}" for schedule in schedules if schedule not in told.left_out))
    output.say(*(f"not foreseen: snapshot {trigger(schedule)}" for schedule in told.left_out))
    written = {name: value for name, value in document(settings.settings)["retention"].items() if value}
    output.say(f"retention: {_listed(written, 'keep-') or 'every snapshot stays'}")
    if settings.retention.limits_space:
        output.say(f"space limits: {_listed(written, ('space-limit', 'free-limit'))}")
    if outlook is None and "free-limit" in written:
        output.say("free-limit is not looked at: the disk is not known")
    output.say(*space_in_words(opening, source, is_known=outlook is not None))
    output.say("")
    output.paint(picture(told))
    if told.overrun:
        output.say("", overrun_in_words(told.overrun))


def _opening(outlook: Any, given_bytes: int | None, present: Sequence[Candidate], now_ns: int) -> tuple[Opening, str]:
    """The space now, and where the rate of change comes from. `outlook` is an `OutlookTold`; None: nothing is known."""
    known = (
        Opening()
        if outlook is None
        else Opening(outlook["live_bytes"], outlook["held_bytes"], 0, Disk(outlook["free_bytes"], outlook["total_bytes"]))
    )
    if given_bytes is not None:
        return replace(known, daily_bytes=given_bytes), OPTION
    shown_bytes = daily_bytes(known.held_bytes, present, now_ns)
    return replace(known, daily_bytes=shown_bytes), SNAPSHOTS if shown_bytes else UNKNOWN


def _listed(written: Mapping[str, object], beginnings: str | tuple[str, ...]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in written.items() if name.startswith(beginnings))


def _split(given: Sequence[str]) -> tuple[str | None, list[str]]:
    """A first word that is a directory, or no KEY=VALUE, says where."""
    first, *others = given or ("",)
    if os.path.isdir(first) or (first and "=" not in first):
        return first, others
    return None, list(given)


def _from_file(name: str) -> Settings:
    settings = parse(sys.stdin.read(), "standard input") if name == "-" else read_file(Path(name))
    if settings != policy_of(settings):
        raise UsageError(f"{name}: a repository keeps only [[schedule]] and [retention]; hooks and mount options belong into a configuration file")
    return settings


def _show(output: Output, kept: Settings) -> None:
    output.json({"policy": document(kept)})
    output.say(*(to_toml(kept).splitlines() or ["# The repository keeps no policy."]))
