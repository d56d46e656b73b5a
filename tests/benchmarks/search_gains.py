"""Find a linear feedback for an environment with continuous actions: where the gains of a scripted controller come from.

    python tests/benchmarks/search_gains.py Hopper-v5 --seed 1 --iterations 140

Augmented random search, V2-t (Mania, Guy and Recht 2018, algorithm 2, with their settings for Hopper): no network, no gradient. Prints
the mean return of `CHECKED` episodes as it goes, and at the end the best gains and offset for plain observations, as they stand in
`learners/gym/demonstrations.py`.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from rich.progress import track

Floats = NDArray[np.float64]
STEP, NOISE, DIRECTIONS, BEST = 0.01, 0.025, 8, 4
ALIVE = 1.0
"""A tick's bonus for being upright, left out of what is searched for: standing still would be a good answer."""
CHECKED, CHECK_EVERY, FIRST_SEED = 4, 20, 6_000_000


@dataclass
class Moments:
    """Running mean and deviation of observations (Welford 1962)."""

    size: int
    count: int = 0
    mean: Floats = field(init=False)
    squares: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.squares = np.zeros(self.size), np.zeros(self.size)

    def add(self, observation: Floats) -> None:
        self.count += 1
        away = observation - self.mean
        self.mean = self.mean + away / self.count
        self.squares = self.squares + away * (observation - self.mean)

    def deviation(self) -> Floats:
        return np.sqrt(self.squares / max(self.count - 1, 1)) if self.count else np.ones(self.size)


def play(
    env: gymnasium.Env[Any, Any], gains: Floats, offset: Floats, seed: int, bonus: float, seen: list[Floats]
) -> float:
    """The return of one episode without the bonus."""
    space: Any = env.action_space
    observation, _ = env.reset(seed=seed)
    total, ended = 0.0, False
    while not ended:
        seen.append(observation)
        action = np.clip(gains @ observation + offset, space.low, space.high).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + float(reward) - bonus, bool(terminated or truncated)
    return total


def plain(weights: Floats, moments: Moments) -> tuple[Floats, Floats]:
    """Gains and offset for observations as they come."""
    gains = weights / moments.deviation()
    return gains, -gains @ moments.mean


def improve(env: gymnasium.Env[Any, Any], weights: Floats, moments: Moments, draw: np.random.Generator) -> Floats:
    """One iteration: a step along the best of some random directions."""
    directions = draw.standard_normal((DIRECTIONS, *weights.shape))
    seen: list[Floats] = []

    def rate(direction: Floats) -> float:
        return play(env, *plain(weights + direction, moments), int(draw.integers(1 << 30)), ALIVE, seen)

    rates = np.array([(rate(NOISE * one), rate(-NOISE * one)) for one in directions])
    best = np.argsort(-rates.max(1))[:BEST]
    along = np.einsum("i,ijk->jk", rates[best, 0] - rates[best, 1], directions[best])
    for observation in seen:
        moments.add(observation)
    moved: Floats = weights + STEP / (BEST * (rates[best].std() + 1e-8)) * along
    return moved


def main() -> None:
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iterations", type=int, default=140)
    given = parser.parse_args()
    env = gymnasium.make(given.environment)
    actions, observations = (int(np.prod(space.shape or ())) for space in (env.action_space, env.observation_space))
    draw, weights, moments = np.random.default_rng(given.seed), np.zeros((actions, observations)), Moments(observations)
    best: tuple[float, Floats, Floats] | None = None
    for number in track(range(1, given.iterations + 1), given.environment, transient=True):
        weights = improve(env, weights, moments, draw)
        if number % CHECK_EVERY == 0 or number == given.iterations:
            gains, offset = plain(weights, moments)
            returns = [play(env, gains, offset, FIRST_SEED + i, 0.0, []) for i in range(CHECKED)]
            sys.stdout.write(f"iteration {number}, {moments.count} steps: {np.mean(returns):.0f}\n")
            sys.stdout.flush()
            if best is None or np.mean(returns) > best[0]:
                best = float(np.mean(returns)), gains, offset
    if best is not None:
        rounded = [[float(f"{value:.3g}") for value in row] for row in (*best[1], best[2])]
        sys.stdout.write("".join(f"{row}\n" for row in rounded))


if __name__ == "__main__":
    main()
