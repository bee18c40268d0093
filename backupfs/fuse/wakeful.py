"""Keeping processors awake while requests come close together.

A processor that has nothing to do is halted. Waking it takes a virtual machine longer than most requests take, and each request wakes two: the one
that serves, and the one that waits for the answer. Whoever holds /dev/cpu_dma_latency open may ask the kernel for less (Documentation/power/
pm_qos_interface.rst): with 0, idle processors look for work instead of halting. What was asked for ends when the descriptor is closed, so with the
process as well.

All processors of the machine stay awake then, and to the host they look busy. So it is asked for only while requests are dense, on machines with
few processors, and under the cpuidle driver `haltpoll`, which is that of virtual machines and knows nothing between looking and halting. Only root
may ask.
"""

import logging
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

DENSE_NS: Final = 2_000_000
"""Requests are dense that come within so long of each other. Where they are farther apart, waking is a small part of the time."""
DENSE_REQUESTS: Final = 32
"""So many in a row, and processors are kept awake."""
LOOK_S: Final = 0.02
"""So often it is looked at whether they are dense still. To ask takes half a millisecond at worst: idle processors are told."""
PROCESSORS_MAX: Final = 4
"""A machine with more has most of them idle, and would have all awake."""
DRIVER: Final = "haltpoll"
_AT_ONCE: Final = struct.pack("=i", 0)
"""Microseconds that waking may take."""
_WHENEVER: Final = struct.pack("=i", 2_000_000_000)
"""What the kernel has where nobody asks for anything (PM_QOS_CPU_LATENCY_DEFAULT_VALUE)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides whether asking is of use: the device to ask, the file that names the cpuidle driver, the number of processors."""

    device: Path
    driver: Path
    processors: int


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(Path("/dev/cpu_dma_latency"), Path("/sys/devices/system/cpu/cpuidle/current_driver"), os.cpu_count() or 1)


class Wakeful:
    """Told of requests (`came`), it keeps the machine's processors awake while they are dense and `run` runs. Without a machine, none."""

    def __init__(self, machine: Machine | None, now_ns: Callable[[], int] = time.perf_counter_ns) -> None:
        self._machine = machine
        self._now_ns = now_ns
        self._last_ns = 0
        self._in_a_row = 0
        self._since_look = 0
        self._dense = trio.Event()

    def came(self, requests: int) -> None:
        """So many requests have come since the last call."""
        if not requests:
            return
        now_ns = self._now_ns()
        is_close = now_ns - self._last_ns < DENSE_NS * requests
        self._last_ns = now_ns
        self._in_a_row = self._in_a_row + requests if is_close else 0
        self._since_look += requests
        if self._in_a_row >= DENSE_REQUESTS:
            self._dense.set()

    async def run(self) -> None:
        """Task. Returns at once where nothing can be done."""
        device = None if self._machine is None else _open(self._machine)
        if device is None:
            return
        try:
            while True:
                await self._dense.wait()
                os.write(device, _AT_ONCE)
                await self._until_sparse()
                os.write(device, _WHENEVER)
                self._in_a_row = 0
                self._dense = trio.Event()
        except OSError as error:
            _log.warning("processors are not kept awake from now on: %s", error)
        finally:
            os.close(device)

    async def _until_sparse(self) -> None:
        enough = LOOK_S * 1e9 / DENSE_NS
        while True:
            self._since_look = 0
            await trio.sleep(LOOK_S)
            if self._since_look < enough:
                return


def _open(machine: Machine) -> int | None:
    """The descriptor through which the kernel is asked, or None where it cannot be or it is of no use."""
    try:
        if not 1 < machine.processors <= PROCESSORS_MAX or machine.driver.read_text().strip() != DRIVER:
            return None
        return os.open(machine.device, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        _log.info("processors are not kept awake: %s", error)
        return None
