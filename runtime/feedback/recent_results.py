"""Remember the results of tasks for recent readings, so that a person can label the most uncertain ones first. In memory, bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from learners.task_serving.results import likeliest

MAX_RESULTS = 8_192
"""Results of each task, and decisions of which the stamp is known."""


@dataclass(frozen=True, slots=True)
class RecentResult:
    """The result of a task for one reading."""

    value: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(slots=True)
class RecentResults:
    """Results by task and by the stamp (Unix seconds) of the tick that perceived the reading."""

    _stamps: OrderedDict[str, float] = field(default_factory=OrderedDict)
    _results: dict[str, OrderedDict[float, RecentResult]] = field(default_factory=dict)

    def ticked(self, decision: str, stamp_s: float) -> None:
        """Note when a decision was taken."""
        self._stamps[decision] = stamp_s
        if len(self._stamps) > MAX_RESULTS:
            self._stamps.popitem(last=False)

    def add(
        self, task: str, decision: str | None, value: object, confidence: float | None, probabilities: dict[str, float]
    ) -> None:
        """Note the result of a task for the reading of a decision; results without a confidence are left out."""
        stamp_s = self._stamps.get(decision or "")
        if stamp_s is None or confidence is None or not isinstance(value, str):
            return
        results = self._results.setdefault(task, OrderedDict())
        results[stamp_s] = RecentResult(value, confidence, likeliest(probabilities))
        if len(results) > MAX_RESULTS:
            results.popitem(last=False)

    def of(self, task: str, stamp_s: float) -> RecentResult | None:
        """Return the result of a task for the reading that was stored with this stamp; None without a result."""
        results = self._results.get(task)
        return None if results is None else results.get(stamp_s)
