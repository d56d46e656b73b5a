"""Replays readings that were recorded, at the distances they had.

`keep_stamps` leaves every stamp as it was, for replays that bring their own clock; otherwise the recording is moved to
now, so that ages come out as they were. Reading a recording from disk is not done here.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from sensors.base import Publish
from sensors.readings import Reading


class RecordedSensor:
    """The readings of one stream, oldest first; of other streams in `readings` it counts and skips."""

    def __init__(
        self,
        name: str,
        readings: Iterable[Reading],
        *,
        keep_stamps: bool = False,
        speed: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self.drops: Counter[str] = Counter()
        self._readings = readings
        self._keep_stamps = keep_stamps
        self._speed = speed
        self._clock = clock
        self._sleep = sleep

    async def run(self, publish: Publish, lost: Callable[[str], None], recovered: Callable[[], None]) -> None:
        """Deliver until cancelled; at the end the source is lost for good."""
        start_s = self._clock()
        first_s: float | None = None
        for reading in self._readings:
            if reading.stream != self.name:
                self.drops["other_stream"] += 1
                continue
            first_s = reading.stamp_s if first_s is None else first_s
            due_s = start_s + (reading.stamp_s - first_s) / self._speed
            await self._sleep(max(0.0, due_s - self._clock()))
            publish(reading if self._keep_stamps else replace(reading, stamp_s=due_s))
        lost(f"{self.name}: the recording has ended")
        await asyncio.Event().wait()
