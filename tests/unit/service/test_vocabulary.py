"""What may be written in a configuration file, what it means, and what is said when it is not understood."""

import json
import re
import tomllib
from dataclasses import fields, replace
from datetime import UTC
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from backupfs.errors import UsageError
from backupfs.rules.names import SnapDir
from backupfs.rules.policy import DEFAULT_RETENTION, DEFAULT_SCHEDULES, SECOND_NS, Duration, Retention, Schedule
from backupfs.service.settings import DEFAULTS, NOTHING, HookCommands, Layer, Settings, Share, effective, overlaid
from backupfs.service.vocabulary import KEYS, SCHEDULE_KEYS, document, from_json, parse, policy_of, tables, to_json, to_toml

HOUR_NS = 3600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
GIB = 1 << 30

EVERYTHING = """
[[schedule]]
every = "15m"

[[schedule]]
cron = "30  2 * * *"
tags = ["nightly", "db", "nightly"]
always = true
time-zone = "Europe/Berlin"

[[schedule]]
on-change = 500

[[schedule]]
on-change = "2GiB"

[[schedule]]
on-idle = "5m"

[retention]
keep-last = 3
keep-minutely = "1h"
keep-hourly = 24
keep-daily = "30d"
keep-weekly = 0
keep-monthly = 12
keep-quarterly = 4
keep-yearly = 10
keep-within = "2d"
keep-tag = ["important"]
min-age = "1h30m"
max-delete-fraction = 0.5
space-limit = "500GiB"
free-limit = "10%"
time-zone = "America/New_York"
undelete-time = "1w"

[hooks]
before-snapshot = ["/bin/quiesce", "a b"]
after-snapshot = "/bin/release 'a b' $HOME"
on-failure = []
timeout = "90s"

[mount]
read-only = true
allow-other = false
suid = true
dev = false
keep-awake = false
snapdir = "hidden"
"""

MEANT = Settings(
    schedules=(
        Schedule(every_ns=15 * 60 * SECOND_NS),
        Schedule(cron="30 2 * * *", tags=("nightly", "db"), always=True, zone=ZoneInfo("Europe/Berlin")),
        Schedule(on_change_records=500),
        Schedule(on_change_bytes=2 * GIB),
        Schedule(on_idle_ns=300 * SECOND_NS),
    ),
    keep_last=3,
    keep_minutely=Duration(HOUR_NS),
    keep_hourly=24,
    keep_daily=Duration(30 * DAY_NS),
    keep_weekly=0,
    keep_monthly=12,
    keep_quarterly=4,
    keep_yearly=10,
    keep_within_ns=2 * DAY_NS,
    keep_tags=("important",),
    min_age_ns=HOUR_NS * 3 // 2,
    max_delete_fraction=0.5,
    space_limit_bytes=500 * GIB,
    free_limit=Share(0.1),
    retention_zone=ZoneInfo("America/New_York"),
    undelete_ns=7 * DAY_NS,
    before_snapshot=("/bin/quiesce", "a b"),
    after_snapshot=("/bin/release", "a b", "$HOME"),
    on_failure=(),
    hook_timeout_ns=90 * SECOND_NS,
    read_only=True,
    allow_other=False,
    suid=True,
    dev=False,
    keep_awake=False,
    snapdir=SnapDir.HIDDEN,
)


def test_every_key_means_what_it_says() -> None:
    assert parse(EVERYTHING, "file") == MEANT
    assert None not in [getattr(MEANT, field.name) for field in fields(Settings)], "no key is left out above"


def test_an_empty_file_says_nothing() -> None:
    assert parse("", "file") == NOTHING
    assert to_toml(NOTHING) == ""
    assert to_json(NOTHING) == b""
    assert from_json(b"", "policy") == NOTHING


def test_no_schedule_is_not_the_same_as_no_word_about_schedules() -> None:
    assert parse("schedule = []", "file") == replace(NOTHING, schedules=())
    assert to_toml(replace(NOTHING, schedules=())) == "schedule = []\n"
    assert effective([Layer("file", parse("schedule = []", "file"))]).schedules == ()
    assert effective([Layer("file", parse("", "file"))]).schedules == DEFAULT_SCHEDULES


def test_zero_turns_a_limit_off() -> None:
    text = "[retention]\nkeep-within = 0\nmin-age = 0\nspace-limit = 0\nfree-limit = 0\nundelete-time = 0\n"
    settings = parse(text, "file")
    assert to_toml(settings) == text
    below = Layer("policy", parse('[retention]\nspace-limit = "1GiB"\nfree-limit = "1GiB"\nmin-age = "1h"\nkeep-within = "1h"', "policy"))
    found = effective([Layer("file", settings), below])
    assert found.retention == replace(DEFAULT_RETENTION, keep_within_ns=0)
    assert found.undelete_ns == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("keep-daily = 3", r"'keep-daily' stands outside of its table, which is \[retention\]"),
        ("every = '1h'", r"'every' stands outside of its table, which is \[schedule\]"),
        ("[retentoin]", "there is no key 'retentoin'; the nearest is 'retention'"),
        ("[retention]\nkeep-dayly = 3", r"\[retention\]: there is no key 'keep-dayly'; the nearest is 'keep-daily'"),
        ("[hooks]\nbefore = 'a'", r"\[hooks\]: there is no key 'before'; the nearest is 'before-snapshot'"),
        ("retention = 1", r"retention must be a table, begun with \[retention\], not 1"),
        ("[retention]\nkeep-daily = true", "retention.keep-daily must be a count, or a length of time, .* not true"),
        ("[retention]\nkeep-daily = 1.5", "retention.keep-daily must be a count"),
        ("[retention]\nkeep-daily = -1", "retention.keep-daily: '-1' "),
        ("[retention]\nkeep-daily = '3 moons'", "retention.keep-daily: '3 moons' "),
        ("[retention]\nkeep-within = 1", "retention.keep-within must be a length of time"),
        ("[retention]\nkeep-tag = 'a'", "retention.keep-tag must be a list of tags"),
        ("[retention]\nkeep-tag = [1]", "retention.keep-tag must be a list of tags"),
        ("[retention]\nkeep-tag = ['a,b']", "retention.keep-tag must be a list of tags"),
        ("[retention]\nkeep-tag = ['']", "retention.keep-tag must be a list of tags"),
        ('[retention]\nkeep-tag = ["\\n"]', "retention.keep-tag must be a list of tags"),
        ("[retention]\nmax-delete-fraction = 0", "retention.max-delete-fraction must be a number above 0 and at most 1, not 0"),
        ("[retention]\nmax-delete-fraction = nan", "retention.max-delete-fraction must be a number"),
        ("[retention]\nmax-delete-fraction = '1'", "retention.max-delete-fraction must be a number"),
        ("[retention]\nmax-delete-fraction = true", "retention.max-delete-fraction must be a number"),
        ("[retention]\nspace-limit = 5", "retention.space-limit must be a size"),
        ("[retention]\nspace-limit = false", "retention.space-limit must be a size"),
        ("[retention]\nfree-limit = '100%'", "retention.free-limit: '100%' "),
        ("[retention]\ntime-zone = 'Europe'", 'retention.time-zone must be the name of a time zone, .* not "Europe"'),
        ("[retention]\ntime-zone = '../etc/passwd'", "retention.time-zone must be"),
        ("[retention]\ntime-zone = 2026-10-04", 'retention.time-zone must be .* not "2026-10-04"'),
        ("schedule = 1", r"schedule must be tables, each begun with \[\[schedule\]\]"),
        ("schedule = [1]", "schedule must be tables"),
        ("[[schedule]]\ntags = ['a']", "schedule: exactly one of every, cron, on-change, on-idle is expected"),
        ("[[schedule]]\nevery = '1h'\non-idle = '1h'", "schedule: exactly one of"),
        ("[[schedule]]\nevery = '1h'\n[[schedule]]\nevry = '1h'", "schedule: number 2: there is no key 'evry'; the nearest is 'every'"),
        ("[[schedule]]\nevery = '0s'", "schedule: every: '0s' "),
        ("[[schedule]]\nevery = 15", "schedule: every must be a length of time"),
        ("[[schedule]]\ncron = '1 2 3'", "schedule: cron: '1 2 3' "),
        ("[[schedule]]\nevery = '1h'\ntime-zone = 'UTC'", "schedule: time-zone: only a schedule with cron has one"),
        ("[[schedule]]\non-change = 0", "schedule: on-change must be a count of changes"),
        ("[[schedule]]\non-change = 9999999999999999", "schedule: on-change must be a count of changes"),
        ("[[schedule]]\nevery = '1h'\nalways = 1", "schedule: always must be true or false, not 1"),
        ("[hooks]\nbefore-snapshot = 'a \"b'", "hooks.before-snapshot must be a command"),
        ("[hooks]\nbefore-snapshot = ['']", "hooks.before-snapshot must be a command"),
        ("[hooks]\nbefore-snapshot = [1]", "hooks.before-snapshot must be a command"),
        ("[hooks]\nbefore-snapshot = 1", "hooks.before-snapshot must be a command"),
        ('[hooks]\nbefore-snapshot = ["a", "\\u0000"]', "hooks.before-snapshot must be a command"),
        ("[hooks]\ntimeout = 0", "hooks.timeout must be a length of time"),
        ("[mount]\nread-only = 'yes'", 'mount.read-only must be true or false, not "yes"'),
        ("[mount]\nsnapdir = 'gone'", 'mount.snapdir must be "visible", "hidden" or "disabled", not "gone"'),
        ("[mount]\nsnapdir = '" + "x" * 200 + "'", r'mount.snapdir must be .* not "x{76}\.\.\.$'),
        ("x = ?", "this is no TOML: .*line 1"),
        ("x = " + "[" * 3000, "this is no TOML"),
    ],
)
def test_what_is_not_understood_is_said_with_file_key_and_what_is_expected(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=f"^/etc/f.toml: {complaint}"):
        parse(text, "/etc/f.toml")


def test_an_error_names_its_key_for_programs_too() -> None:
    with pytest.raises(UsageError) as caught:
        parse("[mount]\nreadonly = true", "f")
    assert caught.value.fields == {"where": "f", "key": "readonly", "nearest": "read-only"}


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_what_is_shown_is_read_back_the_same() -> None:
    for settings in (MEANT, DEFAULTS.settings):
        assert parse(to_toml(settings), "shown") == settings
        assert parse(to_toml(settings, dict.fromkeys((key.field for key in KEYS), "a\nb")), "shown") == settings


def test_origins_stand_behind_the_values() -> None:
    settings, origins = overlaid(
        [Layer("--every", parse("[[schedule]]\nevery = '1h'", "x")), Layer("/a.toml", parse("[mount]\nsnapdir='hidden'", "x"))]
    )
    assert to_toml(settings, origins) == '[[schedule]]  # --every\nevery = "1h"\n\n[mount]\nsnapdir = "hidden"  # /a.toml\n'


def test_signs_that_cannot_be_printed_are_written_out() -> None:
    settings = replace(NOTHING, before_snapshot=("\x7f\x1b\u200b\U000e0001 \"'\\", "ü"))
    text = to_toml(settings)
    assert all(line.isprintable() for line in text.splitlines())
    assert parse(text, "shown") == settings


def test_a_policy_is_kept_as_json_without_what_a_repository_must_not_decide() -> None:
    kept = to_json(MEANT)
    assert from_json(kept, "policy") == policy_of(MEANT)
    assert policy_of(MEANT) == replace(
        MEANT,
        before_snapshot=None,
        after_snapshot=None,
        on_failure=None,
        hook_timeout_ns=None,
        read_only=None,
        allow_other=None,
        suid=None,
        dev=None,
        keep_awake=None,
        snapdir=None,
    )
    assert set(document(policy_of(MEANT))) == {"schedule", "retention"}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{", "this is no JSON"),
        (b'{"\xff": 1}', "this is no JSON"),
        (b"[" * 100_000, "this is no JSON"),
        (b"[]", r"an object is expected, not \[\]"),
        (b'{"hooks": {"before-snapshot": ["rm"]}}', "only schedule and retention are kept there, not 'hooks'"),
        (b'{"": 1}', "only schedule and retention are kept there"),
        (b'{"retention": {"keep-hours": 3}}', r"\[retention\]: there is no key 'keep-hours'"),
    ],
)
def test_a_policy_that_is_not_understood(data: bytes, complaint: str) -> None:
    with pytest.raises(UsageError, match=f"^policy: {complaint}"):
        from_json(data, "policy")


# --- layers -----------------------------------------------------------------------------------------------------------


def test_the_stronger_source_wins_key_by_key() -> None:
    strong = Layer("strong", parse("[retention]\nkeep-daily = 1\n[mount]\nread-only = false", "strong"))
    weak = Layer("weak", parse("[retention]\nkeep-daily = 2\nkeep-weekly = 3\n[mount]\nread-only = true", "weak"))
    found = effective([strong, weak])
    assert (found.retention.keep_daily, found.retention.keep_weekly, found.retention.keep_hourly) == (1, 3, 24)
    assert not found.read_only
    assert [found.origins[field] for field in ("keep_daily", "keep_weekly", "keep_hourly", "read_only")] == ["strong", "weak", "default", "strong"]


def test_the_defaults_are_those_of_the_rules() -> None:
    found = effective([])
    assert (found.schedules, found.retention, found.undelete_ns) == (DEFAULT_SCHEDULES, DEFAULT_RETENTION, HOUR_NS)
    assert found.hooks == HookCommands()
    assert (found.read_only, found.allow_other, found.snapdir) == (False, False, SnapDir.VISIBLE)
    assert set(found.origins.values()) == {"default"}


def test_everything_arrives_where_it_is_used() -> None:
    found = effective([Layer("file", MEANT)])
    assert found.retention == Retention(
        keep_last=3,
        keep_minutely=Duration(HOUR_NS),
        keep_hourly=24,
        keep_daily=Duration(30 * DAY_NS),
        keep_weekly=0,
        keep_monthly=12,
        keep_quarterly=4,
        keep_yearly=10,
        keep_within_ns=2 * DAY_NS,
        keep_tags=("important",),
        min_age_ns=HOUR_NS * 3 // 2,
        max_delete_fraction=0.5,
        space_limit_bytes=500 * GIB,
        free_limit_share=0.1,
        zone=ZoneInfo("America/New_York"),
    )
    assert effective([Layer("file", replace(MEANT, free_limit=5))]).retention.free_limit_bytes == 5
    assert found.hooks == HookCommands(("/bin/quiesce", "a b"), ("/bin/release", "a b", "$HOME"), (), 90 * SECOND_NS)
    assert (found.schedules, found.undelete_ns) == (MEANT.schedules, 7 * DAY_NS)
    assert (found.read_only, found.allow_other, found.snapdir) == (True, False, SnapDir.HIDDEN)


def test_utc_is_one_zone() -> None:
    (schedule,) = parse("[[schedule]]\ncron = '0 0 * * *'\ntime-zone = 'UTC'", "f").schedules or ()
    assert schedule.zone is UTC
    assert tomllib.loads(to_toml(replace(NOTHING, schedules=(schedule,)))) == {"schedule": [{"cron": "0 0 * * *"}]}


# --- what the documents say -------------------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[3] / "docs/configuration.md").read_text()


def test_the_example_in_the_documents_has_every_key() -> None:
    (example,) = re.findall(r"^```toml\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)
    settings = parse(example, "docs/configuration.md")
    assert [field.name for field in fields(Settings) if getattr(settings, field.name) is None] == []
    written = {name for table in tomllib.loads(example)["schedule"] for name in table}
    assert written == set(SCHEDULE_KEYS)


def test_the_tables_in_the_documents_have_every_key_with_its_default() -> None:
    defaults = document(DEFAULTS.settings)
    for table in tables():
        (section,) = re.findall(rf"^### `\[{table}\]`\n(.*?)(?=^##)", DOCUMENT, re.MULTILINE | re.DOTALL)
        rows = re.findall(
            r"^\| (`.*?) \|.*?\|.*?\| (.*?) \| .*\|$", section.replace('`"visible"`, `"hidden"`, `"disabled"`', "one of these"), re.MULTILINE
        )
        documented = {name: default.strip("`") for names, default in rows for name in re.findall(r"`(.*?)`", names)}
        assert documented == {name: "[]" if value == [] else json.dumps(value) for name, value in defaults[table].items()}
    (section,) = re.findall(r"^### `\[\[schedule\]\]`\n(.*?)(?=^##)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert re.findall(r"^\| `(.*?)` \|", section, re.MULTILINE) == list(SCHEDULE_KEYS)
