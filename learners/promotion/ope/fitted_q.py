"""Value functions for off-policy evaluation: linear, fitted on logged decisions, and refused where they do not come to rest.

Fitted Q evaluation of a policy the log hardly shows may diverge, or come to rest far from anything rewards could add up to. Both are
answered with more ridge (`RIDGES`, tried by `offpolicy.py`): the model then knows less, and the weighed rewards have more to say.

Shapes: N decisions in the order of time, D features.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from learners.promotion.ope.estimator_inputs import LARGEST_GAMMA, Evidence, Side
from learners.promotion.ope.estimators import Estimate, LinearQ, effective_samples, fitted_q

FOLDS = 8
"""Blocks of successive rows. Each is longer than most dependences, and its mean is one observation of the bound."""
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


def double_robust(e: Evidence, side: Side, ridge: float) -> Estimate:
    """Return the doubly robust value at the logged states, each block of rows by functions that were fitted on the other blocks.

    A term is V(s) + w (r + gamma V(s') - Q(s, a)). w is the importance weight where gamma is 0, else a linear estimate of the ratio of
    state-action densities. An error of Q then enters only multiplied by an error of w, so the terms' spread is honest at every gamma.
    The terms are the means of the `FOLDS` blocks.

    Source: Kallus & Uehara 2020 (double reinforcement learning).

    Raises:
        ArithmeticError: a value function diverges.
    """
    rows = np.flatnonzero(e.known & e.own) if e.gamma <= 0 else np.flatnonzero(e.known)
    fold_R = np.arange(len(rows)) * FOLDS // len(rows)
    means, weights = np.zeros(FOLDS), []
    for fold in range(FOLDS):
        others, here = rows[fold_R != fold], rows[fold_R == fold]
        q = _fit(e, side, others, ridge)
        features, reward, discount, following = _regression(e, side, here)
        weight = side.probability[here] / e.logged[here] if e.gamma <= 0 else features @ _ratio(e, side, others, ridge)
        low, high = attainable(e)
        v, v_next, q_taken = (np.clip(q(x), low, high) for x in (side.features[here], following, features))
        means[fold] = float((v + weight * (reward + discount * v_next - q_taken)).mean())
        weights.append(weight)
    return Estimate(float(means.mean()), means, effective_samples(np.concatenate(weights)))


def _ratio(e: Evidence, side: Side, rows: NDArray[np.int64], ridge: float) -> Array:
    """Return coefficients D of the density ratio of a policy to the log (Duan, Jia & Wang 2020)."""
    features, _, discount, following = _regression(e, side, rows)
    matrix = features.T @ (features - discount[:, None] * following) / len(rows) + ridge * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(matrix.T, side.features[rows].mean(0)), np.float64)
