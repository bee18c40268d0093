"""A policy that is changed by words on a command line: `keep-daily=30`, `every=15m`, `keep-daily=` to take a key out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from backupfs.errors import UsageError
from backupfs.rules.policy import Schedule
from backupfs.service.settings import Settings
from backupfs.service.vocabulary import SCHEDULE_KEYS, TRIGGERS, keys_of, read_schedule, read_value, show_schedule, unknown

_RETENTION: Final = keys_of("retention")
_TWICE: Final = _RETENTION.keys() & SCHEDULE_KEYS.keys()
"""Keys that both have: these want their table before them, as in `retention.time-zone`."""


def changed(policy: Settings, words: Sequence[str]) -> Settings:
    """A policy after `KEY=VALUE` for some keys; `KEY=` takes a key out.

    Keys of a schedule are about the one that the policy has, or make it; another trigger takes the place of the one before. `every=off` is no
    schedule, `schedule=` takes all of them out. UsageError says what is wrong.
    """
    of_schedule: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"{word!r} is not of the form KEY=VALUE")
        if not word.isprintable():
            raise UsageError(f"{name!r}: its value has signs that cannot be printed")
        table, key = _meant(name)
        if table == "schedule":
            of_schedule[key] = value
        elif table == "retention":
            kind = _RETENTION[key].kind
            policy = replace(policy, **{_RETENTION[key].field: read_value(kind, name, kind.typed(value)) if value else None})
        elif value:
            raise UsageError("schedule= takes all schedules out and has no value; several can be given in a file")
        else:
            policy = replace(policy, schedules=None)
    return replace(policy, schedules=_rescheduled(policy.schedules, of_schedule)) if of_schedule else policy


def _meant(name: str) -> tuple[str, str]:
    """Table and key."""
    table, dot, key = name.rpartition(".")
    if (table == "retention" and key in _RETENTION) or (table == "schedule" and key in SCHEDULE_KEYS):
        return table, key
    if name in _TWICE:
        raise UsageError(f"{name} may mean retention.{name} or schedule.{name}: write it so", key=name)
    if name == "schedule":
        return "", name
    if name in _RETENTION:
        return "retention", name
    if name in SCHEDULE_KEYS:
        return "schedule", name
    raise unknown(key if dot else name, [*_RETENTION, *SCHEDULE_KEYS], "")


def _rescheduled(before: tuple[Schedule, ...] | None, words: Mapping[str, str]) -> tuple[Schedule, ...] | None:
    if words == {"every": "off"}:
        return ()
    if before is not None and len(before) > 1:
        raise UsageError("the policy has several schedules: give them anew in a file, or take them out first with schedule=")
    table = show_schedule(before[0]) if before else {}
    if any(words.get(trigger) for trigger in TRIGGERS):
        table = {name: value for name, value in table.items() if name not in (*TRIGGERS, "time-zone")}
    for name, value in words.items():
        if value:
            table[name] = SCHEDULE_KEYS[name].typed(value)
        else:
            table.pop(name, None)
    if not table.keys() & set(TRIGGERS) and words.keys() & set(TRIGGERS):
        return None
    return (read_schedule(table, ""),)
