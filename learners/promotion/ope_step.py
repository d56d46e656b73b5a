"""Promotion step `ope`: off-policy evaluation of candidate and live policy on the newest logged decisions, as a filter.

Both are evaluated with the exploration in their weights, because they would run live with it. The policy has no probability for an
action that a person, the gate or no one decided.

`ope/evaluator.py` contains the estimator. The candidate was trained on most of these rows, so they flatter it, and no result proves that
it is good. The step fails if even the upper confidence bound of candidate minus live is below minus `promotion.margin` (reward
per tick). Where the log contains too little, the step is inconclusive: it is no pass, and the candidate is held to the live experiment.
"""

from __future__ import annotations

from learners.promotion.ope.evaluator import figures, gather, judge
from learners.promotion.step_types import EvaluationContext, StepResult, Working, working


def ope(context: EvaluationContext) -> Working:
    """Compare candidate and live policy on logged decisions."""
    settings = context.settings
    if context.live is None:
        return StepResult(passed=True, figures={"applies": False, "note": "no live version to compare with"})
    rows = context.experience.recent(settings.ope_decisions + context.reward_delay_ticks)
    logged = context.logged(rows[: len(rows) - context.reward_delay_ticks])
    evidence = yield from working(gather(context.candidate, context.live, logged))
    judged = judge(evidence, confidence=settings.confidence, min_effective_samples=settings.min_effective_samples)
    found = figures(judged) | {"decisions": len(logged), "own": int(evidence.own.sum()), "margin": settings.margin}
    upper = judged.worst_case()
    if upper is not None and upper < -settings.margin:
        reason = f"earns at least {-upper:.3f} less reward per tick than the live version; {settings.margin:g} less is allowed"
        return StepResult(passed=False, figures=found | {"finding": "worse"}, reason=reason)
    if judged.decides is None:
        found |= {"finding": "inconclusive", "note": judged.unknown}
        return StepResult(
            passed=False,
            inconclusive=True,
            figures=found,
            reason=f"inconclusive, left to the live experiment: {judged.unknown}",
        )
    finding = "not worse" if judged.decides.lower > -settings.margin else "possible"
    return StepResult(passed=True, figures=found | {"finding": finding})
