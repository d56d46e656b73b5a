"""Gymnasium spaces as streams and actuators, values and back, and what cannot be mapped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from actuators.actions import Choice, Continuous
from actuators.sim.gym_spaces import (
    UnsupportedSpaceError,
    action_space,
    fields,
    from_environment,
    is_picture,
    split,
    streams,
    to_environment,
    vector,
)


def test_action_spaces_become_actuators_and_values_come_back() -> None:
    discrete = spaces.Discrete(3, start=5)
    assert action_space(discrete).actuators == (Choice("action", ("5", "6", "7")),), "the environment's own numbers"
    assert to_environment(discrete, {"action": "7"}) == 7
    assert from_environment(discrete, 7) == {"action": "7"}
    several = spaces.MultiDiscrete([2, 3])
    assert [a.name for a in action_space(several).actuators] == ["action0", "action1"]
    assert to_environment(several, {"action0": "1", "action1": "2"}).tolist() == [1, 2]
    assert from_environment(several, np.array([1, 2])) == {"action0": "1", "action1": "2"}
    box = spaces.Box(np.array([-1, 0], np.float32), np.array([1, 2], np.float32))
    assert action_space(box).actuators == (Continuous("action", (-1.0, 0.0), (1.0, 2.0)),)
    assert to_environment(box, {"action": (0.5, 1.5)}).dtype == np.float32
    assert from_environment(box, np.array([0.5, 1.5])) == {"action": (0.5, 1.5)}


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "finite limits"),
        (spaces.Box(-3e38, 3e38, (2,), np.float32), "finite limits"),
        (spaces.Box(0, 9, (2,), np.int64), "whole numbers"),
        (spaces.Box(0.0, 0.0, (1,), np.float32), "below its upper"),
        (spaces.Box(0, 1, (1_025,), np.float32), "1 to 1024 components"),
        (spaces.Discrete(1), "2 to 1024 values"),
        (spaces.MultiDiscrete([[2, 2], [2, 2]]), "can be mapped"),
        (spaces.MultiBinary(3), "can be mapped"),
        (spaces.Tuple((spaces.Discrete(2),)), "can be mapped"),
        (None, "can be mapped"),
    ],
)
def test_what_has_no_actuator_is_refused_in_one_line(space: Any, why: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=f"^action space [^\n]{{1,140}}: [^\n]*{why}"):
        action_space(space)


@pytest.mark.parametrize(
    ("space", "why"),
    [
        (spaces.Tuple((spaces.Discrete(2),)), "can be mapped"),
        (spaces.Dict({}), "empty"),
        (spaces.Dict({"A b": spaces.Discrete(2)}), "no stream's name"),
        (spaces.Dict({"a": spaces.Dict({"b": spaces.Discrete(2)})}), "can be mapped"),
        (spaces.Box(0, 255, (84, 84, 4), np.uint8), "1 or 3 channels"),
        (spaces.Box(0, 1, (0,), np.float32), "1 to 4096 fields"),
        (spaces.Text(5), "can be mapped"),
    ],
)
def test_what_has_no_stream_is_refused_in_one_line(space: Any, why: str) -> None:
    with pytest.raises(UnsupportedSpaceError, match=f"^observation space [^\n]{{1,140}}: [^\n]*{why}"):
        streams(space)


def test_observations_become_streams() -> None:
    picture = spaces.Box(0, 255, (8, 8, 3), np.uint8)
    assert is_picture(picture)
    assert not is_picture(spaces.Box(0, 1, (8, 8, 3), np.float32))
    assert set(streams(picture)) == {"view"}
    assert fields(spaces.Discrete(3)) == ("o0", "o1", "o2")
    assert set(streams(spaces.Discrete(3))) == {"state"}
    both = spaces.Dict({"a": picture, "b": spaces.Discrete(3, start=1)})
    assert set(streams(both)) == {"a", "b"}
    assert split(both, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    assert vector(both["b"], 2).tolist() == [[0.0, 1.0, 0.0]]
    assert vector(spaces.Box(0, 1, (2, 2)), np.ones((2, 2))).shape == (1, 4)
