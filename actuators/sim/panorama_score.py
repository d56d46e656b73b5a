"""Score the demo's policy between a random and an all-knowing controller, in the same world at the same time.

Score = (policy - random) / (oracle - random) of the mean reward over the last minute. The two scripted controllers turn
invisible heads of their own; places and order are the policy's.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from actuators.sim import panorama_world
from actuators.sim.panorama_world import Head, World

WINDOW_S = 60.0
LEAST_S = 10.0
"""No score is given before this much was seen."""


class PanoramaScore:
    """Accumulate the rewards of the policy's head and of two scripted ones."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._rng = rng
        self._heads = {"policy": world.head, "oracle": Head(world.head.angle_deg), "random": Head(world.head.angle_deg)}
        self._before: dict[str, float] = {}
        self._past: deque[tuple[float, dict[str, float]]] = deque()
        self.begin()

    def begin(self) -> None:
        """Begin an episode: distances jump, and no head is rewarded for that."""
        self._before = self._distances()
        self._decide()

    def advance(self, seconds: float) -> None:
        """Advance the scripted heads; the world advances the policy's own."""
        for name in ("oracle", "random"):
            self._heads[name].advance(seconds)

    def tick(self, now_s: float) -> None:
        """End an interval: reward all heads, and let the scripted ones decide again."""
        after = self._distances()
        self._past.append((now_s, {name: panorama_world.reward(self._before[name], after[name]) for name in after}))
        while now_s - self._past[0][0] > WINDOW_S:
            self._past.popleft()
        self._before = after
        self._decide()

    def figures(self) -> dict[str, float | None]:
        """Return the mean rewards of the last minute and the score; None where there are too few."""
        if not self._past or self._past[-1][0] - self._past[0][0] < LEAST_S:
            return {"policy": None, "oracle": None, "random": None, "score": None}
        means = {name: float(np.mean([rewards[name] for _, rewards in self._past])) for name in self._heads}
        span = means["oracle"] - means["random"]
        return {**means, "score": (means["policy"] - means["random"]) / span if span > 0 else None}

    def _distances(self) -> dict[str, float]:
        return {name: self._world.distance_deg(head) for name, head in self._heads.items()}

    def _decide(self) -> None:
        self._heads["oracle"].turn = panorama_world.oracle(self._before["oracle"])
        self._heads["random"].turn = panorama_world.random_turn(self._rng)
