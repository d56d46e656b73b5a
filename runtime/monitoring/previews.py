"""Previews of the streams, published on `preview/<stream>` only while a client requests them.

A client sends `watch` (`{"streams": [...]}`, never retained) every 2 s; 5 s after the last one the agent stops publishing. A
camera's preview is a JPEG at most 320 pixels wide, every other stream's a JSON object: `level_db` and `peak_db` (dBFS) for
sound, `text` for text, `values` for telemetry. At most 4 previews a second and stream, QoS 0, encoded off the event loop.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field

from runtime.control.tick import TickResult
from runtime.mqtt import Connection, Message
from runtime.mqtt.topics import PreviewRequest, Topics, decode, encode
from sensors.codecs.readings import facts, thumbnail
from sensors.readings import Frame, Reading

KEEPALIVE_S = 5.0
PERIOD_S = 0.25


@dataclass(slots=True)
class Previews:
    """Decides which previews are due, and encodes them."""

    _until_s: dict[str, float] = field(default_factory=dict)
    _next_s: dict[str, float] = field(default_factory=dict)

    def watch(self, payload: bytes, now_s: float) -> None:
        """Take one `preview/subscribe` message.

        Raises:
            Refused: not of the declared shape.
        """
        for stream in decode(PreviewRequest, payload).streams:
            self._until_s[stream] = now_s + KEEPALIVE_S
        self._until_s = {stream: until for stream, until in self._until_s.items() if until > now_s}

    def due(self, stream: str, now_s: float) -> bool:
        """Return whether a preview of this stream is due now; the next one is due a period later."""
        if self._until_s.get(stream, -math.inf) <= now_s or self._next_s.get(stream, -math.inf) > now_s:
            return False
        self._next_s[stream] = now_s + PERIOD_S
        return True

    def make(self, reading: Reading) -> bytes:
        """Encode the payload for `preview/<stream>`; takes a few milliseconds for an image."""
        if isinstance(reading, Frame):
            return thumbnail(reading)
        return encode(facts(reading))


@dataclass(slots=True)
class Viewer:
    """Publishes `Previews` of finished ticks. Create it inside the running loop."""

    previews: Previews
    link: Connection
    topics: Topics
    executor: Executor
    _busy: set[str] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def watch(self, message: Message) -> None:
        """Take one `watch` message; a retained one is old and ignored."""
        if not message.retain:
            self.previews.watch(message.payload, time.monotonic())

    def ticked(self, ticked: TickResult) -> None:
        """Encode and publish the previews that are due, of the fresh readings of this tick."""
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
        self.link.enqueue(self.topics("preview", stream), payload)
