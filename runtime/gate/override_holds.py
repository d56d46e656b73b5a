"""Publishes holds: how long a person still overrides each actuator, retained on `hold/<actuator>`.

The gate's host calls it at every tick and after every connect. It knows neither how a hold begins nor what ends it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from actuators.actions import Value
from actuators.safety.gate import Gate
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics, encode

STEP_S = 0.5
"""A hold of the same value is published again once its end has moved by so much: a joystick extends it many times a second."""


@dataclass(slots=True)
class HoldPublisher:
    """Publishes what has changed since the last call."""

    gate: Gate
    connection: Connection
    topics: Topics
    wall: Callable[[], float] = time.time
    _published: dict[str, tuple[Value | None, float]] = field(default_factory=dict)
    """By actuator: the value and the monotonic end of the published hold; None and infinity without a hold."""

    def invalidate(self) -> None:
        """Publish every actuator's hold at the next call: the broker may have lost what it retained."""
        self._published.clear()

    def publish_changes(self, now_s: float) -> None:
        """Publish each hold that began, ended, changed its value or moved its end."""
        for name, hold in self.gate.holds.items():
            current = (None, math.inf) if hold is None else (hold.value, hold.until_s)
            known = self._published.get(name)
            if known is not None and known[0] == current[0] and not abs(current[1] - known[1]) >= STEP_S:
                continue
            until = None if hold is None else round(self.wall() + hold.until_s - now_s, 3)
            body = {"value": current[0], "until": until}
            if self.connection.enqueue(self.topics("hold", name), encode(body), qos=1, retain=True, keep="latest"):
                self._published[name] = current
