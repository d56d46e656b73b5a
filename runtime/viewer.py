"""Publishes `preview/<stream>` while someone watches: made off the loop from what the tick saw, never more than is asked for."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

from runtime.mqtt import Connection, Message
from runtime.preview import Previews
from runtime.tick import Ticked
from runtime.topics import Topics
from sensors.readings import Reading


@dataclass(slots=True)
class Viewer:
    """Connects `Previews` to ticks and to the broker. Create it inside the running loop."""

    previews: Previews
    link: Connection
    topics: Topics
    executor: Executor
    _busy: set[str] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def watch(self, message: Message) -> None:
        """Someone is looking; a retained wish to look is an old one."""
        if not message.retain:
            self.previews.watch(message.payload, time.monotonic())

    def ticked(self, ticked: Ticked) -> None:
        """Make the previews that are due of what this tick saw."""
        for name in ticked.observation.fresh - self._busy:
            if self.previews.due(name, ticked.observation.stamp_s):
                self._busy.add(name)
                self._loop.run_in_executor(self.executor, self._make, ticked.observation.readings[name])

    def _make(self, reading: Reading) -> None:
        try:
            payload = self.previews.make(reading)
        finally:
            self._busy.discard(reading.stream)
        self._loop.call_soon_threadsafe(self._send, reading.stream, payload)

    def _send(self, stream: str, payload: bytes) -> None:
        self.link.post(self.topics("preview", stream), payload)
