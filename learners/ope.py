"""The step `ope`: off-policy evaluation of candidate and live policy on the newest logged decisions.

Both are judged as they act live: with the exploration that lies in their weights. What was executed by a person, by the gate
or by nobody carries no probability of the policy's: it enters no importance weight, ends a weighed window, and only teaches the
value functions. The estimators, and which of them decides, are in `offpolicy.py`. The step passes when the lower confidence
bound of candidate minus live is above minus `promotion.margin` (a reward a tick); too little evidence is "not known", which is
not a pass.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from learners.compared import compare
from learners.evaluate import Finding, Trial, Working, working
from learners.evidence import Evidence, Side
from learners.logged import Acts, Logged
from learners.offpolicy import Judged, judge


def ope(trial: Trial) -> Working:
    """Not worse by what was logged."""
    settings = trial.settings
    if trial.live is None:
        return Finding("ope", passed=True, figures={"applies": False, "note": "no live version to compare with"})
    rows = trial.recent(settings.decisions + trial.settle)
    logged = Logged(trial.spec, rows[: len(rows) - trial.settle], dict(trial.versions))
    evidence = yield from working(gather(trial.candidate, trial.live, logged))
    judged = judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)
    told = figures(judged) | {"decisions": len(logged), "own": int(evidence.own.sum()), "margin": settings.margin}
    if judged.decides is None:
        return Finding("ope", passed=False, figures=told, reason=f"not known: {judged.unknown}")
    lower = judged.decides.lower
    passed = lower > -settings.margin
    reason = f"may earn {-lower:.3f} a tick less than the live one; {settings.margin:g} is allowed"
    return Finding("ope", passed=passed, figures=told, reason="" if passed else reason)


def gather(candidate: Acts, live: Acts, logged: Logged) -> Generator[None, None, Evidence]:
    """Go through the decisions a few at a time; the generator returns what both make of them."""
    both = yield from compare(candidate, live, logged)
    return Evidence(
        reward=logged.reward_N,
        done=logged.done_N,
        follows=logged.follows_N,
        known=logged.moved_N & (logged.done_N | logged.follows_N),
        own=logged.any_own,
        logged=both.logged,
        taken=both.taken,
        candidate=Side(both.candidate, both.by_candidate),
        live=Side(both.live, both.by_live),
        gamma=logged.spec.gamma,
    )


def figures(judged: Judged) -> dict[str, Any]:
    """Every estimator's numbers, and which one decided."""
    decides = judged.decides
    return {
        "estimator": decides.estimator if decides else None,
        "ess": round(decides.effective_samples, 1) if decides else None,
        "lower": round(decides.lower, 5) if decides else None,
        "estimates": {name: one.figures() for name, one in judged.differences.items()},
    }
