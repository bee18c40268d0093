"""That documents are read, run and compared as they say: what the tests of the documents rest on."""

import shutil
from pathlib import Path

import pytest

from backupfs.cli.main import commands as program
from scripts.check_docs import commands
from tests import documents
from tests.documents import Command, FailedError, File, Hidden, Normaliser, differing, execute, parse, rewritten

HERE = Path("document.md")


def document(text: str) -> documents.Document:
    return parse(HERE, text)


def test_every_verb_is_shown_with_its_text_and_with_its_json() -> None:
    verbs = set(commands(program))
    shown = set().union(*(documents.shown_verbs(parse(path, path.read_text()), verbs) for path in documents.documents()))
    assert shown == {(verb, as_json) for verb in verbs for as_json in (False, True)}


def test_only_what_prints_something_is_shown() -> None:
    read = document("```console\n$ backupfs init --json | cat\n{}\n$ backupfs umount x\n$ backupfs key list >f; x=$(backupfs status)\nx\n```\n")
    verbs = {("init",), ("umount",), ("key", "list"), ("status",)}
    assert documents.shown_verbs(read, verbs) == {(("init",), True), (("key", "list"), False), (("status",), False)}


def test_reading() -> None:
    read = document(
        "<!-- document\nhome: /root\nplaces: /srv/a /mnt\nneeds: root sh\nlog: a: b\n-->\n"
        "```toml\n# ~/x.toml\na = 1\n```\n```sh\n#!/bin/sh\n# /srv/a/b\n```\n```ini\n[Unit]\n```\n"
        "<!-- run\necho a\n\necho b\n-->\n<!-- not run -->\n"
        "````console\n$ echo a\na\n$ cat <<END\n> b\n> END\nb\n```\n\n$ true\n````\n"
    )
    assert (read.home, read.places, read.needs, read.log) == ("/root", ("/root", "/srv/a", "/mnt"), ("root", "sh"), "a: b")
    assert list(read.steps) == [
        File(7, "~/x.toml", "# ~/x.toml\na = 1\n"),
        File(11, "/srv/a/b", "#!/bin/sh\n# /srv/a/b\n"),
        Hidden(18, "echo a\n\necho b"),
        Command(24, "echo a", range(25, 26)),
        Command(26, "cat <<END\nb\nEND", range(29, 32)),
        Command(32, "true", range(33, 33)),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a\n```console\n$ true\n", ":2: this has no end"),
        ("<!-- run\ntrue\n", ":1: this has no end"),
        ("```console\ntrue\n```\n", ":2: a block of commands begins with one"),
        ("<!-- document\nroot: yes\n-->\n", "unknown in the comment `document`: root"),
        ("```sh\n# /etc/passwd\n```\n", "/etc/passwd lies in none of the document's places"),
    ],
)
def test_what_cannot_be_read(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        document(text)


RUN = """\
<!-- document
places: /srv/a
-->
<!-- run
cd /srv/a
made=here
-->
```sh
# ~/b.sh
echo "from ~ and /srv/a, not /srv/ab"
```
```console
$ echo $made; pwd
here
/srv/a
$ sh ~/b.sh
from ~ and /srv/a, not /srv/ab
$ (exit 3)
$ echo $?
3
$ echo a >&2; printf b
a
b
$ stat -c %a ~/b.sh
644
$ echo $HOME
/home/ada
```
"""


def test_running() -> None:
    read = document(RUN)
    outcome = execute(read)
    assert differing(read, outcome) == {}
    assert rewritten(read, outcome) == RUN


def test_a_difference_is_shown_and_can_be_written_into_the_document() -> None:
    read = document(RUN.replace("here\n/srv/a\n$", "there\n$").replace("644", "600"))
    outcome = execute(read)
    first, second = differing(read, outcome).values()
    assert "-there\n+here\n+/srv/a\n" in first
    assert "-600\n+644\n" in second
    assert rewritten(read, outcome) == RUN


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```console\n$ echo a; false\na\n```\n", "document.md:2: echo a; false\nexit code 1:\na"),
        ("```console\n$ false\n$ echo a\na\n```\n", "document.md:2: false\nexit code 1"),
        ("<!-- run\necho lost\nfalse\ntrue\n-->\n```console\n$ true\n```\n", "document.md:2: echo lost\nended the session:\nlost"),
        (f"<!-- run\nmkdir {'a' * 32}\necho '1 2 WARNING x: y' >{'a' * 32}/log\n-->\n", "in the log, and not expected:\n1 2 WARNING x: y"),
    ],
)
def test_what_fails_is_said(text: str, fault: str) -> None:
    with pytest.raises(FailedError) as caught:
        execute(document(text))
    assert fault in str(caught.value)


def test_a_warning_that_is_expected() -> None:
    execute(document(f"<!-- document\nlog: x. y\n-->\n<!-- run\nmkdir {'a' * 32}\necho '1 2 WARNING x: y' >{'a' * 32}/log\n-->\n"))


def test_what_runs_on_is_ended() -> None:
    read = document("```console\n$ cd; sleep 1000 & echo $!\n```\n")
    (printed,) = execute(read).printed.values()
    assert not Path(f"/proc/{printed[0]}/cwd").exists() or not Path(f"/proc/{printed[0]}/cmdline").read_bytes()


def test_what_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(need: str) -> str:
        return documents.lacking(document(f"<!-- document\nneeds: {need}\n-->\n"))

    assert lacking("sh") == ""
    assert lacking("no-such-program") == "no-such-program is not installed"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert lacking("root") == ""
    monkeypatch.setattr("os.geteuid", lambda: 5)
    assert lacking("root") == "needs root"
    assert shutil.which("sh")


@pytest.mark.parametrize(
    ("text", "same", "other"),
    [
        ("snapshot 2026-11-26T152343Z", "snapshot 2027-01-01T000000Z-002", "snapshot 2026"),
        ("at 2026-11-26T15:23:41.930884Z", "at 2027-01-01T00:00:00.000000Z", "at now"),
        ("2026-11-27        97        0      97         0 B  hhhh", "2026-11-28  1  2  3  20.0 GiB  hdmy", "2026-11-28  1  2  3  20.0 GiB  hxy"),
        ("  last day           97  |#|#|", "  last day           2  ..|", "  last day           2  ..?"),
        ("12.5 MiB  a", "  3 MiB  a", "3 KiB  a"),
        ("6 B", "700 B", "0 B"),
        ('{"size_bytes": 5, "uid": 0}', '{"size_bytes": 12, "uid": 1000}', '{"size_bytes": 0, "uid": 0}'),
        ("pid   12", "pid 1234", "pid -"),
        ("changes since snapshot   1", "changes since snapshot 0", "changes since yesterday 1"),
        ("what lives  18 B in 1 packs", "what lives  19 B in 2 packs", "what lives  19 B in no packs"),
        ("80cee200  password", "9f7f57e2  password", "9f7f57e2  recovery"),
        ("    weapon shoot broom stove brave round", "    mouse alpha luxury cycle absurd trip", "    weapon shoot broom stove brave rounds"),
        ("1.5 TiB of 2.0 TiB are free on its disk.", "58.7 GiB of 252.0 GiB are free on its disk.", "58.7 GiB are free on its disk."),
        ("8 x 64 MiB, 4 lanes", "3 x 64 MiB, 4 lanes", "3 x 64 MiB, 2 lanes"),
    ],
)
def test_normalising(text: str, same: str, other: str) -> None:
    assert Normaliser().line(text) == Normaliser().line(same)
    assert Normaliser().line(text) != Normaliser().line(other)


def test_snapshots_are_told_apart_and_forecasts_are_one() -> None:
    one, two = "2026-11-26T152343Z", "2026-11-26T152343Z-002"
    assert Normaliser().lines([f"{one} {two}", one, "", ""]) == ["<snapshot 1> <snapshot 2>", "<snapshot 1>"]
    assert Normaliser().lines(["2026-11-27  1  0  1  0 B  h", "2026-11-28  1  0  2  1.5 GiB  hh", "a", "a"]) == ["<forecast row>", "a", "a"]
