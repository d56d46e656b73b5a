"""From observations of a gymnasium environment to the policy's features.

Shapes: H history, T tokens of a stream, W their width.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Self

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Choice, Continuous, Value
from learners.environments import action_space, is_picture, split, streams, vector
from learners.model.features import Features
from learners.model.heads import HeadOutput
from learners.model.spec import Algorithm, PolicySpec, StreamSpec

PICTURE_HISTORY = 4
Tokens = Mapping[str, NDArray[Any]]
"""Of one frame: [T, W] of each stream."""


def specify(env: gymnasium.Env[Any, Any], *, gamma: float, algorithm: Algorithm) -> PolicySpec:
    """Return the policy's spec for an environment: one state is enough unless there are pictures."""
    found = streams(env.observation_space)
    pictures = any(is_picture(space) for space in found.values())
    return PolicySpec(
        tuple(_stream(name, space) for name, space in found.items()),
        action_space(env.action_space),
        history=PICTURE_HISTORY if pictures else 1,
        gamma=gamma,
        algorithm=algorithm,
    )


def _stream(name: str, space: spaces.Space[Any]) -> StreamSpec:
    if is_picture(space):
        raise NotImplementedError
    return StreamSpec(name, "telemetry", 1, vector(space, space.sample()).shape[1])


def tokens(space: spaces.Space[Any], observation: Any) -> Tokens:
    """Return one frame."""
    found = streams(space)
    return {name: vector(found[name], value) for name, value in split(space, observation).items()}


def values_of(actions: ActionSpace, output: HeadOutput, row: int) -> dict[str, Value]:
    """Return one row of the heads' output as actuator values."""
    values: dict[str, Value] = {}
    learned: list[Choice | Continuous] = [*actions.choices, *actions.continuous]
    for actuator in learned:
        value = output.values[actuator.name][row]
        values[actuator.name] = (
            actuator.choices[int(value)] if isinstance(actuator, Choice) else tuple(value.double().tolist())
        )
    return values


class Window:
    """The newest frames of one episode."""

    def __init__(self, spec: PolicySpec) -> None:
        self.spec = spec
        self._frames: deque[Tokens] = deque(maxlen=spec.history)

    def restart(self) -> None:
        """Forget, at the start of an episode."""
        self._frames.clear()

    def remember(self, frame: Tokens) -> Self:
        """Take in the newest frame."""
        self._frames.append(frame)
        return self

    def features(self) -> Features:
        """Return features [1, H]; places before the episode began are not present."""
        history = self.spec.history
        frames = list(self._frames)
        missing = history - len(frames)
        frames = [frames[0]] * missing + frames
        tokens = {
            s.name: torch.from_numpy(np.stack([f[s.name] for f in frames])).float().unsqueeze(0)
            for s in self.spec.streams
        }
        present_1HS = torch.ones(1, history, len(self.spec.streams), dtype=torch.bool)
        present_1HS[:, :missing] = False
        return Features(tokens, present_1HS, torch.zeros(present_1HS.shape))
