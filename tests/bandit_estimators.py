"""Estimators for one-step decisions: what `bench_offpolicy.py` compares with the published errors on classification sets.

Sources: Precup et al. 2000 (importance sampling); Dudik et al. 2011 (direct method, doubly robust).
"""

from __future__ import annotations

from learners.promotion.ope.estimators import Array, Estimate, effective_samples


def ips(reward_N: Array, weight_N: Array) -> Estimate:
    """Inverse propensity scoring: unbiased, of high variance."""
    terms = weight_N * reward_N
    return Estimate(float(terms.mean()), terms, effective_samples(weight_N))


def direct(q_Nn: Array, target_Nn: Array) -> Estimate:
    """The direct method: what a reward model predicts for the target's choices; biased as the model is."""
    terms = (q_Nn * target_Nn).sum(-1)
    return Estimate(float(terms.mean()), terms, float(len(terms)))


def doubly_robust(reward_N: Array, weight_N: Array, q_taken_N: Array, q_Nn: Array, target_Nn: Array) -> Estimate:
    """Direct method plus the weighted error of its model: right if either the model or the probabilities are."""
    terms = (q_Nn * target_Nn).sum(-1) + weight_N * (reward_N - q_taken_N)
    return Estimate(float(terms.mean()), terms, effective_samples(weight_N))
