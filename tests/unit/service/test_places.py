"""Where things lie, from the environment alone; and which places must not lie in one another."""

import os
from pathlib import Path

import pytest

from backupfs.errors import UsageError
from backupfs.service.places import SYSTEM_STATE, default_repository, refuse_overlap, state_home


def test_state_home() -> None:
    assert state_home({}, 0) == SYSTEM_STATE
    assert state_home({"HOME": "/home/ann"}, 1000) == Path("/home/ann/.local/state/backupfs")
    assert state_home({"HOME": "/home/ann", "XDG_STATE_HOME": "/s"}, 1000) == Path("/s/backupfs")
    assert state_home({"HOME": "/home/ann", "XDG_STATE_HOME": "relative"}, 1000) == Path("/home/ann/.local/state/backupfs")
    assert state_home({"BACKUPFS_STATE_HOME": "here", "XDG_STATE_HOME": "/s"}, 0) == Path.cwd() / "here"


def test_default_repository() -> None:
    assert default_repository({"HOME": "/root"}) == Path("/root/.local/share/backupfs/repository")
    assert default_repository({"HOME": "/root", "XDG_DATA_HOME": "/d"}) == Path("/d/backupfs/repository")
    assert default_repository({"BACKUPFS_REPOSITORY": "/r", "XDG_DATA_HOME": "/d"}) == Path("/r")


def test_without_a_home_the_password_database_is_asked() -> None:
    assert default_repository({}).is_absolute()


def test_a_home_that_is_no_absolute_path_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="XDG_DATA_HOME"):
        default_repository({"HOME": "here"})


def test_places_beside_each_other_are_fine(tmp_path: Path) -> None:
    for name in ("mount", "repository", "state"):
        (tmp_path / name).mkdir()
    refuse_overlap(tmp_path / "mount", {"repository": tmp_path / "repository", "state": tmp_path / "state"})


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize(
    ("directory", "repository", "words"),
    [
        ("a", "a", "lies inside the repository"),
        ("a/b/c", "a", "lies inside the repository"),
        ("a", "a/b/c", "would lie inside the mount"),
    ],
)
def test_one_inside_the_other_is_refused_also_through_links(tmp_path: Path, directory: str, repository: str, words: str, link: bool) -> None:
    (tmp_path / "real" / "a" / "b" / "c").mkdir(parents=True)
    os.symlink(tmp_path / "real", tmp_path / "link")
    with pytest.raises(UsageError, match=words):
        refuse_overlap(tmp_path / "real" / directory, {"repository": tmp_path / ("link" if link else "real") / repository})
