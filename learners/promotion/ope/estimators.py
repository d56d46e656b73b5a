"""Estimate what a candidate would have earned, from the decisions of another policy with logged probabilities.

All estimators are functions of plain arrays and know no model. N rounds, D features.
Importance weights are target / logged probability; a logged probability must be positive wherever the target's is.

Sources:

- Self-normalised importance sampling: Swaminathan & Joachims 2015.
- Fitted Q evaluation: Le et al. 2019.
- Effective sample size: Kong 1992.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LARGEST_WEIGHT = 1e100
"""The square of a larger one is not finite."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, the per-round terms it is the mean of, and how many rounds' worth of evidence it has."""

    value: float
    terms: Array
    effective_samples: float


def effective_samples(weights_N: Array) -> float:
    """Return (sum w)^2 / sum w^2: N if all weights are equal, 1 if one dominates, 0 if all are zero."""
    largest = float(np.abs(weights_N).max(initial=0.0))
    if not 0 < largest < np.inf:
        return 0.0
    relative_N = weights_N / largest  # a square of the largest weights would overflow
    return float(relative_N.sum() ** 2 / np.square(relative_N).sum())


def importance_weights(target_N: Array, logged_N: Array) -> Array:
    """Target / logged probability of the action that was taken.

    Raises:
        ValueError: a logged probability is not positive, or a value is not finite, or a weight is too large.
    """
    if not (np.isfinite(target_N).all() and np.isfinite(logged_N).all()):
        raise ValueError("a probability is not finite")
    if (logged_N <= 0).any():
        raise ValueError(
            f"{int((logged_N <= 0).sum())} logged probabilities are not positive: the action could not have been taken"
        )
    with np.errstate(over="ignore"):
        weights_N = np.asarray(target_N / logged_N, np.float64)
    if not (np.abs(weights_N) <= LARGEST_WEIGHT).all():
        raise ValueError("a logged probability is too small for an importance weight")
    return weights_N


def snips(reward_N: Array, weight_N: Array) -> Estimate:
    """Self-normalised IPS: slightly biased, bounded by the rewards, indifferent to a shift of them."""
    total = float(weight_N.sum())
    if total <= 0:
        raise ValueError("every importance weight is zero: the target never does what was logged")
    value = float((weight_N * reward_N).sum() / total)
    # the delta method's terms: their mean is the value, their spread is its standard error
    terms = value + weight_N * (reward_N - value) * len(weight_N) / total
    return Estimate(value, terms, effective_samples(weight_N))


@dataclass(frozen=True, slots=True)
class LinearQ:
    """A value function that is linear in features of state and action."""

    weights: Array
    radius: float
    """Spectral radius of the iteration it is the fixed point of: how much of an error is left after one more sweep."""

    def __call__(self, features: Array) -> Array:
        """Return values of features [..., D]."""
        return np.asarray(features @ self.weights, np.float64)


def fitted_q(
    features_ND: Array,
    reward_N: Array,
    discount_N: Array,
    next_ND: Array,
    *,
    ridge: float = 1e-3,
    largest_radius: float = 1.0,
) -> LinearQ:
    """Fitted Q evaluation with linear features: where regressing r + discount * Q(next) again and again comes to rest.

    `next_ND` are the features expected under the target at the next state (averaged over its choices, which linearity
    allows); `discount_N` is gamma, or 0 where the step was terminal. The rest is solved for, not iterated to; that the
    iteration would get there is what its spectral radius says (Tsitsiklis & Van Roy 1996).

    Raises:
        ArithmeticError: the iteration diverges, which bootstrapped regression may do off-policy, or `largest_radius` is passed.
    """
    gram = features_ND.T @ features_ND + ridge * np.eye(features_ND.shape[1])
    onward = features_ND.T @ (discount_N[:, None] * next_ND)
    radius = float(np.abs(np.linalg.eigvals(np.linalg.solve(gram, onward))).max(initial=0.0))
    if not radius < largest_radius:
        raise ArithmeticError(
            f"fitted Q evaluation diverged: spectral radius {radius:.4f}, below {largest_radius:.4g} is needed"
        )
    return LinearQ(np.asarray(np.linalg.solve(gram - onward, features_ND.T @ reward_N), np.float64), radius)
