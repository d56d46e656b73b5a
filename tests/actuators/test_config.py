"""Settings of actuators: each mistake is refused with what would be right."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from actuators.actions import ActionSpace, Choice, Continuous, Utterance
from actuators.config import AnyActuator

ADAPTER: TypeAdapter[AnyActuator] = TypeAdapter(AnyActuator)
CHOICE: dict[str, Any] = {"kind": "choice", "choices": ["a", "b"], "safe": "a"}
BOX: dict[str, Any] = {"kind": "continuous", "low": [-1, -1], "high": [1, 1]}


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (CHOICE, {"choices": ["a", "a"]}, "choices must be distinct"),
        (CHOICE, {"choices": ["a"]}, "at least 2"),
        (CHOICE, {"safe": "c"}, "is not one of the choices"),
        (CHOICE, {"topic": "a/+/b"}, "may not be empty or contain"),
        (CHOICE, {"topic": ""}, "may not be empty or contain"),
        (CHOICE, {"state_topic": "a/#"}, "may not be empty or contain"),
        (CHOICE, {"payload": "${value"}, "not a valid template"),
        (CHOICE, {"payload": "${value} ${secret}"}, "unknown placeholder"),
        (CHOICE, {"payload": '{"state": "ON"}'}, r"no \$\{value\}: every command, the safe one too, would be the same"),
        (CHOICE, {"payload": '{"state": "$${value}"}'}, r"no \$\{value\}"),
        (CHOICE, {"ttl_ms": 0}, "greater than 0"),
        (CHOICE, {"speed": 1}, "Extra inputs"),
        (BOX, {"high": [1]}, "low has 2 numbers and high has 1"),
        (BOX, {"low": [1, -1]}, "every low must be below"),
        (BOX, {"low": [float("nan"), 0]}, "finite"),
        (BOX, {"max_rate": [1]}, "max_rate needs one positive number"),
        (BOX, {"max_rate": [1, 0]}, "max_rate needs one positive number"),
        (BOX, {"safe": [0]}, "safe needs one number for each"),
        (BOX, {"safe": [0, 2]}, "safe must lie between"),
    ],
)
def test_mistakes(base: dict[str, Any], change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        ADAPTER.validate_python(base | change)


@pytest.mark.parametrize(
    "body",
    [
        CHOICE,
        CHOICE | {"safe": "hold", "payload": '{"a": "${value}", "b": "$$"}', "topic": "x/set"},
        BOX | {"safe": [0, 1], "max_rate": [1, 2]},
        {"kind": "text", "task": "chat"},
    ],
)
def test_sound_settings(body: dict[str, Any]) -> None:
    assert ADAPTER.validate_python(body).kind == body["kind"]


def test_the_action_space_by_kind() -> None:
    space = ActionSpace((Choice("a", ("x", "y")), Continuous("b", (0.0,), (1.0,)), Utterance("c", "chat")))
    assert [each.name for each in space.choices] == ["a"]
    assert [each.name for each in space.continuous] == ["b"]
