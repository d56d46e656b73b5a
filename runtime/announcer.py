"""Keeps Home Assistant told: discovery on every connect and whenever it starts, the state at most every 10 s.

Runs in the agent beside the tick and reads what others measured; it never asks the engine or the gate for anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.discovery import BIRTH_TOPIC, EVERY_S, Discovery
from runtime.mqtt import Connection, Message
from runtime.topics import Status, Topics, decode


@dataclass(slots=True)
class Announcer:
    """Create it inside the running loop; `listen` before the connection runs, then `run`."""

    discovery: Discovery
    link: Connection
    health: Callable[[], Mapping[str, Any]]
    """The last `health` payload; may take milliseconds, and is called off the loop."""
    told: Callable[[], Mapping[str, Any]]
    """What each actuator was last told."""
    period_s: float = EVERY_S
    status: str = "starting"
    _connects: int = 0
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def listen(self) -> None:
        """Subscribe to Home Assistant's birth message and to the agent's own status."""
        self.link.on(BIRTH_TOPIC, self._born)
        self.link.on(Topics(self.discovery.config.agent)("status"), self._status, retained="send")

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.link.up()
            if self.link.connects != self._connects:
                self._connects = self.link.connects
                self._announce()
            health = await asyncio.to_thread(self.health)
            self.link.post(self.discovery.state_topic, self.discovery.state(self.status, health, self.told()), qos=1)
            self._wake.clear()
            try:
                async with asyncio.timeout(self.period_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _announce(self) -> None:
        self.link.post(self.discovery.topic, self.discovery.payload(), qos=1, retain=True)

    def _born(self, message: Message) -> None:
        """Home Assistant has started: it wants to hear who is there, and how they are."""
        if message.payload == b"online" and not message.retain:
            self._announce()
            self._wake.set()

    def _status(self, message: Message) -> None:
        self.status = decode(Status, message.payload).state


async def remove(discovery: Discovery, link: Connection) -> None:
    """Take the device away from Home Assistant, when the agent is removed for good.

    Raises:
        MqttLost: there is no broker.
    """
    await link.publish(discovery.topic, discovery.removal(), qos=1, retain=True)
