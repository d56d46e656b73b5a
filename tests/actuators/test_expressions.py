"""Expressions: right values, every refusal with its position, and nothing dangerous whatever the text."""

from __future__ import annotations

import contextlib
import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.expressions import MAX_CHARS, Expression, ExpressionError

VALUES = {"lamp": "ON", "joints": {"q1": 0.5, "/imu/yaw": -2.0}, "arm": (0.25, -1.0), "speed": 3.0}
KNOWN = {"lamp": None, "joints": ("q1", "/imu/yaw"), "arm": 2, "speed": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-abs(joints.q1 - 0.2)", -0.3),
        ("joints['/imu/yaw'] * 2 + 1", -3.0),
        ("-0.01 * (arm[0] ** 2 + arm[1] ** 2)", -0.010625),
        ("lamp == 'ON'", 1.0),
        ("lamp != 'ON'", 0.0),
        ("lamp == 'ON' and joints.q1 > 0.2", 1.0),
        ("not lamp == 'OFF'", 1.0),
        ("lamp == 'OFF' or speed >= 3", 1.0),
        ("1 if lamp == 'OFF' else 2", 2.0),
        ("0 < joints.q1 <= 0.5 < speed", 1.0),
        ("min(speed, 2) + max(1, 2, 3)", 5.0),
        ("clip(speed, -1, 1)", 1.0),
        ("hypot(3, 4) + sqrt(4) + exp(0) + log(1) + cos(0) + tanh(0) + atan2(0, 1) + sin(0)", 9.0),
        ("2 * pi", 2 * math.pi),
        ("7 % 4 - +1 / 2", 2.5),
        ("True", 1.0),
        ("  speed ", 3.0),
    ],
)
def test_values(text: str, value: float) -> None:
    assert Expression(text, KNOWN).evaluate(VALUES) == pytest.approx(value)
    assert Expression(text).evaluate(VALUES) == pytest.approx(value)


def test_names_and_parts() -> None:
    expression = Expression("joints.q1 + joints['/imu/yaw'] + arm[1] + speed + speed * pi")
    assert expression.names == {"joints", "arm", "speed"}
    assert expression.parts == {("joints", "q1"), ("joints", "/imu/yaw"), ("arm", 1), ("speed", None)}
    assert repr(Expression("speed > 1")) == "Expression('speed > 1')"


@pytest.mark.parametrize(
    ("text", "position", "reason"),
    [
        ("speed + lmap", 9, "unknown name 'lmap'"),
        ("speed + joints.q9", 9, "joints has"),
        ("arm[2]", 1, "write arm[0] to arm[1]"),
        ("arm", 1, "write arm[0] to arm[1]"),
        ("arm.x", 1, "write arm[0]"),
        ("joints", 1, "joints has"),
        ("lamp.x", 1, "lamp has no parts"),
        ("1 + speed.a.b", 5, "write name.part"),
        ("arm[True]", 1, "write name.part"),
        ("arm[speed]", 1, "write name.part"),
        ("arm[0:1]", 1, "write name.part"),
        ("(1, 2)[0]", 1, "write name.part"),
        ("open('x')", 1, "only these can be called"),
        ("speed.real()", 1, "only these can be called"),
        ("min(speed)", 1, "min takes 2 to 16 arguments"),
        ("abs(1, 2)", 1, "abs takes 1 to 1"),
        ("min(1, 2, key=3)", 1, "only these can be called"),
        ("min(*arm, 1)", 5, "Starred"),
        ("[1, 2]", 1, "List is not allowed"),
        ("{'a': 1}", 1, "not allowed"),
        ("lambda: 1", 1, "not allowed"),
        ("f'{speed}'", 1, "not allowed"),
        ("(x := 1)", 2, "not allowed"),
        ("speed is 1", 1, "not allowed"),
        ("lamp in 'ON'", 1, "not allowed"),
        ("1 << 4", 1, "LShift is not allowed"),
        ("7 // 2", 1, "FloorDiv is not allowed"),
        ("~1", 1, "Invert is not allowed"),
        ("[x for x in arm]", 1, "not allowed"),
        ("1 + None", 5, "NoneType is not allowed"),
        ("1j", 1, "complex is not allowed"),
        ("b'x'", 1, "bytes is not allowed"),
        ("...", 1, "not allowed"),
        ("1e999", 1, "too large"),
        ("1" + "0" * 400, 1, "too large"),
        ("1 +", 1, "invalid syntax"),
        ("", 1, "invalid syntax"),
        ("import os", 1, "invalid syntax"),
        ("a = 1", 3, "invalid syntax"),
    ],
)
def test_refused_with_position(text: str, position: int, reason: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(text, KNOWN)
    assert str(caught.value).startswith(f"position {position}: ")
    assert reason in str(caught.value)


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@pytest.mark.parametrize(
    "text", ["1+" * 499 + "1", "(" * 300 + "1" + ")" * 300, "-" * 45 + "1", "x" * (MAX_CHARS + 1), "1\0"]
)
def test_too_much(text: str) -> None:
    with pytest.raises(ExpressionError):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1 / (speed - 3)", "no value"),
        ("log(0)", "no value"),
        ("(-8) ** 0.5", "no value"),
        ("9 ** 9 ** 9", "no value"),
        ("exp(1000)", "no value"),
        ("1e308 * 10", "not finite"),
        ("1e308 * 10 - 1e308 * 10", "not finite"),
        ("lamp + 1", "is not a number"),
        ("lamp * 1000", "is not a number"),
        ("lamp < 'P'", "is not a number"),
        ("lamp", "is not a number"),
        ("gone", "gone is unknown"),
        ("joints.q7", "is unknown"),
        ("arm[7]", "is unknown"),
        ("speed[0]", "is unknown"),
        ("unset > 1", "unset is unknown"),
    ],
)
def test_no_value(text: str, reason: str) -> None:
    with pytest.raises(ExpressionError, match=reason):
        Expression(text).evaluate(VALUES | {"unset": None})


def test_what_does_not_matter_need_not_be_known() -> None:
    assert Expression("lamp == 'OFF' and gone > 1").evaluate(VALUES) == 0.0
    assert Expression("lamp == 'ON' or gone > 1").evaluate(VALUES) == 1.0


@settings(deadline=None)
@given(st.text("abjoints.q1[]'/+-*%()0123456789 eandorifls<>=,!", max_size=60))
def test_any_text_is_refused_or_gives_a_finite_number_quickly(text: str) -> None:
    start_s = time.thread_time()
    with contextlib.suppress(ExpressionError):
        assert math.isfinite(Expression(text).evaluate(VALUES))
    assert time.thread_time() - start_s < 1.0


@given(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_arithmetic_is_python_s(a: float, b: float) -> None:
    expression = Expression("(a - b) * (a + b) + min(a, b) - abs(b)", {"a": None, "b": None})
    assert expression.evaluate({"a": a, "b": b}) == (a - b) * (a + b) + min(a, b) - abs(b)
