"""The `health` message has what the models did with readings."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

from runtime.monitoring.health import Health


def test_the_counts_of_tasks_and_speech_are_published_without_zeros() -> None:
    parts: Any = SimpleNamespace(model_counts={"tasks": Counter(done=3, lost=1, dropped=0), "speech": Counter()})
    assert Health.models(parts) == {"tasks": {"done": 3, "lost": 1}, "speech": {}}
