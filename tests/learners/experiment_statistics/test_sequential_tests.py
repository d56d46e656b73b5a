"""Falls are seen, equal series are not taken for falls, and dependence is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest

from learners.experiment_statistics.sequential_tests import (
    ENOUGH,
    FIRST,
    LEAST,
    MEMORY,
    Baseline,
    BettingTest,
    MixtureSprt,
    long_run_variance,
)


def noise(seed: int, count: int, mean: float = 1.0) -> list[float]:
    return [float(x) for x in np.random.default_rng(seed).normal(mean, 0.2, count)]


def test_the_long_run_variance_counts_dependence() -> None:
    plain = noise(0, 400)
    slow = np.repeat(np.random.default_rng(1).normal(1.0, 0.2, 50), 8).tolist()
    assert float(np.var(plain)) < long_run_variance(plain) < 3.0 * float(np.var(plain))
    assert long_run_variance(slow) > 7.0 * float(np.var(slow))
    assert long_run_variance([1.0]) == math.inf
    short = noise(2, ENOUGH - 1)
    assert long_run_variance(short) == pytest.approx(MEMORY * float(np.var(short, ddof=1)))


def test_a_short_past_is_no_reference() -> None:
    assert Baseline.of(noise(0, LEAST - 1)) is None
    reference = Baseline.of([0.5] * LEAST)
    assert reference is not None
    assert (reference.mean, reference.variance, reference.upper()) == (0.5, 0.0, 0.5)


def reference(seed: int = 3, count: int = 120) -> Baseline:
    found = Baseline.of(noise(seed, count))
    assert found is not None
    return found


def test_a_fall_is_seen_within_seconds_and_an_equal_series_never() -> None:
    fall = MixtureSprt(reference(), 0.025, 0.05)
    seen = [fall.update(block) for block in noise(4, 20, mean=0.2)]
    assert FIRST <= seen.index(True) + 1 <= 6
    assert fall.mean < fall.bound() < 1.0
    equal = [MixtureSprt(reference(seed), 0.025, 0.05) for seed in range(40)]
    for seed, drop in enumerate(equal):
        drop.replay(noise(100 + seed, 60))
    assert sum(drop.crossed for drop in equal) <= 1


def test_a_fall_within_the_margin_is_allowed() -> None:
    drop = MixtureSprt(reference(count=300), 0.025, margin=0.3)
    drop.replay(noise(5, 300, mean=0.8))
    assert not drop.crossed


def test_the_bound_is_that_of_the_paper() -> None:
    # n = 5, N = 20: information 4; boundary sqrt(2 * 9 * log(sqrt(9/5)/.05 + 1)) = 7.7377 (Howard et al. 2021, eq. 14, rho 5)
    drop = MixtureSprt(Baseline(20, 1.0, 0.04, 1.0), 0.025, 0.1)
    drop.replay([1.0] * 5)
    expected = math.sqrt(18 * math.log(math.sqrt(1.8) / 0.05 + 1))
    assert expected == pytest.approx(7.7377, abs=1e-4)
    assert drop.bound() == pytest.approx(1.0 - 0.1 - 0.2 * expected / 4)
    assert MixtureSprt(reference(), 0.025, 0.0).bound() == -math.inf


def test_a_wilder_present_widens_the_bound() -> None:
    calm, wild = MixtureSprt(reference(), 0.025, 0.0), MixtureSprt(reference(), 0.025, 0.0)
    calm.replay([1.0] * 10)
    wild.replay([2.0, 0.0] * 5)
    assert wild.bound() < calm.bound()


def test_a_bet_is_won_by_a_mean_above_its_limit_only() -> None:
    rng = np.random.default_rng(6)
    won = BettingTest(0.5, 0.01)
    won.replay((rng.random(100) < 0.9).astype(float))
    assert won.crossed
    assert won.wealth() >= 100.0
    lost = [BettingTest(0.5, 0.01) for _ in range(50)]
    for bet in lost:
        bet.replay((rng.random(200) < 0.5).astype(float))
    assert sum(bet.crossed for bet in lost) <= 2
    with pytest.raises(ValueError, match="outside"):
        BettingTest(0.5, 0.01).update(1.1)


def test_wealth_by_hand_and_without_overflow() -> None:
    bet = BettingTest(0.5, 0.01)
    bet.update(1.0)  # each share doubles what it staked: 1 + share
    assert bet.wealth() == pytest.approx(np.mean([1.1, 1.25, 1.5, 1.9]))
    rich = BettingTest(0.01, 0.01)
    rich.replay([1.0] * 2_000)
    assert rich.wealth() == pytest.approx(math.exp(600), rel=1e-6) or rich.wealth() <= 1e300
