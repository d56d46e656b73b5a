"""Greedy episodes in gymnasium environments, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np


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
