"""Divide the error budget of promotions over months of experiments: e-LOND with decaying memory.

Each experiment gets its alpha before its first block. Few promotions so far mean a small alpha; each promotion earns more. The
share of false ones among promotions, each weighted by how recent it is, has an expectation of at most `budget`. Experiments may
depend on each other in any way.

Experiment i has weight d^(t - i) at time t, and R is the weighted number of promotions before. Experiment i gets
`alpha_i = budget g_i (d R + 1)` with `g_i = gamma_i / 2 + (1 - d) c / 2`. Here gamma_i ~ i^-1.5 sums to 1 and serves the first experiments. The constant part serves the later
ones, so that alpha does not vanish over the years. The factor `c = 1 / (1 + log(1 + 1 / (1 - d)))` pays for the memory:
`sum_i (1 - d) c min(1, d^(t-i) (d R_i + 1))` is at most 1, because R is at most 1 / (1 - d).

Sources: Xu & Ramdas 2024 (Online multiple testing with e-values: e-LOND); Ramdas et al. 2017 (decaying memory).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ZETA = 2.612375348685488
"""Sum of i^-1.5."""
FORMAT = 1


@dataclass(slots=True)
class AlphaBudget:
    """See the module.

    Args:
        budget: bound of the false share among promotions.
        memory: experiments after which a promotion has a weight of 1 / e, about.
    """

    budget: float = 0.1
    memory: float = 50.0
    experiments: int = 0
    """Experiments that ended."""
    weight: float = 0.0
    """Weighted number of promotions."""
    spent: float = 0.0
    """Weighted sum of the alphas so far, for the page."""

    def __post_init__(self) -> None:
        if not (0.0 < self.budget < 1.0 and self.memory > 1.0):
            raise ValueError(f"alpha budget: budget {self.budget} of (0, 1), memory {self.memory} above 1 is needed")

    @property
    def decay(self) -> float:
        """Return the weight that one experiment keeps when another ends."""
        return 1.0 - 1.0 / self.memory

    def next_alpha(self) -> float:
        """Return alpha of the next experiment; the plan registers it."""
        first = math.pow(self.experiments + 1, -1.5) / ZETA
        rate = 1.0 / self.memory
        later = rate / (1.0 + math.log(1.0 + self.memory))
        return min(0.5, self.budget * (first + later) / 2.0 * (self.decay * self.weight + 1.0))

    def record(self, *, promoted: bool, alpha: float) -> None:
        """Record the end of an experiment that used `alpha`."""
        self.experiments += 1
        self.weight = self.decay * self.weight + float(promoted)
        self.spent = self.decay * self.spent + alpha

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data for JSON."""
        return {
            "format": FORMAT,
            "budget": self.budget,
            "memory": self.memory,
            "experiments": self.experiments,
            "weight": self.weight,
            "spent": self.spent,
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> AlphaBudget:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        numbers = {name: float(body[name]) for name in ("budget", "memory", "weight", "spent")}
        if not all(math.isfinite(value) and value >= 0 for value in numbers.values()):
            raise ValueError("alpha budget: a number is not finite or is negative")
        return cls(experiments=int(body["experiments"]), **numbers)
