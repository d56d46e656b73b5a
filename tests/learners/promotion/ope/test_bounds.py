"""Confidence sequences keep their promise at every moment; bounds at one moment keep theirs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from confidence_sequence import ConfidenceSequence

from learners.promotion.ope.bounds import lower_bound

ALPHA = 0.05


def test_the_true_mean_leaves_the_sequence_in_at_most_alpha_of_runs() -> None:
    rng = np.random.default_rng(0)
    runs, left = 400, 0
    for _ in range(runs):
        mean = rng.uniform(0.05, 0.95)
        sequence = ConfidenceSequence(ALPHA)
        bounds = [sequence.update(float(x)) for x in rng.random(200) < mean]
        left += any(not low <= mean <= high for low, high in bounds)
    assert left / runs <= ALPHA


def test_it_narrows_and_keeps_its_intersection() -> None:
    rng = np.random.default_rng(1)
    sequence = ConfidenceSequence(ALPHA, low=-2.0, high=2.0)
    bounds = np.array([sequence.update(float(x)) for x in rng.normal(0.5, 0.2, 1_500).clip(-2, 2)])
    assert (np.diff(bounds[:, 0]) >= 0).all()
    assert (np.diff(bounds[:, 1]) <= 0).all()
    assert bounds[-1, 1] - bounds[-1, 0] < 0.15
    assert bounds[-1, 0] < 0.5 < bounds[-1, 1]


def test_a_value_outside_its_interval_would_break_the_promise_and_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        ConfidenceSequence(ALPHA).update(1.5)
    with pytest.raises(ValueError, match="outside"):
        ConfidenceSequence(ALPHA).update(math.nan)


def test_the_one_sided_bound_by_hand() -> None:
    # mean 2, standard deviation 1, n 4: 2 - t(3, .95) / 2 with t = 2.35336
    values = np.array([1.0, 3.0, 2.0 - math.sqrt(0.5), 2.0 + math.sqrt(0.5)])
    assert values.std(ddof=1) == pytest.approx(1.0)
    assert lower_bound(values, 0.95) == pytest.approx(2 - 2.3533634 / 2, abs=1e-6)


def test_batches_of_neighbours_widen_the_bound_of_correlated_terms() -> None:
    rng = np.random.default_rng(2)
    slow = np.repeat(rng.normal(size=40), 25)
    assert lower_bound(slow, 0.95, lag=25) < lower_bound(slow, 0.95)
    assert lower_bound(np.ones(1), 0.95) == -math.inf
