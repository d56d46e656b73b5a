"""The step `labels`: held-out metrics of the tasks that feed the policy are no worse than the margin.

The part of a task's labels that never trains is kept by `online.py`. A candidate acts on what the task's present version says,
the live policy was promoted with another one, perhaps: both are measured on the held-out labels. Where no task feeds the policy,
or none of them changed or has held-out labels, there is nothing to judge by, and the figures say so.
"""

from __future__ import annotations

from typing import Any

from learners.evaluate import Finding, Trial


def labels(trial: Trial) -> Finding:
    """No task that feeds the policy has become worse."""
    found = trial.held_out()
    if not found:
        return Finding("labels", passed=True, figures={"applies": False, "note": "no held-out labels"})
    margin = trial.settings.margin
    tasks: dict[str, Any] = {
        name: {"before": round(one.before, 4), "after": round(one.after, 4), "labels": one.labels, "metric": one.metric}
        for name, one in found.items()
    }
    figures = {"applies": True, "margin": margin, "tasks": tasks}
    worse = [
        f"{name}: {one.metric} {one.after:.3f} after {one.before:.3f}"
        for name, one in found.items()
        if one.after < one.before - margin
    ]
    return Finding("labels", passed=not worse, figures=figures, reason="; ".join(worse))
