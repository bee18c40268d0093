"""docs/posix.md names every difference that a test shows, and no test that is not there."""

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent
PAGE: Final = (ROOT / "docs" / "posix.md").read_text(encoding="utf-8")
SUITE: Final = ROOT / "tests" / "posix"


def test_every_difference_is_told_and_shown() -> None:
    shown = {name for path in SUITE.glob("test_*.py") for name in re.findall(r"^def (test_unlike_ext4_\w+)", path.read_text(), re.MULTILINE)}
    assert shown == set(re.findall(r"\btest_unlike_ext4_\w+", PAGE))
    assert len(shown) > 10


def test_only_what_is_told_is_expected_to_differ() -> None:
    """Whoever asks what is different says so in the name of the test."""
    for path in SUITE.glob("test_*.py"):
        for name, body in re.findall(r"^def (test_\w+)(.*?)(?=^\S|\Z)", path.read_text(), re.MULTILINE | re.DOTALL):
            if "here_or_on_ext4" in body:
                assert name.startswith("test_unlike_ext4_"), f"{path.name}: {name}"


def test_every_file_of_the_suite_is_named_and_every_named_file_is_there() -> None:
    for path in SUITE.glob("test_*.py"):
        assert path.name in PAGE or path.name == "test_actors.py", path.name
    for named in re.findall(r"`([\w/]+\.py)`", PAGE):
        assert (ROOT / named).exists() or (SUITE / named).exists(), named
