"""Pace a loop on the monotonic clock: deadlines do not drift and never accumulate.

Deadline k is `start + k * period`. After a tick that overruns, the next deadline still ahead is used and the skipped ones
are counted. The clock is an argument, so that tests control time.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock and a way to wait for a moment."""

    def now(self) -> float:
        """Return monotonic seconds."""

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s`, at once if it has passed."""


class MonotonicClock:
    """CLOCK_MONOTONIC, which all processes of the machine share."""

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s`; always yields to the loop once."""
        await asyncio.sleep(max(0.0, deadline_s - time.monotonic()))


@dataclass(slots=True)
class Pacer:
    """Number the ticks and wait for their deadlines."""

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
        """Return when tick `index` is due, in monotonic seconds."""
        return self._start_s + index * self.period_s
