"""docs/format.md against the program: the decoder written from the text reads what the engine wrote, at rest and after a kill."""

import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from backupfs import limits
from tests.compat.twin import Twin
from tests.crash.history import small_limits
from tests.crash.simulation import run


def lives(seed: int, scale: float, count: int) -> list[int]:
    """Seeds of that many lives."""
    return [seed * 1000 + number for number in range(max(1, round(count * scale)))]


def expect_none(faults: list[str]) -> None:
    shown = "\n".join(line[:500] for line in faults[:10])
    assert not faults, f"{len(faults)} faults\n{shown}"


async def live(twin: Twin, directory: Path, mounts: int, steps: int) -> None:
    """Mounts with random requests, snapshots, deletions, kills; compared whenever what must be there is known."""
    kills = itertools.count()

    async def killed(*, present: bool) -> None:
        copy = directory / f"killed {next(kills)}"
        twin.kill(copy)
        expect_none(twin.faults(copy, present=present))
        async with twin.mounted(copy) as fs:
            await fs.idle()
        expect_none(twin.faults(copy, present=present, settled=True, closed=True))

    for _ in range(mounts):
        async with twin.mounted() as fs:
            for _ in range(steps):
                await twin.act(twin.draw.randrange(1, 25))
                chance = twin.draw.random()
                if chance < 0.25:
                    await twin.take_snapshot()
                elif chance < 0.4 and twin.snapshots:
                    await twin.delete_snapshot(twin.draw.choice(sorted(twin.snapshots)))
                elif chance < 0.55:
                    await twin.look()
                    await fs.commit()
                    expect_none(twin.faults())
                elif chance < 0.65:
                    await twin.look()
                    await fs.commit()
                    await killed(present=True)
                elif chance < 0.75:
                    await killed(present=False)
                elif chance < 0.85:
                    await fs.idle()
                else:
                    await trio.sleep(twin.draw.choice([0.1, 3.0, 12.0]))
        expect_none(twin.faults())
        if twin.draw.random() < 0.5:
            async with twin.mounted() as fs:
                await fs.idle()
            expect_none(twin.faults(settled=True, closed=True))


def simulated(main: Callable[[], Awaitable[None]], seed: int) -> None:
    """In no time, and the same each time."""
    run(main, seed)


@pytest.mark.parametrize("number", range(12))
def test_small_limits(tmp_path: Path, seed: int, scale: float, number: int) -> None:
    """Everything fills up soon: packs, segments, regions, steps of background work."""
    with small_limits():
        for life in lives(seed + number, scale, 1):
            twin = Twin(tmp_path / str(life), life, compression=life % 3 != 0)
            simulated(lambda twin=twin: live(twin, twin.root.parent, 3, 8), life)  # type: ignore[misc]


@pytest.mark.parametrize("number", range(4))
def test_real_limits(tmp_path: Path, seed: int, scale: float, number: int) -> None:
    """The sizes that a repository in use has; files of many megabytes, overwritten in small pieces."""
    for life in lives(seed + number, scale, 1):
        twin = Twin(tmp_path / str(life), life)
        twin.biggest_bytes = 3 * limits.MIB
        simulated(lambda twin=twin: live(twin, twin.root.parent, 2, 5), life)  # type: ignore[misc]
