"""A policy changed by words: each change, and what is refused."""

from dataclasses import replace

import pytest

from backupfs.errors import UsageError
from backupfs.rules.policy import SECOND_NS, Duration, Schedule
from backupfs.service.settings import NOTHING, Settings, Share
from backupfs.service.words import changed

MINUTE_NS = 60 * SECOND_NS
HOURLY = Schedule(every_ns=60 * MINUTE_NS, tags=("a",))


def test_every_kind_of_value() -> None:
    words = ["keep-daily=30", "keep-last=2d", "keep-tag=a,b", "min-age=0", "max-delete-fraction=0.5", "space-limit=1GiB", "free-limit=5%"]
    settings = changed(NOTHING, [*words, "retention.time-zone=UTC"])
    assert (settings.keep_daily, settings.keep_last, settings.keep_tags) == (30, Duration(48 * 60 * MINUTE_NS), ("a", "b"))
    assert (settings.min_age_ns, settings.max_delete_fraction, settings.space_limit_bytes, settings.free_limit) == (0, 0.5, 1 << 30, Share(0.05))
    assert str(settings.retention_zone) == "UTC"


def test_an_empty_value_takes_a_key_out_and_leaves_the_others() -> None:
    before = Settings(keep_daily=1, keep_weekly=2, schedules=(HOURLY,))
    assert changed(before, ["keep-daily="]) == replace(before, keep_daily=None)
    assert changed(before, ["keep-daily=", "keep-weekly=", "schedule="]) == NOTHING
    assert changed(before, []) == before


@pytest.mark.parametrize(
    ("words", "schedules"),
    [
        ("every=15m", (Schedule(every_ns=15 * MINUTE_NS, tags=("a",)),)),
        ("tags=b,c always=yes", (replace(HOURLY, tags=("b", "c"), always=True),)),
        ("schedule.tags=", (replace(HOURLY, tags=()),)),
        ("on-change=500", (Schedule(on_change_records=500, tags=("a",)),)),
        ("on-change=5MiB", (Schedule(on_change_bytes=5 << 20, tags=("a",)),)),
        ("every= on-idle=1m", (Schedule(on_idle_ns=MINUTE_NS, tags=("a",)),)),
        ("every=", None),
        ("every=off", ()),
        ("schedule=", None),
        ("schedule= every=2m", (Schedule(every_ns=2 * MINUTE_NS),)),
    ],
)
def test_keys_of_a_schedule_are_about_the_one_there_is(words: str, schedules: tuple[Schedule, ...] | None) -> None:
    assert changed(Settings(schedules=(HOURLY,), keep_last=1), words.split()) == Settings(schedules=schedules, keep_last=1)


def test_a_first_schedule() -> None:
    made = changed(NOTHING, ["cron=0 3 * * *", "schedule.time-zone=Europe/Berlin"]).schedules
    assert made is not None
    assert (made[0].cron, str(made[0].zone)) == ("0 3 * * *", "Europe/Berlin")
    assert changed(Settings(schedules=made), ["every=1h"]).schedules == (Schedule(every_ns=60 * MINUTE_NS),), "the zone was for cron"
    assert changed(Settings(schedules=()), ["every=1h"]).schedules == (Schedule(every_ns=60 * MINUTE_NS),)


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("keep-daily", "'keep-daily' is not of the form KEY=VALUE"),
        ("keep-dayly=3", "there is no key 'keep-dayly'; the nearest is 'keep-daily'"),
        ("retention.every=3", "there is no key 'every'; the nearest is"),
        ("time-zone=UTC", "time-zone may mean retention.time-zone or schedule.time-zone"),
        ("keep-daily=often", "keep-daily: 'often' "),
        ("max-delete-fraction=half", "max-delete-fraction must be a number"),
        ("always=perhaps", "always must be true or false"),
        ("every=5x", "every: '5x' "),
        ("keep-tag=a\x1b", "its value has signs that cannot be printed"),
        ("schedule=hourly", "schedule= takes all schedules out"),
        ("before-snapshot=rm", "there is no key 'before-snapshot'"),
        ("cron=0 0 * * * tags=x", "cron: "),
    ],
)
def test_what_is_refused(word: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        changed(Settings(schedules=(HOURLY,)), [word])


def test_a_schedule_without_a_trigger_is_refused() -> None:
    with pytest.raises(UsageError, match="exactly one of every, cron"):
        changed(NOTHING, ["tags=a"])


def test_several_schedules_are_changed_in_a_file() -> None:
    several = Settings(schedules=(HOURLY, HOURLY))
    with pytest.raises(UsageError, match="several schedules"):
        changed(several, ["tags=x"])
    assert changed(several, ["every=off"]).schedules == ()
    assert changed(several, ["schedule="]).schedules is None
