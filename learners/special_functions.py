"""Compute the two special functions of statistics that the agent needs, with a relative error below 1e-8.

scipy has both. Its import takes 13 MB and .3 s of a core of each agent, and nothing else in a small agent needs it.

Sources: W. H. Press and others, Numerical Recipes, 3rd edition, 6.2 and 6.4 (series and continued fractions, Lentz's method).
"""

from __future__ import annotations

import math

PRECISION, TINY = 1e-15, 1e-300
MOST_STEPS = 100_000


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b): for whole `a` the chance of at least `a` hits in a + b - 1 trials.

    Args:
        a: above 0.
        b: above 0.
        x: from 0 to 1.
    """
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1.0) / (a + b + 2.0):
        return math.exp(log_front) * _beta_fraction(a, b, x) / a
    return 1.0 - math.exp(log_front) * _beta_fraction(b, a, 1.0 - x) / b


def chi_square_above(degrees: float, probability: float) -> float:
    """Return the value that a chi-square variable exceeds with a probability.

    Args:
        degrees: of freedom, above 0.
        probability: above 0 and below 1.
    """
    low, high = 0.0, degrees + 1.0
    while gamma_above(degrees / 2, high / 2) > probability:
        low, high = high, 2 * high
    while high - low > 4e-16 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if gamma_above(degrees / 2, middle / 2) > probability else (low, middle)
    return (low + high) / 2


def gamma_above(a: float, x: float) -> float:
    """Return the regularised upper incomplete gamma function Q(a, x), for `a` above 0 and `x` from 0."""
    if x <= 0.0:
        return 1.0
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    if x < a + 1.0:
        return 1.0 - front * _gamma_series(a, x)
    return front * _gamma_fraction(a, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    found = d
    for step in range(1, MOST_STEPS):
        even = step * (b - step) * x / ((a + 2 * step - 1.0) * (a + 2 * step))
        odd = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1.0))
        for part in (even, odd):
            d = 1.0 / _not_zero(1.0 + part * d)
            c = _not_zero(1.0 + part / c)
            found *= c * d
        if abs(c * d - 1.0) < PRECISION:
            break
    return found


def _gamma_series(a: float, x: float) -> float:
    part = found = 1.0 / a
    for step in range(1, MOST_STEPS):
        part *= x / (a + step)
        found += part
        if part < found * PRECISION:
            break
    return found


def _gamma_fraction(a: float, x: float) -> float:
    base = x + 1.0 - a
    c, d = 1.0 / TINY, 1.0 / _not_zero(base)
    found = d
    for step in range(1, MOST_STEPS):
        part = -step * (step - a)
        base += 2.0
        d = 1.0 / _not_zero(part * d + base)
        c = _not_zero(base + part / c)
        found *= c * d
        if abs(c * d - 1.0) < PRECISION:
            break
    return found


def _not_zero(value: float) -> float:
    return value if abs(value) > TINY else TINY
