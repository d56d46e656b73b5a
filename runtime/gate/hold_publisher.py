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
    _published: dict[str, tuple[Value | None, float, float]] = field(default_factory=dict)
    """By actuator: the value, the monotonic end (infinity without a hold), and what the wall clock was ahead of that clock."""

    def invalidate(self) -> None:
        """Publish every actuator's hold at the next call: the broker may have lost what it retained."""
        self._published.clear()

    def publish_changes(self, now_s: float) -> None:
        """Publish each hold that began, ended, changed its value or moved its end; a step of the wall clock moves it, too."""
        ahead_s = self.wall() - now_s
        for name, hold in self.gate.holds.items():
            value, until_s = (None, math.inf) if hold is None else (hold.value, hold.until_s)
            known = self._published.get(name)
            if known is not None and known[0] == value and not _moved(known[1:], (until_s, ahead_s)):
                continue
            until = None if hold is None else round(until_s + ahead_s, 3)
            body = {"value": value, "until": until}
            if self.connection.enqueue(self.topics("hold", name), encode(body), qos=1, retain=True, keep="latest"):
                self._published[name] = (value, until_s, ahead_s)


def _moved(known: tuple[float, float], now: tuple[float, float]) -> bool:
    """Return whether the end of a hold moved, or the wall clock stepped; without a hold there is no end to move."""
    if known[0] == now[0] == math.inf:
        return False
    return abs(known[0] - now[0]) >= STEP_S or abs(known[1] - now[1]) >= STEP_S
