"""When processors are kept awake: what is asked of the kernel, on a clock of the test's own."""

import struct
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from backupfs.fuse.wakeful import DENSE_NS, DENSE_REQUESTS, LOOK_S, PROCESSORS_MAX, Machine, Wakeful
from tests.conftest import LogRule

AT_ONCE, WHENEVER = 0, 2_000_000_000
GAP_S = DENSE_NS / 1e9


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Its device is a file, which keeps what was asked for."""
    device, driver = tmp_path / "cpu_dma_latency", tmp_path / "current_driver"
    device.touch()
    driver.write_text("haltpoll\n")
    return Machine(device, driver, 2)


def asked(machine: Machine) -> list[int]:
    said = machine.device.read_bytes()
    return [number for (number,) in struct.iter_unpack("=i", said)]


def now_ns() -> int:
    return round(trio.current_time() * 1e9)


async def come(wakeful: Wakeful, count: int, gap_s: float, at_a_time: int = 1) -> None:
    for _ in range(count):
        await trio.sleep(gap_s)
        wakeful.came(at_a_time)


async def during(machine: Machine, work: Callable[[Wakeful], Awaitable[None]]) -> None:
    wakeful = Wakeful(machine, now_ns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeful.run)
        await trio.testing.wait_all_tasks_blocked()
        await work(wakeful)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("gap", "at_a_time"), [(0.1, 1), (0.9, 1), (8.0, 16)])
async def test_awake_while_requests_are_dense_and_not_for_long_after(machine: Machine, autojump_clock: MockClock, gap: float, at_a_time: int) -> None:
    async def work(wakeful: Wakeful) -> None:
        for turn in (1, 2):
            before = turn * [AT_ONCE, WHENEVER]
            await come(wakeful, 10 * DENSE_REQUESTS, gap * GAP_S, at_a_time)
            assert asked(machine) == before[:-1]  # once, however long they go on
            await trio.sleep(2 * LOOK_S)
            assert asked(machine) == before

    await during(machine, work)


async def test_a_few_requests_or_sparse_ones_wake_nobody(machine: Machine, autojump_clock: MockClock) -> None:
    async def work(wakeful: Wakeful) -> None:
        await come(wakeful, 5 * DENSE_REQUESTS, 1.1 * GAP_S)
        for _ in range(5):
            await trio.sleep(2 * LOOK_S)
            await come(wakeful, DENSE_REQUESTS, 0.1 * GAP_S)
            await trio.sleep(2 * LOOK_S)
        assert asked(machine) == []

    await during(machine, work)


async def test_awake_no_longer_once_requests_have_become_sparse(machine: Machine, autojump_clock: MockClock) -> None:
    async def work(wakeful: Wakeful) -> None:
        await come(wakeful, 2 * DENSE_REQUESTS, 0.1 * GAP_S)
        assert asked(machine) == [AT_ONCE]
        await come(wakeful, 50, 2 * GAP_S)
        assert asked(machine) == [AT_ONCE, WHENEVER]

    await during(machine, work)


@given(st.lists(st.floats(0, 20 * GAP_S), max_size=400))
def test_asked_for_and_taken_back_in_turns(tmp_path_factory: pytest.TempPathFactory, gaps: list[float]) -> None:
    """And never awake without requests for longer than two looks."""
    directory = tmp_path_factory.mktemp("machine")
    machine = Machine(directory / "device", directory / "driver", 2)
    machine.device.touch()
    machine.driver.write_text("haltpoll")

    async def work(wakeful: Wakeful) -> None:
        for gap in gaps:
            await come(wakeful, 1, gap)
            said = asked(machine)
            assert said == [AT_ONCE, WHENEVER] * (len(said) // 2) + [AT_ONCE] * (len(said) % 2)
        await trio.sleep(3 * LOOK_S)
        assert len(asked(machine)) % 2 == 0

    trio.run(during, machine, work, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "change",
    [
        {"processors": 1},
        {"processors": PROCESSORS_MAX + 1},
        {"driver": Path("/dev/null")},
        {"driver": Path("/nowhere")},
        {"device": Path("/nowhere")},
    ],
)
async def test_a_machine_on_which_it_is_of_no_use_or_cannot_be_asked_for(machine: Machine, change: dict[str, Path | int]) -> None:
    await Wakeful(replace(machine, **change)).run()  # type: ignore[arg-type]
    await Wakeful(None).run()
    assert asked(machine) == []


async def test_what_the_kernel_refuses_is_logged_and_not_asked_for_again(machine: Machine, autojump_clock: MockClock, log_rule: LogRule) -> None:
    log_rule.expect("not kept awake from now on")
    wakeful = Wakeful(replace(machine, device=Path("/dev/full")), now_ns)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wakeful.run)
        await come(wakeful, 5 * DENSE_REQUESTS, 0.1 * GAP_S)
