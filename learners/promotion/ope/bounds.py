"""Compute the confidence bound of promotion for the mean of an estimate, at one moment.

Source: Student's t over batch means. What experiments watch at every moment is in `learners/experiment_statistics/`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]


def lower_bound(terms_N: Array, confidence: float, *, lag: int = 1) -> float:
    """One-sided lower bound of a mean by Student's t; minus infinity for fewer than two batches.

    `lag` joins that many successive terms into one batch first (batch means), because terms of neighbouring ticks are not
    independent.
    """
    usable = len(terms_N) // lag * lag
    means = terms_N[:usable].reshape(-1, lag).mean(1)
    if len(means) < 2:
        return -math.inf
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    return float(means.mean()) - float(stdtrit(len(means) - 1, confidence)) * error
