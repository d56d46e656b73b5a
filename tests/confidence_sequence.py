"""A confidence sequence for the mean of bounded values: what `bench_probation.py` compares the probation tests with.

It holds at all times at once: however often one looks, the chance that the true mean ever leaves it is at most alpha. Source: empirical
Bernstein confidence sequence by predictable plug-in, Waudby-Smith & Ramdas 2024, Theorem 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True)
class ConfidenceSequence:
    """Lower and upper bound of the mean of values in [low, high], valid at every step at once.

    One value a step: `update` returns the interval so far. The running intersection is returned, which is also valid.
    """

    alpha: float
    low: float = 0.0
    high: float = 1.0
    cap: float = 0.5
    """Largest bet, below 1."""
    count: int = 0
    lower: float = -math.inf
    upper: float = math.inf
    _bets: float = 0.0
    _weighted: float = 0.0
    _penalty: float = 0.0
    _sum: float = 0.5
    _square: float = 0.25
    _variance: float = 0.25

    def update(self, value: float) -> tuple[float, float]:
        """Take one value and return (lower, upper).

        Raises:
            ValueError: the value is outside [low, high]: the bound would not hold.
        """
        if not self.low <= value <= self.high:
            raise ValueError(f"{value} is outside [{self.low}, {self.high}]")
        x = (value - self.low) / (self.high - self.low)
        self.count += 1
        bet = min(
            self.cap, math.sqrt(2 * math.log(2 / self.alpha) / (self._variance * self.count * math.log(1 + self.count)))
        )
        before = self._sum / self.count  # the predictable mean: of the values before this one
        self._penalty += (x - before) ** 2 * (-math.log1p(-bet) - bet)
        self._bets += bet
        self._weighted += bet * x
        self._sum += x
        mean = self._sum / (self.count + 1)
        self._square += (x - mean) ** 2
        self._variance = self._square / (self.count + 1)
        centre = self._weighted / self._bets
        radius = (math.log(2 / self.alpha) + self._penalty) / self._bets
        scale = self.high - self.low
        self.lower = max(self.lower, self.low + scale * max(0.0, centre - radius))
        self.upper = min(self.upper, self.low + scale * min(1.0, centre + radius))
        return self.lower, self.upper
