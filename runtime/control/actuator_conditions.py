"""Evaluate the conditions on telemetry under `actuators.NAME.requires`: an actuator acts only while each of them holds.

The agent reports those that do not hold with its proposal, and the gate treats them as stale streams: the safe action. The agent
also sends the readings that rules under `gate.forbid` name; the gate evaluates these rules. A reading of unknown age counts for
neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from actuators.expressions import Expression, ExpressionError, Known
from learners.rewards.tick_rewards import expression_values
from sensors.readings import Observation


class Conditions:
    """The conditions of all actuators.

    Args:
        texts: the expressions.
        known: the names that they may use, with the fields of each.
        named: the readings that the gate needs: stream and field.

    Raises:
        ExpressionError: an expression cannot be used.
    """

    def __init__(self, texts: Iterable[str], known: Known, named: Iterable[tuple[str, str]] = ()) -> None:
        self._expressions = {text: Expression(text, known) for text in texts}
        self._named: dict[str, list[str]] = {}
        for stream, field in sorted(named):
            self._named.setdefault(stream, []).append(field)

    def unmet(self, observation: Observation) -> list[str]:
        """Return the conditions that do not hold, or that cannot be evaluated because a stream is missing."""
        if not self._expressions:
            return []
        values = _of_known_age(observation)
        return [text for text, expression in self._expressions.items() if not _holds(expression, values)]

    def named(self, observation: Observation) -> dict[str, dict[str, float]]:
        """Return the finite numbers that the gate needs: stream -> field -> number."""
        if not self._named:
            return {}
        values = _of_known_age(observation)
        return {
            name: {field: values[name][field] for field in fields if math.isfinite(values[name].get(field, math.nan))}
            for name, fields in self._named.items()
            if name in values
        }


def _of_known_age(observation: Observation) -> dict[str, Any]:
    values = expression_values(observation, {})
    return {name: value for name, value in values.items() if name not in observation.unknown_age}


def _holds(expression: Expression, values: dict[str, object]) -> bool:
    try:
        return expression.evaluate(values) != 0
    except ExpressionError:
        return False
