"""The verbs about space: where it goes, what retention deletes, getting it back."""

from typing import Any

import click

from backupfs.cli.options import json_flag, place_of, where
from backupfs.cli.output import Output, readable_size, rfc3339
from backupfs.service import locate
from backupfs.service.messages import CollectRequest, PruneRequest, StatsRequest


@click.command()
@where
@json_flag
def stats(where: str | None, as_json: bool) -> None:
    """Show how much is stored, and what takes the space."""
    output = Output(as_json)
    place = place_of(where)
    with output.progress("looking", in_bytes=False) as show, locate.daemon_of(place) as daemon:
        told = daemon.ask(StatsRequest(), None, show)
    output.json(told)
    space = told["space"]
    other = space["reserve_bytes"] + space["set_aside_bytes"]
    output.say(
        f"{place.repository} takes {readable_size(space['used_bytes'])}, and {readable_size(other)} of reserve and of what recoveries set aside;",
        f"{readable_size(told['free_bytes'])} of {readable_size(told['total_bytes'])} are free on its disk.",
        "",
    )
    output.facts(
        {
            "packs": f"{readable_size(space['packs_bytes'])}",
            "what lives": f"{readable_size(told['stored_bytes'])} in {told['packs']} packs, those that are being written included",
            "what is dead": f"{readable_size(space['dead_bytes'])}; `backupfs gc` gets {readable_size(space['collectable_bytes'])} of it back",
            "journal": f"{readable_size(space['journal_bytes'])}, {told['batches']} batches since the beginning",
            "checkpoints": readable_size(space["checkpoints_bytes"]),
            "being written": readable_size(space["open_bytes"]),
            "snapshots": f"{told['snapshots']}",
            "deleted snapshots": f"{space['deleted']}; purging them frees {readable_size(space['deleted_bytes'])}",
            "index": f"{readable_size(told['index_bytes'])}, outside of the repository",
            "made so far": f"{told['inodes_made']} inodes, {told['blobs_made']} blobs",
        }
    )


@click.command()
@where
@click.option("--dry-run", is_flag=True, help="Only show what retention would do.")
@json_flag
def prune(where: str | None, dry_run: bool, as_json: bool) -> None:
    """Run retention now: delete the snapshots that the policy does not keep. Shows each one's fate, and why."""
    output = Output(as_json)
    fates: list[Any] = []
    with output.progress("looking", in_bytes=False) as show, locate.daemon_of(place_of(where)) as daemon:
        told = daemon.ask(PruneRequest(dry_run), fates.append, show)
    output.json({"snapshots": fates, **told})
    output.table(
        ("NAME", "TIME", "FATE", "WHY"),
        [(fate["name"], rfc3339(fate["time_ns"]), "keep" if fate["keep"] else "delete", ", ".join(fate["reasons"])) for fate in fates],
    )
    freed = readable_size(told["frees_bytes"])
    if dry_run:
        output.say(f"{told['kept']} would stay, {told['deleted']} would be deleted; that would free {freed}. Nothing was deleted.")
    else:
        output.say(f"{told['kept']} stay, {told['deleted']} deleted; that frees {freed}.")
    if told["excess_bytes"]:
        output.say(f"by the space limits, {readable_size(told['excess_bytes'])} are too many")


@click.command()
@where
@click.option("--now", is_flag=True, help="Also what deleted snapshots hold: none of them can be brought back any more.")
@click.option("--dry-run", is_flag=True, help="Only show what is dead and what would be rewritten.")
@json_flag
def gc(where: str | None, now: bool, dry_run: bool, as_json: bool) -> None:
    """Get all space back that can be got, at once and without pauses. It comes back by itself too, in the background."""
    output = Output(as_json)
    with output.progress("looking", in_bytes=False) as show, locate.daemon_of(place_of(where)) as daemon:
        told = daemon.ask(CollectRequest(now, dry_run), None, show)
    freed_bytes = max(told["used_before_bytes"] - told["used_after_bytes"], 0)
    output.json({**told, "freed_bytes": freed_bytes})
    output.say(
        f"dead in packs: {readable_size(told['dead_bytes'])}",
        f"packs to rewrite: {told['packs']}, which copies {readable_size(told['copied_bytes'])} and frees {readable_size(told['frees_bytes'])}",
    )
    if now:
        output.say(f"deleted snapshots to purge: {told['purged']}, which frees {readable_size(told['purge_frees_bytes'])} more")
    if told["waiting"]:
        output.say(f"deleted snapshots that can still be brought back: {told['waiting']}" + ("" if now else "; --now purges them"))
    if dry_run:
        output.say("nothing was changed")
    else:
        output.say(f"{readable_size(freed_bytes)} freed; the repository takes {readable_size(told['used_after_bytes'])}")
