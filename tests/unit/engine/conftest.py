from collections.abc import Iterator

import pytest

from tests.unit.engine.world import make_fast, make_small


@pytest.fixture(autouse=True)
def _fast() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        make_fast(patch)
        yield


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything fills up soon."""
    make_small(monkeypatch)
