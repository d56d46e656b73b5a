"""What a simulated device sees of the broker, with a clock under the test's control."""

from __future__ import annotations

from typing import Any

import orjson

from actuators.sim.panorama_world import TICK_S
from actuators.sim.plant import Plant
from actuators.wire import DeviceMessage


class Broker:
    """A plant with a clock, and everything it published."""

    def __init__(self, plant: Plant, base: str = "reflexd/demo") -> None:
        self.plant, self.base, self.now_s, self.seq = plant, base, 1_000.0, 0
        self.out: list[DeviceMessage] = []

    def step(self, seconds: float = TICK_S) -> None:
        self.now_s += seconds
        self.out += self.plant.step(self.now_s)

    def command(
        self, value: Any, decision: str | None, *, retained: bool = False, seq: int | None = None, index: int = 0
    ) -> None:
        """Send a command to the plant's actuator number `index`."""
        self.seq += 1
        body = {"value": value, "decision": decision, "boot": "b", "seq": self.seq if seq is None else seq}
        body |= {"stamp": self.now_s, "ttl_ms": 300, "policy": "p"}
        topic = self.plant.subscriptions()[index]
        self.out += self.plant.receive(topic, orjson.dumps(body), retained=retained, now_s=self.now_s)

    def take(self, *parts: str) -> list[Any]:
        topic = "/".join((self.base, *parts))
        found = [message for message in self.out if message.topic == topic]
        self.out = [message for message in self.out if message.topic != topic]
        return [orjson.loads(message.payload) for message in found]
