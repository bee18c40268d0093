"""Deleting snapshots, in any order and at any time: what is left is exactly what the present and the other snapshots need.

The oracle recounts everything from scratch: the decoder reads the repository's files, compares every tree that is left with a whole copy
kept by the model, and the audit looks for a version, a reference, a blob or a pack too many or too few.
"""

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.compat.twin import Twin, expect_none
from tests.crash.history import small_limits
from tests.crash.simulation import run

STEPS = st.one_of(
    st.tuples(st.just("change"), st.integers(1, 12)),
    st.tuples(st.just("snapshot"), st.just(0)),
    st.tuples(st.just("delete"), st.integers(0, 255)),
    st.tuples(st.just("purge"), st.just(0)),
    st.tuples(st.just("kill"), st.just(0)),
    st.tuples(st.just("remount"), st.just(0)),
)


class Deletions:
    """A twin with a few small files, whose snapshots come and go."""

    def __init__(self, directory: Path, seed: object) -> None:
        self.twin = Twin(directory, seed)
        self.twin.biggest_bytes = 9_000
        self._directory = directory
        self._kills = 0

    async def follow(self, steps: list[tuple[str, int]]) -> None:
        """Do the steps, then delete what is left."""
        waiting = list(steps)
        while waiting:
            async with self.twin.mounted() as fs:
                while waiting:
                    step, number = waiting.pop(0)
                    if step == "remount":
                        break
                    if step == "change":
                        await self.twin.act(number)
                    elif step == "snapshot":
                        await self.twin.take_snapshot()
                    elif step == "delete":
                        for at, name in enumerate(sorted(self.twin.snapshots)):
                            if number >> (at % 8) & 1:
                                await self.twin.delete_snapshot(name)
                    elif step == "kill":
                        await self._kill()
                    else:
                        await self.twin.settle()
                        await fs.idle()
                        expect_none(self.twin.faults(settled=True))
            expect_none(self.twin.faults())
        async with self.twin.mounted() as fs:
            for name in list(self.twin.snapshots):
                await self.twin.delete_snapshot(name)
            await fs.idle()
        expect_none(self.twin.faults(settled=True, closed=True))

    async def _kill(self) -> None:
        self._kills += 1
        copy = self._directory / f"killed {self._kills}"
        self.twin.kill(copy)
        expect_none(self.twin.faults(copy, present=False))
        async with self.twin.mounted(copy) as fs:
            if (copy / "checkpoints").exists():
                await fs.make_checkpoint()  # what a kill left of one that was being made goes with the next
            await fs.idle()
        expect_none(self.twin.faults(copy, present=False, settled=True, closed=True))


def followed(directory: Path, steps: list[tuple[str, int]], seed: object) -> None:
    with small_limits():
        deletions = Deletions(directory, seed)
        run(lambda: deletions.follow(steps), seed)


@given(steps=st.lists(STEPS, max_size=30), seed=st.integers(0, 1 << 16))
def test_any_steps(steps: list[tuple[str, int]], seed: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        followed(Path(directory), steps, seed)


@pytest.mark.parametrize("number", range(6))
def test_random_sets_in_random_order(tmp_path: Path, seed: int, scale: float, number: int) -> None:
    """Many snapshots of a changing tree; sets of them are deleted, while more are taken, until few are left."""
    for repeat in range(max(1, round(scale))):
        draw = random.Random(f"purge/{seed}/{number}/{repeat}")
        steps: list[tuple[str, int]] = []
        for _ in range(12):
            steps += [("change", draw.randrange(1, 12)), ("snapshot", 0)]
        for _ in range(10):
            steps.append(("delete", draw.randrange(256) & draw.randrange(256)))
            if draw.random() < 0.5:
                steps += [("change", draw.randrange(1, 12)), ("snapshot", 0)]
            if draw.random() < 0.3:
                steps.append(("kill", 0))
            steps.append(draw.choice([("purge", 0), ("change", 2), ("remount", 0)]))
        directory = tmp_path / str(repeat)
        directory.mkdir()
        followed(directory, steps, f"{seed}/{number}/{repeat}")
