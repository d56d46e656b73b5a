"""The `health` message has what the models did with readings, and what becomes of the learner."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fakes import FakeClock
from runtime.monitoring.health import PROGRESS_STALE_S, Health


def test_the_counts_of_tasks_and_speech_are_published_without_zeros() -> None:
    parts: Any = SimpleNamespace(model_counts={"tasks": Counter(done=3, lost=1, dropped=0), "speech": Counter()})
    assert Health.models(parts) == {"tasks": {"done": 3, "lost": 1}, "speech": {}}


def test_readings_that_an_encoder_failed_on_count_as_drops_of_their_stream() -> None:
    arrivals = SimpleNamespace(failures=Counter(orders=2))
    parts: Any = SimpleNamespace(
        inbox=SimpleNamespace(drops={"orders": Counter(superseded=1), "room": Counter()}),
        decoder=SimpleNamespace(drops={}),
        sensors={"orders": SimpleNamespace(drops=Counter(too_large=3))},
        control_loop=SimpleNamespace(engine=SimpleNamespace(arrivals=arrivals)),
    )
    assert Health.drops(parts, "orders") == {"superseded": 1, "too_large": 3, "not_encoded": 2}
    assert Health.drops(parts, "room") == {}


def test_a_learner_that_never_writes_progress_is_dead_after_a_while(tmp_path: Path) -> None:
    clock = FakeClock(100.0)
    health: Any = SimpleNamespace(
        learner_enabled=True, progress_file=tmp_path / "progress.json", clock=clock.now, _awaited_s=None
    )
    assert Health.learner(health) == {"state": "starting"}
    clock.advance(PROGRESS_STALE_S)
    assert Health.learner(health) == {"state": "starting"}
    clock.advance(1.0)
    assert Health.learner(health) == {"state": "dead"}
