"""What interval arithmetic proves must be true: random rules are tried at random values."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from pydantic import TypeAdapter

from actuators.config import AnyActuator
from actuators.expressions import Expression, ExpressionError
from runtime.config import forbid_lint

ACTUATORS: dict[str, AnyActuator] = {
    name: TypeAdapter[AnyActuator](AnyActuator).validate_python(body)
    for name, body in {
        "lamp": {"kind": "choice", "choices": ["OFF", "ON", "DIM"], "safe": "OFF"},
        "arm": {"kind": "continuous", "low": [-1, 0], "high": [1, 2], "safe": [0, 0]},
    }.items()
}
ENUMS = {("room", "mode"): ("idle", "heat", "cool")}
KNOWN = {"lamp": None, "arm": 2, "room": ("temp", "mode")}
NUMBERS = ("arm[0]", "arm[1]", "room.temp", "room.mode")


def number(dice: random.Random, depth: int) -> str:
    if depth == 0 or dice.random() < 0.3:
        return dice.choice([*NUMBERS, str(dice.choice([-3, -1, 0, 0.5, 1, 2, 3, 7]))])
    a, b, c = (number(dice, depth - 1) for _ in range(3))
    shape = dice.randrange(5)
    if shape == 0:
        return f"({a} {dice.choice('+-*/%')} {b})"
    if shape == 1:
        return f"({a}) ** {dice.choice([2, 3])}"
    if shape == 2:
        return f"{dice.choice(['abs', 'sqrt', 'exp', 'sin', 'cos', 'tanh', 'log'])}({a})"
    if shape == 3:
        return dice.choice([f"{f}({a}, {b})" for f in ("min", "max", "hypot", "atan2")] + [f"clip({a}, {b}, {c})"])
    return f"({a} if {condition(dice, 0)} else {b})"


def condition(dice: random.Random, depth: int) -> str:
    if depth == 0 or dice.random() < 0.4:
        if dice.random() < 0.2:
            return f"lamp {dice.choice(['==', '!='])} {dice.choice(['OFF', 'ON', 'DIM'])!r}"
        return f"{number(dice, 2)} {dice.choice(['<', '<=', '>', '>=', '==', '!='])} {number(dice, 1)}"
    a, b = condition(dice, depth - 1), condition(dice, depth - 1)
    return dice.choice([f"({a} and {b})", f"({a} or {b})", f"not ({a})"])


def world(dice: random.Random) -> dict[str, Any]:
    far = dice.choice([1, 10, 1e6, 1e12])
    temp = dice.choice([dice.uniform(-far, far), float(dice.randint(-3, 7)), -1e12, 1e12])
    arm = [dice.choice([low, high, dice.uniform(low, high)]) for low, high in ((-1.0, 1.0), (0.0, 2.0))]
    room = {"temp": temp, "mode": float(dice.randrange(3))}
    return {"lamp": dice.choice(["OFF", "ON", "DIM"]), "arm": tuple(arm), "room": room}


def found_at_random(rule: Expression, dice: random.Random, tries: int = 60) -> set[bool]:
    """The truth values that the rule takes where it has one."""
    found = set[bool]()
    for _ in range(tries):
        try:
            found.add(bool(rule.evaluate(world(dice))))
        except ExpressionError:
            continue
    return found


def rules(dice: random.Random, count: int, depth: int = 2) -> Iterator[Expression]:
    while count:
        with suppress(ExpressionError):  # too long
            yield Expression(condition(dice, depth), KNOWN)
            count -= 1


def test_what_intervals_prove_is_never_contradicted() -> None:
    dice, proved = random.Random(19), 0
    for rule in rules(dice, 800):
        truth = forbid_lint._interval_truth(rule.text, ACTUATORS, ENUMS)
        if truth is not None:
            proved += 1
            assert found_at_random(rule, dice) <= {truth}, f"{rule.text}: {truth}"
    assert proved > 40


def test_no_rule_is_refused_that_may_hold_and_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forbid_lint, "MOST", 400)
    dice, refused = random.Random(20), 0
    for rule in rules(dice, 150, depth=1):
        try:
            forbid_lint.check_rule(rule, ACTUATORS, ENUMS)
        except ExpressionError as error:
            refused += 1
            reason = str(error)
            expected = {True} if "always holds" in reason else {False} if "can never hold" in reason else set[bool]()
            assert found_at_random(rule, dice) <= expected, f"{rule.text}: {reason}"
    assert refused > 10


def test_no_choice_is_named_as_blocked_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forbid_lint, "MOST", 400)
    dice, named = random.Random(21), 0
    for _ in range(120):
        texts = [f"lamp == {dice.choice(['ON', 'DIM'])!r} and {condition(dice, 1)}" for _ in range(dice.randint(1, 3))]
        try:
            each = [Expression(text, KNOWN) for text in texts]
            blocked = forbid_lint.blocked_choices(texts, ACTUATORS, KNOWN, ENUMS).get("lamp", [])
        except ExpressionError:
            continue
        named += bool(blocked)
        for _ in range(100 if blocked else 0):
            values = world(dice)
            if values["lamp"] in blocked:
                assert any(holds_or_fails(rule, values) for rule in each), (texts, values)
    assert named > 1


def holds_or_fails(rule: Expression, values: dict[str, Any]) -> bool:
    try:
        return bool(rule.evaluate(values))
    except ExpressionError:
        return True
