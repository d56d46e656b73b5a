"""What the world is told by the gate's process: status and info, retained, and events; each thing when it has changed.

The status sums up the gate, the connection and the agent as it was last heard. Everything is posted and kept while there is no
broker; only the last words are waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from actuators.safety.decisions import Proposal
from actuators.safety.gate import Gate
from runtime.mqtt import Connection, MqttLost
from runtime.mqtt.topics import Topics, encode
from runtime.process.systemd import Feeder

log = structlog.get_logger(__name__)

FAREWELL_S = 2.0
"""For the broker to take the last status; longer than a reconnection takes."""
AGAIN_S = 0.01
"""Between two attempts at it."""


@dataclass(slots=True)
class AgentLiveness:
    """What the agent last said of itself."""

    policy: str = ""
    spoke_s: float | None = None
    """When it last spoke, whatever became of it since; None before it first did."""
    heard_s: float | None = None
    """When it last spoke; None before it first did and after it was lost."""
    stale: tuple[str, ...] = ()
    ready: bool = False
    was_ready: bool = False

    def spoke(self, proposal: Proposal, now_s: float) -> None:
        """It has ticked."""
        self.heard_s = self.spoke_s = now_s
        self.stale, self.policy = proposal.stale, proposal.policy
        self.ready = proposal.ready
        self.was_ready = self.was_ready or proposal.ready

    def lost(self) -> None:
        """It closed its end, or was silent for too long."""
        self.heard_s, self.ready = None, False


@dataclass(slots=True)
class StatusPublisher:
    """Publishes status, info and events."""

    gate: Gate
    connection: Connection
    topics: Topics
    feeder: Feeder
    agent: AgentLiveness
    describe: Callable[[str, str], dict[str, Any]]
    """The `info` payload for a policy version and a mode."""
    wall: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)
    """Events by type."""
    _told: tuple[Any, ...] = ()
    _told_info: tuple[str, str] = ("", "")
    _armed: bool = False

    def invalidate(self) -> None:
        """Tell status and info the next time whether or not they have changed: the broker is another, or began anew."""
        self._told, self._told_info = (), ("", "")

    def publish_changes(self) -> None:
        """After anything happened: tell what has changed."""
        if self.gate.armed != self._armed:
            self._armed = self.gate.armed
            self.event("armed" if self._armed else "disarmed", {})
        self._tell_status()
        self._tell_info()

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event; kept while there is no connection."""
        self.counts[kind] += 1
        log.info("event", type=kind, **data)
        body = {"type": kind, "stamp": self.wall(), "data": data}
        self.connection.enqueue(self.topics("event"), encode(body), qos=1, keep="all")

    def status(self) -> tuple[str, tuple[str, ...]]:
        """State and reasons, as they are now."""
        if self.gate.stopped:
            return "stopped", ("the software stop is engaged",)
        agent = self.agent
        reasons = [f"{name}: nothing fresh" for name in sorted(self.feeder.required.intersection(agent.stale))]
        if not self.connection.connected:
            reasons.append("no connection to the broker")
        if not agent.was_ready:
            return "starting", ("the agent is not ready yet", *reasons)
        if not agent.ready:
            reasons.append("no sign of life from the agent" if agent.heard_s is None else "the agent is not ready")
        if reasons:
            return "degraded", tuple(reasons)
        return "online", () if self.gate.armed else ("not armed",)

    @property
    def mode(self) -> str:
        """The most careful mode of any actuator."""
        return min(self.gate.modes.values(), key=("shadow", "assist", "autonomous").index)

    def _tell_status(self) -> None:
        told = self.status()
        if told != self._told:
            self._told = told
            payload = encode({"state": told[0], "reasons": list(told[1])})
            self.connection.enqueue(self.topics("status"), payload, qos=1, retain=True, keep="latest")
            self.feeder.notifier.status(f"{told[0]}: {', '.join(told[1]) or 'all well'}")

    def _tell_info(self) -> None:
        told = (self.agent.policy, self.mode)
        if told != self._told_info:
            self._told_info = told
            payload = encode(self.describe(*told))
            self.connection.enqueue(self.topics("info"), payload, qos=1, retain=True, keep="latest")

    async def publish_offline(self, reason: str) -> None:
        """The last words: said until the broker has them, or `FAREWELL_S` is over; then the will says that it vanished."""
        payload = encode({"state": "offline", "reasons": [reason]})
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while not await self._parted(payload):
                    await asyncio.sleep(AGAIN_S)
                    await self.connection.up()
                return
        log.warning("gate.no_farewell", waited_s=FAREWELL_S)

    async def _parted(self, status: bytes) -> bool:
        try:
            await self.connection.publish(self.topics("status"), status, retain=True)
        except MqttLost:
            return False
        return True
