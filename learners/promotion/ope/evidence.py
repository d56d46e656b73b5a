"""Logged decisions as off-policy estimators take them, and windows over them. Knows arrays only.

Shapes: N decisions in the order of time, T ticks of a window, W windows, D features.
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
    `follows`: the next row is the successor. `taken`: features N,D of what was done, one of them constant.
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

    @property
    def sides(self) -> tuple[Side, Side]:
        """Candidate and live."""
        return self.candidate, self.live

    @property
    def tells(self) -> bool:
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


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows of T ticks, with one more position for the successor.

    `rows`: W,T+1; `inside`: whether the tick is weighted; `cut`: the position where a window ends before its episode does,
    so that the value there replaces the remaining rewards.
    """

    rows: NDArray[np.int64]
    inside: Flags
    cut: Flags


def windows(e: Evidence, length: int) -> Windows:
    """Return a window for every decision that is the policy's own and has an outcome; it ends at an action that is not."""
    usable_N = e.own & e.known
    start_W = np.flatnonzero(usable_N)
    rows = np.minimum(start_W[:, None] + np.arange(length + 1), len(usable_N) - 1)
    inside, cut = np.zeros(rows.shape, bool), np.zeros(rows.shape, bool)
    going_W = np.ones(len(rows), bool)
    for t in range(length + 1):
        inside[:, t] = going_W & usable_N[rows[:, t]] if t < length else False
        cut[:, t] = going_W & ~inside[:, t]
        going_W = inside[:, t] & e.follows[rows[:, t]]  # neither the end of an episode nor a gap
    return Windows(rows, inside, cut)
