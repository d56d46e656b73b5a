"""Value functions for off-policy evaluation: linear, fitted on logged decisions, and refused where they do not come to rest.

Fitted Q evaluation of a policy the log hardly shows may diverge, or come to rest far from anything rewards could add up to. Both are
answered with more ridge (`RIDGES`, tried by `offpolicy.py`): the model then knows less, and the weighed rewards have more to say.

Shapes: N decisions in the order of time, D features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learners.promotion.ope.estimators import Estimate, LinearQ, effective_samples, fitted_q
from learners.promotion.ope.evidence import LARGEST_GAMMA, Evidence, Side

FOLDS = 4
RIDGES = (1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Ridge parameters for each decision, on features of deviation 1. The smallest one with which every value function converges is
used: without a ridge, bootstrapping from rarely logged states diverges. A larger ridge gives the model less weight and the
importance-weighted rewards more."""
CONSTANT = 1e4
"""Size of the constant feature: so large that no ridge pulls at it."""
SLACK = 0.5
"""Share of what is attainable by which a fitted value may lie outside of it; further out the model is taken for broken."""
ROUNDING = 1e-3

Array = NDArray[np.float64]


def standardised(e: Evidence) -> Evidence:
    """Return the evidence with features of mean 0 and deviation 1, and a large constant, so that one ridge fits all."""
    mean, deviation = e.taken.mean(0), e.taken.std(0)
    varies = deviation > 1e-9
    mean, deviation = np.where(varies, mean, 0.0), np.where(varies, deviation, 1 / CONSTANT)

    def scale(x: Array) -> Array:
        return np.asarray((x - mean) / deviation, np.float64)

    candidate, live = (Side(side.probability, scale(side.features)) for side in e.sides)
    gamma = min(e.gamma, LARGEST_GAMMA)
    return replace(e, taken=scale(e.taken), candidate=candidate, live=live, gamma=gamma)


def _regression(e: Evidence, side: Side, rows: NDArray[np.int64]) -> tuple[Array, Array, Array, Array]:
    """Return features, rewards, discounts and next features of the given rows."""
    after = np.minimum(rows + 1, len(e.reward) - 1)
    discount = np.where(e.done[rows], 0.0, e.gamma)
    return e.taken[rows], e.reward[rows], discount, side.features[after]


def _fit(e: Evidence, side: Side, rows: NDArray[np.int64], ridge: float) -> LinearQ:
    """Raises ArithmeticError where it does not come to rest, or says what cannot be."""
    features, reward, discount, following = _regression(e, side, rows)
    slowest = (1.0 + e.gamma) / 2
    q = fitted_q(features, reward, discount, following, ridge=ridge * len(rows), largest_radius=slowest)
    low, high = attainable(e)
    slack = SLACK * (high - low) + ROUNDING * max(abs(low), abs(high))
    for values in (q(features), q(following[discount > 0])):
        if values.min(initial=low) < low - slack or values.max(initial=high) > high + slack:
            raise ArithmeticError("the value function diverged: it exceeds any possible sum of rewards")
    return q


def attainable(e: Evidence) -> tuple[float, float]:
    """Return the lowest and the highest possible sum of rewards like those of the log; an end adds nothing more."""
    low, high = float(e.reward[e.known].min()), float(e.reward[e.known].max())
    if e.done[e.known].any():
        low, high = min(0.0, low), max(0.0, high)
    return low / (1.0 - e.gamma), high / (1.0 - e.gamma)


def cross_fitted(e: Evidence, side: Side, ridge: float) -> tuple[Array, Array]:
    """Q of what was done and V of what the policy would do, N each, from value functions fitted on the other folds."""
    fold_N = np.minimum(np.arange(len(e.reward)) * FOLDS // len(e.reward), FOLDS - 1)
    q_N, v_N = np.zeros(len(e.reward)), np.zeros(len(e.reward))
    for fold in range(FOLDS):
        q = _fit(e, side, np.flatnonzero(e.known & (fold_N != fold)), ridge)
        here = fold_N == fold
        q_N[here], v_N[here] = (np.clip(q(x[here]), *attainable(e)) for x in (e.taken, side.features))
    return q_N, v_N


def influence(e: Evidence, side: Side, ridge: float) -> Estimate:
    """Return the fitted Q evaluation at the logged states; the terms are its influence function, and their mean is the value."""
    rows = np.flatnonzero(e.known)
    q = _fit(e, side, rows, ridge)
    features, reward, discount, following = _regression(e, side, rows)
    error = reward + discount * q(following) - q(features)
    matrix = features.T @ (features - discount[:, None] * following) + ridge * len(rows) * np.eye(features.shape[1])
    start = side.features[rows].mean(0)
    weight = len(rows) * (features @ np.linalg.solve(matrix.T, start))
    values = q(side.features[rows])
    return Estimate(float(values.mean()), values + weight * error, effective_samples(weight * (1 - e.gamma)))
