"""Greedy episodes in gymnasium environments, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium
import numpy as np


@dataclass(frozen=True, slots=True)
class ReturnSummary:
    """Undiscounted returns of episodes."""

    mean: float
    std: float
    min: float
    max: float
    episodes: int

    @classmethod
    def of(cls, returns: Sequence[float]) -> ReturnSummary:
        """Summarise; `std` is the population's."""
        r = np.asarray(returns, dtype=float)
        return cls(float(r.mean()), float(r.std()), float(r.min()), float(r.max()), len(r))

    def as_dict(self) -> dict[str, float]:
        """Return the figures as JSON."""
        return asdict(self)


Act = Callable[[list[Any], list[int]], list[Any]]
"""From observations of the running episodes, and their numbers, to environment actions."""


MAX_STEPS = 2_000
"""Steps after which an episode is cut if its environment has no time limit."""


def run_episodes(
    make: Callable[[], gymnasium.Env[Any, Any]], act: Act, seeds: Sequence[int]
) -> tuple[list[float], int]:
    """Run one episode for each seed, all side by side; return their returns and how many were cut after `MAX_STEPS`."""
    environments = [make() for _ in seeds]
    try:
        running = {i: env.reset(seed=seed)[0] for i, (env, seed) in enumerate(zip(environments, seeds, strict=True))}
        returns = [0.0] * len(seeds)
        spec = environments[0].spec if environments else None
        limited = spec is not None and spec.max_episode_steps is not None
        steps = 0
        while running and (limited or steps < MAX_STEPS):
            steps += 1
            numbers = list(running)
            for i, action in zip(numbers, act([running[i] for i in numbers], numbers), strict=True):
                observation, reward, terminated, truncated, _ = environments[i].step(action)
                returns[i] += float(reward)
                if terminated or truncated:
                    del running[i]
                else:
                    running[i] = observation
        return returns, len(running)
    finally:
        for env in environments:
            env.close()
