"""The step `ope`: off-policy evaluation of candidate and live policy on the newest logged decisions.

Both are judged as they act live: with the exploration that lies in their weights. What was executed by a person, by the gate
or by nobody carries no probability of the policy's: it enters no importance weight, ends a weighed window, and only teaches the
value functions. The estimators, and which of them decides, are in `offpolicy.py`. The step passes when the lower confidence
bound of candidate minus live is above minus `promotion.margin` (a reward a tick); too little evidence is "inconclusive", which is
not a pass.
"""

from __future__ import annotations

from learners.promotion.ope.evaluator import figures, gather, judge
from learners.promotion.ope.logged_data import Logged
from learners.promotion.pipeline import EvaluationContext, StepResult, Working, working


def ope(trial: EvaluationContext) -> Working:
    """Not worse by what was logged."""
    settings = trial.settings
    if trial.live is None:
        return StepResult("ope", passed=True, figures={"applies": False, "note": "no live version to compare with"})
    rows = trial.recent(settings.ope_decisions + trial.settle)
    logged = Logged(trial.spec, rows[: len(rows) - trial.settle], dict(trial.versions))
    evidence = yield from working(gather(trial.candidate, trial.live, logged))
    judged = judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)
    told = figures(judged) | {"decisions": len(logged), "own": int(evidence.own.sum()), "margin": settings.margin}
    if judged.decides is None:
        return StepResult("ope", passed=False, figures=told, reason=f"inconclusive: {judged.unknown}")
    lower = judged.decides.lower
    passed = lower > -settings.margin
    reason = f"may earn {-lower:.3f} a tick less than the live one; {settings.margin:g} is allowed"
    return StepResult("ope", passed=passed, figures=told, reason="" if passed else reason)
