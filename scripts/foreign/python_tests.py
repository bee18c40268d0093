"""The tests of Python's own library that are about files, as Debian ships them."""

import os
import pwd
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from scripts.foreign.result import FAILS, PASSES, SHOWN_CHARACTERS, Place, Result, Suite

PYTHON: Final = "/usr/bin/python3"
MODULES: Final = (
    "test_os", "test_posix", "test_shutil", "test_tarfile", "test_zipfile", "test_mmap", "test_fcntl", "test_tempfile", "test_pathlib",
    "test_glob", "test_io", "test_fileio", "test_file", "test_bufio", "test_largefile", "test_stat", "test_posixpath", "test_genericpath",
    "test_filecmp", "test_fileinput", "test_dbm", "test_dbm_dumb", "test_dbm_gnu", "test_shelve", "test_mailbox",
    "test_gzip", "test_zipimport",
    "test_unicode_file",
)  # fmt: skip
WITH_OTHER_RIGHTS: Final = ("test_os", "test_posix", "test_shutil", "test_tempfile", "test_pathlib", "test_glob", "test_tarfile", "test_posixpath")
"""What answers an ordinary user differently."""
RESOURCES: Final = {"test_largefile": ["-u", "largefile"]}


def python_tests(place: Place) -> Mapping[str, Result]:
    """A row for each module; as root, once more for some with the rights of nobody."""
    rows = {f"Python {module}": _module(place, module) for module in MODULES}
    if os.geteuid() == 0:
        nobody = place.as_user(pwd.getpwnam("nobody").pw_uid)
        rows |= {f"Python {module}, as nobody": _module(nobody, module) for module in WITH_OTHER_RIGHTS}
    return rows


def _module(place: Place, module: str) -> Result:
    report = place.scratch / f"{module}-{place.user}.xml"
    report.touch()
    report.chmod(0o666)
    options: list[str | Path] = ["--junit-xml", report, "--tempdir", place.directory, *RESOURCES.get(module, [])]
    # With one process each module has a fresh one, and the directory is where files go that are made without a word on where.
    done = place.run([PYTHON, "-m", "test", *options, module], environment={"PYTHONDONTWRITEBYTECODE": "1"})
    text = report.read_text()
    if not text:
        return Result(FAILS, frozenset({f"ends with {done.code} and no report"}), done.output[-SHOWN_CHARACTERS:])
    details = set()
    for case in ET.fromstring(text).iter("testcase"):
        name = case.get("name", "").removeprefix("test.")
        for kind in ("error", "failure", "skipped"):
            if case.find(kind) is not None:
                details.add(f"{kind}: {name}")
    failed = done.code != 0 or any(not detail.startswith("skipped") for detail in details)
    return Result(FAILS if failed else PASSES, frozenset(details), done.output[-4 * SHOWN_CHARACTERS :] if failed else "")


SUITES: Final = (Suite("python", python_tests),)
