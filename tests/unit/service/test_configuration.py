"""Which file is read, what beats what, and which files are refused."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from backupfs import limits
from backupfs.errors import UsageError
from backupfs.rules.names import SnapDir
from backupfs.rules.policy import SECOND_NS, Schedule
from backupfs.rules.quantities import CENTURY_NS
from backupfs.rules.retention import excess
from backupfs.service import places
from backupfs.service.configuration import POLICY, Configuration, from_environment, from_option, read_configuration, read_file
from backupfs.service.settings import Settings, Share, effective
from tests.conftest import LogRule


class Places:
    """A user's directory and the system's, with files in them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.user = base / "home/.config/backupfs"
        self.system = base / "etc"
        self.environ = {"HOME": str(base / "home")}
        for directory in (self.user, self.system):
            directory.mkdir(parents=True)

    def put(self, path: Path, daily: int) -> Path:
        path.write_text(f"[retention]\nkeep-daily = {daily}\n")
        return path

    def daily(self, named: str | None = None, **environ: str) -> tuple[object, str]:
        found = read_configuration((), named, self.environ | environ).effective()
        return found.retention.keep_daily, found.origins["keep_daily"]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(places, "SYSTEM_CONFIGURATION", tmp_path / "etc")
    monkeypatch.chdir(tmp_path)
    return Places(tmp_path)


def test_without_any_file_the_defaults(at: Places) -> None:
    assert at.daily() == (30, "default")
    assert read_configuration((), None, at.environ).layers() == []


def test_the_users_file_beats_the_systems(at: Places) -> None:
    system = at.put(at.system / "default.toml", 1)
    assert at.daily() == (1, str(system))
    user = at.put(at.user / "default.toml", 2)
    assert at.daily() == (2, str(user))
    other = at.base / "other"
    (other / "backupfs").mkdir(parents=True)
    assert at.daily(XDG_CONFIG_HOME=str(other)) == (1, str(system))
    assert at.daily(XDG_CONFIG_HOME=str(other), HOME="") == (1, str(system))


def test_without_a_home_the_system_s_file_serves(at: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    system = at.put(at.system / "default.toml", 1)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    at.environ.clear()
    assert at.daily() == (1, str(system))


@pytest.mark.parametrize("variable", [False, True])
def test_a_file_is_named_by_name_or_path(at: Places, variable: bool) -> None:
    def daily(name: str) -> tuple[object, str]:
        return at.daily(BACKUPFS_CONFIG=name) if variable else at.daily(name)

    at.put(at.user / "default.toml", 9)
    work = at.put(at.system / "work.toml", 1)
    here = at.put(at.base / "work.toml", 2)
    assert daily("work") == (1, str(work))
    assert daily("work.toml") == (2, str(here))
    assert daily("./work.toml") == (2, str(here))
    with pytest.raises(UsageError, match=f"there is no configuration file {at.user}/play.toml or {at.system}/play.toml"):
        daily("play")
    with pytest.raises(UsageError, match=f"there is no configuration file {at.base}/missing/x"):
        daily("missing/x")


def test_the_option_beats_the_variable_and_an_empty_variable_is_none(at: Places) -> None:
    at.put(at.user / "one.toml", 1)
    at.put(at.user / "two.toml", 2)
    assert at.daily("one", BACKUPFS_CONFIG="two")[0] == 1
    assert at.daily(BACKUPFS_CONFIG="") == (30, "default")


def test_options_beat_environment_beats_file_beats_policy_beats_defaults(at: Places) -> None:
    def schedule(seconds: int) -> Schedule:
        return Schedule(every_ns=seconds * SECOND_NS)

    file = at.user / "default.toml"
    file.write_text("[[schedule]]\nevery = '3s'\n")
    policy = b'{"schedule": [{"every": "4s"}], "retention": {"keep-daily": 4}}'
    option = from_option("schedules", "1s", "--every")
    environ = at.environ | {"BACKUPFS_EVERY": "2s"}
    found = read_configuration([option], None, environ).effective(policy)
    assert (found.schedules, found.origins["schedules"]) == ((schedule(1),), "--every")
    assert (found.retention.keep_daily, found.origins["keep_daily"]) == (4, POLICY)
    found = read_configuration([], None, environ).effective(policy)
    assert (found.schedules, found.origins["schedules"]) == ((schedule(2),), "BACKUPFS_EVERY")
    found = read_configuration([], None, at.environ).effective(policy)
    assert (found.schedules, found.origins["schedules"]) == ((schedule(3),), str(file))
    file.unlink()
    found = read_configuration([], None, at.environ).effective(policy)
    assert (found.schedules, found.origins["schedules"]) == ((schedule(4),), POLICY)
    assert read_configuration([], None, at.environ).effective().origins["schedules"] == "default"


def test_a_file_is_read_anew(at: Places) -> None:
    first = read_configuration((), None, at.environ)
    user = at.put(at.user / "default.toml", 2)
    second = first.reread()
    assert (second.path, second.effective().retention.keep_daily) == (user, 2)
    assert first.effective().retention.keep_daily == 30, "the first one stays what it was"
    user.write_text("?")
    with pytest.raises(UsageError, match="this is no TOML"):
        second.reread()
    user.unlink()
    assert second.reread() == first
    named = at.put(at.user / "work.toml", 3)
    third = read_configuration((), "work", at.environ)
    named.unlink()
    with pytest.raises(UsageError, match="there is no configuration file"):
        third.reread()


# --- what is refused --------------------------------------------------------------------------------------------------

HOOKS = ("[hooks]\nbefore-snapshot = 'a'", "[hooks]\nafter-snapshot = 'a'", "[hooks]\non-failure = 'a'")


@pytest.mark.parametrize("text", HOOKS)
@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_hooks_that_others_could_write_are_refused(tmp_path: Path, text: str, mode: int) -> None:
    file = tmp_path / "f.toml"
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"{file} has hooks, so it must belong to you or root"):
        read_file(file)
    file.chmod(0o644)
    read_file(file)


def test_hooks_in_somebody_else_s_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.toml"
    file.write_text(HOOKS[0])
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    if file.stat().st_uid == 0:
        read_file(file)  # root's files serve everybody
        if os.getuid() == 0:
            os.chown(file, 54321, -1)
    with pytest.raises(UsageError, match="must belong to you or root"):
        read_file(file)


def test_a_file_without_hooks_may_be_anybody_s(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    file.write_text("[hooks]\nbefore-snapshot = []\n[mount]\nsnapdir = 'hidden'")
    file.chmod(0o666)
    assert read_file(file).snapdir is SnapDir.HIDDEN


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "f.toml"
    with pytest.raises(UsageError, match=f"{tmp_path}: Is a directory"):
        read_file(tmp_path)
    file.write_bytes(b"# \xff")
    with pytest.raises(UsageError, match=f"{file}: this is no UTF-8: .* at byte 2"):
        read_file(file)
    file.write_bytes(b"#" * limits.CONFIGURATION_BYTES_MAX)
    read_file(file)
    file.write_bytes(b"#" * (limits.CONFIGURATION_BYTES_MAX + 1))
    with pytest.raises(UsageError, match="has at most"):
        read_file(file)


# --- options and variables --------------------------------------------------------------------------------------------


def test_each_variable_is_heard() -> None:
    environ = {
        "BACKUPFS_EVERY": "off",
        "BACKUPFS_READ_ONLY": "1",
        "BACKUPFS_ALLOW_OTHER": "no",
        "BACKUPFS_SUID": "1",
        "BACKUPFS_DEV": "yes",
        "BACKUPFS_KEEP_AWAKE": "0",
        "BACKUPFS_SNAPDIR": "disabled",
        "BACKUPFS_X": "1",
    }
    found = effective(from_environment(environ))
    assert (found.schedules, found.read_only, found.allow_other, found.snapdir) == ((), True, False, SnapDir.DISABLED)
    assert (found.suid, found.dev, found.keep_awake) == (True, True, False)
    fields = ("schedules", "read_only", "allow_other", "suid", "dev", "keep_awake", "snapdir")
    assert [found.origins[field] for field in fields] == list(environ)[:7]
    assert from_environment(dict.fromkeys(environ, "")) == []


@pytest.mark.parametrize(
    ("environ", "complaint"),
    [
        ({"BACKUPFS_EVERY": "soon"}, "BACKUPFS_EVERY: 'soon'"),
        ({"BACKUPFS_READ_ONLY": "maybe"}, 'BACKUPFS_READ_ONLY must be true or false, not "maybe"'),
        ({"BACKUPFS_SNAPDIR": "there"}, "BACKUPFS_SNAPDIR must be"),
    ],
)
def test_a_variable_that_is_not_understood_is_named(environ: Mapping[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        from_environment(environ)


def test_a_policy_of_another_version_deletes_nothing(log_rule: LogRule) -> None:
    log_rule.expect("there is no key 'keep-forever'.*no snapshot is deleted")
    of_the_file = Settings(keep_last=1, space_limit_bytes=1, free_limit=Share(0.5), undelete_ns=1, snapdir=SnapDir.HIDDEN)
    configuration = Configuration((), (), named=False, path=Path("/file"), file=of_the_file)
    found = configuration.effective(b'{"retention": {"keep-forever": 1, "keep-daily": 1, "undelete-time": "1w"}}')
    assert found.origins["keep_last"].startswith(POLICY)
    assert found.retention.keep_last == 999_999_999
    assert found.retention.keep_daily == 30
    assert found.undelete_ns == CENTURY_NS
    assert excess(found.retention, used_bytes=2**40, free_bytes=0, total_bytes=2**40) == 0
    assert found.snapdir is SnapDir.HIDDEN, "what is not the policy's business stays"
