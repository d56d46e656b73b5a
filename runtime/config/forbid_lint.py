"""Find rules of `gate.forbid` that never hold or always hold: a typing error that would leave a machine unguarded.

A comparison with a word that is no choice is reported. Every other rule is evaluated on all combinations of choices. For a
continuous component, the values are its limits, its middle, and the numbers in the rule with their neighbours. A field of
telemetry also takes values far beyond these numbers. For choices, and for comparisons of single components with numbers, this is
a proof; other rules over numbers are only sampled.
"""

from __future__ import annotations

import ast
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.expressions import Expression, ExpressionError

MOST = 20_000
"""Combinations that are tried; a rule with more is accepted untried."""
FAR = 1e12
"""The largest telemetry that is tried, or twice the largest number of the rule."""


def check_words(text: str, actuators: Mapping[str, AnyActuator]) -> None:
    """Refuse comparisons of a choice with a word that it never has.

    Raises:
        ExpressionError: with the word and the choices.
    """
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        for name, word in [*itertools.pairwise(sides), *itertools.pairwise(reversed(sides))]:
            actuator = actuators.get(name.id) if isinstance(name, ast.Name) else None
            if not isinstance(actuator, ChoiceSettings) or not isinstance(word, ast.Constant):
                continue
            if word.value not in actuator.choices:
                raise ExpressionError(
                    f"position {word.col_offset + 1}: {ast.unparse(name)} is never {word.value!r}; "
                    f"its choices are {list(actuator.choices)}"
                )


def check_rule(rule: Expression, actuators: Mapping[str, AnyActuator]) -> None:
    """Refuse a rule that can never hold, always holds, or never has a value.

    Raises:
        ExpressionError: which of these, and what would be right.
    """
    check_words(rule.text, actuators)
    values = _combinations(rule, actuators)
    if values is None:
        return
    held, missed, failed = 0, 0, ""
    for value in values:
        try:
            holds = bool(rule.evaluate(value))
        except ExpressionError as error:
            failed = str(error)
        else:
            held, missed = held + holds, missed + (not holds)
    if not held and not missed:
        raise ExpressionError(f"the rule never has a value ({failed}); compare words with == and numbers with <")
    if not missed and not failed and (_proved(rule, actuators) or _interval_truth(rule.text, actuators) is True):
        raise ExpressionError("the rule always holds, so nothing could move; write what must not happen")
    if not held and (_proved(rule, actuators) or never_holds(rule.text, actuators)):
        raise ExpressionError("the rule can never hold within the choices and limits of its actuators; correct it")


def check_condition(condition: Expression) -> None:
    """Refuse a condition under `requires` that can never hold, or always holds; one with arithmetic is not judged.

    Raises:
        ExpressionError: which of these, and what would be right.
    """
    values = _combinations(condition, {}) if _proved(condition, {}) else None
    held = {bool(condition.evaluate(value)) for value in values or ()}
    if held == {False}:
        raise ExpressionError("the condition can never hold, so the actuator would never move; correct it")
    if held == {True}:
        raise ExpressionError("the condition always holds and guards nothing; name the stream, or correct it")


Bounds = tuple[float, float]


def never_holds(text: str, actuators: Mapping[str, AnyActuator]) -> bool:
    """Return whether interval arithmetic proves that a rule over continuous components never holds (Moore, 1966)."""
    return _interval_truth(text, actuators) is False


def _interval_truth(text: str, actuators: Mapping[str, AnyActuator]) -> bool | None:
    return _truth(ast.parse(text.strip(), mode="eval").body, actuators)


def _truth(node: ast.expr, actuators: Mapping[str, AnyActuator]) -> bool | None:
    """Return whether a part holds for all values, False if for none, None if that is unknown."""
    if isinstance(node, ast.BoolOp):
        decides = isinstance(node.op, ast.Or)
        parts = {_truth(each, actuators) for each in node.values}
        return decides if decides in parts else None if None in parts else not decides
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = _truth(node.operand, actuators)
        return None if inner is None else not inner
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    left, right = (_bounds(each, actuators) for each in (node.left, node.comparators[0]))
    if left is None or right is None:
        return None
    greater = {
        ast.Gt: left[1] <= right[0],
        ast.GtE: left[1] < right[0],
        ast.Lt: left[0] >= right[1],
        ast.LtE: left[0] > right[1],
    }
    always = {
        ast.Gt: left[0] > right[1],
        ast.GtE: left[0] >= right[1],
        ast.Lt: left[1] < right[0],
        ast.LtE: left[1] <= right[0],
    }
    operation = type(node.ops[0])
    return False if greater.get(operation) else True if always.get(operation) else None


def _bounds(node: ast.expr, actuators: Mapping[str, AnyActuator]) -> Bounds | None:
    """Return the least and the greatest value of a part; None if they are unknown."""
    match node:
        case ast.Constant(value=int() | float() as value):
            found: Bounds | None = (float(value), float(value))
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=int(part))):
            found = _limits(actuators.get(name), part)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _bounds(operand, actuators)
            found = None if inner is None else (-inner[1], -inner[0])
        case ast.Call(func=ast.Name(id="abs"), args=[argument]):
            found = _size(_bounds(argument, actuators))
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() as op, left=left, right=right):
            found = _combined(op, _bounds(left, actuators), _bounds(right, actuators))
        case _:
            found = None
    return found


def _limits(actuator: AnyActuator | None, part: int) -> Bounds | None:
    if isinstance(actuator, ContinuousSettings) and 0 <= part < len(actuator.low):
        return actuator.low[part], actuator.high[part]
    return None


def _size(inner: Bounds | None) -> Bounds | None:
    if inner is None:
        return None
    ends = [abs(each) for each in inner]
    return (0.0 if inner[0] <= 0 <= inner[1] else min(ends)), max(ends)


def _combined(op: ast.Add | ast.Sub | ast.Mult, left: Bounds | None, right: Bounds | None) -> Bounds | None:
    if left is None or right is None:
        return None
    function = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}[type(op)]
    values = [float(function(a, b)) for a, b in itertools.product(left, right)]
    return min(values), max(values)


def _combinations(rule: Expression, actuators: Mapping[str, AnyActuator]) -> Iterator[dict[str, Any]] | None:
    """Return values of the rule's actuators; None if there are too many, or one is a text."""
    numbers = [
        float(node.value)
        for node in ast.walk(ast.parse(rule.text.strip(), mode="eval"))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    ]
    names = sorted(rule.names)
    options = [_values(name, actuators.get(name), rule, numbers) for name in names]
    if not all(options) or math.prod(map(len, options)) > MOST:
        return None
    return (dict(zip(names, value, strict=True)) for value in itertools.product(*options))


def _values(name: str, actuator: AnyActuator | None, rule: Expression, numbers: Sequence[float]) -> list[Any]:
    """Return values of one actuator, or of a stream (None); none if there are too many, or it is a text."""
    if actuator is None:
        fields = sorted(part for root, part in rule.parts if root == name and isinstance(part, str))
        far = max([FAR, *(2 * abs(number) for number in numbers)])
        points = _points(-far, far, [*numbers, 0.0, 1.0])
        if len(points) ** len(fields) > MOST:
            return []
        return [dict(zip(fields, value, strict=True)) for value in itertools.product(points, repeat=len(fields))]
    if isinstance(actuator, ChoiceSettings):
        return list(actuator.choices)
    if not isinstance(actuator, ContinuousSettings):
        return []
    used = {part for root, part in rule.parts if root == name}
    limits = enumerate(zip(actuator.low, actuator.high, strict=True))
    parts = [_points(low, high, numbers) if n in used else [low] for n, (low, high) in limits]
    return list(itertools.product(*parts)) if math.prod(map(len, parts)) <= MOST else []


def _points(low: float, high: float, numbers: Sequence[float]) -> list[float]:
    """Return where a comparison with one of the numbers can change, within the limits."""
    near = {low, high, (low + high) / 2}
    for number in {*numbers, *(-number for number in numbers)}:
        near |= {number, math.nextafter(number, -math.inf), math.nextafter(number, math.inf)}
    return sorted(point for point in near if low <= point <= high)


def _proved(rule: Expression, actuators: Mapping[str, AnyActuator]) -> bool:
    """Return whether the evaluation was a proof: only choices, or continuous components compared with numbers alone."""
    if all(isinstance(actuators.get(name), ChoiceSettings) for name in rule.names):
        return True
    nodes = list(ast.walk(ast.parse(rule.text.strip(), mode="eval")))
    if any(isinstance(node, ast.BinOp | ast.Call) for node in nodes):
        return False
    return not any(isinstance(node, ast.Compare) and _varying(node, actuators) > 1 for node in nodes)


def _varying(comparison: ast.Compare, actuators: Mapping[str, AnyActuator]) -> int:
    """Return how many different operands of a comparison vary without being a choice: of two, the sampled values may miss what is between."""
    operands = {ast.unparse(each): each for each in (comparison.left, *comparison.comparators)}
    names = [{node.id for node in ast.walk(each) if isinstance(node, ast.Name)} - {"pi"} for each in operands.values()]
    return sum(any(not isinstance(actuators.get(name), ChoiceSettings) for name in found) for found in names)
