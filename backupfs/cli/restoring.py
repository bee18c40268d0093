"""The verb that brings something back: into the mount, through the process that serves it, or to any other place, by copying."""

import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any, Final

import click

from backupfs.cli.history import inside, scope_of, snapshot_at
from backupfs.cli.options import INTERRUPTED, json_flag, state_home
from backupfs.cli.output import Output, readable_size
from backupfs.errors import DamageError, UsageError
from backupfs.rules.when import Known
from backupfs.service import copying, locate
from backupfs.service.copying import Copying, CopyPlan
from backupfs.service.locate import Inside, Place
from backupfs.service.messages import RestoreRequest, UndoRequest, shown_path, type_word

SOME_FAILED: Final = DamageError.exit_code
_DONE: Final = {"add": "added", "replace": "replaced", "attributes": "given its attributes", "remove": "removed"}


@click.command()
@click.argument("path", required=False)
@click.option("--at", "at", metavar="TIME", help="As it was then: a snapshot's name or number, latest~2, -3h, yesterday 18:00, 2026-10-04.")
@click.option("--to", "place", metavar="PLACE", help="Bring it here, where nothing is, instead of to where it was.")
@click.option("--overwrite", is_flag=True, help="Replace what is there and differs.")
@click.option("--delete", is_flag=True, help="Remove what was not there then.")
@click.option("--undo", is_flag=True, help="Take the last restore in the mount PATH back.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@json_flag
def restore(path: str | None, at: str | None, place: str | None, overwrite: bool, delete: bool, undo: bool, dry_run: bool, as_json: bool) -> int:
    """Bring back PATH, and everything below it, as it was. Exit code 3: some of it could not be."""
    output = Output(as_json)
    if undo:
        if at is not None or place is not None or overwrite or delete:
            raise click.UsageError("--undo goes with nothing but --dry-run")
        return _in_mount(output, scope_of(path).place, UndoRequest(dry_run), {})
    if path is None:
        raise click.UsageError("name what is to be restored, or give --undo")
    where = inside(path)
    when = at or where.snapshot
    if when is None:
        raise click.UsageError("say --at which time; `backupfs versions` shows those of a file")
    if place is not None and (overwrite or delete):
        raise click.UsageError("with --to nothing is replaced or removed: leave --overwrite and --delete out")
    snapshot = snapshot_at(where.place, when)
    target = None if place is None else _in_same_mount(where, place)
    if place is not None and target is None:
        return _elsewhere(output, where, snapshot, place, dry_run=dry_run)
    request = RestoreRequest(where.path, snapshot.serial, target, overwrite, delete, dry_run)
    return _in_mount(output, where.place, request, {"snapshot": snapshot.name, "path": shown_path(where.path)})


def _in_same_mount(where: Inside, place: str) -> bytes | None:
    found = locate.at_path(os.fsencode(place), state_home())
    if found is None or found.directory != where.directory:
        return None
    if found.snapshot is not None:
        raise UsageError("a snapshot never changes; choose a place in the present")
    return found.path


# --- into the mount -------------------------------------------------------------------------------------------------


def _in_mount(output: Output, place: Place, request: RestoreRequest | UndoRequest, about: Mapping[str, object]) -> int:
    steps: dict[str, list[Any]] = {"planned": [], "skipped": [], "failed": []}
    at = [0, 0]

    def note(step: Any) -> None:
        steps.setdefault(step.pop("stage"), []).append(step)
        output.say(_line(step))

    told: Any = None
    record = place.state.record()
    undo = f"backupfs restore --undo {shlex.quote(record.directory if record else str(place.repository))}"
    with output.progress("restoring", in_bytes=False) as show:

        def progress(done: int, total: int, _: str) -> None:
            at[:] = done, total
            show(done, total)

        try:
            with locate.daemon_of(place) as daemon:
                told = daemon.ask(request, note, progress)
        except KeyboardInterrupt:
            pass
    shown = {name: [_known(step) for step in found] for name, found in steps.items()}
    if told is None:
        output.json({**about, "dry_run": request.dry_run, "interrupted": True, **shown})
        output.say(f"interrupted after {at[0]} of {len(steps['planned'])} steps, at least; `{undo}` takes back what was done")
        return INTERRUPTED
    output.json({**about, **told, "dry_run": request.dry_run, "interrupted": False, **shown})
    output.say(*_outcome(request, told, steps, undo))
    return SOME_FAILED if told["failed"] else 0


def _known(step: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in step.items() if value is not None}


def _line(step: Mapping[str, Any]) -> str:
    """`replace      4.0 KiB  docs/plan.txt  (only with --overwrite)`."""
    size = readable_size(step["size"]) if step["type"] == "file" else step["type"]
    left_out = f"  (only with {step['option']})" if step["option"] else ""
    trouble = f": NOT DONE: {step['trouble']}" if step["trouble"] else ""
    return f"{step['action']:<10}  {size:>10}  {step['path'] or '/'}{left_out}{trouble}"


def _outcome(request: RestoreRequest | UndoRequest, told: Mapping[str, Any], steps: Mapping[str, Sequence[Any]], undo: str) -> list[str]:
    lines = []
    skipped = f"; {told['skipped']} left alone" if told["skipped"] else ""
    if request.dry_run:
        lines.append(f"{told['steps']} would be done{skipped}; nothing was changed")
    elif not told["steps"]:
        lines.append(f"there is nothing to do{skipped}")
    else:
        failed = {(step["action"], step["path"]) for step in steps["failed"]}
        done = Counter(step["action"] for step in steps["planned"] if (step["action"], step["path"]) not in failed)
        counts = ", ".join(f"{count} {_DONE[action]}" for action, count in done.items()) or "nothing could be done"
        missing = f"; {told['failed']} NOT DONE" if told["failed"] else ""
        lines.append(f"{counts}{skipped}{missing}")
        lines.append(f"`{undo}` takes this back: what was there before is in the snapshot {told['before']}")
    if told["held"]:
        lines.append(f"{told['held']} names show only when a process that holds their directory lets go of it")
    return lines


# --- to another place -----------------------------------------------------------------------------------------------


def _elsewhere(output: Output, where: Inside, snapshot: Known, place: str, *, dry_run: bool) -> int:
    top = os.path.join(os.fsencode(where.directory), b".snapshots", os.fsencode(snapshot.name))
    if not os.path.isdir(top):
        raise UsageError(f"{where.directory} does not show .snapshots (snapdir = disabled); restore within it, or mount it with --snapdir hidden")
    plan = copying.plan(top, where.path, os.fsencode(place))
    for entry in plan.entries:
        size = readable_size(entry.size) if type_word(entry.type) == "file" else type_word(entry.type)
        output.say(f"{'add':<10}  {size:>10}  {_placed(plan, entry.path)}")
    about = {
        "snapshot": snapshot.name,
        "path": shown_path(where.path),
        "to": shown_path(plan.target),
        "total_bytes": plan.total_bytes,
        "dry_run": dry_run,
        "planned": [{"action": "add", "path": shown_path(e.path), "type": type_word(e.type), "size": e.size} for e in plan.entries],
    }
    if dry_run:
        unreadable = [{"path": shown_path(path), "trouble": trouble} for path, trouble in plan.unreadable]
        output.json({**about, "failed": unreadable, "interrupted": False})
        output.say(*(f"cannot be read: {_placed(plan, path)}: {trouble}" for path, trouble in plan.unreadable))
        output.say(f"{len(plan.entries)} entries with {readable_size(plan.total_bytes)} would be copied; nothing was changed")
        return SOME_FAILED if plan.unreadable else 0
    return _copy(output, plan, about)


def _copy(output: Output, plan: CopyPlan, about: Mapping[str, object]) -> int:
    done = 0
    failed: list[dict[str, str]] = []
    interrupted = False
    with output.progress("restoring") as show:
        moved = [0]

        def note(count: int) -> None:
            moved[0] += count
            show(moved[0], plan.total_bytes)

        work = Copying(plan, note)
        try:
            with closing(work.run()) as steps:
                for path, trouble in steps:
                    if trouble:
                        failed.append({"path": shown_path(path), "trouble": trouble})
                        output.say(f"NOT DONE: {_placed(plan, path)}: {trouble}")
                    else:
                        done += 1
        except KeyboardInterrupt:
            interrupted = True
    output.json({**about, "done": done, "failed": failed, "not_kept": dict(work.not_kept), "interrupted": interrupted})
    missing = f"; {len(failed)} NOT DONE" if failed else ""
    if interrupted:
        output.say(
            f"interrupted: {done} of {len(plan.entries)} entries are in {_placed(plan, b'')}{missing}; directories that were begun are not finished"
        )
        return INTERRUPTED
    output.say(f"{done} of {len(plan.entries) + len(plan.unreadable)} entries are in {_placed(plan, b'')}{missing}")
    output.say(*(f"could not be kept there: {what} ({count})" for what, count in sorted(work.not_kept.items())))
    return SOME_FAILED if failed else 0


def _placed(plan: CopyPlan, path: bytes) -> str:
    return shown_path(os.path.join(plan.target, path) if path else plan.target)
