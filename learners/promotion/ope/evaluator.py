"""Compare a candidate with the live policy on logged decisions, as a filter before the live experiment.

All figures are rewards per tick: discounted values from the logged states times (1 - gamma), candidate minus live, paired on the same
decisions.

- `doubly_robust` decides. Its value function and its weights are fitted on other blocks of rows than those they evaluate
  (`fitted_q.py`). The bound is Student's t over these blocks, so it counts every dependence that is shorter than a block.
- `snips`, self-normalised importance sampling of the immediate reward, exists for gamma 0 only.

The result is inconclusive where the log hardly contains what the candidate does differently (`support.py`), where the gate changed many
proposals, or where weights leave too few effective samples.

Limits: a candidate was trained on most of these decisions, so they flatter it. A result may therefore reject, and it never proves
anything. The estimate starts from logged states, not from states that the candidate would reach.

Shapes: N decisions in the order of time.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.promotion.ope.bounds import lower_bound
from learners.promotion.ope.estimator_inputs import Evidence, Side
from learners.promotion.ope.estimators import Estimate, importance_weights, snips
from learners.promotion.ope.features import compare
from learners.promotion.ope.fitted_q import FOLDS, RIDGES, double_robust, standardised
from learners.promotion.ope.logged_data import ActingPolicy, Logged
from learners.promotion.ope.support import LARGEST_ALTERED, REJECTING_TRIES, Support, support

Array = NDArray[np.float64]

Pair = tuple[Estimate, Estimate]
"""Of candidate and live."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Candidate minus live by one estimator, in rewards a tick."""

    estimator: str
    value: float
    lower: float
    upper: float
    effective_samples: float
    """The smaller one of both sides."""

    def figures(self) -> dict[str, Any]:
        """Rounded, with what is not finite as None."""
        numbers = {"value": self.value, "lower": self.lower, "upper": self.upper, "ess": self.effective_samples}
        return {k: round(v, 5) if math.isfinite(v) else None for k, v in numbers.items()}


@dataclass(frozen=True, slots=True)
class OffPolicyResult:
    """All differences; `decides` is None where the result is inconclusive, and `unknown` says why."""

    differences: dict[str, Difference] = field(default_factory=dict)
    decides: Difference | None = None
    unknown: str = ""
    support: Support | None = None

    def worst_case(self) -> float | None:
        """Return the upper bound of the difference for a rejection, which needs fewer tries; None without them."""
        robust = self.differences.get("doubly_robust")
        if robust is None or self.support is None or self.support.count < REJECTING_TRIES:
            return None
        return robust.upper


def judge(evidence: Evidence, *, confidence: float, min_effective_samples: float) -> OffPolicyResult:
    """Evaluate the estimators on the evidence."""
    e = evidence
    if (reason := _unusable(e)) is not None:
        return OffPolicyResult(unknown=reason)
    try:
        weights = [importance_weights(side.probability, e.logged) for side in e.sides]
    except ValueError as error:
        return OffPolicyResult(unknown=str(error))
    usable_N = e.own & e.known
    tried = support(e)
    found: dict[str, Difference] = {}
    try:
        if e.gamma <= 0 and all(float(w_N[usable_N].sum()) > 0 for w_N in weights):
            candidate, live = (snips(e.reward[usable_N], w_N[usable_N]) for w_N in weights)
            block = math.ceil(math.sqrt(int(usable_N.sum())))
            found["snips"] = _difference("snips", (candidate, live), 1.0, confidence, block)
        robust = _doubly_robust(standardised(e))
    except (ArithmeticError, ValueError, np.linalg.LinAlgError) as error:
        return OffPolicyResult(found, None, str(error), tried)
    decisive = found["doubly_robust"] = _difference("doubly_robust", robust, e.scale, confidence, 1)
    reason = tried.missing()
    if not reason and e.untried and not tried.alike:
        reason = f"the log hardly contains actions that the candidate prefers: {', '.join(e.untried)}"
    if not reason and decisive.effective_samples < min_effective_samples:
        reason = f"at most {decisive.effective_samples:.1f} effective samples; {min_effective_samples:g} are needed"
    return OffPolicyResult(found, None if reason else decisive, reason, tried)


def _unusable(e: Evidence) -> str | None:
    """Return why nothing can be estimated."""
    count = int((e.own & e.known).sum())
    if count < 2 * FOLDS:
        return f"{count} decisions have an outcome and a probability of the policy's own"
    if e.altered > LARGEST_ALTERED:
        return (
            f"the gate changed {e.altered:.0%} of the proposals, so the probabilities of executed actions are unknown"
        )
    if not e.informative:
        return "all ticks have the same reward and no episode ended: the log cannot distinguish policies"
    if not all(np.isfinite(side.probability).all() and np.isfinite(side.features).all() for side in e.sides):
        return "a probability or a value on a logged decision is not finite"
    return None


def _difference(name: str, pair: Pair, scale: float, confidence: float, block: int) -> Difference:
    candidate, live = pair
    terms = scale * (candidate.terms - live.terms)
    return Difference(
        name,
        scale * (candidate.value - live.value),
        lower_bound(terms, confidence, lag=block),
        -lower_bound(-terms, confidence, lag=block),
        min(candidate.effective_samples, live.effective_samples),
    )


def _doubly_robust(e: Evidence) -> Pair:
    """Return the estimates of both sides, with the least ridge for which their value functions converge.

    Raises:
        ArithmeticError: they converge for no ridge.
    """
    for ridge in RIDGES:
        try:
            return double_robust(e, e.candidate, ridge), double_robust(e, e.live, ridge)
        except ArithmeticError as error:
            last = error
    raise last


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
        altered=logged.altered,
        untried=both.untried,
    )


def figures(judged: OffPolicyResult) -> dict[str, Any]:
    """Return every estimator's numbers, the decisive one, and the support."""
    decides, tried = judged.decides, judged.support
    return {
        "estimator": decides.estimator if decides else None,
        "ess": round(decides.effective_samples, 1) if decides else None,
        "lower": round(decides.lower, 5) if decides else None,
        "tries": round(tried.count, 1) if tried else None,
        "differing": round(tried.differing, 4) if tried else None,
        "estimates": {name: one.figures() for name, one in judged.differences.items()},
    }
