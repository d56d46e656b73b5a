"""Test whether a stream of figures fell below, or rose above, its earlier level; the tests are anytime-valid.

Figures are block means, one for each second of acting, or returns, one for each episode. Three parts:

- `Baseline`: the figures before, with a long-run variance that accounts for the dependence of neighbouring blocks. It uses batch
  means and takes the largest variance over several batch lengths, with a chi-square bound because there are few batches.
- `MixtureSprt`: is the mean lower now? The statistic for n new and N old blocks is t(n) = nN/(n+N) (mean before - margin - mean
  now). Under equal means it is a Brownian motion in the clock nN/(n+N) ("information time", Jennison & Turnbull 2000, section
  3.1). It is compared with the one-sided normal-mixture boundary of Howard, Ramdas, McAuliffe & Sekhon 2021, Annals of Statistics
  49(2), eq. 14. Such a motion ever crosses that boundary with probability at most alpha. With an estimated variance the statement
  is asymptotic (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, "Time-uniform central limit theory").
- `BettingTest`: is the mean of values in [0, 1] above m? A gambler bets on it, and cannot win if it is not. The wealth is then a
  test supermartingale, which exceeds 1/alpha with probability at most alpha (Ville; Waudby-Smith & Ramdas 2024, "Estimating means
  of bounded random variables by betting"). The test is exact at every n if the conditional mean of the values is at most m.

Assumptions: blocks further apart than `MEMORY` are nearly independent (and whole episodes are), and the source of the rewards does
not change. If the task becomes harder at the moment of a change, the test attributes the drop to the change.
Used for sources of feedback, and for the fall check of a version that a person made live.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from learners.special_functions import chi_square_above

MEMORY = 10
"""Blocks over which an unknown dependence is taken to reach."""
LEAST = 10
"""Blocks a reference needs."""
ENOUGH = 6 * MEMORY
"""Blocks from which dependence is measured rather than assumed to be total over `MEMORY`."""
BATCHES = (1, 2, 4, 8, 16)
LEAST_BATCHES = 8
FIRST = 3
"""New blocks before the first result, because one block alone may have any value."""
SURENESS = 0.97
"""Of the bound on the variance."""
RHO = 5.0
"""Blocks of information at which the boundary is tightest, about."""
BETS = (0.1, 0.25, 0.5, 0.9)
"""Shares of the largest bet that cannot ruin the gambler; he splits his wealth over them."""


def long_run_variance(blocks_N: Sequence[float], memory: int = MEMORY) -> float:
    """Return an upper estimate of the limit of N var(mean of N blocks); infinity for fewer than two blocks.

    Short series cannot tell how far dependence reaches: below `ENOUGH` blocks it is taken to be total over `memory`.
    """
    x_N = np.asarray(blocks_N, np.float64)
    if len(x_N) < 2:
        return math.inf
    found = float(x_N.var(ddof=1)) * (memory if len(x_N) < ENOUGH else 1)
    for length in BATCHES:
        count = len(x_N) // length
        if count < LEAST_BATCHES:
            break
        means = x_N[len(x_N) - count * length :].reshape(count, length).mean(1)
        upper = (count - 1) / chi_square_above(count - 1, SURENESS)
        found = max(found, length * float(means.var(ddof=1)) * upper)
    return found


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the figures were before."""

    count: int
    mean: float
    variance: float
    """Long-run, of one block."""
    inflation: float
    """The long-run variance over that of single blocks."""

    @classmethod
    def of(cls, blocks_N: Sequence[float], *, least: int = LEAST, memory: int = MEMORY) -> Baseline | None:
        """Build the baseline from the blocks of the last minutes; None for fewer than `least`."""
        if len(blocks_N) < least:
            return None
        variance = long_run_variance(blocks_N, memory)
        single = float(np.var(np.asarray(blocks_N, np.float64), ddof=1))
        return cls(
            len(blocks_N), float(np.mean(blocks_N)), variance, variance / single if single > 0 else float(memory)
        )

    def upper(self, sigmas: float = 2.0) -> float:
        """Return the mean plus `sigmas` standard errors."""
        return self.mean + sigmas * math.sqrt(self.variance / self.count)


@dataclass(slots=True)
class MixtureSprt:
    """Whether the mean fell by more than `margin`; at most `alpha` of the times it did not, at any time. See the module."""

    reference: Baseline
    alpha: float
    margin: float
    rho: float = RHO
    count: int = 0
    mean: float = 0.0
    crossed: bool = False
    _squares: float = 0.0

    def update(self, block: float) -> bool:
        """Take one block mean; True once the bound was crossed."""
        self.count += 1
        before = self.mean
        self.mean += (block - before) / self.count
        self._squares += (block - before) * (block - self.mean)
        self.crossed = self.crossed or (self.count >= FIRST and self.mean < self.bound())
        return self.crossed

    def replay(self, blocks: Iterable[float]) -> None:
        """Take many."""
        for block in blocks:
            self.update(block)

    def bound(self) -> float:
        """Return the lowest mean that this number of blocks may have."""
        if not self.count:
            return -math.inf
        information = self.count * self.reference.count / (self.count + self.reference.count)
        grown = information + self.rho
        boundary = math.sqrt(2 * grown * math.log(math.sqrt(grown / self.rho) / (2 * self.alpha) + 1))
        return self.reference.mean - self.margin - math.sqrt(self.variance()) * boundary / information

    def variance(self) -> float:
        """Return the larger of the long-run variances before and now; the same dependence is assumed for both."""
        now = self._squares / (self.count - 1) if self.count > 1 else 0.0
        return max(self.reference.variance, self.reference.inflation * now)


@dataclass(slots=True)
class BettingTest:
    """Whether the mean of values in [0, 1] is above `limit`; see the module."""

    limit: float
    alpha: float
    count: int = 0
    mean: float = 0.0
    crossed: bool = False
    _logs: list[float] = field(default_factory=lambda: [0.0] * len(BETS))

    def update(self, value: float) -> bool:
        """Take one value; True once the wealth exceeded 1/alpha.

        Raises:
            ValueError: the value is outside [0, 1].
        """
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{value} is outside [0, 1]")
        self.count += 1
        self.mean += (value - self.mean) / self.count
        for i, share in enumerate(BETS):
            self._logs[i] += math.log1p(share * (value / self.limit - 1.0))
        self.crossed = self.crossed or self.wealth() >= 1.0 / self.alpha
        return self.crossed

    def replay(self, values: Iterable[float]) -> None:
        """Take many."""
        for value in values:
            self.update(value)

    def wealth(self) -> float:
        """Return the gambler's wealth, which starts at 1."""
        top = max(self._logs)
        return min(1e300, math.exp(min(600.0, top)) * sum(math.exp(log - top) for log in self._logs) / len(BETS))
