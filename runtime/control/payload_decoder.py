"""Decode MQTT payloads for the topic sensors: a short bounded queue for each stream, decoded off the event loop where that pays.

Images, texts and telemetry queue one message, the newest; sound queues several, because a window is made of consecutive
chunks. A message that finds the queue full pushes the oldest out, which is counted as `backlog`.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

from runtime.control.sender_stamps import SenderStamps
from runtime.mqtt import Message
from runtime.process.emit import Emit
from sensors.base import PayloadRefused, TopicSensor
from sensors.readings import Reading

SOUND_CHUNKS = 64
LIGHT = ("text", "telemetry")
MAX_PAYLOAD = 16_777_216
"""Bytes; a larger picture or chunk of sound is refused undecoded."""
SMALL = 4_096
"""Bytes of a text or telemetry message up to which decoding costs less than to hand it to a thread: it is decoded on the event loop."""
TOO_LARGE = f"more than {MAX_PAYLOAD} bytes; send a smaller picture, or JPEG"
EVENT_EVERY_S = 10.0
"""Seconds between two events about one stream and cause."""
MAX_REASON = 200
"""Characters of a reason that are stored; a reason may quote the payload."""


@dataclass(slots=True)
class _Pending:
    sensor: TopicSensor
    messages: deque[Message]
    stamps: SenderStamps | None
    is_light: bool
    """Its messages are texts or numbers."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class PayloadDecoder:
    """Takes messages from the connection and publishes readings."""

    def __init__(
        self,
        sensors: Mapping[str, tuple[TopicSensor, str]],
        publish: Callable[[Reading], None],
        executor: Executor,
        emit: Emit = lambda _kind, _data: None,
        clock: Callable[[], float] = time.monotonic,
        stamps: Mapping[str, SenderStamps] | None = None,
    ) -> None:
        """Make a queue for each stream.

        Args:
            sensors: by stream, the sensor and its kind (`camera`, `microphone`, `text`, `telemetry`).
            publish: takes a reading from any thread.
            executor: threads that decode.
            emit: publishes the event `payload_refused`.
            clock: monotonic seconds.
            stamps: by stream, where the time of capture is from; default: the arrival.
        """
        self.stamps = dict(stamps or {})
        self._pending = {
            name: _Pending(
                sensor,
                deque(maxlen=SOUND_CHUNKS if kind == "microphone" else 1),
                self.stamps.get(name),
                kind in LIGHT,
            )
            for name, (sensor, kind) in sensors.items()
        }
        self._publish = publish
        self._executor = executor
        self._emit, self._clock = emit, clock
        self._unpublished: Counter[tuple[str, str]] = Counter()
        """By stream and cause, refusals since the last event."""
        self._next_s: dict[tuple[str, str], float] = {}
        self.drops: dict[str, Counter[str]] = {name: Counter() for name in sensors}
        self.refusals: dict[str, str] = {}
        """By stream, why its sensor refused the last payload that it refused."""

    def offer(self, stream: str, message: Message) -> None:
        """Queue one message of a stream; never blocks."""
        if len(message.payload) > MAX_PAYLOAD:
            self.drops[stream]["too_large"] += 1
            self.report(stream, PayloadRefused("too_large", TOO_LARGE))
            return
        pending = self._pending[stream]
        if len(pending.messages) == pending.messages.maxlen:
            self.drops[stream]["backlog"] += 1
        pending.messages.append(message)
        pending.wake.set()

    def refuse(self, stream: str, refusal: PayloadRefused) -> None:
        """Count and publish a reading that was decoded and is of no use to the policy; call it in the event loop."""
        self.drops.setdefault(stream, Counter())[refusal.cause] += 1
        self.report(stream, refusal)

    async def run(self) -> None:
        """Decode until cancelled, one task for each stream."""
        async with asyncio.TaskGroup() as group:
            for name, pending in self._pending.items():
                group.create_task(self._decode(name, pending), name=f"decode {name}")

    async def _decode(self, name: str, pending: _Pending) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await pending.wake.wait()
            pending.wake.clear()
            while pending.messages:
                message = pending.messages.popleft()
                decode = partial(_decode, pending.sensor, pending.stamps, message)
                try:
                    if pending.is_light and len(message.payload) <= SMALL:
                        reading = decode()
                    else:
                        reading = await loop.run_in_executor(self._executor, decode)
                except PayloadRefused as refusal:  # the sensor has counted it
                    self.report(name, refusal)
                    continue
                if reading is not None:
                    self._publish(reading)

    def report(self, name: str, refusal: PayloadRefused) -> None:
        """Note why a payload was refused that is counted already; publish it at most every `EVENT_EVERY_S` for each cause."""
        reason, key = str(refusal)[:MAX_REASON], (name, refusal.cause)
        self.refusals[name] = f"{refusal.cause}: {refusal}"[:MAX_REASON]
        self._unpublished[key] += 1
        if self._clock() >= self._next_s.get(key, 0.0):
            self._next_s[key] = self._clock() + EVENT_EVERY_S
            fields = {"stream": name, "cause": refusal.cause, "reason": reason, "count": self._unpublished.pop(key)}
            self._emit("payload_refused", fields)


def _decode(sensor: TopicSensor, stamps: SenderStamps | None, message: Message) -> Reading | None:
    """Decode a message; the reading has the time of its capture and says where that is from.

    A message that the broker had stored is of unknown age, unless its sender stamped it.
    """
    stamp_s, source = (message.stamp_s, None) if stamps is None else stamps.of(message)
    if message.retain and source != "sender":
        source = "unknown"
    reading = sensor.decode(message.payload, stamp_s)
    return reading if reading is None or source is None else replace(reading, stamp_source=source)
