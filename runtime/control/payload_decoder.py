"""MQTT payloads on their way to a topic sensor: a short bounded queue for each stream, decoded off the event loop.

Pictures, texts and telemetry keep one payload, the newest; sound keeps a few, because a window is made of consecutive
chunks. What finds the queue full pushes the oldest out, which is counted as `backlog`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field

from sensors.base import PayloadRefused, TopicSensor
from sensors.readings import Reading

SOUND_CHUNKS = 64


@dataclass(slots=True)
class _Pending:
    sensor: TopicSensor
    payloads: deque[tuple[bytes, float]]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class PayloadDecoder:
    """Takes payloads from the connection and hands readings on."""

    def __init__(
        self, sensors: dict[str, tuple[TopicSensor, str]], publish: Callable[[Reading], None], executor: Executor
    ) -> None:
        """Set up.

        Args:
            sensors: by stream, the sensor and its kind (`camera`, `microphone`, `text`, `telemetry`).
            publish: takes a reading from any thread.
            executor: threads that decode.
        """
        self._pending = {
            name: _Pending(sensor, deque(maxlen=SOUND_CHUNKS if kind == "microphone" else 1))
            for name, (sensor, kind) in sensors.items()
        }
        self._publish = publish
        self._executor = executor
        self.drops: dict[str, Counter[str]] = {name: Counter() for name in sensors}
        self.last_refusal: dict[str, str] = {}

    def offer(self, stream: str, payload: bytes, stamp_s: float) -> None:
        """Take one payload; never blocks."""
        pending = self._pending[stream]
        if len(pending.payloads) == pending.payloads.maxlen:
            self.drops[stream]["backlog"] += 1
        pending.payloads.append((payload, stamp_s))
        pending.wake.set()

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
            while pending.payloads:
                payload, stamp_s = pending.payloads.popleft()
                try:
                    reading = await loop.run_in_executor(self._executor, pending.sensor.decode, payload, stamp_s)
                except PayloadRefused as refusal:  # the sensor has counted it
                    self.last_refusal[name] = f"{refusal.cause}: {refusal}"
                    continue
                if reading is not None:
                    self._publish(reading)
