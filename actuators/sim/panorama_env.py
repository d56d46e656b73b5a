"""Wrap the demo's world as a gymnasium environment: one step for each tick of 0.1 s, no broker, as fast as possible.

Observation: `image` uint8 180 x 320 x 3 (RGB), `sound` the last 2 s as float32 in [-1, 1] at 16 kHz, `text`, `angle` in degrees.
Also `speed` in degrees per second.
Action: 0 left, 1 stay, 2 right. Reward as in the demo. An episode is one order; it ends truncated after 2.5 to 4 s.
"""

from __future__ import annotations

import string
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from actuators.sim import panorama_world
from actuators.sim.panorama_world import HEIGHT, RATE_HZ, TICK_S, TURN_DEG_S, TURNS, WIDTH, World

WINDOW = RATE_HZ * 2
CHUNK = round(RATE_HZ * TICK_S)

Observation = dict[str, Any]


class Panorama(gymnasium.Env[Observation, np.int64]):
    """The demo's world as an environment; the same seed gives the same world."""

    def __init__(self) -> None:
        characters = string.ascii_lowercase + " ?"
        self.observation_space = spaces.Dict(
            {
                "image": spaces.Box(0, 255, (HEIGHT, WIDTH, 3), np.uint8),
                "sound": spaces.Box(-1.0, 1.0, (WINDOW,), np.float32),
                "text": spaces.Text(min_length=1, max_length=40, charset=characters),
                "angle": spaces.Box(-180.0, 180.0, (1,), np.float32),
                "speed": spaces.Box(-TURN_DEG_S, TURN_DEG_S, (1,), np.float32),
            }
        )
        self.action_space = spaces.Discrete(len(TURNS))
        self.world = World(0)
        self._sound = np.zeros(WINDOW, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode with a new order; with a seed, in a new world."""
        super().reset(seed=seed, options=options)
        if seed is not None:
            self.world = World(seed)
            self._sound = np.zeros(WINDOW, np.float32)
        else:
            self.world.begin()
        return self._observe(), panorama_world.describe(self.world)

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Advance the world by one tick."""
        world = self.world
        before = world.distance_deg()
        world.head.turn = TURNS[int(action)]
        world.advance(TICK_S)
        gain = panorama_world.reward(before, world.distance_deg())
        self._hear(CHUNK)
        return self._observe(), gain, False, world.over, panorama_world.describe(world)

    def oracle(self) -> int:
        """Return the action of the scripted controller."""
        return TURNS.index(panorama_world.oracle(self.world.distance_deg()))

    def _hear(self, count: int) -> None:
        samples = self.world.voice.listen(count).astype(np.float32) / 32_768.0
        self._sound = np.concatenate([self._sound[count:], samples])

    def _observe(self) -> Observation:
        return {
            "image": self.world.view(),
            "sound": self._sound.copy(),
            "text": self.world.text,
            "angle": np.array([self.world.head.angle_deg], np.float32),
            "speed": np.array([self.world.head.speed_deg_s], np.float32),
        }
