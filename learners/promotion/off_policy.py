"""Promotion step `ope`: off-policy evaluation of candidate and live policy on the newest logged decisions.

Both are evaluated with the exploration in their weights, because they would run live with it. The policy has no probability for
an action of a person, of the gate or of no one. Such an action enters no importance weight, ends a weighted window, and trains
the value functions only.

`ope/evaluator.py` contains the estimators and selects the decisive one. The step passes if the lower confidence bound of
candidate minus live is above minus `promotion.margin` (reward per tick). Too little evidence is inconclusive, which fails the
step.
"""

from __future__ import annotations

from learners.promotion.context import EvaluationContext, StepResult, Working, working
from learners.promotion.ope.evaluator import figures, gather, judge
from learners.promotion.ope.logged_data import Logged


def ope(context: EvaluationContext) -> Working:
    """Compare candidate and live policy on logged decisions."""
    settings = context.settings
    if context.live is None:
        return StepResult(passed=True, figures={"applies": False, "note": "no live version to compare with"})
    rows = context.experience.recent(settings.ope_decisions + context.reward_delay_ticks)
    logged = Logged(context.spec, rows[: len(rows) - context.reward_delay_ticks], dict(context.encoder_versions))
    evidence = yield from working(gather(context.candidate, context.live, logged))
    judged = judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)
    found = figures(judged) | {"decisions": len(logged), "own": int(evidence.own.sum()), "margin": settings.margin}
    if judged.decides is None:
        return StepResult(passed=False, figures=found, reason=f"inconclusive: {judged.unknown}")
    lower = judged.decides.lower
    passed = lower > -settings.margin
    reason = f"may earn {-lower:.3f} less reward per tick than the live version; {settings.margin:g} less is allowed"
    return StepResult(passed=passed, figures=found, reason="" if passed else reason)
