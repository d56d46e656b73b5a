"""The bandit: its posterior is ridge regression, its probabilities are those it draws with, and it learns digits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rl import CHOICE, OTHER, plain, random_batch, seen

from learners.model.linear_posterior import SETTLE, LinearPosterior
from learners.rl.algorithm import Algorithm
from learners.rl.bandit import Bandit
from learners.rl.transition_batch import Batch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


def test_the_posterior_is_ridge_regression_of_each_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    posterior = LinearPosterior(3, (2, 3), fourier=8, ridge=0.5)
    x, reward = torch.randn(40, 3, generator=generator), torch.randn(40, generator=generator)
    index = torch.stack(
        (torch.randint(2, (40,), generator=generator), torch.randint(3, (40,), generator=generator)), -1
    )
    posterior.take(x, index, reward, torch.ones(40, 2))
    f = posterior.features(x)
    probe = torch.randn(5, 3, generator=generator)
    for branch, (mean, std) in enumerate(posterior(probe)):
        for choice in range(mean.shape[1]):
            rows = index[:, branch] == choice
            precision = 0.5 * torch.eye(f.shape[1], dtype=torch.float64) + f[rows].T @ f[rows]
            weights = torch.linalg.solve(precision, f[rows].T @ reward[rows].double())
            g = posterior.features(probe)
            torch.testing.assert_close(mean[:, choice], (g @ weights).float(), atol=1e-5, rtol=1e-4)
            variance = (g * torch.linalg.solve(precision, g.T).T).sum(-1)
            torch.testing.assert_close(std[:, choice], variance.sqrt().float(), atol=1e-5, rtol=1e-4)


def test_what_was_not_moved_is_not_taken_in() -> None:
    posterior = LinearPosterior(2, (2,), fourier=4)
    before = posterior.covariance.clone()
    posterior.take(torch.ones(1, 2), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1), torch.zeros(1, 1))
    assert torch.equal(before, posterior.covariance)
    assert float(posterior.highest) == 0


def test_probabilities_are_a_softmax_of_upper_bounds_in_units_of_the_rewards() -> None:
    posterior = LinearPosterior(2, (2,), fourier=4, width=0.5, temperature=0.1)
    posterior.lowest.fill_(-1.0)
    posterior.highest.fill_(3.0)
    # bounds (2 / 4 + 0.5 * 0.2, 1 / 4 + 0.5 * 0.6) = (0.6, 0.55): odds exp(0.05 / 0.1)
    p = posterior.probabilities(torch.tensor([[2.0, 1.0]]), torch.tensor([[0.2, 0.6]]))
    assert float(p[0, 0] / p[0, 1]) == pytest.approx(np.exp(0.5), rel=1e-4)
    only = posterior.probabilities(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[False, True]]))
    assert only.tolist() == [[0.0, 1.0]]


def test_normalisation_settles_and_the_posterior_is_that_of_settled_features() -> None:
    """Taking in one by one while the normalisation moves ends where taking everything at once would."""
    policy = plain(CHOICE, OTHER, gamma=0.0)
    algorithm = Algorithm(policy, torch.Generator())
    batch = random_batch(policy, SETTLE + 20, torch.Generator().manual_seed(2))
    batch.features.tokens["joints"].mul_(50).add_(1000)
    for row in range(0, len(batch), 4):
        algorithm.observe(batch[row : row + 4])
    assert policy.heads.bandit is not None
    fresh = LinearPosterior(3, (3, 2))
    index = torch.stack((batch.actions["head"], batch.actions["lamp"]), -1)
    fresh.take(policy.encode(batch.features), index, batch.rewards, torch.ones(len(batch), 2))
    torch.testing.assert_close(policy.heads.bandit.covariance, fresh.covariance, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(policy.heads.bandit.moment, fresh.moment, atol=1e-5, rtol=1e-3)
    spread = policy.encode(batch.features).std(0)
    torch.testing.assert_close(spread, torch.ones(3), atol=0.1, rtol=0)


def test_it_resumes_exactly_while_settling() -> None:
    batch = random_batch(plain(CHOICE, gamma=0.0), SETTLE + 8, torch.Generator().manual_seed(2))
    whole = plain(CHOICE, gamma=0.0)
    learning = Algorithm(whole, torch.Generator())
    learning.observe(batch)
    first = plain(CHOICE, gamma=0.0)
    broken = Algorithm(first, torch.Generator())
    broken.observe(batch[:37])
    state = broken.state_dict()
    assert all(
        bool(torch.isfinite(t).all()) for t in (*state.values(), *first.state_dict().values()) if t.is_floating_point()
    )
    second = plain(CHOICE, gamma=0.0, seed=9)
    second.load_state_dict(first.state_dict())
    resumed = Algorithm(second, torch.Generator())
    resumed.load_state_dict(state)
    resumed.observe(batch[37:])
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True)
    )


def test_updates_report_how_far_it_is_off() -> None:
    policy = plain(CHOICE, gamma=0.0)
    algorithm = Algorithm(policy, torch.Generator())
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    action = torch.arange(100) % 3
    batch = Batch(seen(x), seen(x), {"head": action}, action.float(), torch.zeros(100))
    before = algorithm.update(batch)
    algorithm.observe(batch)
    after = algorithm.update(batch)
    assert after["bandit_error"] < 0.05 < before["bandit_error"]
    assert after["bandit_std"] < before["bandit_std"]
    (part,) = algorithm.parts
    assert isinstance(part, Bandit)
    assert part.groups() == []


def test_it_learns_digits_from_one_bit_a_round() -> None:
    from bench_bandit import play

    _, overall, _ = play(0, passes=1, rounds=700)
    assert overall > 0.7  # guessing gives 0.1; what was explored counts as well
