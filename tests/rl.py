"""Small policies and batches for the tests of the learning algorithms."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from actuators.actions import ActionSpace, Choice, Continuous
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.transition_batch import Batch

CHOICE = Choice("head", ("left", "stay", "right"))
OTHER = Choice("lamp", ("OFF", "ON"))
ARM = Continuous("arm", (-1.0, 0.0), (1.0, 4.0))


def seen(x_BW: Tensor, name: str = "joints") -> Features:
    rows = len(x_BW)
    return Features(
        {name: x_BW.float().reshape(rows, 1, 1, -1)}, torch.ones(rows, 1, 1, dtype=torch.bool), torch.zeros(rows, 1, 1)
    )


def plain(
    *actuators: Choice | Continuous, width: int = 3, gamma: float = 0.9, algorithm: str = "auto", seed: int = 0
) -> Policy:
    torch.manual_seed(seed)
    spec = PolicySpec(
        (StreamSpec("joints", "telemetry", 1, width),),
        ActionSpace(actuators),
        history=1,
        gamma=gamma,
        algorithm=algorithm,  # type: ignore[arg-type]
    )
    return Policy(spec).eval()


def random_batch(policy: Policy, size: int, generator: torch.Generator, *, trained: bool = False) -> Batch:
    width = policy.spec.streams[0].width
    actions: dict[str, Tensor] = {
        a.name: torch.randint(len(a.choices), (size,), generator=generator) for a in policy.spec.actions.choices
    }
    for a in policy.spec.actions.continuous:
        low, high = torch.tensor(a.low), torch.tensor(a.high)
        actions[a.name] = low + (high - low) * torch.rand(size, len(a.low), generator=generator)
    marks = {name: torch.arange(size) % 2 == 0 for name in actions} if trained else {}
    return Batch(
        seen(torch.randn(size, width, generator=generator)),
        seen(torch.randn(size, width, generator=generator)),
        actions,
        torch.randn(size, generator=generator),
        torch.full((size,), policy.spec.gamma),
        is_expert=marks,
    )


class Corridor(gymnasium.Env[Any, Any]):
    """Eleven places, start in the middle; right is 1; the right end pays 1 and ends, twelve steps cut it off."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = spaces.Discrete(11), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = 5, 0
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.place = min(10, max(0, self.place + (1 if action == 1 else -1)))
        self.steps += 1
        ended = self.place == 10
        return self.place, float(ended), ended, self.steps >= 12, {}


class Tiles(gymnasium.Env[Any, Any]):
    """A picture with a bright left or right half; naming the side pays 1. One step each, twenty to an episode."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)
        self.action_space = spaces.Discrete(2)

    def _look(self) -> np.ndarray[Any, Any]:
        self.side = int(self.np_random.integers(2))
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, 4 * self.side : 4 * self.side + 4] = 255
        return image

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        reward = float(action == self.side)
        self.steps += 1
        return self._look(), reward, False, self.steps >= 20, {}


class Shrink:
    """An encoder of pictures: one token of four pooled cells; the real one's interface."""

    modality, version, tokens, width, module = "image", "shrink", 1, 12, None

    def prepare(self, readings: Any) -> Any:
        return (torch.stack([torch.from_numpy(r.image).permute(2, 0, 1) for r in readings]).float() / 255,)

    def run(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1).unsqueeze(1)

    def encode(self, inputs: Any) -> torch.Tensor:
        return self.run(*inputs)
