"""Sending: what is on its way, and what waits for the next connection. Both are bounded; what is dropped is counted."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal
from uuid import uuid4

import aiomqtt
import structlog

from runtime.mqtt.models import Outgoing

log = structlog.get_logger(__name__)

KEPT = 100
"""Messages kept for the next connect."""
Keep = Literal["no", "latest", "all"]


@dataclass(slots=True)
class Sender:
    """Sends in tasks of the session's group.

    Args:
        limit: of messages on their way.
        drops: what was dropped, by cause; shared with the connection.
    """

    limit: int
    drops: Counter[str]
    sending: int = 0
    _group: asyncio.TaskGroup | None = None
    _client: aiomqtt.Client | None = None
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: OrderedDict[str, Outgoing] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._idle.set()

    def begin(self, group: asyncio.TaskGroup, client: aiomqtt.Client) -> None:
        """A session begins."""
        self._group, self._client = group, client

    def leave(self) -> None:
        """From here on nothing is sent: a group that ends takes no more tasks."""
        self._group = self._client = None

    def send(self, outgoing: Outgoing) -> bool:
        """Send without waiting; False when too much is on its way already."""
        if self.sending >= self.limit:
            self.drops["outgoing full"] += 1
            return False
        self._start(outgoing)
        return True

    def keep(self, outgoing: Outgoing, keep: Keep) -> bool:
        """There is no connection: keep it for the next one, or drop it."""
        if keep == "no":
            self.drops["disconnected"] += 1
            return False
        key = outgoing.topic if keep == "latest" else uuid4().hex
        self._kept.pop(key, None)
        self._kept[key] = outgoing
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
            self.drops["disconnected"] += 1
        return True

    def catch_up(self) -> None:
        """Send what was kept, in order."""
        while self._kept:
            self._start(self._kept.popitem(last=False)[1])

    async def drained(self, timeout_s: float) -> bool:
        """Wait until everything was sent and acknowledged; False when it was not in time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    def _start(self, outgoing: Outgoing) -> None:
        assert self._group is not None
        assert self._client is not None
        task = self._group.create_task(self._send(self._client, outgoing), name=f"publish {outgoing.topic}")
        self.sending += 1
        self._idle.clear()
        task.add_done_callback(self._sent)  # also of a task that is cancelled before it began

    def _sent(self, _task: asyncio.Task[None]) -> None:
        self.sending -= 1
        if not self.sending:
            self._idle.set()

    async def _send(self, client: aiomqtt.Client, out: Outgoing) -> None:
        try:
            await client.publish(out.topic, out.payload, out.qos, out.retain, out.properties)
        except aiomqtt.MqttError:
            self.drops["not acknowledged"] += 1
        except ValueError as error:  # paho: a topic or payload it cannot write
            self.drops["unsendable"] += 1
            log.warning("mqtt.unsendable", topic=out.topic, reason=str(error))
