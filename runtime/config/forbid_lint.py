"""Find rules of `gate.forbid` that never hold or always hold: a typing error that would leave a machine unguarded.

A comparison with a word that is no choice is reported. Every other rule is evaluated on all combinations of choices. For a
continuous component, the values are its limits, its middle, and the numbers in the rule with their neighbours. A field of
telemetry also takes values far beyond these numbers. For choices, and for comparisons of single components with numbers, this is
a proof, as it is for comparisons of two components or fields with each other. `value_ranges` proves some of the other rules; the
rest is only sampled.
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from actuators.config import AnyActuator, ChoiceSettings, ContinuousSettings
from actuators.expressions import Expression, ExpressionError, Known
from runtime.config import value_ranges

MOST = 20_000
"""Combinations that are tried; a rule with more is accepted untried."""
FAR = 1e12
"""The largest telemetry that is tried, or twice the largest number of the rule."""


Enums = Mapping[tuple[str, str], Sequence[str]]
"""Stream and field -> the words of a field that is an enum; expressions see the place of the word, from 0."""
NONE: Enums = MappingProxyType({})


def check_words(text: str, actuators: Mapping[str, AnyActuator], enums: Enums = NONE) -> None:
    """Refuse comparisons of a choice with a word that it never has, and of a field of telemetry with a word.

    Raises:
        ExpressionError: with the word, and the choices or what the field is.
    """
    for node in ast.walk(ast.parse(text.strip(), mode="eval")):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        for name, word in [*itertools.pairwise(sides), *itertools.pairwise(reversed(sides))]:
            actuator = actuators.get(name.id) if isinstance(name, ast.Name) else None
            if not isinstance(word, ast.Constant):
                continue
            if isinstance(word.value, str):
                _check_field(name, word, actuators, enums)
            if not isinstance(actuator, ChoiceSettings):
                continue
            if word.value not in actuator.choices:
                raise ExpressionError(
                    f"position {word.col_offset + 1}: {ast.unparse(name)} is never {word.value!r}; "
                    f"its choices are {list(actuator.choices)}"
                )


def _check_field(name: ast.expr, word: ast.Constant, actuators: Mapping[str, AnyActuator], enums: Enums) -> None:
    """Refuse a word beside a field of telemetry, which is a number in expressions.

    Raises:
        ExpressionError: with what would be right.
    """
    match name:
        case ast.Attribute(value=ast.Name(id=stream), attr=field):
            pass
        case ast.Subscript(value=ast.Name(id=stream), slice=ast.Constant(value=str() as field)):
            pass
        case _:
            return
    if stream in actuators:
        return
    words = enums.get((stream, field), ())
    places = ", ".join(f"{place} for {each!r}" for place, each in enumerate(words))
    right = f"the place of its word: {places}" if places else "a number; compare it with numbers"
    raise ExpressionError(
        f"position {word.col_offset + 1}: {ast.unparse(name)} is never {word.value!r}; in expressions it is {right}"
    )


def check_rule(rule: Expression, actuators: Mapping[str, AnyActuator], enums: Enums = NONE) -> None:
    """Refuse a rule that can never hold, always holds, or never has a value.

    Raises:
        ExpressionError: which of these, and what would be right.
    """
    check_words(rule.text, actuators, enums)
    proved = _interval_truth(rule.text, actuators, enums)
    values = _combinations(rule, actuators, enums)
    if values is None:
        _refuse(never=proved is False, always=proved is True)
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
    is_proof = _proved(rule, actuators)
    _refuse(
        never=not held and (is_proof or proved is False),
        always=not missed and not failed and (is_proof or proved is True),
    )


def _refuse(*, never: bool, always: bool) -> None:
    if always:
        raise ExpressionError("the rule always holds, so nothing could move; write what must not happen")
    if never:
        raise ExpressionError("the rule can never hold within the choices and limits of its actuators; correct it")


def check_condition(condition: Expression, enums: Enums = NONE) -> None:
    """Refuse a condition under `requires` that is proved never to hold, or always to hold.

    Raises:
        ExpressionError: which of these, and what would be right.
    """
    check_words(condition.text, {}, enums)
    values = _combinations(condition, {}, enums) if _proved(condition, {}) else None
    held = {bool(condition.evaluate(value)) for value in values or ()}
    if (proved := _interval_truth(condition.text, {}, enums)) is not None:
        held = {proved}
    if held == {False}:
        raise ExpressionError("the condition can never hold, so the actuator would never move; correct it")
    if held == {True}:
        raise ExpressionError("the condition always holds and guards nothing; name the stream, or correct it")


def check_value(expression: Expression, actuators: Mapping[str, AnyActuator], enums: Enums = NONE) -> None:
    """Refuse an expression that never has a value.

    Raises:
        ExpressionError: why it has none.
    """
    failed = ""
    for value in _combinations(expression, actuators, enums) or ({},):
        try:
            expression.evaluate(value)
        except ExpressionError as error:
            failed = str(error)
        else:
            return
    if _combinations(expression, actuators, enums) is not None:
        raise ExpressionError(f"the expression never has a value ({failed}); correct it")


def blocked_choices(
    texts: Sequence[str], actuators: Mapping[str, AnyActuator], known: Known, enums: Enums = NONE
) -> dict[str, list[str]]:
    """Return, by actuator, the choices that the rules together never allow, where that is proved."""
    found: dict[str, list[str]] = {}
    for name, actuator in actuators.items():
        rules = [text for text in texts if name in Expression(text, known).names]
        if not rules or not isinstance(actuator, ChoiceSettings):
            continue
        try:
            rule = Expression(" or ".join(f"({text})" for text in rules), known)
        except ExpressionError:  # too long together
            continue
        values = _combinations(rule, actuators, enums) if _proved(rule, actuators) else None
        if values is None:
            continue
        allowed = {value[name] for value in values if not _holds_or_fails(rule, value)}
        if blocked := [word for word in actuator.choices if word not in allowed]:
            found[name] = blocked
    return found


def _holds_or_fails(rule: Expression, value: Mapping[str, Any]) -> bool:
    try:
        return bool(rule.evaluate(value))
    except ExpressionError:
        return True


def _interval_truth(text: str, actuators: Mapping[str, AnyActuator], enums: Enums) -> bool | None:
    def find(name: str, part: str | int | None) -> value_ranges.Bounds | None:
        actuator = actuators.get(name)
        if actuator is None:
            words = enums.get((name, str(part)))
            return value_ranges.EVERYTHING if words is None else (0.0, len(words) - 1.0)
        if isinstance(actuator, ContinuousSettings) and isinstance(part, int) and 0 <= part < len(actuator.low):
            return actuator.low[part], actuator.high[part]
        return None

    return value_ranges.truth(ast.parse(text.strip(), mode="eval").body, find)


def _combinations(
    rule: Expression, actuators: Mapping[str, AnyActuator], enums: Enums
) -> Iterator[dict[str, Any]] | None:
    """Return values of the rule's actuators; None if there are too many, or one is a text."""
    numbers = [
        float(node.value)
        for node in ast.walk(ast.parse(rule.text.strip(), mode="eval"))
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    ]
    for name, part in rule.parts:  # a component is compared with the limits of another one, too
        actuator = actuators.get(name)
        if isinstance(actuator, ContinuousSettings) and isinstance(part, int) and 0 <= part < len(actuator.low):
            numbers += [actuator.low[part], actuator.high[part]]
    names = sorted(rule.names)
    options = [_values(name, actuators.get(name), rule, numbers, enums) for name in names]
    if not all(options) or math.prod(map(len, options)) > MOST:
        return None
    return (dict(zip(names, value, strict=True)) for value in itertools.product(*options))


def _values(
    name: str, actuator: AnyActuator | None, rule: Expression, numbers: Sequence[float], enums: Enums
) -> list[Any]:
    """Return values of one actuator, or of a stream (None); none if there are too many, or it is a text."""
    if actuator is None:
        fields = sorted(part for root, part in rule.parts if root == name and isinstance(part, str))
        far = max([FAR, *(2 * abs(number) for number in numbers)])
        points = _points(-far, far, [*numbers, 0.0, 1.0])
        places = [
            list(map(float, range(len(enums[name, field])))) if (name, field) in enums else points for field in fields
        ]
        if math.prod(map(len, places)) > MOST:
            return []
        return [dict(zip(fields, value, strict=True)) for value in itertools.product(*places)]
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
    """Return whether the evaluation was a proof: no arithmetic, and numbers are compared with constants alone, or there are two of them.

    Between two constants lie at least two of the points that are tried, so each order of two numbers occurs.
    """
    if all(isinstance(actuators.get(name), ChoiceSettings) for name in rule.names):
        return True
    nodes = list(ast.walk(ast.parse(rule.text.strip(), mode="eval")))
    if any(isinstance(node, ast.BinOp | ast.Call) for node in nodes):
        return False
    varying = {each for each in rule.parts if not isinstance(actuators.get(each[0]), ChoiceSettings)}
    if any(isinstance(node, ast.Compare) and not _is_plain(node) for node in nodes):
        return False
    return len(varying) <= MOST_ORDERED or not any(
        isinstance(node, ast.Compare) and _varying(node, actuators) > 1 for node in nodes
    )


MOST_ORDERED = 2


def _is_plain(comparison: ast.Compare) -> bool:
    """Return whether the operands are names, parts and constants, without a comparison or a choice of values inside."""
    inside = (ast.Compare, ast.BoolOp, ast.IfExp)
    return not any(
        isinstance(node, inside) for each in (comparison.left, *comparison.comparators) for node in ast.walk(each)
    )


def _varying(comparison: ast.Compare, actuators: Mapping[str, AnyActuator]) -> int:
    """Return how many different operands of a comparison vary without being a choice: of two, the sampled values may miss what is between."""
    operands = {ast.unparse(each): each for each in (comparison.left, *comparison.comparators)}
    names = [{node.id for node in ast.walk(each) if isinstance(node, ast.Name)} - {"pi"} for each in operands.values()]
    return sum(any(not isinstance(actuators.get(name), ChoiceSettings) for name in found) for found in names)
