"""Whatever is shown of settings is read back as the same settings, in each of the forms."""

import tomllib
from dataclasses import fields, replace
from datetime import UTC, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

import hypothesis
from hypothesis import given
from hypothesis import strategies as st

from backupfs.errors import UsageError
from backupfs.rules.names import SnapDir
from backupfs.rules.policy import SECOND_NS, Duration, Schedule
from backupfs.service.settings import Layer, Settings, Share, overlaid
from backupfs.service.vocabulary import KEYS, document, from_document, from_json, parse, policy_of, to_json, to_toml

lengths = st.integers(1, 10**8).map(lambda seconds: seconds * SECOND_NS)
sizes = st.one_of(st.integers(1, 2**62), st.integers(1, 5000).map(lambda count: count << 30))
keeps = st.one_of(st.integers(0, 10**6), lengths.map(Duration))
tags = st.lists(st.text(st.characters(exclude_characters=",\0", codec="utf-8"), min_size=1).filter(str.isprintable), max_size=3, unique=True).map(
    tuple
)
zones: st.SearchStrategy[tzinfo] = st.sampled_from([UTC, ZoneInfo("Europe/Berlin"), ZoneInfo("Asia/Kathmandu")])
arguments = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
commands = st.one_of(st.just(()), st.tuples(arguments.filter(bool), arguments))
shares = st.integers(1, 999).map(lambda tenths: Share(tenths / 1000))
schedules = st.builds(
    lambda trigger, tags, always: Schedule(**trigger, tags=tags, always=always),
    st.one_of(
        st.fixed_dictionaries({"every_ns": lengths}),
        st.fixed_dictionaries({"on_idle_ns": lengths}),
        st.fixed_dictionaries({"on_change_records": st.integers(1, 10**9)}),
        st.fixed_dictionaries({"on_change_bytes": sizes}),
        st.fixed_dictionaries({"cron": st.sampled_from(["0 3 * * *", "*/5 8-18 * * MON-FRI"]), "zone": zones}),
    ),
    tags,
    st.booleans(),
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "schedules": st.lists(schedules, max_size=3).map(tuple),
    **{field.name: keeps for field in fields(Settings) if field.name.startswith("keep_")},
    "keep_within_ns": st.one_of(st.just(0), lengths),
    "keep_tags": tags,
    "min_age_ns": st.one_of(st.just(0), lengths),
    "max_delete_fraction": st.floats(0, 1, exclude_min=True),
    "space_limit_bytes": st.one_of(st.just(0), sizes),
    "free_limit": st.one_of(st.just(0), sizes, shares),
    "retention_zone": zones,
    "undelete_ns": st.one_of(st.just(0), lengths),
    "before_snapshot": commands,
    "after_snapshot": commands,
    "on_failure": commands,
    "hook_timeout_ns": lengths,
    "read_only": st.booleans(),
    "allow_other": st.booleans(),
    "suid": st.booleans(),
    "dev": st.booleans(),
    "keep_awake": st.booleans(),
    "snapdir": st.sampled_from(SnapDir),
}
settings = st.builds(Settings, **{name: st.one_of(st.none(), values) for name, values in VALUES.items()})


def test_every_field_is_tried() -> None:
    assert set(VALUES) == {field.name for field in fields(Settings)}


@given(settings, st.text())
def test_what_is_shown_is_read_back(made: Settings, origin: str) -> None:
    origins = {key.field: origin for key in KEYS}
    text = to_toml(made, origins)
    assert all(line.isprintable() for line in text.split("\n"))
    assert parse(text, "shown") == made
    assert tomllib.loads(text) == document(made), "another reader of TOML finds the same"
    assert from_document(document(made), "told") == made
    assert from_json(to_json(made), "kept") == policy_of(made)


@given(st.lists(settings, max_size=4))
def test_each_value_is_that_of_the_first_source_that_has_one(sources: list[Settings]) -> None:
    layers = [Layer(str(number), source) for number, source in enumerate(sources)]
    found, origins = overlaid(layers)
    for field in fields(Settings):
        said = [(layer.origin, value) for layer in layers if (value := getattr(layer.settings, field.name)) is not None]
        assert (origins.get(field.name), getattr(found, field.name)) == (said[0] if said else (None, None))


nonsense = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), st.text(), st.none()),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=5,
)


@given(st.sampled_from(KEYS), nonsense)
def test_a_value_is_understood_or_refused_by_name(key: Any, value: object) -> None:
    """Nothing else comes out, whatever stands there; and what is understood is shown as something that means the same."""
    written = {key.table: {key.name: value}} if key.table else {key.name: value}
    refusal = ""
    read = Settings()
    try:
        read = from_document(written, "file")
    except UsageError as error:
        refusal = str(error)
    hypothesis.event("refused" if refusal else "understood")
    assert not refusal or (refusal.startswith("file: ") and key.name in refusal)
    assert from_document(document(read), "file") == read == replace(Settings(), **{key.field: getattr(read, key.field)})
