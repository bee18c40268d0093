"""What a mount is doing, in words."""

from typing import Any

import click

from backupfs.cli.options import json_flag, place_of, where
from backupfs.cli.output import Output, readable_size, rfc3339
from backupfs.service import locate
from backupfs.service.messages import NotRunningError, StatusRequest


@click.command()
@where
@json_flag
def status(where: str | None, as_json: bool) -> None:
    """Show what a mount is doing, and its last errors."""
    output = Output(as_json)
    place = place_of(where)
    try:
        with locate.daemon_of(place) as daemon:
            told = daemon.ask(StatusRequest())
    except NotRunningError:
        died_on = record.directory if (record := place.state.record()) else None
        output.json({"mounted": False, "repository": str(place.repository), "repository_id": place.state.repository_id, "died_on": died_on})
        output.say(f"{place.repository} is not mounted")
        if died_on:
            output.say(f"the process that served it on {died_on} has died; what was durable is safe: `backupfs mount {place.repository} {died_on}`")
        return
    output.json(told)
    output.facts({name: value for name, value in told.items() if not isinstance(value, (dict, list))})
    # what an older daemon does not tell is left out
    output.say(*map(schedule_line, told.get("schedules", [])))
    output.say(*retention_lines(told.get("retention")))
    output.say(*map(deleted_line, told.get("deleted", [])))
    engine = told["engine"] or {}
    output.say(*upkeep_lines(engine))
    output.facts({name: value for name, value in engine.items() if not isinstance(value, (dict, list))}, "engine")
    output.say(*engine.get("errors", []))
    for trouble in told["errors"]:
        output.say(f"{rfc3339(trouble['time_ns'])} {trouble['level']} {trouble['message']}")


def schedule_line(told: dict[str, Any]) -> str:
    """`snapshot every 1h, tagged a, b: next 2026-10-04T12:00:00.000000Z`."""
    tagged = f", tagged {', '.join(told['tags'])}" if told["tags"] else ""
    always = ", changed or not" if told["always"] else ""
    due = "when enough has changed" if told["next_ns"] is None else f"next {rfc3339(told['next_ns'])}"
    return f"snapshot {told['trigger']}{tagged}{always}: {due}"


def retention_lines(told: dict[str, Any] | None) -> list[str]:
    """`retention: 41 kept and 2 deleted at 2026-…; next 2026-…`."""
    if told is None:
        return []
    last = "has not run yet" if told["last_ns"] is None else f"{told['kept']} kept, {told['deleted']} deleted at {rfc3339(told['last_ns'])}"
    due = "" if told["next_ns"] is None else f"; next {rfc3339(told['next_ns'])}, or after a scheduled snapshot"
    failed = [f"retention has failed: {told['failure']}"] if told["failure"] else []
    return [f"retention: {last}{due}", *failed]


def deleted_line(told: dict[str, Any]) -> str:
    """`deleted snapshot 2026-…: can be brought back until 2026-…`."""
    if told["is_purging"]:
        return f"deleted snapshot {told['name']}: is being purged"
    return f"deleted snapshot {told['name']}: can be brought back until {rfc3339(told['until_ns'])} at least"


def upkeep_lines(engine: dict[str, Any]) -> list[str]:
    """What waits in the background."""
    if "upkeep" not in engine:
        return []
    upkeep = engine["upkeep"]
    queue = f"{upkeep['packs_to_rewrite']} packs of {readable_size(upkeep['waiting_bytes'])} wait to be rewritten"
    done = f"{readable_size(upkeep['copied_bytes'])} copied, {readable_size(upkeep['freed_bytes'])} freed since the mount"
    stopped = ["background work has stopped after a failure: unmount, mend the cause, mount again"] if upkeep["stopped"] else []
    return [
        f"collection: {queue}; {done}",
        f"journal: {readable_size(engine['journal_since_checkpoint_bytes'])} since the last checkpoint",
        *stopped,
    ]
