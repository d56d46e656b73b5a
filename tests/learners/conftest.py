"""What several tests of the learners start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from learners.experience.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An experience store with its clock at 100 s; what it was given must be written when it closes."""
    opened = Store(tmp_path / "experience", clock=lambda: 100.0)
    yield opened
    assert opened.close()
