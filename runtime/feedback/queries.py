"""Query people about decisions of which the policy is less certain than usual (active learning).

Certainty is the margin between the critic's best and second-best score (margin sampling, Scheffer et al. 2001). It is divided
by the median margin of the last minute, because scores have no unit. Choices that the gate would refuse count neither for the
margin nor as candidates. The agent publishes at most one query in ten seconds, over all actuators, and none for an untrained policy,
an override or an action of the gate.

Answers arrive on `override/<actuator>`, which acts now and is stored as an intervention, or on `label` with the query's `id` and
the actuator as `task`, which confirms the action (`Feedback`). Only an override can give another action.
"""

from __future__ import annotations

import math
import statistics
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

from actuators.actions import Value
from learners.task_serving.results import likeliest
from runtime.control.tick import TickResult
from runtime.inference.engine import UNTRAINED
from runtime.process.emit import Emit
from sensors.codecs.readings import summarize_reading

ASK_EVERY_S = 10.0
MARGIN_WINDOW, MIN_MARGINS = 600, 100
"""Margins of which the median is taken, and how many there must be."""
MAX_OPEN = 64
"""Queries to which answers are still accepted."""


@dataclass(slots=True)
class UncertaintyQueries:
    """Listens to ticks.

    Args:
        share: of the usual margin, below which it queries; None never does.
        emit: publishes an event.
    """

    share: float | None
    emit: Emit
    _margins: dict[str, deque[float]] = field(default_factory=dict)
    _asked_s: float = -math.inf
    _open: OrderedDict[str, dict[str, Value]] = field(default_factory=OrderedDict)

    def ticked(self, ticked: TickResult) -> None:
        """Query about this decision if it is uncertain."""
        if self.share is None or ticked.decided.policy == UNTRAINED or ticked.verdict is None:
            return
        for name, scores in ticked.decided.scores.items():
            outcome = ticked.verdict.outcomes.get(name)
            sure = self._certainty(name, _allowed(ticked, name, scores))
            if outcome is not None and outcome.by == "policy" and sure is not None and sure < self.share:
                self._ask(ticked, name, sure)

    def executed(self, decision: str, actuator: str) -> Value | None:
        """Return the action at a decision that was queried; None for any other."""
        return self._open.get(decision, {}).get(actuator)

    def _certainty(self, name: str, scores: list[float]) -> float | None:
        """Return the margin relative to the usual one; None until there are enough margins."""
        best = sorted(scores, reverse=True)[:2]
        if len(best) < 2:
            return None
        margins = self._margins.setdefault(name, deque(maxlen=MARGIN_WINDOW))
        margin = best[0] - best[1]
        usual = statistics.median(margins) if len(margins) >= MIN_MARGINS else 0.0
        margins.append(margin)
        return margin / usual if usual > 0 else None

    def _ask(self, ticked: TickResult, name: str, sure: float) -> None:
        now_s = ticked.observation.stamp_s
        if now_s - self._asked_s < ASK_EVERY_S:
            return
        self._asked_s = now_s
        action = ticked.decided.actions[name]
        self._open.setdefault(ticked.decision, {})[name] = action.value
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        self.emit(
            "label_requested",
            {
                "id": ticked.decision,
                "task": name,
                "actuator": name,
                "value": action.value,
                "confidence": round(sure, 4),
                "candidates": candidates(_probabilities(ticked, name)),
                "reading": {s: summarize_reading(reading) for s, reading in ticked.observation.readings.items()},
                "answer": f"override/{name}",
            },
        )


def _allowed(ticked: TickResult, actuator: str, scores: list[float]) -> list[float]:
    """Return the scores of the choices that the gate would have let pass."""
    allowed = ticked.observation.allowed.get(actuator)
    if allowed is None:
        return scores
    names = ticked.decided.choices.get(actuator, {})
    return [score for name, score in zip(names, scores, strict=False) if name in allowed]


def _probabilities(ticked: TickResult, actuator: str) -> dict[str, float]:
    """Return the probability of each choice that the gate would have let pass."""
    choices = ticked.decided.choices.get(actuator, {})
    allowed = ticked.observation.allowed.get(actuator, tuple(choices))
    return {name: probability for name, probability in choices.items() if name in allowed}


def candidates(probabilities: dict[str, float]) -> list[dict[str, Any]]:
    """List labels with their probabilities, the most probable first."""
    ranked = likeliest(probabilities, limit=None)
    return [{"label": label, "probability": probability} for label, probability in ranked.items()]
