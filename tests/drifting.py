"""Sources with a known drift: twenty numbers a second, and a camera, a microphone, a thermometer and orders that can be changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sensors.readings import Frame, Reading, Sound, Telemetry, Text


def numbers(kind: str, seconds: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Twenty numbers a second: independent, correlated, heavy in the tails, or scenes that change every few seconds."""
    noise = rng.normal(size=(seconds, 20))
    if kind == "heavy":
        return rng.standard_t(3, size=(seconds, 20))
    if kind == "correlated":
        for second in range(1, seconds):
            noise[second] = 0.9 * noise[second - 1] + np.sqrt(1 - 0.81) * noise[second]
    if kind == "scenes":
        scenes, ends = rng.normal(size=(8, 20)) * 3, np.cumsum(rng.integers(3, 20, seconds))
        shown = rng.integers(8, size=len(ends))[np.searchsorted(ends, np.arange(seconds), "right")]
        return scenes[shown] + 0.5 * noise
    return noise


@dataclass
class Senses:
    """A camera, a microphone, a thermometer and orders, each with noise of its own, and how they are changed."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(17))
    light: float = 1.0
    turned: int = 0
    gain: float = 1.0
    offset: float = 0.0
    scene: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.scene = self.rng.uniform(40, 200, (48, 96, 3))

    def at(self, second: int) -> dict[str, Reading]:
        view = np.roll(self.scene, self.turned, axis=1)[:, :64] * self.light
        image = np.clip(view + self.rng.normal(0, 6, view.shape), 0, 255).astype(np.uint8)
        sound = (self.gain * 0.1 * self.rng.normal(size=3_200)).astype(np.float32)
        temperature = 21 + self.offset + 0.1 * self.rng.normal()
        readings: dict[str, Reading] = {
            "front": Frame("front", float(second), second, image),
            "room": Sound("room", float(second), second, sound),
            "meter": Telemetry("meter", float(second), second, ("temperature",), np.array([temperature])),
        }
        if second % 7 == 0:
            readings["orders"] = Text("orders", float(second), second, "find the ship")
        return readings

    def tokens(self, readings: dict[str, Reading]) -> dict[str, NDArray[Any]]:
        front, room = readings["front"], readings["room"]
        assert isinstance(front, Frame)
        assert isinstance(room, Sound)
        rows = front.image.reshape(4, 12, 64, 3).mean(axis=(1, 3)) / 255
        return {"front": rows.astype(np.float16), "room": room.samples.reshape(4, 800)[:, :32].astype(np.float16)}
