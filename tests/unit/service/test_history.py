"""What is asked about the past is told with names that JSON can hold, and summed up."""

import errno
import stat
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backupfs.engine.attributes import FileVersion, Found, TreeChange
from backupfs.errors import FileSystemError, UsageError
from backupfs.service.history import answer
from backupfs.service.messages import DiffRequest, FindRequest, VersionsRequest, type_word
from tests.unit.service.fake_past import FakeHistory


class Heard:
    """What a command would hear: JSON there and back."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def item(self, value: object) -> None:
        self.items.append(msgspec.json.decode(msgspec.json.encode(value)))

    async def progress(self, done: int, total: int, stage: str = "") -> None:
        raise AssertionError

    async def gone(self) -> None:
        raise AssertionError


async def test_versions() -> None:
    version = FileVersion(b"d/\xff\n", 17, stat.S_IFREG, 5, 123, 0o4755, 1, 2, "a", "b", 3, is_present=True)
    history, heard = FakeHistory(found_versions=[version]), Heard()
    assert await answer(history, VersionsRequest(b"d/\xff\n"), heard) == {"versions": 1}
    assert history.asked == [(b"d/\xff\n",)]
    assert heard.items == [
        {
            "path": "d/\\udcff\n", "type": "file", "size": 5, "mtime_ns": 123, "mode": "4755", "uid": 1, "gid": 2,
            "first": "a", "last": "b", "snapshots": 3, "is_present": True,
        }
    ]  # fmt: skip
    history.failure = FileSystemError(errno.ENOENT)
    with pytest.raises(UsageError, match="'x' is in no snapshot and not in the present: No such file") as refused:
        await answer(history, VersionsRequest(b"x"), heard)
    assert refused.value.fields == {"errno": errno.ENOENT}


async def test_differences_are_told_or_only_summed_up() -> None:
    changes = [
        TreeChange("+", b"new", b"", stat.S_IFREG, None, 10),
        TreeChange("M", b"grown", b"", stat.S_IFREG, 3, 8),
        TreeChange("R", b"there", b"here\xfe", stat.S_IFREG, 7, 7),
        TreeChange("-", b"gone", b"", stat.S_IFREG, 20, None),
        TreeChange("-", b"directory", b"", stat.S_IFDIR, 4096, None),
    ]
    history, heard = FakeHistory(changes=changes), Heard()
    summed = await answer(history, DiffRequest(1, 2, b"below"), heard)
    assert msgspec.to_builtins(summed) == {"counts": {"+": 1, "-": 2, "M": 1, "R": 1}, "more_bytes": 15, "less_bytes": 20}
    assert [(item["kind"], item["path"], item["old_path"], item["type"], item["old_size"], item["size"]) for item in heard.items] == [
        ("+", "new", None, "file", None, 10),
        ("M", "grown", None, "file", 3, 8),
        ("R", "there", "here\\udcfe", "file", 7, 7),
        ("-", "gone", None, "file", 20, None),
        ("-", "directory", None, "directory", 4096, None),
    ]
    assert await answer(history, DiffRequest(1, each=False), silent := Heard()) == summed
    assert silent.items == []
    assert history.asked == [(1, 2, b"below"), (1, 0, b"")]
    history.failure = FileSystemError(errno.ESTALE)
    with pytest.raises(UsageError, match="'/' cannot be compared"):
        await answer(history, DiffRequest(1), heard)


@given(st.lists(st.tuples(st.sampled_from("+-MRTP"), st.none() | st.integers(0, 9), st.none() | st.integers(0, 9), st.booleans()), max_size=9))
async def test_sums(drawn: list[tuple[str, int | None, int | None, bool]]) -> None:
    changes = [TreeChange(kind, b"p", b"", stat.S_IFREG if is_file else stat.S_IFLNK, old, new) for kind, old, new, is_file in drawn]
    summed = msgspec.to_builtins(await answer(FakeHistory(changes=changes), DiffRequest(1, each=False), Heard()))
    assert sum(summed["counts"].values()) == len(changes)
    assert summed["more_bytes"] - summed["less_bytes"] == sum((c.size or 0) - (c.old_size or 0) for c in changes)
    assert min(summed["more_bytes"], summed["less_bytes"]) >= 0


async def test_names_below_a_path() -> None:
    names = [
        Found(b"a/x", stat.S_IFREG, "s1", "s2", 2, is_present=False),
        Found(b"ab/x", stat.S_IFDIR, None, None, 0, is_present=True),
        Found(b"a", stat.S_IFDIR, None, None, 0, is_present=True),
    ]
    history = FakeHistory(names=names)
    heard, below = Heard(), Heard()
    assert await answer(history, FindRequest(b"x\xff*"), heard) == {"found": 3}
    assert await answer(history, FindRequest(b"x*", b"/a/"), below) == {"found": 1}
    assert history.asked == [("x\udcff*",), ("x*",)]
    assert [item["path"] for item in heard.items] == ["a/x", "ab/x", "a"]
    assert below.items == [{"path": "a/x", "type": "file", "first": "s1", "last": "s2", "snapshots": 2, "is_present": False}]


async def test_a_name_that_led_to_one_thing_after_the_other_is_one() -> None:
    """They come newest first in each directory, and those in the order of no time."""
    kind = stat.S_IFREG
    names = [
        Found(b"f", kind, "s3", "s4", 1, is_present=False, serials=(3, 4)),
        Found(b"f", kind, None, None, 0, is_present=True),
        Found(b"f", kind, "s5", "s6", 1, is_present=False, serials=(5, 6)),
        Found(b"f", kind, "s1", "s2", 1, is_present=False, serials=(1, 2)),
        Found(b"f", stat.S_IFDIR, "s0", "s0", 1, is_present=False),
        Found(b"g", kind, "s1", "s1", 1, is_present=False, serials=(1, 1)),
    ]
    heard = Heard()
    assert await answer(FakeHistory(names=names), FindRequest(b"*"), heard) == {"found": 3}
    assert [(n["path"], n["type"], n["first"], n["last"], n["snapshots"], n["is_present"]) for n in heard.items] == [
        ("f", "file", "s1", "s6", 3, True),
        ("f", "directory", "s0", "s0", 1, False),
        ("g", "file", "s1", "s1", 1, False),
    ]
    assert await answer(FakeHistory(), FindRequest(b"*"), heard) == {"found": 0}


def test_words_for_types() -> None:
    kinds = {"S_IFREG": "file", "S_IFDIR": "directory", "S_IFLNK": "symlink", "S_IFIFO": "fifo", "S_IFSOCK": "socket"}
    assert {name: type_word(getattr(stat, name)) for name in kinds} == kinds
    assert type_word(0) == "unknown"
