"""The documents say what happens: their commands are run on real mounts, and print what stands below them."""

from pathlib import Path

import pytest

from tests import documents
from tests.warm import ROOT

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("path", documents.documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_shows_is_what_happens(path: Path) -> None:
    document = documents.parse(path, path.read_text())
    if reason := documents.lacking(document):
        pytest.skip(reason)
    differing = documents.differing(document, documents.within_an_hour(document))
    if differing:
        pytest.fail(
            "\n".join([*differing.values(), f"If this is as it should be: python -m tests.documents {path.relative_to(ROOT)}"]), pytrace=False
        )
