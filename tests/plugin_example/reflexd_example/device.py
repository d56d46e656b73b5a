"""A device behind the broker: a room with a heater that is switched, and a thermometer.

`Device` does what every device must: it drops a command with a `seq` not above the last of the same `boot`, or that is older
than its `ttl_ms`, and reports what it does, retained.
"""

from __future__ import annotations

from collections.abc import Sequence

from actuators.api import Device, DeviceMessage, Value, message

OUTSIDE_C, HEATER_C_PER_S, LOSS_PER_S = 5.0, 0.5, 0.02
SWITCH = ("OFF", "ON")


class Thermostat:
    """Carries out `heater`, publishes the stream `room`: `{"celsius"}`."""

    def __init__(self, agent: str, rate_hz: float | None) -> None:
        self.period_s = 1 / (rate_hz or 5.0)
        self._base = f"reflexd/{agent}"
        self._heater = Device(self._base, "heater", lambda value: value if value in SWITCH else None)
        self._on = False
        self.celsius = 15.0

    def subscriptions(self) -> Sequence[str]:
        """Where commands come."""
        return (self._heater.topic,)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """One command; answered with what the device does now."""
        value: Value | None = self._heater.take(payload, retained=retained, now_s=now_s)
        if value is None:
            return []
        self._on = value == "ON"
        return [self._heater.report(value)]

    def step(self, now_s: float) -> list[DeviceMessage]:
        """The room warms up or cools down."""
        heat = HEATER_C_PER_S if self._on else 0.0
        self.celsius += (heat - LOSS_PER_S * (self.celsius - OUTSIDE_C)) * self.period_s
        return [message(f"{self._base}/in/room", {"celsius": round(self.celsius, 3)})]


def make(*, agent: str, seed: int, rate_hz: float | None) -> Thermostat:
    """The entry point; `reflexd plant thermostat --agent NAME` carries it."""
    return Thermostat(agent, rate_hz)
