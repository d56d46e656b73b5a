"""Logged decisions as off-policy estimators take them. Knows arrays only.

Shapes: N decisions in the order of time, D features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HORIZON = 64
"""Longest window, in ticks."""
LARGEST_GAMMA = 0.999
"""A discount of 1 is taken as this."""

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Side:
    """One policy on the log: probability N of what was done, features N,D of what it would do, on average."""

    probability: Array
    features: Array


@dataclass(frozen=True, slots=True)
class Evidence:
    """N logged decisions.

    `own`: the policy that acted drew the action; `known`: the outcome is known (a successor, or the end of an episode);
    `follows`: the next row is the successor. `taken`: features N,D of what was done, one of them constant. `altered`: share of the
    policy's proposals that the gate changed. `untried`: actions that the candidate prefers more than the live policy and that the log
    hardly contains.
    """

    reward: Array
    done: Flags
    follows: Flags
    known: Flags
    own: Flags
    logged: Array
    taken: Array
    candidate: Side
    live: Side
    gamma: float
    altered: float = 0.0
    untried: tuple[str, ...] = ()

    @property
    def sides(self) -> tuple[Side, Side]:
        """Candidate and live."""
        return self.candidate, self.live

    @property
    def informative(self) -> bool:
        """Whether outcomes differ: some ticks earned more than others, or an episode ended."""
        return bool(self.done[self.known].any() or np.ptp(self.reward[self.known]) > 0)

    @property
    def scale(self) -> float:
        """From a discounted value to a reward a tick."""
        return 1.0 - min(self.gamma, LARGEST_GAMMA)

    @property
    def horizon(self) -> int:
        """Ticks until the discount has fallen to a tenth."""
        if self.gamma <= 0:
            return 1
        return min(HORIZON, math.ceil(math.log(0.1) / math.log(min(self.gamma, LARGEST_GAMMA))))
