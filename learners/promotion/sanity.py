"""The step `sanity`: on the last recorded observations the candidate's numbers are finite and it has not collapsed.

A policy that does the same whatever it sees has usually been lost in training; where the live one does so as well it may be
right. Before anything is live, collapse is told but not held against it: nobody knows yet whether doing one thing is wrong, and
what exploration it brings still shows.
"""

from __future__ import annotations

from typing import Any

from learners.promotion.ope.greedy_actions import act, agreement, collapsed, shares
from learners.promotion.ope.logged_data import Logged
from learners.promotion.pipeline import EvaluationContext, StepResult, Working, working

FEWEST = 20
"""Observations below which nobody can say that something collapsed."""


def sanity(trial: EvaluationContext) -> Working:
    """Finite, and not always the same unless the live policy is."""
    logged = Logged(trial.spec, trial.recent(trial.settings.sanity_observations), dict(trial.versions))
    if not len(logged):
        return StepResult("sanity", passed=True, figures={"observations": 0, "applies": False})
    candidate = yield from working(act(trial.candidate, logged))
    figures: dict[str, Any] = {
        "observations": len(logged),
        "finite": candidate.sound,
        "outside": candidate.outside,
    }
    if not candidate.sound:
        return StepResult("sanity", passed=False, figures=figures, reason="its actions or values are not finite")
    figures["candidate"] = shares(trial.spec, candidate.values)
    stuck = {name for name, is_stuck in collapsed(trial.spec, candidate.values).items() if is_stuck}
    if trial.live is None or len(logged) < FEWEST:
        return StepResult("sanity", passed=True, figures=figures | {"collapsed": sorted(stuck)})
    live = yield from working(act(trial.live, logged))
    figures["live"] = shares(trial.spec, live.values)
    figures["agreement"] = agreement(trial.spec, candidate.values, live.values)
    stuck -= {name for name, is_stuck in collapsed(trial.spec, live.values).items() if is_stuck}
    figures["collapsed"] = sorted(stuck)
    reason = f"always does the same with {', '.join(sorted(stuck))}, which the live one does not" if stuck else ""
    return StepResult("sanity", passed=not stuck, figures=figures, reason=reason)
