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


SPIN_BELOW_S, SPIN_S = 0.02, 0.0005
"""Periods shorter than this end with a busy wait of this length: a timer alone wakes up to a millisecond late."""


@dataclass(frozen=True, slots=True)
class MonotonicClock:
    """CLOCK_MONOTONIC, which all processes of the machine share.

    Args:
        spin_s: the last seconds of a wait that poll the clock instead of sleeping; other work of the loop runs meanwhile.
    """

    spin_s: float = 0.0

    @classmethod
    def for_period(cls, period_s: float) -> MonotonicClock:
        """Return a clock that is exact enough for deadlines at this interval."""
        return cls(SPIN_S if period_s < SPIN_BELOW_S else 0.0)

    def now(self) -> float:
        """Return monotonic seconds."""
        return time.monotonic()

    async def sleep_until(self, deadline_s: float) -> None:
        """Return at `deadline_s`; always yields to the loop once."""
        await asyncio.sleep(max(0.0, deadline_s - self.spin_s - time.monotonic()))
        while self.spin_s and time.monotonic() < deadline_s:  # noqa: ASYNC110 - no event says that a moment has come
            await asyncio.sleep(0)


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
