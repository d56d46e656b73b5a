"""Evaluate the conditions on telemetry under `actuators.NAME.requires`: an actuator acts only while each of them holds.

The agent reports those that do not hold with its proposal, and the gate treats them as stale streams: the safe action.
"""

from __future__ import annotations

from collections.abc import Iterable

from actuators.expressions import Expression, ExpressionError, Known
from learners.rewards import expression_values
from sensors.readings import Observation


class Conditions:
    """The conditions of all actuators.

    Args:
        texts: the expressions.
        known: the names that they may use, with the fields of each.

    Raises:
        ExpressionError: an expression cannot be used.
    """

    def __init__(self, texts: Iterable[str], known: Known) -> None:
        self._expressions = {text: Expression(text, known) for text in texts}

    def unmet(self, observation: Observation) -> list[str]:
        """Return the conditions that do not hold, or that cannot be evaluated because a stream is missing."""
        if not self._expressions:
            return []
        values = expression_values(observation, {})
        return [text for text, expression in self._expressions.items() if not _holds(expression, values)]


def _holds(expression: Expression, values: dict[str, object]) -> bool:
    try:
        return expression.evaluate(values) != 0
    except ExpressionError:
        return False
