"""Programs that press a file system and look at what comes back: stress-ng, dbench, bonnie++, fio."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from scripts.foreign.result import FAILS, PASSES, SHOWN_CHARACTERS, SKIPS, FailedError, Place, Result, Suite, single

ELSEWHERE: Final = {
    "bind-mount": "mounts the root on itself",
    "binderfs": "mounts another file system",
    "eventfd": "has no file",
    "io": "syncs every file system of the machine, one after the other",
    "ioprio": "is about the scheduler",
    "procfs": "reads /proc",
}
"""Stressors of the class that do not touch the directory that they are given."""
_SAYS: Final = re.compile(r"^stress-ng: (fail|error):\s+\[\d+\] (.*)$", re.MULTILINE)
_SKIPPING: Final = re.compile(r"^stress-ng: info:\s+\[\d+\] (.*skipping.*)$", re.MULTILINE)
_DONE: Final = re.compile(r"^stress-ng: metrc: \[\d+\] (\S+) +(\d+) ", re.MULTILINE)
_VARYING: Final = re.compile(r"\b0x[0-9a-f]+\b|\b\d+\b|/\S+")
UNNOTICED: Final[dict[str, list[str | Path]]] = {"fpunch": ["fallocate", "--punch-hole", "--length", "4096", "probe"]}
"""What a stressor does all the time without a look at whether it works: a command that does the same to a file."""
SMALLER: Final = {"iomix": ["--iomix-bytes", "8m"], "sync-file": ["--sync-file-bytes", "8m"]}
"""Without FALLOCATE these write 1 GiB before they begin, iomix with O_SYNC."""
LONGER: Final = {"iomix": 10, "xattr": 20}
"""So many times as long as the others. One turn of xattr sets 4096 attributes, for which ext4 has no room: there it ends sooner."""
FIO_SIZE: Final = "24m"
FIO_JOBS: Final = {
    "writes at random": ["--ioengine=psync", "--bsrange=4k-64k"],
    "a mapping": ["--ioengine=mmap", "--bs=4k", "--fsync=64"],
    "several jobs": ["--ioengine=psync", "--bsrange=4k-64k", "--numjobs=4", "--fdatasync=50"],
    "direct": ["--ioengine=psync", "--direct=1", "--bs=4k"],
    "direct, asynchronous": ["--ioengine=libaio", "--direct=1", "--bs=16k", "--iodepth=16"],
    "one file, several writers": ["--ioengine=psync", "--bs=8k", "--numjobs=4", "--filename=shared", "--offset_increment=24m"],
}


def stress_ng(place: Place) -> Mapping[str, Result]:
    """Every stressor of the class "filesystem", two of each, for so many seconds."""
    listed = place.run(["stress-ng", "--class", "filesystem?"]).output
    stressors = listed.split("stressors:")[1].split()
    return {f"stress-ng {name}": _stress(place, name) for name in stressors if name not in ELSEWHERE}


def _stress(place: Place, name: str) -> Result:
    directory = place.directory / name
    directory.mkdir()
    seconds = place.seconds * LONGER.get(name, 1)
    options = ["--verify", "--metrics-brief", "--timeout", f"{seconds}s", *SMALLER.get(name, [])]
    done = place.run(["stress-ng", f"--{name}", "2", *options, "--temp-path", directory], cwd=directory)
    said = {_VARYING.sub("N", text) for _, text in _SAYS.findall(done.output)}
    skipped = {_VARYING.sub("N", text) for text in _SKIPPING.findall(done.output)}
    place.run(["chattr", "-R", "-f", "-i", "-a", directory])  # a stressor may be ended while it has made something immutable
    if any(stressor == name and int(count) == 0 for stressor, count in _DONE.findall(done.output)):
        skipped.add("does nothing")
    if name in UNNOTICED:
        (directory / "probe").write_bytes(bytes(8192))
        if place.run(UNNOTICED[name], cwd=directory).code:
            skipped.add("does not notice that it cannot")
    status = FAILS if done.code or said else SKIPS if skipped else PASSES
    return Result(status, frozenset(said | skipped), "" if status == PASSES else done.output[-SHOWN_CHARACTERS:])


def _dbench(place: Place) -> None:
    output = place.must(["dbench", "-D", place.directory, "-t", str(3 * place.seconds), "4"])
    # A container may lack System V semaphores; dbench then does without.
    failed = [line for line in output.splitlines() if "failed" in line.lower() and "barrier semaphore" not in line]
    if "Throughput" not in output or failed:
        raise FailedError("an operation of the load fails", output)


def _bonnie(place: Place) -> None:
    as_root = ["-u", "root"] if os.geteuid() == 0 else []
    place.must(["/usr/sbin/bonnie++", "-d", place.directory, "-s", "96", "-r", "48", "-n", "2", "-q", *as_root])


def fio(place: Place) -> Mapping[str, Result]:
    """Write at random, read back, compare each block's checksum."""
    return {f"fio --verify, {name}": _fio(place, name, options) for name, options in FIO_JOBS.items()}


def _fio(place: Place, name: str, options: list[str]) -> Result:
    directory = place.directory / re.sub(r"\W+", "-", name)
    directory.mkdir()
    report = place.scratch / "fio.json"
    checks = ["--rw=randwrite", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0", "--randseed=7"]
    output = ["--output-format=json", f"--output={report}"]
    done = place.run(["fio", "--name=job", f"--directory={directory}", f"--size={FIO_SIZE}", *checks, *options, *output])
    try:  # warnings may stand before the report
        errors = {job["error"] for job in json.loads("{" + report.read_text().partition("{")[2])["jobs"]} - {0}
    except (ValueError, FileNotFoundError):
        return Result(FAILS, frozenset({f"ends with {done.code} and no report"}), done.output[-SHOWN_CHARACTERS:])
    said = {f"errno {error}" for error in errors} | ({f"ends with {done.code}"} if done.code else set())
    return Result(FAILS if said else PASSES, frozenset(said), done.output[-SHOWN_CHARACTERS:] if said else "")


SUITES: Final = (
    Suite("stress-ng", stress_ng),
    Suite("dbench", single("dbench, 4 clients", _dbench)),
    Suite("bonnie", single("bonnie++", _bonnie)),
    Suite("fio", fio),
)
