"""Off-policy estimators are exact where everything can be enumerated, and refuse what cannot be weighted."""

from __future__ import annotations

import numpy as np
import pytest
from bandit_estimators import direct, doubly_robust, ips
from hypothesis import given
from hypothesis import strategies as st

from learners.promotion.ope import estimators as e

REWARD = np.array([[1.0, 0.0], [0.5, 2.0]])
"""Of each context (rows, equally likely) and choice."""
LOGGED = np.array([[0.8, 0.2], [0.4, 0.6]])
TARGET = np.array([[0.1, 0.9], [0.3, 0.7]])
TRUTH = float((0.5 * TARGET * REWARD).sum())


def _every_round(counts: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Contexts and choices, each pair exactly as often as the logging policy takes it."""
    pairs = [(x, a) for x in range(2) for a in range(2) for _ in range(round(counts * LOGGED[x, a]))]
    context, choice = np.array(pairs).T
    return context, choice


def _weights(context: np.ndarray, choice: np.ndarray) -> np.ndarray:
    return e.importance_weights(TARGET[context, choice], LOGGED[context, choice])


def test_importance_sampling_is_exact_on_an_enumerated_bandit() -> None:
    context, choice = _every_round()
    reward, weight = REWARD[context, choice], _weights(context, choice)
    assert ips(reward, weight).value == pytest.approx(TRUTH)
    assert e.snips(reward, weight).value == pytest.approx(TRUTH)
    assert e.snips(reward, weight).terms.mean() == pytest.approx(TRUTH)


def test_self_normalisation_does_not_mind_a_shift_of_rewards() -> None:
    context, choice = _every_round()
    reward, weight = REWARD[context, choice][:-3], _weights(context, choice)[:-3]
    assert e.snips(reward + 100, weight).value == pytest.approx(e.snips(reward, weight).value + 100)
    assert abs(ips(reward + 100, weight).value - ips(reward, weight).value - 100) > 1


def test_doubly_robust_is_right_when_either_part_is() -> None:
    context, choice = _every_round()
    reward, weight = REWARD[context, choice], _weights(context, choice)
    wrong = np.full_like(REWARD, 7.0)
    for q, w in ((wrong, weight), (REWARD, np.ones_like(weight))):
        found = doubly_robust(reward, w, q[context, choice], q[context], TARGET[context])
        assert found.value == pytest.approx(TRUTH)
    assert direct(REWARD[context], TARGET[context]).value == pytest.approx(TRUTH)
    assert direct(wrong[context], TARGET[context]).value == pytest.approx(7.0)


GAMMA = 0.9


def test_fitted_q_finds_the_values_of_a_two_state_chain() -> None:
    # state 0 -> 1 -> 0 ..., reward 1 in state 0: v0 = 1 / (1 - g^2), v1 = g v0
    features = np.eye(2)[[0, 1] * 50]
    following = np.eye(2)[[1, 0] * 50]
    found = e.fitted_q(features, np.array([1.0, 0.0] * 50), np.full(100, GAMMA), following, ridge=1e-9)
    assert found(np.eye(2)) == pytest.approx([1 / (1 - GAMMA**2), GAMMA / (1 - GAMMA**2)], rel=1e-4)


def test_fitted_q_says_when_it_diverges() -> None:
    # the two-state example of Tsitsiklis & Van Roy 1996: features 1 and 2, both lead to the second
    features, following = np.array([[1.0], [2.0]]), np.array([[2.0], [2.0]])
    with pytest.raises(ArithmeticError, match="diverged"):
        e.fitted_q(features, np.array([0.0, 0.1]), np.full(2, 0.99), following, ridge=0.0)


def test_what_cannot_be_weighted_is_refused() -> None:
    with pytest.raises(ValueError, match="not positive"):
        e.importance_weights(np.array([0.5]), np.array([0.0]))
    with pytest.raises(ValueError, match="not finite"):
        e.importance_weights(np.array([np.nan]), np.array([0.5]))
    with pytest.raises(ValueError, match="never does"):
        e.snips(np.array([1.0]), np.array([0.0]))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_effective_samples_are_between_none_and_all(weights: list[float]) -> None:
    found = e.effective_samples(np.array(weights))
    assert 0 <= found <= len(weights) * (1 + 1e-9)
    assert e.effective_samples(np.ones(len(weights))) == pytest.approx(len(weights))
