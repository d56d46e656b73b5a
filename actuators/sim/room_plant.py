"""Simulate a room with an electric heater: a thermometer that publishes JSON, and a switch that takes ON and OFF.

The room is a first-order system: its temperature approaches 12 degrees without the heater and 32 degrees with it, with a time
constant of 40 s. Thermometer and switch use topics of their own (`room/...`), as devices of a home do. The physics is that of
docs/tutorial-thermostat.md; the plant knows neither the target nor the reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from actuators.sim.plant import message
from actuators.wire import DeviceMessage

SENSOR, COMMAND, STATE = "room/sensor", "room/heater/set", "room/heater/state"
PERIOD_S = 1.0
TIME_CONSTANT_S = 40.0
COLD_C, WARM_C = 12.0, 32.0
NOISE_C = 0.05
"""Standard deviation of the thermometer."""
WORDS = (b"ON", b"OFF")


class RoomPlant:
    """A room behind the broker.

    Args:
        seed: of the first temperature and of the thermometer's noise.
    """

    period_s = PERIOD_S

    def __init__(self, seed: int = 0) -> None:
        self._chance = np.random.default_rng(seed)
        self.temperature_c = float(self._chance.uniform(COLD_C + 2.0, COLD_C + 8.0))
        self.heats = False
        self.refused = 0
        """Commands that are neither ON nor OFF, or retained."""
        self._stepped_s: float | None = None

    def subscriptions(self) -> Sequence[str]:
        """List the topics that `receive` needs."""
        return (COMMAND,)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Switch the heater; return its report. A retained command is old and is refused."""
        del topic
        if retained or payload not in WORDS:
            self.refused += 1
            return []
        self._advance(now_s)
        self.heats = payload == b"ON"
        return [self._report()]

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Advance to `now_s`; return the thermometer's message, and at first the heater's report."""
        first = self._stepped_s is None
        self._advance(now_s)
        shown = self.temperature_c + float(self._chance.normal(0.0, NOISE_C))
        reading = message(SENSOR, {"temperature": round(shown, 2)})
        return [self._report(), reading] if first else [reading]

    def _advance(self, now_s: float) -> None:
        passed_s = 0.0 if self._stepped_s is None else max(0.0, now_s - self._stepped_s)
        self._stepped_s = now_s
        rest_c = WARM_C if self.heats else COLD_C
        self.temperature_c = rest_c + (self.temperature_c - rest_c) * math.exp(-passed_s / TIME_CONSTANT_S)

    def _report(self) -> DeviceMessage:
        return DeviceMessage(STATE, b"ON" if self.heats else b"OFF", qos=1, retain=True)
