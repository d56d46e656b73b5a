"""Candidate minus live is exact where everything is known, zero for equal policies, and inconclusive without evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from learners.promotion.ope import evaluator
from learners.promotion.ope.estimator_inputs import Evidence, Side
from learners.promotion.ope.evaluator import judge
from learners.promotion.ope.fitted_q import attainable
from learners.promotion.ope.support import support

STATES, CHOICES = 3, 2
GAMMA = 0.8
REWARD = np.array([[0.0, 0.2], [1.0, -0.5], [0.3, 0.9]])
NEXT = np.array([[0, 1], [1, 2], [2, 0]])
BEHAVIOUR = np.array([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]])
CANDIDATE = np.array([[0.1, 0.9], [0.9, 0.1], [0.2, 0.8]])
LIVE = np.array([[0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])


def one_hot(state: np.ndarray, chances: np.ndarray) -> np.ndarray:
    """Features N,D of state and action, averaged over chances N,n; a constant first."""
    out = np.zeros((len(state), STATES, CHOICES))
    out[np.arange(len(state)), state] = chances
    return np.hstack([np.ones((len(state), 1)), out.reshape(len(state), -1)])


def logged(
    count: int, seed: int, gamma: float = GAMMA, candidate: np.ndarray = CANDIDATE
) -> tuple[Evidence, np.ndarray]:
    """A walk of the deterministic chain under `BEHAVIOUR`, an episode's end every 40 ticks; and the states."""
    rng = np.random.default_rng(seed)
    state = np.zeros(count, int)
    choice = np.zeros(count, int)
    done = np.arange(count) % 40 == 39
    here = 0
    for n in range(count):
        state[n] = here
        choice[n] = int(rng.random() < BEHAVIOUR[here, 1])
        here = int(rng.integers(STATES)) if done[n] else int(NEXT[here, choice[n]])
    follows = ~done
    follows[-1] = False

    def side(policy: np.ndarray) -> Side:
        return Side(policy[state, choice], one_hot(state, policy[state]))

    evidence = Evidence(
        reward=REWARD[state, choice], done=done, follows=follows, known=follows | done, own=np.ones(count, bool),
        logged=BEHAVIOUR[state, choice], taken=one_hot(state, np.eye(CHOICES)[choice]), candidate=side(candidate),
        live=side(LIVE), gamma=gamma,
    )  # fmt: skip
    return evidence, state


def value(policy: np.ndarray, gamma: float, end: float) -> np.ndarray:
    """Of each state, when an episode ends after any tick with chance `end`."""
    reward = (policy * REWARD).sum(1)
    step = np.zeros((STATES, STATES))
    for s in range(STATES):
        for a in range(CHOICES):
            step[s, NEXT[s, a]] += policy[s, a]
    return np.linalg.solve(np.eye(STATES) - gamma * (1 - end) * step, reward)


def test_one_step_differences_are_those_of_the_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "RIDGES", (1e-6,))
    evidence, state = logged(6_000, 0, gamma=0.0)
    judged = judge(evidence, confidence=0.95, min_effective_samples=50)
    truth = float(((CANDIDATE - LIVE) * REWARD).sum(1)[state].mean())
    assert set(judged.differences) == {"snips", "doubly_robust"}
    assert judged.decides is judged.differences["doubly_robust"]
    robust = judged.differences["doubly_robust"]
    assert robust.value == pytest.approx(truth, abs=1e-3)  # rewards without noise: the model is exact
    assert robust.lower <= robust.value <= robust.upper


@pytest.mark.parametrize(("gamma", "slow"), [(0.0, False), (0.8, False), (0.99, False), (0.0, True), (0.99, True)])
def test_bounds_hold_as_often_as_they_say_at_every_discount(gamma: float, slow: bool) -> None:
    held = 0
    for seed in range(40):
        evidence, states = logged(2_000, seed, gamma=gamma)
        noise = np.random.default_rng([seed, 1]).normal(size=2_000)
        noise = lfilter([np.sqrt(1 - 0.99**2)], [1, -0.99], noise) if slow else noise
        evidence = replace(evidence, reward=evidence.reward + noise, done=np.zeros(2_000, bool), known=evidence.follows)
        gap = (value(CANDIDATE, gamma, 0.0) - value(LIVE, gamma, 0.0)) * (1 - gamma)
        truth = float(gap[states[evidence.known]].mean())
        judged = judge(evidence, confidence=0.95, min_effective_samples=30)
        assert judged.decides is not None, judged.unknown
        held += judged.decides.lower <= truth
    assert held >= 34  # 38 are expected; below 34 is a chance of 0.3 %


def test_long_run_differences_are_those_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator, "RIDGES", (1e-6,))
    evidence, state = logged(6_000, 1)
    evidence = replace(evidence, done=np.zeros_like(evidence.done), known=evidence.follows)  # never ends
    judged = judge(evidence, confidence=0.95, min_effective_samples=50)
    gap = (value(CANDIDATE, GAMMA, 0.0) - value(LIVE, GAMMA, 0.0)) * (1 - GAMMA)
    truth = float(gap[state[evidence.known]].mean())
    assert set(judged.differences) == {"doubly_robust"}
    assert judged.differences["doubly_robust"].value == pytest.approx(truth, abs=1e-3)


def differs_in_some_states(seed: int, explored: float) -> tuple[Evidence, int]:
    """A log of 2,048 rounds; the candidate takes another action in a fifth of them, and loses 1 there; and the tries of it."""
    rng = np.random.default_rng(seed)
    elsewhere = rng.random(2_048) < 0.2
    tried = rng.random(2_048) < explored
    live = np.where(tried, explored, 1 - explored)
    candidate = np.where(elsewhere, 1 - live, live)
    features = np.column_stack([np.ones(2_048), elsewhere])

    def expected(chance: np.ndarray) -> np.ndarray:
        return np.column_stack([features, features * chance[:, None]])

    of_candidate = np.where(elsewhere, 1 - explored, explored)
    follows = np.ones(2_048, bool)
    follows[-1] = False
    evidence = Evidence(
        reward=rng.normal(size=2_048) * 0.1 - (tried & elsewhere), done=np.zeros(2_048, bool), follows=follows,
        known=follows, own=np.ones(2_048, bool), logged=live, taken=expected(tried.astype(float)),
        candidate=Side(candidate, expected(of_candidate)), live=Side(live, expected(np.full(2_048, explored))), gamma=0.0,
    )  # fmt: skip
    return evidence, int((tried & elsewhere).sum())


def test_a_candidate_with_untried_actions_is_inconclusive_however_many_rows_agree() -> None:
    for seed in range(20):
        evidence, tries = differs_in_some_states(seed, 1e-4)
        judged = judge(evidence, confidence=0.95, min_effective_samples=50)
        assert tries <= 2
        assert judged.decides is None
        assert "tries of what the candidate does differently" in judged.unknown
    evidence, tries = differs_in_some_states(0, 0.2)
    judged = judge(evidence, confidence=0.95, min_effective_samples=50)
    assert tries >= 60
    assert judged.decides is not None
    assert judged.decides.upper < -0.05


def test_tries_in_one_window_count_once() -> None:
    evidence, tries = differs_in_some_states(0, 0.2)
    assert support(evidence).windows == pytest.approx(tries, abs=1)
    assert support(replace(evidence, gamma=0.99)).windows <= 2_048 // 64
    assert support(replace(evidence, candidate=evidence.live)).alike


def test_where_the_gate_changes_proposals_probabilities_are_unknown() -> None:
    evidence, _ = logged(1_500, 4)
    assert judge(replace(evidence, altered=0.04), confidence=0.95, min_effective_samples=50).decides is not None
    judged = judge(replace(evidence, altered=0.3), confidence=0.95, min_effective_samples=50)
    assert judged.decides is None
    assert judged.unknown.startswith("the gate changed 30% of the proposals")


def test_an_action_that_the_log_hardly_contains_is_named() -> None:
    evidence, _ = logged(1_500, 4)
    judged = judge(replace(evidence, untried=("head=left",)), confidence=0.95, min_effective_samples=50)
    assert judged.decides is None
    assert judged.unknown.endswith("head=left")


def test_a_worse_candidate_is_known_to_be_worse() -> None:
    evidence, _ = logged(1_500, 4)
    swapped = replace(evidence, candidate=evidence.live, live=evidence.candidate)
    better = judge(evidence, confidence=0.95, min_effective_samples=50).decides
    worse = judge(swapped, confidence=0.95, min_effective_samples=50).decides
    assert better is not None
    assert worse is not None
    assert better.lower > 0 > worse.upper
    assert worse.value == pytest.approx(-better.value)


def test_too_few_effective_samples_are_inconclusive() -> None:
    evidence, _ = logged(1_500, 5)
    judged = judge(evidence, confidence=0.95, min_effective_samples=1e6)
    assert judged.decides is None
    assert "1e+06 are needed" in judged.unknown


def test_too_few_decisions_are_inconclusive() -> None:
    evidence, _ = logged(6, 6)
    judged = judge(evidence, confidence=0.95, min_effective_samples=1)
    assert judged.decides is None
    assert judged.unknown.startswith("5 decisions")


def test_a_diverging_value_function_is_inconclusive() -> None:
    evidence, _ = logged(400, 7)
    wild = Side(evidence.candidate.probability, 40 * evidence.candidate.features)
    judged = judge(replace(evidence, candidate=wild), confidence=0.95, min_effective_samples=1)
    assert judged.decides is None
    assert "diverged" in judged.unknown


def test_a_direction_that_runs_away_is_ridged_out_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, _ = logged(1_500, 9)
    noise = np.random.default_rng(0).normal(size=1_500)

    def wider(features: np.ndarray, column: np.ndarray) -> np.ndarray:
        return np.column_stack([features, column])

    candidate, live = (Side(s.probability, wider(s.features, np.roll(3 * noise, 1))) for s in evidence.sides)
    wild = replace(evidence, taken=wider(evidence.taken, noise), candidate=candidate, live=live)
    plain = judge(evidence, confidence=0.95, min_effective_samples=50).decides
    judged = judge(wild, confidence=0.95, min_effective_samples=50)
    assert plain is not None
    assert judged.decides is not None
    assert 0 < judged.decides.value < plain.value + 0.1  # a larger ridge shrinks the difference
    monkeypatch.setattr(evaluator, "RIDGES", (1e-2,))
    assert "diverged" in judge(wild, confidence=0.95, min_effective_samples=50).unknown


def test_where_everything_earned_the_same_nothing_is_known() -> None:
    evidence, _ = logged(400, 10)
    same = replace(
        evidence, reward=np.ones(400), done=np.zeros_like(evidence.done), known=evidence.follows | evidence.done
    )
    assert "cannot distinguish policies" in judge(same, confidence=0.95, min_effective_samples=1).unknown
    assert judge(replace(same, done=evidence.done), confidence=0.95, min_effective_samples=1).unknown == ""


def test_values_stay_within_what_rewards_can_add_up_to() -> None:
    evidence, _ = logged(1_500, 11)
    low, high = attainable(evidence)
    assert [low, high] == pytest.approx([-0.5 / (1 - GAMMA), 1 / (1 - GAMMA)])
    up = replace(evidence, reward=evidence.reward + 1)
    assert attainable(up)[0] == 0.0  # an end adds nothing more
    assert attainable(replace(up, done=np.zeros_like(up.done)))[0] == pytest.approx(0.5 / (1 - GAMMA))


def test_numbers_that_are_not_finite_are_inconclusive() -> None:
    evidence, _ = logged(400, 8)
    for field in ("probability", "features"):
        broken = getattr(evidence.candidate, field).copy()
        broken[3] = np.inf
        side = replace(evidence.candidate, **{field: broken})
        judged = judge(replace(evidence, candidate=side), confidence=0.95, min_effective_samples=1)
        assert judged.decides is None
        assert "not finite" in judged.unknown


@pytest.mark.parametrize("gamma", [0.0, GAMMA])
@pytest.mark.parametrize("forged", [0.0, 1e-320, 1e-300, 1e-30])
def test_a_forged_probability_proves_nothing(forged: float, gamma: float) -> None:
    evidence, _ = logged(400, 8, gamma=gamma)
    probability_N = evidence.logged.copy()
    probability_N[7] = forged
    judged = judge(replace(evidence, logged=probability_N), confidence=0.95, min_effective_samples=50)
    assert judged.decides is None
    assert judged.unknown


chances = st.floats(0.05, 0.95)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000), st.lists(chances, min_size=3, max_size=3), st.sampled_from([0.0, 0.5, 0.9]))
def test_a_policy_is_never_worse_than_itself(seed: int, first: list[float], gamma: float) -> None:
    policy = np.array([[p, 1 - p] for p in first])
    evidence, _ = logged(240, seed, gamma, policy)
    judged = judge(replace(evidence, live=evidence.candidate), confidence=0.95, min_effective_samples=5)
    for difference in judged.differences.values():
        assert difference.value == pytest.approx(0, abs=1e-9)
        assert difference.lower == pytest.approx(0, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000), st.floats(-50, 50))
def test_without_ends_a_shift_of_all_rewards_changes_nothing(seed: int, shift: float) -> None:
    evidence, _ = logged(240, seed)
    evidence = replace(evidence, done=np.zeros_like(evidence.done), known=evidence.follows)
    one = judge(evidence, confidence=0.95, min_effective_samples=5)
    two = judge(replace(evidence, reward=evidence.reward + shift), confidence=0.95, min_effective_samples=5)
    name = "doubly_robust"
    assert one.differences[name].value == pytest.approx(two.differences[name].value, abs=2e-3 * (1 + abs(shift)))
