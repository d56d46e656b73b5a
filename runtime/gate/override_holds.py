"""Publishes holds: how long a person still overrides each actuator, retained on `hold/<actuator>`.

The gate's host calls it at every tick and after every connect. It knows neither how a hold begins nor what ends it.
"""

from __future__ import annotations

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
    _published: dict[str, tuple[Value | None, float | None]] = field(default_factory=dict)
    """By actuator: the value and the end (Unix seconds) of the published hold; both None without a hold."""

    def invalidate(self) -> None:
        """Publish every actuator's hold at the next call: the broker may have lost what it retained."""
        self._published.clear()

    def publish_changes(self, now_s: float) -> None:
        """Publish each hold that began, ended, changed its value, or has another end, also by a step of the wall clock."""
        for name, hold in self.gate.holds.items():
            value = None if hold is None else hold.value
            until = None if hold is None else round(self.wall() + hold.until_s - now_s, 3)
            if name in self._published and _same(self._published[name], (value, until)):
                continue
            body = {"value": value, "until": until}
            if self.connection.enqueue(self.topics("hold", name), encode(body), qos=1, retain=True, keep="latest"):
                self._published[name] = (value, until)


def _same(known: tuple[Value | None, float | None], now: tuple[Value | None, float | None]) -> bool:
    """Return whether two holds have one value and nearly one end."""
    if known[0] != now[0] or (known[1] is None) != (now[1] is None):
        return False
    return known[1] is None or now[1] is None or abs(known[1] - now[1]) < STEP_S
