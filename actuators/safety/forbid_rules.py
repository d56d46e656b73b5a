"""Evaluate the rules under `gate.forbid`: whether a combination breaks one, by how much, and which settings are never safe.

The gate asks for every combination that the devices may be in; `reflexd check` asks for the combinations that rest can lead to.
A rule may also name fields of telemetry; without a reading, such a rule holds unless the actuators alone exclude it.
Knows nothing of time or of who commands.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from types import MappingProxyType
from typing import Any

from actuators.actions import Value
from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings, GateSettings
from actuators.expressions import Expression, ExpressionError, Known
from actuators.safety import limits

MAX_COMBINATIONS = 4_096
"""Combinations tried for one question; more are treated as a broken rule."""

Readings = Mapping[str, Mapping[str, float]]
"""Stream -> field -> number, of the streams with a fresh reading."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that some combination breaks."""

    reason: str
    degree: float
    """How far inside the forbidden zone; infinite if a value is unknown."""


class Rule:
    """One expression under `forbid`.

    Args:
        text: the expression; true means forbidden.
        known: what each name of an actuator holds.
        streams: the telemetry fields of each stream that may be named.

    Raises:
        ExpressionError: it cannot be used, or names no actuator.
    """

    def __init__(self, text: str, known: Mapping[str, int | None], streams: Known | None = None) -> None:
        self.text = text
        self.expression = Expression(text, {**(streams or {}), **known})
        self.names = self.expression.names.intersection(known)
        """Actuators."""
        self.streams = self.expression.names - self.names
        if self.streams and not self.names:
            raise ExpressionError(f"{text!r} names no actuator; write what must not be done then, or use `requires`")

    def broken(
        self, domains: Mapping[str, Sequence[Value | None]], readings: Readings = MappingProxyType({})
    ) -> Violation | None:
        """Return the worst violation among all combinations of the possible values, or None.

        Args:
            domains: the possible values of each actuator in the rule; None is an unknown value.
            readings: the telemetry that is known.
        """
        names = sorted(self.names)
        sizes = math.prod(len(domains[name]) for name in names)
        if sizes > MAX_COMBINATIONS:
            return Violation(f"{self.text}: it cannot be ruled out in {sizes} combinations", math.inf)
        choices = ([(name, value) for value in domains[name]] for name in names)
        known = {
            name: {field: value for field, value in readings[name].items() if math.isfinite(value)}
            for name in self.streams.intersection(readings)
        }
        found = [self._judge({**dict(combination), **known}) for combination in product(*choices)]
        return max((each for each in found if each is not None), key=lambda each: each.degree, default=None)

    def _judge(self, values: Mapping[str, Any]) -> Violation | None:
        try:
            if self.expression.evaluate(values) == 0:
                return None
            return Violation(f"{self.text} would hold", self._degree(self.expression.tree, values))
        except ExpressionError as error:
            if self.streams and self._truth(self.expression.tree, values) is False:
                return None
            return Violation(f"it cannot be ruled out: {error}", math.inf)

    def _truth(self, node: ast.expr, values: Mapping[str, Any]) -> bool | None:
        """Return whether a part holds, None if unknown: `and`, `or` and `not` by Kleene's logic of three values."""
        if isinstance(node, ast.BoolOp):
            decides = isinstance(node.op, ast.Or)
            parts = {self._truth(each, values) for each in node.values}
            return decides if decides in parts else None if None in parts else not decides
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self._truth(node.operand, values)
            return None if inner is None else not inner
        try:
            value = self.expression.evaluate_node(node, values)
        except ExpressionError:
            return None
        return value != 0 if math.isfinite(value) else None

    def _degree(self, node: ast.expr, values: Mapping[str, Any]) -> float:
        """Return the degree of truth: the margin of a comparison, the minimum of `and`, the maximum of `or` (robustness of temporal logic)."""
        if isinstance(node, ast.BoolOp):
            parts = [self._degree(each, values) for each in node.values]
            return min(parts) if isinstance(node.op, ast.And) else max(parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return -self._degree(node.operand, values)
        if isinstance(node, ast.IfExp):
            chosen = node.body if self.expression.evaluate_node(node.test, values) else node.orelse
            return self._degree(chosen, values)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            return min(map(partial(self._margin, values), node.ops, sides, sides[1:]))
        return 1.0 if self.expression.evaluate_node(node, values) else -1.0

    def _margin(self, values: Mapping[str, Any], op: ast.cmpop, left: ast.expr, right: ast.expr) -> float:
        if isinstance(op, ast.Eq | ast.NotEq):
            same = bool(self.expression.evaluate_node(ast.Compare(left, [ast.Eq()], [right]), values))
            return 1.0 if same == isinstance(op, ast.Eq) else -1.0
        gap = float(self.expression.evaluate_node(ast.BinOp(left, ast.Sub(), right), values))
        return gap if isinstance(op, ast.Gt | ast.GtE) else -gap


def known_names(actuators: Mapping[str, AnyActuator]) -> dict[str, int | None]:
    """Return the names that an expression may use: each actuator, with its number of components if continuous."""
    return {name: len(each.low) if isinstance(each, ContinuousSettings) else None for name, each in actuators.items()}


def domain(settings: AnyActuator) -> Sequence[Value | None]:
    """Return every possible value of an actuator in an unknown state: its choices, or None for an unknown number or text."""
    return settings.choices if isinstance(settings, ChoiceSettings) else (None,)


def safe_is_hold(settings: AnyActuator) -> bool:
    """Return whether the safe action is to send nothing."""
    return settings.safe == "hold" and not (isinstance(settings, ChoiceSettings) and "hold" in settings.choices)


def unsafe_rests(
    actuators: Mapping[str, AnyActuator], settings: GateSettings, streams: Known | None = None
) -> dict[int, str]:
    """Return, by its place under `forbid`, every rule that the gate's own safe actions can break, with the remedy.

    An actuator with `safe: hold` may hold any value while the others go to theirs, and while streams change. Continuous ones
    are sampled at their limits, the constants of the rule and the middles between these; telemetry counts as unknown.

    Raises:
        ExpressionError: a rule cannot be used.
    """
    problems = {}
    for index, text in enumerate(settings.forbid):
        rule = Rule(text, known_names(actuators), streams)
        holding = sorted(name for name in rule.names if safe_is_hold(actuators[name]))
        if len(holding) == len(rule.names) and not rule.streams:
            continue  # nothing moves when all of them hold
        domains: dict[str, Sequence[Value | None]] = {
            name: samples(name, actuators[name], rule) if name in holding else [_safe(actuators[name])]
            for name in rule.names
        }
        found = rule.broken(domains)
        if found is not None:
            safe = ", ".join(f"{name} = {_safe(actuators[name])!r}" for name in sorted(rule.names.difference(holding)))
            held = f" while {' and '.join(holding)} may hold any value" if holding else ""
            remedy = f"give {holding[0]} a safe value" if holding else "choose other safe values"
            rest = f"({safe}{held})" if safe else f"({held.removeprefix(' while ')})"
            problems[index] = f"{text!r} can hold at rest {rest}; {remedy}"
    return problems


def _safe(settings: AnyActuator) -> Value:
    return settings.safe


def samples(name: str, settings: AnyActuator, rule: Rule) -> Sequence[Value | None]:
    """Return values that an actuator of a rule may have: every choice, or points of a box that the rule tells apart; (None,) for a text."""
    if not isinstance(settings, ContinuousSettings):
        return domain(settings)
    nodes = [node for node in ast.walk(rule.expression.tree) if isinstance(node, ast.Constant)]
    constants = {float(node.value) for node in nodes if isinstance(node.value, int | float)}
    read = {part for root, part in rule.expression.parts if root == name}
    points = {signed for each in constants for signed in (each, -each)}  # a negative number is a minus and a constant
    columns = [
        _with_midpoints(
            {low, settings.high[index], *(limits.clamp(low, each, settings.high[index]) for each in points)}
        )
        if index in read
        else [low]
        for index, low in enumerate(settings.low)
    ]
    return list(product(*columns))


def _with_midpoints(values: set[float]) -> list[float]:
    ordered = sorted(values)
    return ordered + [(a + b) / 2 for a, b in pairwise(ordered)]
