"""Suspect that a figure of the live version is worse than its own past: compare the mean of recent blocks with all before.

Harms too rare for a mean are counted in `harm_rate_watch.py`. What it finds is a suspicion of the guard, no proof. Pure: knows no clock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

LARGEST_VALUE = 1e150
"""Above it a square may overflow."""
SUSPICION_DEVIATIONS = 4.0
WINDOWS = (4, 16, 64, 256)
"""Blocks over which the live version is compared with its own past."""
PAST_BLOCKS = 1_000
LEAST_BLOCKS = 32
WINDOWS_KNOWN = 4
"""Windows after which a window's usual distance from the past is known."""
FREQUENT_EVENTS = 5.0
"""Harms that a window usually has, from which on it is compared by its mean; rarer harms are counted."""


@dataclass(slots=True)
class LevelWatch:
    """Whether a figure of the live version alone is above its own past; a suspicion, no proof.

    A running mean over each window is compared with the mean of the past, in units of how far the two were apart before. So rewards that
    depend on each other over many blocks raise no suspicion.
    """

    count: int = 0
    mean: float = 0.0
    square: float = 0.0
    fast: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))
    spread: list[float] = field(default_factory=lambda: [0.0] * len(WINDOWS))
    """Mean square of the distance between each window and the past."""

    def update(self, value: float, event_rate: float = 1.0) -> bool:
        """Take the mean of one block; return whether one of the windows is far above the past.

        Args:
            value: of the block. One that is not finite, or too large to square, is left out.
            event_rate: usual events of a block; a window with less than `FREQUENT_EVENTS` of them is not compared.
        """
        if not abs(value) < LARGEST_VALUE:
            return False
        if not self.count:
            self.mean = value  # the first block has no past, and its distance from 0 says nothing
        least = FREQUENT_EVENTS / event_rate if 0.0 < event_rate < 1.0 else 0.0 if event_rate else math.inf
        deviation = math.sqrt(max(self.square, 0.0))
        rate = max(1.0 / (self.count + 1), 1.0 / PAST_BLOCKS)
        found = False
        for i, window in enumerate(WINDOWS):
            self.fast[i] += (value - self.fast[i]) * max(1.0 / (self.count + 1), 1.0 / window)
            if self.count < max(LEAST_BLOCKS, WINDOWS_KNOWN * window):
                self._spread(i, max(1.0 / (self.count + 1), 1.0 / PAST_BLOCKS))
                continue
            limit = SUSPICION_DEVIATIONS * max(deviation / math.sqrt(2 * window - 1), math.sqrt(self.spread[i]))
            found |= window >= least and self.fast[i] - self.mean > limit + 1e-12
            self._spread(i, rate)
        self.count += 1
        away = value - self.mean
        self.mean += rate * away
        self.square += rate * (away * away * (1.0 - rate) - self.square)
        return found

    def _spread(self, i: int, rate: float) -> None:
        """Take the present distance of a window, limited, so that a fall does not hide itself."""
        distance = self.fast[i] - self.mean
        away = distance * distance
        floor = max(self.square, 0.0) / (2 * WINDOWS[i] - 1)
        limit = SUSPICION_DEVIATIONS**2 * max(self.spread[i], floor)
        self.spread[i] += rate * ((min(away, limit) if self.count >= LEAST_BLOCKS else away) - self.spread[i])

    def dump(self) -> list[float]:
        """Return the state as plain numbers."""
        return [self.count, self.mean, self.square, *self.fast, *self.spread]

    @classmethod
    def of(cls, numbers: Sequence[float]) -> LevelWatch:
        """Restore what `dump` returned; what an earlier program wrote begins again.

        Raises:
            ValueError: it is something else.
        """
        if len(numbers) == 3 + len(WINDOWS):
            return cls()
        if len(numbers) != 3 + 2 * len(WINDOWS):
            raise ValueError(f"{len(numbers)} numbers; {3 + 2 * len(WINDOWS)} are needed")
        count, mean, square, *rest = map(float, numbers)
        return cls(int(count), mean, square, rest[: len(WINDOWS)], rest[len(WINDOWS) :])
