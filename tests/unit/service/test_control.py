"""The control socket: requests and replies over real sockets, in every order that a peer may try."""

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from backupfs.errors import BackupfsError, LockedError, WrongPasswordError
from backupfs.service import client as command_end
from backupfs.service import control
from backupfs.service.client import Client, connected
from backupfs.service.control import CONNECTIONS_MAX, Replies, listening
from backupfs.service.messages import (
    REQUEST_BYTES_MAX,
    NotRunningError,
    Request,
    SnapshotCreateRequest,
    SnapshotDeleteRequest,
    StatusRequest,
)
from tests.conftest import LogRule


async def echo(request: Request, replies: Replies) -> object:
    """Answers with what it was asked."""
    await replies.item({"number": 1})
    await replies.progress(1, 2)
    await replies.item({"number": 2})
    return request


async def asked(path: Path, request: Request, **callbacks: Callable[..., None]) -> Any:
    def ask() -> Any:
        with connected(path) as client:
            assert client.pid == os.getpid()
            return client.ask(request, **callbacks)

    return await trio.to_thread.run_sync(ask)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


async def test_a_request_gets_its_items_progress_and_result(path: Path) -> None:
    items: list[Any] = []
    progress: list[tuple[int, int]] = []
    async with listening(path, echo):
        result = await asked(
            path,
            SnapshotCreateRequest("why\n", ["t"]),
            on_item=items.append,
            on_progress=lambda done, total, _: progress.append((done, total)),
        )
    assert result == {"request": "snapshot-create", "message": "why\n", "tags": ["t"], "name": ""}
    assert items == [{"number": 1}, {"number": 2}]
    assert progress == [(1, 2)]


async def test_a_path_longer_than_a_socket_address_serves(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 200)
    directory.mkdir()
    async with listening(directory / "control.sock", echo):
        assert await asked(directory / "control.sock", StatusRequest()) == {"request": "status"}


async def test_only_the_user_may_connect_and_a_leftover_socket_is_replaced(path: Path) -> None:
    path.write_bytes(b"left over")
    async with listening(path, echo):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("error", [LockedError("held", pid=3), WrongPasswordError("no"), BackupfsError("some")])
async def test_an_error_comes_out_as_what_it_was(path: Path, error: BackupfsError) -> None:
    async def fail(request: Request, replies: Replies) -> object:
        raise ExceptionGroup("from a nursery", [ExceptionGroup("and another", [error])])

    async with listening(path, fail):
        with pytest.raises(type(error), match=str(error)) as caught:
            await asked(path, StatusRequest())
    assert type(caught.value) is type(error)
    assert caught.value.fields == error.fields


async def test_a_fault_is_logged_and_the_next_request_is_answered(path: Path, log_rule: LogRule) -> None:
    log_rule.expect("a request over the control socket failed")

    async def fail(request: Request, replies: Replies) -> object:
        if isinstance(request, StatusRequest):
            raise ZeroDivisionError("a fault")
        return None

    async with listening(path, fail):
        with pytest.raises(BackupfsError, match="internal error: ZeroDivisionError"):
            await asked(path, StatusRequest())
        assert await asked(path, SnapshotDeleteRequest("x")) is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{}\n", "not understood"),
        (b"\xff\n", "not understood"),
        (b'{"request":"status"', "cut short"),
        (b'{"request":"reformat"}\n', "not understood"),
        (b"x" * (REQUEST_BYTES_MAX + 1), "too long"),
    ],
)
async def test_what_is_no_request_is_refused_in_words(path: Path, line: bytes, words: str) -> None:
    def send() -> bytes:
        with connected(path) as client:
            raw = client._connection
            raw.sendall(line)
            raw.shutdown(socket.SHUT_WR)
            with raw.makefile("rb") as stream:
                return stream.read()

    async with listening(path, echo):
        answer = msgspec.json.decode(await trio.to_thread.run_sync(send))
    assert answer["reply"] == "failure"
    assert words in answer["message"]


async def test_another_users_process_is_not_heard(path: Path, monkeypatch: pytest.MonkeyPatch, log_rule: LogRule) -> None:
    """Who is at the other end is the kernel's word, which only a process of somebody else's could change: it is put in its mouth."""
    log_rule.expect("was refused at the control socket")
    monkeypatch.setattr(control, "peer_of", lambda connection: (1, os.geteuid() + 1))
    async with listening(path, echo):
        with pytest.raises(BackupfsError, match="went away"):
            await asked(path, StatusRequest())


async def test_another_users_daemon_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from the other end."""
    async with listening(path, echo):
        monkeypatch.setattr(command_end, "peer_of", lambda connection: (1, os.geteuid() + 1))
        with pytest.raises(NotRunningError, match="another user"):
            await asked(path, StatusRequest())


async def test_where_nobody_listens_nothing_is_running(path: Path) -> None:
    with pytest.raises(NotRunningError), connected(path):
        pass
    async with listening(path, echo):
        pass
    assert path.exists()
    with pytest.raises(NotRunningError), connected(path):
        pass


async def test_more_commands_than_places_are_all_answered(path: Path) -> None:
    inside = 0
    most = 0

    async def slow(request: Request, replies: Replies) -> object:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await trio.testing.wait_all_tasks_blocked()
        inside -= 1
        return inside

    async with listening(path, slow), trio.open_nursery() as nursery:
        for _ in range(2 * CONNECTIONS_MAX):
            nursery.start_soon(asked, path, StatusRequest())
    assert most <= CONNECTIONS_MAX


async def test_a_command_that_goes_away_ends_its_request_alone(path: Path) -> None:
    gone = trio.Event()

    async def endless(request: Request, replies: Replies) -> object:
        try:
            while True:
                await replies.progress(0, 0)
        finally:
            gone.set()

    def leave() -> None:
        with connected(path) as client:
            client._connection.sendall(b'{"request":"status"}\n')

    async with listening(path, endless):
        await trio.to_thread.run_sync(leave)
        await gone.wait()


async def test_a_request_in_work_is_answered_before_the_end(path: Path) -> None:
    asked_for, answer = trio.Event(), trio.Event()
    results: list[Any] = []

    async def wait(request: Request, replies: Replies) -> object:
        asked_for.set()
        await answer.wait()
        return "done"

    async def ask() -> None:
        results.append(await asked(path, StatusRequest()))

    async with trio.open_nursery() as nursery, listening(path, wait):
        nursery.start_soon(ask)
        await asked_for.wait()
        nursery.start_soon(_set_later, answer)
    assert results == ["done"]


async def _set_later(event: trio.Event) -> None:
    await trio.testing.wait_all_tasks_blocked()
    event.set()


async def test_an_error_that_quotes_names_of_any_bytes_is_told(path: Path) -> None:
    name = os.fsdecode(b"n\xff\n")

    async def fail(request: Request, replies: Replies) -> object:
        raise BackupfsError(f"held by {name}", holders=[name], place=Path(name), count=3, nothing=None)

    async with listening(path, fail):
        with pytest.raises(BackupfsError) as caught:
            await asked(path, StatusRequest())
    assert str(caught.value) == "held by n\\udcff\n"
    assert caught.value.fields == {"holders": ["n\\udcff\n"], "place": "n\\udcff\n", "count": 3, "nothing": None}


async def test_what_cannot_even_be_told_leaves_the_others_alone(path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch) -> None:
    log_rule.expect("a command could not be answered")

    async def fail(request: Request, replies: Replies) -> object:
        if isinstance(request, StatusRequest):
            raise ZeroDivisionError
        return "fine"

    def untellable(error: BaseException) -> None:
        raise UnicodeError

    monkeypatch.setattr(control, "failure", untellable)
    async with listening(path, fail):
        with pytest.raises(BackupfsError, match="went away"):
            await asked(path, StatusRequest())
        assert await asked(path, SnapshotDeleteRequest("x")) == "fine"


async def test_a_shortage_of_descriptors_passes(path: Path, log_rule: LogRule, monkeypatch: pytest.MonkeyPatch) -> None:
    log_rule.expect("no connection can be accepted at the control socket: Too many open files")
    monkeypatch.setattr(control, "SHORTAGE_PAUSE_S", 0.0)
    accept = trio.SocketListener.accept
    shortages = iter([errno.EMFILE, errno.ENFILE])

    async def short(self: trio.SocketListener) -> trio.SocketStream:
        code = next(shortages, None)
        if code is not None:
            raise OSError(code, os.strerror(code))
        return await accept(self)

    log_rule.expect("Too many open files in system")
    monkeypatch.setattr(trio.SocketListener, "accept", short)
    async with listening(path, echo):
        assert await asked(path, StatusRequest()) == {"request": "status"}


def test_waiting_for_a_process_to_be_gone(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    with ours, theirs, process:
        client = Client(ours)
        client.pid = process.pid
        with client.hold_process() as held:
            assert process.stdin is not None
            process.stdin.close()
            client.wait_until_gone(held)
            assert process.poll() == 0
