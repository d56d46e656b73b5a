"""Define what serving a task takes and produces. Imports no torch: the agent uses it, and another process runs the models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from learners.task_kinds import PredictionOfExample
from sensors.readings import Reading

CANDIDATES = 5
"""Labels that a result and a question name with their probability."""


def likeliest(probabilities: Mapping[str, float], limit: int | None = CANDIDATES) -> dict[str, float]:
    """Return labels with their rounded probabilities, the most probable first; at most `limit` (None: all)."""
    found = sorted(probabilities.items(), key=lambda item: -item[1])[:limit]
    return {label: round(chance, 4) for label, chance in found}


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a task for a reading; `payload` is what `task/<name>` carries."""

    task: str
    stream: str
    stamp_s: float
    """When the reading was captured, monotonic."""
    version: str
    prediction: PredictionOfExample
    took_s: float
    decision: str | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The result as JSON takes it."""
        p = self.prediction
        return {
            "value": p.value, "confidence": p.confidence, "probabilities": likeliest(p.probabilities), **p.details,
            "stream": self.stream, "version": self.version, "decision": self.decision, "took_ms": round(self.took_s * 1e3, 1),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """A reading a task is unsure of; the answer arrives on `label` with `id`, the decision that saw it."""

    id: str
    task: str
    reading: Reading
    confidence: float
    candidates: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Speech:
    """A piece of an answer; the last one of an answer is empty."""

    task: str
    piece: str
    final: bool
    lost: bool = False
    """Whether the process that generated the answer ended; what it generated of it is discarded."""


@dataclass(slots=True)
class Callbacks:
    """Receivers of everything that a runner makes; all are called on the event loop."""

    result: Callable[[Result], None]
    question: Callable[[Question], None]
    speech: Callable[[Speech], None]
    failed: Callable[[str, str], None]
    """A task's name and why its model cannot be used."""
    refused: Callable[[str, str, int], None]
    """A task's name, why its newest reading failed, and how many readings failed since the last report."""
    finished: Callable[[str], None] = lambda _task: None
    """A task's name, when the work on one of its readings ends, in any way."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A reading that waits for its task."""

    reading: Reading
    context: Reading | None
    """The newest reading of the task's context stream."""
    decision: str | None
    number: int = 0
    """Of the offer to another process; its answers carry it."""
