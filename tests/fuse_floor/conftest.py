"""Everything here needs FUSE, some of it root."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.fuse_floor.floor import Floor, serving

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE not in item.path.parents:
            continue
        item.add_marker(pytest.mark.fuse)
        if not Path("/dev/fuse").exists():
            item.add_marker(pytest.mark.skip(reason="there is no /dev/fuse here"))
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def base() -> Iterator[Path]:
    """An empty directory that every user can reach."""
    with tempfile.TemporaryDirectory(prefix="floor-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture
async def floor(base: Path) -> AsyncIterator[Floor]:
    async with serving(base / "mnt") as made:
        yield made
