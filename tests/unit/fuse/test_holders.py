"""Holders are found in /proc without asking the mount itself."""

import os
from pathlib import Path

import pytest

from backupfs.fuse.holders import Holder, describe, holders

POINT = "/mnt/with space"
MOUNTINFO = (
    "20 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "42 20 0:77 / /mnt/with\\040space rw - fuse.backupfs backupfs rw\n"
    "43 42 0:78 / /mnt/with\\040space/below rw - tmpfs none rw\n"
    "44 20 0:79 / /mnt/with\\040space2 rw - tmpfs none rw\n"
)


class FakeProc:
    def __init__(self, base: Path) -> None:
        self.proc, self.loops = base / "proc", base / "block"
        self.loops.mkdir()
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "self" / "mountinfo").write_text(MOUNTINFO)

    def process(self, pid: int, cwd: str = "/", exe: str | None = "/bin/sh", files: dict[str, tuple[str, int]] | None = None, maps: str = "") -> Path:
        process = self.proc / str(pid)
        for directory in (process, process / "fd", process / "fdinfo"):
            directory.mkdir()
        (process / "comm").write_text(f"name {pid}\n")
        (process / "maps").write_text(maps)
        links = {"cwd": cwd, "root": "/"} | ({"exe": exe} if exe is not None else {})
        for name, target in links.items():
            (process / name).symlink_to(target)
        for number, (target, mount_id) in (files or {}).items():
            (process / "fd" / number).symlink_to(target)
            (process / "fdinfo" / number).write_text(f"pos:\t0\nflags:\t0100000\nmnt_id:\t{mount_id}\n")
        return process

    def found(self) -> list[Holder]:
        return holders(Path(POINT), self.proc, self.loops)


@pytest.fixture
def fake(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path)


NESTED = (0, "mount", f"tmpfs on {POINT}/below")


def test_each_way_of_holding(fake: FakeProc) -> None:
    fake.process(10, cwd=POINT)
    fake.process(9, exe=f"{POINT}/program (deleted)")
    fake.process(11, files={"3": (f"{POINT}/file", 42), "4": ("/elsewhere", 20)})
    fake.process(
        12,
        maps=f"7f00-7f01 r--p 00000000 00:4d 5    {POINT}/mapped file\n7f02-7f03 rw-p 0 00:00 0\n7f04-7f05 r--p 0 00:4d 5    {POINT}/mapped file\n",
    )
    backing = fake.loops / "loop3" / "loop"
    backing.mkdir(parents=True)
    (backing / "backing_file").write_text(f"{POINT}/image\n")
    assert fake.found() == [
        (9, "name 9", f"exe {POINT}/program (deleted)"),
        (10, "name 10", f"cwd {POINT}"),
        (11, "name 11", f"open {POINT}/file"),
        (12, "name 12", f"mapped {POINT}/mapped file"),
        NESTED,
        (0, "loop3", f"loop device on {POINT}/image"),
    ]


def test_what_only_looks_like_it_is_left_out(fake: FakeProc) -> None:
    fake.process(10, cwd=f"{POINT}2", exe=None, files={"3": (f"{POINT}/file of another namespace", 99)})
    other = fake.loops / "loop1" / "loop"
    other.mkdir(parents=True)
    (other / "backing_file").write_text("/image\n")
    assert fake.found() == [NESTED]


def test_processes_that_are_gone_are_passed_over(fake: FakeProc) -> None:
    process = fake.process(10, cwd=POINT, files={"3": (f"{POINT}/file", 42)})
    (process / "fdinfo" / "3").unlink()  # closed between two looks
    (fake.proc / "11").mkdir()  # ended between two looks
    assert fake.found() == [(10, "name 10", f"cwd {POINT}"), NESTED]


def test_nothing_holds_what_is_not_mounted(fake: FakeProc) -> None:
    fake.process(10, cwd="/other")
    assert holders(Path("/other"), fake.proc, fake.loops) == []


def test_in_one_line() -> None:
    assert describe([(7, "vim", "open /m/f"), (0, "loop0", "loop device on /m/i")]) == "vim (7: open /m/f), loop0 (loop device on /m/i)"
    assert describe([])


def test_the_real_proc_can_be_read() -> None:
    assert holders(Path(f"/nothing/{os.getpid()}")) == []
