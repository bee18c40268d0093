"""Small writes: streamed, with fsync, by several at once, and all over a large file."""

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

from scripts.benchmark.processes import Cost
from scripts.benchmark.setting import BLOCK, MIB, Figures, Setting, both, drop_caches, rate, seconds, valued, warm
from scripts.benchmark.systems import MountedSystem

STREAM_CACHED_BYTES: Final = 256 * MIB
"""What goes into the page cache at the speed of memory."""
FSYNCS: Final = 500
WRITERS: Final = 8
FSYNCS_EACH: Final = 150
OVERWRITES: Final = 16_384
LARGE_BYTES: Final = 1024 * MIB
BLOCK_BYTES: Final = len(BLOCK)


def stream(system: MountedSystem, setting: Setting) -> Figures:
    """4 KiB at a time from half text, half noise: the first quarter into the page cache, then all of 1 GiB."""
    warm(setting.sources.large)
    paths = sorted(setting.sources.large.iterdir(), key=lambda path: path.name.rpartition("-")[2])
    mebibytes = setting.count(LARGE_BYTES // MIB)
    cached = setting.count(STREAM_CACHED_BYTES // MIB, 2)
    with system.running():
        source = _mebibytes_in_turn(paths)
        ends: list[float] = []
        with open(system.tree / "stream", "wb", buffering=0) as file:
            first = system.measure(lambda: _stream(file.write, source, cached, ends))
            rest = system.measure(lambda: _stream(file.write, source, mebibytes, ends))
        system.stop()
    whole = both(first, rest)
    return {
        "stream": rate(cached, first),
        "stream-whole": rate(len(ends), whole),
        "stream-wait": valued(max(end - start for start, end in pairwise(ends)) * 1000, whole),
    }


def _mebibytes_in_turn(paths: list[Path]) -> Iterator[list[memoryview]]:
    """The files one after the other: each MiB as 4 KiB blocks, all in the same memory."""
    buffer = bytearray(MIB)
    blocks = [memoryview(buffer)[at : at + BLOCK_BYTES] for at in range(0, MIB, BLOCK_BYTES)]
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer) == MIB:
                yield blocks


def _stream(write: Callable[[memoryview], object], source: Iterator[list[memoryview]], mebibytes: int, ends: list[float]) -> None:
    for blocks in islice(source, mebibytes):
        for block in blocks:
            write(block)
        ends.append(time.perf_counter())


def fsync(system: MountedSystem, setting: Setting) -> Figures:
    """One process appends 4 KiB and has it synced, again and again."""
    with system.running():
        os.sync()
        times: list[float] = []
        cost = system.measure(lambda: times.extend(append(str(system.tree / "log"), setting.count(FSYNCS, 10))))
        system.stop()
    return _histogram("fsync", times, cost)


def fsync_together(system: MountedSystem, setting: Setting) -> Figures:
    """Eight processes do that at the same time, each with a file of its own."""
    each = setting.count(FSYNCS_EACH, 5)
    times: list[float] = []

    def work(number: int) -> list[float]:
        return append(str(system.tree / f"log-{number}"), each)

    with system.running():
        os.sync()
        cost = system.measure(lambda: times.extend(time for found in setting.processes.together(WRITERS, work) for time in found))
        system.stop()
    return {**_histogram("fsync-8", times, cost), "fsync-8-rate": rate(len(times), cost)}


def append(path: str, writes: int) -> list[float]:
    """Append 4 KiB and have them synced, so many times; how long each took, in seconds."""
    times = []
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        for _ in range(writes):
            began = time.perf_counter()
            os.write(descriptor, BLOCK)
            os.fsync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
    return times


def _histogram(key: str, times: list[float], cost: Cost) -> Figures:
    """Half of the times, 99 of 100, and all are no longer than that. Milliseconds."""
    hundredths = statistics.quantiles(times, n=100, method="inclusive")
    found = {key: hundredths[49], f"{key}-p99": hundredths[98], f"{key}-max": max(times)}
    return {name: valued(value * 1000, cost) for name, value in found.items()}


def overwrite(system: MountedSystem, setting: Setting) -> Figures:
    """Blocks of 4 KiB at random places of a large file, each place once, then an fsync; and what is on the disk for it."""
    path = system.tree / "large"
    writes = setting.count(OVERWRITES, 16)
    rng = random.Random(4)
    with system.running():
        setting.processes.run(["sh", "-c", 'cat "$0"/* >"$1"', setting.sources.large, path], counts=False)
        system.stop()
        before = system.stored_bytes()
        system.mount()
        drop_caches()
        places = rng.sample(range(path.stat().st_size // BLOCK_BYTES), writes)
        written = system.measure(lambda: _overwrite(str(path), places, rng))
        stopped = system.measure(system.stop)
        after = system.stored_bytes()
    durable = both(written, stopped)
    return {
        "overwrite": seconds(written),
        "overwrite-durable": seconds(durable),
        "overwrite-amplification": valued((after - before) / (BLOCK_BYTES * writes), durable),
    }


def _overwrite(path: str, places: list[int], rng: random.Random) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for place in places:
            os.pwrite(descriptor, rng.randbytes(BLOCK_BYTES), place * BLOCK_BYTES)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
