"""Promotion step `held_out`: held-out metrics of the tasks that feed the policy are no worse than the margin.

A candidate acts on the answers of a task's present version; the live policy may have been promoted with another one. The step measures
both on the task's held-out file. Where no task feeds the policy, or none of them changed or has a file, the step passes and its figures
say so.
"""

from __future__ import annotations

from typing import Any

from learners.promotion.step_types import EvaluationContext, StepResult, Working, working


def held_out(context: EvaluationContext) -> Working:
    """Check that no task that feeds the policy has become worse."""
    found = yield from working(context.tasks.compare(context.task_versions))
    if not found:
        note = "no held-out file of a task that changed"
        return StepResult(passed=True, figures={"applies": False, "note": note})
    margin = context.settings.margin
    tasks: dict[str, Any] = {
        name: {
            "before": round(one.before, 4),
            "after": round(one.after, 4),
            "labels": one.examples,
            "metric": one.metric,
        }
        for name, one in found.items()
    }
    worse = [
        f"{name}: {one.metric} {one.after:.3f} after {one.before:.3f}"
        for name, one in found.items()
        if one.after < one.before - margin
    ]
    return StepResult(
        passed=not worse, figures={"applies": True, "margin": margin, "tasks": tasks}, reason="; ".join(worse)
    )
