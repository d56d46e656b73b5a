"""Compare a candidate with the live policy on logged decisions: every estimator, its bound, and the decisive one.

All figures are rewards per tick: discounted values from the logged states times (1 - gamma), candidate minus live, paired on
the same decisions. The first estimator relies on the logged probabilities only, the last one on a model:

- `snips`: self-normalised importance sampling of the immediate reward. With gamma 0 it is the only estimator.
- `per_decision`: weighted per-decision importance sampling over windows as long as the horizon.
- `doubly_robust`: over windows of T ticks, with a value function that was fitted on other decisions (cross-fitting) for what
  comes after and against variance. T is the longest of 1, 2, 4 ... up to the horizon that has enough effective samples.
- `fitted_q`: fitted Q evaluation with linear features. Its error follows by the delta method from the value's influence
  function. The weights in it are linear estimates of the ratio of state-action densities (Duan, Jia & Wang 2020). Their
  effective sample size measures how much of the log carries the estimate.

`doubly_robust` decides if it has enough effective samples, else `fitted_q` if it has; else the result is inconclusive. Bounds
are one-sided, Student's t over means of blocks of successive decisions, because neighbours are not independent; a block is at
least as long as a window.

Limits: a candidate was trained on most of these decisions, so overfitting to them improves its estimate. The fresh decisions of
the step `shadow` and of probation compensate for that. The estimate starts from logged states, not from states that the
candidate would reach beyond the windows.

Shapes: N decisions in the order of time, T ticks of a window, W windows, D features.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.promotion.ope.bounds import lower_bound
from learners.promotion.ope.estimators import (
    Estimate,
    importance_weights,
    per_decision,
    sequential_doubly_robust,
    snips,
)
from learners.promotion.ope.evidence import Evidence, Side, windows
from learners.promotion.ope.features import compare
from learners.promotion.ope.fitted_q import FOLDS, RIDGES, cross_fitted, influence, standardised
from learners.promotion.ope.logged_data import ActingPolicy, Logged

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate minus live by one estimator, in rewards a tick."""

    estimator: str
    value: float
    lower: float
    upper: float
    effective_samples: float
    """The smaller one of both sides."""
    window: int = 1

    def figures(self) -> dict[str, Any]:
        """Rounded, with what is not finite as None."""
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper, "ess": self.effective_samples}
        return {k: round(v, 5) if math.isfinite(v) else None for k, v in numbers.items()} | {"window": self.window}


@dataclass(frozen=True, slots=True)
class OffPolicyResult:
    """All differences; `decides` is None where nothing is known, and `unknown` says why."""

    differences: dict[str, Difference] = field(default_factory=dict)
    decides: Difference | None = None
    unknown: str = ""


def judge(evidence: Evidence, *, confidence: float, min_effective_samples: float) -> OffPolicyResult:
    """Evaluate every estimator on the evidence."""
    e = evidence
    usable_N = e.own & e.known
    count = int(usable_N.sum())
    if count < 2 * FOLDS:
        return OffPolicyResult(unknown=f"{count} decisions have an outcome and a probability of the policy's own")
    if not e.tells:
        return OffPolicyResult(
            unknown="all ticks have the same reward and no episode ended: the log cannot distinguish policies"
        )
    if not all(np.isfinite(side.probability).all() and np.isfinite(side.features).all() for side in e.sides):
        return OffPolicyResult(unknown="a probability or a value on a logged decision is not finite")
    block = max(e.horizon, math.ceil(math.sqrt(count)))
    found: dict[str, Difference] = {}

    def add(name: str, pair: Pair, window: int = 1) -> None:
        found[name] = _difference(name, pair, 1.0 if name == "snips" else e.scale, confidence, block, window)

    weights = [importance_weights(side.probability, e.logged) for side in e.sides]
    if all(float(w_N[usable_N].sum()) > 0 for w_N in weights):
        add("snips", _pair(snips(e.reward[usable_N], w_N[usable_N]) for w_N in weights))
    add("per_decision", _pair(_per_decision(e, w_N) for w_N in weights), e.horizon)
    try:
        scaled = standardised(e)
        robust, fitted = _modelled(scaled, weights, min_effective_samples)
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        return OffPolicyResult(found, None, str(error))
    add("doubly_robust", *robust)
    if fitted is not None:
        add("fitted_q", fitted)
    for name in ("doubly_robust", "fitted_q"):
        if name in found and found[name].effective_samples >= min_effective_samples:
            return OffPolicyResult(found, found[name])
    most = max(d.effective_samples for d in found.values())
    return OffPolicyResult(found, None, f"at most {most:.1f} effective samples; {min_effective_samples:g} are needed")


Pair = tuple[Estimate, Estimate]
"""Of candidate and live."""


def _pair(estimates: Iterable[Estimate]) -> Pair:
    candidate, live = estimates
    return candidate, live


def _difference(name: str, pair: Pair, scale: float, confidence: float, block: int, window: int) -> Difference:
    candidate, live = pair
    terms = scale * (candidate.terms - live.terms)
    return Difference(
        name,
        scale * (candidate.value - live.value),
        lower_bound(terms, confidence, lag=block),
        -lower_bound(-terms, confidence, lag=block),
        min(candidate.effective_samples, live.effective_samples),
        window,
    )


def _per_decision(e: Evidence, weight_N: Array) -> Estimate:
    w = windows(e, e.horizon)
    inside = w.inside[:, :-1]
    reward_WT = np.where(inside, e.reward[w.rows[:, :-1]], 0.0)
    weight_WT = np.where(inside, weight_N[w.rows[:, :-1]], 1.0)
    return per_decision(reward_WT, weight_WT, e.gamma, normalised=True)


def _robust(e: Evidence, weight_N: Array, q_N: Array, v_N: Array, length: int) -> Estimate:
    w = windows(e, length)
    reward = np.where(w.inside, e.reward[w.rows], 0.0)
    weight = np.where(w.inside, weight_N[w.rows], 1.0)
    q = np.where(w.inside, q_N[w.rows], 0.0)
    v = np.where(w.inside | w.cut, v_N[w.rows], 0.0)
    return sequential_doubly_robust(reward, weight, q, v, e.gamma)


def _modelled(e: Evidence, weights: list[Array], enough: float) -> tuple[tuple[Pair, int], Pair | None]:
    """Return the estimates with value functions: doubly robust with its window, and fitted Q if gamma is above 0.

    Raises:
        ArithmeticError: with no ridge the value functions come to rest.
    """
    for ridge in RIDGES:
        try:
            robust = _doubly_robust(e, weights, ridge, enough)
            return robust, _pair(influence(e, side, ridge) for side in e.sides) if e.gamma > 0 else None
        except ArithmeticError as error:
            last = error
    raise last


def _doubly_robust(e: Evidence, weights: list[Array], ridge: float, enough: float) -> tuple[Pair, int]:
    """Return estimates over the longest window that has enough effective samples, or over one tick; and that window.

    Raises:
        ArithmeticError: a value function cannot be fitted.
    """
    crossed = [cross_fitted(e, side, ridge) for side in e.sides]
    best: tuple[Pair, int] | None = None
    length = 1
    while length <= e.horizon:
        pair = _pair(_robust(e, w_N, q_N, v_N, length) for w_N, (q_N, v_N) in zip(weights, crossed, strict=True))
        if best is not None and min(one.effective_samples for one in pair) < enough:
            break
        best = (pair, length)
        length *= 2
    assert best is not None
    return best


def gather(candidate: ActingPolicy, live: ActingPolicy, logged: Logged) -> Generator[None, None, Evidence]:
    """Go through the decisions a few at a time; the generator returns what both make of them."""
    both = yield from compare(candidate, live, logged)
    return Evidence(
        reward=logged.reward_N,
        done=logged.done_N,
        follows=logged.follows_N,
        known=logged.acted_N & (logged.done_N | logged.follows_N),
        own=logged.any_own,
        logged=both.logged,
        taken=both.taken,
        candidate=Side(both.candidate, both.by_candidate),
        live=Side(both.live, both.by_live),
        gamma=logged.spec.gamma,
    )


def figures(judged: OffPolicyResult) -> dict[str, Any]:
    """Return every estimator's numbers, and the decisive one."""
    decides = judged.decides
    return {
        "estimator": decides.estimator if decides else None,
        "ess": round(decides.effective_samples, 1) if decides else None,
        "lower": round(decides.lower, 5) if decides else None,
        "estimates": {name: one.figures() for name, one in judged.differences.items()},
    }
