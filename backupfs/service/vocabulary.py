"""How configuration is written: every key, its kind, and documents of them in TOML and JSON. `docs/configuration.md` says it for people.

Pure: text and values in, values out. What is not understood is a UsageError that names where it stands, the key, and what is expected.
"""

import difflib
import json
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from backupfs.errors import UsageError
from backupfs.rules.cron import check_cron
from backupfs.rules.names import SnapDir, is_tag
from backupfs.rules.policy import Duration, Keep, Schedule
from backupfs.rules.quantities import parse_duration, parse_keep, parse_share, parse_size, show_duration, show_share, show_size
from backupfs.service.settings import NOTHING, Settings, Share

_COUNT_MAX: Final = 10**15

# --- kinds of values ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one kind are written. `read` takes what TOML has, and raises ValueError, TypeError or UsageError; `show` is its inverse;
    `typed` makes of a word on the command line what TOML would have.
    """

    expected: str
    read: Callable[[Any], Any]
    show: Callable[[Any], Any]
    typed: Callable[[str], Any] = str


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _none_or(read: Callable[[str], Any]) -> Callable[[object], Any]:
    """Also the number 0."""
    return lambda value: 0 if _is_number(value) and value == 0 else read(_text(value))


def _zero_or(show: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda value: show(value) if value else 0


def _read_keep(value: object) -> Keep:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError
    return parse_keep(str(value))


def _show_keep(value: Keep) -> int | str:
    return show_duration(value.ns) if isinstance(value, Duration) else value


def _read_on_change(value: object) -> tuple[int | None, int | None]:
    """(records, bytes): one of the two."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _COUNT_MAX:
        return value, None
    return None, parse_size(_text(value))


def _read_fraction(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ValueError
    return float(value)


def _read_free_limit(value: str) -> int | Share:
    return Share(parse_share(value)) if value.endswith("%") else parse_size(value)


def _show_free_limit(value: int | Share) -> str:
    return show_share(value.fraction) if isinstance(value, Share) else show_size(value)


def _read_tags(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(map(is_tag, map(_text, value))):
        raise ValueError
    return tuple(dict.fromkeys(value))


def _read_zone(value: object) -> tzinfo:
    name = _text(value)
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError) as error:
        raise ValueError from error


def _read_command(value: object) -> tuple[str, ...]:
    words = shlex.split(value) if isinstance(value, str) else value
    if not isinstance(words, list) or any(not isinstance(word, str) or "\0" in word for word in words) or (words and not words[0]):
        raise ValueError
    return tuple(words)


def _read_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _read_cron(value: object) -> str:
    line = " ".join(_text(value).split())
    check_cron(line)
    return line


def _number_or_text(word: str) -> int | str:
    return int(word) if word.isascii() and word.isdigit() else word


def _switch(word: str) -> bool | str:
    return {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}.get(word, word)


def _fraction(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _words(word: str) -> list[str]:
    return [part.strip() for part in word.split(",")]


_LENGTH: Final = Kind('a length of time, as "15m" or "1h30m"', lambda value: parse_duration(_text(value)), show_duration)
_LENGTH_OR_NONE: Final = Kind('a length of time, as "36h", or 0', _none_or(parse_duration), _zero_or(show_duration), _number_or_text)
_KEEP: Final = Kind('a count, or a length of time, as "30d"', _read_keep, _show_keep, _number_or_text)
_TAGS: Final = Kind('a list of tags, as ["daily", "important"]', _read_tags, list, _words)
_FRACTION: Final = Kind("a number above 0 and at most 1", _read_fraction, lambda value: value, _fraction)
_SIZE: Final = Kind('a size, as "500GiB", or 0', _none_or(parse_size), _zero_or(show_size), _number_or_text)
_FREE: Final = Kind(
    'a size, as "20GiB", a share of the disk, as "10%", or 0', _none_or(_read_free_limit), _zero_or(_show_free_limit), _number_or_text
)
_ZONE: Final = Kind('the name of a time zone, as "Europe/Berlin"', _read_zone, str)
_COMMAND: Final = Kind('a command: a list of words, as ["/usr/local/bin/quiesce", "db"], or one text', _read_command, list)
_SWITCH: Final = Kind("true or false", _read_switch, lambda value: value, _switch)
_SNAPDIR: Final = Kind('"visible", "hidden" or "disabled"', lambda value: SnapDir(_text(value)), str)
_CRON: Final = Kind('a line of five fields, as "30 2 * * *"', _read_cron, str)
_ON_CHANGE: Final = Kind('a count of changes, or a size, as "500MiB"', _read_on_change, lambda value: value, _number_or_text)


# --- reading one value ------------------------------------------------------------------------------------------


def unknown(name: str, known: Sequence[str], place: str) -> UsageError:
    """The error about a key that is none of `known`."""
    nearest = difflib.get_close_matches(name, known, 1, cutoff=0)[0]
    return UsageError(f"{place}there is no key {name!r}; the nearest is {nearest!r}", key=name, nearest=nearest)


def read_value(kind: Kind, name: str, value: object) -> Any:
    """What `value`, as TOML has it, means; `name` is for the UsageError."""
    try:
        return kind.read(value)
    except UsageError as error:
        raise UsageError(f"{name}: {error}", key=name) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{name} must be {kind.expected}, not {_shown(value)}", key=name) from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


# --- schedules ----------------------------------------------------------------------------------------------------

SCHEDULE_KEYS: Final[dict[str, Kind]] = {
    "every": _LENGTH,
    "cron": _CRON,
    "on-change": _ON_CHANGE,
    "on-idle": _LENGTH,
    "tags": _TAGS,
    "always": _SWITCH,
    "time-zone": _ZONE,
}
TRIGGERS: Final = ("every", "cron", "on-change", "on-idle")


def _read_schedules(value: object) -> tuple[Schedule, ...]:
    if not isinstance(value, list) or not all(isinstance(table, dict) for table in value):
        raise ValueError
    return tuple(read_schedule(table, f"number {number}" if len(value) > 1 else "") for number, table in enumerate(value, 1))


def read_schedule(table: Mapping[str, object], which: str) -> Schedule:
    """A table of `schedule`; `which` is for the UsageError."""
    place = f"{which}: " if which else ""
    for name in table:
        if name not in SCHEDULE_KEYS:
            raise unknown(name, list(SCHEDULE_KEYS), place)
    if sum(trigger in table for trigger in TRIGGERS) != 1:
        raise UsageError(f"{place}exactly one of {', '.join(TRIGGERS)} is expected")
    if "time-zone" in table and "cron" not in table:
        raise UsageError(f"{place}time-zone: only a schedule with cron has one")
    given = {name: read_value(SCHEDULE_KEYS[name], place + name, value) for name, value in table.items()}
    records, size_bytes = given.get("on-change", (None, None))
    return Schedule(
        every_ns=given.get("every"),
        cron=given.get("cron"),
        on_change_records=records,
        on_change_bytes=size_bytes,
        on_idle_ns=given.get("on-idle"),
        tags=given.get("tags", ()),
        always=given.get("always", False),
        zone=given.get("time-zone", UTC),
    )


def show_schedule(schedule: Schedule) -> dict[str, object]:
    """The table of a schedule: what it says beyond the defaults."""
    every = {
        "every": None if schedule.every_ns is None else show_duration(schedule.every_ns),
        "cron": schedule.cron,
        "on-change": schedule.on_change_records if schedule.on_change_bytes is None else show_size(schedule.on_change_bytes),
        "on-idle": None if schedule.on_idle_ns is None else show_duration(schedule.on_idle_ns),
        "tags": list(schedule.tags) or None,
        "always": schedule.always or None,
        "time-zone": None if schedule.zone == UTC else str(schedule.zone),
    }
    return {name: value for name, value in every.items() if value is not None}


# --- keys ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """A key of a file: `name` in `table`, the field `field` of `Settings`. The table of `schedule` is the file itself."""

    table: str
    name: str
    field: str
    kind: Kind


_SCHEDULES: Final = Kind("tables, each begun with [[schedule]], or [] for none", _read_schedules, lambda value: [*map(show_schedule, value)])
KEYS: Final = (
    Key("", "schedule", "schedules", _SCHEDULES),
    Key("retention", "keep-last", "keep_last", _KEEP),
    Key("retention", "keep-minutely", "keep_minutely", _KEEP),
    Key("retention", "keep-hourly", "keep_hourly", _KEEP),
    Key("retention", "keep-daily", "keep_daily", _KEEP),
    Key("retention", "keep-weekly", "keep_weekly", _KEEP),
    Key("retention", "keep-monthly", "keep_monthly", _KEEP),
    Key("retention", "keep-quarterly", "keep_quarterly", _KEEP),
    Key("retention", "keep-yearly", "keep_yearly", _KEEP),
    Key("retention", "keep-within", "keep_within_ns", _LENGTH_OR_NONE),
    Key("retention", "keep-tag", "keep_tags", _TAGS),
    Key("retention", "min-age", "min_age_ns", _LENGTH_OR_NONE),
    Key("retention", "max-delete-fraction", "max_delete_fraction", _FRACTION),
    Key("retention", "space-limit", "space_limit_bytes", _SIZE),
    Key("retention", "free-limit", "free_limit", _FREE),
    Key("retention", "time-zone", "retention_zone", _ZONE),
    Key("retention", "undelete-time", "undelete_ns", _LENGTH_OR_NONE),
    Key("hooks", "before-snapshot", "before_snapshot", _COMMAND),
    Key("hooks", "after-snapshot", "after_snapshot", _COMMAND),
    Key("hooks", "on-failure", "on_failure", _COMMAND),
    Key("hooks", "timeout", "hook_timeout_ns", _LENGTH),
    Key("mount", "read-only", "read_only", _SWITCH),
    Key("mount", "allow-other", "allow_other", _SWITCH),
    Key("mount", "suid", "suid", _SWITCH),
    Key("mount", "dev", "dev", _SWITCH),
    Key("mount", "keep-awake", "keep_awake", _SWITCH),
    Key("mount", "snapdir", "snapdir", _SNAPDIR),
)
POLICY_TABLES: Final = ("", "retention")
assert [key.field for key in KEYS] == [field.name for field in fields(Settings)]


def tables() -> list[str]:
    """The tables of a file that have keys of their own, in order."""
    return list(dict.fromkeys(key.table for key in KEYS if key.table))


def keys_of(table: str) -> dict[str, Key]:
    """The keys of a table, by name."""
    return {key.name: key for key in KEYS if key.table == table}


def policy_of(settings: Settings) -> Settings:
    """The part that a repository may keep."""
    return replace(NOTHING, **{key.field: getattr(settings, key.field) for key in KEYS if key.table in POLICY_TABLES})


# --- documents ----------------------------------------------------------------------------------------------------


def parse(text: str, where: str) -> Settings:
    """What a file in TOML says. UsageError names `where`, the key, and what was expected."""
    try:
        return from_document(tomllib.loads(text), where)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: this is no TOML: {error}") from error


def from_document(document: Mapping[str, object], where: str) -> Settings:
    """The same, of tables as TOML has them."""
    try:
        return replace(NOTHING, **dict(_read_document(document)))
    except UsageError as error:
        raise UsageError(f"{where}: {error}", where=where, **error.fields) from error


def _read_document(document: Mapping[str, object]) -> Iterator[tuple[str, Any]]:
    top = keys_of("")
    for table, content in document.items():
        if table in top:
            yield top[table].field, read_value(top[table].kind, table, content)
        elif table not in tables():
            home = next((key.table for key in KEYS if key.name == table), "schedule" if table in SCHEDULE_KEYS else "")
            if home:
                raise UsageError(f"{table!r} stands outside of its table, which is [{home}]", key=table, nearest=table)
            raise unknown(table, [*top, *tables()], "")
        elif not isinstance(content, Mapping):
            raise UsageError(f"{table} must be a table, begun with [{table}], not {_shown(content)}", key=table)
        else:
            known = keys_of(table)
            for name, value in content.items():
                if name not in known:
                    raise unknown(name, list(known), f"[{table}]: ")
                yield known[name].field, read_value(known[name].kind, f"{table}.{name}", value)


def document(settings: Settings) -> dict[str, Any]:
    """Tables as TOML has them, of everything that the settings say: what `from_document` reads back."""
    made: dict[str, Any] = {}
    for key in KEYS:
        value = getattr(settings, key.field)
        if value is not None:
            (made.setdefault(key.table, {}) if key.table else made)[key.name] = key.kind.show(value)
    return made


def to_toml(settings: Settings, origins: Mapping[str, str] | None = None) -> str:
    """A file that says the same, with the origin of each value (by field) in a comment."""
    comments = {name: f"  # {_one_line(origin)}" for name, origin in (origins or {}).items()}
    lines: list[str] = []
    for table, content in document(settings).items():
        if isinstance(content, list):
            lines += _schedule_lines(content, comments.get("schedules", ""))
            continue
        known = keys_of(table)
        lines += ["", f"[{table}]"]
        lines += [f"{name} = {_toml(value)}{comments.get(known[name].field, '')}" for name, value in content.items()]
    return "\n".join(lines).removeprefix("\n") + "\n" if lines else ""


def _schedule_lines(schedules: Sequence[Mapping[str, object]], comment: str) -> list[str]:
    if not schedules:
        return [f"schedule = []{comment}"]
    return [line for table in schedules for line in ("", f"[[schedule]]{comment}", *(f"{name} = {_toml(value)}" for name, value in table.items()))]


def _toml(value: object) -> str:
    """A value, in which nothing is left that cannot be printed. JSON writes strings, numbers and switches as TOML does."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    return "".join(sign if sign.isprintable() else f"\\U{ord(sign):08x}" for sign in text)


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def to_json(policy: Settings) -> bytes:
    """What a repository keeps: schedules and retention. Nothing for nothing."""
    made = document(policy_of(policy))
    return msgspec.json.encode(made) if made else b""


def from_json(data: bytes, where: str) -> Settings:
    """What `to_json` made. UsageError also when another version has written what this one does not know."""
    if not data:
        return NOTHING
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: this is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{where}: an object is expected, not {_shown(found)}")
    for name in found:
        if name not in (key.table or key.name for key in KEYS if key.table in POLICY_TABLES):
            raise UsageError(f"{where}: only schedule and retention are kept there, not {name!r}", key=name)
    return from_document(found, where)
