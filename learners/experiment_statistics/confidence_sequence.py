"""Bound the mean of pair differences at every moment, by betting on the coin that ordered each pair.

The coin is fair and independent of everything else. So the noise of a pair difference D is as often positive as negative, whatever its
distribution, its tails, its drift or its dependence on earlier pairs. If the true effect is m, then D - m is symmetric given the past,
and 1 + tanh(lambda (D - m)) is a fair bet: its mean is exactly 1. The product of such factors is a wealth that rarely grows under m: it
exceeds 1 / alpha at some moment with probability at most alpha (Ville). The lower bound is the lowest m with a wealth that stayed below.

No bound on rewards is assumed, and no moment has to exist. A pair adds at most a factor of 2 to a wealth, so an outlier proves nothing.
An outlier against the claim costs in proportion to its size, so one catastrophe cancels many small gains. `lambda` is a
multiple of 1 / scale. The scale is the root mean square of the earlier pairs, each limited to `OUTLIER` scales. It is predictable:
it does not use the pair that it scales. The wealth is spread over a grid of multiples.

Exact for an effect that is the same in every pair. If it varies, the expected logarithm of a wealth is negative for every mean
effect at or below m. So errors stay near alpha (measured in `bench_promotion.py`).

Sources: Waudby-Smith & Ramdas 2024 (Estimating means of bounded random variables by betting); de la Peña 1999 and Howard et al.
2020 (symmetric variables); Waudby-Smith et al. 2024 (predictable variance).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GRID_G: Array = np.exp2(np.arange(-7, 3), dtype=np.float64)
"""Multiples of 1 / scale that are bet."""
PRIOR_G: Array = np.array([1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 3.0, 2.0, 2.0, 1.0]) / 26.0
"""Share of the wealth on each."""
OUTLIER = 8.0
"""Scales at which a pair is limited when it updates the scale."""
MEMORY = 200
"""Pairs over which the scale adapts."""
HALVINGS = 60
LARGEST_LOG = 700.0
ONE_INCIDENT = 1.0 + 1e-9
"""Standard errors of a harm in a single pair, whatever its size and the number of pairs; rounding must not decide."""


def log_bet(u: Array) -> Array:
    """Return log(1 + tanh(u)) = u - log cosh(u), without overflow."""
    size = np.abs(u)
    return np.asarray(u - size - np.log1p(np.exp(-2.0 * size)) + math.log(2.0), np.float64)


def log_mixture(logs_G: Array) -> float:
    """Return the logarithm of the mean wealth over the grid."""
    top = float(logs_G.max())
    return top + math.log(float((PRIOR_G * np.exp(logs_G - top)).sum()))


def standard_errors(values: Sequence[float]) -> float:
    """Return how many standard errors the mean is away from 0; without spread, infinity with its sign, or 0."""
    count = len(values)
    mean = sum(values) / count
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, count - 1) / count)
    return mean / error if error > 0 else math.copysign(math.inf, mean) if mean else 0.0


@dataclass(slots=True)
class RunningScale:
    """Root mean square of the pairs so far, limited against outliers; 0 before the first pair that is not 0."""

    square: float = 0.0
    count: int = 0

    @property
    def scale(self) -> float:
        """Return the present scale."""
        return math.sqrt(self.square)

    def update(self, value: float) -> None:
        """Take one pair."""
        if self.square <= 0.0:
            self.count += 1
            self.square = value * value / self.count
            return
        self.count += 1
        limited = min(value * value, OUTLIER**2 * self.square)
        self.square += max(1.0 / self.count, 1.0 / MEMORY) * (limited - self.square)


@dataclass(slots=True)
class CoinBet:
    """The wealth against one claim: `sign` 1 bets that the mean is above `mean`, -1 that it is below."""

    mean: float
    sign: int
    logs: Array = field(default_factory=lambda: np.zeros(len(GRID_G), np.float64))
    highest: float = 0.0
    """Largest logarithm of the wealth so far."""

    def update(self, value: float, scale: float) -> None:
        """Take one pair with the scale of the earlier ones."""
        if scale > 0.0 and value != self.mean:  # a difference of exactly `mean` says nothing
            self.logs = self.logs + log_bet(self.sign * GRID_G * ((value - self.mean) / scale))
            self.highest = max(self.highest, log_mixture(self.logs))

    @property
    def evidence(self) -> float:
        """Return the largest wealth so far; against a true claim it exceeds 1 / alpha with probability at most alpha."""
        return math.exp(min(LARGEST_LOG, self.highest))


@dataclass(slots=True)
class ConfidenceSequence:
    """Bounds of the mean pair difference that hold at all moments together.

    Args:
        alpha_lower: probability that the lower bound ever exceeds the mean.
        alpha_upper: probability that the upper bound ever falls below it.
        claims: means that the caller tests; their evidence is updated at every pair at constant cost.
    """

    alpha_lower: float
    alpha_upper: float
    claims: Sequence[float] = (0.0,)
    scale: RunningScale = field(default_factory=RunningScale)
    total: float = 0.0
    above: dict[float, CoinBet] = field(init=False)
    below: dict[float, CoinBet] = field(init=False)
    _values: list[float] = field(default_factory=list)
    _scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.above = {mean: CoinBet(mean, 1) for mean in self.claims}
        self.below = {mean: CoinBet(mean, -1) for mean in self.claims}

    def __len__(self) -> int:
        """Count the pairs."""
        return len(self._values)

    @property
    def mean(self) -> float | None:
        """Return the plain mean of all pairs; None before the first."""
        return self.total / len(self._values) if self._values else None

    def update(self, value: float) -> None:
        """Take one pair difference.

        Raises:
            ValueError: it is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"pair difference {value} is not finite")
        scale = self.scale.scale
        for bet in (*self.above.values(), *self.below.values()):
            bet.update(value, scale)
        self._values.append(value)
        self._scales.append(scale)
        self.total += value
        self.scale.update(value)

    @property
    def is_frequent(self) -> bool:
        """Whether the plain mean is above 0 by more than one incident explains, which is no proof."""
        return bool(self._values) and standard_errors(self._values) > ONE_INCIDENT

    def is_above(self, claim: float) -> bool:
        """Return whether the mean was proved to be above one of the claims."""
        return self.above[claim].highest >= -math.log(self.alpha_lower)

    def is_below(self, claim: float) -> bool:
        """Return whether the mean was proved to be below one of the claims."""
        return self.below[claim].highest >= -math.log(self.alpha_upper)

    def lower(self) -> float:
        """Return the present lower bound; minus infinity without evidence."""
        return self._bound(1, self.alpha_lower)

    def upper(self) -> float:
        """Return the present upper bound; infinity without evidence."""
        return -self._bound(-1, self.alpha_upper)

    def _bound(self, sign: int, alpha: float) -> float:
        """Return the lowest mean of sign * D with a wealth below 1 / alpha, by bisection: the wealth falls with the mean."""
        scales_N = np.array(self._scales)
        bets = scales_N > 0.0
        values_N, scales_N = sign * np.array(self._values)[bets], scales_N[bets]
        if not len(values_N):
            return -math.inf
        grid_NG = GRID_G / scales_N[:, None]
        limit = -math.log(alpha)

        def wealth(mean: float) -> float:
            return log_mixture(log_bet(grid_NG * (values_N - mean)[:, None]).sum(0))

        high = float(values_N.max())
        reach = float(scales_N.max()) + high - float(values_N.min())
        low = high - reach
        for _ in range(HALVINGS):
            if wealth(low) >= limit:
                break
            reach *= 2.0
            low = high - reach
        else:
            return -math.inf
        for _ in range(HALVINGS):
            middle = (low + high) / 2.0
            low, high = (middle, high) if wealth(middle) >= limit else (low, middle)
            if high - low <= 1e-6 * reach:
                break
        return low

    def dump(self) -> dict[str, Any]:
        """Return the pairs as plain data; everything else follows from them."""
        return {
            "alpha_lower": self.alpha_lower,
            "alpha_upper": self.alpha_upper,
            "claims": list(self.claims),
            "values": list(self._values),
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> ConfidenceSequence:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        found = cls(float(body["alpha_lower"]), float(body["alpha_upper"]), tuple(map(float, body["claims"])))
        for value in body["values"]:
            found.update(float(value))
        return found
