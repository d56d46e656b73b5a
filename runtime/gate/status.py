"""Publish status, info and events of the gate's process, each when it has changed.

The status sums up the gate, the connections and the agent. It leaves on the connection of the commands, ahead of everything
else, and is published again until the broker has acknowledged it. Info and events leave on the other connection, which keeps
them while there is no broker. What the latches must hold is announced once it is on the disk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog

from actuators.safety.decisions import Proposal
from actuators.safety.gate import Gate
from runtime.gate.device_clocks import DeviceClocks, FollowedCommands
from runtime.gate.info import InfoBuilder
from runtime.gate.latches import LatchWriter
from runtime.mqtt import Connection, Delivery, MqttLost
from runtime.mqtt.topics import Topics, encode
from runtime.process.systemd import Feeder

log = structlog.get_logger(__name__)

FAREWELL_S = 2.0
"""For the broker to take the last status; longer than a reconnection takes."""
AGAIN_S = 0.01
"""Between two attempts at it."""
MAX_REASON = 256
RETRY_S = 0.5
"""Between two attempts to publish a status that was not acknowledged."""


@dataclass(slots=True)
class AgentLiveness:
    """The agent's last heartbeat and what it contained."""

    policy: str = ""
    spoke_s: float | None = None
    """When the newest heartbeat came, also after the agent was lost; None before the first."""
    heartbeat_s: float | None = None
    """When the newest heartbeat came; None before the first and after the agent was lost."""
    stale: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    """Why it is degraded although it acts."""
    ready: bool = False
    was_ready: bool = False

    def spoke(self, proposal: Proposal, now_s: float) -> None:
        """Note a heartbeat."""
        self.heartbeat_s = self.spoke_s = now_s
        self.stale, self.policy = proposal.stale, proposal.policy
        self.ready, self.degraded = proposal.ready, proposal.degraded
        self.was_ready = self.was_ready or proposal.ready

    def lost(self) -> None:
        """Note that the agent closed its end, or was silent for too long."""
        self.heartbeat_s, self.ready = None, False


def without_broker(connection: Connection, what: str = "") -> str:
    """Return the reason of the status for a connection that is down."""
    trouble = f": {connection.trouble}" if connection.trouble else ""
    return f"no connection to the broker{what}{trouble}"[:MAX_REASON]


@dataclass(slots=True)
class StatusPublisher:
    """Publishes status, info and events."""

    gate: Gate
    safety: Connection
    """Carries the status."""
    connection: Connection
    """Carries info and events."""
    topics: Topics
    feeder: Feeder
    agent: AgentLiveness
    latches: LatchWriter
    info: InfoBuilder
    """Replaced by a reload."""
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    counts: Counter[str] = field(default_factory=Counter)
    """Events by type."""
    stop_reason: str = ""
    """Why the software stop is engaged, where that is not an operator's plain message."""
    listener_denial: str | None = None
    """Why the broker lets the stop listener hear no stop; None while nothing says so."""
    failing: Callable[[], Iterable[str]] = tuple
    """Returns the processes of the daemon that failed too often and are tried again now and then."""
    clocks: DeviceClocks = field(default_factory=DeviceClocks)
    following: FollowedCommands = field(default_factory=FollowedCommands)
    _published: tuple[str, tuple[str, ...]] | None = None
    _published_info: tuple[InfoBuilder, str, str] | None = None
    _armed: bool = False
    _retry_s: float = float("-inf")

    def invalidate(self) -> None:
        """Publish status and info at the next call, changed or not: the broker may have lost what it retained."""
        self._published = self._published_info = None
        self._retry_s = float("-inf")

    def publish_changes(self) -> None:
        """Publish what has changed; the host calls it at every tick."""
        if self.gate.armed != self._armed:
            self._armed = self.gate.armed
            self.event("armed" if self._armed else "disarmed", {})
        self._publish_status()
        self._publish_info()

    def event(self, kind: str, data: dict[str, Any]) -> None:
        """Publish an event; the connection keeps it while there is no broker."""
        self.counts[kind] += 1
        log.info("event", type=kind, **data)
        body = {"type": kind, "stamp": self.wall(), "data": data}
        self.connection.enqueue(self.topics("event"), encode(body), qos=1, keep="all")

    def status(self) -> tuple[str, tuple[str, ...]]:
        """State and reasons, as they are now."""
        if self.gate.stopped:
            return self._stopped()
        agent = self.agent
        reasons = [f"{name}: no recent data" for name in sorted(self.feeder.required.intersection(agent.stale))]
        if not self.safety.connected:
            reasons.append(without_broker(self.safety))
        elif not self.connection.connected:
            reasons.append(without_broker(self.connection, " for requests and reports"))
        elif self.safety.trouble is not None:
            reasons.append(self.safety.trouble)
        reasons.extend(self._denials())
        if self.latches.error is not None:
            reasons.append(f"the latches are not saved: {self.latches.error}; the gate tries again")
        reasons.extend(self.clocks.problems())
        reasons.extend(self.following.problems())
        reasons.extend(f"the process {name} fails repeatedly" for name in self.failing())
        if not agent.was_ready:
            return "starting", ("the agent is not ready yet", *reasons)
        if not agent.ready:
            reasons.append("agent heartbeat lost" if agent.heartbeat_s is None else "the agent is not ready")
        reasons.extend(agent.degraded)
        if reasons:
            return "degraded", tuple(reasons)
        return "online", (*(() if self.gate.armed else ("not armed",)), *self._restrictions())

    @property
    def mode(self) -> str:
        """The most careful mode of any actuator."""
        return min(self.gate.modes.values(), key=("shadow", "assist", "autonomous").index)

    async def publish_offline(self, reason: str) -> None:
        """Publish the last status until the broker has it, or `FAREWELL_S` is over; then the broker publishes the will."""
        payload = encode({"state": "offline", "reasons": [reason[:MAX_REASON]]})
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_S):
                while not await self._parted(payload):
                    await asyncio.sleep(AGAIN_S)
                    await self.safety.up()
                return
        log.warning("gate.offline_not_published", waited_s=FAREWELL_S)

    def _stopped(self) -> tuple[str, tuple[str, ...]]:
        why = f": {self.stop_reason}" if self.stop_reason else ""
        if self.latches.error is not None and not self.latches.has("stopped", value=True):
            unsaved = f"the stop is not saved: {self.latches.error}; a restart would lose it; the gate tries again"
            return "degraded", (f"the software stop is engaged{why}", unsaved)
        return "stopped", (f"the software stop is engaged{why}",)

    def _denials(self) -> Iterable[str]:
        """Yield what the broker does not let the gate and the stop listener read."""
        stop, effect = self.topics("stop"), ", so a stop may be lost and the gate arms nothing"
        for connection in (self.safety, self.connection):
            for topic, reason in sorted(connection.denials.items()):
                shown = reason + effect if topic == stop else reason
                yield f"the broker refuses the subscription of {connection.identifier} to {topic}: {shown}"
        if self.listener_denial is not None:
            yield f"the broker refuses the subscription of the stop listener to {stop}: {self.listener_denial}{effect}"

    def _restrictions(self) -> tuple[str, ...]:
        return tuple(
            f"{name}: a request limits it to mode {mode}" for name, mode in sorted(self.gate.restricted.items())
        )

    def _publish_status(self) -> None:
        current = self.status()
        if current == self._published or not self.safety.connected or self.now() < self._retry_s:
            return
        if current[0] == "stopped" and not self.latches.has("stopped", value=True):
            return  # announced once it is on the disk
        self._published = current
        payload = encode({"state": current[0], "reasons": [reason[:MAX_REASON] for reason in current[1]]})
        done = partial(self._delivered, current)
        self.safety.send_newest("status", self.topics("status"), payload, done, urgent=True, retain=True)
        self.feeder.notifier.status(f"{current[0]}: {', '.join(current[1]) or 'ok'}")

    def _delivered(self, status: tuple[str, tuple[str, ...]], delivery: Delivery) -> None:
        if delivery != "acknowledged" and self._published == status:
            self._published, self._retry_s = None, self.now() + RETRY_S

    def _publish_info(self) -> None:
        current = (self.info, self.agent.policy, self.mode)
        if current != self._published_info and self.latches.is_saved:
            payload = encode(self.info.build(self.agent.policy, self.mode))
            if self.connection.enqueue(self.topics("info"), payload, qos=1, retain=True, keep="latest"):
                self._published_info = current

    async def _parted(self, status: bytes) -> bool:
        try:
            await self.safety.publish(self.topics("status"), status, retain=True)
        except MqttLost:
            return False
        return True
