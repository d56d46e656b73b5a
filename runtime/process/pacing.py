"""Monotonic pacing: deadlines that do not drift and never pile up.

Deadline k is `start + k * period`. A tick that overruns is followed by the next multiple still ahead; what was skipped is
counted. The clock is an argument everywhere, so that tests own time.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Seconds that only go forward, and a way to wait for one."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s`, at once if it has passed."""


class MonotonicClock:
    """The machine's CLOCK_MONOTONIC, shared by every process on it."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s`; always yields to the loop once."""
        await asyncio.sleep(max(0.0, deadline_s - time.monotonic()))


@dataclass(slots=True)
class Pacer:
    """Numbers ticks and waits for their deadlines."""

    period_s: float
    clock: Clock
    skipped: int = 0
    """Deadlines that passed while a tick was still running."""
    overruns: int = 0
    """Ticks that ran past the next deadline."""
    _start_s: float = math.nan
    _index: int = -1

    async def next(self) -> int:
        """Wait for the next deadline still ahead and return its index."""
        now = self.clock.now()
        if math.isnan(self._start_s):
            self._start_s = now
        due = self._index + 1
        ahead = max(due, math.ceil((now - self._start_s) / self.period_s - 1e-9))
        if ahead > due:
            self.overruns += 1
            self.skipped += ahead - due
        self._index = ahead
        await self.clock.sleep_until(self.deadline(ahead))
        return ahead

    def deadline(self, index: int) -> float:
        """When tick `index` is due, in monotonic seconds."""
        return self._start_s + index * self.period_s
