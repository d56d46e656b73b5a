"""Gymnasium environments as streams and actuators, and greedy episodes in them.

A vector (or discrete) observation is the telemetry stream `state`, a picture the camera stream `view`; a Dict has
a stream for each key. A Discrete action is the choice actuator `action` with the words "0", "1", ...; a Box the continuous
one; MultiDiscrete gives `action0`, `action1`, ... These are the names that `reflexd plant` uses. Rewards are not scaled, observations not normalised here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from actuators.actions import ActionSpace, Choice, Continuous, Value


def action_space(space: spaces.Space[Any]) -> ActionSpace:
    """Return the actuators of an action space.

    Raises:
        ValueError: a kind of space without an actuator, or a Box without limits.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpace((Choice("action", tuple(str(i) for i in range(int(space.n)))),))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return ActionSpace(
            tuple(Choice(f"action{k}", tuple(str(i) for i in range(n))) for k, n in enumerate(space.nvec))
        )
    if isinstance(space, spaces.Box):
        low, high = np.ravel(space.low).astype(float).tolist(), np.ravel(space.high).astype(float).tolist()
        if not np.isfinite([low, high]).all():
            raise ValueError(
                f"a continuous actuator needs finite limits, and {space} has none; wrap it in RescaleAction"
            )
        return ActionSpace((Continuous("action", tuple(low), tuple(high)),))
    raise ValueError(
        f"no actuator for the action space {space}; Discrete, MultiDiscrete (one axis) and Box are supported"
    )


def to_environment(space: spaces.Space[Any], values: Mapping[str, Value]) -> Any:
    """Return what `env.step` wants for the values of the actuators."""
    if isinstance(space, spaces.Discrete):
        return int(str(values["action"])) + int(space.start)
    if isinstance(space, spaces.MultiDiscrete):
        chosen = [int(str(values[f"action{k}"])) for k in range(len(space.nvec))]
        return np.array(chosen, dtype=space.dtype) + space.start
    assert isinstance(space, spaces.Box)
    return np.asarray(values["action"], dtype=space.dtype).reshape(space.shape)


def from_environment(space: spaces.Space[Any], action: Any) -> dict[str, Value]:
    """Return the actuators' values for an action of the environment."""
    if isinstance(space, spaces.Discrete):
        return {"action": str(int(action) - int(space.start))}
    if isinstance(space, spaces.MultiDiscrete):
        return {f"action{k}": str(int(a)) for k, a in enumerate(np.asarray(action) - space.start)}
    return {"action": tuple(float(x) for x in np.ravel(action))}


def is_picture(space: spaces.Space[Any]) -> bool:
    """Whether a space holds pictures: uint8, height x width x 1 or 3."""
    return (
        isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3 and space.shape[2] in (1, 3)
    )


def streams(space: spaces.Space[Any]) -> dict[str, spaces.Space[Any]]:
    """Return the space of each stream.

    Raises:
        ValueError: a kind of space that is no stream.
    """
    single = "view" if is_picture(space) else "state"
    found = dict(space.items()) if isinstance(space, spaces.Dict) else {single: space}
    for name, part in found.items():
        supported = isinstance(part, (spaces.Box, spaces.Discrete))
        if not supported:
            raise ValueError(
                f"no stream for the observation space {part} ({name}); Box, Discrete and a Dict of them are"
            )
    return found


def split(space: spaces.Space[Any], observation: Any) -> dict[str, Any]:
    """Return the observation by stream."""
    return dict(observation) if isinstance(space, spaces.Dict) else dict.fromkeys(streams(space), observation)


def vector(space: spaces.Space[Any], value: Any) -> NDArray[np.float32]:
    """Return a vector observation as telemetry [1, W]; a discrete one becomes one-hot."""
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[[int(value) - int(space.start)]]
    return np.ravel(value).astype(np.float32)[None]


@dataclass(frozen=True, slots=True)
class Score:
    """Undiscounted returns of episodes."""

    mean: float
    std: float
    min: float
    max: float
    episodes: int

    @classmethod
    def of(cls, returns: Sequence[float]) -> Score:
        """Summarise; `std` is the population's."""
        r = np.asarray(returns, dtype=float)
        return cls(float(r.mean()), float(r.std()), float(r.min()), float(r.max()), len(r))

    def as_dict(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


Act = Callable[[list[Any], list[int]], list[Any]]
"""From observations of the running episodes, and their numbers, to environment actions."""


def run_episodes(make: Callable[[], gymnasium.Env[Any, Any]], act: Act, seeds: Sequence[int]) -> list[float]:
    """Run one episode for each seed, all side by side, and return their returns."""
    environments = [make() for _ in seeds]
    try:
        running = {i: env.reset(seed=seed)[0] for i, (env, seed) in enumerate(zip(environments, seeds, strict=True))}
        returns = [0.0] * len(seeds)
        while running:
            numbers = list(running)
            for i, action in zip(numbers, act([running[i] for i in numbers], numbers), strict=True):
                observation, reward, terminated, truncated, _ = environments[i].step(action)
                returns[i] += float(reward)
                if terminated or truncated:
                    del running[i]
                else:
                    running[i] = observation
        return returns
    finally:
        for env in environments:
            env.close()
