"""Expression and plug-in rewards: of what is seen and done, clipped, and 0 with a count where they cannot be computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from actuators.config import AnyActuator
from actuators.expressions import ExpressionError
from learners.config.rewards import AnyReward
from learners.rewards.tick_rewards import RewardUnknown, TickRewards, build_rewards, expression_names
from sensors.config import AnyStream
from sensors.readings import Observation, Telemetry, Text

STREAMS: dict[str, AnyStream] = {
    "joints": TypeAdapter[Any](AnyStream).validate_python({"kind": "telemetry", "fields": ["q1", "/imu/yaw"]}),
    "orders": TypeAdapter[Any](AnyStream).validate_python({"kind": "text", "encoder": "language"}),
}
ACTUATORS: dict[str, AnyActuator] = {
    "head": TypeAdapter[Any](AnyActuator).validate_python({"kind": "choice", "choices": ["a", "b"], "safe": "a"}),
    "arm": TypeAdapter[Any](AnyActuator).validate_python({"kind": "continuous", "low": [0, 0], "high": [1, 1]}),
}


def rewards(*settings: dict[str, Any]) -> list[Any]:
    return [TypeAdapter[Any](AnyReward).validate_python(setting) for setting in settings]


def seen(q1: float = 0.5, yaw: float = -2.0) -> Observation:
    joints = Telemetry("joints", 0.0, 0, ("q1", "/imu/yaw"), np.array([q1, yaw], np.float32))
    return Observation(0, 0.0, {"joints": joints, "orders": Text("orders", 0.0, 0, "go")}, {"joints": 0.0})


def test_arithmetic_on_telemetry_and_actions() -> None:
    ticks = build_rewards(
        rewards(
            {"name": "near", "kind": "expression", "value": "-abs(joints.q1 - 0.2)"},
            {"name": "calm", "kind": "expression", "value": "-(arm[0] ** 2) if head == 'b' else 0"},
            {"name": "yaw", "kind": "expression", "value": "100 * joints['/imu/yaw']", "clip": 3},
            {"name": "told", "kind": "topic"},
        ),
        STREAMS,
        ACTUATORS,
    )
    assert ticks.at(seen(), {"head": "b", "arm": (0.5, 1.0)}) == pytest.approx(-0.3 - 0.25 - 3)
    assert ticks.latest == pytest.approx({"near": -0.3, "calm": -0.25, "yaw": -3})
    assert ticks.at(seen(), {"head": "a"}) == pytest.approx(-0.3 - 3)
    assert not ticks.faults


def test_what_cannot_be_computed_is_nothing_and_counted() -> None:
    ticks = build_rewards(
        rewards(
            {"name": "arm", "kind": "expression", "value": "arm[1]"},
            {"name": "ratio", "kind": "expression", "value": "1 / (joints.q1 - 0.5)"},
            {"name": "fine", "kind": "expression", "value": "1"},
        ),
        STREAMS,
        ACTUATORS,
    )
    assert ticks.at(seen(), {"head": "a"}) == 1.0
    assert ticks.at(Observation(0, 0.0, {}, {}), {}) == 1.0
    assert ticks.faults == {"arm": 2, "ratio": 2}


@pytest.mark.parametrize("value", ["joints.q9", "orders", "front > 1", "arm[2]", "__import__('os')"])
def test_an_expression_may_use_telemetry_and_actions_only(value: str) -> None:
    with pytest.raises(ExpressionError):
        build_rewards(rewards({"name": "x", "kind": "expression", "value": value}), STREAMS, ACTUATORS)
    assert expression_names(STREAMS, ACTUATORS) == {"joints": ("q1", "/imu/yaw"), "head": None, "arm": 2}


@pytest.mark.parametrize("result", [float("nan"), float("inf"), None, "x", KeyError("q"), ZeroDivisionError()])
def test_a_careless_plug_in_is_counted(result: Any) -> None:
    def plugin(observation: Observation, actions: Any) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    ticks = TickRewards(rewards({"name": "own", "kind": "plugin", "plugin": "mine"}), plugins={"mine": plugin})
    assert ticks.at(seen(), {}) == 0.0
    assert ticks.faults["own"] == 1


def test_a_plug_in_sees_observation_and_actions() -> None:
    def plugin(observation: Observation, actions: Any) -> float:
        return len(observation.readings) + float(actions["arm"][0])

    ticks = TickRewards(
        rewards({"name": "own", "kind": "plugin", "plugin": "mine", "clip": 2.2}), plugins={"mine": plugin}
    )
    assert ticks.at(seen(), {"arm": (0.1,)}) == pytest.approx(2.1)
    assert ticks.at(seen(), {"arm": (0.9,)}) == pytest.approx(2.2)


def test_a_plug_in_comes_through_its_entry_point(tmp_path: Any, monkeypatch: Any) -> None:
    package = tmp_path / "given_reward-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: given-reward\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[reflexd.rewards]\nseven = given_reward:seven\n")
    (tmp_path / "given_reward.py").write_text("def seven(observation, actions):\n    return 7.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    ticks = TickRewards(rewards({"name": "own", "kind": "plugin", "plugin": "seven"}))
    assert ticks.at(seen(), {}) == 7.0
    with pytest.raises(RewardUnknown, match="seven"):
        TickRewards(rewards({"name": "own", "kind": "plugin", "plugin": "eight"}))
