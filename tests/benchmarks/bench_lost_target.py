"""Can a policy without memory find what it does not see? The demo's head, learned by a table: speed known or not, mirrored or not.

`python tests/benchmarks/bench_lost_target.py`: the observation is the way to the photograph in steps of 15 degrees while that is in sight,
else nothing; with `speed`, also which way the head turns. A table has no trouble with words and pictures, so its score is what the
observation allows. Score = (table - random) / (scripted - random) of the mean reward of each minute, with all three in the same worlds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), str(Path(__file__).parent)]
from demo_logs import Unseen  # noqa: E402 - after the path

IN_SIGHT_DEG = 115.0
BIN_DEG = 15.0
BINS = 24
"""Of the way to the photograph; the first one, behind the head, is also what is observed of all that is out of sight."""
TURNS = 3
RATE = 0.1
EXPLORE_TICKS, FINAL = 2_000, 0.02
"""As the demo's policy explores."""
MINUTE = 600

Choose = Callable[[Unseen, int], int]


@dataclass
class Table:
    """Learns one value of each observation and turn; with `mirrored`, also from the mirror image of each transition."""

    with_speed: bool
    mirrored: bool
    gamma: float
    draw: np.random.Generator
    values: NDArray[np.float64] = field(default_factory=lambda: np.zeros((BINS * TURNS, TURNS)))
    tries: NDArray[np.int64] = field(default_factory=lambda: np.zeros((BINS * TURNS, TURNS), np.int64))
    mean: float = 0.0
    ticks: int = 0

    def observe(self, env: Unseen) -> int:
        """Return the number of what the head observes."""
        way = env.world.distance_deg()
        place = int((way + 180.0) // BIN_DEG) if abs(way) < IN_SIGHT_DEG else 0
        speed = int(np.sign(env.world.head.speed_deg_s)) if self.with_speed else 0
        return place * TURNS + speed + 1

    def mirror(self, seen: int) -> int:
        """Return the observation in a mirror."""
        place, speed = divmod(seen, TURNS)
        return (BINS - 1 - place if place else 0) * TURNS + TURNS - 1 - speed

    def choose(self, seen: int) -> int:
        """Return the turn, explored as far as training has come."""
        if self.draw.random() < max(FINAL, 1.0 - self.ticks / EXPLORE_TICKS):
            return int(self.draw.integers(TURNS))
        best = np.flatnonzero(self.values[seen] >= self.values[seen].max() - 1e-9)
        return int(self.draw.choice(best))

    def learn(self, seen: int, turn: int, reward: float, after: int, *, over: bool) -> None:
        """Learn from one transition; the last one of an episode has no known successor."""
        self.ticks += 1
        self.mean += (reward - self.mean) / self.ticks
        if over:
            return
        self._learn(seen, turn, reward, after)
        if self.mirrored:
            self._learn(self.mirror(seen), TURNS - 1 - turn, reward, self.mirror(after))

    def _learn(self, seen: int, turn: int, reward: float, after: int) -> None:
        self.tries[seen, turn] += 1
        target = reward - self.mean + self.gamma * self.values[after].max()
        rate = max(RATE, 1.0 / self.tries[seen, turn])
        self.values[seen, turn] += rate * (target - self.values[seen, turn])


def rewards(seed: int, ticks: int, table: Table | None, choose: Choose) -> NDArray[np.float64]:
    """Return the reward of each tick of one world; `choose` acts where there is no table."""
    env = Unseen()
    env.reset(seed=seed)
    found = []
    for tick in range(ticks):
        seen = table.observe(env) if table is not None else 0
        turn = table.choose(seen) if table is not None else choose(env, tick)
        _, reward, _, over, _ = env.step(np.int64(turn))
        if table is not None:
            table.learn(seen, turn, reward, table.observe(env), over=over)
        if over:
            env.reset()
        found.append(reward)
    return np.array(found)


def scores(seed: int, minutes: int, arms: dict[str, tuple[bool, bool, float]]) -> dict[str, NDArray[np.float64]]:
    """Return the scores of each arm, by minute."""
    ticks = minutes * MINUTE
    draw = np.random.default_rng([seed, 2])
    oracle = rewards(seed, ticks, None, lambda env, _: env.oracle()).reshape(minutes, -1).mean(1)
    random = rewards(seed, ticks, None, lambda *_: int(draw.integers(TURNS))).reshape(minutes, -1).mean(1)
    found = {}
    for name, (with_speed, mirrored, gamma) in arms.items():
        table = Table(with_speed, mirrored, gamma, np.random.default_rng([seed, 3]))
        mean = rewards(seed, ticks, table, lambda *_: 1).reshape(minutes, -1).mean(1)
        found[name] = (mean - random) / (oracle - random)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(40, 48)), help="of the worlds")
    parser.add_argument("--minutes", type=int, default=5)
    parser.add_argument("--gamma", type=float, default=0.5)
    given = parser.parse_args()
    arms = {
        f"{'mirrored' if mirrored else 'as it is':8}, speed {'known' if with_speed else 'unknown'}": (
            with_speed,
            mirrored,
            given.gamma,
        )
        for mirrored in (True, False)
        for with_speed in (False, True)
    }
    found = [scores(seed, given.minutes, arms) for seed in track(given.seeds, "worlds", transient=True)]
    for name in arms:
        by_minute = np.mean([each[name] for each in found], 0)
        last = [round(float(each[name][-1]), 2) for each in found]
        sys.stdout.write(f"{name:26} score by minute {' '.join(f'{x:.2f}' for x in by_minute)}; last minute {last}\n")


if __name__ == "__main__":
    main()
